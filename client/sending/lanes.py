"""One lane: what one sender has handed over in one session, from its number to its answer.

Owns n: `first_n` is the lowest number without an answer, and message k of the lists has the number first_n + k. It must not
know connections, files, clocks or asyncio: a caller who waits is anything with `done`, `set_result` and `set_exception`.
Rules:

1. The lists run in parallel, one entry a message: no object per message is made for what only passes through.
2. Of the messages, the first `saved` are in the outbox and may be submitted; of these, the first `sent` are in flight on
   the present connection: ``sent <= saved <= len(bodies)``, and the byte counts follow.
3. Messages leave from the front only, when their outcome is known: stored, a skip, or refused for good. An outcome that
   comes early waits in `early`.
4. A number that was refused for good, or given up, stands in `refusals`: it is never submitted again, but asked to become a
   skip. What its caller hears when it has become one stands beside it.
5. No number is used for two bodies: `submitted_n` says which numbers a connection may have seen. After a conflict only what
   lies above it is numbered anew, under a new outbox id, once all that lies below has its outcome.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from trilogue.actors.protocol.errors import GivenUp, TrilogueError
from trilogue.actors.protocol.ids import sender_id_of

if TYPE_CHECKING:
    from trilogue.client.sending.flow import Flow

MESSAGE_OVERHEAD_BYTES = 16
RUN_OVERHEAD_BYTES = 48


TOLD_BEFORE = GivenUp("a former process gave it up, and has told its sender", False)
"""What stands in `refusals` for a number that an outbox's file says was given up."""


class Waiter(Protocol):
    """Whoever waits for an answer: a future of asyncio or of a thread, or a test's stand-in."""

    def done(self) -> bool:
        """Whether it waits no more: it was answered or cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Hand it the Ack."""

    def set_exception(self, exception: Any, /) -> None:
        """Hand it the error."""


class Outcome(NamedTuple):
    """What became of so many consecutive numbers: stored from `first_seq` on (0: a skip), or refused for good."""

    messages: int
    first_seq: int
    duplicate: bool
    copies: int
    epoch: int
    error: TrilogueError | None


class Part(Protocol):
    """A group of messages in the outbox's file, counted down as its lanes' messages get their outcomes."""

    unsettled: int


