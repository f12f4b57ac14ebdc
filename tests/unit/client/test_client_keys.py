"""Idempotency keys at the client: what is handed over twice is stored once, and the next message follows (G4, G5, G8, G10)."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Client, ConflictingKey, InvalidKey, SyncClient
from trilogue.client.outbox.sqlite import FORMAT


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
