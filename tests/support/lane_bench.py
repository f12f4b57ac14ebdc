"""One open flow with an outbox, and callers who wait: what the tests of lanes, answers and outboxes need.

It hands messages over as the client's desk does, shows what would be submitted, and plays the SessionActor's answers.
"""

from __future__ import annotations

import itertools
from typing import Any

from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Ack
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.outbox.sqlite import Commit, Stored
from trilogue.client.reading.heads import Heads
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.flow import Flow
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES, Lane

LIMITS = Limits()
FIRST_ID = f"{1:032x}"


class Caller:
    """Stands for a future."""

    def __init__(self) -> None:
        self.outcome: Any = None

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, result: Ack) -> None:
        self.outcome = result

    def set_exception(self, exception: Exception) -> None:
        self.outcome = exception


def file_outbox(limits: Limits = LIMITS, stored: Stored | None = None) -> tuple[FileOutbox, list[Commit]]:
    """An outbox in a file that a test plays: what it wants committed, in order."""
    commits: list[Commit] = []
    ids = itertools.count(1)
    outbox = FileOutbox(limits, lambda: f"{next(ids):032x}", lambda: None, commits.append, lambda: None)
    outbox.restore("a.db", stored or Stored("a" * 32, [], []))
    return outbox, commits


class Bench:
    """One flow that is open, with an outbox."""

    def __init__(self, outbox: Outbox | None = None, limits: Limits = LIMITS) -> None:
        ids = itertools.count(1)
        self.outbox = outbox or Outbox(limits, lambda: f"{next(ids):032x}", lambda: None)
        self.flow = Flow(0, limits)
        self.answers = Answers(self.flow, self.outbox, Heads())
        self.flow.opened(1, limits.body_bytes_max)

    def post(self, *bodies: bytes, session: str = "red", sender: str = "ann") -> list[Caller]:
        lane = self.outbox.lane(session, sender)
        if lane.flow is None:
            self.flow.add(lane)
        callers = [Caller() for _ in bodies]
        for body, caller in zip(bodies, callers, strict=True):
            lane.bodies.append(body)
            lane.times.append(1)
            lane.futures.append(caller)
            lane.size_bytes += len(body) + MESSAGE_OVERHEAD_BYTES
            self.outbox.messages += 1
            self.outbox.bytes += len(body) + MESSAGE_OVERHEAD_BYTES
        self.outbox.mark(lane)
        self.outbox.save()
        return callers

    def submitted(self, now: float = 0.0) -> list[tuple[str, int, list[bytes]]]:
        """What goes out now: (sender_id, first_n, bodies), and ("give up", n, [])."""
        found: list[tuple[str, int, list[bytes]]] = []
        while (taken := self.flow.take(now)) is not None:
            runs, given_up = taken
            found += [(run[1], run[2], run[4]) for run in runs]
            found += [("give up", n, []) for _, _, n in given_up]
        return found

    def ack(
        self, first_n: int, count: int, first_seq: int, *, lane: Lane | None = None, epoch: int = 1, now: float = 0.0
    ) -> None:
        sender_id = (lane or self.lane).sender_id
        self.answers.acked(now, epoch, 3, [["red", sender_id, first_n, count, first_seq, False]])

    def refuse(self, first_n: int, count: int, code: int, expected_n: int = 0, *, now: float = 0.0) -> bool:
        refusal = ["red", self.lane.sender_id, first_n, count, code, "why", expected_n]
        return self.answers.refused(now, 1, [refusal])

    @property
    def lane(self) -> Lane:
        return self.outbox.lanes[("red", "ann")]


def seqs(callers: list[Caller]) -> list[Any]:
    return [caller.outcome.seq if isinstance(caller.outcome, Ack) else caller.outcome for caller in callers]
