"""Idempotency keys at the client: what is handed over twice is stored once, and the next message follows (G4, G5, G8, G10)."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Client, ConflictingKey, InvalidKey, Overloaded, SyncClient
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.outbox.sqlite import FORMAT
from trilogue.client.sending.desk import Desk
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES


def client_of(actor: FakeSessionActor, outbox: Path | None = None, sender: str = "ann") -> Client:
    return Client(sender, address=actor.server.address, token=TOKEN, outbox=outbox, close_timeout_s=0.0)


async def started() -> FakeSessionActor:
    actor = FakeSessionActor(Cluster())
    await actor.start()
    return actor


@in_loop
async def test_a_key_that_comes_again_is_answered_with_the_originals_seq_and_the_next_message_follows_g4_g5() -> None:
    actor = await started()
    async with client_of(actor) as ann, client_of(actor, sender="bob") as bob:
        first = await ann.send("room", b"pay 7", key="order-7")
        assert (first.seq, first.duplicate) == (1, False)
        again = await ann.send("room", b"pay 7", key="order-7")
        assert (again.seq, again.n, again.duplicate) == (1, 2, True)
        other = await bob.send("room", b"pay 7", key="order-7")
        assert (other.seq, other.n, other.sender, other.duplicate) == (1, 1, "bob", True)
        assert [(await one.send("room", b"next")).seq for one in (ann, bob)] == [2, 3]
        assert (await ann.send("another room", b"pay 7", key="order-7")).duplicate is False, "its scope is the session"
        assert actor.cluster.bodies("room") == [b"pay 7", b"next", b"next"]
    await actor.server.close()


@in_loop
async def test_a_key_with_another_body_is_an_error_and_leaves_no_hole_g4_g8() -> None:
    actor = await started()
    async with client_of(actor) as client:
        await client.send("room", b"pay 7", key="order-7")
        futures = [client.post("room", body, key=key) for body, key in ((b"a", None), (b"pay 8", "order-7"), (b"b", "order-8"))]
        assert (await futures[0]).seq == 2
        with pytest.raises(ConflictingKey, match="used for another message"):
            await futures[1]
        assert (await futures[2]).seq == 3
        assert actor.cluster.bodies("room") == [b"pay 7", b"a", b"b"]
        assert client.waiting == 0
    await actor.server.close()


@in_loop
async def test_a_plain_message_travels_as_it_did_and_a_run_with_keys_is_bounded() -> None:
    actor = await started()
    async with client_of(actor) as client:
        await client.send("room", b"plain")
        futures = [client.post("room", b"%d" % k, key=f"k{k}" if k % 2 else None) for k in range(400)]
        await asyncio.gather(*futures)
        await client.send("room", b"plain again")
        lane = client._outbox.lanes["room", "ann"]
        assert lane.keys == {}, "a key goes with its message"
    runs: list[Any] = [run for message in actor.said(Say.SUBMIT) for run in message[1]]
    assert [len(runs[0]), len(runs[-1])] == [5, 5]
    assert all(len(run[4]) <= DEFAULT_LIMITS.keyed_run_messages_max for run in runs)
    assert all(len(run[5]) == len(run[4]) for run in runs[1:-1])
    await actor.server.close()


@in_loop
async def test_a_key_counts_against_the_bytes_of_the_outbox_until_its_message_has_its_outcome() -> None:
    desk, outbox = Desk("ann", DEFAULT_LIMITS), Outbox(DEFAULT_LIMITS, lambda: "a" * 32, lambda: None)
    desk.use(outbox)
    desk.is_open, desk._bytes_max = True, 1000
    for k in range(3):
        lane = desk.hand_over("room", b"pay", None, asyncio.Future(), "ü" * 100 + str(k))
    assert (outbox.messages, outbox.bytes) == (3, 3 * (3 + MESSAGE_OVERHEAD_BYTES + 201))
    desk.hand_over("room", b"p" * 300, None, asyncio.Future())
    with pytest.raises(Overloaded, match="4 messages, 976 bytes"):
        desk.hand_over("room", b"pay", None, asyncio.Future(), "k" * 6)
    desk.hand_over("room", b"pay", None, asyncio.Future(), "k" * 5)
    assert outbox.bytes == 1000
    lane.saved, lane.saved_bytes = 2, lane.bytes_of(2)
    assert lane.pop(1)[1] == 3 + MESSAGE_OVERHEAD_BYTES + 201
    assert lane.drop_unsaved()[1] == 1000 - 2 * (3 + MESSAGE_OVERHEAD_BYTES + 201)
    assert (len(lane.bodies), lane.key_bytes) == (1, 201)


@pytest.mark.parametrize("in_a_file", [False, True])
@in_loop
async def test_what_keys_took_in_the_outbox_is_given_back(in_a_file: bool, tmp_path: Path) -> None:
    actor, path = await started(), tmp_path / "ann.db" if in_a_file else None
    async with client_of(actor, path) as client:
        futures = [client.post("room", b"%d" % k, key=f"key {k}" if k % 3 else None) for k in range(200)]
        await asyncio.gather(*futures)
        assert (client._outbox.messages, client._outbox.bytes) == (0, 0)
    await actor.server.close()


@in_loop
async def test_the_next_process_counts_the_keys_that_its_file_holds(tmp_path: Path) -> None:
    actor, path = await started(), tmp_path / "ann.db"
    actor.silent = True
    async with client_of(actor, path) as client:
        client.post("room", b"pay 7", key="order-7")
        await client.saved()
        taken = client._outbox.bytes
    async with client_of(actor, path) as client:
        assert client._outbox.bytes == taken == len(b"pay 7") + MESSAGE_OVERHEAD_BYTES + len("order-7")
    await actor.server.close()


def test_a_client_for_plain_code_counts_keys_before_they_reach_its_loop(tmp_path: Path) -> None:
    nowhere: Any = {"address": "127.0.0.1:1", "token": TOKEN, "close_timeout_s": 0.0}
    with SyncClient("ann", outbox=tmp_path / "ann.db", **nowhere) as client:
        arrived, go_on = threading.Event(), threading.Event()
        client._running().call_soon_threadsafe(lambda: (arrived.set(), go_on.wait(10)))
        assert arrived.wait(10)
        client.post("room", b"pay 7", key="order-7")
        client.post("room", b"pay 8")
        assert client._queued_bytes == len("pay 7") + len("order-7") + len("pay 8")
        go_on.set()
        client.saved()
        assert client._client._outbox.bytes == len("pay 7order-7pay 8") + 2 * MESSAGE_OVERHEAD_BYTES


@in_loop
async def test_a_key_survives_its_process_in_the_outboxs_file_g5_g10(tmp_path: Path) -> None:
    actor, path = await started(), tmp_path / "ann.db"
    async with client_of(actor, path) as client:
        await client.send("room", b"0")
        actor.waiting_text = "a store is missing"
        assert actor.submitter is not None
        actor._on_opened(actor.submitter)
        await until(lambda: client.trouble, "the reason")
        for body, key in ((b"1", "one"), (b"2", None), (b"1", "one"), (b"3", "three")):
            client.post("room", body, key=key).add_done_callback(lambda future: future.exception())
        await client.saved()
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    actor.waiting_text = None
    async with client_of(actor, path) as client:
        await client.flush()
        assert actor.cluster.bodies("room") == [b"0", b"1", b"2", b"3"]
        assert actor.cluster.aliases == {("room", client._outbox.lanes["room", "ann"].sender_id, 4): 2}
        assert (await client.send("room", b"3", key="three")).seq == 4
    await actor.server.close()


@pytest.mark.parametrize("key", ["", "x" * 256, "\ud800", 7, b"bytes"])
def test_a_key_is_a_short_str(key: Any) -> None:
    @in_loop
    async def refused() -> None:
        actor = await started()
        async with client_of(actor) as client:
            with pytest.raises(InvalidKey):
                client.post("room", b"1", key=key)
            assert client.waiting == 0
        await actor.server.close()

    refused()


def test_a_sync_client_has_keys_too(tmp_path: Path) -> None:
    nowhere: Any = {"address": "127.0.0.1:1", "token": TOKEN, "close_timeout_s": 0.0}
    with SyncClient("ann", outbox=tmp_path / "ann.db", **nowhere) as client:
        client.post("room", b"1", key="one").add_done_callback(lambda future: future.exception())
        client.saved()
        assert [*client._client._outbox.lanes["room", "ann"].keys.values()] == ["one"]
        with pytest.raises(InvalidKey):
            client.post("room", b"1", key="")
