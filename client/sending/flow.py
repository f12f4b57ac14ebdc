"""One partition's lanes: what is submitted next, what is in flight, and when it is submitted again.

Owns the window of a partition's connection (how much may be in flight) and the ladder of its lanes. What answers mean stands in
``answers``. It must not know connections, clocks (`now` is told) or files. Rules:

1. Nothing is submitted before the SessionActor said OPEN, and nothing to a SessionActor of an epoch below the highest seen.
2. A new opening starts from each lane's lowest number without an outcome, in the order of n.
3. A lane that sees no outcome is submitted again after 1, 3, 5, 5 … seconds; any outcome starts the ladder anew.
4. What is waiting is packed into submissions of about `submit_bytes_max`, lane by lane, each lane in its turn. A lane stands in
   one submission at most once, so the order within a lane is the order of submissions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.actors.protocol.limits import Limits
from trilogue.client.connecting.backoff import retry_after_s
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES, Lane


class Flow:
    """The submissions of one partition."""

    def __init__(self, partition: int, limits: Limits) -> None:
        self.partition = partition
        self.lanes: dict[tuple[str, str], Lane] = {}  # by (session, sender_id)
        self.is_open = False
        self.epoch = 0  # the highest that was seen
        self.body_bytes_max = limits.body_bytes_max  # of the SessionActor
        self.waiting: deque[Lane] = deque()
        self.in_flight_messages = 0
        self.in_flight_bytes = 0
        self.jitter = 0.0  # of its ladder
        self.send_alone: Callable[[Lane], bool] = _cannot  # the link's
        self._limits = limits
        self._watched: list[Lane] = []

    def add(self, lane: Lane) -> None:
        """`lane` belongs to this partition, and its name on the wire is its present sender_id."""
        lane.flow = self
        self.lanes[(lane.session, lane.sender_id)] = lane
        self.ready(lane)

    def remove(self, lane: Lane) -> None:
        """Answers under the lane's present sender_id mean nothing from now on."""
        self.lanes.pop((lane.session, lane.sender_id), None)

    def ready(self, lane: Lane) -> None:
        """`lane` may have something to submit."""
        if not lane.queued and lane.saved > lane.sent:
            lane.queued = True
            self.waiting.append(lane)

    def ready_first(self, lane: Lane) -> None:
        """As `ready`, before the others: it had its turn, and goes back."""
        if not lane.queued and lane.saved > lane.sent:
            lane.queued = True
            self.waiting.appendleft(lane)

    @property
    def busy(self) -> bool:
        """Whether something is in flight, or held back by a refusal: the ladder has to be looked at."""
        return bool(self._watched)

    # ------------------------------------------------------------------ openings

    def opened(self, epoch: int, body_bytes_max: int) -> bool:
        """The SessionActor takes submissions in `epoch`. False: it has lost the partition to a higher one; look elsewhere."""
        if epoch < self.epoch:
            self.closed()
            return False
        self.closed()
        self.epoch = epoch
        self.body_bytes_max = body_bytes_max
        self.is_open = True
        return True

    def closed(self) -> None:
        """The connection is lost, or its SessionActor waits: what has no outcome goes out again at the next opening."""
        self.is_open = False
        watched, self._watched = self._watched, []
        for lane in watched:
            lane.watched = lane.held = False
            lane.sent = lane.sent_bytes = lane.tries = lane.back_to = 0
            self.ready(lane)
        self.in_flight_messages = self.in_flight_bytes = 0

    # ------------------------------------------------------------------ submissions

    def take(self, now: float) -> tuple[list[list[Any]], list[list[Any]]] | None:
        """The next submission: runs for SUBMIT, then numbers for GIVE_UP. None when nothing can go now."""
        waiting = self.waiting
        limits = self._limits
        messages_left = limits.in_flight_messages_max - self.in_flight_messages
        bytes_left = min(limits.submit_bytes_max, limits.in_flight_bytes_max - self.in_flight_bytes)
        if not self.is_open or not waiting or messages_left <= 0 or bytes_left <= 0:
            return None
        run_messages_max = limits.run_messages_max
        runs: list[list[Any]] = []
        given_up: list[list[Any]] = []
        again: list[Lane] = []
        while waiting and messages_left > 0 and bytes_left > 0:
            lane = waiting.popleft()
            lane.queued = False
            first, upto = lane.sent, lane.saved
            if lane.conflicted or lane.refusals or lane.stopped is not None or lane.held:
                upto = self._upto_in_trouble(lane, given_up, min(messages_left, run_messages_max), now)
                if lane.sent != first:  # numbers were given up: the rest of the lane follows in the next submission
                    messages_left -= lane.sent - first
                    bytes_left -= (lane.sent - first) * lane.overhead_bytes
                    again.append(lane)
                    continue
            count = upto - first
            if count <= 0:
                continue
            size = lane.saved_bytes - lane.sent_bytes
            if upto != lane.saved or count > messages_left or count > run_messages_max or size > bytes_left:
                count, size = lane.fit(first, upto, min(messages_left, run_messages_max), bytes_left)
            if lane.keys and count > limits.keyed_run_messages_max:
                count, size = lane.fit(first, upto, limits.keyed_run_messages_max, bytes_left)
            end = first + count
            first_n = lane.first_n + first
            run = [lane.session, lane.sender_id, first_n, lane.times[first:end], lane.bodies[first:end]]
            if lane.keys and (keys := lane.keys_of(first, end)):
                run.append(keys)
                bytes_left -= sum(len(key) for key in keys if key is not None)
            runs.append(run)
            self._count_in(lane, count, size, now)
            messages_left -= count
            bytes_left -= size + lane.overhead_bytes
            if end < lane.saved:
                again.append(lane)
        for lane in again:
            self.ready(lane)
        return (runs, given_up) if runs or given_up else None

    def take_alone(self, lane: Lane, now: float) -> list[Any] | None:
        """As `take`, for the only message that waits anywhere: its run, to be packed at once. None: not this way."""
        if not self.is_open or lane.conflicted or lane.refusals or lane.held or lane.keys or lane.stopped is not None:
            return None
        size = lane.size_bytes
        lane.saved = lane.sent = 1
        lane.saved_bytes = lane.sent_bytes = size
        lane.tried_at = now
        n = lane.first_n
        if n > lane.submitted_n:
            lane.submitted_n = n
        self.in_flight_messages += 1
        self.in_flight_bytes += size
        if not lane.watched:
            lane.watched = True
            self._watched.append(lane)
        return [lane.session, lane.sender_id, n, lane.times, lane.bodies]

    def _count_in(self, lane: Lane, count: int, size: int, now: float) -> None:
        if lane.sent == 0:
            lane.tried_at = now
        lane.sent += count
        lane.sent_bytes += size
        submitted_n = lane.first_n + lane.sent - 1
        if submitted_n > lane.submitted_n:
            lane.submitted_n = submitted_n
        self.in_flight_messages += count
        self.in_flight_bytes += size
        if not lane.watched:
            lane.watched = True
            self._watched.append(lane)

    def _upto_in_trouble(self, lane: Lane, given_up: list[list[Any]], messages_max: int, now: float) -> int:
        """Up to which index this lane may be submitted; asks for skips if the next numbers were refused or given up."""
        if lane.stopped is not None or lane.held:
            return 0
        upto = lane.saved
        if lane.conflicted:
            upto = min(upto, lane.submitted_n - lane.first_n + 1)
        n = lane.first_n + lane.sent
        if n in lane.refusals and lane.sent < upto:
            end = min(upto, lane.sent + messages_max)
            while n in lane.refusals and lane.sent < end:
                given_up.append([lane.session, lane.sender_id, n])
                self._count_in(lane, 1, len(lane.bodies[lane.sent]) + MESSAGE_OVERHEAD_BYTES, now)
                n += 1
            return 0
        refused = min((number for number in lane.refusals if number > n), default=n + upto)
        return min(upto, refused - lane.first_n)

    def give_up(self, lane: Lane, errors: dict[int, TrilogueError]) -> None:
        """These numbers will never be taken as messages: each is asked to become a skip when its lane has its turn."""
        lane.refusals.update(errors)
        n = min(errors)
        if n - lane.first_n < lane.sent:
            lane.back_to = n
            self.go_back(lane, n)
        self.ready_first(lane)

    def count_out(self, messages: int, size: int) -> None:
        """That much has left flight: it has its outcome, or goes back."""
        self.in_flight_messages -= messages
        self.in_flight_bytes -= size

    def go_back(self, lane: Lane, n: int) -> None:
        """Take `n` and all above it out of flight; they are submitted again when the lane has its next turn."""
        self.count_out(*lane.recall(max(n - lane.first_n, 0)))

    def hold(self, lane: Lane, n: int, now: float) -> None:
        """As `go_back`, but the lane's next turn comes with the ladder only."""
        self.go_back(lane, n)
        lane.held = True
        lane.tried_at = now
        if not lane.watched:
            lane.watched = True
            self._watched.append(lane)

    # ------------------------------------------------------------------ the ladder

    def overdue(self, now: float) -> float | None:
        """Send lanes back whose time has come; return when the next one's comes (None: none is in flight)."""
        if not self.is_open:
            return None
        next_due: float | None = None
        still: list[Lane] = []
        for lane in self._watched:
            if lane.sent == 0 and not lane.held:
                lane.watched = False
                continue
            still.append(lane)
            due = lane.tried_at + retry_after_s(lane.tries, self.jitter)
            if due <= now:
                lane.tries += 1
                lane.tried_at = now
                lane.held = False
                lane.back_to = 0
                self.go_back(lane, lane.first_n)
                self.ready_first(lane)
                due = now + retry_after_s(lane.tries, self.jitter)
            if next_due is None or due < next_due:
                next_due = due
        self._watched = still
        return next_due

    def forget(self, lanes: Iterable[Lane]) -> None:
        """These lanes have nothing left, and their numbers will never be used again."""
        for lane in lanes:
            self.remove(lane)


def _cannot(lane: Lane) -> bool:
    """Before there is a link."""
    return False
