"""`kill -9` of each kind of actor: what was acked is there, once, in order, and the system goes on (G2, G3, G5, G9, G11)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.ids import partition_of
from trilogue.client import Client
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.verify import verify
from trilogue.cluster.settings.runfile import find_run_file

from .conftest import COPIES, PARTITIONS, back, eventually, owner_of, pid_of, run, well

FAILOVER_S = 3.0  # Ray takes that long to restart a killed actor here; the bound that is stated is measured by `trilogue bench`


class NoBars:
    """Progress that nobody looks at."""

    def advance(self, part: str, done: int, total: int) -> None:
        """Nothing is shown."""


async def _send_through_a_kill(session: str, kill_it: Callable[[], int]) -> tuple[int, list[int], list[bytes]]:
    """Send before, during and after a kill; return the killed process, the acked seqs and what is read back."""
    async with Client(sender="alice") as client:
        before = [client.post(session, b"%d" % k) for k in range(50)]
        await asyncio.gather(*before)
        under_way = [client.post(session, b"%d" % k) for k in range(50, 100)]
        pid = await asyncio.to_thread(kill_it)
        after = [client.post(session, b"%d" % k) for k in range(100, 150)]
        acks = await asyncio.gather(*before, *under_way, *after)
        page = await client.history(session, after=0, limit=1000)
        return pid, [ack.seq for ack in acks], [message.body for message in page]


async def _send(session: str, numbers: Iterable[int]) -> list[bytes]:
    """Send these numbers; all that is in the session then."""
    async with Client(sender="alice") as client:
        acks = await asyncio.gather(*(client.post(session, b"%d" % k) for k in numbers))
        assert {ack.copies for ack in acks} == {COPIES}
        return [message.body for message in await client.history(session, limit=1000)]


def _about(system: Any, partition: int = 0) -> dict[str, Any]:
    """What the status says of the partition."""
    about: dict[str, Any] = system.status()["partitions"][partition]
    return about


def _whole(system: Any) -> bool:
    """Whether every partition is one range again, each member of which holds it from its first frame to the last committed."""
    status = system.status()
    for number, about in enumerate(status["partitions"]):
        owner = status["actors"].get(about["actor"], {})
        held = [status["actors"].get(name, {}).get("partitions", {}).get(number) for name in about["stores"]]
        if len(held) < COPIES or len(owner.get("ranges", ())) != 1:
            return False
        if not all(one and one["base"] == 1 and one["last_index"] >= about["committed"] for one in held):
            return False
    return True


def _session_of(about: str, partition: int = 0) -> str:
    """A session of the partition."""
    candidates = (f"killed-{about}-{k}" for k in range(1000))
    return next(session for session in candidates if partition_of(session, PARTITIONS) == partition)


@pytest.mark.parametrize("name", ["store-1", "store-2", "store-4", "supervisor"])
def test_a_killed_actor_loses_doubles_and_reorders_nothing_and_comes_back(
    system: Any, kill: Callable[[str], int], name: str
) -> None:
    pid, seqs, bodies = run(_send_through_a_kill(_session_of(name), lambda: kill(name)))
    assert seqs == list(range(1, 151))
    assert bodies == [b"%d" % k for k in range(150)]
    eventually(back(system, name, pid), f"{name} is back")


@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_the_spare_goes_on_where_a_killed_owner_stopped_and_the_killed_one_is_the_next_spare(
    system: Any, kill: Callable[[str], int], partition: int
) -> None:
    """G2, G3, G4, G5, G11."""
    owner, (spare,) = owner_of(system, partition), system.status()["spare_sessions"]
    epoch = system.status()["partitions"][partition]["epoch"]
    pid, seqs, bodies = run(_send_through_a_kill(_session_of("owner", partition), lambda: kill(owner)))
    assert seqs == list(range(1, 151))
    assert bodies == [b"%d" % k for k in range(150)]
    eventually(back(system, owner, pid), f"{owner} is back")
    status = system.status()
    assert status["partitions"][partition]["actor"] == spare
    assert status["partitions"][partition]["epoch"] > epoch
    assert status["partitions"][partition]["failovers"] > 0
    assert status["spare_sessions"] == [owner]


def test_a_killed_owner_is_replaced_before_ray_could_restart_it(system: Any, kill: Callable[[str], int]) -> None:
    """G11: within the stated bound."""

    async def send_after_the_kill() -> float:
        async with Client(sender="alice") as client:
            session = _session_of("quick")
            await client.send(session, b"before")
            await asyncio.to_thread(kill, owner_of(system, 0))
            killed_at = time.monotonic()
            await client.send(session, b"after")
            return time.monotonic() - killed_at

    assert run(send_after_the_kill()) < FAILOVER_S
    eventually(lambda: well(system), "the killed one is the next spare")


def test_a_stopped_owner_is_replaced_and_what_it_does_when_it_goes_on_counts_for_nothing(system: Any) -> None:
    """G9, G11: a paused process does not know that it was paused."""
    owner = owner_of(system, 0)
    pid = pid_of(system, owner)

    async def send_while_it_is_stopped() -> list[int]:
        async with Client(sender="alice") as client:
            session = _session_of("stopped")
            before = await client.send(session, b"before")
            os.kill(pid, signal.SIGSTOP)
            try:
                during = await client.send(session, b"during")
            finally:
                os.kill(pid, signal.SIGCONT)
            after = await client.send(session, b"after")
            return [before.seq, during.seq, after.seq]

    assert run(send_while_it_is_stopped()) == [1, 2, 3]
    assert owner_of(system, 0) != owner
    eventually(back(system, owner, pid), f"{owner} has ended, and is a spare in a new process")


def test_a_killed_member_is_replaced_by_the_spare_store_which_gets_all_older_frames_too(
    system: Any, kill: Callable[[str], int]
) -> None:
    """G1, G2, G11: the killed one is the next spare."""
    about = well(system)["partitions"][0]
    (spare,), victim = about["spares"], about["stores"][0]
    pid, seqs, _ = run(_send_through_a_kill(_session_of("member"), lambda: kill(victim)))
    assert seqs == list(range(1, 151))
    members = sorted([*about["stores"][1:], spare])
    eventually(lambda: _whole(system) and sorted(_about(system)["stores"]) == members, f"{spare} holds all that {victim} held")
    eventually(back(system, victim, pid), f"{victim} is back")
    assert _about(system)["spares"] == [victim]


def test_a_store_whose_directory_is_deleted_comes_back_as_a_new_one_and_is_filled_when_it_is_needed(
    system: Any, kill: Callable[[str], int]
) -> None:
    """G2, G11: three whole copies again, and once more when the new one takes another's place."""
    about = well(system)["partitions"][0]
    victim = about["stores"][0]
    session = _session_of("deleted")
    run(_send(session, range(20)))
    before = system.status()["actors"][victim]
    shutil.rmtree(before["directory"])
    eventually(lambda: victim not in _about(system)["stores"], f"{victim} is a member no more")
    run(_send(session, range(20, 40)))
    eventually(back(system, victim, before["pid"]), f"{victim} is back")
    eventually(lambda: _whole(system), "three stores hold everything")
    after = system.status()["actors"][victim]
    assert after["store"] != before["store"]
    assert (Path(after["directory"]) / "store.json").exists()

    next_victim = next(name for name in _about(system)["stores"] if name not in about["spares"])
    pid = kill(next_victim)
    eventually(lambda: _whole(system) and victim in _about(system)["stores"], f"{victim} holds everything")
    eventually(back(system, next_victim, pid), f"{next_victim} is back")
    assert run(_send(session, range(40, 60))) == [b"%d" % k for k in range(60)]


