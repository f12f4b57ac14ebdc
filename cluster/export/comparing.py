"""`trilogue verify --export`: is what lies there what the stores hold?

Owns the comparison: every message of every file that the manifest names, column by column, with the stores. It must not know
how an export is made, nor what a row is (``rows``): it reads the manifest, the ranges and the files. Rules:

1. A problem is what a reader of the export would be misled by: a file that is missing or damaged, or that the manifest does not
   name, rows that differ, are missing, or come twice, and messages that the stores do not have though nothing trimmed them.
2. What was trimmed since, or is trimmed meanwhile, is no damage: at a difference the stores are asked again what they have.
   What came since is not missing, nor is what `--after` left out: notes say how much.
3. Memory is bounded: a page of the stores and a few row groups, and the ranges of a partition.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import pyarrow as pa
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
from trilogue.cluster.export.manifest import MANIFEST, DataFile, Manifest, is_ours, is_read
from trilogue.cluster.export.ranges import Coverage, coverage, rows_of
from trilogue.cluster.export.rows import Bounds, against, as_ours, difference, within
from trilogue.cluster.export.target import Target
from trilogue.cluster.export.writing import read_ranges

Parts = AsyncGenerator[pa.Table, None]
BATCH_ROWS = 16 * 1024
DAMAGED = (OSError, pa.lib.ArrowException, UnicodeDecodeError)
"""What reading a damaged file raises."""


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
    await asyncio.to_thread(_unnamed, target, findings, notes)
    return {
        "ok": findings.problem_count == 0, "export": where, "cluster": manifest.cluster, "files": len(manifest.files),
        "messages": findings.messages, "trimmed": comparison.trimmed, "newer": comparison.newer,
        "problem_count": findings.problem_count, "problems": [problem._asdict() for problem in findings.problems],
        "notes": notes, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _unnamed(target: Target, findings: Findings, notes: list[str]) -> None:
    """What is there that the manifest does not name, which is read again: an export may have gone on meanwhile."""
    there = target.files()
    manifest = read_manifest(target)
    left = there - manifest.names if manifest is not None else there
    for name in sorted(filter(is_read, left)):
        if is_ours(name):
            text = f"an export that was cut short has left it (or one runs now): {_how_to_remove(target)}"
        else:
            text = "no export has written it: move it elsewhere"
        findings.add(
            "unnamed", name, f"who reads the whole directory reads its rows, too, but the manifest does not name it; {text}"
        )
    if rests := [name for name in left if not is_read(name)]:
        notes.append(f"{counted(len(rests), 'file')} of an export that was cut short: {_how_to_remove(target)}")


def _how_to_remove(target: Target) -> str:
    return "the next export removes it" if target.is_local else "remove it when no export runs"


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
            except DAMAGED as error:
                self.findings.add("damaged", file.ranges, _one_line(error))
                continue
            readable.append(ranges)
            await self._file(holder, file, ranges)
        await self._coverage(holder, partition, readable)

    async def _coverage(self, holder: Holder, partition: int, ranges: list[pa.Table]) -> None:
        """What comes twice, and what of the stores' messages is in no file."""
        covered = coverage(ranges)
        ours = next(covered, None)
        newer, sessions, left_out = 0, 0, 0
        async for session, first_seq, last_seq in self._tables.sessions(holder):
            while ours is not None and ours.session < session:
                ours = self._covered(ours, partition, covered)
            until = 0
            if ours is not None and ours.session == session:
                until = ours.last_seq
                left_out += self._holes(ours, first_seq)
                ours = self._covered(ours, partition, covered)
            if (more := last_seq - max(until, first_seq - 1)) > 0:
                newer, sessions = newer + more, sessions + 1
        while ours is not None:
            ours = self._covered(ours, partition, covered)
        self.newer += newer
        if newer:
            text = f"partition {partition}: {counted(newer, 'message')} of {counted(sessions, 'session')}"
            self.notes.append(f"{text} are not exported (yet)")
        if left_out:
            text = f"partition {partition}: {counted(left_out, 'message')} were left out by --after {self._manifest.after}"
            self.notes.append(f"{text}; no later export into this place adds them")

    def _covered(self, ours: Coverage, partition: int, others: Iterator[Coverage]) -> Coverage | None:
        """The next one, when all is said of this one."""
        if ours.twice:
            text = f"session {ours.session!r}: seq {ours.twice} is in more than one file"
            self.findings.add("twice", f"partition {partition}", text)
        return next(others, None)

    def _holes(self, ours: Coverage, first_seq: int) -> int:
        """How many messages of a session lie between exported ones and were left out by `--after`; more are a problem."""
        left_out = 0
        for first, last in ours.holes:
            first = max(first, first_seq)  # what lies below is trimmed
            left_out += max(0, min(last, self._manifest.after) - first + 1)
            first = max(first, self._manifest.after + 1)
            if first <= last:
                text = f"{counted(last - first + 1, 'message')} from seq {first} on are in no file, though later ones are"
                self.findings.add("hole", f"session {ours.session!r}", f"{text}: export into another place")
        return left_out

    async def _file(self, holder: Holder, file: DataFile, ranges: pa.Table) -> None:
        bounds = await self._bounds(holder, file, ranges)
        for session, (_, last_seq, exported) in bounds.items():
            if last_seq < exported:
                text = f"session {session!r} ends at {last_seq} in the stores, and the export has it up to {exported}"
                self.findings.add("ahead", file.path, text)
        stored = self._stored(holder, ranges, bounds)
        try:
            with await asyncio.to_thread(self._target.open_input, file.path) as stream:
                parquet = await asyncio.to_thread(pq.ParquetFile, stream)
                if parquet.metadata.num_rows != file.rows:
                    text = f"it has {parquet.metadata.num_rows} rows, and the manifest says {file.rows}"
                    self.findings.add("damaged", file.path, text)
                elif text := against(parquet.schema_arrow):
                    self.findings.add("differs", file.path, text)
                else:
                    await self._rows(file, ranges, parquet.iter_batches(batch_size=BATCH_ROWS), bounds, stored)
        except FileNotFoundError:
            self.findings.add("missing", file.path, f"the file is gone, and {counted(file.rows, 'message')} with it")
        except DAMAGED as error:
            self.findings.add("damaged", file.path, _one_line(error))
        finally:
            await stored.aclose()
        if trimmed := sum(
            max(0, min(bounds[s].first_seq - 1, last) - first + 1) for s, first, last in rows_of(ranges) if s in bounds
        ):
            self.trimmed += trimmed
            self.notes.append(f"{file.path}: {counted(trimmed, 'message')} of it were trimmed in the stores since")

    async def _rows(
        self, file: DataFile, ranges: pa.Table, batches: Iterator[pa.RecordBatch], bounds: dict[str, Bounds], stored: Parts
    ) -> None:
        """Compare row by row until the first difference. What is trimmed meanwhile is none: then `bounds` are taken again."""
        ours = SCHEMA.empty_table()
        while True:
            batch = await asyncio.to_thread(next, batches, None)
            rows = as_ours(batch) if batch is not None else SCHEMA.empty_table()
            while True:
                rows, ours = within(rows, bounds), within(ours, bounds)
                ours = await _filled(ours, stored, bounds, rows.num_rows + (batch is None))
                text = difference(rows, ours.slice(0, rows.num_rows))
                if batch is None and ours.num_rows:
                    text = "the stores have messages of its ranges that it lacks"
                if not text:
                    break
                again = await self._bounds(self._tables.holder(file.partition), file, ranges)
                if again == bounds:
                    self.findings.add("differs", file.path, text)
                    return
                bounds.update(again)
            if batch is None:
                return
            ours = ours.slice(rows.num_rows)
            self.findings.messages += rows.num_rows
            self._bars.advance("messages", self.findings.messages, self._all)

    async def _stored(self, holder: Holder, ranges: pa.Table, bounds: dict[str, Bounds]) -> Parts:
        async def spans() -> AsyncIterator[Span]:
            for session, first, last in rows_of(ranges):
                lowest, highest, _ = bounds.get(session, (first, last, last))
                yield Span(session, max(first, lowest) - 1, min(last, highest))

        async for runs in self._tables.runs(holder, spans(), passes_over_gone=True):
            columns = Columns()
            for run in runs:
                columns.take(run)
            yield pa.Table.from_batches([columns.batch(columns.cut())])

    async def _bounds(self, holder: Holder, file: DataFile, ranges: pa.Table) -> dict[str, Bounds]:
        """What the stores have of sessions of which they do not have all that the file names."""
        bounds: dict[str, Bounds] = {}
        listed = self._tables.sessions(holder, above=file.first_session[:-1])
        there = await anext(listed, None)
        for session, first, last in rows_of(ranges):
            while there is not None and there.session < session:
                there = await anext(listed, None)
            lowest, highest = (there.first_seq, there.last_seq) if there is not None and there.session == session else (1, 0)
            if lowest > first or highest < last:
                bounds[session] = Bounds(lowest, highest, last)
        await listed.aclose()
        return bounds


async def _filled(ours: pa.Table, stored: Parts, bounds: dict[str, Bounds], count: int) -> pa.Table:
    """What the stores have next: so many rows, if there are."""
    while ours.num_rows < count and (more := await anext(stored, None)) is not None:
        ours = pa.concat_tables([ours, within(more, bounds)])
    return ours


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
