"""The recipe's second run: its sender is killed again and again, and each successor sends again what had no answer.

Owns the kills and the counting of what they cost. It must not know how a message is stored. Half of the kills are exact: the
sender waits where its SET NX or its INCR was answered, and is killed there. The other half come a random moment after a random
number of answers. Rules of the counting, which is pure:

1. A message is *lost for good* if it was handed over, the stream does not have it, and its dedupe key says that it does: every
   retry is taken for a duplicate, and its sender was told so.
2. A *hole* is a number that INCR gave and no message in the stream has.
3. What is missing without a dedupe key, is there twice, or has another body is nothing that a crash of the sender explains:
   then the run itself has failed.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import uvloop

from trilogue.actors.protocol.errors import Unavailable
from trilogue.bench.load.workload import Workload
from trilogue.bench.recipe.path import CLAIMED, NUMBERED, Entry, connected
from trilogue.bench.recipe.sender import SenderJob
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import CrashFigures

SESSION = "crashes"
ANSWERS_BEFORE_A_KILL_MAX = 12
DELAY_S_MAX = 0.002
END_TIMEOUT_S = 20.0
LAST = 1 << 40
AT_RANDOM = ""


class Kill(NamedTuple):
    """One kill: after so many answers, at a step (exactly) or a moment later (at random)."""

    answers: int
    step: str
    delay_s: float


@dataclass(slots=True)
class Told:
    """What the senders said, all of them together."""

    handed_upto: int = 0
    stored: set[int] = field(default_factory=set)
    duplicates: set[int] = field(default_factory=set)
    killed_at: list[tuple[int, str]] = field(default_factory=list)
    """The message that each kill left without an answer (0: none), and the step (`AT_RANDOM`: nobody knows)."""

    @property
    def answered_upto(self) -> int:
        """One is in flight: all up to here have an answer."""
        return max((*self.stored, *self.duplicates), default=0)

    def hear(self, line: str) -> str:
        """Take in a line, and return its first word."""
        word, n, *_ = line.split()
        if word == "handed":
            self.handed_upto = max(self.handed_upto, int(n))
        elif word == "stored":
            self.stored.add(int(n))
        elif word == "duplicate":
            self.duplicates.add(int(n))
        return word


def plan(kills: int, seed: int) -> list[Kill]:
    """Exact and random kills in turn."""
    choose = random.Random(seed)
    steps = (CLAIMED, AT_RANDOM, NUMBERED, AT_RANDOM)
    return [
        Kill(choose.randint(1, ANSWERS_BEFORE_A_KILL_MAX), steps[k % len(steps)], choose.uniform(0, DELAY_S_MAX))
        for k in range(kills)
    ]


def crash(
    url: str, replicas: int, kills: int, body_bytes: int, seed: int, progress: Progress
) -> tuple[CrashFigures, list[str]]:
    """Kill so many senders, let the last one finish, read all back; and what no crash explains, in words."""
    told = Told()
    common = {"url": url, "replicas": replicas, "session": SESSION, "body_bytes": body_bytes, "seed": seed}
    for done, kill in enumerate(plan(kills, seed)):
        progress.phase("killing senders", done, kills)
        first = told.answered_upto + 1
        halt_at = first + kill.answers if kill.step else 0
        job = SenderJob(**common, first=first, last=LAST, halt_at=halt_at, halt_step=kill.step)
        with _sender(job) as sender:
            _kill(sender, kill, told)
    job = SenderJob(**common, first=told.answered_upto + 1, last=told.handed_upto)
    with _sender(job) as sender:
        _hear_all(sender, told)
        if sender.wait(END_TIMEOUT_S):
            raise Unavailable("the last sender could not finish: what it wrote stands above")
    return uvloop.run(_count(url, told, body_bytes, seed))


def _kill(sender: subprocess.Popen[bytes], kill: Kill, told: Told) -> None:
    assert sender.stdout is not None
    answers = 0
    for line in sender.stdout:
        word = told.hear(line.decode())
        answers += word in ("stored", "duplicate")
        if word == "at" or (not kill.step and answers >= kill.answers):
            break
    else:
        raise Unavailable(f"a sender ended by itself (exit code {sender.wait(END_TIMEOUT_S)}): what it wrote stands above")
    if not kill.step:
        time.sleep(kill.delay_s)
    sender.send_signal(signal.SIGKILL)
    _hear_all(sender, told)
    in_flight = told.handed_upto if told.handed_upto > told.answered_upto else 0
    told.killed_at.append((in_flight, kill.step))


def _hear_all(sender: subprocess.Popen[bytes], told: Told) -> None:
    assert sender.stdout is not None
    for line in sender.stdout:
        told.hear(line.decode())


@contextmanager
def _sender(job: SenderJob) -> Iterator[subprocess.Popen[bytes]]:
    """A sender at work; its process has ended when the block is left."""
    command = [sys.executable, "-m", "trilogue.bench.recipe.sender"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
        assert sender.stdin is not None
        sender.stdin.write(job.model_dump_json().encode() + b"\n")
        sender.stdin.close()
        try:
            yield sender
        finally:
            sender.kill()


async def _count(url: str, told: Told, body_bytes: int, seed: int) -> tuple[CrashFigures, list[str]]:
    async with connected(url, 0) as reader:
        entries = await reader.read_all(SESSION)
        numbered_upto = await reader.numbered_upto(SESSION)
        claimed = await reader.claimed(SESSION, range(1, told.handed_upto + 1))
    body = Workload(1, 1, body_bytes, seed).bodies()
    return figures_of(told, entries, numbered_upto, claimed), unexplained(told, entries, claimed, body_of=body)


def figures_of(told: Told, entries: Sequence[Entry], numbered_upto: int, claimed: Collection[int]) -> CrashFigures:
    """What the kills cost."""
    there = {entry.n for entry in entries}
    lost = {n for n in range(1, told.handed_upto + 1) if n not in there and n in claimed}
    exact = {n for n, step in told.killed_at if step}
    return CrashFigures(
        kills=len(told.killed_at),
        kills_between=sum(bool(step) for _, step in told.killed_at),
        messages=told.handed_upto,
        told_duplicate=len(told.duplicates),
        lost_for_good=len(lost),
        lost_between=len(lost & exact),
        holes=numbered_upto - len({entry.seq for entry in entries}),
    )


def unexplained(told: Told, entries: Sequence[Entry], claimed: Collection[int], body_of: Callable[[int], bytes]) -> list[str]:
    """What is wrong with the run itself, in words."""
    wrong: list[str] = []
    times = Counter(entry.n for entry in entries)
    for n in range(1, told.handed_upto + 1):
        if not times[n] and n not in claimed:
            wrong.append(f"message {n} is not in the stream, and no dedupe key says so")
        if n not in told.stored and n not in told.duplicates:
            wrong.append(f"message {n} was never answered")
        if times[n] > 1:
            wrong.append(f"message {n} is in the stream {times[n]} times")
    wrong += [f"message {one.n} has another body" for one in entries if one.body != body_of(one.n)]
    wrong += [f"message {n} was told to be stored, and is not" for n in sorted(told.stored - set(times))]
    return wrong
