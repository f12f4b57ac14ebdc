"""Faults that need more than one step: paused processes, newborn ones, two of one name.

Each leaves the system as it should be: whole, and taking messages.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from types import TracebackType

from local_system.campaign import ACTOR_BOUND_S, Campaign
from local_system.system import LocalSystem
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


def pause_actor(campaign: Campaign, name: str) -> None:
    """SIGSTOP until messages have piled up behind it; then SIGCONT. There is no failover: nothing may go wrong, that is all."""
    pid = campaign.system.pid_of(name)
    campaign.system.signal(pid, signal.SIGSTOP)
    try:
        eventually(lambda: campaign.waiting() > PILED_UP, ACTOR_BOUND_S, f"messages wait for {name}, which is paused")
        if name.startswith("session"):
            eventually(lambda: any(campaign.troubles().values()), ACTOR_BOUND_S, "clients notice that it does not answer")
    finally:
        began = campaign.note_fault(f"SIGCONT of {name}", ACTOR_BOUND_S)
        campaign.system.signal(pid, signal.SIGCONT)
    campaign.probe(began, f"SIGCONT of a {name.partition('-')[0]}", ACTOR_BOUND_S)
    eventually(campaign.system.is_well, ACTOR_BOUND_S, f"all is well after {name} was paused")


def diverge(campaign: Campaign, store: str, kill_it: bool) -> None:
    """Frames reach two stores of three, then their writers are killed; the third store goes on, or is killed before it can.

    The next writers find other ends on each store, and must make one of them.
    """
    system = campaign.system
    writers = [f"session-{partition}" for partition in range(system.partitions)]
    pids = {name: system.pid_of(name) for name in [store, *writers]}
    system.signal(pids[store], signal.SIGSTOP)
    eventually(lambda: campaign.waiting() > PILED_UP, ACTOR_BOUND_S, f"messages wait for {store}, which is paused")
    for name in writers:
        system.signal(pids[name], signal.SIGKILL)
    for name in writers:
        system.until_replaced(name, pids[name], ACTOR_BOUND_S)
    what = f"a store's {'kill -9' if kill_it else 'SIGCONT'} after a kill -9 of all writers"
    began = campaign.note_fault(what, ACTOR_BOUND_S)
    system.signal(pids[store], signal.SIGKILL if kill_it else signal.SIGCONT)
    campaign.probe(began, what, ACTOR_BOUND_S)
    eventually(system.is_well, ACTOR_BOUND_S, f"all is well after {store} was left behind")


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
    """A second SessionActor for a partition, in a process of its own. Open when the block begins, gone when it ends."""

    def __init__(self, system: LocalSystem, name: str) -> None:
        self._system, self._name = system, name

    def __enter__(self) -> Rival:
        self._log = (self._system.root / "rival.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "local_system.rival", str(self._system.data), self._name],
            env=self._system.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        try:
            eventually(lambda: self._is_open(address), ACTOR_BOUND_S, f"the rival at {address!r} is open: see {self._log.name}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _is_open(self, address: str) -> bool:
        try:
            return bool(asyncio.run(ask(address, self._system.token, Say.STATUS))["state"] == "open")
        except Unavailable:
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def wait_until_deposed(self, deadline_s: float) -> None:
        """A writer that another one has deposed ends its process: exit code 70 says that it was not a crash."""
        assert self._process.wait(deadline_s) == 70, f"the rival ended with {self._process.returncode}: see {self._log.name}"
