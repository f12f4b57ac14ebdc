"""How long to wait before trying again.

Owns the two ladders of a client: one for messages that no answer came for (design §10), one for look-ups and connections; and
how long a silence may last. It must not know a clock or a source of randomness: jitter is passed in. Invariants: a step never
shrinks, and none is longer than the last one.

The second ladder is for a partition whose SessionActor has died: a spare has it after some 50 ms, so a person does not notice
that if the client looks every 10 or 20 ms at first. After a second it is no failover, and one look each second is enough.
"""

from __future__ import annotations

RETRY_S = (1.0, 3.0, 5.0)
RECONNECT_S = (0.0, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.04, 0.04, 0.08, 0.08, 0.16, 0.16, 0.3, 0.5, 1.0)
OLD_ROUTE_AFTER_S = 0.1  # a lost connection is tried at the same place again when nothing newer has appeared for so long
LOOK_AFTER_S = 0.3  # of silence, and again each such time: a store answers in 1 to 20 ms, a paused process not at all
PING_AFTER_S = 2.0
DEAD_AFTER_S = 6.0


def retry_after_s(tries: int) -> float:
    """Seconds from the submission number `tries` (0 is the first one) to the next: 1, 3, 5, then 5 for ever."""
    return RETRY_S[tries] if tries < len(RETRY_S) else RETRY_S[-1]


def reconnect_after_s(attempt: int, jitter: float) -> float:
    """Seconds before the attempt number `attempt` since a connection was of use or a newer writer known: none before the first.

    `jitter` in [0, 1) shortens the wait by up to a half, so that the clients of a restarted process do not all come
    back in the same instant.
    """
    step = RECONNECT_S[attempt] if attempt < len(RECONNECT_S) else RECONNECT_S[-1]
    return step * (1.0 - jitter / 2)
