"""The order of what arrives for a reader.

Owns the last seq that was handed on, and what arrived too early. It must not know subscriptions, connections or asyncio.
Rules (G7):

1. Handed on is only what follows the last seq without a hole, each seq once.
2. What was seen before is dropped.
3. What comes too early is kept, up to `early_messages_max`; `missing` says what to ask for. Beyond that it is dropped: it
   will be asked for, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from trilogue.actors.protocol.messages import Message, Run, messages_of, part_of


class Inbox:
    """One session's messages after `after`, in order."""

    __slots__ = ("_early", "_early_messages", "_early_messages_max", "_seen_upto", "at")

    def __init__(self, after: int, early_messages_max: int) -> None:
        self.at = after  # the last seq that was handed on
        self._early: dict[int, Run] | None = None  # a client may have ten thousand inboxes, and none of them needs it
        self._early_messages = 0
        self._early_messages_max = early_messages_max
        self._seen_upto = after

    def add(self, runs: Iterable[Run]) -> list[Message]:
        """Take runs in any order; return the messages that can be handed on now, in seq order."""
        ready: list[Message] = []
        for run in runs:
            last_seq = run.first_seq + len(run.bodies) - 1
            self._seen_upto = max(self._seen_upto, last_seq)
            if run.first_seq > self.at + 1:
                self._keep(run)
                continue
            ready += self._hand_on(run, last_seq)
            while self._early:
                early_runs = self._early
                start = next((s for s, early in early_runs.items() if s <= self.at + 1), None)
                if start is None:
                    break
                early = early_runs.pop(start)
                self._early_messages -= len(early.bodies)
                ready += self._hand_on(early, start + len(early.bodies) - 1)
        return ready

    def follow_on(self, first_seq: int, last_seq: int) -> bool:
        """Whether all of these seqs can be handed on now, as they nearly always can: then they count as handed on."""
        if first_seq != self.at + 1 or self._early or self._seen_upto > self.at:
            return False
        self.at = self._seen_upto = last_seq
        return True

    @property
    def missing(self) -> tuple[int, int] | None:
        """(after, upto) of the first hole: what has to be asked for before anything more can be handed on."""
        if self._early:
            return self.at, min(self._early) - 1
        if self._seen_upto > self.at:
            return self.at, self._seen_upto
        return None

    def _hand_on(self, run: Run, last_seq: int) -> list[Message]:
        if last_seq <= self.at:
            return []
        part = part_of(run, self.at + 1, last_seq - self.at)
        self.at = last_seq
        return messages_of(part)

    def _keep(self, run: Run) -> None:
        if self._early is None:
            self._early = {}
        known = self._early.get(run.first_seq)
        if known is not None and len(known.bodies) >= len(run.bodies):
            return
        added = len(run.bodies) - (len(known.bodies) if known is not None else 0)
        if self._early_messages + added <= self._early_messages_max:
            self._early[run.first_seq] = run
            self._early_messages += added
