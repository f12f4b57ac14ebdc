"""Faults that need more than one step: paused processes, newborn ones, two of one name.

Each leaves the system as it should be: whole, and taking messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import psutil

from local_system.campaign import ACTOR_BOUND_S, SPARE_BOUND_S, Campaign
from local_system.waiting import eventually
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.streams import ask

PILED_UP = 60


def kill_newborn(campaign: Campaign, name: str, times: int = 3) -> None:
    """`kill -9` of an actor, and again as soon as its successor has a process, whatever that is doing."""
    what = f"kill -9 of a {name.partition('-')[0]} {times} times in a row"
    began = 0
    for _ in range(times):
        pid = campaign.system.pid_of(name)
        began = campaign.note_fault(what, ACTOR_BOUND_S)
        campaign.system.signal(pid, signal.SIGKILL)
        campaign.system.until_replaced(name, pid, ACTOR_BOUND_S)
    campaign.probe(began, what, ACTOR_BOUND_S)
    eventually(campaign.system.is_well, ACTOR_BOUND_S, f"all is well after {name} was killed {times} times")


def pause_owner(campaign: Campaign, partition: int) -> None:
    """SIGSTOP of a writer until a spare serves its partition, then SIGCONT: it gets nothing acked, and ends by itself (G9)."""
    system = campaign.system
    paused = campaign.owner(partition)
    name, pid, epoch = str(paused["name"]), int(paused["pid"]), int(paused["epoch"])
    began = campaign.note_fault(f"SIGSTOP of {name}", SPARE_BOUND_S)
    system.signal(pid, signal.SIGSTOP)
    try:
        campaign.probe(began, "SIGSTOP of a writer", SPARE_BOUND_S)
        successor = campaign.owner(partition)
        assert successor["epoch"] > epoch, "somebody else serves the partition"
    finally:
        woke = campaign.note_fault(f"SIGCONT of {name}", SPARE_BOUND_S)
        system.signal(pid, signal.SIGCONT)
    campaign.probe(woke, "SIGCONT of a writer", SPARE_BOUND_S)
    system.until_replaced(name, pid, ACTOR_BOUND_S)
    eventually(lambda: not psutil.pid_exists(pid), ACTOR_BOUND_S, "the process that was paused has ended by itself")
    eventually(system.is_well, ACTOR_BOUND_S, f"all is well after {name} was paused")
    assert campaign.owner(partition)["epoch"] == successor["epoch"], "nobody was disturbed"
    campaign.no_acks_below(partition, int(successor["epoch"]), woke)


def pause_store(campaign: Campaign, name: str) -> None:
    """SIGSTOP of a member until it was replaced; then SIGCONT: it becomes a spare."""
    system = campaign.system
    pid = system.pid_of(name)
    served = [p for p in range(system.partitions) if name in campaign.owner(p)["members"]]
    began = campaign.note_fault(f"SIGSTOP of {name}", SPARE_BOUND_S)
    system.signal(pid, signal.SIGSTOP)
    try:
        campaign.probe(began, "SIGSTOP of a store", SPARE_BOUND_S)
        for partition in served:
            assert name not in campaign.owner(partition)["members"], f"{name} was replaced in partition {partition}"
    finally:
        woke = campaign.note_fault(f"SIGCONT of {name}", SPARE_BOUND_S)
        system.signal(pid, signal.SIGCONT)
    campaign.probe(woke, "SIGCONT of a store", SPARE_BOUND_S)
    eventually(system.is_well, ACTOR_BOUND_S, f"all is well after {name} was paused")
    campaign.until_whole()


def diverge(campaign: Campaign, kill_it: bool) -> None:
    """Two stores are paused: nobody can take a member's place, and frames reach two members of three. Then their writer is
    killed; the store that was left behind goes on, or is killed before it can.

    The next writer finds other ends on each store, and must make one of them.
    """
    system = campaign.system
    owner = campaign.owner(0)
    behind = campaign.random.choice(owner["members"])
    pids = {name: system.pid_of(name) for name in (behind, *owner["spares"])}
    for pid in pids.values():
        system.signal(pid, signal.SIGSTOP)
    eventually(lambda: campaign.waiting() > PILED_UP, ACTOR_BOUND_S, f"messages wait for {behind}, which is paused")
    system.signal(int(owner["pid"]), signal.SIGKILL)
    what = f"a store's {'kill -9' if kill_it else 'SIGCONT'} after a kill -9 of the writer"
    began = campaign.note_fault(what, ACTOR_BOUND_S)
    system.signal(pids.pop(behind), signal.SIGKILL if kill_it else signal.SIGCONT)
    for pid in pids.values():
        system.signal(pid, signal.SIGCONT)
    campaign.probe(began, what, ACTOR_BOUND_S)
    eventually(system.is_well, ACTOR_BOUND_S, f"all is well after {behind} was left behind")
    campaign.until_whole()


def pause_program(campaign: Campaign, name: str, others_ack: int) -> None:
    """SIGSTOP of a user's program while the others go on; then SIGCONT."""
    program = campaign.programs[name]
    others = [other for other in campaign.programs.values() if other is not program]
    before = sum(other.ask("counts")["acked"] for other in others)
    program.signal(signal.SIGSTOP)
    try:
        eventually(
            lambda: sum(other.ask("counts")["acked"] for other in others) > before + others_ack,
            3 * ACTOR_BOUND_S,
            f"{others_ack} messages are acked while {name} is paused",
        )
    finally:
        program.signal(signal.SIGCONT)


