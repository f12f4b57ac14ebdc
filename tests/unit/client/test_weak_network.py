"""What a client makes of a bad network: one pace for all its connections, signs of life, and a state that can be watched."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Client, ClientState, SyncClient, Unavailable, Unsent
from trilogue.client.connecting import keepalive, presence, pulse
from trilogue.client.connecting.backoff import attempts_max
from trilogue.client.connecting.dialing import Dialer
from trilogue.client.connecting.presence import Presence


@asynccontextmanager
async def system(partitions: int = 1) -> AsyncIterator[tuple[Client, list[FakeSessionActor]]]:
    """A client, and a SessionActor for each partition."""
    cluster = Cluster(partitions)
    made = [FakeSessionActor(cluster, partition) for partition in range(partitions)]
    addresses = [await actor.start() for actor in made]
    try:
        with contextlib.suppress(Unsent):
            async with Client("ann", address=",".join(addresses), token=TOKEN, close_timeout_s=0.0) as client:
                yield client, made
    finally:
        for actor in made:
            await actor.server.close()


def dialer_of(client: Client) -> Dialer:
    assert client._connections is not None
    return client._connections.routes.dialer


# ---------------------------------------------------------------------- connections


@in_loop
async def test_many_partitions_and_places_cost_no_more_connections_than_one_while_nobody_answers() -> None:
    async with system(partitions=16) as (client, made):
        await asyncio.gather(*(client.send(f"room {k}", b"1") for k in range(64)))
        assert client._connections is not None
        assert len(client._connections.links) == 16
        dialer, loop = dialer_of(client), asyncio.get_running_loop()
        for actor in made:
            await actor.kill()
        began, before = loop.time(), dialer.attempts
        futures = [client.post(f"room {k}", b"2") for k in range(64)]
        await until(lambda: dialer.attempts - before >= 10, "some attempts")
        assert dialer.attempts - before <= attempts_max(loop.time() - began)
        assert not any(future.done() for future in futures)


@in_loop
async def test_at_one_place_one_attempt_is_under_way_and_its_failure_is_everybodys() -> None:
    accepted = asyncio.Semaphore(0)
    writers: list[asyncio.StreamWriter] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        accepted.release()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    dialer = Dialer(DEFAULT_LIMITS, lambda: 0.5)

    async def connect() -> None:
        await dialer.connect(address, TOKEN, on_message=lambda *_: None, on_closed=lambda *_: None)

    asked = [asyncio.create_task(connect()) for _ in range(5)]
    await accepted.acquire()
    assert dialer.attempts == 1
    writers[0].transport.abort()
    for one in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(one, Unavailable)
    assert dialer.attempts == 1
    server.close()


@in_loop
async def test_who_gave_up_waiting_for_a_place_leaves_it_to_the_next() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    dialer = Dialer(DEFAULT_LIMITS, lambda: 0.5)

    async def connect() -> None:
        await dialer.connect(address, TOKEN, on_message=lambda *_: None, on_closed=lambda *_: None)

    first, second = asyncio.create_task(connect()), asyncio.create_task(connect())
    await until(lambda: dialer.attempts == 1, "the first attempt")
    first.cancel()
    await until(lambda: dialer.attempts == 2, "the second one")
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    server.close()


# ---------------------------------------------------------------------- silence


@in_loop
async def test_an_idle_connection_that_is_dead_is_noticed_and_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "IDLE_PING_AFTER_S", 0.05)
    monkeypatch.setattr(keepalive, "IDLE_PING_AFTER_S", 0.05)
    monkeypatch.setattr(keepalive, "ANSWER_S", 0.05)
    monkeypatch.setattr(pulse, "TICK_S", 0.05)
    monkeypatch.setattr(pulse, "LOOK_AFTER_S", 0.02)
    async with system() as (client, [actor]):
        await client.send("room", b"1")
        await until(lambda: len(actor.said(Say.PING)) >= 3, "signs of life of an idle connection")
        assert client.state.standing == "online"
        actor.silent = True
        await until(lambda: "silent" in client.trouble, "that it noticed")
        actor.silent = False
        await until(lambda: client.state.standing == "online", "a new connection")
        assert (await client.send("room", b"2")).seq == 2


# ---------------------------------------------------------------------- the state


@in_loop
async def test_a_client_is_online_then_connecting_then_offline_then_online_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "OFFLINE_AFTER_S", 0.1)
    async with system() as (client, [actor]):
        await client.send("room", b"1")
        seen: list[ClientState] = []
        note = seen.append

        async def watch() -> None:
            async for state in client.states():
                note(state)

        watching = asyncio.create_task(watch())
        await until(lambda: seen, "the state now")
        assert seen[-1][0] == "online" == client.state.standing
        assert seen[-1][2:] == (0, "")
        address = actor.server.address
        await actor.kill()
        client.post("room", b"2")
        await until(lambda: client.state.standing == "offline", "that nobody is reached")
        assert client.state.waiting == 1
        assert client.state.trouble == client.trouble != ""
        again = FakeSessionActor(actor.cluster)
        await again.start(address)
        await client.flush()
        assert client.state.standing == "online"
        standings = [state.standing for state in seen]
        assert [one for one, before in zip(standings, ["", *standings], strict=False) if one != before][:3] == [
            "online", "connecting", "offline",
        ]  # fmt: skip
        assert sorted(state.since_s for state in seen) == [state.since_s for state in seen]
        await client.close()
        await watching
        assert seen[-1].standing == "offline"
        assert "closed" in seen[-1].trouble
        await again.server.close()


@in_loop
async def test_an_actor_that_waits_is_reached_so_the_client_is_connecting_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "OFFLINE_AFTER_S", 0.01)
    monkeypatch.setattr(keepalive, "PING_AFTER_S", 0.02)
    monkeypatch.setattr(pulse, "LOOK_AFTER_S", 0.01)
    async with system() as (client, [actor]):
        await client.send("room", b"1")
        actor.waiting_text = "store-2 is missing"
        assert actor.submitter is not None
        actor._on_opened(actor.submitter)
        await until(lambda: len(actor.said(Say.PING)) >= 3, "some time")
        assert client.state.standing == "connecting"
        assert "store-2 is missing" in client.state.trouble


@in_loop
async def test_a_slow_watcher_sees_the_newest_state_and_nothing_queues() -> None:
    shown = Presence(lambda: 7, "not open")
    shown.begin()
    states = shown.watch()
    assert (await anext(states)).standing == "connecting"
    for k in range(1000):
        shown.update(f"trouble {k}", True)
    shown.update("", True)
    shown.update("the last trouble", True)
    assert (await anext(states))[0::3] == ("connecting", "the last trouble")
    waiting = asyncio.create_task(anext(states))
    await asyncio.sleep(0)
    assert not waiting.done()
    shown.update("the last trouble", True)
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing has changed"
    shown.end("closed")
    assert (await waiting).standing == "offline"
    with pytest.raises(StopAsyncIteration):
        await anext(states)


def test_before_and_after_its_life_a_client_is_offline_and_says_why() -> None:
    client = SyncClient("ann", address="127.0.0.1:1", token=TOKEN)
    assert client.state.standing == "offline"
    assert "not open" in client.state.trouble


def test_a_thread_that_watches_sees_the_end_of_a_sync_client(tmp_path: Path) -> None:
    seen: list[ClientState] = []
    begun = threading.Event()

    def watch(client: SyncClient) -> None:
        for state in client.states():
            seen.append(state)
            begun.set()

    with SyncClient("ann", address="127.0.0.1:1", token=TOKEN, outbox=tmp_path / "ann.db", close_timeout_s=0.0) as client:
        watching = threading.Thread(target=watch, args=(client,))
        watching.start()
        begun.wait(10.0)
    watching.join(10.0)
    assert not watching.is_alive()
    assert seen[0].standing in ("connecting", "offline")
    assert "closed" in seen[-1].trouble
