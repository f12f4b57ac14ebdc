"""A store's disk is full (design §5): the spare store takes its place; it serves reads, and is a spare when there is room."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local_system.campaign import ACTOR_BOUND_S, SPARE_BOUND_S, Campaign
from local_system.system import LocalSystem
from local_system.waiting import eventually
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.streams import connection_to

pytestmark = pytest.mark.long

MIB = 1 << 20
DISK_BYTES = 300 * MIB
JOURNAL_FILE_BYTES = 64 * MIB
SPARE_BYTES = 20 * MIB  # beyond the first journal file, and not enough for the second one
FULL = "store-2"


@pytest.fixture
def small_disk() -> Iterator[LocalSystem]:
    """A system, not started yet, one of whose stores has a small file system of its own, nearly full of `ballast`."""
    system = LocalSystem(1, up_options=("--allow-tmpfs",))
    directory = system.data / FULL
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        system.end()
        pytest.skip("NOT TESTED: a full disk. It takes root, and the right to mount a small tmpfs")
    with (directory / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, DISK_BYTES - JOURNAL_FILE_BYTES - SPARE_BYTES)
    yield system
    system.end()


@pytest.fixture
def campaign(small_disk: LocalSystem, new_campaign: Callable[[LocalSystem, int], Campaign]) -> Iterator[Campaign]:
    """One partition, whose second store has a small disk, and a sender of big messages."""
    system = small_disk
    with system, new_campaign(system, 4) as campaign:
        everything: dict[str, int | None] = dict.fromkeys(campaign.sessions, 0)
        big = {"body_bytes": 200_000, "waiting_max": 40, "gap_ms": 30.0}
        campaign.start_program("memory", senders=["erin"], outbox=True, reads=everything, body_bytes=1000)
        campaign.start_program("alice", senders=["alice", "bob"], outbox=True, **big)
        for program in campaign.programs.values():
            program.wait_until_started()
        campaign.pour()
        yield campaign


def test_a_store_with_a_full_disk_is_replaced_serves_reads_and_comes_back_when_there_is_room_g1_g2_g5_g8_g11(
    campaign: Campaign,
) -> None:
    system = campaign.system

    def store() -> dict[str, Any]:
        return dict(system.status().get("actors", {}).get(FULL, {"state": ""}))

    def is_full() -> bool:
        return str(store()["state"]).startswith("full")

    assert FULL in campaign.owner(0)["members"]
    eventually(is_full, 60.0, f"the disk of {FULL} is full")
    began = campaign.note_fault("a disk is full", SPARE_BOUND_S)
    campaign.probe(began, "a full disk", SPARE_BOUND_S)
    assert not system.is_well(), "status shows it"
    members = campaign.owner(0)["members"]
    assert FULL not in members
    assert len(members) == system.copies
    upto = store()["partitions"][0]["committed_upto"]
    assert upto > 0
    other = system.status()["actors"][members[0]]["address"]
    assert _newest_frames(system, store()["address"], upto) == _newest_frames(system, other, upto), "it serves reads"

    pid = system.pid_of(FULL)
    system.signal(pid, signal.SIGKILL)
    system.until_replaced(FULL, pid, ACTOR_BOUND_S)
    campaign.until_acked(10)
    eventually(lambda: is_full() or store()["state"] == "open", ACTOR_BOUND_S, "a full disk keeps no store from being opened")

    (system.data / FULL / "ballast").unlink()
    eventually(system.is_well, ACTOR_BOUND_S, "all is well when there is space again")
    eventually(lambda: FULL in campaign.owner(0)["spares"], ACTOR_BOUND_S, f"{FULL} is a spare")
    campaign.kill_actor(campaign.random.choice(campaign.owner(0)["members"]))
    assert FULL in campaign.owner(0)["members"], "it is the only spare that there was"
    campaign.rest()
    campaign.judged()
    assert system.verify()["ok"]


def _newest_frames(system: LocalSystem, address: str, upto: int) -> list[bytes]:
    async def read() -> list[bytes]:
        async with connection_to(address, system.token) as connection:
            return list(await connection.request(Say.FRAMES, 0, max(1, upto - 3), upto))

    return asyncio.run(read())