class Rival:
    """A SessionActor in a process of its own, which neither Ray nor the Supervisor knows: the writer of a partition.

    When the block begins, the partition's owner and the Supervisor are paused, and the rival has taken the partition over.
    `let_the_supervisor_go_on` and `let_the_owner_go_on` come next. It is gone when the block ends.
    """

    def __init__(self, campaign: Campaign, partition: int, detours: dict[str, str] | None = None) -> None:
        self._campaign, self._system, self._partition = campaign, campaign.system, partition
        self._detours = detours or {}
        self.epoch = 0

    def __enter__(self) -> Rival:
        system = self._system
        owner = self._campaign.owner(self._partition)
        self._supervisor, self._owner, self._owner_name = system.pid_of("supervisor"), int(owner["pid"]), str(owner["name"])
        for pid in (self._supervisor, self._owner):
            system.signal(pid, signal.SIGSTOP)
        self._log = (system.root / "rival.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "local_system.rival", str(system.data), str(self._partition), json.dumps(self._detours)],
            env=system.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        try:
            eventually(self.is_open, ACTOR_BOUND_S, lambda: f"the rival is open: {self.status()}, see {self._log.name}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.epoch = int(self.status()["epoch"])
        assert self.epoch > int(owner["epoch"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        for pid in (self._supervisor, self._owner):
            with contextlib.suppress(OSError):
                self._system.signal(pid, signal.SIGCONT)

    def let_the_supervisor_go_on(self) -> None:
        """From now on spares are ordered to take the partition, whose writer the Supervisor cannot find."""
        self._system.signal(self._supervisor, signal.SIGCONT)

    def let_the_owner_go_on(self) -> None:
        """The zombie wakes up, and ends by itself."""
        self._system.signal(self._owner, signal.SIGCONT)
        self._system.until_replaced(self._owner_name, self._owner, ACTOR_BOUND_S)

    def status(self) -> dict[str, Any]:
        """What it says of itself; empty while it does not answer."""
        try:
            return dict(asyncio.run(ask(self.address, self._system.token, Say.STATUS)))
        except Unavailable:
            return {}

    def is_open(self) -> bool:
        """Whether it serves the partition."""
        return bool(self.status().get("state") == "open")

    def members(self) -> list[str]:
        """The stores that it writes to."""
        return list(self.status().get("members", []))

    def wait_until_deposed(self, deadline_s: float) -> None:
        """A writer that another one has deposed ends its process: exit code 70 says that it was not a crash."""
        assert self._process.wait(deadline_s) == 70, f"the rival ended with {self._process.returncode}: see {self._log.name}"
