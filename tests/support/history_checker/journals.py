"""What stands on a store: a second, small reader of the journal's files, written from their description alone.

Owns that reading. It imports nothing of trilogue: a mistake in trilogue's own reader must not hide here, too. It
believes a byte only under its CRC, a frame only where it chains, and reports all else. It never writes.

The layout (design §5): `journal-NNNNNNNN.trl`, each a row of records up to zeros or the file's end. A record is a
header of 64 bytes, little-endian, a payload and zeros up to a multiple of 8. Flags 0 is a frame of a partition's log. The
store's own notes that matter here (§6, rule 4):

    1 FILE   [format, store, incarnation, previous, fences]: first in a file; the one before ends at `previous`. A file that
             was written anew, without what is gone, adds where it ended before that and where it ends now, 8 bytes each
    2 FENCE  [writer, address]: from now on no writer below the header's epoch is obeyed
    8 JOIN   [writer, address, number, first, prev_crc, [[from, to] …]]: a fence that names the base. Unless the chain has
             that place, all is cut from `first` on, and what lies below it, but for the intervals and for what this store knew
             to be committed
    16 FILL  the bytes of a frame that lies below the base
    32 THIN  what is left of a frame of the log: its header of 64 bytes, then its records; those whose messages are gone are
             GONE [7, session, sender_id, first_n, first_seq, stored_at_us, messages, keys]. It stands for the frame

Frames from the base on are the *chain*, one naming the CRC of the one before; `older` ones lie below it, and become part of the
chain as soon as they connect to it. A frame at an index that the chain has replaces that one and all after it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

HEADER = struct.Struct("<IBBHQIQQIIIQII")
MAGIC = 0x4C52547F
FRAME, FILE, FENCE, JOIN, FILL, THIN = 0, 1, 2, 8, 16, 32


class Frame(NamedTuple):
    """One frame of a partition's log, checked against its CRCs. `crc` is its header's, which covers all of it. `thin`: other
    bytes stand on this store than its header speaks of."""

    epoch: int
    crc: int
    committed_upto: int
    records: list[Any]
    prev_crc: int
    thin: bool = False


class _Bad(Exception):
    """The record at hand cannot be believed."""


@dataclass(slots=True)
class Holding:
    """What one store holds of one partition. `committed_upto` is the highest that a frame of the chain has ever carried."""

    chain: list[Frame] = field(default_factory=list)
    base: int = 1
    base_prev: int = 0
    older: dict[int, Frame] = field(default_factory=dict)
    committed_upto: int = 0
    fence: int = 0

    @property
    def last(self) -> int:
        """The index of the chain's last frame."""
        return self.base + len(self.chain) - 1

    def at(self, index: int) -> Frame | None:
        """The frame at this index, in the chain or below it."""
        return self.chain[index - self.base] if self.base <= index <= self.last else self.older.get(index)

    @property
    def frames(self) -> list[Frame]:
        """All frames, in the order of their places."""
        return [*(self.older[index] for index in sorted(self.older)), *self.chain]

    def crc_before(self, index: int) -> int:
        """What the frame at `index`, in the chain or next to it, must name."""
        return self.chain[index - self.base - 1].crc if index > self.base else self.base_prev

    def take(self, index: int, frame: Frame, damage: list[str], where: str) -> None:
        """Put a frame in its place in the chain."""
        if not max(1, self.base) <= index <= self.last + 1:
            raise _Bad(f"{where} beside the frames {self.base} to {self.last}")
        if frame.prev_crc != self.crc_before(index):
            raise _Bad(f"{where} does not chain to the one before")
        if frame.committed_upto >= index:
            raise _Bad(f"{where} vouches for itself")
        if index > self.base and frame.epoch < self.chain[index - self.base - 1].epoch:
            raise _Bad(f"{where} follows one of a higher epoch")
        if self.fence and frame.epoch > self.fence:
            damage.append(f"{where} was stored under the fence of epoch {self.fence}")
        if index <= self.last:
            if frame.epoch == self.chain[index - self.base].epoch:
                raise _Bad(f"{where} replaces another one of the same epoch")
            if index <= self.committed_upto:
                damage.append(f"{where} replaces one that was said to be committed")
            del self.chain[index - self.base :]
        self.chain.append(frame)
        self.committed_upto = max(self.committed_upto, frame.committed_upto)

    def obey(self, epoch: int, damage: list[str], where: str) -> None:
        """A fence."""
        if epoch < self.fence:
            damage.append(f"{where}: a fence of epoch {epoch} after that of epoch {self.fence}")
        self.fence = max(epoch, self.fence)

    def join(self, first: int, prev_crc: int, intervals: list[list[int]]) -> None:
        """The chain begins at `first` now, unless it has that place already."""
        if self.base <= first <= self.last + 1 and self.crc_before(first) == prev_crc:
            return
        allowed = [[1, self.committed_upto], *intervals]
        held = {**self.older, **{self.base + k: frame for k, frame in enumerate(self.chain)}}
        self.older = {i: frame for i, frame in held.items() if i < first and any(a <= i <= b for a, b in allowed)}
        self.chain, self.base, self.base_prev = [], first, prev_crc
        self.absorb()

    def fill(self, index: int, frame: Frame, damage: list[str], where: str) -> None:
        """A frame below the base."""
        held = self.at(index)
        if not 1 <= index < self.base:
            raise _Bad(f"{where} was filled in beside the frames below {self.base}")
        if held is not None and held.crc != frame.crc and index <= self.committed_upto:
            damage.append(f"{where} was filled in over another one that was said to be committed")
        self.older[index] = frame
        self.absorb()

    def absorb(self) -> None:
        """What connects to the base becomes part of the chain."""
        found: list[Frame] = []
        while (frame := self.older.get(self.base - 1)) is not None and frame.crc == self.base_prev:
            found.append(self.older.pop(self.base - 1))
            self.base, self.base_prev = self.base - 1, frame.prev_crc
        self.chain[:0] = reversed(found)


