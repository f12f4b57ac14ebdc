"""What a journal holds besides frames: its own control records, in the same layout with a flag set.

Owns their kinds and their codec. It must not know files or what a fence is for. Rules:

1. A record with no flag is a frame of a partition's log; one with exactly one known flag is a control record.
2. A control record says where it lies: the header's `count` is its file's number, `index` its offset. So a copy of one
   that a disk put elsewhere is never taken for it. (Frames are held in their places by their chain.)
3. FILE is the first record of each file, and only that. Its `previous_bytes` is where the records of the file before
   end: what vanishes at the end of an older file is noticed. Its `fences` says how many fences follow it: they were
   in force when the file was begun, and were made durable before the file got its name.

4. A frame that is filled in below a partition's base has no chain to hold it in its place: it lies inside a FILL, which says
   where it lies. Its place is that of the frame itself.
5. A JOIN is a fence, too. Only the fence of it is repeated at the start of a file: what it cut stays cut.
6. A thin frame (``protocol.thinning``) is a record that says where it lies, and a frame of its partition's chain. Inside a FILL
   it need not say where it lies.
7. The FILE of a file that was written anew, without what is gone, says where the file ended before, and where it ends now: what
   the next file says of it is true of the former (``thin_file``).

Payloads (msgpack, but for FILL):  FILE [format, store, incarnation, previous_bytes, fences] (a newer format may add items; of a
file that was written anew, format 2: two more, previous and present end, 8 bytes each) ·
FENCE [writer, address] · INCARNATION [incarnation] · JOIN [writer, address, number, first, prev_crc, [[from, to] …]] ·
FILL: the frame's bytes.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import msgpack

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, encode_frame, padded
from trilogue.actors.protocol.thinning import FLAG_THIN, placed

FLAG_FILE = 1
FLAG_FENCE = 2
FLAG_INCARNATION = 4
FLAG_JOIN = 8
FLAG_FILL = 16


class Position(NamedTuple):
    """Where a record lies: the file's number, the first byte, and how many bytes."""

    file: int
    offset: int
    size: int


class FrameFound(NamedTuple):
    """A replayed frame. `payload` lies in a block of the file: who keeps it, and no copy, keeps the block in memory."""

    header: Header
    position: Position
    payload: memoryview


class FramesFound(NamedTuple):
    """Consecutive frames of a closed file, each chaining to the one before, as its summary tells (``summary``): at least one.

    `committed_upto` is the highest that one of them carries; none vouches for itself.
    """

    partition: int
    first: int
    prev_crc: int
    committed_upto: int
    epochs: array[int]
    crcs: array[int]
    file: int
    offsets: array[int]
    sizes: array[int]


class FenceRecord(NamedTuple):
    """A durable refusal of every epoch of `partition` below `epoch`: appended, and replayed."""

    partition: int
    epoch: int
    writer: str
    address: str


class JoinRecord(NamedTuple):
    """A fence that names the base from which the partition's log is here; `intervals` are what may be kept below it."""

    partition: int
    epoch: int
    writer: str
    address: str
    number: int
    first: int
    prev_crc: int
    intervals: tuple[tuple[int, int], ...]

    @property
    def fence(self) -> FenceRecord:
        """The fence that it is."""
        return FenceRecord(*self[:4])


class FillRecord(NamedTuple):
    """A whole frame that lies below its partition's base: appended; replayed as a `FrameFilled`."""

    partition: int
    frame: bytes | memoryview


class ThinFrame(NamedTuple):
    """A thin frame of its partition's chain: appended where a journal is written anew; replayed as a `FrameFound`."""

    partition: int
    frame: bytes


class FrameFilled(NamedTuple):
    """A replayed frame below the base; as `FrameFound`. `position` is the frame's own, inside its record."""

    header: Header
    position: Position
    payload: memoryview


class IncarnationRaised(NamedTuple):
    """Here the store cut a damaged tail: what it does not have from before, it "cannot tell"."""

    incarnation: int


class Doubted(NamedTuple):
    """Replayed from a journal that has a log for each partition: as `IncarnationRaised`, of that log's partition alone."""

    partition: int
    incarnation: int


class FileRecord(NamedTuple):
    """The first record of a file."""

    format: int
    store: str
    incarnation: int
    previous_bytes: int
    fences: int
    original_bytes: int = 0  # where the records ended before the file was written anew; 0: it never was
    end: int = 0  # where they end since then

    @property
    def wrong_end(self) -> str:
        """Why there are no such ends; empty if there may be."""
        return "" if 0 <= self.end <= self.original_bytes else f"it ends at {self.end}, and at {self.original_bytes} before"


