"""Reading a damaged journal: every record that is whole, wherever it lies, and the bytes that are damaged.

Owns the walk past damage. ``scan`` decides what a store may *open*; this only says what is there, for ``mend`` to judge. It
changes nothing on disk and must not know what a payload means, nor other stores. Rules:

1. A record is *whole* if its header's CRC, its payload's CRC, its padding and its log_id hold and it lies in its file.
2. A frame is *placed* if it lies where a record is known to begin: the walk from the file's start leads there, over records
   that are whole or whose header at least is (it says how far the damaged record reaches), or a control record stands before
   it, which says itself where it lies. Behind other damage, records are found by searching for the magic: those are not
   placed, since a body can contain whole frames.
3. `embedded` names the frames that were seen inside the payloads of whole frames: who finds one of them by searching may
   have found a body.
4. A store that ``scan`` opens without cutting anything is intact, and is read by ``scan`` alone.
5. What the disk refuses to read is damage, and no error.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from trilogue.actors.journal.files import BLOCK_BYTES, ZEROS, file_path, journal_numbers
from trilogue.actors.journal.identity import Identity
from trilogue.actors.journal.records import (
    ControlRecord,
    Entry,
    FenceRecord,
    FileRecord,
    FillRecord,
    FrameFilled,
    FrameFound,
    IncarnationRaised,
    JoinRecord,
    Position,
    check_place,
    decode_control,
)
from trilogue.actors.journal.scan import Scanner
from trilogue.actors.protocol.errors import Corrupt, NewerFormat, ProtocolError
from trilogue.actors.protocol.frames import (
    ALIGNMENT,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Header,
    check_payload,
    decode_header,
    payload_of,
)
from trilogue.actors.protocol.thinning import FLAG_THIN, inner_of

_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_ANY_BYTES = 1 << 33  # files bound the frames here
_SECTOR_BYTES = 4096
_POISON = b"\xff"  # stands for bytes that the disk does not give: no record begins with it
INCARNATIONS_MAYBE_OWED = 8
"""`store.json` may know an incarnation that the journal was not told yet: without it, so many are left out."""

Bytes = bytes | bytearray | memoryview


class FrameKey(NamedTuple):
    """Which frame it is. Two whole frames with one key are the same bytes; others are what is left of it."""

    partition: int
    frame_index: int
    crc: int


class Found(NamedTuple):
    """What a frame's intact header says, and where it lies. `fence`: the highest epoch that is known to have been in force
    when it was put there."""

    key: FrameKey
    epoch: int
    prev_crc: int
    committed_upto: int
    position: Position
    placed: bool
    fence: int


class Damage(NamedTuple):
    """Bytes of a journal file that are not what was written. File 0: the directory itself."""

    file: int
    start: int
    end: int
    what: str


@dataclass(slots=True)
class FileSalvage:
    """What one file holds. `torn` are the placed frames of which only the header is intact; `end`: where its records end."""

    frames: list[Found] = field(default_factory=list)
    torn: list[Found] = field(default_factory=list)
    controls: list[tuple[Position, ControlRecord]] = field(default_factory=list)
    embedded: set[FrameKey] = field(default_factory=set)
    damage: list[Damage] = field(default_factory=list)
    end: int = 0


@dataclass(slots=True)
class StoreSalvage:
    """What one store holds. `identity` is None if nothing on its disk says whose it is any more. `ends` and `tips` are where
    the partitions' chains end, and known of an intact store only."""

    directory: Path
    identity: Identity | None
    frames: list[Found] = field(default_factory=list)
    torn: list[Found] = field(default_factory=list)
    fences: dict[int, FenceRecord] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    tips: dict[int, FrameKey] = field(default_factory=dict)
    embedded: set[FrameKey] = field(default_factory=set)
    damage: list[Damage] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Whether the store opens as it is, and cuts nothing."""
        return not self.damage

    def add_fence(self, fence: FenceRecord) -> None:
        """Keep the highest fence of each partition."""
        before = self.fences.get(fence.partition)
        if before is None or fence.epoch >= before.epoch:
            self.fences[fence.partition] = fence

    def fence_epoch(self, partition: int) -> int:
        """The epoch of the partition's highest fence, 0 for none."""
        fence = self.fences.get(partition)
        return fence.epoch if fence is not None else 0


def salvage_file(data: Bytes, number: int, log_id: int) -> FileSalvage:
    """Everything that can be read in the bytes of journal file `number`. Raises `NewerFormat`."""
    result = FileSalvage()
    offset, placed = 0, True
    while offset < len(data):
        if _is_zero(data, offset, offset + HEADER_BYTES):
            behind = _first_nonzero(data, offset)
            if behind == len(data):
                break
            what = f"zeros where a record should be, but byte {behind} is not zero"
        else:
            header, what = _header_at(data, offset, log_id, newer_is_an_error=placed)
            if header is not None:
                problem = _take(result, data, number, offset, header, placed)
                if not problem:
                    placed = placed or header.flags != 0
                    offset += header.frame_bytes
                    continue
                what = problem
                if placed and offset + header.frame_bytes <= len(data):
                    result.damage.append(Damage(number, offset, offset + header.frame_bytes, what))
                    if header.flags == 0:
                        result.torn.append(_found(header, Position(number, offset, header.frame_bytes), True))
                    offset += header.frame_bytes
                    continue
        found = _search(data, number, offset, log_id)
        result.damage.append(Damage(number, offset, len(data) if found is None else found, what))
        if found is None:
            break
        offset, placed = found, False
    result.end = offset
    return result


