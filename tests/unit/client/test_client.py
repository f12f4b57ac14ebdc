"""The client against a SessionActor that does what goes wrong in the world."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.client import (
    Client,
    ClientClosed,
    ConflictingRetry,
    InvalidSender,
    InvalidSession,
    Limits,
    MessageTooLarge,
    NotAuthorized,
    OutboxInUse,
    Overloaded,
    ProofOfLoss,
    Unavailable,
    Unsent,
    UsageError,
)
from trilogue.client.connecting import keepalive, pulse

SMALL = Limits(outbox_messages_max=4, in_flight_messages_max=2)


@asynccontextmanager
async def system(sender: str | None = "ann", **settings: Any) -> AsyncIterator[tuple[Client, FakeSessionActor]]:
    """An open client and its SessionActor."""
    actor = FakeSessionActor(Cluster())
    address = await actor.start()
    try:
        async with Client(sender, address=address, token=TOKEN, **settings) as client:
            yield client, actor
    finally:
        await actor.server.close()


@in_loop
async def test_a_message_is_acked_with_its_place() -> None:
    async with system() as (client, _):
        first, second = await client.send("room", b"1"), await client.send("room", b"2", sender="bob")
    assert (first.session, first.seq, first.sender, first.n, first.copies, first.epoch) == ("room", 1, "ann", 1, 3, 1)
    assert first.sender_id.startswith("ann/")
    assert (second.seq, second.sender, second.n, second.duplicate) == (2, "bob", 1, False)


@in_loop
async def test_what_is_handed_over_in_one_turn_of_the_loop_is_one_submission() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        acks = await asyncio.gather(*(client.post("room", b"%d" % k) for k in range(50)))
        assert [ack.seq for ack in acks] == list(range(2, 52))
        assert [len(run[4]) for _, runs in actor.said(Say.SUBMIT) for run in runs] == [1, 50]


@in_loop
async def test_a_send_with_nothing_to_wait_for_leaves_at_once_and_the_next_ones_together() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        acks = await asyncio.gather(*(client.send("room", b"%d" % k) for k in range(1, 51)))
        assert [ack.seq for ack in acks] == list(range(2, 52))
        assert [len(run[4]) for _, runs in actor.said(Say.SUBMIT) for run in runs] == [1, 1, 49]
        assert actor.cluster.bodies("room") == [b"%d" % k for k in range(51)]


@in_loop
async def test_bad_input_gets_one_clear_error_and_loses_nothing() -> None:
    async with system() as (client, actor):
        wrong: list[tuple[Any, Any, Any, type[Exception], str]] = [
            ("", b"", None, InvalidSession, "at least one character"),
            ("x" * 256, b"", None, InvalidSession, "255 at most"),
            ("\ud800", b"", None, InvalidSession, "lone surrogate"),
            (b"room", b"", None, InvalidSession, "not bytes"),
            (["room"], b"", None, InvalidSession, "not list"),
            ("room", b"", "a\nb", InvalidSender, "control character"),
            ("room", b"", "", InvalidSender, "at least one character"),
            ("room", "text", None, TypeError, r"\.encode\(\)"),
            ("room", 5, None, TypeError, "not int"),
            ("room", bytes(2**20 + 1), None, MessageTooLarge, "1048576 at most"),
        ]
        for session, body, sender, error, says in wrong:
            with pytest.raises(error, match=says):
                client.post(session, body, sender=sender)
            with pytest.raises(error, match=says):
                await client.send(session, body, sender=sender)
        assert client.waiting == 0
        assert (await client.send("room", bytearray(b"mutable"))).seq == 1
        assert (await client.send("room", memoryview(b"view"))).seq == 2
        assert (await client.send("room", bytes(2**20))).seq == 3
        assert actor.cluster.bodies("room")[:2] == [b"mutable", b"view"]


@in_loop
async def test_a_client_without_a_sender_wants_one_in_each_call() -> None:
    async with system(None) as (client, _):
        with pytest.raises(UsageError, match="sender=NAME"):
            client.post("room", b"")
        assert (await client.send("room", b"", sender="bob")).sender == "bob"


@in_loop
async def test_a_full_outbox_says_overloaded_and_drain_waits_for_room() -> None:
    async with system(limits=SMALL) as (client, actor):
        actor.holding = True
        futures = [client.post("room", b"%d" % k) for k in range(4)]
        with pytest.raises(Overloaded, match="drain"):
            client.post("room", b"4")
        drained = asyncio.create_task(client.drain())
        await until(lambda: actor.said(Say.SUBMIT), "a submission")
        assert not drained.done()
        actor.release()
        await drained
        assert client.waiting <= 2
        await asyncio.gather(*futures, client.post("room", b"4"))
        assert actor.cluster.bodies("room") == [b"0", b"1", b"2", b"3", b"4"]


@in_loop
async def test_cancelling_a_send_only_stops_the_waiting() -> None:
    async with system() as (client, actor):
        actor.holding = True
        sending = asyncio.create_task(client.send("room", b"1"))
        await until(lambda: actor.said(Say.SUBMIT), "a submission")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        later = client.post("room", b"2")
        actor.release()
        assert (await later).seq == 2
        assert actor.cluster.bodies("room") == [b"1", b"2"]


@in_loop
async def test_a_lost_connection_is_made_anew_and_nothing_is_lost_or_doubled_g4_g5() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        actor.holding = True
        futures = [client.post("room", b"%d" % k) for k in range(1, 6)]
        await until(lambda: len(actor.said(Say.SUBMIT)) == 2, "a submission")
        actor.holding = False
        actor.hang_up()
        futures += [client.post("room", b"%d" % k) for k in range(6, 9)]
        acks = await asyncio.gather(*futures)
        assert [ack.seq for ack in acks] == list(range(2, 10))
        assert [ack.duplicate for ack in acks] == [True] * 5 + [False] * 3
        assert actor.cluster.bodies("room") == [b"%d" % k for k in range(9)]


@in_loop
async def test_a_moved_partition_is_one_look_up_away() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        successor = FakeSessionActor(actor.cluster)
        await successor.start()
        actor.refuse = lambda session, sender_id, n: (Code.NOT_HERE, "it is elsewhere", n)
        ack = await client.send("room", b"1")
        assert (ack.seq, ack.epoch) == (2, successor.epoch)
        await successor.server.close()


@in_loop
async def test_the_successor_is_found_when_the_first_address_is_gone_for_good() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        successor = FakeSessionActor(actor.cluster)
        await successor.start()
        actor.hang_up()
        await until(lambda: successor.server.connections, "a connection to the successor")
        await actor.server.close()
        successor.hang_up()
        assert (await client.send("room", b"1")).epoch == successor.epoch, "asked at the successor, not at address="
        await successor.server.close()


@in_loop
async def test_nothing_is_submitted_before_open_and_the_reason_is_told() -> None:
    async with system() as (client, actor):
        actor.waiting_text = "store-2 is missing"
        future = client.post("room", b"1")
        await until(lambda: "store-2 is missing" in client.trouble, "the reason")
        assert not actor.said(Say.SUBMIT)
        actor.open()
        assert (await future).seq == 1
        assert client.trouble == ""


@in_loop
async def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "TICK_S", 0.01)
    monkeypatch.setattr(pulse, "TICK_MIN_S", 0.01)
    monkeypatch.setattr(keepalive, "PING_AFTER_S", 0.02)
    monkeypatch.setattr(keepalive, "ANSWER_S", 0.08)
    async with system() as (client, actor):
        actor.silent = True
        future = client.post("room", b"1")
        await until(lambda: actor.said(Say.PING), "a ping")
        successor = FakeSessionActor(actor.cluster)
        await successor.start()
        actor.silent = False  # the process lives again, but this connection's submission is gone
        assert (await future).seq == 1
        await successor.server.close()


@in_loop
async def test_proof_of_loss_stops_the_sender_and_says_verify() -> None:
    async with system() as (client, actor):
        await client.send("room", b"1")
        actor.cluster.sessions.clear()
        with pytest.raises(ProofOfLoss, match="trilogue verify"):
            await client.send("room", b"2")
        with pytest.raises(ProofOfLoss):
            client.post("room", b"3")
        assert (await client.send("another room", b"1")).seq == 1


@in_loop
async def test_a_conflict_is_told_and_the_sender_goes_on_under_a_new_id_g5() -> None:
    async with system() as (client, actor):
        actor.refuse = lambda session, sender_id, n: (Code.CONFLICTING_RETRY, "copied?", n) if n == 1 else None
        with pytest.raises(ConflictingRetry, match="copied"):
            await client.send("room", b"1")
        actor.refuse = lambda session, sender_id, n: None
        ack = await client.send("room", b"2")
        assert (ack.seq, ack.n) == (1, 1)


@in_loop
async def test_flush_waits_for_all_before_it_and_raises_what_was_refused() -> None:
    async with system() as (client, actor):
        await client.flush()
        futures = [client.post(f"room-{k % 3}", b"%d" % k) for k in range(30)]
        await asyncio.gather(client.flush(), client.flush())
        assert all(future.done() for future in futures)
        actor.refuse = lambda session, sender_id, n: (Code.MESSAGE_TOO_LARGE, "too large", n) if n == 11 else None
        refused, stored = client.post("room-0", b"x"), client.post("room-0", b"y")
        with pytest.raises(MessageTooLarge):
            await client.flush()
        assert isinstance(refused.exception(), MessageTooLarge)
        assert stored.result().n == 12


@in_loop
async def test_closing_with_an_outbox_in_memory_raises_what_was_not_sent() -> None:
    futures: list[asyncio.Future[Any]] = []

    async def work() -> None:
        async with system(close_timeout_s=0.0) as (client, actor):
            actor.holding = True
            futures.extend([client.post("room", b"1"), client.post("room", b"2")])

    with pytest.raises(Unsent, match="outbox=FILE") as raised:
        await work()
    assert raised.value.count == 2
    assert {type(future.exception()) for future in futures} == {Unsent}


@in_loop
async def test_closing_never_hides_the_error_that_was_under_way() -> None:
    async def work() -> None:
        async with system(close_timeout_s=0.0) as (client, actor):
            actor.holding = True
            client.post("room", b"1")
            raise KeyError("the program's own")

    with pytest.raises(KeyError) as raised:
        await work()
    assert "1 message was not acked" in raised.value.__notes__[0]


@in_loop
async def test_a_client_that_is_not_open_says_so() -> None:
    client = Client("ann", address="127.0.0.1:1", token=TOKEN)
    with pytest.raises(UsageError, match="async with"):
        client.post("room", b"")
    with pytest.raises(UsageError, match="async with"):
        await client.flush()
    async with system() as (client, _):
        with pytest.raises(UsageError, match="open already"):
            await client.__aenter__()
        waiting = asyncio.create_task(client.drain())
        await waiting
    for use in (client.flush, client.drain, client.saved, client.__aenter__):
        with pytest.raises(ClientClosed):
            await use()
    with pytest.raises(ClientClosed):
        client.post("room", b"")
    with pytest.raises(ClientClosed):
        client.subscribe("room")
    await client.close()


@in_loop
async def test_the_wrong_token_is_said_at_once() -> None:
    actor = FakeSessionActor(Cluster())
    address = await actor.start()
    with pytest.raises(NotAuthorized, match="token"):
        await Client("ann", address=address, token="wrong").__aenter__()
    await actor.server.close()


@pytest.mark.parametrize("seconds", [-1, float("nan")])
@pytest.mark.parametrize("name", ["close_timeout_s", "connect_timeout_s"])
def test_a_time_out_that_makes_no_sense_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(UsageError, match=f"{name}=.*0 or more"):
        Client("ann", **{name: seconds})  # type: ignore[arg-type]


@in_loop
async def test_nobody_there_is_said_with_what_to_do() -> None:
    with pytest.raises(Unavailable, match=r"address= names.*trilogue status"):
        await Client("ann", address="127.0.0.1:1", token=TOKEN, connect_timeout_s=0.2).__aenter__()


@in_loop
async def test_an_outbox_file_takes_messages_while_the_system_is_down_and_the_next_process_sends_them_g10(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    async with Client("ann", outbox=path, address="127.0.0.1:1", token=TOKEN, close_timeout_s=0.0) as offline:
        left = [offline.post("room", b"%d" % k) for k in range(3)]
        await offline.saved()
        assert offline.waiting == 3
        assert "not reached" in offline.trouble
    assert {type(future.exception()) for future in left} == {ClientClosed}
    async with system(outbox=path) as (client, actor):
        assert (await client.send("room", b"3")).n == 4
        assert actor.cluster.bodies("room") == [b"0", b"1", b"2", b"3"]
        with pytest.raises(OutboxInUse):
            await Client("ann", outbox=path, address=actor.server.address, token=TOKEN).__aenter__()
    async with system(outbox=path) as (client, _):
        assert client.waiting == 0


@in_loop
async def test_a_message_leaves_only_after_it_is_saved(tmp_path: Path) -> None:
    async with system(outbox=tmp_path / "a.db") as (client, actor):
        await client.send("room", b"0")
        futures = [client.post(f"room-{k % 7}", b"%d" % k) for k in range(100)]
        await client.saved()
        await asyncio.gather(*futures)
        await client.flush()
        assert sum(map(len, actor.cluster.sessions.values())) == 101


@in_loop
async def test_saved_without_a_file_is_a_mistake() -> None:
    async with system() as (client, _):
        with pytest.raises(UsageError, match="outbox=FILE"):
            await client.saved()


@in_loop
async def test_a_malformed_answer_ends_that_connection_only() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        for nonsense in ([Say.ACKED, 1], [Say.ACKED, 1, 3, [["room"]]], [Say.REFUSED, "x", 5], [Say.OPEN, 0, None, 3, 1]):
            connection = actor.submitter
            assert connection is not None
            connection.send(nonsense)
            await until(functools.partial(getattr, connection, "closed"), f"the connection's end after {nonsense}")
            assert (await client.send("room", b"again")).seq
