"""What a client does about messages that were let go: it says where its session begins, and passes over no hole (G7, G8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop, until
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.client import (
    Client,
    Corrupt,
    HistoryTrimmed,
    InvalidRange,
    InvalidSession,
    Limits,
    Message,
    Subscription,
    SyncClient,
    Unavailable,
)

PARTITIONS = 2
ROOM = "room"
NEAR = next(name for k in range(99) if partition_of(name := f"hall-{k}", PARTITIONS) == partition_of(ROOM, PARTITIONS))
ELSEWHERE = next(name for k in range(99) if partition_of(name := f"hall-{k}", PARTITIONS) != partition_of(ROOM, PARTITIONS))


@asynccontextmanager
async def system(
    messages: dict[str, int], trimmed: dict[str, int] | None = None, **settings: Any
) -> AsyncIterator[tuple[Client, list[FakeSessionActor], Cluster]]:
    """An open client, a SessionActor for each of two partitions, and so many messages in each session: b"1", b"2", …"""
    cluster = Cluster(PARTITIONS)
    for session, count in messages.items():
        cluster.sessions[session] = [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(1, count + 1)]
    cluster.trimmed |= trimmed or {}
    actors = [FakeSessionActor(cluster, partition) for partition in range(PARTITIONS)]
    addresses = [await actor.start() for actor in actors]
    try:
        async with Client("bob", address=",".join(addresses), token=TOKEN, **settings) as client:
            yield client, actors, cluster
    finally:
        for actor in actors:
            await actor.server.close()


def seqs(messages: list[Message]) -> list[int]:
    assert all(message.body == b"%d" % message.seq for message in messages)
    return [message.seq for message in messages]


async def until_trimmed(messages: Subscription) -> tuple[list[Message], HistoryTrimmed]:
    """What comes, and the error after it."""
    found: list[Message] = []
    while True:
        try:
            found.append(await anext(messages))
        except HistoryTrimmed as trimmed:
            return found, trimmed


def owner(actors: list[FakeSessionActor], session: str) -> FakeSessionActor:
    return actors[partition_of(session, PARTITIONS)]


# ---------------------------------------------------------------------- trim


@in_loop
async def test_trim_answers_where_the_session_begins_and_never_takes_back_an_earlier_one() -> None:
    async with system({ROOM: 9}) as (client, _, _):
        assert [await client.trim(ROOM, before=k) for k in (1, 4, 4, 2, 10)] == [1, 4, 4, 4, 10]
        assert (await client.send(ROOM, b"10")).seq == 10, "seqs go on"
        assert await client.heads([ROOM]) == {ROOM: 10}
        assert await client.trim("an empty room", before=1) == 1


@in_loop
async def test_trim_refuses_what_makes_no_sense_and_changes_nothing() -> None:
    async with system({ROOM: 5}) as (client, actors, cluster):
        for before in (0, -1, 2**63, 1.5, "3", True):
            with pytest.raises(InvalidRange, match="before"):
                await client.trim(ROOM, before=before)  # type: ignore[arg-type]
        with pytest.raises(InvalidSession):
            await client.trim("", before=1)
        assert not owner(actors, ROOM).said(Say.TRIM)
        with pytest.raises(InvalidRange, match="1 to 6"):
            await client.trim(ROOM, before=7)
        assert cluster.trimmed == {}


@in_loop
async def test_trim_is_asked_again_until_it_is_answered_and_a_silent_system_may_have_done_it_g8() -> None:
    async with system({ROOM: 5}) as (client, actors, _):
        owner(actors, ROOM).refuse_requests = [(Code.UNAVAILABLE, "busy"), (Code.NOT_HERE, "elsewhere")]
        assert await client.trim(ROOM, before=3) == 3
    async with system({ROOM: 5}, limits=Limits(request_timeout_ms=50)) as (client, actors, _):
        owner(actors, ROOM).silent = True
        with pytest.raises(Unavailable, match="TRIM"):
            await client.trim(ROOM, before=4)


@in_loop
async def test_an_answer_that_says_less_than_was_asked_for_is_not_believed() -> None:
    async with system({ROOM: 5}) as (client, actors, _):
        answers: list[Any] = [1, None, [3]]
        request = FakeSessionActor._request

        def answer(connection: Any, say: int, items: list[Any]) -> Any:
            fine = request(owner(actors, ROOM), connection, say, items)
            return answers.pop() if say == Say.TRIM and answers else fine

        owner(actors, ROOM)._request = answer  # type: ignore[method-assign]
        assert await client.trim(ROOM, before=3) == 3
        assert answers == []


# ---------------------------------------------------------------------- history


@in_loop
async def test_history_below_the_first_message_raises_and_from_there_on_it_is_whole_g8() -> None:
    async with system({ROOM: 9}, {ROOM: 5}) as (client, _, _):
        for after in (0, 3):
            with pytest.raises(HistoryTrimmed, match="first message is 5 now; read on with after=4") as raised:
                await client.history(ROOM, after=after)
            assert (raised.value.session, raised.value.first_available) == (ROOM, 5)
        assert seqs(await client.history(ROOM, after=raised.value.first_available - 1)) == [5, 6, 7, 8, 9]
        assert seqs(await client.history(ROOM, after=6, limit=2)) == [7, 8]
        assert await client.history(ROOM, after=9) == []


@in_loop
async def test_the_newest_are_those_that_are_there() -> None:
    async with system({ROOM: 9, ELSEWHERE: 4}, {ROOM: 5, ELSEWHERE: 5}) as (client, actors, _):
        assert seqs(await client.history(ROOM, last=3)) == [7, 8, 9]
        assert seqs(await client.history(ROOM, last=5)) == [5, 6, 7, 8, 9]
        assert seqs(await client.history(ROOM, last=100)) == [5, 6, 7, 8, 9]
        owner(actors, ROOM).page_messages = 2
        assert seqs(await client.history(ROOM, last=100)) == [5, 6, 7, 8, 9], "in several pages"
        assert await client.history(ELSEWHERE, last=3) == []


@in_loop
async def test_what_goes_while_a_history_is_paged_raises_and_nothing_is_returned_g7() -> None:
    async with system({ROOM: 20}) as (client, actors, cluster):
        actor = owner(actors, ROOM)
        actor.page_messages = 4
        trim_when(actor, lambda after: after == 8, lambda: cluster.trimmed.update({ROOM: 15}))
        with pytest.raises(HistoryTrimmed) as raised:
            await client.history(ROOM)
        assert raised.value.first_available == 15
        assert seqs(await client.history(ROOM, after=14)) == [15, 16, 17, 18, 19, 20]
        trim_when(actor, lambda after: after == 18, lambda: cluster.trimmed.update({ROOM: 20}))
        assert seqs(await client.history(ROOM, last=6)) == [20], "of the newest, those that are left"


def trim_when(actor: FakeSessionActor, asked: Callable[[int], bool], trim: Callable[[], None]) -> None:
    """Trim just before that page is answered."""
    whole = actor._request

    def request(connection: Any, say: int, items: list[Any]) -> Any:
        if say == Say.HISTORY and asked(items[1]):
            trim()
        return whole(connection, say, items)

    actor._request = request  # type: ignore[method-assign]


@in_loop
async def test_a_trim_that_leaves_what_was_asked_for_is_no_answer() -> None:
    """G7: a page that says "trimmed" though its first message is there is asked again."""
    async with system({ROOM: 5}) as (client, actors, _):
        wrong: list[Any] = [[3, 5], [0, 5], [True, 5]]
        whole = owner(actors, ROOM)._request
        owner(actors, ROOM)._request = lambda *asked: (  # type: ignore[method-assign]
            wrong.pop() if asked[1] == Say.HISTORY and wrong else whole(*asked)
        )
        assert seqs(await client.history(ROOM, after=2)) == [3, 4, 5]
        assert wrong == []


# ---------------------------------------------------------------------- subscriptions


@in_loop
async def test_a_subscription_below_the_first_message_raises_and_one_from_there_on_gets_all_g7_g8() -> None:
    async with system({ROOM: 9}, {ROOM: 5}) as (client, _, _):
        messages = client.subscribe(ROOM)
        found, trimmed = await until_trimmed(messages)
        assert (found, trimmed.session, trimmed.first_available) == ([], ROOM, 5)
        async with client.subscribe(ROOM, after=trimmed.first_available - 1) as rest:
            assert seqs([await anext(rest) for _ in range(5)]) == [5, 6, 7, 8, 9]
            await client.trim(ROOM, before=10)
            await client.send(ROOM, b"10")
            assert (await anext(rest)).seq == 10, "who has everything misses nothing"


@in_loop
async def test_entering_a_block_never_raises_it_the_iteration_does() -> None:
    async with system({ROOM: 9}, {ROOM: 5}) as (client, actors, _), client.subscribe(ROOM) as messages:
        await until(lambda: not owner(actors, ROOM).subscriptions, "the end there")
        for _ in range(2):
            with pytest.raises(HistoryTrimmed):
                await anext(messages)


@in_loop
async def test_a_slow_reader_gets_what_had_come_and_then_hears_what_is_gone_g7() -> None:
    async with system({ROOM: 20_000}) as (client, _, cluster), client.subscribe(ROOM) as messages:
        first = await anext(messages)
        cluster.trimmed[ROOM] = 19_000
        found, trimmed = await until_trimmed(messages)
        assert seqs([first, *found]) == list(range(1, len(found) + 2))
        assert len(found) < 18_999
        assert trimmed.first_available == 19_000
        async with client.subscribe(ROOM, after=18_999) as rest:
            assert seqs([await anext(rest) for _ in range(1_001)]) == list(range(19_000, 20_001))


@in_loop
async def test_a_reader_whose_connection_was_lost_meanwhile_hears_what_is_gone_g7() -> None:
    async with system({ROOM: 3}) as (client, actors, cluster), client.subscribe(ROOM) as messages:
        assert seqs([await anext(messages) for _ in range(3)]) == [1, 2, 3]
        actor = owner(actors, ROOM)
        cluster.sessions[ROOM] += [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(4, 9)]
        cluster.trimmed[ROOM] = 6
        actor.hang_up()
        found, trimmed = await until_trimmed(messages)
        assert (found, trimmed.first_available) == ([], 6)


@in_loop
async def test_a_hole_in_what_was_delivered_that_cannot_be_filled_any_more_is_told_g7() -> None:
    async with system({ROOM: 9}) as (client, actors, cluster), client.subscribe(ROOM, after=9) as messages:
        await until(lambda: owner(actors, ROOM).subscriptions, "the subscription")
        actor = owner(actors, ROOM)
        [((number, _), (connection, _))] = actor.subscriptions.items()
        cluster.sessions[ROOM] += [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(10, 15)]
        runs = {run[4]: run for run in actor.runs(ROOM, 9, 5)}
        cluster.trimmed[ROOM] = 12
        for seq in (10, 13):
            connection.send([Say.DELIVER, [number], [runs[seq]]])
        found, trimmed = await until_trimmed(messages)
        assert (seqs(found), trimmed.first_available) == ([10], 12)


@in_loop
async def test_of_many_sessions_the_right_one_is_named_after_all_that_came_and_nothing_more_comes_g7() -> None:
    """G8: also when the others never stand still."""
    async with system({ROOM: 9, ELSEWHERE: 5}, {ROOM: 5}) as (client, actors, cluster):
        cursors = {ROOM: 9, ELSEWHERE: 0}
        async with client.subscribe(cursors) as messages:
            assert seqs([await anext(messages) for _ in range(5)]) == [1, 2, 3, 4, 5]
            cluster.sessions[ROOM] += [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(10, 13)]
            cluster.trimmed[ROOM] = 12
            owner(actors, ROOM).hang_up()
            talking = asyncio.create_task(talk(client))
            found, trimmed = await until_trimmed(messages)
            talking.cancel()
            assert {message.session for message in found} <= {ELSEWHERE}
            assert seqs(found) == list(range(6, 6 + len(found)))
            assert (trimmed.session, trimmed.first_available) == (ROOM, 12)
            await until(lambda: not any(actor.subscriptions for actor in actors), "the ends there")
        cursors = {ROOM: 11, ELSEWHERE: 5 + len(found)}
        async with client.subscribe(cursors) as messages:
            assert [message async for message in some_of(messages, ROOM, 1)] == [12]


async def talk(client: Client) -> None:
    """Never stop."""
    for n in range(6, 1_000_000):
        await client.send(ELSEWHERE, b"%d" % n)


async def some_of(messages: Subscription, session: str, count: int) -> AsyncIterator[int]:
    async for message in messages:
        if message.session == session:
            yield message.seq
            count -= 1
            if not count:
                return


@in_loop
async def test_an_end_of_unknown_shape_costs_the_connection_and_the_subscription_goes_on() -> None:
    async with system({ROOM: 2}) as (client, actors, _), client.subscribe(ROOM) as messages:
        assert seqs([await anext(messages) for _ in range(2)]) == [1, 2]
        actor = owner(actors, ROOM)
        for gone in ([], ["another room", 3], [ROOM, "3"], [ROOM], [[], 3]):
            [((number, _), (connection, _))] = actor.subscriptions.items()
            actor.subscriptions.clear()
            connection.send([Say.ENDED, number, Code.TRIMMED, "gone", *gone])
            await until(lambda: actor.subscriptions, "a new subscription")
        await client.send(ROOM, b"3")
        assert (await anext(messages)).seq == 3


@in_loop
async def test_whatever_keeps_a_hole_from_being_filled_for_good_reaches_the_reader() -> None:
    async with system({ROOM: 9}) as (client, actors, _), client.subscribe(ROOM, after=9) as messages:
        await until(lambda: owner(actors, ROOM).subscriptions, "the subscription")
        actor = owner(actors, ROOM)
        [((number, _), (connection, _))] = actor.subscriptions.items()
        actor.refuse_requests = [(Code.CORRUPT, "a page is damaged")]
        connection.send([Say.DELIVER, [number], [[1, ROOM, f"ann/{'0' * 32}", 11, 11, 7, [5], [b"11"]]]])
        with pytest.raises(Corrupt, match="a page is damaged"):
            await anext(messages)


# ---------------------------------------------------------------------- cursors


@in_loop
async def test_a_cursor_that_lies_below_is_told_and_moved_by_confirming_what_is_gone(tmp_path: Path) -> None:
    """G7, G8: the reader says itself that it knows of the hole; only then it is passed."""
    async with system({ROOM: 9}, outbox=tmp_path / "bob.db") as (client, _, _):
        async with client.subscribe(ROOM, cursor="ui") as messages:
            for _ in range(2):
                await messages.confirm(await anext(messages))
        await client.trim(ROOM, before=7)
        for _ in range(2):
            messages = client.subscribe(ROOM, cursor="ui")
            found, trimmed = await until_trimmed(messages)
            assert (found, trimmed.first_available) == ([], 7), "as long as nothing was confirmed"
        await messages.confirm(trimmed)
        async with client.subscribe(ROOM, cursor="ui") as messages:
            assert seqs([await anext(messages) for _ in range(3)]) == [7, 8, 9]


@in_loop
async def test_sync_hands_on_all_that_is_there_names_all_sessions_with_a_hole_and_is_called_once_more_g7_g8() -> None:
    """Seen: it ended at the first of them, so that thousands took thousands of calls, each of which followed all the others."""
    rooms = {f"room-{k}": 6 for k in range(40)}
    gone = {f"room-{k}": 3 + k % 5 for k in range(0, 40, 2)}
    async with system(rooms, gone) as (client, actors, _):
        at = dict.fromkeys(rooms, 0) | {"room-11": 6}

        async def sync() -> None:
            async for message in client.sync(at):
                assert message.seq == at[message.session] + 1
                at[message.session] = message.seq

        with pytest.raises(HistoryTrimmed) as trimmed:
            await sync()
        assert trimmed.value.gone == gone
        assert (trimmed.value.session, trimmed.value.first_available) in gone.items()
        assert at == {room: 0 if room in gone else 6 for room in rooms}
        assert sum(len(actor.said(Say.SUBSCRIBE)) for actor in actors) <= PARTITIONS
        at |= {session: first_available - 1 for session, first_available in gone.items()}
        await sync()
        assert at == rooms


@in_loop
async def test_sync_goes_on_page_by_page_in_long_sessions_behind_one_with_a_hole_g7() -> None:
    rooms = {ROOM: 9} | {f"room-{k}": 500 for k in range(40)}
    async with system(rooms, {ROOM: 4}) as (client, actors, cluster):
        at = dict.fromkeys(rooms, 0)
        for actor in actors:
            actor.page_messages = 64

        async def sync() -> None:
            async for message in client.sync(at):
                assert message.seq == at[message.session] + 1
                at[message.session] = message.seq
                if (message.session, message.seq) == ("room-7", 300):
                    cluster.trimmed["room-8"] = 490

        with pytest.raises(HistoryTrimmed) as trimmed:
            await sync()
        assert sum(len(actor.said(Say.HISTORY)) for actor in actors) > 100
        assert trimmed.value.gone == {ROOM: 4, "room-8": 490}
        assert {room: seq for room, seq in at.items() if room not in trimmed.value.gone} == {
            room: 500 for room in rooms if room not in trimmed.value.gone
        }


# ---------------------------------------------------------------------- plain code


def test_plain_code_trims_and_hears_of_it_in_the_same_way(tmp_path: Path) -> None:
    def work(address: str) -> None:
        with SyncClient("bob", address=address, token=TOKEN, outbox=tmp_path / "bob.db") as client:
            assert client.trim(ROOM, before=5) == 5
            with pytest.raises(HistoryTrimmed, match="after=4"):
                client.history(ROOM)
            with client.subscribe(ROOM, cursor="ui") as messages:
                with pytest.raises(HistoryTrimmed) as raised:
                    next(messages)
                messages.confirm(raised.value)
            with client.subscribe(ROOM, cursor="ui") as messages:
                assert next(messages).seq == 5
            missed = client.sync({NEAR: 0, ROOM: 0})
            found = [next(missed) for _ in range(3)]
            with pytest.raises(HistoryTrimmed) as raised:
                next(missed)
            assert (raised.value.session, seqs(found)) == (ROOM, [1, 2, 3]), "what came before was handed on"

    @in_loop
    async def in_thread() -> None:
        async with system({ROOM: 9, NEAR: 3}) as (_, actors, _):
            await asyncio.to_thread(work, ",".join(actor.server.address for actor in actors))

    in_thread()
