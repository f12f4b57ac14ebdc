"""`kill -9` of each kind of actor: what was acked is there, once, in order, and the system goes on (G2, G3, G5, G11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from trilogue.actors.protocol.ids import partition_of
from trilogue.client import Client
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.verify import verify
from trilogue.cluster.settings.runfile import find_run_file

from .conftest import PARTITIONS, back, eventually, run


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


def _session_of(name: str) -> str:
    """A session that the killed actor serves: any for a store, one of its partition for a SessionActor."""
    partition = int(name[-1]) if name.startswith("session-") else 0
    candidates = (f"killed-{name}-{k}" for k in range(1000))
    return next(session for session in candidates if partition_of(session, PARTITIONS) == partition)


@pytest.mark.parametrize("name", ["store-2", "session-0", "session-1", "supervisor"])
def test_a_killed_actor_loses_doubles_and_reorders_nothing_and_comes_back(
    system: Any, kill: Callable[[str], int], name: str
) -> None:
    pid, seqs, bodies = run(_send_through_a_kill(_session_of(name), lambda: kill(name)))
    assert seqs == list(range(1, 151))
    assert bodies == [b"%d" % k for k in range(150)]
    eventually(back(system, name, pid), f"{name} is back")


def test_an_actor_that_ray_has_given_up_is_created_again_by_the_supervisor(system: Any) -> None:
    """The desired state is kept even when Ray regards the actor as dead for good."""
    import ray

    pid = int(system.status()["actors"]["session-1"]["pid"])
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
    assert report["stores"] == ["store-1", "store-2", "store-3"]
    assert report["counts"]["messages"] > 0
