"""Messages that are let go, by hand and by age, through real processes: nobody reads them, no number changes (G3, G5, G8)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from local_system.bare import NEW, TOKEN, BareSystem
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import connect
from trilogue.client import Ack, Client, HistoryTrimmed, InvalidRange

LOOKS_OFTEN = Limits(retention_look_ms=200)
MESSAGES = 300
PATIENCE_S = 60


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareSystem]:
    """Three stores, a SessionActor that serves the partition and keeps everything, and a spare."""
    with BareSystem(tmp_path_factory.mktemp("system"), stores=3, sessions=2, limits=LOOKS_OFTEN) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        system.until("session-0", state="open")
        yield system


def body_of(seq: int) -> bytes:
    return b"message %d" % seq


async def write(client: Client, session: str, count: int = MESSAGES) -> list[Ack]:
    """So many messages in a new session; all are acked."""
    acks = await asyncio.gather(*[client.post(session, body_of(seq)) for seq in range(1, count + 1)])
    assert [ack.seq for ack in acks] == list(range(1, count + 1))
    return acks


async def retried(system: BareSystem, owner: str, ack: Ack) -> tuple[int, bool]:
    """What is answered to a sender that hands that very message over again: (seq, duplicate)."""
    opened = asyncio.Event()
    answer: asyncio.Future[tuple[int, bool]] = asyncio.get_running_loop().create_future()

    def heard(_: Any, message: list[Any]) -> None:
        if message[0] == Say.OPEN:
            opened.set()
        elif message[0] == Say.ACKED:
            [[session, sender_id, n, count, seq, duplicate]] = message[3]
            assert (session, sender_id, n, count) == (ack.session, ack.sender_id, ack.n, 1)
            answer.set_result((seq, duplicate))

    connection = await connect(system._addresses[owner], TOKEN, on_message=heard, on_closed=lambda *_: None)
    await opened.wait()
    connection.send([Say.SUBMIT, [[ack.session, ack.sender_id, ack.n, [0], [body_of(ack.seq)]]]])
    try:
        return await answer
    finally:
        connection.close()


async def seqs(client: Client, session: str, after: int) -> list[int]:
    page = await client.history(session, after=after, limit=MESSAGES)
    assert [message.body for message in page] == [body_of(message.seq) for message in page]
    return [message.seq for message in page]


def test_what_was_trimmed_is_gone_for_all_readers_and_no_number_changes_G3_G5_G7_G8(system: BareSystem) -> None:
    async def work() -> None:
        async with asyncio.timeout(PATIENCE_S), system.client("alice") as client:
            acks = await write(client, "room")
            with pytest.raises(InvalidRange, match=rf"1 to {MESSAGES + 1}"):
                await client.trim("room", before=MESSAGES + 2)
            assert await client.trim("room", before=101) == 101
            assert await client.trim("room", before=50) == 101
            with pytest.raises(HistoryTrimmed) as trimmed:
                await client.history("room")
            assert (trimmed.value.session, trimmed.value.first_available) == ("room", 101)
            assert await seqs(client, "room", 100) == list(range(101, MESSAGES + 1))
            assert [message.seq for message in await client.history("room", last=MESSAGES)] == list(range(101, MESSAGES + 1))
            with pytest.raises(HistoryTrimmed) as trimmed:
                await anext(client.subscribe("room"))
            assert trimmed.value.first_available == 101
            async with client.subscribe("room", after=100) as messages:
                found = [(await anext(messages)).seq for _ in range(101, MESSAGES + 1)]
                assert found == list(range(101, MESSAGES + 1))
                assert await client.trim("room", before=MESSAGES + 1) == MESSAGES + 1
                assert (await client.send("room", body_of(MESSAGES + 1))).seq == MESSAGES + 1
                assert (await anext(messages)).seq == MESSAGES + 1, "who has everything misses nothing"
            for ack in (acks[0], acks[99], acks[-1]):
                assert await retried(system, "session-0", ack) == (ack.seq, True)
            assert await seqs(client, "room", MESSAGES) == [MESSAGES + 1]

    asyncio.run(work())


def test_a_takeover_changes_nothing_of_it_and_what_is_too_old_goes_by_itself_G5_G8(system: BareSystem) -> None:
    """The next writer is told to keep a second: it lets all of that go, and answers retries of it all the same."""

    async def before() -> list[Ack]:
        async with asyncio.timeout(PATIENCE_S), system.client("bob") as client:
            acks = await write(client, "hall")
            assert await client.trim("hall", before=11) == 11
            return acks

    async def after(acks: list[Ack]) -> None:
        async with asyncio.timeout(PATIENCE_S), system.client("carol") as client:
            while True:
                with pytest.raises(HistoryTrimmed) as trimmed:
                    await client.history("hall")
                if trimmed.value.first_available > MESSAGES:
                    break
                await asyncio.sleep(0.05)
            assert trimmed.value.first_available == MESSAGES + 1
            assert await client.heads(["hall"]) == {"hall": MESSAGES}
            for ack in (acks[5], acks[-1]):
                assert await retried(system, "session-1", ack) == (ack.seq, True)
            assert (await client.send("hall", b"and on")).seq == MESSAGES + 1

    acks = asyncio.run(before())
    system.kill("session-0", "session-1")
    system.record = NEW._replace(keep_s=1)
    system.start("session-1")
    system.take("session-1", epoch=int(acks[0].epoch))
    system.until("session-1", state="open")
    asyncio.run(after(acks))
    assert system.until("session-1", floor=lambda floor: floor > 0)["floor"] > 0
