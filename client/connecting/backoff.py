"""How long to wait before trying again.

Owns the two ladders of a client: one for messages that no answer came for (design §10), one for look-ups and connections; the
bound on connection attempts that follows from it; and how long a silence may last. It must not know a clock or a source of
randomness: time and jitter are passed in. Invariants: a step never shrinks, and none is longer than the last one.

The second ladder is for a partition whose SessionActor has died: a spare has it after some 50 ms, so a person does not notice
that if the client looks every 10 or 20 ms at first. After a second it is no failover, and one look each second is enough.

**The bound on attempts.** All connections of a client begin at one `Pace`, whatever they are for, and however many partitions,
sessions and places it has. In any t seconds in which nobody answers it, a client begins at most

    attempts_max(t) = 15 + 2 · (t - 0.73)        (from t = 0.73 s on; fewer before; 20 in the mean for t = 5 s)

connections: 15 steps of the ladder up to half a second, each shortened by the most jitter, then two a second. An answer
(an actor that says OPEN, or where the partitions are) starts the ladder anew. So a network that is up for a while and down for
D seconds costs `attempts_max(D)`, and while it is up, one attempt for each connection that is made. At any one place one
attempt at a time is under way.
"""

from __future__ import annotations

RETRY_S = (1.0, 3.0, 5.0)
RETRY_JITTER = 0.2
RECONNECT_S = (0.0, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.04, 0.04, 0.08, 0.08, 0.16, 0.16, 0.3, 0.5, 1.0)
JITTER = 0.5
OLD_ROUTE_AFTER_S = 0.1  # a lost connection is tried at the same place again when nothing newer has appeared for so long
LOOK_AFTER_S = 0.3  # of silence, and again each such time: a store answers in 1 to 20 ms, a paused process not at all


def retry_after_s(tries: int, jitter: float = 0.0) -> float:
    """Seconds from the submission number `tries` (0 is the first one) to the next: 1, 3, 5, then 5 for ever.

    `jitter` in [0, 1) makes them longer by up to a fifth, so that clients which were refused together do not return together.
    """
    step = RETRY_S[tries] if tries < len(RETRY_S) else RETRY_S[-1]
    return step * (1.0 + RETRY_JITTER * jitter)


def reconnect_after_s(attempt: int, jitter: float) -> float:
    """Seconds before the attempt number `attempt` since a connection was of use or a newer writer known: none before the first.

    `jitter` in [0, 1) shortens the wait by up to a half, so that the clients of a restarted process do not all come
    back in the same instant.
    """
    step = RECONNECT_S[attempt] if attempt < len(RECONNECT_S) else RECONNECT_S[-1]
    return step * (1.0 - JITTER * jitter)


def attempts_max(unanswered_s: float) -> int:
    """How many connections one client may begin in so many seconds in which nobody answers it."""
    attempts, at = 1, 0.0
    while True:
        at += reconnect_after_s(attempts, 1.0)
        if at > unanswered_s + 1e-9:
            return attempts
        attempts += 1


class Pace:
    """When a client may begin its next connection: `reconnect_after_s(k)` after the last one began, if that was the k-th since
    anybody answered."""

    __slots__ = ("_began_at", "_jitter", "_unanswered")

    def __init__(self) -> None:
        self._unanswered = 0
        self._began_at = float("-inf")
        self._jitter = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the next one may begin; not positive: now."""
        return self._began_at + reconnect_after_s(self._unanswered, self._jitter) - now

    def began(self, now: float, jitter: float) -> None:
        """One begins. `jitter` is that of the wait which follows."""
        self._began_at, self._jitter = now, jitter
        self._unanswered += 1

    def answered(self) -> None:
        """Somebody of the system has answered: the network is there."""
        self._unanswered = 0
