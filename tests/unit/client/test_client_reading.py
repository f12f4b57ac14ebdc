"""History, heads and subscriptions: dense, in order, never behind what an ack has shown (G3, G7)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.client import (
    Client,
    ClientClosed,
    InvalidRange,
    InvalidSession,
    Limits,
    ProtocolError,
    Unavailable,
    UsageError,
)
from trilogue.client.reading.feed import WINDOW_MESSAGES
from trilogue.client.reading.heads import Heads


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


def numbers(messages: list[Any]) -> list[int]:
    assert all(message.body == b"%d" % message.seq for message in messages)
    return [message.seq for message in messages]


def test_what_was_seen_is_remembered_for_many_sessions_but_not_for_all() -> None:
    heads = Heads(sessions_max=8)
    for k in range(100):
        heads.note(f"room-{k}", 5)
        heads.note(f"room-{k}", 3)
    assert [heads.of(f"room-{k}") for k in range(96, 100)] == [5, 5, 5, 5]
    assert sum(heads.of(f"room-{k}") > 0 for k in range(100)) <= 9


@in_loop
async def test_history_pages_by_itself_until_the_limit_or_the_end() -> None:
    async with system(25) as (client, actor):
        actor.page_messages = 7
        assert numbers(await client.history("room")) == list(range(1, 26))
        assert numbers(await client.history("room", after=10, limit=9)) == list(range(11, 20))
        assert numbers(await client.history("room", last=3)) == [23, 24, 25]
        assert numbers(await client.history("room", last=20)) == list(range(6, 26))
        assert numbers(await client.history("room", last=100)) == list(range(1, 26))
        assert await client.history("room", after=25) == []
        assert await client.history("an empty room") == await client.history("an empty room", last=5) == []
        message = (await client.history("room", limit=1))[0]
        assert (message.sender, message.unique_key) == ("ann", "room_1")


@in_loop
async def test_a_page_with_a_hole_is_asked_again_and_never_returned_g7() -> None:
    async with system(5) as (client, actor):
        whole = actor.runs
        pages = [lambda *asked: [run for run in whole(*asked) if run[4] != 3], lambda *asked: [], whole]
        actor.runs = lambda *asked: pages.pop(0)(*asked)  # type: ignore[method-assign]
        assert numbers(await client.history("room")) == [1, 2, 3, 4, 5]
        assert pages == []


@in_loop
async def test_absurd_ranges_are_refused() -> None:
    async with system(5) as (client, actor):
        absurd: list[dict[str, Any]] = [
            {"after": -1}, {"after": 2**63}, {"after": 1.5}, {"after": "1"}, {"after": True}, {"limit": 0}, {"limit": -5},
            {"limit": 1_000_001}, {"limit": 2.0}, {"last": 0}, {"last": -1}, {"last": False}, {"last": 5, "after": 1},
        ]  # fmt: skip
        for asked in absurd:
            with pytest.raises(InvalidRange):
                await client.history("room", **asked)
        for after in (-1, 1.5, True):
            with pytest.raises(InvalidRange):
                client.subscribe("room", after=after)  # type: ignore[arg-type]
        for session in ("", "x" * 256):
            with pytest.raises(InvalidSession):
                await client.history(session)
            with pytest.raises(InvalidSession):
                client.subscribe(session)
        with pytest.raises(UsageError, match=r"heads\(\['room'\]\)"):
            await client.heads("room")
        assert not actor.said(Say.HISTORY)


@in_loop
async def test_heads_of_many_sessions_come_in_chunks() -> None:
    async with system(5, limits=Limits(heads_sessions_max=2)) as (client, actor):
        await client.send("hall", b"1")
        assert await client.heads(["room", "hall", "nowhere", "room"]) == {"room": 5, "hall": 1, "nowhere": 0}
        assert len(actor.said(Say.HEADS)) == 2
        assert await client.heads([]) == {}


@in_loop
async def test_a_client_never_reads_below_what_an_ack_has_told_it() -> None:
    async with system(5) as (client, actor):
        assert (await client.send("room", b"6")).seq == 6
        behind = [4, 5]
        actor.answer_head = lambda session, head: behind.pop() if behind else head
        assert await client.heads(["room"]) == {"room": 6}
        behind = [5]
        assert numbers(await client.history("room", last=1)) == [6]
        assert behind == []


@in_loop
async def test_a_refused_question_is_asked_again_or_raised() -> None:
    async with system(2) as (client, actor):
        actor.refuse_requests = [(Code.UNAVAILABLE, "busy"), (Code.NOT_HERE, "elsewhere")]
        assert numbers(await client.history("room")) == [1, 2]
        actor.refuse_requests = [(Code.INVALID_RANGE, "too far")]
        with pytest.raises(InvalidRange, match="too far"):
            await client.history("room")


@in_loop
async def test_a_question_that_nobody_answers_says_why() -> None:
    async with system(2, limits=Limits(request_timeout_ms=50)) as (client, actor):
        actor.waiting_text = "store-3 is missing"
        actor.hang_up()
        with pytest.raises(Unavailable, match="store-3 is missing"):
            await client.history("room")


@in_loop
async def test_a_subscription_delivers_history_and_then_what_comes_g7() -> None:
    async with system(3) as (client, _):
        seen: list[int] = []
        async with client.subscribe("room", after=1) as messages:
            await client.send("room", b"4")
            async for message in messages:
                seen.append(message.seq)
                if message.seq == 4:
                    break
        assert seen == [2, 3, 4]


@in_loop
async def test_after_none_means_from_now_on_and_works_without_a_block() -> None:
    async with system(3) as (client, _):
        async with client.subscribe("room", after=None) as messages:
            await client.send("room", b"4")
            assert (await anext(messages)).seq == 4
        seen = []
        async for message in client.subscribe("room", after=2):
            seen.append(message.seq)
            if len(seen) == 2:
                break
        assert seen == [3, 4]


@in_loop
async def test_what_is_delivered_before_the_answer_to_subscribe_is_not_lost_g7() -> None:
    async with system(3) as (client, actor):
        actor.answer_head = lambda session, head: head - 1  # one more is stored while the answer is under way
        async with client.subscribe("room", after=None) as messages:
            assert (await anext(messages)).seq == 3


@in_loop
async def test_a_slow_reader_holds_a_bounded_number_of_messages_and_gets_all() -> None:
    head = 3 * WINDOW_MESSAGES
    async with system(head) as (client, actor):
        async with client.subscribe("room") as messages:
            first = await anext(messages)
            [(_, at)] = actor.subscriptions.values()
            assert at <= WINDOW_MESSAGES, "no more than the credit was sent"
            seen = [first, *[await anext(messages) for _ in range(head - 1)]]
            assert numbers(seen) == list(range(1, head + 1))
        await until(lambda: not actor.subscriptions, "the end of the subscription there")


@in_loop
async def test_a_subscription_goes_on_after_a_lost_connection_without_a_hole_g7() -> None:
    async with system(3) as (client, actor), client.subscribe("room") as messages:
        assert numbers([await anext(messages) for _ in range(3)]) == [1, 2, 3]
        actor.hang_up()
        await client.send("room", b"4")
        assert (await anext(messages)).seq == 4
        assert actor.said(Say.SUBSCRIBE)[-1][3] == [["room", 3]], "asked for what follows the last that was received"


@in_loop
async def test_duplicates_and_holes_of_a_delivery_are_repaired_g7() -> None:
    async with system(9) as (client, actor), client.subscribe("room", after=9) as messages:
        entry = actor.cluster.sessions["room"][0]
        actor.cluster.sessions["room"] += [(entry[0], n, b"%d" % n) for n in range(10, 15)]
        [((number, _), (connection, _))] = actor.subscriptions.items()
        runs = {run[4]: run for run in actor.runs("room", 9, 5)}
        for seqs in ([12, 13], [13, 12], [10], [10, 14]):
            connection.send([Say.DELIVER, [number], [runs[seq] for seq in seqs]])
        assert numbers([await anext(messages) for _ in range(5)]) == [10, 11, 12, 13, 14]
        assert actor.said(Say.HISTORY)[0][3:] == [10, 1], "asked for the hole and nothing else"


@in_loop
async def test_an_ended_subscription_is_made_anew_or_raises() -> None:
    async with system(1) as (client, actor), client.subscribe("room") as messages:
        assert (await anext(messages)).seq == 1
        for code in (Code.OVERLOADED, Code.NOT_HERE):
            [((number, _), (connection, _))] = actor.subscriptions.items()
            actor.subscriptions.clear()
            connection.send([Say.ENDED, number, code, "for now"])
            await until(lambda: actor.subscriptions, "a new subscription")
        [((number, _), (connection, _))] = actor.subscriptions.items()
        connection.send([Say.ENDED, number, Code.INVALID_RANGE, "for good"])
        with pytest.raises(InvalidRange, match="for good"):
            await anext(messages)


@in_loop
async def test_a_refused_subscription_raises_what_is_wrong() -> None:
    async with system(1) as (client, actor):
        actor.refuse_requests = [(Code.OVERLOADED, "later"), (Code.MALFORMED, "never")]
        with pytest.raises(ProtocolError, match="never"):
            await anext(client.subscribe("room"))


@in_loop
async def test_closing_ends_subscriptions_each_in_its_way() -> None:
    async with system(1) as (client, actor):
        closed = client.subscribe("room")
        await anext(closed)
        await closed.aclose()
        await closed.aclose()
        assert [message async for message in closed] == []
        orphan = client.subscribe("room", after=1)
        waiting = asyncio.create_task(anext(orphan))  # type: ignore[arg-type]
        await until(lambda: actor.subscriptions, "the subscription")
    with pytest.raises(ClientClosed):
        await waiting


@in_loop
async def test_a_subscription_that_nobody_holds_ends() -> None:
    async with system(1) as (client, actor):
        messages = client.subscribe("room")
        await anext(messages)
        await until(lambda: actor.subscriptions, "the subscription")
        del messages
        gc.collect()
        await until(lambda: not actor.subscriptions, "its end")