Entry = FrameFound | FramesFound | FrameFilled | FenceRecord | JoinRecord | IncarnationRaised | Doubted
ControlRecord = FenceRecord | JoinRecord | FillRecord | ThinFrame | IncarnationRaised | FileRecord
FILE_FORMAT = 2
FILE_FORMAT_PLAIN = 1


FLAGS = {
    FileRecord: FLAG_FILE,
    FenceRecord: FLAG_FENCE,
    IncarnationRaised: FLAG_INCARNATION,
    JoinRecord: FLAG_JOIN,
    FillRecord: FLAG_FILL,
    ThinFrame: FLAG_THIN,
}


def follows(before: FenceRecord, fence: FenceRecord) -> bool:
    """Whether `fence` may come after `before` in one partition: a higher epoch, or the same one of the same writer."""
    return fence.epoch > before.epoch or (fence.epoch, fence.writer) == (before.epoch, before.writer)


def control_bytes(record: ControlRecord) -> int:
    """How many bytes the encoded record takes, wherever it will lie."""
    if isinstance(record, ThinFrame):
        return len(record.frame)
    payload = record.frame if isinstance(record, FillRecord) else _payload(record)
    return HEADER_BYTES + padded(len(payload))


def encode_control(record: ControlRecord, *, log_id: int, file: int, offset: int) -> bytes:
    """The record's bytes for exactly this place."""
    if isinstance(record, ThinFrame):
        return placed(record.frame, file, offset)
    flags, partition, epoch = FLAGS[type(record)], 0, 0
    if isinstance(record, FenceRecord | JoinRecord):
        partition, epoch = record.partition, record.epoch
    elif isinstance(record, FillRecord):
        partition = record.partition
    data, _ = encode_frame(
        log_id=log_id,
        partition=partition,
        epoch=epoch,
        index=offset,
        prev_crc=0,
        count=file,
        committed_upto=0,
        payload=_payload(record),
        flags=flags,
    )
    return data


def decode_control(header: Header, payload: bytes | memoryview, *, file: int, offset: int) -> ControlRecord:
    """The control record of an intact header and payload. Raises `ProtocolError` if it is none or belongs elsewhere."""
    check_place(header, file=file, offset=offset)
    if header.flags == FLAG_FILL:
        return FillRecord(header.partition, memoryview(payload))
    try:
        items = msgpack.unpackb(payload, use_list=True, raw=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a control record's payload is not msgpack: {error}") from None
    match header.flags, items:
        case 1, [2, str(), int(), int(), int(), bytes(original), bytes(end), *_] if len(original) == len(end) == 8:
            plain = FileRecord(*items[:5])
            return plain._replace(original_bytes=int.from_bytes(original, "little"), end=int.from_bytes(end, "little"))
        case 1, [int(), str(), int(), int(), int(), *_]:
            return FileRecord(*items[:5])
        case 2, [str(writer), str(address)]:
            return FenceRecord(header.partition, header.epoch, writer, address)
        case 4, [int(incarnation)]:
            return IncarnationRaised(incarnation)
        case 8, [str(writer), str(address), int(number), int(first), int(prev_crc), [*intervals]]:
            if all(_is_interval(item) for item in intervals):
                pairs = tuple((start, end) for start, end in intervals)
                return JoinRecord(header.partition, header.epoch, writer, address, number, first, prev_crc, pairs)
    raise ProtocolError(f"a control record of unknown shape: flags {header.flags:#06x}")


def check_place(header: Header, *, file: int, offset: int) -> None:
    """Raise `ProtocolError` unless a record that says where it lies lies there."""
    if (header.count, header.index) != (file, offset):
        raise ProtocolError(f"a control record that belongs in file {header.count} at byte {header.index}")


def _is_interval(item: object) -> bool:
    return isinstance(item, list) and [type(end) for end in item] == [int, int]


def _payload(record: ControlRecord) -> bytes:
    if isinstance(record, FillRecord | ThinFrame):
        return bytes(record.frame)
    if isinstance(record, JoinRecord):
        items = list(record[2:])
    elif isinstance(record, FileRecord):
        ends = (record.original_bytes, record.end) if record.original_bytes else ()
        items = [*record[:5], *(end.to_bytes(8, "little") for end in ends)]  # of a fixed size: the end is known last
    else:
        items = [record.writer, record.address] if isinstance(record, FenceRecord) else list(record)
    packed: bytes = msgpack.packb(items, use_bin_type=True)
    return packed
