"""`trilogue verify --export`: is what lies there what the stores hold?

Owns the comparison: every message of every file that the manifest names, column by column, with the stores. It must not know
how an export is made: it reads the manifest, the ranges and the rows. Rules:

1. A problem is what a reader of the export would be misled by: a file that is missing or damaged, rows that differ, are
   missing, or come twice, and messages that the stores do not have though nothing trimmed them.
2. What was trimmed since is no damage, and what came since is not missing: notes say how much.
3. Memory is bounded: a page of the stores and a few row groups, and the ranges of a partition.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trilogue.actors.protocol.errors import UsageError, WrongCluster, counted
from trilogue.client import Client
from trilogue.client.connecting.holders import Holder
from trilogue.client.reading.columns import SCHEMA, Columns
from trilogue.client.reading.tables import Tables, tables_of
from trilogue.client.reading.windows import Span
from trilogue.cluster.commands.find import Known, check_answers
from trilogue.cluster.commands.judge import Findings
from trilogue.cluster.commands.show import Bars
from trilogue.cluster.export.exporting import read_manifest
from trilogue.cluster.export.manifest import MANIFEST, DataFile, Exported, Manifest, messages_in, rows_of
from trilogue.cluster.export.target import Target
from trilogue.cluster.export.writing import read_ranges

Parts = AsyncGenerator[pa.Table, None]
BATCH_ROWS = 16 * 1024
DAMAGED = (OSError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError)


class Bounds(NamedTuple):
    """Which of a session's messages the stores have, where these are not all that a range names."""

    first_seq: int
    last_seq: int


