"""What is sent: which session each message goes to, and its body. All of it follows from the seed.

Owns the making of synthetic messages. It is pure. Invariants: the same `Workload` makes the same messages in every process;
each body starts with its message's own number, so that no two are equal and a mix-up shows when they are read back.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.limits import DEFAULT_LIMITS

_NUMBER = struct.Struct("<Q")
BODY_BYTES_MIN = _NUMBER.size
BODY_BYTES_MAX = DEFAULT_LIMITS.body_bytes_max
MESSAGES_MAX = 20_000_000
SESSIONS_MAX = 1_000_000
NOISE_OFFSETS = 4093


@dataclass(frozen=True, slots=True)
class Workload:
    """`messages` messages of `body_bytes` bytes to `sessions` sessions in an order that `seed` fixes."""

    messages: int
    sessions: int
    body_bytes: int
    seed: int

    def __post_init__(self) -> None:
        """Raise `UsageError` unless the numbers can be run."""
        _in_range("--messages", self.messages, 1, MESSAGES_MAX)
        _in_range("--sessions", self.sessions, 1, SESSIONS_MAX)
        if self.body_bytes < BODY_BYTES_MIN:
            raise UsageError(f"--body-bytes {self.body_bytes}: at least {BODY_BYTES_MIN}, a message's number is inside")
        _in_range("--body-bytes", self.body_bytes, BODY_BYTES_MIN, BODY_BYTES_MAX)

    def order(self) -> array[int]:
        """For each message the number of its session, drawn at random: no session is served in step with another."""
        return array("I", random.Random(self.seed).choices(range(self.sessions), k=self.messages))

    def bodies(self) -> Callable[[int], bytes]:
        """A function from a message's number to its body: the number, then noise that does not compress."""
        rest = self.body_bytes - BODY_BYTES_MIN
        noise = random.Random(self.seed + 1).randbytes(rest + NOISE_OFFSETS)
        number_of = _NUMBER.pack

        def body(number: int) -> bytes:
            start = number % NOISE_OFFSETS
            return number_of(number) + noise[start : start + rest]

        return body


def _in_range(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise UsageError(f"{option} {value}: between {lowest} and {highest:,}")