@dataclass(slots=True)
class StoreContents:
    """What one store holds, and who it is. `damage`: what must not be; `torn`: what may be."""

    name: str
    partitions: dict[int, Holding] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    torn: str = ""
    identity: tuple[str, int] = ("", 0)


def read_store(directory: Path) -> StoreContents:
    """What the journal in `directory` holds."""
    said = json.loads((directory / "store.json").read_bytes())
    contents = StoreContents(directory.name, identity=(said.get("store", ""), said.get("incarnation", 0)))
    paths = sorted(directory.glob("journal-*.trl"))
    before = _End("", 0, None)
    for number, path in enumerate(paths, 1):
        if path.name != f"journal-{number:08d}.trl":
            contents.damage.append(f"file {number} is missing: {path.name} is there instead")
        with path.open("rb") as file, mmap(file.fileno(), 0, prot=PROT_READ) as data:
            offset, problem = read_bytes(data, said["log_id"], contents)
            head = _head_of(data, said["log_id"])
        contents.damage += _ends(before, head)
        before = _End(path.name, offset, head)
        if problem and path is paths[-1]:
            contents.torn = f"{path.name} at byte {offset}: {problem}"
        elif problem:
            contents.damage.append(f"{path.name} at byte {offset}: {problem}")
    if before.head is not None and before.head.original:
        contents.damage.append(f"{before.name} was written anew, so it is not the newest file: another one is missing")
    return contents


class _Head(NamedTuple):
    """What a FILE record says: where the file before ends, and, of one that was written anew, where this one ended and ends."""

    previous: int
    original: int
    end: int


class _End(NamedTuple):
    """Where the records of a file end that was read."""

    name: str
    at: int
    head: _Head | None


def _head_of(data: mmap, log_id: int) -> _Head | None:
    """The file's own words; nothing if it does not begin with any (what is wrong with it was said already)."""
    try:
        record = _record_at(data, 0, log_id)
    except _Bad:
        return None
    if record.flags != FILE:
        return None
    said = msgpack.unpackb(record.payload, raw=False, use_list=True)
    original, end = (int.from_bytes(item, "little") for item in said[5:7]) if len(said) >= 7 else (0, 0)
    return _Head(said[3], original, end)


def _ends(before: _End, head: _Head | None) -> Iterator[str]:
    """What is wrong with where the file before ends, as it says itself and as this one says."""
    if before.head is None or head is None:
        return
    should = before.head.end if before.head.original else head.previous
    if before.at != should:
        yield f"{before.name} ends at byte {before.at}, and should go on to byte {should}"
    if before.head.original and before.head.original != head.previous:
        yield f"{before.name} was written anew from {before.head.original} bytes, and had {head.previous}"


def read_bytes(data: mmap | bytes, log_id: int, contents: StoreContents) -> tuple[int, str]:
    """Take in the records that lie one behind the other; where they end, and why if it is not at zeros or at the file's end."""
    offset = 0
    while offset < len(data):
        if not any(data[offset : offset + HEADER.size]):
            return offset, ""
        try:
            offset = _take_record(data, offset, log_id, contents)
        except _Bad as bad:
            return offset, str(bad)
    return offset, ""