async def compare(known: Known, where: str, bars: Bars) -> dict[str, Any]:
    """The report, as `--json` shows it. Raises `UsageError`, `Unavailable`, `WrongCluster`."""
    started = time.monotonic()
    target = Target.open(where)
    manifest = await asyncio.to_thread(read_manifest, target)
    if manifest is None:
        raise UsageError(f"{where} has no {MANIFEST}: it is no export, or its first run has not begun")
    await check_answers(known)
    async with Client(address=",".join(known.addresses), token=known.token) as client:
        tables = tables_of(client)
        partitions = await tables.partitions()
        if (manifest.cluster, manifest.partitions) != (tables.cluster, partitions):
            raise WrongCluster(f"{where} is an export of the system {manifest.cluster}, not of {tables.cluster}")
        comparison = _Comparison(target, manifest, tables, bars)
        for partition in range(partitions):
            await comparison.partition(partition)
    findings, notes = comparison.findings, comparison.notes
    if rest := await asyncio.to_thread(_rest, target, manifest):
        notes.append(f"{counted(len(rest), 'file')} of an export that was cut short: the next export removes them")
    return {
        "ok": findings.problem_count == 0, "export": where, "cluster": manifest.cluster, "files": len(manifest.files),
        "messages": findings.messages, "trimmed": comparison.trimmed, "newer": comparison.newer,
        "problem_count": findings.problem_count, "problems": [problem._asdict() for problem in findings.problems],
        "notes": notes, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _rest(target: Target, manifest: Manifest) -> set[str]:
    return target.files() - {name for file in manifest.files for name in (file.path, file.ranges)}


class _Comparison:
    """What was found so far."""

    def __init__(self, target: Target, manifest: Manifest, tables: Tables, bars: Bars) -> None:
        self._target, self._manifest, self._tables, self._bars = target, manifest, tables, bars
        self.findings, self.notes = Findings(), list[str]()
        self.trimmed = self.newer = 0
        self._all = sum(file.rows for file in manifest.files)

    async def partition(self, partition: int) -> None:
        """Compare the files of a partition, and count what they do not have yet."""
        holder = self._tables.holder(partition)
        readable: list[pa.Table] = []
        for file in self._manifest.of_partition(partition):
            try:
                ranges = await asyncio.to_thread(read_ranges, self._target, file)
                if messages_in(ranges) != file.rows:
                    raise pa.ArrowInvalid(f"its ranges name {messages_in(ranges)} messages, the manifest {file.rows}")
            except DAMAGED as error:
                self.findings.add("damaged", file.ranges, _one_line(error))
                continue
            readable.append(ranges)
            await self._file(holder, file, ranges)
        for session, seq in overlaps(readable):
            self.findings.add("twice", f"partition {partition}", f"session {session!r}: seq {seq} is in more than one file")
        exported, newer, sessions = Exported(readable), 0, 0
        async for session, first_seq, last_seq in self._tables.sessions(holder):
            if (more := last_seq - max(exported.last_seq(session), first_seq - 1)) > 0:
                newer, sessions = newer + more, sessions + 1
        self.newer += newer
        if newer:
            text = f"partition {partition}: {counted(newer, 'message')} of {counted(sessions, 'session')}"
            self.notes.append(f"{text} are not exported (yet)")

    async def _file(self, holder: Holder, file: DataFile, ranges: pa.Table) -> None:
        bounds = await self._bounds(holder, file, ranges)
        stored = self._stored(holder, ranges, bounds)
        try:
            with await asyncio.to_thread(self._target.open_input, file.path) as stream:
                parquet = pq.ParquetFile(stream)
                if parquet.metadata.num_rows != file.rows:
                    text = f"it has {parquet.metadata.num_rows} rows, and the manifest says {file.rows}"
                    self.findings.add("damaged", file.path, text)
                    return
                await self._rows(file, parquet, bounds, stored)
        except FileNotFoundError:
            self.findings.add("missing", file.path, f"the file is gone, and {counted(file.rows, 'message')} with it")
        except DAMAGED as error:
            self.findings.add("damaged", file.path, _one_line(error))
        finally:
            await stored.aclose()

    async def _rows(
        self, file: DataFile, parquet: Any, bounds: dict[str, Bounds], stored: AsyncGenerator[pa.Table, None]
    ) -> None:
        """Compare row by row until the first difference."""
        ours = SCHEMA.empty_table()
        batches = parquet.iter_batches(batch_size=BATCH_ROWS)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            rows = _within(pa.Table.from_batches([batch]), bounds)
            while ours.num_rows < rows.num_rows and (more := await anext(stored, None)) is not None:
                ours = pa.concat_tables([ours, more])
            if text := difference(rows, ours.slice(0, rows.num_rows)):
                self.findings.add("differs", file.path, text)
                return
            ours = ours.slice(rows.num_rows)
            self.findings.messages += rows.num_rows
            self._bars.advance("messages", self.findings.messages, self._all)
        if ours.num_rows or await anext(stored, None) is not None:
            self.findings.add("differs", file.path, "the stores have messages of its ranges that it lacks")

    async def _stored(self, holder: Holder, ranges: pa.Table, bounds: dict[str, Bounds]) -> Parts:
        async def spans() -> AsyncIterator[Span]:
            for session, first, last in rows_of(ranges):
                lowest, highest = bounds.get(session, (first, last))
                yield Span(session, max(first, lowest) - 1, min(last, highest))

        async for runs in self._tables.runs(holder, spans(), passes_over_gone=True):
            columns = Columns()
            for run in runs:
                columns.take(run)
            yield pa.Table.from_batches([columns.batch(columns.cut())])

    async def _bounds(self, holder: Holder, file: DataFile, ranges: pa.Table) -> dict[str, Bounds]:
        """What the stores have of sessions of which they do not have all that the file names."""
        bounds: dict[str, Bounds] = {}
        trimmed = 0
        listed = self._tables.sessions(holder, above=file.first_session[:-1])
        there = await anext(listed, None)
        for session, first, last in rows_of(ranges):
            while there is not None and there.session < session:
                there = await anext(listed, None)
            lowest, highest = (there.first_seq, there.last_seq) if there is not None and there.session == session else (1, 0)
            if highest < last:
                text = f"session {session!r} ends at {highest} in the stores, and the export has it up to {last}"
                self.findings.add("ahead", file.path, text)
            if lowest > first or highest < last:
                bounds[session] = Bounds(lowest, highest)
                trimmed += max(0, min(lowest - 1, last) - first + 1)
        await listed.aclose()
        self.trimmed += trimmed
        if trimmed:
            self.notes.append(f"{file.path}: {counted(trimmed, 'message')} of it were trimmed in the stores since")
        return bounds


def _within(rows: pa.Table, bounds: dict[str, Bounds]) -> pa.Table:
    """Those rows that the stores still have."""
    if not bounds:
        return rows
    codes = rows["session"].combine_chunks()
    names = codes.dictionary.to_pylist()
    lowest = np.array([bounds[name].first_seq if name in bounds else 0 for name in names] or [0])
    highest = np.array([bounds[name].last_seq if name in bounds else 2**62 for name in names] or [0])
    at, seq = codes.indices.to_numpy(), rows["seq"].to_numpy()
    return rows.filter(pa.array((seq >= lowest[at]) & (seq <= highest[at])))


def difference(exported: pa.Table, stored: pa.Table) -> str:
    """Where two tables differ first; nothing if they do not."""
    if exported.schema.names != SCHEMA.names:
        return f"its columns are {', '.join(exported.schema.names)}"
    count = min(exported.num_rows, stored.num_rows)
    first, column = count, ""
    for name in SCHEMA.names:
        ours, theirs = _plain(exported[name].slice(0, count)), _plain(stored[name].slice(0, count))
        if not ours.equals(theirs):
            at = pc.index(pc.equal(ours, theirs), False).as_py()
            if at < first:
                first, column = at, name
    if column:
        session, seq = stored["session"][first].as_py(), stored["seq"][first].as_py()
        return f"session {session!r}, seq {seq}: another {column} than in the stores"
    if exported.num_rows > count:
        session, seq = exported["session"][count].as_py(), exported["seq"][count].as_py()
        return f"session {session!r}, seq {seq}: it is not in the stores, and no trim says why"
    return ""


def _plain(column: Any) -> Any:
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole


def overlaps(ranges: list[pa.Table]) -> Iterator[tuple[str, int]]:
    """(session, seq) that several ranges name; the first one of each."""
    if not ranges:
        return
    rows = pa.concat_tables(ranges).sort_by([("session", "ascending"), ("first_seq", "ascending")])
    before: tuple[str, int] = ("", 0)
    for session, first, last in rows_of(rows):
        if session == before[0] and first <= before[1]:
            yield session, first
        before = (session, max(last, before[1] if session == before[0] else 0))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
