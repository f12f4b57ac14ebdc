"""Many more sessions than a SessionActor keeps in memory, through real processes: they come and go, and nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_system.bare import TOKEN, BareSystem
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import connect
from trilogue.client import Ack, Client, Message

FEW = Limits(
    sessions_hot_max=64, senders_hot_max=96, session_senders_hot_max=2, states_names_max=50, subscribe_sessions_max=64,
    loads_at_once_max=1,
)  # fmt: skip
SESSIONS = [f"room-{k}" for k in range(300)]
ROUNDS = 3
SENDERS = ("alice", "bob", "carol")
PATIENCE_S = 60


@pytest.fixture
def system(tmp_path: Path) -> Iterator[BareSystem]:
    """Three stores, and a SessionActor that serves the partition; another one is a spare."""
    with BareSystem(tmp_path, stores=3, sessions=2, limits=FEW) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        system.until("session-0", state="open")
        yield system


async def write(system: BareSystem) -> dict[str, list[Ack]]:
    """Every sender says something in every session, again and again; the acks of each session."""
    acks: dict[str, list[Ack]] = {session: [] for session in SESSIONS}
    async with asyncio.timeout(PATIENCE_S):
        clients = [system.client(name) for name in SENDERS]
        for client in clients:
            await client.__aenter__()
        for number in range(ROUNDS):
            for client in clients:
                futures = [client.post(session, b"%d of %s" % (number, session.encode())) for session in SESSIONS]
                for future in futures:
                    ack = await future
                    acks[ack.session].append(ack)
        for client in clients:
            await client.close()
    return acks


async def retried(
    system: BareSystem, owner: str, acks: list[Ack], bodies: list[bytes]
) -> dict[tuple[str, str, int], tuple[int, bool]]:
    """What is answered to retries of messages that were acked long ago: (seq, duplicate) of each."""
    found: dict[tuple[str, str, int], tuple[int, bool]] = {}
    opened, done = asyncio.Event(), asyncio.Event()

    def heard(_: Any, message: list[Any]) -> None:
        if message[0] == Say.OPEN:
            opened.set()
        elif message[0] == Say.ACKED:
            for session, sender_id, first_n, _, first_seq, duplicate in message[3]:
                found[session, sender_id, first_n] = (first_seq, duplicate)
            if len(found) == len(acks):
                done.set()

    async with asyncio.timeout(PATIENCE_S):
        connection = await connect(system._addresses[owner], TOKEN, on_message=heard, on_closed=lambda *_: None)
        await opened.wait()
        runs = [[ack.session, ack.sender_id, ack.n, [0], [body]] for ack, body in zip(acks, bodies, strict=True)]
        connection.send([Say.SUBMIT, runs])
        await done.wait()
        connection.close()
    return found


async def read(client: Client, sessions: list[str]) -> dict[str, list[Message]]:
    """Everything in these sessions, by one subscription."""
    found: dict[str, list[Message]] = {session: [] for session in sessions}
    async with client.subscribe(dict.fromkeys(sessions, 0)) as messages:
        async for message in messages:
            found[message.session].append(message)
            if all(len(one) == ROUNDS * len(SENDERS) for one in found.values()):
                return found
    raise AssertionError("a subscription does not end by itself")


def test_sessions_that_do_not_fit_into_memory_keep_their_order_and_their_retries_G3_G4_G5_G7(system: BareSystem) -> None:
    acks = asyncio.run(write(system))
    each = ROUNDS * len(SENDERS)
    for session in SESSIONS:
        assert [ack.seq for ack in acks[session]] == list(range(1, each + 1))
    assert system.until("session-0", hot_sessions=lambda n: n <= 64)["hot_sessions"] > 0
    old = [acks[session][4] for session in SESSIONS[::3]]
    bodies = [b"%d of %s" % (1, ack.session.encode()) for ack in old]
    expected = {(ack.session, ack.sender_id, ack.n): (ack.seq, True) for ack in old}
    assert asyncio.run(retried(system, "session-0", old, bodies)) == expected
    system.kill("session-0")
    system.take("session-1", epoch=1)
    assert system.until("session-1", state="open")["hot_sessions"] == 0, "a writer opens without reading the sessions"
    assert asyncio.run(retried(system, "session-1", old, bodies)) == expected

    async def look() -> None:
        async with asyncio.timeout(PATIENCE_S), system.client("dora") as client:
            assert await client.heads([*SESSIONS, "nobody"]) == {**dict.fromkeys(SESSIONS, each), "nobody": 0}
            for session in SESSIONS[::50]:
                page = await client.history(session, after=2, limit=3)
                assert [message.seq for message in page] == [3, 4, 5]
                newest = await client.history(session, last=2)
                assert [message.seq for message in newest] == [each - 1, each]
            ours = SESSIONS[100:160]
            for session, messages in (await read(client, ours)).items():
                assert [(one.seq, one.n, one.sender_id) for one in messages] == [
                    (ack.seq, ack.n, ack.sender_id) for ack in acks[session]
                ]
            assert (await client.send(SESSIONS[7], b"back again")).seq == each + 1

    asyncio.run(look())


def test_store_that_says_nothing_holds_up_nobody_who_comes_to_a_cold_session_G11(tmp_path: Path) -> None:
    """Its writer, too, would else have waited for its answer until `request_timeout_ms`, and whoever has a key with it."""
    waits_s = DEFAULT_LIMITS.request_timeout_ms / 1000 / 2
    with BareSystem(tmp_path, stores=4, sessions=2) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        system.until("session-0", state="open")

        async def write() -> None:
            async with system.client("alice") as client:
                for session in SESSIONS[:3]:
                    await client.send(session, b"of an earlier writer")

        asyncio.run(write())
        system.kill("session-0")
        system.take("session-1", epoch=1)
        asked_first = system.until("session-1", state="open")["members"][0]

        async def come() -> list[Any]:
            async with system.client("bob") as client:
                await client.heads(["another room"])
                system.pause(asked_first)
                async with asyncio.timeout(waits_s):
                    return await asyncio.gather(
                        client.send(SESSIONS[0], b"now"),
                        client.history(SESSIONS[1], after=0),
                        client.heads([SESSIONS[2]]),
                    )

        ack, page, heads = asyncio.run(come())
        assert (ack.seq, [message.seq for message in page], heads) == (2, [1], {SESSIONS[2]: 1})
        assert asked_first not in system.until("session-1", state="open")["members"]