def embedded_in(payload: Bytes, log_id: int) -> Iterator[FrameKey]:
    """The frames of this log whose intact headers a payload contains."""
    data = bytes(payload)
    found = data.find(_MAGIC_BYTES)
    while found >= 0:
        header, _ = _header_at(data, found, log_id, newer_is_an_error=False)
        if header is not None and header.flags == 0:
            yield _key(header)
        found = data.find(_MAGIC_BYTES, found + 1)


def salvage_store(directory: Path, identity: Identity | None, log_id: int, cluster: str, why: str = "") -> StoreSalvage:
    """What the store in `directory`, whose lock the caller holds, still has. `identity`: what `store.json` says, None if that
    cannot be read, and `why` not. Raises `NewerFormat` or `JournalBroken`."""
    numbers = journal_numbers(directory)
    if identity is not None and (identity.incarnation == 0 and not numbers):
        return StoreSalvage(directory, identity)  # a store that never began
    refusal = why or "store.json is missing"
    if identity is not None:
        whole, refusal = _scanned(directory, identity, numbers)
        if whole is not None:
            return whole
    result = StoreSalvage(directory, identity)
    heads: dict[int, FileRecord] = {}
    ends: dict[int, int] = {}
    incarnations: set[int] = set()
    for number in range(1, max(numbers, default=0) + 1):
        if number not in numbers:
            result.damage.append(Damage(number, 0, 0, "the file is missing"))
            continue
        data, unreadable = read_around(file_path(directory, number), number)
        one = salvage_file(data, number, log_id)
        result.damage += unreadable + one.damage
        _add_frames(result, one)
        result.embedded |= one.embedded
        ends[number] = one.end
        for position, record in one.controls:
            if isinstance(record, IncarnationRaised):
                incarnations.add(record.incarnation)
            elif isinstance(record, FileRecord) and position.offset == 0:
                heads[number] = record
                incarnations.add(record.incarnation)
    result.damage += _ends_too_early(heads, ends)
    if not result.damage:
        result.damage.append(Damage(0, 0, 0, refusal))
    stores = {head.store for head in heads.values()}
    if identity is None and len(stores) == 1:
        result.identity = Identity(stores.pop(), max(incarnations) + INCARNATIONS_MAYBE_OWED, cluster, log_id)
    elif identity is not None and incarnations:
        result.identity = Identity(identity.store, max(identity.incarnation, *incarnations), cluster, log_id)
    result.damage.sort()
    return result


def read_around(path: Path, number: int) -> tuple[bytearray, list[Damage]]:
    """The bytes of a file, from the disk and not from cached pages; what the disk refuses is replaced, and named."""
    data, damage = bytearray(), list[Damage]()
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return data, [Damage(number, 0, 0, f"it cannot be read: {error.strerror}")]
    try:
        size = os.fstat(fd).st_size
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        step = BLOCK_BYTES
        while len(data) < size:
            try:
                block = os.pread(fd, min(step, size - len(data)), len(data))
                if not block:
                    break
                data += block
                step = BLOCK_BYTES if len(data) % BLOCK_BYTES == 0 else step
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                if step > _SECTOR_BYTES:
                    step = _SECTOR_BYTES
                    continue
                bad = min(_SECTOR_BYTES, size - len(data))
                damage.append(Damage(number, len(data), len(data) + bad, f"it cannot be read: {error.strerror}"))
                data += _POISON * bad
    finally:
        os.close(fd)
    return data, damage


# ---------------------------------------------------------------------- one store


def _scanned(directory: Path, identity: Identity, numbers: list[int]) -> tuple[StoreSalvage | None, str]:
    """The store as ``scan`` reads it, if that is all of it; otherwise why not."""
    result = StoreSalvage(directory, identity)

    def replay(entry: Entry) -> None:
        if isinstance(entry, FrameFound | FrameFilled):
            found = _found(entry.header, entry.position, True)
            result.frames.append(found._replace(fence=max(found.epoch, result.fence_epoch(found.key.partition))))
            result.embedded.update(embedded_in(entry.payload, identity.log_id))
        elif isinstance(entry, FenceRecord):
            result.add_fence(entry)
        elif isinstance(entry, JoinRecord):
            result.add_fence(entry.fence)

    if not numbers:
        return None, "all journal files of this store are missing"
    try:
        scanner = Scanner(directory, identity, replay)
        tail = scanner.run(numbers)
    except Corrupt as error:
        return None, str(error)
    for partition, state in scanner.partitions.items():
        if state.fence.epoch or state.last_index:
            result.ends[partition] = state.last_index
        if state.last_index >= state.base:
            result.tips[partition] = FrameKey(partition, state.last_index, state.crc_before(state.last_index + 1))
    return (None, tail.torn) if tail.torn else (result, "")


