"""The client for plain code: the same calls, from threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor
from trilogue.client import (
    Client,
    ClientClosed,
    InvalidSession,
    Limits,
    NotAuthorized,
    Overloaded,
    SyncClient,
    Unsent,
    UsageError,
)


@pytest.fixture
def actor() -> Iterator[FakeSessionActor]:
    """A SessionActor in a thread of its own."""
    started: list[FakeSessionActor] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def start() -> None:
        started.append(FakeSessionActor(Cluster()))
        await started[0].start()
        ready.set()

    thread = threading.Thread(target=lambda: (loop.create_task(start()), loop.run_forever()))
    thread.start()
    assert ready.wait(10)
    yield started[0]
    asyncio.run_coroutine_threadsafe(started[0].server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def opened(actor: FakeSessionActor, **settings: Any) -> SyncClient:
    return SyncClient("ann", address=actor.server.address, token=TOKEN, **settings)


def test_plain_code_sends_and_reads(actor: FakeSessionActor) -> None:
    with opened(actor) as client:
        assert client.send("room", b"1").seq == 1
        futures = [client.post("room", b"%d" % k) for k in range(2, 100)]
        client.flush()
        assert [future.result(0).seq for future in futures] == list(range(2, 100))
        assert [message.seq for message in client.history("room", after=97)] == [98, 99]
        assert client.heads(["room"]) == {"room": 99}
        assert client.waiting == 0
        client.drain()
        with client.subscribe("room", after=95) as messages:
            assert [next(messages).seq for _ in range(4)] == [96, 97, 98, 99]
        for message in client.subscribe("room"):
            if message.seq == 99:
                break


def test_posts_of_many_threads_keep_each_threads_order_g4(actor: FakeSessionActor) -> None:
    with opened(actor) as client:

        def work(name: str) -> None:
            for k in range(200):
                client.post("room", b"%s %d" % (name.encode(), k), sender=name)

        threads = [threading.Thread(target=work, args=(name,)) for name in ("ann", "bob", "cat")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.flush()
        for name in (b"ann", b"bob", b"cat"):
            bodies = [body for body in actor.cluster.bodies("room") if body.startswith(name)]
            assert bodies == [b"%s %d" % (name, k) for k in range(200)]


def test_a_post_that_was_cancelled_before_it_was_taken_over_is_not_sent(actor: FakeSessionActor) -> None:
    with opened(actor) as client:
        client.send("room", b"1")
        goes_on = threading.Event()
        client._running().call_soon_threadsafe(goes_on.wait)
        cancelled, sent = client.post("room", b"2"), client.post("room", b"3")
        assert cancelled.cancel()
        goes_on.set()
        assert sent.result(10).seq == 2
        assert not sent.cancel()
    assert actor.cluster.bodies("room") == [b"1", b"3"]


def test_errors_come_where_the_call_is(actor: FakeSessionActor) -> None:
    with opened(actor, limits=Limits(outbox_messages_max=3, in_flight_messages_max=3), close_timeout_s=10) as client:
        with pytest.raises(InvalidSession):
            client.post("", b"")
        with pytest.raises(TypeError, match="encode"):
            client.send("room", "text")  # type: ignore[arg-type]
        actor.holding = True
        futures = [client.post("room", b"x") for _ in range(3)]
        with pytest.raises(Overloaded, match="drain"):
            client.post("room", b"x")
        with pytest.raises(UsageError, match="outbox=FILE"):
            client.saved()
        actor.holding = False
        actor.server._server.get_loop().call_soon_threadsafe(actor.release)  # type: ignore[union-attr]
        assert [future.result(10).seq for future in futures] == [1, 2, 3]


def test_a_closed_client_and_one_that_was_never_opened_say_so(actor: FakeSessionActor) -> None:
    client = opened(actor)
    with pytest.raises(UsageError, match="with SyncClient"):
        client.post("room", b"")
    with client:
        messages = client.subscribe("room")
    with pytest.raises(ClientClosed):
        client.post("room", b"")
    with pytest.raises(ClientClosed):
        next(messages)
    with pytest.raises(ClientClosed):
        client.__enter__()
    client.close()


def test_what_could_not_be_sent_is_raised_and_an_own_error_is_not_hidden(actor: FakeSessionActor) -> None:
    actor.holding = True
    with pytest.raises(Unsent), opened(actor, close_timeout_s=0.0) as client:
        future = client.post("room", b"1")
    assert isinstance(future.exception(0), Unsent)
    client = opened(actor, close_timeout_s=0.0)

    def work() -> None:
        with client:
            client.post("room", b"1")
            raise KeyError

    with pytest.raises(KeyError) as raised:
        work()
    assert "1 message was not acked" in raised.value.__notes__[0]


def test_opening_raises_in_the_caller(actor: FakeSessionActor) -> None:
    with pytest.raises(NotAuthorized), SyncClient("ann", address=actor.server.address, token="wrong"):
        pass


def test_an_outbox_file_works_from_plain_code_g10(actor: FakeSessionActor, tmp_path: Path) -> None:
    with SyncClient("ann", outbox=tmp_path / "a.db", address="127.0.0.1:1", token=TOKEN, close_timeout_s=0.0) as offline:
        offline.post("room", b"1")
        offline.saved()
    with opened(actor, outbox=tmp_path / "a.db") as client:
        assert client.send("room", b"2").seq == 2
    assert actor.cluster.bodies("room") == [b"1", b"2"]


def test_both_clients_have_the_same_calls() -> None:
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public == {name for name in dir(SyncClient) if not name.startswith("_")}
