"""Reading back a partition's log: which entries may stand in it, and what they tell the store.

Owns the checks. It must not know connections. An entry verifies as a journal's record does (``journal.scan``): its CRCs and
its padding hold, it is of this log, a control record says that it lies where it lies, a frame follows in its chain, fences
and joins only go up, a fill is a whole frame below the base. A frame that was filled in, went bad and came back in another size
stands behind the header of its FILL in a record of the form of a thin frame: it keeps its place in the log and in the chain.
There is no torn write here (each script writes all or nothing), so whatever does not verify is `Corrupt`: the store serves
nothing, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from trilogue.actors.journal import (
    Doubted,
    Entry,
    FenceRecord,
    FillRecord,
    FrameFilled,
    FrameFound,
    IncarnationRaised,
    JoinRecord,
    Position,
)
from trilogue.actors.journal.records import FLAG_FILL, check_place, decode_control, follows
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.protocol.errors import Corrupt, ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, decode_frame, decode_header, encode_frame, padded, payload_of
from trilogue.actors.protocol.holdings import Fence, PartitionState
from trilogue.actors.protocol.thinning import FLAG_THIN, header_of, inner_of, is_thin, payload_of_records

PART_BYTES: Final = 8 * 1024 * 1024
"""A log is written anew in parts: each holds the entries that begin in so many bytes of it."""
_ANY_BYTES = 1 << 33


def chained(chain: int, entry: bytes) -> int:
    """The CRC over all entries' headers, with one more: headers hold the CRCs of what follows them."""
    return crc32(_own_header(entry), chain)


def step_of(entry: bytes) -> int:
    """How far behind an intact entry the next one lies: its size, or that of the frame of which it is what is left."""
    return HEADER_BYTES + padded(int.from_bytes(_own_header(entry)[44:48], "little"))


def _own_header(entry: bytes) -> bytes:
    """The header that it was appended with."""
    return entry[HEADER_BYTES : 2 * HEADER_BYTES] if is_thin(entry) else entry[:HEADER_BYTES]


def _fill_header(entry: bytes, at: int, partition: int, offset: int) -> Header | None:
    """The header of the FILL that was appended at `offset`, if it stands at `at` in the entry, and is whole."""
    try:
        own = decode_header(entry, at, _ANY_BYTES)
        check_place(own, file=partition, offset=offset)
    except ProtocolError:
        return None
    return own if own.flags == FLAG_FILL else None


def holds_fill(entry: bytes) -> bool:
    """Whether a frame was filled in by an entry that has come back in another size."""
    return is_thin(entry) and entry[HEADER_BYTES + 6] == FLAG_FILL


def filled_in(entry: bytes | None, size: int) -> bytes:
    """The bytes of the frame of this size that was filled in by the entry."""
    if entry is None or len(entry) < HEADER_BYTES:
        return b""
    at = 2 * HEADER_BYTES if is_thin(entry) else HEADER_BYTES
    return entry[at : at + size]


def refilled(entry: bytes, frame: bytes, partition: int, offset: int) -> bytes:
    """What is to lie at `offset` instead of an entry with a filled-in frame that went bad, so that `frame` is read there.

    Raises `ProtocolError` if the FILL's own header went bad, too: the chain of headers cannot do without it.
    """
    for at in (0, HEADER_BYTES):
        own = _fill_header(entry, at, partition, offset)
        if own is not None:
            break
    else:
        raise ProtocolError("the header of what was filled in went bad, too")
    head = entry[at : at + HEADER_BYTES]
    if (own.payload_bytes, own.payload_crc) == (len(frame), crc32(frame)):
        return head + frame
    data, _ = encode_frame(
        log_id=own.log_id, partition=own.partition, epoch=own.epoch, index=offset, prev_crc=0, count=partition,
        committed_upto=0, payload=head + frame, flags=FLAG_THIN,
    )  # fmt: skip
    return data


def may_be(key: FrameKey, entry: bytes) -> bool:
    """Whether an entry that went bad may be the frame `key`, or hold it: unless its headers are whole and say otherwise."""
    at = 0
    try:
        while (header := decode_header(entry, at, _ANY_BYTES)).flags in (FLAG_FILL, FLAG_THIN):
            at += HEADER_BYTES
    except ProtocolError:
        return True
    return header.flags == 0 and FrameKey(header.partition, header.index, header.header_crc) == key


