"""Idempotency keys: what a session knows of a key, and for how long (design §8).

Owns what "the same key" and "the same message" mean, and when a key is forgotten. It must not know where keys are kept
(``session_states``, the stores' index) or how numbers are given. Rules:

1. A key's scope is its session. It is honoured for `key_honoured_ms` of *log time*: from the `stored_at_us` of its message to
   that of the one which repeats it. Both stand in the log, so every writer and `verify` decide alike; no clock is asked.
2. A repeated key with the same body is answered with the original's seq, under whatever number and sender it comes. Its number
   is logged as an alias of that seq, so that the next one can follow.
3. A repeated key with another body is refused for good: to drop it would lose a message in silence, and to store it would break
   what the key is for. Bodies are compared by a digest of 128 bits.
4. A repetition does not prolong a key's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

DIGEST_BYTES = 16


class KnownKey(NamedTuple):
    """What a session knows of a key. `record` counts as `SessionState.last_record` does; 0: it was told by a store."""

    seq: int  # of its message; 0: there is none
    stored_at_us: int
    digest: bytes
    record: int = 0


NO_MESSAGE = KnownKey(0, 0, b"")
"""No message has this key: a store has said so."""


def digest_of(body: bytes) -> bytes:
    """What two bodies are compared by."""
    return blake2b(body, digest_size=DIGEST_BYTES).digest()


def is_honoured(known: KnownKey | None, now_us: int, honoured_us: int) -> bool:
    """Whether a message stored at `now_us` repeats this key's."""
    return known is not None and known.seq > 0 and now_us - known.stored_at_us < honoured_us


def new_upto(keys: Sequence[str | None], at: int, known: Mapping[str, KnownKey], now_us: int, honoured_us: int) -> int:
    """Up to which index, from `at` on, no key repeats one that is honoured, or an earlier one of these."""
    seen: set[str] = set()
    for k in range(at, len(keys)):
        key = keys[k]
        if key is not None:
            if key in seen or is_honoured(known.get(key), now_us, honoured_us):
                return k
            seen.add(key)
    return len(keys)
