"""A session's history as a table: whole, in order, from a store that has it (G3, G7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.client import Client, InvalidRange, InvalidSession, Limits, SyncClient, Unavailable
from trilogue.client.reading.tables import tables_of


@asynccontextmanager
async def system(messages: int = 0, **settings: Any) -> AsyncIterator[tuple[Client, FakeSessionActor]]:
    """An open client, and a SessionActor whose session "room" has so many messages: b"1", b"2", …"""
    cluster = Cluster()
    cluster.sessions["room"] = [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(1, messages + 1)]
    actor = FakeSessionActor(cluster)
    address = await actor.start()
    try:
        async with Client("bob", address=address, token=TOKEN, **settings) as client:
            yield client, actor
    finally:
        await actor.server.close()


def numbers(table: Any) -> list[int]:
    assert table["body"].to_pylist() == [b"%d" % seq for seq in table["seq"].to_pylist()]
    return list(table["seq"].to_pylist())


@in_loop
async def test_table_has_what_history_has() -> None:
    async with system(250) as (client, actor):
        actor.page_messages = 7
        assert numbers(await client.table("room")) == list(range(1, 251))
        assert numbers(await client.table("room", after=10, limit=9)) == list(range(11, 20))
        assert numbers(await client.table("room", after=240, limit=900)) == list(range(241, 251))
        assert numbers(await client.table("room", after=250)) == []
        empty = await client.table("an empty room")
        assert (empty.num_rows, empty.schema.names) == (0, (await client.table("room", limit=1)).schema.names)
        assert {*(await client.table("room"))["sender"].to_pylist()} == {"ann"}


@in_loop
async def test_table_is_never_behind_what_this_clients_acks_have_shown() -> None:
    async with system(3) as (client, _):
        await client.send("room", b"4")
        assert (await client.table("room"))["seq"].to_pylist() == [1, 2, 3, 4]


@in_loop
async def test_pages_with_a_hole_or_of_another_session_are_asked_for_again_and_never_returned_G7() -> None:
    async with system(5) as (client, actor):
        whole = actor.runs
        pages: list[Any] = [
            lambda *asked: [run for run in whole(*asked) if run[4] != 3],
            lambda *asked: [],
            lambda *asked: [[run[0], "other", *run[2:]] for run in whole(*asked)],
            whole,
        ]
        actor.runs = lambda *asked: pages.pop(0)(*asked)  # type: ignore[method-assign]
        assert numbers(await client.table("room")) == [1, 2, 3, 4, 5]
        assert pages == []


@in_loop
async def test_a_store_that_refuses_or_hangs_up_gives_way_to_another_one() -> None:
    async with system(5) as (client, actor):
        whole, troubles = actor._request, [Code.UNAVAILABLE, Code.CORRUPT]

        def with_troubles(connection: Any, say: int, items: list[Any]) -> Any:
            if say == Say.RECORDS and troubles:
                troubles.pop()
                connection.close("this store ends")
            return whole(connection, say, items)

        actor._request = with_troubles  # type: ignore[method-assign]
        assert numbers(await client.table("room")) == [1, 2, 3, 4, 5]
        assert troubles == []
        assert len(actor.said(Say.HOLDERS)) == 3


@in_loop
async def test_a_partition_that_no_store_holds_whole_is_said_to_be_unavailable() -> None:
    async with system(5, limits=Limits(request_timeout_ms=100)) as (client, actor):
        whole = actor._request
        actor._request = lambda connection, say, items: (  # type: ignore[method-assign]
            [1, []] if say == Say.HOLDERS else whole(connection, say, items)
        )
        with pytest.raises(Unavailable, match="no store holds all of partition 0"):
            await client.table("room")


@in_loop
async def test_what_makes_no_sense_is_refused() -> None:
    async with system() as (client, _):
        with pytest.raises(InvalidSession):
            await client.table("")
        for wrong in ({"after": -1}, {"limit": 0}, {"limit": True}):
            with pytest.raises(InvalidRange):
                await client.table("room", **wrong)  # type: ignore[arg-type]


@in_loop
async def test_sessions_of_a_partition_come_in_the_order_of_their_names_page_by_page() -> None:
    async with system(2) as (client, actor):
        names = sorted(f"room-{k}" for k in range(20))
        actor.cluster.sessions.update({name: [("ann", 1, b"")] for name in names})
        actor.page_messages = 3
        found = [one async for one in tables_of(client).sessions(tables_of(client).holder(0))]
        assert found == [("room", 1, 2), *((name, 1, 1) for name in names)]


@in_loop
async def test_plain_code_gets_the_same_table() -> None:
    import asyncio

    async with system(5) as (client, actor):

        def plain() -> Any:
            with SyncClient(address=actor.server.address, token=TOKEN) as sync:
                return sync.table("room", after=2)

        assert (await asyncio.to_thread(plain)).equals(await client.table("room", after=2))