@dataclass(slots=True)
class LogReplay:
    """One partition's log, entry by entry, from its beginning. `end` and `chain` are those of what was taken."""

    shown: str  # what the log is called
    partition: int
    log_id: int
    replay: Callable[[Entry], None]
    end: int = 0
    chain: int = 0
    freed_bytes: int = 0  # by thin frames
    parts: dict[int, int] = field(default_factory=dict)  # part -> where its first entry begins
    fence: FenceRecord | None = None
    state: PartitionState = field(default_factory=lambda: PartitionState(certain=True))

    def take(self, entries: Iterable[bytes]) -> None:
        """The entries that follow. Raises `Corrupt`."""
        for entry in entries:
            try:
                header = decode_frame(entry, _ANY_BYTES)
                if header.log_id != self.log_id:
                    raise ProtocolError(f"a record of log {header.log_id}")
                if header.flags == FLAG_THIN:
                    check_place(header, file=self.partition, offset=self.end)
                    self._thin(header, entry)
                elif header.flags == 0:
                    self._frame(header, entry)
                else:
                    self._control(header, entry)
            except ProtocolError as error:
                raise self.corrupt(str(error)) from None
            self.chain = chained(self.chain, entry)
            step = step_of(entry)
            self.parts.setdefault(self.end // PART_BYTES, self.end)
            self.end += step
            self.freed_bytes += step - len(entry)

    def corrupt(self, what: str) -> Corrupt:
        """The error for damage at the end of what was taken."""
        return damaged(self.shown, self.partition, self.end, what)

    def _frame(self, header: Header, entry: bytes) -> None:
        problem = self.state.problem(header)
        if problem or header.partition != self.partition:
            raise ProtocolError(f"{problem or f'frame {header.index}'} of partition {header.partition}")
        self.state.take(header)
        self.replay(FrameFound(header, Position(self.partition, self.end, len(entry)), payload_of_records(entry)))

    def _thin(self, header: Header, entry: bytes) -> None:
        if not holds_fill(entry):
            self._frame(inner_of(header, payload_of(entry, header)), entry)
            return
        own = _fill_header(entry, HEADER_BYTES, self.partition, self.end)
        if own is None or own.log_id != self.log_id:
            raise ProtocolError("what came back for a frame that was filled in does not say so")
        self._fill(FillRecord(own.partition, payload_of(entry, header)[HEADER_BYTES:]))

    def _control(self, header: Header, entry: bytes) -> None:
        record = decode_control(header, payload_of(entry, header), file=self.partition, offset=self.end)
        if isinstance(record, IncarnationRaised):
            self.replay(Doubted(self.partition, record.incarnation))
            return
        if isinstance(record, FillRecord):
            self._fill(record)
            return
        if not isinstance(record, FenceRecord | JoinRecord) or record.partition != self.partition:
            raise ProtocolError(f"a control record that does not belong here: flags {header.flags:#06x}")
        fence = record.fence if isinstance(record, JoinRecord) else record
        if self.fence is not None and not follows(self.fence, fence):
            raise ProtocolError(f"a fence of epoch {fence.epoch} after one of epoch {self.fence.epoch}")
        self.fence = fence
        self.state.obey(Fence(*fence[1:]))
        if isinstance(record, JoinRecord):
            if record.number <= self.state.joins:
                raise ProtocolError(f"join {record.number} of epoch {record.epoch} after join {self.state.joins}")
            self.state.join(record.number, record.first, record.prev_crc, record.intervals)
        self.replay(record)

    def _fill(self, fill: FillRecord) -> None:
        frame = bytes(fill.frame)
        header = header_of(frame, _ANY_BYTES)
        if (header.log_id, header.partition, header.flags) != (self.log_id, self.partition, 0):
            raise ProtocolError(f"a frame of log {header.log_id}, partition {header.partition}, was filled in")
        problem = self.state.fill_problem(header)
        if problem:
            raise ProtocolError(f"{problem} of partition {self.partition}")
        self.state.fill(header)
        position = Position(self.partition, self.end + HEADER_BYTES, len(frame))
        self.replay(FrameFilled(header, position, payload_of_records(frame)))


def damaged(shown: str, partition: int, offset: int, what: str) -> Corrupt:
    """The error for damage in a log, in one line that says what to do."""
    return Corrupt(
        f"{shown} holds a damaged log of partition {partition} at byte {offset}: {what}; do not use this store, keep a copy "
        "of the server's directory; once its keys are removed from Redis, it comes back as a new store, filled from its peers"
    )
