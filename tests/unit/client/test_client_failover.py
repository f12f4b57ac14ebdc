"""A SessionActor dies, is paused, or loses its partition: the client follows, in order, each message once (G4, G5, G11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.wire import pack
from trilogue.client import Client
from trilogue.client.connecting import keepalive, link, pulse
from trilogue.client.connecting.backoff import OLD_ROUTE_AFTER_S


@asynccontextmanager
async def owner_and_spare(partitions: int = 1) -> AsyncIterator[tuple[Client, FakeSessionActor, FakeSessionActor]]:
    """A client that knows both, the owner of partition 0, and a spare that answers WHERE."""
    cluster = Cluster(partitions)
    owner, spare = FakeSessionActor(cluster), FakeSessionActor(cluster)
    spare.is_spare = True
    addresses = [await owner.start(), await spare.start(writes=False)]
    try:
        async with Client("ann", address=",".join(addresses), token=TOKEN, close_timeout_s=0.0) as client:
            assert (await client.send("room", b"0")).epoch == owner.epoch
            yield client, owner, spare
    finally:
        await owner.server.close()
        await spare.server.close()


def looked(actor: FakeSessionActor) -> int:
    """How often it was asked where the partitions are."""
    return len(actor.said(Say.WHERE))


@in_loop
async def test_when_the_owner_is_killed_the_spare_answers_everything_in_order_once_g4_g5_g11() -> None:
    async with owner_and_spare() as (client, owner, spare):
        owner.holding = True  # stored, but the acks are lost with it
        futures = [client.post("room", b"%d" % k) for k in range(1, 6)]
        await until(lambda: len(owner.said(Say.SUBMIT)) == 2, "a submission")
        before = looked(spare)
        await owner.kill()
        futures += [client.post("room", b"%d" % k) for k in range(6, 11)]
        await until(lambda: looked(spare) >= before + 3, "look-ups in quick succession")
        spare.take_over()
        acks = await asyncio.gather(*futures)
        assert [ack.seq for ack in acks] == list(range(2, 12)), "what was stored keeps its seq"
        assert [ack.duplicate for ack in acks] == [True] * 5 + [False] * 5
        assert {ack.epoch for ack in acks} == {spare.epoch} == {owner.epoch + 1}
        assert spare.cluster.bodies("room") == [b"%d" % k for k in range(11)]


@in_loop
async def test_one_failover_follows_another() -> None:
    async with owner_and_spare() as (client, owner, witness):
        last = owner
        for k in range(1, 6):
            successor = FakeSessionActor(owner.cluster)
            await successor.start()
            await last.kill()
            assert (await client.send("room", b"%d" % k)).epoch == successor.epoch == owner.epoch + k
            last = successor
        assert owner.cluster.bodies("room") == [b"%d" % k for k in range(6)]
        assert not witness.said(Say.SUBMIT)
        await last.server.close()


@in_loop
async def test_a_spare_at_the_address_of_the_dead_owner_is_not_taken_for_it() -> None:
    async with owner_and_spare() as (client, owner, spare):
        await owner.kill()
        again = FakeSessionActor(owner.cluster)
        again.is_spare = True
        await again.start(owner.server.address, writes=False)
        future = client.post("room", b"1")
        await until(lambda: "it is a spare" in client.trouble, "the reason")
        told = {client.trouble}
        before = looked(spare)
        await until(lambda: told.add(client.trouble) or looked(spare) >= before + 2, "more look-ups")
        assert all("does not have partition 0: it is a spare" in trouble for trouble in told), told
        assert not again.said(Say.SUBMIT)
        spare.take_over()
        assert (await future).epoch == spare.epoch
        await again.server.close()


@in_loop
async def test_the_same_process_is_tried_again_when_only_the_connection_was_lost() -> None:
    async with owner_and_spare() as (client, owner, spare):
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        owner.hang_up()
        assert (await client.send("room", b"1")).epoch == owner.epoch
        assert loop.time() - lost_at >= OLD_ROUTE_AFTER_S, "a spare would have had that time to be found"
        assert not spare.said(Say.SUBMIT)


@in_loop
async def test_a_silent_owner_is_left_as_soon_as_another_one_is_in_force_and_its_late_answers_count_nothing() -> None:
    async with owner_and_spare() as (client, owner, spare):
        connections = client._connections
        assert connections is not None
        old = connections.links[0].connection
        assert old is not None
        owner.silent = True
        futures = [client.post("room", b"%d" % k) for k in range(1, 4)]
        before = looked(spare)
        await until(lambda: looked(spare) >= before + 2, "look-ups while it is silent")
        assert not old.closed, "as long as nobody else has the partition"
        spare.holding = True
        spare.take_over()
        await until(lambda: spare.said(Say.SUBMIT), "the submission to the new owner")
        assert old.closed
        assert not owner.said(Say.PING), "long before it would have been given up"
        sender_id = owner.said(Say.SUBMIT)[0][1][0][1]
        old.data_received(pack([Say.ACKED, owner.epoch, 3, [["room", sender_id, 2, 3, 902, False]]]))
        connections.links[0]._on_message(old, [Say.ACKED, owner.epoch, 3, [["room", sender_id, 2, 3, 902, False]]])
        assert not any(future.done() for future in futures)
        spare.release()
        assert [(ack.seq, ack.epoch) for ack in await asyncio.gather(*futures)] == [(k, spare.epoch) for k in (2, 3, 4)]


@in_loop
async def test_an_answer_of_the_old_epoch_over_the_new_connection_counts_nothing() -> None:
    async with owner_and_spare() as (client, owner, spare):
        spare.take_over()
        await owner.kill()
        await client.send("room", b"1")
        spare.holding = True
        future = client.post("room", b"2")
        await until(lambda: len(spare.said(Say.SUBMIT)) == 2, "the submission")
        sender_id = spare.said(Say.SUBMIT)[0][1][0][1]
        assert spare.submitter is not None
        spare.submitter.send([Say.ACKED, owner.epoch, 3, [["room", sender_id, 3, 1, 903, False]]])
        spare.submitter.send([Say.REFUSED, owner.epoch, [["room", sender_id, 3, 1, Code.DEPOSED, "old", 0]]])
        spare.release()
        assert (await future).seq == 3


@in_loop
async def test_a_paused_process_is_left_before_it_says_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LOOK_AFTER_S", 0.02)
    accepted = asyncio.Event()
    paused = await asyncio.start_server(lambda reader, writer: accepted.set(), "127.0.0.1", 0)
    spare = FakeSessionActor(Cluster())
    spare.is_spare = True
    spare.cluster.writers[0] = (1, "{}:{}".format(*paused.sockets[0].getsockname()))
    address = await spare.start(writes=False)
    async with Client("ann", address=address, token=TOKEN, close_timeout_s=0.0) as client:
        future = client.post("room", b"1")
        await accepted.wait()
        before = looked(spare)
        await until(lambda: looked(spare) >= before + 2, "look-ups while the attempt hangs")
        spare.take_over()
        assert (await future).epoch == spare.epoch == 2
    await spare.server.close()
    paused.close()


@in_loop
@pytest.mark.parametrize("greeting", [[Say.OPEN, 1, 9, 3, 1000], [Say.WAITING, 1, "it takes over", False]])
async def test_who_has_another_partition_is_left_at_once(greeting: list[object]) -> None:
    async with owner_and_spare(partitions=2) as (client, owner, spare):
        spare.take_over()
        assert owner.submitter is not None
        owner.submitter.send(greeting)
        session = next(name for name in owner.cluster.sessions)
        assert (await client.send(session, b"1")).epoch == spare.epoch


@in_loop
async def test_an_owner_that_waits_is_left_when_another_one_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(pulse, "LOOK_AFTER_S", 0.02)
    async with owner_and_spare() as (client, owner, spare):
        owner.waiting_text = "store-1, store-2 (unreachable)"
        assert owner.submitter is not None
        owner._on_opened(owner.submitter)
        await until(lambda: client.trouble, "the reason")
        assert "partition 0 does not answer yet: it waits: store-1, store-2 (unreachable)" in client.trouble
        future = client.post("room", b"1")
        before = looked(spare)
        await until(lambda: looked(spare) >= before + 2 and len(owner.said(Say.PING)) >= 2, "a look with each ping")
        assert not owner.submitter.closed
        spare.take_over()
        assert (await future).epoch == spare.epoch


@in_loop
async def test_a_reader_of_a_quiet_session_asks_nobody_where_the_partition_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "PING_AFTER_S", 0.02)
    monkeypatch.setattr(pulse, "LOOK_AFTER_S", 0.02)
    async with owner_and_spare() as (client, owner, spare), client.subscribe("room") as messages:
        assert (await anext(aiter(messages))).body == b"0"
        before = looked(owner) + looked(spare)
        await until(lambda: len(owner.said(Say.PING)) >= 5, "pings")
        assert looked(owner) + looked(spare) == before
        owner.silent = True
        spare.take_over()
        await client.send("room", b"1")
        assert (await anext(aiter(messages))).body == b"1"
