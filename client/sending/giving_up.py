"""When a message is given up, and what its sender hears (design §8; G8).

Owns the messages' deadlines, and what was decided about those that passed. It must not know connections, files or asyncio:
`now` is told. Rules:

1. A message is given up when its deadline passes before its outcome is known, or by `cancel` if it was never submitted. From
   then on it is not submitted any more, and its number is asked to become a skip (``flow``), so that the next one can follow.
2. Was it never submitted, its sender hears that there are 0 copies. Otherwise it is settled first: the skip's answer is the
   Ack, late, if it had been stored after all, and else that there are 0 copies. If that takes more than `SETTLE_S`, the
   sender hears that there are 0 or 1; the settling goes on without him.
3. Nobody hears that a message was given up before that is as durable as the message is: the next process does not send it.
4. Deadlines end with their process, and so do those who wait for them; what it left behind is sent by the next one (G10).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from math import isfinite

from trilogue.actors.protocol.errors import GivenUp, InvalidRange, TrilogueError
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.sending.flushing import Mark
from trilogue.client.sending.lanes import Lane, Waiter

SETTLE_S = 1.0
PRUNE_FROM = 1024


class Given:
    """One message that has a deadline, or was given up. `place` is its number plus its lane's `shift`."""

    __slots__ = ("is_durable", "lane", "place", "unheard_of", "waiter", "why")

    def __init__(self, lane: Lane, place: int, waiter: Waiter | None, why: str) -> None:
        self.lane, self.place, self.waiter, self.why = lane, place, waiter, why
        self.is_durable = False  # the giving-up is
        self.unheard_of: bool | None = None  # None: not given up yet; True: it was never submitted

    @property
    def n(self) -> int:
        """Its number now."""
        return self.place - self.lane.shift

    @property
    def has_outcome(self) -> bool:
        """Whether its outcome is known, told or not."""
        n, lane = self.n, self.lane
        return n < lane.first_n or any(first <= n < first + early.messages for first, early in lane.early.items())


def check_deadline(deadline_s: float) -> None:
    """Raise `InvalidRange` unless it is a time in which something can happen."""
    if not isinstance(deadline_s, int | float) or not isfinite(deadline_s) or deadline_s <= 0:
        raise InvalidRange(f"deadline_s={deadline_s!r}: give seconds above 0, or None to wait for ever")


class GivingUp:
    """All messages of one client that have a deadline."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._due: list[tuple[float, int, Given]] = []
        self._order = count()
        self._prune_at = PRUNE_FROM

    def watch(self, lane: Lane, waiter: Waiter, due: float, deadline_s: float) -> None:
        """The message that `lane` has taken last is given up at `due`."""
        why = f"had no answer within {deadline_s:g} s"
        heappush(self._due, (due, next(self._order), Given(lane, lane.next_n - 1 + lane.shift, waiter, why)))
        if len(self._due) > self._prune_at:
            self._due = [entry for entry in self._due if not entry[2].has_outcome]
            heapify(self._due)
            self._prune_at = max(PRUNE_FROM, 2 * len(self._due))

    def cancel(self, waiter: Waiter) -> bool:
        """Give up the message for which `waiter` waits, if it was never submitted. False: it is too late for that.

        Looks through all that waits: some milliseconds for a full outbox.
        """
        for lane in self._outbox.lanes.values():
            if lane.next_n - 1 <= lane.submitted_n:
                continue
            for at, other in enumerate(lane.futures):
                if other is waiter or (isinstance(other, Mark) and other.waiter is waiter):
                    n = lane.first_n + at
                    if n <= lane.submitted_n or n in lane.refusals:
                        return False
                    self._give_up(Given(lane, n + lane.shift, waiter, "was cancelled"))
                    return True
        return False

    def expire(self, now: float) -> float | None:
        """Give up what is due; return when to call again (None: nothing is due any more)."""
        while self._due and self._due[0][0] <= now:
            due, _, given = heappop(self._due)
            if given.has_outcome or given.lane.stopped is not None:
                continue
            if given.unheard_of is None:
                if given.n not in given.lane.refusals:
                    self._give_up(given)
                    heappush(self._due, (due + SETTLE_S, next(self._order), given))
            elif given.is_durable:
                _tell(given, may_be_stored=True)
            else:
                heappush(self._due, (now + SETTLE_S, next(self._order), given))
        return self._due[0][0] if self._due else None

    def _give_up(self, given: Given) -> None:
        lane, n = given.lane, given.n
        given.unheard_of = n > lane.submitted_n
        error: dict[int, TrilogueError] = {n: _error(given, may_be_stored=False)}
        if lane.flow is not None:
            lane.flow.give_up(lane, error)
        else:
            lane.refusals.update(error)

        def saved(failure: TrilogueError | None) -> None:
            given.is_durable = True
            if failure is not None or given.unheard_of:
                _tell(given, may_be_stored=failure is not None)  # its disk failed: the next process may send it

        self._outbox.give_up(lane, n, saved)


def _error(given: Given, may_be_stored: bool) -> GivenUp:
    lane = given.lane
    known = "it may have been stored, once: read the session" if may_be_stored else "it is not stored, and never will be"
    text = f"a message of {lane.sender!r} in session {lane.session!r} {given.why}, and was given up: {known}"
    return GivenUp(text, may_be_stored)


def _tell(given: Given, may_be_stored: bool) -> None:
    waiter = given.waiter
    if waiter is not None and not waiter.done():
        waiter.set_exception(_error(given, may_be_stored))
