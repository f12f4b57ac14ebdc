"""A session's history as a table: whole, in order, from a store that has it (G3, G7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.client import Client, InvalidRange, InvalidSession, Limits, SyncClient, Unavailable
from trilogue.client.connecting.holders import _Asking
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


SOON = Limits(hedge_ms=50)


@asynccontextmanager
async def two_stores(**settings: Any) -> AsyncIterator[tuple[Client, FakeSessionActor, FakeSessionActor]]:
    """A client, the SessionActor that answers as a store, too, and another store that is named before it."""
    async with system(5, **settings) as (client, actor):
        other = FakeSessionActor(actor.cluster)
        await other.start(writes=False)
        whole = actor._request
        actor._request = lambda connection, say, items: (  # type: ignore[method-assign]
            [1, [other.server.address, actor.server.address]] if say == Say.HOLDERS else whole(connection, say, items)
        )
        try:
            yield client, actor, other
        finally:
            await other.server.close()


@in_loop
async def test_a_store_that_says_nothing_is_not_waited_for_and_not_asked_again_by_the_next_tables_G11() -> None:
    async with two_stores(limits=SOON) as (client, actor, other):
        await client.table("room")
        assert len(other.said(Say.RECORDS)) == 1
        other.silent = True
        clock = asyncio.get_running_loop().time
        begun = clock()
        assert numbers(await client.table("room")) == [1, 2, 3, 4, 5]
        assert SOON.hedge_ms / 1000 <= clock() - begun < SOON.request_timeout_ms / 2000
        for _ in range(3):
            await client.table("room")
        assert (len(other.said(Say.RECORDS)), len(actor.said(Say.RECORDS))) == (2, 4)


@in_loop
async def test_a_store_whose_handshake_never_ends_is_not_waited_for() -> None:
    async with two_stores(limits=SOON) as (client, _, other):
        other.server._on_opened = lambda connection: None
        stopped = asyncio.Event()

        async def silent(*_: Any) -> None:
            await stopped.wait()

        host, port = other.server.address.rsplit(":", 1)
        await other.server.close()
        server = await asyncio.start_server(silent, host, int(port))
        clock = asyncio.get_running_loop().time
        begun = clock()
        for _ in range(3):
            assert numbers(await client.table("room")) == [1, 2, 3, 4, 5]
        assert clock() - begun < SOON.handshake_timeout_ms / 2000
        stopped.set()
        server.close()


@in_loop
async def test_many_first_tables_share_a_connection_and_none_is_left_when_the_client_has_closed() -> None:
    async with system(5) as (client, actor):
        await client.heads(["room"])
        before = len(actor.server.connections)
        await asyncio.gather(*(client.table("room") for _ in range(50)))
        assert len(actor.server.connections) == before + 1
        await client.close()
        await until(lambda: not actor.server.connections, "all connections have ended")


class Speaking:
    """Stands for a connection on which a part of an answer comes at each turn of the loop, for so long."""

    def __init__(self, seconds: float) -> None:
        self.heard, self.seconds, self.asked = 0, seconds, 0

    async def request(self, *_: Any) -> str:
        self.asked += 1
        clock = asyncio.get_running_loop().time
        ends = clock() + self.seconds
        while clock() < ends:
            await asyncio.sleep(0)
            self.heard += 1
        return "an answer"


@in_loop
async def test_a_store_whose_answer_is_on_its_way_is_not_taken_for_silent() -> None:
    class Known:
        patience_s = 0.02
        connections = {"a": Speaking(0.1), "b": Speaking(0), "c": Speaking(0)}  # noqa: RUF012
        silent: list[str] = []  # noqa: RUF012

        async def connection(self, address: str) -> Any:
            return self.connections[address]

        def note_silent(self, address: str) -> None:
            self.silent.append(address)

    known = Known()
    asking = _Asking(known, 0, 1, Say.RECORDS, (), set())  # type: ignore[arg-type]
    assert await asking.first(["a", "b", "c"]) == ("a", "an answer")
    assert [one.asked for one in known.connections.values()] == [1, 0, 0]
    known.connections["a"] = Silent(0)
    asking = _Asking(known, 0, 1, Say.RECORDS, (), set())  # type: ignore[arg-type]
    assert await asking.first(["a", "b", "c"]) == ("b", "an answer")
    assert known.silent == ["a"]


class Silent(Speaking):
    async def request(self, *_: Any) -> str:
        await asyncio.Event().wait()
        raise AssertionError


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
    async with system(5) as (client, actor):

        def plain() -> Any:
            with SyncClient(address=actor.server.address, token=TOKEN) as sync:
                return sync.table("room", after=2)

        assert (await asyncio.to_thread(plain)).equals(await client.table("room", after=2))
