"""One actor is killed after another, while a load runs: who is next, and when the system is whole again.

Owns the faults of `bench failover`. It must not know how a stall is computed, nor how a system mends itself: it asks `status`
and believes what that says now. Rules:

1. A session's victim is the process that serves a partition at this moment (open, with the highest epoch), whatever its name;
   a store's is a member of a partition's ensemble; all of them in turn.
2. The next one is hurt only when the system is whole: as many actors of each kind answer as in the beginning, every partition
   has one owner and all of its copies, the killed process is none of them, and messages that were handed over since are acked.
3. Only a process of this machine that is a Ray worker gets a signal; one that was stopped is let go on, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import psutil

from trilogue.actors.protocol.errors import TrilogueError, Unavailable, UsageError
from trilogue.bench.driver import LoadProcess
from trilogue.bench.load.job import Ending, Fault, Report
from trilogue.bench.report.progress import Progress
from trilogue.bench.systems import System, is_here

Kind = Literal["session", "store", "supervisor"]
KINDS: Final[tuple[Kind, ...]] = ("session", "store", "supervisor")
Status = Mapping[str, Any]

PAUSE_S = 3.0
STEADY_S = (0.5, 1.0)  # when all is well again, until the next fault: drawn anew, so that nothing runs in step with them
WHOLE_WITHIN_S = 60.0
LOOK_AGAIN_S = 0.05
SPARE = "spare"


class Victim(NamedTuple):
    """Who is hurt next: the partitions that it serves, and its epoch if it is a writer (else 0)."""

    name: str
    pid: int
    partitions: list[int]
    epoch: int


class Hurt(NamedTuple):
    """What was done, and how many seconds later the system was whole again (after a pause: since its end)."""

    victim: Victim
    fault: Fault
    whole_again_s: float


def owner(status: Status, partition: int) -> Mapping[str, Any] | None:
    """The SessionActor that serves the partition now, as it says itself; None if there is none."""
    serving = [one for one in _of_role(status, "session") if one.get("partition") == partition and one.get("state") == "open"]
    return max(serving, key=lambda one: int(one.get("epoch") or 0), default=None)


def choose(status: Status, kind: Kind, turn: int, partitions: int) -> Victim:
    """The victim of turn 0, 1, …. Raises `Unavailable` if there is nobody of this kind, or nobody that can be reached."""
    if kind == "supervisor":
        chosen = next(iter(_of_role(status, kind)), None)
        served, epoch = list(range(partitions)), 0
    elif kind == "session":
        chosen = owner(status, turn % partitions)
        served, epoch = [turn % partitions], int((chosen or {}).get("epoch") or 0)
    else:
        members = _members(status, partitions)
        names = sorted(members)
        chosen = status["actors"][names[turn % len(names)]] if names else None
        served, epoch = members[str(chosen["name"])] if chosen else [], 0
    if chosen is None:
        raise Unavailable(f"there is no {kind} to kill: see `trilogue status`")
    name = str(chosen.get("name"))
    if not is_here(chosen):
        raise UsageError(f"{name} does not run on this machine: failover sends signals, and can only send them here")
    return Victim(name, int(chosen["pid"]), served, epoch)


def _members(status: Status, partitions: int) -> dict[str, list[int]]:
    """The stores that answer and hold copies now, and of which partitions."""
    answering = {str(one.get("name")) for one in _of_role(status, "store")}
    found: dict[str, list[int]] = {}
    for partition in range(partitions):
        writer = owner(status, partition) or {}
        for name in writer.get("members") or writer.get("stores") or ():  # the present ensemble; else what it was started with
            if str(name) in answering:
                found.setdefault(str(name), []).append(partition)
    return found


def _of_role(status: Status, role: str) -> list[Mapping[str, Any]]:
    return [one for one in status.get("actors", {}).values() if one.get("role") == role]


class Whole(NamedTuple):
    """What the system is when nothing is wrong: how many actors of each role answer, how many copies, and who was missing."""

    actors: Mapping[str, int]
    partitions: int
    copies: int
    missing: frozenset[str]

    @classmethod
    def of(cls, status: Status, partitions: int, copies: int) -> Whole:
        """What it is now."""
        actors = Counter(str(one.get("role")) for one in status["actors"].values())
        return cls(actors, partitions, copies, frozenset(status.get("missing", ())))

    def lacks(self, status: Status, killed_pid: int = 0) -> str:
        """The first thing that is not as it was, in words; empty when the system is whole. A process with `killed_pid` counts
        as dead, whatever it says."""
        actors = {name: one for name, one in status.get("actors", {}).items() if one.get("pid") != killed_pid}
        if not actors:
            return "nothing answers"
        if missing := sorted(set(status.get("missing", ())) - self.missing):
            return f"{', '.join(missing)} does not answer"
        counts = Counter(str(one.get("role")) for one in actors.values())
        for role, count in self.actors.items():
            if counts[role] < count:
                return f"{counts[role]} of {count} actors with the role {role} answer"
        for partition in range(self.partitions):
            writer = owner({"actors": actors}, partition)
            if writer is None:
                return f"partition {partition} is not open"
            if int(writer.get("copies") or 0) < self.copies:
                return f"partition {partition} has {writer.get('copies')} of {self.copies} copies"
        for name, one in actors.items():
            state = str(one.get("state", ""))
            if one.get("role") == "session" and state == "open" and one is not owner({"actors": actors}, int(one["partition"])):
                return f"{name} thinks that it serves partition {one['partition']}, too"
            if one.get("role") in ("session", "store") and state != "open" and not state.startswith(SPARE):
                return f"{name} is {state}"
        return ""


class Faults:
    """The conduct of a load: fault after fault, until all were made; `made` says what was done."""

    def __init__(self, system: System, kind: Kind, count: int, *, pause: bool, seed: int) -> None:
        self._system, self._kind, self._count, self._pause = system, kind, count, pause
        self._random = random.Random(seed)
        self.made: list[Hurt] = []

    def __call__(self, load: LoadProcess, progress: Progress) -> Report:
        """Hurt the system while `load` runs, then let it end. Raises `Unavailable` when the system does not get well again."""
        system = self._system
        partitions = list(range(system.partitions))
        ear = _Ear(load, system.partitions)
        progress.phase("waiting for the first acks")
        whole = Whole.of(system.status(), system.partitions, system.copies)
        self._wait_until_whole(whole, ear, partitions, 0, 0, "the start")
        for turn in range(self._count):
            progress.phase(f"{'pausing' if self._pause else 'killing'} a {self._kind}", turn, self._count)
            time.sleep(self._random.uniform(*STEADY_S))
            ear.check()
            victim = choose(system.status(), self._kind, turn, system.partitions)
            fault = self._stop_for_a_while(victim, ear) if self._pause else _strike(victim, signal.SIGKILL)
            since_ns = time.monotonic_ns()
            killed_pid = 0 if self._pause else victim.pid
            what = f"{'the pause' if self._pause else 'kill -9'} of {victim.name}"
            self._wait_until_whole(whole, ear, partitions, fault.after_ns, killed_pid, what)
            self.made.append(Hurt(victim, fault, (time.monotonic_ns() - since_ns) / 1e9))
        progress.phase("reading back")
        load.tell(Ending(faults=[hurt.fault for hurt in self.made]))
        return ear.report(progress)

    def _stop_for_a_while(self, victim: Victim, ear: _Ear) -> Fault:
        fault = _strike(victim, signal.SIGSTOP)
        try:
            until = time.monotonic() + PAUSE_S
            while (left := until - time.monotonic()) > 0:
                ear.check()
                time.sleep(min(left, LOOK_AGAIN_S))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGCONT)
        return fault

    def _wait_until_whole(
        self, whole: Whole, ear: _Ear, partitions: Sequence[int], since_ns: int, killed_pid: int, what: str
    ) -> None:
        deadline = time.monotonic() + WHOLE_WITHIN_S
        while True:
            ear.check()
            try:
                lacks = whole.lacks(self._system.status(), killed_pid)
            except TrilogueError as error:
                lacks = str(error)
            behind = [partition for partition in partitions if ear.acked_upto_ns[partition] <= since_ns]
            if not lacks and behind:
                lacks = f"partition {behind[0]} has acked nothing that was handed over since"
            if not lacks:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"the system was not whole again {WHOLE_WITHIN_S:.0f} s after {what}: {lacks}")
            time.sleep(LOOK_AGAIN_S)


def _strike(victim: Victim, number: signal.Signals) -> Fault:
    """Send the signal, with the clock read before and after it."""
    with contextlib.suppress(psutil.Error):
        if not "".join(psutil.Process(victim.pid).cmdline()[:1]).startswith("ray::"):
            raise Unavailable(f"process {victim.pid} is no Ray actor: {victim.name} has ended, or runs in another container")
    before_ns = time.monotonic_ns()
    try:
        os.kill(victim.pid, number)
    except OSError as error:
        raise Unavailable(f"{victim.name}, process {victim.pid}, cannot be signalled: {error.strerror}") from None
    after_ns = time.monotonic_ns()
    paused = number == signal.SIGSTOP
    return Fault(before_ns=before_ns, after_ns=after_ns, partitions=victim.partitions, epoch=victim.epoch, paused=paused)


class _Ear:
    """Listens to the load in a thread of its own, while the system is being hurt."""

    def __init__(self, load: LoadProcess, partitions: int) -> None:
        self.acked_upto_ns = [0] * partitions
        self._load = load
        self._newest = ("", 0, 0)
        self._report: Report | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="load", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the load's error, if it has one."""
        if self._error is not None:
            raise self._error

    def report(self, progress: Progress) -> Report:
        """Wait for the report."""
        while self._thread.is_alive():
            progress.phase(*self._newest)
            self._thread.join(LOOK_AGAIN_S)
        self.check()
        assert self._report is not None
        return self._report

    def _listen(self) -> None:
        try:
            for saying in self._load.sayings():
                self._report = saying.report
                self.acked_upto_ns = saying.acked_upto_ns or self.acked_upto_ns
                self._newest = (saying.phase, saying.done, saying.total)
        except BaseException as error:
            self._error = error
