"""Idempotency keys through real processes: across a takeover, a restart of everything, and a store's catalogue (G2, G4, G5)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_system.bare import TOKEN, BareSystem
from trilogue.actors.protocol.frames import decode_frame, payload_of
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import ALIAS, KEYED, unpack_items
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import connect
from trilogue.client import Ack, ConflictingKey
from trilogue.cluster.commands.judge import Findings, PartitionJudge

FEW = Limits(session_keys_hot_max=256, keys_hot_max=256, index_recent_bytes_max=64 * 1024, index_resting_bytes_max=64 * 1024)
REQUESTS = [(f"order-{k % 3}", f"request-{k}", b"pay %d" % k) for k in range(900)]
PATIENCE_S = 60


@pytest.fixture
def system(tmp_path: Path) -> Iterator[BareSystem]:
    """Three stores, a SessionActor that serves the partition, and a spare. Few keys fit into memory."""
    with BareSystem(tmp_path, stores=3, sessions=2, limits=FEW) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        system.until("session-0", state="open")
        yield system


async def request_all(system: BareSystem, sender: str) -> list[Ack]:
    """Hand all requests over, and something without a key behind each session's."""
    async with asyncio.timeout(PATIENCE_S), system.client(sender) as client:
        futures = [client.post(session, body, key=key) for session, key, body in REQUESTS]
        plain = [client.post(f"order-{k}", b"thanks") for k in range(3)]
        acks = await asyncio.gather(*futures)
        assert not any(ack.duplicate for ack in await asyncio.gather(*plain))
        with pytest.raises(ConflictingKey):
            await client.send(REQUESTS[7][0], b"another body", key=REQUESTS[7][1])
        return acks


async def frames_of(system: BareSystem, store: str) -> list[bytes]:
    connection = await connect(system._addresses[store], TOKEN, on_message=lambda *_: None, on_closed=lambda *_: None)
    frames: list[bytes] = []
    while more := await connection.request(Say.FRAMES, 0, len(frames) + 1, 1 << 30):
        frames += more
    connection.close()
    return frames


def test_request_that_comes_again_after_a_takeover_or_a_restart_of_everything_is_stored_once_g2_g4_g5(
    system: BareSystem,
) -> None:
    first = asyncio.run(request_all(system, "alice"))
    assert not any(ack.duplicate for ack in first)
    again = asyncio.run(request_all(system, "bob"))

    system.kill("session-0")
    system.take("session-1", epoch=1)
    system.until("session-1", state="open")
    after_takeover = asyncio.run(request_all(system, "carol"))

    system.kill(*system.stores, "session-1")
    system.start(*system.stores, *system.sessions)
    system.take("session-0", epoch=int(after_takeover[0].epoch))
    system.until("session-0", state="open")
    after_restart = asyncio.run(request_all(system, "dave"))

    for acks in (again, after_takeover, after_restart):
        assert all(ack.duplicate for ack in acks)
        assert [(ack.session, ack.seq) for ack in acks] == [(ack.session, ack.seq) for ack in first]
    assert after_takeover[0].epoch < after_restart[0].epoch

    findings = Findings()
    frames = asyncio.run(frames_of(system, "store-1"))
    judge = PartitionJudge(0, 1, {"store-1": 1}, None, FEW.frame_bytes_max, findings)
    judge.take("store-1", frames)
    judge.finish(len(frames))
    assert findings.problems == []
    assert findings.aliases == 3 * len(REQUESTS)
    kinds = [item[0] for frame in frames for item in unpack_items(payload_of(frame, decode_frame(frame, FEW.frame_bytes_max)))]
    assert kinds.count(ALIAS) == 3 * len(REQUESTS)
    assert 0 < kinds.count(KEYED) <= len(REQUESTS)
