"""What the answers of a SessionActor mean for the lanes of its partition.

Owns the way from ACKED and REFUSED to the callers' futures. It must not know connections, clocks or files. Rules:

1. Outcomes are told in the order of n; each number has one (G5). What is answered again changes nothing.
2. An answer of an epoch below the highest seen is ignored (design §6, rule 8).
3. "Expected n" at or below a number that has its outcome is proof of loss: the lane stops.
4. A lane goes back once for each expected n: the refusals of what was under way at the time say nothing new.
5. A refusal for now holds the lane for the ladder. A message that is refused for good is given up, so that the next one can
   follow; what the give-up finds out (stored after all, or not) is the outcome. Names that are refused stop the lane.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trilogue.actors.protocol.errors import (
    ConflictingRetry,
    ProofOfLoss,
    ProtocolError,
    TrilogueError,
)
from trilogue.actors.protocol.messages import Ack
from trilogue.actors.protocol.vocabulary import Code
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.reading.heads import Heads
from trilogue.client.sending.flow import Flow
from trilogue.client.sending.lanes import TOLD_BEFORE, Lane, Outcome
from trilogue.client.sending.refusals import error_of

_HELD = frozenset((Code.UNAVAILABLE, Code.OVERLOADED, Code.FULL, Code.NOT_CHAINED, Code.CANNOT_TELL, Code.CORRUPT))
_MOVED = frozenset((Code.NOT_HERE, Code.DEPOSED))
_GIVEN_UP = frozenset((Code.MESSAGE_TOO_LARGE, Code.CONFLICTING_KEY))
_new = tuple.__new__


class Answers:
    """Takes what the SessionActor of `flow`'s partition answers."""

    def __init__(self, flow: Flow, outbox: Outbox, heads: Heads) -> None:
        self.flow = flow
        self.outbox = outbox
        self.heads = heads

    def acked(self, now: float, epoch: int, copies: int, runs: Iterable[list[Any]]) -> None:
        """Runs that are on `copies` disks. The hot path: for each run, and one Ack for each message."""
        if epoch < self.flow.epoch:
            return
        lanes = self.flow.lanes
        heads = self.heads.recent
        for session, sender_id, first_n, count, first_seq, duplicate in runs:
            lane = lanes.get((session, sender_id))
            if lane is None:
                continue
            if first_n != lane.first_n or not 0 < count <= lane.sent or first_seq <= 0 or lane.early or lane.refusals:
                before = lane.first_n
                self._outcome(lane, first_n, Outcome(count, first_seq, duplicate, copies, epoch, None))
                if lane.first_n != before:  # answers for later ones are no reason to wait longer for the first one's
                    lane.tried_at = now
                continue
            sender = lane.sender
            session = lane.session
            seq = first_seq
            n = first_n
            for future in self._pop(lane, count):
                if future is not None and not future.done():
                    future.set_result(_new(Ack, (session, seq, sender, sender_id, n, copies, epoch, duplicate)))
                seq += 1
                n += 1
            if seq > heads.get(session, 1):
                heads[session] = seq - 1
            lane.tried_at = now
            lane.tries = lane.back_to = 0
            if lane.conflicted:
                self._settled(lane)
        if len(heads) > self.heads.half:
            self.heads.bound()

    def refused(self, now: float, epoch: int, runs: Iterable[list[Any]]) -> bool:
        """Runs of which nothing was stored. True: the partition has moved, look up where it is."""
        if epoch < self.flow.epoch:
            return False
        moved = False
        for session, sender_id, first_n, count, code, text, expected_n in runs:
            lane = self.flow.lanes.get((session, sender_id))
            if lane is None or lane.stopped is not None:
                continue
            if first_n + count <= lane.first_n or first_n > lane.submitted_n:
                continue  # it has its outcome already, or was never submitted
            if code == Code.OUT_OF_ORDER:
                self._out_of_order(lane, first_n, expected_n)
            elif code in _MOVED:
                moved = True
            elif code in _HELD or not code >= Code.CONFLICTING_RETRY:
                self.flow.hold(lane, first_n, now)
            elif code == Code.CONFLICTING_RETRY:
                lane.conflicted = True
                error = ConflictingRetry(text)
                self._outcome(lane, first_n, Outcome(count, 0, False, 0, epoch, error))
            elif code in _GIVEN_UP:
                self._give_up(lane, first_n, count, error_of(code, text))
            else:
                self.stop(lane, error_of(code, text))  # its names: none of its messages can ever be stored
        return moved

    def stop(self, lane: Lane, error: TrilogueError) -> None:
        """Fail whatever the lane holds, and refuse what is still to come. In a file, its messages stay."""
        self.flow.go_back(lane, lane.first_n)
        lane.stopped = error
        self.outbox.abandon(lane)
        self._fail(lane, len(lane.bodies), error)

    # ------------------------------------------------------------------ refusals

    def _out_of_order(self, lane: Lane, first_n: int, expected_n: int) -> None:
        if expected_n < lane.first_n:
            text = (
                f"session {lane.session!r}: the system expects number {expected_n} of sender {lane.sender!r}, "
                f"but it had acked all up to {lane.first_n - 1}: stop, and run `trilogue verify`"
            )
            self.stop(lane, ProofOfLoss(text))
        elif expected_n <= first_n and not lane.held and lane.back_to != expected_n:
            lane.back_to = expected_n
            self.flow.go_back(lane, expected_n)
            self.flow.ready_first(lane)

    def _give_up(self, lane: Lane, first_n: int, count: int, error: TrilogueError) -> None:
        """These numbers will never be taken as messages. Being told so twice changes nothing."""
        numbers = range(max(first_n, lane.first_n), min(first_n + count, lane.submitted_n + 1))
        new = [n for n in numbers if n not in lane.refusals]
        if new:
            self.flow.give_up(lane, dict.fromkeys(new, error))

    # ------------------------------------------------------------------ outcomes

    def _outcome(self, lane: Lane, first_n: int, outcome: Outcome) -> None:
        """Take an outcome that is not simply the next one: it may be known already, early, a skip, or a failure."""
        if outcome.messages <= 0 or first_n + outcome.messages - 1 > lane.submitted_n:
            raise ProtocolError(f"an answer for numbers from {first_n} on that were never submitted")
        if first_n + outcome.messages <= lane.first_n:
            return
        lane.early[first_n] = outcome
        before = lane.first_n
        while lane.early:
            start = next((n for n, early in lane.early.items() if n <= lane.first_n < n + early.messages), None)
            if start is None:
                break
            self._next_outcome(lane, start, lane.early.pop(start))
        for n in [n for n, early in lane.early.items() if n + early.messages <= lane.first_n]:
            del lane.early[n]
        if lane.first_n != before:
            lane.tries = lane.back_to = 0
            self._settled(lane)

    def _next_outcome(self, lane: Lane, first_n: int, outcome: Outcome) -> None:
        known = lane.first_n - first_n
        count = outcome.messages - known
        if outcome.error is not None:
            self._fail(lane, count, outcome.error)
            return
        if outcome.first_seq == 0:
            for n in range(lane.first_n, lane.first_n + count):
                text = f"number {n} of sender {lane.sender!r} in session {lane.session!r} had been given up: send it again"
                self._fail(lane, 1, lane.refusals.get(n) or ConflictingRetry(text))
            return
        sender_id, n, seq = lane.sender_id, lane.first_n, outcome.first_seq + known
        for future in self._pop(lane, count):
            lane.refusals.pop(n, None)
            if future is not None and not future.done():
                place = (lane.session, seq, lane.sender, sender_id, n, outcome.copies, outcome.epoch, outcome.duplicate)
                future.set_result(Ack._make(place))
            n, seq = n + 1, seq + 1
        self.heads.note(lane.session, seq - 1)

    def _fail(self, lane: Lane, count: int, error: TrilogueError) -> None:
        """The next `count` messages were not stored, and never will be."""
        n = lane.first_n
        if error is not TOLD_BEFORE:
            lane.failures += count
            lane.error = error
        for future in self._pop(lane, count):
            lane.refusals.pop(n, None)
            if error is TOLD_BEFORE:
                if future is not None:  # a flush
                    future.set_result(None)
            elif future is None:
                self.outbox.unheard(lane, n, error)
            elif not future.done():
                future.set_exception(type(error)(*error.args))
            n += 1

    def _pop(self, lane: Lane, count: int) -> list[Any]:
        """Take the outcome of `count` messages into every account; return who waits for them."""
        sent, sent_bytes = lane.sent, lane.sent_bytes
        futures, size = lane.pop(count)
        flow, outbox = self.flow, self.outbox
        flow.in_flight_messages -= sent - lane.sent
        flow.in_flight_bytes -= sent_bytes - lane.sent_bytes
        outbox.messages -= count
        outbox.bytes -= size
        if lane.parts:
            outbox.settled(lane)
        return futures

    def _settled(self, lane: Lane) -> None:
        """After a conflict, and once everything that was submitted has its outcome: on with a new outbox id."""
        if lane.conflicted and lane.first_n > lane.submitted_n and lane.stopped is None:
            self.outbox.rename(lane)
