"""Many sessions in one subscription, what was missed, and cursors: in order, once, and no more than the window (G7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.errors import OutboxUnusable
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client import Client, InvalidRange, InvalidSession, UsageError
from trilogue.client.outbox.cursors import Cursors
from trilogue.client.outbox.sqlite import OutboxFile
from trilogue.client.reading.feed import WINDOW_BYTES, WINDOW_MESSAGES
from trilogue.client.reading.following import some

SENDER_ID = f"ann/{'0' * 32}"


@asynccontextmanager
async def system(
    messages: dict[str, int], partitions: int = 2, body: bytes = b"", **settings: Any
) -> AsyncIterator[tuple[Client, list[FakeSessionActor]]]:
    """An open client, and a SessionActor for each partition, whose sessions have so many messages."""
    cluster = Cluster(partitions)
    for session, count in messages.items():
        cluster.sessions[session] = [(SENDER_ID, n, b"%d" % n + body) for n in range(1, count + 1)]
    actors = [FakeSessionActor(cluster, partition) for partition in range(partitions)]
    addresses = [await actor.start() for actor in actors]
    try:
        async with Client("bob", address=",".join(addresses), token=TOKEN, **settings) as client:
            yield client, actors
    finally:
        for actor in actors:
            await actor.server.close()


def names(count: int) -> list[str]:
    return [f"room-{k}" for k in range(count)]


def subscribed(actors: list[FakeSessionActor]) -> list[list[Any]]:
    return [message for actor in actors for message in actor.said(Say.SUBSCRIBE)]


class Got:
    """What came, by session: each session's seqs must follow each other from where it began."""

    def __init__(self, begin: dict[str, int]) -> None:
        self.at = dict(begin)
        self.count = 0

    def take(self, message: Any) -> None:
        assert message.seq == self.at[message.session] + 1, f"{message.unique_key} came after {self.at[message.session]}"
        self.at[message.session] = message.seq
        self.count += 1


@in_loop
async def test_one_subscription_follows_sessions_of_several_partitions_in_order_each_g7() -> None:
    rooms = names(20)
    async with system(dict.fromkeys(rooms, 5)) as (client, actors):
        begin: dict[str, int | None] = {room: k % 7 if k % 7 < 6 else None for k, room in enumerate(rooms)}
        got = Got({room: 5 if after is None else after for room, after in begin.items()})
        async with client.subscribe(begin) as messages:
            for room in rooms:
                await client.send(room, b"6")
            expected = sum(6 - at for at in got.at.values())
            while got.count < expected:
                got.take(await anext(messages))
            assert set(got.at.values()) == {6}
            assert len(subscribed(actors)) == len({partition_of(room, 2) for room in rooms}) == 2
            for actor in actors:
                actor.hang_up()
            for room in rooms:
                await client.send(room, b"7")
            while got.count < expected + len(rooms):
                got.take(await anext(messages))
        assert set(got.at.values()) == {7}
        await until(lambda: not any(actor.subscriptions for actor in actors), "the end of the subscription there")


@in_loop
async def test_ten_thousand_sessions_are_followed_with_a_handful_of_requests() -> None:
    rooms = names(10_000)
    async with (
        system({"room-7": 3}, partitions=1) as (client, [actor]),
        client.subscribe(dict.fromkeys(rooms, 0)) as messages,
    ):
        assert len(actor.said(Say.SUBSCRIBE)) == 5
        assert len(actor.subscriptions) == 10_000
        await client.send("room-9999", b"1")
        seen = [(await anext(messages)).unique_key for _ in range(4)]
        assert seen == ["room-7_1", "room-7_2", "room-7_3", "room-9999_1"]
        actor.hang_up()
        await client.send("room-9998", b"1")
        assert (await anext(messages)).unique_key == "room-9998_1"
        assert len(actor.said(Say.SUBSCRIBE)) == 10


@in_loop
async def test_the_window_is_shared_by_all_sessions_and_a_slow_reader_gets_all_g7() -> None:
    rooms = names(12)
    each = WINDOW_MESSAGES // 6
    async with system(dict.fromkeys(rooms, each)) as (client, actors):
        got = Got(dict.fromkeys(rooms, 0))
        async with client.subscribe(dict.fromkeys(rooms, 0)) as messages:
            got.take(await anext(messages))
            sent = sum(at for actor in actors for _, at in actor.subscriptions.values())
            assert sent <= WINDOW_MESSAGES, "no more than the window, however many sessions and partitions"
            while got.count < 12 * each:
                for message in await messages.batch(100):
                    got.take(message)
        assert set(got.at.values()) == {each}


@in_loop
async def test_bytes_are_bounded_as_messages_are_and_a_slow_reader_gets_all_g7() -> None:
    size = 100_000
    async with system({"room": 200}, partitions=1, body=bytes(size)) as (client, [actor]), client.subscribe("room") as messages:
        first = await anext(messages)
        [(_, at)] = actor.subscriptions.values()
        assert at * size <= WINDOW_BYTES + 2 * size, "the window, and one message"
        seen = [first.seq, *[(await anext(messages)).seq for _ in range(199)]]
        assert seen == list(range(1, 201))
        assert len(actor.said(Say.CREDIT)) < 100, "not for each message"


@in_loop
async def test_a_mapping_that_makes_no_sense_is_refused() -> None:
    async with system({}) as (client, _):
        with pytest.raises(InvalidRange, match="leave after= out"):
            client.subscribe({"room": 1}, after=5)
        with pytest.raises(InvalidRange):
            client.subscribe({"room": -1})
        with pytest.raises(InvalidSession):
            client.subscribe({"": 0})
        with pytest.raises(InvalidSession, match="not list"):
            client.subscribe(["room"])  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="sync takes a mapping"):
            await anext(client.sync("room"))  # type: ignore[arg-type]
        async with client.subscribe({}) as messages:
            waiting = asyncio.create_task(anext(messages))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert not waiting.done(), "nothing is followed, so nothing comes"
            waiting.cancel()


