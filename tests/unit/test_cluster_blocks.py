"""What a task of a dataset gives: the same blocks each time that it runs, however long each is looked at (G3, G7)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.errors import TrilogueError
from trilogue.actors.protocol.messages import RUN, Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Client
from trilogue.client.reading.tables import tables_of
from trilogue.cluster.on_ray import blocks
from trilogue.cluster.on_ray.blocks import Cutter, Part, read, stretches_of, stretches_of_all

ROWS = 100


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 100 rows."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", ROWS)


@asynccontextmanager
async def system(**sizes: int) -> AsyncIterator[FakeSessionActor]:
    """A SessionActor whose sessions have so many messages."""
    actor = FakeSessionActor(Cluster())
    for session, size in sizes.items():
        say(actor, session, size)
    await actor.start()
    try:
        yield actor
    finally:
        await actor.server.close()


def say(actor: FakeSessionActor, session: str, count: int) -> None:
    said = actor.cluster.sessions.setdefault(session, [])
    said += [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(len(said) + 1, len(said) + count + 1)]


async def plan(actor: FakeSessionActor, sessions: list[str] | None = None) -> Part:
    async with Client(address=actor.server.address, token=TOKEN) as client:
        tables = tables_of(client)
        holder = tables.holder(0)
        found = await (stretches_of_all(tables, holder) if sessions is None else stretches_of(client, sessions))
    return Part(actor.server.address, TOKEN, 0, found, "")


async def run(part: Part, *, is_again: bool = False) -> list[list[tuple[str, int]]]:
    """What each block has, as a task finds it in another thread."""
    tables = await asyncio.to_thread(lambda: list(read(part, ["seq", "session"], is_again=is_again)))
    return [[(row["session"], row["seq"]) for row in table.to_pylist()] for table in tables]


def flat(found: list[list[tuple[str, int]]]) -> list[tuple[str, int]]:
    return [row for block in found for row in block]


@in_loop
async def test_task_that_is_run_again_gives_the_same_blocks_wherever_pages_end_and_whatever_came_since_G3() -> None:
    async with system(a=250, b=130, c=7) as actor:
        part = await plan(actor)
        actor.page_messages = 30
        once = await run(part)
        assert [len(block) for block in once] == [100, 100, 100, 87]
        assert flat(once) == [(name, seq) for name, size in (("a", 250), ("b", 130), ("c", 7)) for seq in range(1, size + 1)]
        actor.page_messages = 70
        say(actor, "a", 50)
        say(actor, "bb", 50)
        assert await run(part, is_again=True) == once


@in_loop
async def test_what_was_trimmed_before_a_dataset_was_made_is_not_in_it_whichever_way_it_is_asked_for() -> None:
    async with system(a=20, b=20, c=20) as actor:
        actor.cluster.trimmed |= {"b": 8, "c": 21}
        part = await plan(actor, ["a", "b", "c", "none"])
        trim(actor, {"b": 8, "c": 21})
        [block] = await run(part, is_again=True)
        assert block == [("a", seq) for seq in range(1, 21)] + [("b", seq) for seq in range(8, 21)]
        assert await run(part._replace(stretches=blocks.STRETCHES.empty_table())) == [[]]


@in_loop
async def test_task_that_is_run_again_fails_when_something_of_it_is_gone_and_the_first_one_passes_over_it_G8() -> None:
    async with system(a=20, b=20) as actor:
        part = await plan(actor)
        trim(actor, {"b": 8})
        assert flat(await run(part)) == [("a", seq) for seq in range(1, 21)] + [("b", seq) for seq in range(8, 21)]
        with pytest.raises(TrilogueError, match=r"run again.*session 'b' begins with seq 8 by now.*read the dataset anew"):
            await run(part, is_again=True)


def trim(actor: FakeSessionActor, gone: dict[str, int]) -> None:
    """The messages of each session below that seq are gone in the stores."""
    whole = actor._request

    def without(connection: Any, say: int, items: list[Any]) -> Any:
        if say == Say.RECORDS:
            for at, (session, after, last, _) in enumerate(items[2]):
                if after + 1 < gone.get(session, 1) and after < last:
                    before = whole(connection, say, [*items[:2], items[2][:at]])[0] if at else b""
                    return [before, [session, gone[session]]]
        return whole(connection, say, items)

    actor._request = without  # type: ignore[method-assign]


@in_loop
async def test_connections_live_while_a_block_is_looked_at() -> None:
    async with system(a=2000) as actor:
        actor.page_messages = 50
        part = await plan(actor)

        them = read(part, ["seq"], is_again=False)
        rows = (await asyncio.to_thread(next, them)).num_rows
        await until(lambda: len(actor.said(Say.RECORDS)) >= 6, "two blocks more, read while this one is looked at")
        assert rows + await asyncio.to_thread(lambda: sum(block.num_rows for block in them)) == 2000


@in_loop
async def test_task_that_is_ended_early_leaves_no_thread_and_no_connection() -> None:
    async with system(a=2000) as actor:
        actor.page_messages = 50
        part = await plan(actor)

        def one() -> None:
            them = read(part, ["seq"], is_again=False)
            next(them)
            them.close()  # type: ignore[attr-defined]

        await asyncio.to_thread(one)
        assert not [thread for thread in threading.enumerate() if thread.name == "trilogue-blocks"]


BODIES = st.lists(st.integers(0, 9), max_size=40)


@given(BODIES, st.lists(st.integers(1, 7)), st.integers(1, 9), st.integers(1, 30))
def test_blocks_end_where_messages_say_however_these_come_in_runs(
    sizes: list[int], cuts: list[int], rows: int, size_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", rows)
        patch.setattr(blocks, "BLOCK_BYTES", size_bytes)
        expected: list[list[int]] = [[]]
        for size in sizes:
            if len(expected[-1]) == rows or sum(expected[-1]) >= size_bytes:
                expected.append([])
            expected[-1].append(size)
        cutter, tables, at = Cutter(), list[pa.Table](), 0
        for count in [*cuts, len(sizes)]:
            if bodies := [b"x" * size for size in sizes[at : at + count]]:
                tables += cutter.take(Run(RUN, "s", f"a/{'0' * 32}", at + 1, at + 1, 1, [1] * len(bodies), bodies))
            at += count
        if (rest := cutter.rest()) is not None:
            tables.append(rest)
        assert [[len(body) for body in table["body"].to_pylist()] for table in tables] == expected
        assert [seq for table in tables for seq in table["seq"].to_pylist()] == [*range(1, len(sizes) + 1)]
