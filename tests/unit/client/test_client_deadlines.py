"""Deadlines and cancellation: what the sender hears is true, and the next message follows (G4, G5, G8, G10)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Ack, Client, GivenUp, InvalidRange, SyncClient, TrilogueError, Unsent
from trilogue.client.outbox.sqlite import FORMAT
from trilogue.client.sending import giving_up

SOON_S = 0.02


@asynccontextmanager
async def system(outbox: Path | None = None) -> AsyncIterator[tuple[Client, FakeSessionActor]]:
    """One partition, and a client of it."""
    actor = FakeSessionActor(Cluster())
    await actor.start()
    try:
        async with Client("ann", address=actor.server.address, token=TOKEN, outbox=outbox, close_timeout_s=0.0) as client:
            yield client, actor
    finally:
        await actor.server.close()


async def shut(client: Client, actor: FakeSessionActor) -> None:
    """From now on nothing can be submitted."""
    await client.send("room", b"0")
    actor.waiting_text = "a store is missing"
    assert actor.submitter is not None
    actor._on_opened(actor.submitter)
    await until(lambda: client.trouble, "the reason")


async def fails(future: asyncio.Future[Ack]) -> GivenUp:
    with pytest.raises(GivenUp) as told:
        await future
    return told.value


@in_loop
async def test_a_message_that_was_never_sent_is_not_stored_and_the_next_one_follows_g4_g8() -> None:
    async with system() as (client, actor):
        await shut(client, actor)
        future = client.post("room", b"1", deadline_s=SOON_S)
        behind = client.post("room", b"2")
        error = await fails(future)
        assert not error.may_be_stored
        assert "had no answer within 0.02 s, and was given up: it is not stored, and never will be" in str(error)
        assert not behind.done()
        actor.open()
        assert (await behind).n == 3
        assert actor.cluster.bodies("room") == [b"0", b"2"]
        assert {n for _, _, n in actor.cluster.skips} == {2}
        assert client.waiting == 0


@in_loop
async def test_a_message_that_was_stored_before_its_deadline_is_acked_late_g5_g8() -> None:
    async with system() as (client, actor):
        actor.holding = True
        future = client.post("room", b"1", deadline_s=SOON_S)
        await until(lambda: actor.said(Say.GIVE_UP), "the question what became of it")
        actor.release()
        ack = await future
        assert (ack.seq, ack.n) == (1, 1)
        assert actor.cluster.bodies("room") == [b"1"]
        assert not actor.cluster.skips
        assert (await client.send("room", b"2")).seq == 2


@in_loop
async def test_a_message_whose_fate_nobody_tells_may_be_stored_and_is_settled_without_its_sender_g8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(giving_up, "SETTLE_S", SOON_S)
    async with system() as (client, actor):
        actor.holding = True
        future = client.post("room", b"1", deadline_s=SOON_S)
        error = await fails(future)
        assert error.may_be_stored
        assert "it may have been stored, once" in str(error)
        behind = client.post("room", b"2")
        actor.release()
        assert (await behind).seq == 2
        assert actor.cluster.bodies("room") == [b"1", b"2"], "it had been stored, once"


@in_loop
async def test_a_message_whose_submission_was_lost_is_settled_by_a_skip_g8() -> None:
    async with system() as (client, actor):
        await client.send("room", b"0")
        actor.silent = True
        future = client.post("room", b"1", deadline_s=SOON_S)
        await until(lambda: actor.said(Say.GIVE_UP), "the question, into the silence")
        actor.silent = False
        actor.hang_up()
        assert not (await fails(future)).may_be_stored
        assert actor.cluster.bodies("room") == [b"0"]
        assert (await client.send("room", b"2")).n == 3


@in_loop
async def test_what_was_answered_in_time_has_no_deadline_any_more() -> None:
    async with system() as (client, actor):
        acks = await asyncio.gather(*(client.send("room", b"%d" % k, deadline_s=SOON_S) for k in range(20)))
        assert [ack.seq for ack in acks] == list(range(1, 21))
        await until(lambda: client._deadlines is not None and not client._deadlines._giving_up._due, "all have passed")
        assert not actor.said(Say.GIVE_UP)


@in_loop
async def test_a_deadline_holds_for_the_message_whoever_still_waits_for_it() -> None:
    async with system() as (client, actor):
        await shut(client, actor)
        future = client.post("room", b"1", deadline_s=SOON_S)
        future.cancel()
        await until(lambda: client._outbox.given_up == 1, "that it was given up")
        actor.open()
        await until(lambda: client.waiting == 0, "the skip")
        assert actor.cluster.bodies("room") == [b"0"]


@in_loop
async def test_flush_ends_when_what_was_given_up_is_settled_and_says_so() -> None:
    async with system() as (client, actor):
        await shut(client, actor)
        future = client.post("room", b"1", deadline_s=SOON_S)
        flush = asyncio.create_task(client.flush())
        await fails(future)
        assert not flush.done()
        actor.open()
        with pytest.raises(GivenUp):
            await flush
        await client.flush()


@in_loop
async def test_hundreds_of_deadlines_between_other_messages_leave_their_order_as_it_was_g4() -> None:
    async with system() as (client, actor):
        await shut(client, actor)
        given = [client.post("room", b"x%d" % k, deadline_s=SOON_S) for k in range(300)]
        kept = [client.post("room", b"%d" % k) for k in range(1, 4)]
        more = [client.post("room", b"y%d" % k, deadline_s=SOON_S) for k in range(3)]
        last = client.post("room", b"4")
        for future in given + more:
            assert not (await fails(future)).may_be_stored
        actor.open()
        assert [ack.seq for ack in await asyncio.gather(*kept, last)] == [2, 3, 4, 5]
        assert len(actor.said(Say.GIVE_UP)) <= 10, "consecutive numbers are given up together"


@pytest.mark.parametrize("deadline_s", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_is_a_positive_number_of_seconds(deadline_s: float) -> None:
    @in_loop
    async def refused() -> None:
        async with system() as (client, _):
            with pytest.raises(InvalidRange, match="deadline_s"):
                client.post("room", b"1", deadline_s=deadline_s)
            assert client.waiting == 0

    refused()


# ---------------------------------------------------------------------- cancellation


@in_loop
async def test_cancel_takes_back_what_was_not_sent_and_nothing_else_g8() -> None:
    async with system() as (client, actor):
        acked = client.post("room", b"0")
        await acked
        assert not client.cancel(acked)
        actor.holding = True
        sent = client.post("room", b"1")
        await until(lambda: len(actor.said(Say.SUBMIT)) == 2, "its submission")
        assert not client.cancel(sent)
        actor.waiting_text = "a store is missing"
        assert actor.submitter is not None
        actor._on_opened(actor.submitter)
        await until(lambda: client.trouble, "the reason")
        waiting, last = client.post("room", b"2"), client.post("room", b"3")
        assert not client.cancel(sent), "it was sent, and may have been stored"
        assert client.cancel(waiting)
        assert not client.cancel(waiting)
        error = await fails(waiting)
        assert not error.may_be_stored
        assert "was cancelled" in str(error)
        actor.release()
        actor.open()
        assert [(await future).seq for future in (sent, last)] == [2, 3]
        assert actor.cluster.bodies("room") == [b"0", b"1", b"3"]


@in_loop
async def test_what_was_given_up_is_not_unsent_when_a_client_closes() -> None:
    actor = FakeSessionActor(Cluster())
    await actor.start()
    client = Client("ann", address=actor.server.address, token=TOKEN, close_timeout_s=0.0)
    async with client:
        await shut(client, actor)
        future = client.post("room", b"1")
        assert client.cancel(future)
        await fails(future)
    with pytest.raises(Unsent):
        async with Client("ann", address=actor.server.address, token=TOKEN, close_timeout_s=0.0) as other:
            other.post("room", b"1")
    await actor.server.close()


# ---------------------------------------------------------------------- the outbox's file


@in_loop
async def test_the_next_process_does_not_send_what_was_given_up_g10(tmp_path: Path) -> None:
    path = tmp_path / "ann.db"
    async with system(path) as (client, actor):
        await shut(client, actor)
        cancelled, passed = client.post("room", b"1"), client.post("room", b"2", deadline_s=SOON_S)
        kept = client.post("room", b"3")
        assert client.cancel(cancelled)
        for future in (cancelled, passed):
            assert not (await fails(future)).may_be_stored
        await client.close()
        with pytest.raises(TrilogueError):
            await kept
        cluster = actor.cluster
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT n FROM given_up ORDER BY n").fetchall() == [(2,), (3,)]
        assert file.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    actor = FakeSessionActor(cluster)
    await actor.start()
    async with Client("ann", address=actor.server.address, token=TOKEN, outbox=path) as client:
        await client.flush()
        assert cluster.bodies("room") == [b"0", b"3"]
        assert client.conflicts == [], "they were told before"
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM given_up").fetchone() == (0,)
    await actor.server.close()


@in_loop
async def test_nobody_hears_of_it_before_it_is_in_the_file_g10(tmp_path: Path) -> None:
    path = tmp_path / "ann.db"
    async with system(path) as (client, actor):
        await shut(client, actor)
        future = client.post("room", b"1")
        assert client.cancel(future)
        told: list[list[tuple[int]]] = []

        def look(_: object) -> None:
            with sqlite3.connect(path) as file:
                told.append(file.execute("SELECT n FROM given_up").fetchall())

        future.add_done_callback(look)
        await fails(future)
        await until(lambda: told, "the callback")
        assert told == [[(2,)]]


def test_a_sync_client_gives_up_and_cancels_as_well(tmp_path: Path) -> None:
    nowhere = {"address": "127.0.0.1:1", "token": TOKEN, "close_timeout_s": 0.0}
    with SyncClient("ann", outbox=tmp_path / "ann.db", **nowhere) as client:  # type: ignore[arg-type]
        future = client.post("room", b"1", deadline_s=SOON_S)
        with pytest.raises(GivenUp) as told:
            future.result(timeout=10)
        assert not told.value.may_be_stored
        second = client.post("room", b"2")
        assert client.cancel(second)
        with pytest.raises(GivenUp):
            second.result(timeout=10)
        with pytest.raises(GivenUp):
            client.send("room", b"3", deadline_s=SOON_S)
