"""Ray Data's view of sessions: read tasks, and the blocks that they give.

Owns what a task does on its node. It must not know how tasks are spread (``reading``). Imports Ray Data, which takes a second.
Invariant: what a task gives is in the order of names and seqs, in blocks of about `BLOCK_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trilogue.client import Client
from trilogue.client.reading.columns import SCHEMA, Columns
from trilogue.client.reading.tables import tables_of
from trilogue.client.reading.windows import Span

BLOCK_BYTES = 16 * 1024 * 1024
BLOCK_ROWS = 128 * 1024
CPUS_EACH = 0.5
"""A task waits for a store about half of the time."""
PLAIN = pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SCHEMA])
"""Names as plain strings: blocks are joined, sorted and grouped by those who know nothing of each other's dictionaries."""


class Part(NamedTuple):
    """What one task reads: these sessions of a partition, or all of it, from a store of that host if there is one."""

    address: str
    token: str
    partition: int
    sessions: list[str] | None
    host: str


class SessionsDatasource(Datasource):
    """One read task for each part."""

    def __init__(self, parts: list[Part], columns: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts, self._columns = parts, columns

    def get_name(self) -> str:
        """What Ray calls it in its progress."""
        return "Sessions"

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows before it is read."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """All parts, however many tasks are wished for: a session's order is worth more."""
        unknown = partial(BlockMetadata, num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(read, part, self._columns), unknown()) for part in self._parts]


def dataset(assigned: list[tuple[str, list[Part]]], columns: list[str]) -> ray.data.Dataset:
    """All parts; those of a node (its id; "": any) on that node, if it has room."""
    datasets: list[ray.data.Dataset] = [
        ray.data.read_datasource(
            SessionsDatasource(parts, columns), override_num_blocks=len(parts), num_cpus=CPUS_EACH, **_on(node)
        )
        for node, parts in assigned
    ]
    if not datasets:
        nothing: ray.data.Dataset = ray.data.from_arrow(PLAIN.empty_table().select(columns))
        return nothing
    return datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]


def _on(node: str) -> dict[str, Any]:
    """The arguments that let tasks run on a node if that is possible."""
    if not node:
        return {}
    if "label_selector" in signature(ray.data.read_datasource).parameters:
        return {"label_selector": {"ray.io/node-id": node}, "fallback_strategy": [{"label_selector": {}}]}
    return {"ray_remote_args": {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}}


def read(part: Part, columns: list[str]) -> Iterator[pa.Table]:
    """The blocks of a part: what its task does."""
    with asyncio.Runner() as runner:
        blocks = _blocks(part)
        try:
            while (block := runner.run(_next(blocks))) is not None:
                yield block.select(columns)
        finally:
            runner.run(blocks.aclose())


async def _next(blocks: AsyncGenerator[pa.Table, None]) -> pa.Table | None:
    return await anext(blocks, None)


async def _blocks(part: Part) -> AsyncGenerator[pa.Table, None]:
    async with Client(address=part.address, token=part.token) as client:
        tables = tables_of(client)
        holder = tables.holder(part.partition, part.host or None)

        async def spans() -> AsyncIterator[Span]:
            if part.sessions is None:
                async for session, first_seq, last_seq in tables.sessions(holder):
                    yield Span(session, first_seq - 1, last_seq)
            else:
                heads = await tables.heads(part.sessions)
                for session in part.sessions:
                    yield Span(session, 0, heads[session])

        columns, count = Columns(), 0
        async for runs in tables.runs(holder, spans(), passes_over_gone=True):
            for run in runs:
                columns.take(run)
            if columns.count >= BLOCK_ROWS or columns.size_bytes >= BLOCK_BYTES:
                count += columns.count
                yield _block(columns)
                columns = Columns()
        if columns.count or not count:
            yield _block(columns)


def _block(columns: Columns) -> pa.Table:
    return pa.Table.from_batches([columns.batch(columns.cut())]).cast(PLAIN)