# ---------------------------------------------------------------------- what was missed


@in_loop
async def test_sync_gives_what_was_missed_up_to_the_heads_of_the_call_and_ends_g7() -> None:
    rooms = names(2_000)
    async with system(dict.fromkeys(rooms, 4)) as (client, actors):
        cursors = dict.fromkeys(rooms, 4) | {"room-1": 0, "room-5": 3, "room-1999": 2, "nowhere": 0}
        kept = dict(cursors)
        got = Got(cursors)
        async for message in client.sync(cursors):
            got.take(message)
            if got.count == 1:
                await client.send("room-1", b"5")  # newer than the call
        assert got.count == 4 + 1 + 2
        assert cursors == kept, "the caller's mapping is the caller's"
        followed = [session for message in subscribed(actors) for session, _ in message[3]]
        assert sorted(followed) == ["room-1", "room-1999", "room-5"], "nobody is asked about sessions without news"
        assert [message.unique_key async for message in client.sync(got.at)] == ["room-1_5"]
        assert [message async for message in client.sync(dict.fromkeys(rooms, 9))] == []
        await until(lambda: not any(actor.subscriptions for actor in actors), "the end of the subscriptions there")


@in_loop
async def test_a_sync_that_was_cut_short_goes_on_where_its_caller_says() -> None:
    async with system({"room": 50, "hall": 50}) as (client, _):
        got = Got({"room": 0, "hall": 10})
        missed = client.sync(got.at)
        messages, error = await some(missed, 33)
        assert error is None
        for message in messages:
            got.take(message)
        await missed.aclose()
        async for message in client.sync(got.at):
            got.take(message)
        assert got.at == {"room": 50, "hall": 50}
        with pytest.raises(InvalidRange, match="0 for all of it"):
            await anext(client.sync({"room": None}))  # type: ignore[dict-item]


# ---------------------------------------------------------------------- cursors


@in_loop
async def test_a_reader_goes_on_after_what_it_has_confirmed_and_gets_the_rest_again_g7(tmp_path: Path) -> None:
    outbox = tmp_path / "bob.db"
    async with system({"room": 6, "hall": 6}, outbox=outbox) as (client, actors):
        address = ",".join(actor.server.address for actor in actors)
        async with client.subscribe({"room": 0, "hall": 4}, cursor="ui") as messages:
            seen = [await anext(messages) for _ in range(8)]
            handled = [message for message in seen if message.seq in (3, 5)]
            for message in handled:
                messages.confirm(message)
            await messages.confirm(next(message for message in handled if message.seq == 3))
        await client.close()
        async with Client("bob", outbox=outbox, address=address, token=TOKEN) as again:
            async with again.subscribe({"room": 0, "hall": 0}, cursor="ui") as messages:
                rest = [(await anext(messages)).unique_key for _ in range(2)]
                assert sorted(rest) == ["hall_6", "room_6"], "a cursor beats after"
            async with again.subscribe("room", after=5, cursor="another") as messages:
                assert (await anext(messages)).seq == 6


@in_loop
async def test_from_now_on_with_a_cursor_means_from_the_first_time_on_g7(tmp_path: Path) -> None:
    outbox = tmp_path / "bob.db"
    async with system({"room": 3}, outbox=outbox) as (client, _):
        async with client.subscribe("room", after=None, cursor="ui"):
            pass  # it ends before anything came
        await client.send("room", b"4")
        async with client.subscribe("room", after=None, cursor="ui") as messages:
            assert (await anext(messages)).seq == 4


@in_loop
async def test_many_confirmations_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = OutboxFile.commit

    def counted(self: OutboxFile, one: Any) -> None:
        commits.append(len(one.cursors))
        commit(self, one)

    monkeypatch.setattr(OutboxFile, "commit", counted)
    async with (
        system({"room": 500}, outbox=tmp_path / "bob.db") as (client, _),
        client.subscribe("room", cursor="ui") as messages,
    ):
        confirmed = [messages.confirm(await anext(messages)) for _ in range(500)]
        await confirmed[-1]
    assert len(commits) < 100, "not one for each message"
    assert max(commits) == 1, "of one session, the last one is written"


@in_loop
async def test_a_cursor_needs_a_file_and_a_name_and_a_confirmation_needs_a_cursor(tmp_path: Path) -> None:
    async with system({"room": 1}) as (client, _):
        with pytest.raises(UsageError, match=r"Client\(outbox=FILE\)"):
            client.subscribe("room", cursor="ui")
        messages = client.subscribe("room")
        with pytest.raises(UsageError, match="cursor="):
            messages.confirm(await anext(messages))
    async with system({"room": 1}, outbox=tmp_path / "bob.db") as (client, _):
        for name in ("", "x" * 256, 5):
            with pytest.raises(UsageError, match="1 to 255 bytes"):
                client.subscribe("room", cursor=name)  # type: ignore[arg-type]


def test_confirmations_go_into_one_commit_and_never_back() -> None:
    cursors, told = Cursors(), []
    cursors.confirm("ui", "room", 5, told.append)
    cursors.confirm("ui", "room", 3, told.append)
    cursors.confirm("log", "room", 1, told.append)
    assert cursors.take() == (("ui", "room", 5), ("log", "room", 1))
    cursors.confirm("ui", "room", 6, told.append)
    cursors.committed()
    assert (told, cursors.due) == ([None, None, None], True)
    error = OutboxUnusable("full")
    cursors.failed(error)
    assert (told[3:], cursors.due) == ([error], False)
