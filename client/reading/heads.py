"""What this client knows of how far sessions have come.

Owns the highest seq that an ack or a read has shown, for each of the sessions that were met lately: a client never reads
below that (design §9). It must not know where seqs come from. Invariants: a session's seq never shrinks while it is
remembered, and at least the last `sessions_max / 2` sessions are.
"""

from __future__ import annotations

SESSIONS_MAX = 131_072


class Heads:
    """session -> highest seq shown, in two generations: whoever writes much writes into `recent`."""

    __slots__ = ("_older", "half", "recent")

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self.recent: dict[str, int] = {}
        self._older: dict[str, int] = {}
        self.half = max(sessions_max // 2, 1)

    def of(self, session: str) -> int:
        """The highest seq shown, 0 if none is remembered."""
        return max(self.recent.get(session, 0), self._older.get(session, 0))

    def note(self, session: str, seq: int) -> None:
        """`seq` exists in `session`."""
        if seq > self.recent.get(session, 0):
            self.recent[session] = seq
            self.bound()

    def bound(self) -> None:
        """Forget the older generation when the recent one is full. Whoever writes to `recent` sees that this is called."""
        if len(self.recent) > self.half:
            self._older = self.recent
            self.recent = {}
