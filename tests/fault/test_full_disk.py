"""A store's disk is full (design §5): clients wait and keep their messages, `status` says why, reads are served.

As soon as there is space again, it goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from local_system.campaign import ACTOR_BOUND_S, Campaign
from local_system.system import LocalSystem
from local_system.waiting import eventually

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


def test_with_a_full_disk_clients_wait_reads_go_on_and_all_goes_on_when_there_is_space_g1_g2_g5_g8_g11(
    campaign: Campaign,
) -> None:
    system = campaign.system

    def store_state() -> str:
        return next((str(s["state"]) for s in system.status().get("stores", []) if s["name"] == FULL), "")

    eventually(lambda: store_state().startswith("full"), 60.0, f"the disk of {FULL} is full")
    assert not system.is_well()
    eventually(lambda: campaign.waiting() > 30, ACTOR_BOUND_S, "clients keep what they cannot send")
    eventually(lambda: FULL in str(campaign.troubles()), ACTOR_BOUND_S, "clients say why")
    eventually(lambda: FULL in system.status()["partitions"][0]["state"], ACTOR_BOUND_S, "status says why")
    acked = campaign.acked()
    heads = campaign.programs["memory"].ask("read back")["heads"]
    assert sum(heads.values()) >= acked > 0, "reads are served, up to what was acked"

    pid = system.pid_of(FULL)
    system.signal(pid, signal.SIGKILL)
    system.until_replaced(FULL, pid, ACTOR_BOUND_S)
    eventually(lambda: store_state().startswith("full"), ACTOR_BOUND_S, "it is full again")
    assert campaign.acked() == acked, "nothing is acked on two copies"

    (system.data / FULL / "ballast").unlink()
    began = campaign.note_fault("there is space again", ACTOR_BOUND_S)
    campaign.probe(began, "a full disk that has space again", ACTOR_BOUND_S)
    eventually(system.is_well, ACTOR_BOUND_S, "all is well again")
    campaign.rest()
    campaign.judged()
    assert system.verify()["ok"]
