"""Where each session's messages lie in a store (design §9): derived from the journal, and disposable.

Owns, for one partition, session → its runs' places, its last seq, and its senders' last numbers. It must not know connections
or the append path: it is brought up to date from committed frames only, in the thread that reads. Rules:

1. Only committed frames enter, in order of their index: what entered is never superseded.
2. A place carries the CRC of the record's bytes, taken from a frame that was verified as a whole: a later read of the record
   alone is checked against it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from trilogue.actors.protocol.frames import HEADER_BYTES
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.messages import Record, Run, part_of, unpack_record


class Place(NamedTuple):
    """Where one record lies: inside the frame `index`, and what it holds."""

    first: int  # first_seq of a run, n of a skip
    messages: int
    frame_index: int
    offset: int
    size: int
    crc: int


class SessionEntry:
    """One session: its runs by seq, and each sender's records by n."""

    __slots__ = ("last_n", "last_seq", "runs", "senders")

    def __init__(self) -> None:
        self.last_seq = 0
        self.runs: list[Place] = []
        self.senders: dict[str, list[tuple[int, Place]]] = {}
        self.last_n: dict[str, int] = {}


SENDERS_WHOLE = 64
"""A session with so many senders, or fewer, is told as a whole."""

STATE_ITEM_BYTES = 24
"""What a session or a sender of an answer takes on the wire beside its name (at most 4 bytes a character), rounded up."""

_new = tuple.__new__

ReadFrame = Callable[[int], bytes]
"""Reads and verifies the whole frame of an index."""

ReadRecord = Callable[[Place], bytes]
"""Reads the bytes of one record."""


class StoreIndex:
    """One partition's index. Used by one thread at a time."""

    def __init__(self) -> None:
        self.upto = 0
        self.last_stored_at_us = 0
        self.sessions: dict[str, SessionEntry] = {}

    def catch_up(self, upto: int, read_frame: ReadFrame) -> None:
        """Take in the frames up to `upto`, which is committed."""
        while self.upto < upto:
            frame = read_frame(self.upto + 1)
            self.upto += 1
            self._take(frame)

    def _take(self, frame: bytes) -> None:
        """The hot path of a store's reading: 5 µs for a lonely message's frame."""
        payload = memoryview(frame)[HEADER_BYTES:]
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(frame), read_size=len(frame))
        unpacker.feed(payload)
        sessions, frame_index = self.sessions, self.upto
        count = unpacker.read_array_header()
        end = unpacker.tell()
        for _ in range(count):
            start, record = end, unpack_record(unpacker.unpack())
            end = unpacker.tell()
            where = frame_index, HEADER_BYTES + start, end - start, crc32(payload[start:end])
            stored_at_us, session, sender_id = record.stored_at_us, record.session, record.sender_id
            if stored_at_us > self.last_stored_at_us:
                self.last_stored_at_us = stored_at_us
            entry = sessions.get(session)
            if entry is None:
                entry = sessions[session] = SessionEntry()
            if isinstance(record, Run):
                messages, first_n = len(record.bodies), record.first_n
                place = _new(Place, (record.first_seq, messages, *where))
                if place.first != entry.last_seq + 1:
                    violated("session {!r} has a gap at seq {}", session, place.first)
                entry.last_seq += messages
                entry.runs.append(place)
                entry.last_n[sender_id] = first_n + messages - 1
            else:
                first_n = record.n
                place = _new(Place, (first_n, 1, *where))
                entry.last_n[sender_id] = first_n
            own = entry.senders.get(sender_id)
            if own is None:
                own = entry.senders[sender_id] = []
            own.append((first_n, place))

    def states(self, asked: Iterable[tuple[str, list[str]]], bytes_max: int) -> list[Any]:
        """What STATES answers: for each session that is asked for, in order, until about `bytes_max`; at least for one."""
        found: list[list[Any]] = []
        size = 0
        for name, senders in asked:
            if size >= bytes_max:
                break
            entry = self.sessions.get(name)
            last_n = entry.last_n if entry is not None else {}
            whole = len(last_n) <= SENDERS_WHOLE
            known = last_n if whole else {sender_id: last_n[sender_id] for sender_id in senders if sender_id in last_n}
            found.append([entry.last_seq if entry is not None else 0, known, whole, {}])
            size += STATE_ITEM_BYTES + sum(STATE_ITEM_BYTES + 4 * len(sender_id) for sender_id in known)
        return [self.last_stored_at_us, self.upto, found]

    def runs(self, session: str, after: int, limit: int, bytes_max: int, read: ReadRecord) -> list[Run]:
        """The session's messages after `after`, in seq order without a hole: `limit` at most, and about `bytes_max` bytes."""
        entry = self.sessions.get(session)
        if entry is None or after >= entry.last_seq:
            return []
        found: list[Run] = []
        at = bisect_right(entry.runs, after + 1, key=lambda place: place.first) - 1
        size = 0
        while at < len(entry.runs) and limit > 0 and size < bytes_max:
            place = entry.runs[at]
            run = unpack_record(msgpack.unpackb(read(place), raw=False))
            require(isinstance(run, Run), "a place of the index holds another record")
            assert isinstance(run, Run)
            first = max(after + 1, run.first_seq)
            count = min(limit, run.first_seq + len(run.bodies) - first)
            found.append(part_of(run, first, count))
            limit -= count
            size += place.size
            at += 1
        return found

    def recall(self, session: str, sender_id: str, first_n: int, last_n: int, read: ReadRecord) -> list[Record]:
        """The records that hold the sender's numbers from `first_n` to `last_n`."""
        entry = self.sessions.get(session)
        own = entry.senders.get(sender_id, []) if entry is not None else []
        start = max(0, bisect_right(own, first_n, key=lambda item: item[0]) - 1)
        end = bisect_left(own, last_n + 1, key=lambda item: item[0])
        records = (unpack_record(msgpack.unpackb(read(place), raw=False)) for _, place in own[start:end])
        return [_numbers_of(record, first_n, last_n) for record in records]


def _numbers_of(record: Record, first_n: int, last_n: int) -> Record:
    """The part of a record that holds the numbers asked for: an answer is no larger than what was asked about."""
    if not isinstance(record, Run):
        return record
    first = max(first_n, record.first_n)
    last = min(last_n, record.first_n + len(record.bodies) - 1)
    return part_of(record, record.first_seq + first - record.first_n, last - first + 1)