def read_one(data: bytes, offset: int, log_id: int, contents: StoreContents) -> str:
    """Take in the record at `offset`; what is wrong with it."""
    try:
        _take_record(data, offset, log_id, contents)
    except _Bad as bad:
        return str(bad)
    return ""


class _Record(NamedTuple):
    """An intact record, and where the next one begins."""

    flags: int
    partition: int
    epoch: int
    index: int
    prev_crc: int
    count: int
    committed_upto: int
    crc: int
    payload: bytes
    following: int

    def frame(self, left: bytes | None = None) -> Frame:
        """The frame that it is, whole, or with what is left of its records."""
        try:
            records = msgpack.unpackb(self.payload if left is None else left, raw=False, use_list=True)
        except ValueError as error:
            raise _Bad(f"records that are none: {error}") from None
        if len(records) != self.count:
            raise _Bad(f"{len(records)} records where the header says {self.count}")
        return Frame(self.epoch, self.crc, self.committed_upto, records, self.prev_crc, left is not None)


def _record_at(data: mmap | bytes, offset: int, log_id: int, *, header_only: bool = False) -> _Record:
    """The record at `offset`, under its CRCs. `header_only`: its payload is not what lies behind it."""
    if offset + HEADER.size > len(data):
        raise _Bad("half a header")
    fields = HEADER.unpack_from(data, offset)
    magic, version, codec, flags, log, partition, epoch, index, prev_crc, count, size, upto, payload_crc, own_crc = fields
    if magic != MAGIC or crc32(data[offset : offset + HEADER.size - 4]) != own_crc:
        raise _Bad("no header, or a damaged one")
    if (version, codec, log) != (1, 1, log_id):
        raise _Bad(f"version {version}, codec {codec}, log {log}")
    if header_only:
        return _Record(flags, partition, epoch, index, prev_crc, count, upto, own_crc, b"", offset + HEADER.size)
    payload = data[offset + HEADER.size : offset + HEADER.size + size]
    following: int = offset + HEADER.size + -(-size // 8) * 8
    if len(payload) != size or crc32(payload) != payload_crc or any(data[offset + HEADER.size + size : following]):
        raise _Bad("a damaged payload")
    return _Record(flags, partition, epoch, index, prev_crc, count, upto, own_crc, payload, following)


def _frame_of(record: _Record, log_id: int) -> tuple[int, Frame]:
    """The index and the frame that an intact record is, whole or thin."""
    if record.flags == FRAME:
        return record.index, record.frame()
    inner = _record_at(record.payload, 0, log_id, header_only=True)
    if (inner.flags, inner.partition, inner.epoch) != (FRAME, record.partition, record.epoch):
        raise _Bad(f"a thin frame of partition {record.partition} holds the header of another record")
    return inner.index, inner.frame(record.payload[HEADER.size :])


def _take_record(data: mmap | bytes, offset: int, log_id: int, contents: StoreContents) -> int:
    """Take in the record at `offset`; where the next one begins."""
    record = _record_at(data, offset, log_id)
    if record.flags not in (FRAME, FENCE, JOIN, FILL, THIN):
        return record.following
    partition = record.partition
    holding = contents.partitions.setdefault(partition, Holding())
    came_back = record.flags == THIN and record.payload[6] == FILL  # on a server, where a filled-in frame went bad
    if record.flags in (FRAME, THIN) and not came_back:
        if record.flags == THIN and record.index != offset:
            raise _Bad(f"a thin frame that belongs at byte {record.index}")
        index, frame = _frame_of(record, log_id)
        holding.take(index, frame, contents.damage, f"partition {partition} frame {index} of epoch {frame.epoch}")
    elif record.flags in (FILL, THIN):
        if came_back and record.index != offset:
            raise _Bad(f"a filled-in frame that belongs at byte {record.index}")
        inner = _record_at(record.payload[HEADER.size :] if came_back else record.payload, 0, log_id)
        if inner.flags not in (FRAME, THIN) or inner.partition != partition:
            raise _Bad(f"a record of partition {inner.partition} was filled into partition {partition}")
        index, frame = _frame_of(inner, log_id)
        holding.fill(index, frame, contents.damage, f"partition {partition} frame {index} of epoch {frame.epoch}")
    else:
        holding.obey(record.epoch, contents.damage, f"partition {partition}")
        if record.flags == JOIN:
            _, _, _, first, crc, intervals = msgpack.unpackb(record.payload, raw=False, use_list=True)
            holding.join(first, crc, intervals)
    return record.following