def _add_frames(result: StoreSalvage, one: FileSalvage) -> None:
    """Take in a file's frames and fences, in the order in which they lie."""
    items: list[tuple[Position, Found | FenceRecord, bool]] = [(found.position, found, True) for found in one.frames]
    items += [(found.position, found, False) for found in one.torn]
    for position, record in one.controls:
        if isinstance(record, FenceRecord | JoinRecord):
            items.append((position, record if isinstance(record, FenceRecord) else record.fence, True))
    for _, item, whole in sorted(items, key=lambda entry: entry[0].offset):
        if isinstance(item, FenceRecord):
            result.add_fence(item)
        else:
            found = item._replace(fence=max(item.fence, result.fence_epoch(item.key.partition)))
            (result.frames if whole else result.torn).append(found)


def _ends_too_early(heads: dict[int, FileRecord], ends: dict[int, int]) -> Iterator[Damage]:
    """The files whose records end before the next file says."""
    for number, end in ends.items():
        head = heads.get(number + 1)
        own = heads.get(number)
        should = own.end if own is not None and own.original_bytes else head.previous_bytes if head is not None else 0
        if end < should:
            yield Damage(number, end, should, f"its records should go on to byte {should}")


# ---------------------------------------------------------------------- one file


def _take(
    result: FileSalvage, data: Bytes, number: int, offset: int, header: Header, placed: bool, *, filled: bool = False
) -> str:
    """Take the record at `offset` in; why not, if it is damaged."""
    position = Position(number, offset, header.frame_bytes)
    try:
        check_payload(header, memoryview(data), offset)
        payload = payload_of(memoryview(data)[offset:], header)
        if header.flags == FLAG_THIN:
            if not filled:
                check_place(header, file=number, offset=offset)
            header, payload, placed = inner_of(header, payload), payload[HEADER_BYTES:], True
        elif header.flags:
            record = decode_control(header, payload, file=number, offset=offset)
            if isinstance(record, FillRecord):
                return _take_filled(result, data, position, header)
            result.controls.append((position, record))
            return ""
    except ProtocolError as error:
        return str(error)
    result.frames.append(_found(header, position, placed))
    result.embedded.update(embedded_in(payload, header.log_id))
    return ""


def _take_filled(result: FileSalvage, data: Bytes, position: Position, outer: Header) -> str:
    """Take in the frame inside a FILL, which says itself where it lies: no body."""
    offset = position.offset + HEADER_BYTES
    header, problem = _header_at(data, offset, outer.log_id, newer_is_an_error=False)
    if header is None or header.flags not in (0, FLAG_THIN) or header.frame_bytes != outer.frame_bytes - HEADER_BYTES:
        return problem or "no frame was filled in"
    return _take(result, data, position.file, offset, header, True, filled=True)


def _search(data: Bytes, number: int, start: int, log_id: int) -> int | None:
    """The offset of the next whole record from `start` on."""
    if isinstance(data, memoryview):
        data = bytes(data)
    at = data.find(_MAGIC_BYTES, start)
    while at >= 0:
        if at % ALIGNMENT == 0:
            header, _ = _header_at(data, at, log_id, newer_is_an_error=False)
            if header is not None and not _take(FileSalvage(), data, number, at, header, False):
                return at
        at = data.find(_MAGIC_BYTES, at + 1)
    return None


def _header_at(data: Bytes, offset: int, log_id: int, *, newer_is_an_error: bool) -> tuple[Header | None, str]:
    """The intact header of this log at `offset`; otherwise why there is none."""
    head = bytes(data[offset : offset + HEADER_BYTES])
    try:
        header = decode_header(head, 0, _ANY_BYTES)
    except ProtocolError as error:
        is_newer = len(head) == HEADER_BYTES and head[:4] == _MAGIC_BYTES and head[4] > VERSION
        if newer_is_an_error and is_newer and crc32(head[:-4]) == int.from_bytes(head[-4:], "little"):
            raise NewerFormat(f"a journal holds version {head[4]} at byte {offset}: upgrade this program") from None
        return None, str(error)
    if header.log_id != log_id:
        return None, f"a record of log {header.log_id}"
    return header, ""


def _key(header: Header) -> FrameKey:
    return FrameKey(header.partition, header.index, header.header_crc)


def _found(header: Header, position: Position, placed: bool) -> Found:
    return Found(_key(header), header.epoch, header.prev_crc, header.committed_upto, position, placed, header.epoch)


def _is_zero(data: Bytes, start: int, end: int) -> bool:
    part = bytes(data[start:end])
    return part == ZEROS[: len(part)]


def _first_nonzero(data: Bytes, offset: int) -> int:
    """The offset of the first byte from `offset` on that is not zero, or the end."""
    while offset < len(data):
        block = bytes(data[offset : offset + BLOCK_BYTES])
        if block != ZEROS[: len(block)]:
            return offset + len(block) - len(block.lstrip(b"\0"))
        offset += len(block)
    return offset
