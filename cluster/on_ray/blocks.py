"""What a task of a Ray dataset reads, and where its blocks end.

Owns the plan of a part (which messages), the cutting into blocks, and the loop in which a task reads. It must not know Ray.
Rules:

1. Which messages a part has is decided before its task begins, and blocks are cut by the messages alone: by `BLOCK_ROWS`, or
   behind the message with which the bodies reach `BLOCK_BYTES`. So a task that Ray runs again gives the same blocks, and those
   that it gave before may stay.
2. What is trimmed meanwhile is passed over. A task that is run again cannot know what it gave before, so it fails when anything
   of its part is gone.
3. The loop runs in a thread of its own: connections live, however long a block is looked at. Meanwhile one block waits, and one
   is being made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from itertools import accumulate
from queue import SimpleQueue
from typing import NamedTuple

import pyarrow as pa

from trilogue.actors.protocol.errors import HistoryTrimmed, TrilogueError
from trilogue.actors.protocol.messages import Run, part_of
from trilogue.client import Client
from trilogue.client.connecting.holders import Holder
from trilogue.client.reading.columns import SCHEMA, Columns
from trilogue.client.reading.tables import Stretch, Tables, tables_of
from trilogue.client.reading.windows import Span

BLOCK_BYTES = 16 * 1024 * 1024
BLOCK_ROWS = 128 * 1024
PLAIN = pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SCHEMA])
"""Names as plain strings: blocks are joined, sorted and grouped by those who know nothing of each other's dictionaries."""
STRETCHES = pa.schema([("session", pa.string()), ("first_seq", pa.int64()), ("last_seq", pa.int64())])
HEADS_AT_ONCE = 64
"""So many sessions are asked at the same time where they begin."""


class Part(NamedTuple):
    """What one task reads: these stretches of sessions of a partition, from a store of that host if there is one."""

    address: str
    token: str
    partition: int
    stretches: pa.Table
    host: str


async def stretches_of_all(tables: Tables, holder: Holder) -> pa.Table:
    """All sessions of a partition, as far as they are now."""
    return _table([one async for one in tables.sessions(holder)])


async def stretches_of(client: Client, sessions: list[str]) -> pa.Table:
    """These sessions, as far as they are now."""
    turn = asyncio.Semaphore(HEADS_AT_ONCE)

    async def first(session: str) -> int:
        async with turn:
            try:
                await client.history(session, limit=1)
            except HistoryTrimmed as trimmed:
                return trimmed.first_available
            return 1

    heads = await client.heads(sessions)
    firsts = await asyncio.gather(*map(first, sessions))
    return _table([Stretch(name, at, heads[name]) for name, at in zip(sessions, firsts, strict=True) if at <= heads[name]])


def _table(stretches: list[Stretch]) -> pa.Table:
    return pa.Table.from_arrays([pa.array(column) for column in zip(*stretches, strict=True)] or [[], [], []], schema=STRETCHES)


def read(part: Part, columns: list[str], *, is_again: bool) -> Iterator[pa.Table]:
    """The blocks of a part. `is_again`: this is not the first time that the task runs, or nobody knows."""
    for block in ahead(lambda: _blocks(part, is_again)):
        yield block.select(columns)


async def _blocks(part: Part, is_again: bool) -> AsyncGenerator[pa.Table, None]:
    async def spans() -> AsyncIterator[Span]:
        for batch in part.stretches.to_batches(max_chunksize=8_192):
            for session, first_seq, last_seq in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Span(session, first_seq - 1, last_seq)

    cutter = Cutter()
    async with Client(address=part.address, token=part.token) as client:
        tables = tables_of(client)
        holder = tables.holder(part.partition, part.host or None)
        try:
            async for runs in tables.runs(holder, spans(), passes_over_gone=not is_again):
                for run in runs:
                    for block in cutter.take(run):
                        yield block
        except HistoryTrimmed as trimmed:
            raise TrilogueError(
                f"a task of this dataset was run again, for what it had read was lost, and session {trimmed.session!r} begins "
                f"with seq {trimmed.first_available} by now: the same cannot be read again; read the dataset anew"
            ) from None
    if (rest := cutter.rest()) is not None:
        yield rest


class Cutter:
    """Cuts runs into blocks: by messages alone, wherever runs and pages begin and end."""

    def __init__(self) -> None:
        self._columns, self._blocks = Columns(), 0

    def take(self, run: Run) -> Iterator[pa.Table]:
        """Add a run; the blocks that are full with it."""
        while True:
            columns, count = self._columns, len(run.bodies)
            size_bytes = sum(map(len, run.bodies))
            if columns.count + count < BLOCK_ROWS and columns.size_bytes + size_bytes < BLOCK_BYTES:
                columns.take(run)
                return
            ends = enumerate(accumulate(map(len, run.bodies), initial=columns.size_bytes))
            behind = min(next((k for k, size in ends if k and size >= BLOCK_BYTES), count), BLOCK_ROWS - columns.count)
            columns.take(part_of(run, run.first_seq, behind))
            yield self._cut()
            if behind == count:
                return
            run = part_of(run, run.first_seq + behind, count - behind)

    def rest(self) -> pa.Table | None:
        """The last block, which may be empty if it is the only one."""
        return self._cut() if self._columns.count or not self._blocks else None

    def _cut(self) -> pa.Table:
        columns, self._columns = self._columns, Columns()
        self._blocks += 1
        return pa.Table.from_batches([columns.batch(columns.cut())]).cast(PLAIN)


def ahead(source: Callable[[], AsyncGenerator[pa.Table, None]]) -> Iterator[pa.Table]:
    """What the generator gives, made in a loop of its own thread: one waits while another one is looked at."""
    given: SimpleQueue[pa.Table | BaseException | None] = SimpleQueue()
    taken = asyncio.Semaphore(1)
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()

    async def fill() -> None:
        async with aclosing(source()) as blocks:
            async for block in blocks:
                await taken.acquire()
                given.put(block)

    def run() -> None:
        try:
            with runner:
                loop.run_until_complete(filling)
            given.put(None)
        except BaseException as error:
            given.put(error)

    filling = loop.create_task(fill(), name="trilogue-blocks")
    thread = threading.Thread(target=run, name="trilogue-blocks", daemon=True)
    thread.start()
    try:
        while (block := given.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            _tell(loop, taken.release)
            yield block
    finally:
        _tell(loop, filling.cancel)
        thread.join()


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # it has ended by itself
        loop.call_soon_threadsafe(what)