def test_a_killed_supervisor_learns_who_serves_what_and_changes_nothing(system: Any, kill: Callable[[str], int]) -> None:
    """G9: it holds no truth, so that its end costs nothing."""
    before = [(one["actor"], one["epoch"]) for one in system.status()["partitions"]]
    pid = kill("supervisor")
    eventually(back(system, "supervisor", pid), "the Supervisor is back")
    eventually(lambda: system.status()["failovers"] == 0, "it knows again who serves what")
    assert [(one["actor"], one["epoch"]) for one in system.status()["partitions"]] == before


def test_an_actor_that_ray_has_given_up_is_created_again_by_the_supervisor(system: Any) -> None:
    """The desired state is kept even when Ray regards the actor as dead for good."""
    import ray

    pid = pid_of(system, "session-1")
    ray.kill(ray.get_actor("session-1", namespace="trilogue"), no_restart=True)
    eventually(back(system, "session-1", pid), "session-1 was created again")


def test_the_run_file_follows_an_actor_to_its_new_process(system: Any, kill: Callable[[str], int]) -> None:
    pid = kill("session-0")
    eventually(back(system, "session-0", pid), "session-0 is back")

    def noted() -> bool:
        known = find_run_file(system.data)
        return known is not None and known.processes["session-0"] == system.status()["actors"]["session-0"]["pid"]

    eventually(noted, "the Supervisor has noted the new process")


def test_a_restarted_actor_keeps_its_address(system: Any, kill: Callable[[str], int]) -> None:
    before = system.status()["actors"]["store-3"]["address"]
    pid = kill("store-3")
    eventually(back(system, "store-3", pid), "store-3 is back")
    assert system.status()["actors"]["store-3"]["address"] == before


def test_after_all_that_every_frame_on_every_store_is_right(system: Any) -> None:
    """G2, G3, G4, G5: judged on the stores themselves."""
    run_file = find_run_file(system.data)
    assert run_file is not None
    report = run(verify(Known(run_file.addresses, run_file.token(), run_file), NoBars()))
    assert report["problems"] == []
    assert report["ok"]
    assert report["stores"] == ["store-1", "store-2", "store-3", "store-4"]
    assert report["counts"]["messages"] > 0