class Lane:
    """The messages of one sender in one session that have no outcome yet, and the number of the next."""

    __slots__ = (
        "back_to", "bodies", "conflicted", "dirty", "early", "error", "failures", "first_n", "flow", "futures", "held", "keys",
        "outbox_id", "overhead_bytes", "parts", "queued", "refusals", "saved", "saved_bytes", "sender", "sender_id", "sent",
        "sent_bytes", "session", "shift", "size_bytes", "stopped", "submitted_n", "times", "tried_at", "tries", "watched",
    )  # fmt: skip

    def __init__(self, session: str, sender: str, outbox_id: str, first_n: int = 1) -> None:
        self.session = session
        self.sender = sender
        self.flow: Flow | None = None  # of the session's partition, as soon as that is known
        self.rename(outbox_id)
        self.overhead_bytes = RUN_OVERHEAD_BYTES + len(session.encode()) + len(self.sender_id.encode())
        self.first_n = first_n
        self.shift = 0  # what to add to a number to get one that stays what it is when the lane is numbered anew
        self.submitted_n = first_n - 1
        self.bodies: list[bytes] = []
        self.times: list[int] = []
        self.futures: list[Waiter | None] = []
        self.keys: dict[int, str] = {}  # idempotency keys, by number plus `shift`: most messages have none
        self.size_bytes = self.saved_bytes = self.sent_bytes = 0
        self.saved = self.sent = 0
        # where it stands in queues
        self.dirty = False  # the outbox knows that there is something to save
        self.queued = False  # the flow knows that there is something to submit
        self.watched = False  # the flow's ladder looks at it
        # trouble
        self.held = False  # refused for now: only the ladder submits it again
        self.back_to = 0  # the expected_n that it went back to last, until there is progress
        self.tried_at = 0.0
        self.tries = 0
        self.conflicted = False
        self.stopped: TrilogueError | None = None
        self.refusals: dict[int, TrilogueError] = {}
        self.early: dict[int, Outcome] = {}
        self.failures = 0
        self.error: TrilogueError | None = None  # the last failure, for those who flush
        self.parts: deque[tuple[int, Part]] | None = None  # (last n, group in the file), in the order of n

    def rename(self, outbox_id: str) -> None:
        """From now on number under this outbox id."""
        self.outbox_id = outbox_id
        self.sender_id = sender_id_of(self.sender, outbox_id)

    def number_anew(self) -> None:
        """What the lane holds has the numbers from 1 on now. None of it was ever submitted."""
        before = self.first_n - 1
        self.shift += before
        self.refusals = {n - before: error for n, error in self.refusals.items()}
        self.first_n, self.submitted_n = 1, 0

    @property
    def next_n(self) -> int:
        """The number of the next message that is handed over."""
        return self.first_n + len(self.bodies)

    def fit(self, at: int, upto: int, messages_max: int, bytes_max: int) -> tuple[int, int]:
        """How many messages from index `at` on fit both bounds, and their bytes: at least one; the last may overfill."""
        count = size = 0
        for body in self.bodies[at : min(upto, at + messages_max)]:
            count += 1
            size += len(body) + MESSAGE_OVERHEAD_BYTES
            if size >= bytes_max:
                break
        return count, size

    def bytes_of(self, count: int) -> int:
        """The bytes of the first `count` messages."""
        if count == len(self.bodies):
            return self.size_bytes
        return sum(map(len, self.bodies[:count])) + MESSAGE_OVERHEAD_BYTES * count

    def put_key(self, key: str) -> int:
        """The message that was handed over last has this key; returns the bytes that it takes in the outbox."""
        self.keys[self.next_n - 1 + self.shift] = key
        return len(key.encode())

    def keys_of(self, start: int, end: int) -> list[str | None]:
        """The keys of the messages from index `start` to `end`; empty if none of them has one."""
        if not self.keys:
            return []
        place = self.first_n + self.shift
        keys = [self.keys.get(place + k) for k in range(start, end)]
        return keys if any(key is not None for key in keys) else []

    @property
    def key_bytes(self) -> int:
        """The bytes of all its keys, which the other counts leave out."""
        return sum(len(key.encode()) for key in self.keys.values())

    def recall(self, count: int) -> tuple[int, int]:
        """Take all but the first `count` messages out of flight; return how many that were, and their bytes."""
        if count >= self.sent:
            return 0, 0
        kept_bytes = self.bytes_of(count) if count else 0
        messages, size = self.sent - count, self.sent_bytes - kept_bytes
        self.sent, self.sent_bytes = count, kept_bytes
        return messages, size

    def pop(self, count: int) -> tuple[list[Waiter | None], int]:
        """Take the first `count` messages out of the lists; return who waits for them, and their bytes, keys included.

        The counts of what is saved and sent follow; the flow and the outbox have counts of their own.
        """
        futures = self.futures
        key_bytes = self._pop_keys(0, count) if self.keys else 0
        if count == len(futures):
            size = self.size_bytes
            self.futures = []
            self.bodies.clear()
            self.times.clear()
            self.size_bytes = self.saved_bytes = self.sent_bytes = self.saved = self.sent = 0
        else:
            size = sum(map(len, self.bodies[:count])) + MESSAGE_OVERHEAD_BYTES * count
            futures = futures[:count]
            del self.bodies[:count], self.times[:count], self.futures[:count]
            self.size_bytes -= size
            if count >= self.saved:
                self.saved = self.saved_bytes = 0
            else:
                self.saved -= count
                self.saved_bytes -= size
            if count >= self.sent:
                self.sent = self.sent_bytes = 0
            else:
                self.sent -= count
                self.sent_bytes -= size
        self.first_n += count
        return futures, size + key_bytes

    def drop_unsaved(self) -> tuple[list[Waiter | None], int]:
        """Take what is not saved out of the lists; return who waits for it, and its bytes, keys included."""
        saved, futures = self.saved, self.futures[self.saved :]
        size = self.size_bytes - self.saved_bytes + (self._pop_keys(saved, len(self.bodies)) if self.keys else 0)
        del self.bodies[saved:], self.times[saved:], self.futures[saved:]
        self.size_bytes = self.saved_bytes
        return futures, size

    def _pop_keys(self, start: int, end: int) -> int:
        """Forget the keys of the messages from index `start` to `end`; return their bytes."""
        place = self.first_n + self.shift
        keys = [self.keys.pop(place + k, "") for k in range(start, end)]
        return sum(len(key.encode()) for key in keys)
