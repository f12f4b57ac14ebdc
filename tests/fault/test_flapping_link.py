"""A client whose network is up for 2 s and down for 5 s, again and again, under steady sending: all in order, once, and no
hammering (G4, G5, G10). The short one runs in `make test`; the long one takes five minutes.

Real processes, without Ray; the proxy stands between the client and everything else, and counts the connections that are begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from local_system.bare import TOKEN, BareSystem
from local_system.proxy import BadNetwork
from trilogue.client import Client, ClientState
from trilogue.client.connecting.backoff import attempts_max

SESSIONS = [f"room-{k}" for k in range(5)]
EVERY_S = 0.01
PARTITIONS = 1


class Report:
    """What one run came to."""

    def __init__(self) -> None:
        self.sent: dict[str, list[bytes]] = {session: [] for session in SESSIONS}
        self.standings: list[str] = []
        self.begun = 0
        self.flaps = 0

    def __str__(self) -> str:
        sent = sum(map(len, self.sent.values()))
        return f"{sent} messages, {self.flaps} flaps, {self.begun} connections begun, states {self.standings[:6]}"


async def flap(system: BareSystem, outbox: Path, flaps: int, up_s: float, down_s: float) -> Report:
    """Send steadily while the network comes and goes; then read everything back and compare."""
    report = Report()
    with BadNetwork(1) as network:
        fronts = [network.front_of(address) for address in system.addresses]
        async with Client(sender="ann", outbox=outbox, address=",".join(fronts), token=TOKEN, close_timeout_s=60.0) as client:
            tasks = [asyncio.create_task(steadily(client, report)), asyncio.create_task(watch(client, report))]
            await asyncio.sleep(up_s)
            for _ in range(flaps):
                network.down = True
                await asyncio.to_thread(network.cut)
                await asyncio.sleep(down_s)
                network.down = False
                report.flaps += 1
                await asyncio.sleep(up_s)
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
            async with asyncio.timeout(60.0):
                await client.flush()
            assert client.state.standing == "online"
            for session, bodies in report.sent.items():
                found: list[bytes] = []
                while page := await client.history(session, after=len(found), limit=1000):
                    found += [message.body for message in page]
                assert found == bodies, f"{session}: lost, twice, or out of order"
        report.begun = network.begun
    return report


async def steadily(client: Client, report: Report) -> None:
    """One message each 10 ms, to one session after the other."""
    count = 0
    while True:
        session = SESSIONS[count % len(SESSIONS)]
        body = b"%d" % count
        client.post(session, body)
        report.sent[session].append(body)
        count += 1
        await asyncio.sleep(EVERY_S)


async def watch(client: Client, report: Report) -> None:
    """What an application would show."""
    last: ClientState | None = None
    async for state in client.states():
        if last is None or state.standing != last.standing:
            report.standings.append(state.standing)
        last = state


def judge(report: Report, addresses: int, down_s: float) -> None:
    """While it was down: the ladder's bound. While it was up: one for each connection that was made."""
    bound = (report.flaps + 1) * (attempts_max(down_s) + PARTITIONS + addresses)
    print(f"{report}; at most {bound}")
    assert report.flaps < report.begun <= bound
    assert {"online", "connecting"} <= set(report.standings)


@pytest.fixture
def system(tmp_path: Path) -> BareSystem:
    """Three stores and a SessionActor."""
    return BareSystem(tmp_path, stores=3)


def started(system: BareSystem) -> BareSystem:
    system.start(*system.stores, *system.sessions)
    system.take(system.sessions[0])
    system.until(system.sessions[0], state="open")
    return system


@pytest.mark.timeout(120)
def test_a_link_that_flaps_under_steady_sending_loses_doubles_and_reorders_nothing_g4_g5(
    system: BareSystem, tmp_path: Path
) -> None:
    with started(system):
        report = asyncio.run(flap(system, tmp_path / "ann.db", flaps=2, up_s=0.7, down_s=2.5))
        judge(report, len(system.addresses), 2.5)
        assert "offline" in report.standings


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_link_that_is_up_2_s_and_down_5_s_for_5_minutes_loses_doubles_and_reorders_nothing_g4_g5(
    system: BareSystem, tmp_path: Path
) -> None:
    with started(system):
        report = asyncio.run(flap(system, tmp_path / "ann.db", flaps=43, up_s=2.0, down_s=5.0))
        judge(report, len(system.addresses), 5.0)
        assert sum(map(len, report.sent.values())) > 10_000
