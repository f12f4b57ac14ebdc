"""What the newest committed frames hold, in memory: session -> its entries, its senders' entries.

Owns the reading of frames into entries, and an estimate of the memory that they take. It must not know the catalogue, files or
connections. Rules:

1. Frames are taken in the order of their index, each once; some are thin by then (``protocol.thinning``).
2. A session's seqs are dense within it (G3). Where a session goes on from what lies before is compared by who reads both.
3. `size_bytes` rises with all that is taken in: it is what the bound of `limits.index_recent_bytes_max` counts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from trilogue.actors.index.entries import ENTRY_BYTES, Part, Place, pack_entry, sender_crc
from trilogue.actors.protocol.invariants import violated
from trilogue.actors.protocol.keys import KnownKey, digest_of
from trilogue.actors.protocol.messages import GONE, KEYED, Floor, Gone, Record, Run, Trim, keys_of, unpack_record
from trilogue.actors.protocol.thinning import records_at

# Measured with tracemalloc, CPython 3.11: names of 20 and 40 characters.
SESSION_BYTES = 430
SENDER_BYTES = 140
RECORD_BYTES = ENTRY_BYTES + 8
KEY_BYTES = 330
TRIM_BYTES = 200

LastSeq = Callable[[str], int]
"""The last seq of a session in what lies before."""

TrimmedBefore = Callable[[str], int]
"""The session's messages below this seq are gone, as all says that was taken in; 0 if none is."""


class News(NamedTuple):
    """A trim: the session's messages from `first` to below `before` are gone with it, and others were before."""

    frame_index: int
    session: str
    first: int
    before: int


class RecentSession:
    """One session: its entries in the order of the log, and for each sender which of them are his."""

    __slots__ = ("entries", "keys", "last_seq", "senders")

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.entries = bytearray()
        self.senders: dict[str, array[int]] = {}
        self.keys: dict[str, KnownKey] | None = None  # idempotency keys; None as long as there is none

    def note_keys(self, first_seq: int, stored_at_us: int, keyed: Iterable[tuple[int, str, bytes]]) -> int:
        """Messages of a run that have keys: (which one, its key, its digest) each; how much more memory that takes."""
        known = self.keys = self.keys or {}
        size = 0
        for k, key, digest in keyed:
            known.pop(key, None)  # the newest last
            known[key] = KnownKey(first_seq + k, stored_at_us, digest)
            size += KEY_BYTES + len(key)
        return size

    @property
    def part(self) -> Part:
        """All of its entries."""
        return Part(self.entries, self.last_seq)

    def last_n(self, sender_id: str) -> int:
        """The last number of a sender that it has."""
        return self.part.place(self.senders[sender_id][-1]).last_n

    def numbers(self, sender_id: str, first_n: int, last_n: int) -> Iterator[Place]:
        """The records that hold the sender's numbers from `first_n` to `last_n`."""
        own, part = self.senders.get(sender_id, ()), self.part
        start = max(0, bisect_right(own, first_n, key=lambda k: part.place(k).first_n) - 1)
        end = bisect_left(own, last_n + 1, key=lambda k: part.place(k).first_n)
        return (place for place in map(part.place, own[start:end]) if place.last_n >= first_n)


class Recent:
    """What the frames behind `after` hold, up to `upto`."""

    __slots__ = (
        "_is_first",
        "_names",
        "floor",
        "frame_crc",
        "last_stored_at_us",
        "news",
        "sessions",
        "size_bytes",
        "trims",
        "upto",
    )

    def __init__(self, after: int, last_stored_at_us: int, floor: int = 0) -> None:
        self.upto = after
        self._is_first = after == 0  # nothing lies before it
        self.frame_crc = 0  # of the frame at `upto`
        self.last_stored_at_us = last_stored_at_us
        self.sessions: dict[str, RecentSession] = {}
        self.trims: dict[str, int] = {}  # session -> its messages below this seq are gone
        self.floor = floor  # messages in frames up to this one are gone
        self.news: list[News] = []  # the trims since somebody looked
        self.size_bytes = 0
        self._names: dict[str, str] = {}  # one string for a sender's id, in however many sessions it is

    def take(self, frame: bytes, last_seq_before: LastSeq, trimmed_before: TrimmedBefore) -> None:
        """Take in the next frame. The hot path of a store's reading: 5 µs for a lonely message's frame."""
        at = records_at(frame)
        payload = memoryview(frame)[at:]
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(frame), read_size=len(frame))
        unpacker.feed(payload)
        sessions, names, frame_index, size = self.sessions, self._names, self.upto + 1, 0
        count = unpacker.read_array_header()
        end = unpacker.tell()
        for _ in range(count):
            item = unpacker.unpack()
            start, record = end, unpack_record(item)
            end = unpacker.tell()
            stored_at_us = record.stored_at_us
            if stored_at_us > self.last_stored_at_us:
                self.last_stored_at_us = stored_at_us
            if isinstance(record, Trim | Floor):
                size += self._trim(record, frame_index, trimmed_before)
                continue
            session, sender_id = record.session, record.sender_id
            entry = sessions.get(session)
            if isinstance(record, Run | Gone):
                first_seq, first_n = record.first_seq, record.first_n
                messages = len(record.bodies) if isinstance(record, Run) else record.messages
                if entry is None:
                    entry = sessions[session] = RecentSession(0 if self._is_first else first_seq - 1)
                    size += SESSION_BYTES + 2 * len(session)
                if first_seq != entry.last_seq + 1:
                    violated("session {!r} has a gap at seq {}", session, first_seq)
            else:
                first_n, messages = record.n, 0
                if entry is None:
                    entry = sessions[session] = RecentSession(last_seq_before(session))
                    size += SESSION_BYTES + 2 * len(session)
                first_seq = entry.last_seq + 1
            entry.last_seq += messages
            own = entry.senders.get(sender_id)
            if own is None:
                own = entry.senders[names.setdefault(sender_id, sender_id)] = array("I")
                size += SENDER_BYTES
            own.append(len(entry.entries) // ENTRY_BYTES)
            where = at + start, end - start, crc32(payload[start:end]), sender_crc(sender_id)
            if item[0] == KEYED or (item[0] == GONE and item[7]):
                size += entry.note_keys(first_seq, stored_at_us, _keyed(record, item))
            entry.entries += pack_entry(first_seq, first_n, frame_index, *where)
            size += RECORD_BYTES
        self.upto = frame_index
        self.frame_crc = int.from_bytes(frame[at - 4 : at], "little")
        self.size_bytes += size

    def _trim(self, record: Trim | Floor, frame_index: int, trimmed_before: TrimmedBefore) -> int:
        """From here on some messages are gone; how much more memory that takes."""
        if isinstance(record, Floor):
            self.floor = max(self.floor, record.upto)
            return 0
        session, before = record.session, record.before
        first = max(1, trimmed_before(session))
        if first >= before:
            return 0
        self.news.append(News(frame_index, session, first, before))
        is_new = session not in self.trims
        self.trims[session] = before
        return TRIM_BYTES + 2 * len(session) if is_new else 0


def _keyed(record: Record, item: list[Any]) -> Iterator[tuple[int, str, bytes]]:
    if isinstance(record, Gone):
        yield from map(tuple, record.keyed)
    elif isinstance(record, Run):
        for k, (key, body) in enumerate(zip(keys_of(item), record.bodies, strict=True)):
            if key is not None:
                yield k, key, digest_of(body)
