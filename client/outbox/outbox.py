"""What was handed over and has no outcome yet: the numbering of all lanes, and the bounds.

Owns the lanes by (session, sender), the outbox id under which new ones number, and how much waits. This one is in memory;
``file`` keeps the same in SQLite. It must not know connections or answers. Rules:

1. A lane that was forgotten is never numbered again under its old outbox id: forgetting gives new lanes a new one.
2. A message may be submitted only once it is saved: here that is at once, in a file after its commit.
3. Room is counted when a message is handed over and given back when it has its outcome.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from trilogue.actors.protocol.errors import TrilogueError, Unsent
from trilogue.actors.protocol.ids import check_sender, check_session
from trilogue.actors.protocol.limits import Limits
from trilogue.client.sending.lanes import Lane, Waiter

logger = logging.getLogger(__name__)

CONFLICTS_KEPT_MAX = 1000

Tell = Callable[[TrilogueError | None], None]
"""Who is told that something is durable now, or what prevents that."""


class Outbox:
    """An outbox in memory. `wake` is called when lanes became dirty by themselves: `save` is due."""

    durable = False

    def __init__(self, limits: Limits, fresh_id: Callable[[], str], wake: Callable[[], None]) -> None:
        self.outbox_id = fresh_id()
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.cache: dict[tuple[str, str | None], Lane] = {}  # as callers name them; None is the client's own sender
        self.dirty: list[Lane] = []
        self.messages = 0
        self.bytes = 0
        self.failed: TrilogueError | None = None  # why nothing can be handed over any more
        self.conflicts: deque[str] = deque(maxlen=CONFLICTS_KEPT_MAX)
        self._limits = limits
        self._fresh_id = fresh_id
        self._wake = wake

    # ------------------------------------------------------------------ lanes

    def lane(self, session: str, sender: str) -> Lane:
        """The lane of this sender in this session; a new one numbers from 1. Raises what is wrong with the names."""
        lane = self.lanes.get((session, sender))
        if lane is None:
            check_session(session)
            check_sender(sender)
            if len(self.lanes) >= self._limits.lanes_max:
                self.forget_idle()
            lane = self.lanes[(session, sender)] = Lane(session, sender, self.outbox_id)
        return lane

    def forget_idle(self) -> None:
        """Forget the lanes that have nothing left; new ones number under a new outbox id."""
        self.outbox_id = self._fresh_id()
        idle = [lane for lane in self.lanes.values() if not lane.bodies and lane.stopped is None]
        for lane in idle:
            del self.lanes[(lane.session, lane.sender)]
            self.retire(lane)
            if lane.flow is not None:
                lane.flow.remove(lane)
        self.cache.clear()

    def rename(self, lane: Lane) -> None:
        """Number what the lane still holds anew, under a new outbox id: nothing of it was ever submitted."""
        flow = lane.flow
        if flow is not None:
            flow.remove(lane)
        self.retire(lane)
        suspect = lane.outbox_id == self.outbox_id
        lane.rename(self._fresh_id())
        lane.number_anew()
        lane.conflicted = False
        lane.early.clear()
        lane.saved = lane.saved_bytes = 0
        if lane.bodies:
            self.mark(lane)
        if flow is not None:
            flow.add(lane)
        if suspect:
            self.forget_idle()

    def mark(self, lane: Lane) -> None:
        """`lane` holds messages that are not saved."""
        if not lane.dirty:
            lane.dirty = True
            self.dirty.append(lane)
            self._wake()

    def unheard(self, lane: Lane, n: int, error: TrilogueError) -> None:
        """A message that nobody waits for, handed over by a former process, was refused."""
        text = f"session {lane.session!r}, sender {lane.sender!r}, number {n}: {error}"
        self.conflicts.append(text)
        logger.warning("a message of a former process was not stored: %s", text)

    # ------------------------------------------------------------------ what a file does otherwise

    def save(self) -> None:
        """Save what is dirty."""
        dirty, self.dirty = self.dirty, []
        for lane in dirty:
            lane.dirty = False
            lane.saved = len(lane.bodies)
            lane.saved_bytes = lane.size_bytes
            if lane.flow is not None and not lane.queued and lane.saved > lane.sent:
                lane.queued = True
                lane.flow.waiting.append(lane)

    def settled(self, lane: Lane) -> None:
        """Messages of a lane that has parts in a file have their outcome."""

    def give_up(self, lane: Lane, n: int, tell: Tell) -> None:
        """Number `n` will not be sent any more, by no process: `tell` is called once that is as durable as the message is."""
        tell(None)

    @property
    def given_up(self) -> int:
        """How many messages were given up, or refused for good, and wait for their skip."""
        return sum(len(lane.refusals) for lane in self.lanes.values())

    def retire(self, lane: Lane) -> None:
        """The lane's numbers under its present outbox id will never be used again."""

    def abandon(self, lane: Lane) -> None:
        """The lane stopped: what it holds fails, and stays in the file if there is one."""
        self.cache.clear()

    # ------------------------------------------------------------------ room

    @property
    def roomy(self) -> bool:
        """Whether the outbox is at most half full: those who drain may go on."""
        limits = self._limits
        return self.messages <= limits.outbox_messages_max // 2 and self.bytes <= limits.outbox_bytes_max // 2

    def fail_rest(self) -> list[Waiter]:
        """The client closes: tell everybody who still waits; return whom it told."""
        error = self.left_behind(self.messages)
        told: list[Waiter] = []
        for lane in self.lanes.values():
            futures, _ = lane.pop(len(lane.bodies))
            for future in futures:
                if future is not None and not future.done():
                    future.set_exception(error)
                    told.append(future)
        self.messages = self.bytes = 0
        return told

    def left_behind(self, count: int) -> TrilogueError:
        """What those hear who still wait when the client closes."""
        return Unsent(count)
