"""Look-ups: nobody depends on one actor, and an old answer never hides a newer one (design §10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import NotAuthorized, ProtocolError, Unavailable
from trilogue.client.connecting import routes as routes_module
from trilogue.client.connecting.dialing import Dialer
from trilogue.client.connecting.discovery import Found
from trilogue.client.connecting.routes import ASKED_FIRST, Routes


async def nowhere() -> Found:
    raise Unavailable("nothing is named")


Find = Callable[[], Awaitable[Found]]


@asynccontextmanager
async def routes_to(*addresses: str, find: Find = nowhere, token: str = TOKEN) -> AsyncIterator[Routes]:
    """What a client knows that was given these addresses."""
    routes = Routes(Found(list(addresses), token, "a test"), find, Dialer(DEFAULT_LIMITS, lambda: 0.5))
    try:
        yield routes
    finally:
        await routes.close()


@asynccontextmanager
async def actors(*clusters: Cluster) -> AsyncIterator[list[FakeSessionActor]]:
    """For each cluster somebody who speaks of it, and of nothing else: none of them is known to write."""
    made = [FakeSessionActor(cluster) for cluster in clusters]
    try:
        for actor in made:
            await actor.start(writes=False)
        yield made
    finally:
        for actor in made:
            await actor.server.close()


@in_loop
async def test_an_actor_that_is_behind_cannot_keep_a_client_from_the_others() -> None:
    cluster, old = Cluster(), Cluster()
    old.writers[0] = (1, "10.0.0.1:1")
    cluster.writers[0] = (7, "10.0.0.7:1")
    async with (
        actors(*[old] * ASKED_FIRST * 2, cluster) as made,
        routes_to(*(actor.server.address for actor in made)) as routes,
    ):
        for _ in range(len(made)):
            await routes.refresh()
        assert routes.writers[0] == (7, "10.0.0.7:1"), "the higher epoch counts, whoever said it"
        for _ in range(len(made)):
            await routes.refresh()
        assert routes.writers[0] == (7, "10.0.0.7:1")


@in_loop
async def test_who_is_dead_or_silent_delays_no_look_up() -> None:
    cluster = Cluster()
    cluster.writers[0] = (3, "10.0.0.3:1")
    paused = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    silent = "{}:{}".format(*paused.sockets[0].getsockname())
    async with actors(cluster, cluster) as [mute, good]:
        mute.silent = True
        dead = [f"127.0.0.1:{port}" for port in range(1, 6)]
        async with routes_to(silent, *dead, mute.server.address, good.server.address) as routes:
            async with asyncio.timeout(1.0):
                for _ in range(5):
                    await routes.refresh()
            assert routes.writers[0] == (3, "10.0.0.3:1")
            assert len(mute.heard) == 1, "nobody is asked twice at the same time"
    paused.close()


@in_loop
async def test_a_later_answer_counts_too_and_wakes_who_waits_for_it() -> None:
    cluster, old = Cluster(), Cluster()
    old.writers[0] = (1, "10.0.0.1:1")
    async with actors(old, cluster) as [behind, late], routes_to(behind.server.address, late.server.address) as routes:
        behind.is_spare = late.is_spare = True  # they say nothing by themselves
        late.silent = True
        await routes.refresh()
        known = routes.writers[0]
        assert known == (1, "10.0.0.1:1")
        assert not await routes.other(0, known, 0.0)
        waiting = asyncio.create_task(routes.other(0, known, 60.0))
        await until(lambda: late.heard, "the question")
        [connection] = late.server.connections
        connection.reply(late.heard[0][1], {"cluster": "test", "partitions": 1, "writers": {0: [2, "10.0.0.2:1"]}})
        assert await waiting
        assert routes.writers[0] == (2, "10.0.0.2:1")


@in_loop
async def test_a_spare_that_was_asked_says_by_itself_that_it_has_taken_over() -> None:
    cluster, others = Cluster(), Cluster()
    others.writers[0] = (4, "10.0.0.4:1")
    async with actors(cluster) as [spare], actors(others) as [other]:
        spare.is_spare = True
        async with routes_to(spare.server.address, other.server.address) as routes:
            await routes.refresh()
            await until(lambda: spare.server.connections and 0 in routes.writers, "both answers")
            waiting = asyncio.create_task(routes.other(0, routes.writers[0], 60.0))
            spare.is_spare, spare.epoch = False, 5
            spare.open()
            assert await waiting
            assert routes.writers[0] == (5, spare.server.address)
            spare.epoch = 3
            spare.open()
            await routes.refresh()
            assert routes.writers[0] == (5, spare.server.address)


@in_loop
async def test_connections_that_ask_are_used_again_and_end_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "KEPT_S", 0.05)
    async with actors(Cluster()) as [actor], routes_to(actor.server.address) as routes:
        await routes.refresh()
        [first] = actor.server.connections
        await asyncio.gather(routes.refresh(), routes.refresh())
        assert len(actor.said(Say.WHERE)) == 2, "two who want the same ask once"
        assert actor.server.connections == {first}
        await until(lambda: not actor.server.connections, "the end of the connection")
        await routes.refresh()
        assert actor.server.connections not in (set(), {first})


@in_loop
async def test_when_nobody_answers_the_system_is_looked_for_again() -> None:
    async with actors(Cluster()) as [actor]:
        address = actor.server.address
        actor.cluster.writers[0] = (1, address)

        async def elsewhere() -> Found:
            return Found([address], TOKEN, "the run file")

        async with routes_to("127.0.0.1:1", find=elsewhere, token="an old token") as routes:
            await routes.refresh()
            assert routes.writers[0] == (1, address)
            await actor.kill()
            with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1|was lost"):
                await routes.refresh()
            assert routes.writers[0] == (1, address), "what is known stays known"


@in_loop
async def test_another_system_at_the_same_address_is_noticed() -> None:
    async with actors(Cluster()) as [actor]:
        async with routes_to(actor.server.address) as routes:
            await routes.refresh()
            actor.cluster.partitions = 2
            with pytest.raises(ProtocolError, match="another system"):
                await routes.refresh()
        async with routes_to(actor.server.address, token="wrong") as routes:
            with pytest.raises(NotAuthorized):
                await routes.refresh()
