"""`trilogue export`: what is new of the chosen sessions, into a directory or an object store.

Owns which messages are new, and the order in which files come to count. It must not know how files look inside (``writing``)
nor how messages are read (``trilogue.client``). Rules:

1. A file counts from the manifest that names it. The manifest is written after each file, so an export that was cut short goes
   on where it was; what it left without a name in the manifest is removed first, if nobody else can be writing it.
2. Memory is bounded: pages that are on their way, a row group that is being filled, one that is being written, and the ranges
   of the partition at hand.
3. One export at a time writes to a place. Where a lock can be had, the second one is refused. Where none can, each run has a
   random id in the manifest and in its files' names: who finds another one's id in the manifest ends. None of them removes
   what the manifest does not name, for it may be another one's that is about to be named.
4. What was trimmed is passed over: a range begins where the session does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pyarrow as pa

from trilogue.actors.protocol.errors import InvalidRange, TrilogueError, UsageError, WrongCluster, counted
from trilogue.actors.protocol.ids import check_session, partition_of
from trilogue.client import Client
from trilogue.client.connecting.holders import Holder
from trilogue.client.reading.tables import Tables, tables_of
from trilogue.client.reading.windows import Span
from trilogue.cluster.commands.find import Known, check_answers
from trilogue.cluster.export.manifest import MANIFEST, DataFile, Manifest, is_ours
from trilogue.cluster.export.ranges import Exported
from trilogue.cluster.export.target import Target
from trilogue.cluster.export.writing import FileWriter, Group, read_ranges

Say = Callable[[str], None]


class Chosen(NamedTuple):
    """What is to be exported: these sessions, or this partition, or everything; of each session what follows `after`."""

    sessions: list[str]
    partition: int | None
    after: int


async def export(known: Known, where: str, chosen: Chosen, say: Say) -> dict[str, Any]:
    """Write what is new; the report, as `--json` shows it. Raises `UsageError`, `Unavailable`, `WrongCluster`, `OSError`."""
    for session in chosen.sessions:
        check_session(session)
    if chosen.after < 0:
        raise InvalidRange(f"--after {chosen.after}: a seq is 0 or more")
    started = time.monotonic()
    target = Target.open(where)
    await check_answers(known)
    async with Client(address=",".join(known.addresses), token=known.token) as client:
        tables = tables_of(client)
        partitions = await tables.partitions()
        if chosen.partition is not None and not 0 <= chosen.partition < partitions:
            raise UsageError(f"there is no partition {chosen.partition}: they are 0 to {partitions - 1}")
        await asyncio.to_thread(_check, target, tables.cluster, partitions)
        with target.lock() as is_alone:
            manifest = await asyncio.to_thread(_begin, target, tables.cluster, partitions, is_alone=is_alone)
            work = _Work(target, manifest, tables, chosen, say)
            for partition in sorted(_partitions(chosen, partitions)):
                await work.partition(partition)
    return {
        "ok": True, "to": where, "cluster": work.manifest.cluster, "messages": work.messages, "sessions": work.sessions,
        "files": work.files, "body_bytes": work.body_bytes, "files_in_all": len(work.manifest.files),
        "messages_in_all": sum(file.rows for file in work.manifest.files),
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _partitions(chosen: Chosen, partitions: int) -> set[int]:
    if chosen.sessions:
        return {partition_of(session, partitions) for session in chosen.sessions}
    return set(range(partitions)) if chosen.partition is None else {chosen.partition}


def read_manifest(target: Target) -> Manifest | None:
    """The manifest of an export; nothing if there is none."""
    data = target.read(MANIFEST)
    return Manifest.of_json(data, target.name) if data is not None else None


def _check(target: Target, cluster: str, partitions: int) -> tuple[Manifest, set[str]]:
    """The manifest as it is, and what it does not name of the files of exports that are there."""
    manifest = read_manifest(target)
    there = {name for name in target.files() if is_ours(name)}
    if manifest is None:
        if any(not name.endswith(".writing") for name in there):
            raise UsageError(f"{target.name} has files of an export, and no {MANIFEST}: name another directory")
        manifest = Manifest(cluster, partitions, 0)
    if (manifest.cluster, manifest.partitions) != (cluster, partitions):
        raise WrongCluster(f"{target.name} is an export of the system {manifest.cluster}, not of {cluster}: name another one")
    return manifest, there - manifest.names


def _begin(target: Target, cluster: str, partitions: int, *, is_alone: bool) -> Manifest:
    """The manifest of this run, written; what does not count of earlier ones is gone, if nobody else writes."""
    manifest, rests = _check(target, cluster, partitions)
    for rest in rests if is_alone else ():
        target.remove(rest)
    manifest = manifest.next_run(secrets.token_hex(4))
    target.write(MANIFEST, manifest.as_json())
    return manifest


class _Work:
    """One run: what it has written so far."""

    def __init__(self, target: Target, manifest: Manifest, tables: Tables, chosen: Chosen, say: Say) -> None:
        self._target, self._tables, self._chosen, self._say = target, tables, chosen, say
        self.manifest = manifest
        self.messages = self.sessions = self.files = self.body_bytes = 0

    async def partition(self, partition: int) -> None:
        """Write what is new of a partition."""
        self._say(f"partition {partition}")
        exported = await asyncio.to_thread(self._exported, partition)
        holder = self._tables.holder(partition)
        spans = self._listed(partition, exported) if self._chosen.sessions else self._all(holder, exported)
        group, file = Group(), _File(self._target, self.manifest, partition)
        try:
            async for runs in self._tables.runs(holder, spans, passes_over_gone=True):
                group.take(runs)
                file.writer.note(runs)
                if group.is_full:
                    await file.add(group)
                    group = Group()
                    if file.writer.is_full:
                        await self._publish(await file.close())
                        file = _File(self._target, self.manifest, partition, file.number + 1)
            if group.rows:
                await file.add(group)
            if file.writer.rows:
                await self._publish(await file.close())
        except BaseException as error:
            await file.give_up(error)
            raise

    def _exported(self, partition: int) -> Exported:
        try:
            return Exported(read_ranges(self._target, file) for file in self.manifest.of_partition(partition))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise TrilogueError(
                f"{self._target.name} has lost what it says of partition {partition}: {error}; export into another directory"
            ) from None

    async def _all(self, holder: Holder, exported: Exported) -> AsyncIterator[Span]:
        async for session, first_seq, last_seq in self._tables.sessions(holder):
            after = max(exported.last_seq(session), self._chosen.after, first_seq - 1)
            if after < last_seq:
                self.sessions += 1
                yield Span(session, after, last_seq)

    async def _listed(self, partition: int, exported: Exported) -> AsyncIterator[Span]:
        partitions = self.manifest.partitions
        names = sorted({name for name in self._chosen.sessions if partition_of(name, partitions) == partition})
        heads = await self._tables.heads(names)
        for session in names:
            after = max(exported.last_seq(session), self._chosen.after)
            if after < heads[session]:
                self.sessions += 1
                yield Span(session, after, heads[session])

    async def _publish(self, file: DataFile) -> None:
        """The file counts from now on."""

        def publish() -> None:
            found = read_manifest(self._target)
            if found is None or (found.run_id, len(found.files)) != (self.manifest.run_id, len(self.manifest.files)):
                raise TrilogueError(f"another export writes to {self._target.name} now: this one ends; nothing of it was lost")
            self.manifest = self.manifest.with_file(file, self._chosen.after)
            self._target.write(MANIFEST, self.manifest.as_json())

        await asyncio.to_thread(publish)
        self.messages += file.rows
        self.files += 1
        self.body_bytes += file.body_bytes
        self._say(f"partition {file.partition}: {counted(self.messages, 'message')} in {counted(self.files, 'file')} so far")


class _File:
    """A file that is being written, at most one row group behind."""

    def __init__(self, target: Target, manifest: Manifest, partition: int, number: int = 0) -> None:
        self.writer = FileWriter(target, manifest, partition, number)
        self.number = number
        self._writing: asyncio.Task[None] | None = None

    async def add(self, group: Group) -> None:
        """Write a row group, when the one before it is written."""
        await self._written()
        self.writer.count(group)
        self._writing = asyncio.create_task(asyncio.to_thread(self.writer.write, group))

    async def close(self) -> DataFile:
        """Write what is left, and give the file its name."""
        await self._written()
        return await asyncio.to_thread(self.writer.close)

    async def give_up(self, error: BaseException) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(Exception):
            await self._written()
        self.writer.give_up(error)

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing
