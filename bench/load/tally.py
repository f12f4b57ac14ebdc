"""What one reader of one session got, against what it had to get.

Owns the comparison, message by message, while it runs. It is pure, and shares no code with what it judges: it knows that a
message has a `seq` and a `body`. Invariant: `missing`, `repeated` and `wrong` are 0 only if the reader got each seq from 1 to
`total` once, in order, with the body that was handed over under it.

A body is its message's number, the moment of its hand-over (8 bytes each), and noise that follows from the number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Protocol

from trilogue.bench.load.workload import NOISE_OFFSETS

_NUMBER = _MOMENT = struct.Struct("<Q")
MOMENT_AT = 8
REST_AT = MOMENT_AT + _MOMENT.size
STAMPED_BYTES_MIN = REST_AT


class Delivered(Protocol):
    """A message, as far as it matters here."""

    @property
    def seq(self) -> int:
        """Its place in the session."""

    @property
    def body(self) -> bytes:
        """What was sent."""


def stamped(body: bytes, moment_ns: int) -> bytes:
    """The body with the moment of its hand-over inside."""
    return body[:MOMENT_AT] + _MOMENT.pack(moment_ns) + body[REST_AT:]


def moment_of(body: bytes) -> int:
    """When it was handed over."""
    moment: int = _MOMENT.unpack_from(body, MOMENT_AT)[0]
    return moment


class Expected:
    """The bodies that all readers of one process expect: message `seq` holds number `seq - 1`. 0.2 µs each: a check
    that cost more than what it checks would be what is measured."""

    def __init__(self, body: Callable[[int], bytes], total: int) -> None:
        self.total = total
        self._size = len(body(0))
        self._rests = [body(number)[REST_AT:] for number in range(min(NOISE_OFFSETS, total))]  # then they come again

    def are(self, first_seq: int, messages: Sequence[Delivered]) -> bool:
        """Whether these are the messages from `first_seq` on, with the right bodies."""
        first, count = first_seq - 1, len(messages)
        if [message.seq for message in messages] != list(range(first_seq, first_seq + count)):
            return False
        bodies = [message.body for message in messages]
        if {*map(len, bodies)} != {self._size} or first + count > self.total:
            return False
        rests = self._rests
        turned = islice(cycle(rests), first % len(rests), first % len(rests) + count)
        return all(map(bytes.endswith, bodies, turned)) and all(
            map(bytes.startswith, bodies, map(_NUMBER.pack, range(first, first + count)))
        )


class Tally:
    """One reader."""

    __slots__ = ("_expected", "_seen", "at", "got", "repeated", "wrong")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._seen: set[int] | None = None  # only once something was wrong
        self.at = 0  # the last seq up to which all is well
        self.got = self.repeated = self.wrong = 0

    def take(self, messages: Sequence[Delivered]) -> None:
        """The next messages that the reader got."""
        self.got += len(messages)
        if self._seen is None and self._expected.are(self.at + 1, messages):
            self.at += len(messages)
            return
        if self._seen is None:
            self._seen = set(range(1, self.at + 1))
        for message in messages:
            if message.seq in self._seen:
                self.repeated += 1
                continue
            if message.seq != self.at + 1 or not self._expected.are(message.seq, [message]):
                self.wrong += 1
            self._seen.add(message.seq)
            self.at = max(self.at, message.seq)

    @property
    def missing(self) -> int:
        """How many of the messages never came."""
        seen = self.at if self._seen is None else len(self._seen)
        return max(self._expected.total - seen, 0)

    @property
    def done(self) -> bool:
        """Whether all have come, or as many as there are."""
        return self.got >= self._expected.total
