"""How long to wait before trying again.

Owns the two ladders of a client: one for messages that no answer came for (design §10), one for connections. It must
not know a clock or a source of randomness: jitter is passed in. Invariants: a step never shrinks, and none is longer
than the last one.
"""

from __future__ import annotations

RETRY_S = (1.0, 3.0, 5.0)
RECONNECT_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
PING_AFTER_S = 2.0
DEAD_AFTER_S = 6.0


def retry_after_s(tries: int) -> float:
    """Seconds from the submission number `tries` (0 is the first one) to the next: 1, 3, 5, then 5 for ever."""
    return RETRY_S[tries] if tries < len(RETRY_S) else RETRY_S[-1]


def reconnect_after_s(attempt: int, jitter: float) -> float:
    """Seconds before the connection attempt number `attempt` since the last one that worked: the first is made at once.

    `jitter` in [0, 1) shortens the wait by up to a half, so that the clients of a restarted process do not all come
    back in the same instant.
    """
    step = RECONNECT_S[attempt] if attempt < len(RECONNECT_S) else RECONNECT_S[-1]
    return step * (1.0 - jitter / 2)
