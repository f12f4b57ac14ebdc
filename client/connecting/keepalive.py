"""Whether the other end of a connection is still there.

Owns when a connection was heard, when it was asked for a sign of life, and what silence means. It must not know sockets, clocks
(`now` is told) or what is said. Rules:

1. While something is outstanding (an answer, an opening, a subscription) a connection that is silent for `PING_AFTER_S` is
   pinged; an idle one after `IDLE_PING_AFTER_S`.
2. One that does not answer a ping within `ANSWER_S` is dead. So silence is noticed within 6 s, on an idle connection within
   14 s (and a tick of a second): a half-open one, and a network that takes everything and gives nothing back.
3. A process that was stopped or busy itself has heard nothing for that reason: its silence begins anew.
"""

from __future__ import annotations

from enum import Enum

PING_AFTER_S = 2.0
IDLE_PING_AFTER_S = 10.0
ANSWER_S = 4.0


class Sign(Enum):
    """What is to be done about a silence."""

    NOTHING = 0
    PING = 1
    DEAD = 2


class KeepAlive:
    """One connection's, in the loop's time."""

    __slots__ = ("heard_at", "pinged_at")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.pinged_at = 0.0

    @property
    def asked(self) -> bool:
        """Whether a ping is unanswered."""
        return self.pinged_at > self.heard_at

    def look(self, now: float, outstanding: bool) -> Sign:
        """What this silence asks for. `PING`: it is taken to be sent now."""
        if self.asked:
            return Sign.DEAD if now - self.pinged_at >= ANSWER_S else Sign.NOTHING
        if now - self.heard_at < (PING_AFTER_S if outstanding else IDLE_PING_AFTER_S):
            return Sign.NOTHING
        self.pinged_at = now
        return Sign.PING

    def begin_anew(self, now: float) -> None:
        """The silence up to now says nothing."""
        self.heard_at, self.pinged_at = now, 0.0
