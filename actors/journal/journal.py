"""The journal of one store: what it appends is durable when `append` returns, in the order in which it was given.

Owns the current file, rolling, and what is done about a damaged tail that ``scan`` allows to cut. It must not know what
a payload means, who waits for an answer, or who writes. One thread appends; any thread reads. Invariants:

1. `append` is one `pwritev` and one `fdatasync` for all it is given, frames and fences alike, in one file: a file is
   made larger when so much is given at once. It returns when all of it is durable.
2. After a failed write or sync (`JournalBroken`) nothing is written any more, and nothing is tried again.
3. After `JournalFull`, the file ends where the last durable append ended. If that cannot be had, nothing is written
   any more.
4. The fences in force stand at the start of each file.
5. The incarnation is raised in `store.json`, durably, before a damaged tail is cut.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

from trilogue.actors.journal.files import (
    Buffer,
    JournalBroken,
    JournalFull,
    corrupt,
    create_file,
    disk_error,
    file_path,
    journal_numbers,
    read_all,
    remove_leftovers,
    unreadable,
    write_all,
)
from trilogue.actors.journal.identity import Identity, no_space, write_identity
from trilogue.actors.journal.inplace import check_in_place, rewrite_in_place
from trilogue.actors.journal.interface import Part
from trilogue.actors.journal.records import (
    FILE_FORMAT_PLAIN,
    Entry,
    FenceRecord,
    FileRecord,
    FillRecord,
    IncarnationRaised,
    JoinRecord,
    Position,
    ThinFrame,
    control_bytes,
    encode_control,
    follows,
)
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.journal.scan import Scanner, Tail
from trilogue.actors.journal.thin_file import Thin, ThinFile
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import ALIGNMENT, HEADER_BYTES
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import header_of

_new = tuple.__new__

Record = FenceRecord | JoinRecord | FillRecord | ThinFrame
"""What is appended beside frames."""


class Journal:
    """All that one store has promised to remember. Made by `Journal.open`."""

    def __init__(self, directory: Path, identity: Identity, file_bytes: int, scanner: Scanner, tail: Tail) -> None:
        """Take over what a scan found. Use `Journal.open`."""
        self.directory = directory
        self.identity = identity
        self.full = False  # the last append, or the opening, found no space
        self.bytes_written = 0  # since it was opened
        self.fdatasyncs = 0
        self.freed_bytes = 0  # of closed files, since it was opened
        self._file_bytes = file_bytes
        self._fences = scanner.fences
        self._joins = {partition: state.joins for partition, state in scanner.partitions.items() if state.joins}
        self._number = tail.file
        self._offset = tail.offset
        self._capacity = tail.file_bytes
        self._path = file_path(directory, tail.file)
        self._fd = os.open(self._path, os.O_RDWR)
        self._older_bytes = scanner.older_bytes
        self._owes_incarnation = scanner.incarnation < identity.incarnation
        self._stopped: JournalFull | JournalBroken | None = None  # why nothing may be written any more

    @classmethod
    def open(
        cls,
        directory: Path,
        identity: Identity,
        limits: Limits,
        replay: Callable[[Entry], None],
        *,
        file_bytes: int | None = None,
        summaries: bool = False,
    ) -> Journal:
        """Open the journal in `directory`, whose lock the caller holds, and replay what it holds, in order.

        A damaged tail is cut, and `IncarnationRaised` replayed last. On a full disk the journal opens for reading, with
        `full` set. `file_bytes` replaces the limits' size of a file. With `summaries`, closed files that have one are not
        read: if it is `Corrupt` then, try without. Raises `Corrupt` or `NewerFormat` (the disk is as
        it was; forget what was replayed), `DirectoryUnusable` (no space for a new journal), or `JournalBroken`.
        """
        file_bytes = file_bytes or limits.journal_file_bytes
        remove_leftovers(directory)
        numbers = journal_numbers(directory)
        if identity.incarnation == 0:
            identity = _begin(directory, identity, numbers, file_bytes)
            numbers = numbers or [1]
        if not numbers:
            raise corrupt(file_path(directory, 1), 0, "all journal files of this store are missing")
        scanner = Scanner(directory, identity, replay, summaries)
        tail = scanner.run(numbers)
        no_room = None
        if tail.torn:
            identity = replace(identity, incarnation=identity.incarnation + 1)
            try:
                write_identity(directory, identity)
            except JournalFull as full:
                no_room = JournalFull(f"{full}; until then the damaged tail cannot be cut: {tail.torn}")
        journal = cls(directory, identity, file_bytes, scanner, tail)
        if no_room is None:
            journal._make_ready(cut=bool(tail.torn))
        else:
            journal.full, journal._stopped = True, no_room
        if journal.incarnation > scanner.incarnation:
            replay(IncarnationRaised(journal.incarnation))
        return journal

    @property
    def incarnation(self) -> int:
        """How often this store began, or lost what it may have promised: from 1 on."""
        return self.identity.incarnation

    @property
    def part_bytes(self) -> int:
        """A part is a file."""
        return self._file_bytes

    def part_of(self, position: Position) -> Part:
        """Its file."""
        return position.file, 0

    def is_closed(self, part: Part) -> bool:
        """Whether there is a newer file."""
        return 0 < part[0] < self._number

    def size_of(self, part: Part) -> int:
        """How large that file is."""
        return file_path(self.directory, part[0]).stat().st_size

    def is_far_behind(self, position: Position) -> bool:
        """Whether there are two newer files."""
        return position.file < self._number - 1

    def written_anew(self, part: Part, thin: Thin, instead: Mapping[int, tuple[int, bytes]]) -> ThinFile:
        """A closed file, to be written anew without what is gone."""
        return ThinFile(self.directory, part[0], self.identity, thin, instead)

    def closed_files(self) -> range:
        """The numbers of the files that do not grow any more."""
        return range(1, self._number)

    def append(self, entries: Sequence[Buffer | Record]) -> list[Position]:
        """Make whole frames, fences, joins and fills durable, in this order; returns where each lies (of a fill: its frame).

        Raises `JournalFull` (none of them counts) or `JournalBroken` (the process must end). Frames are not checked.
        """
        if self._owes_incarnation:
            self._append([IncarnationRaised(self.incarnation)])
            self._owes_incarnation = False
        return self._append(entries)

    def read(self, position: Position) -> bytes:
        """The frame at `position`, which `append` or a replay gave, whole or thin, checked again. Any thread may call it.

        Raises `Corrupt` if the disk does not give back what was stored there.
        """
        return self.read_row([position])[0]

    def read_row(self, positions: Sequence[Position]) -> list[bytes]:
        """As `read`, for frames that lie one behind the other (`behind`), with one read of the disk."""
        number, start, _ = positions[0]
        _, last, size = positions[-1]
        path = file_path(self.directory, number)
        data = self._read(path, start, last + size - start)
        frames = []
        for position in positions:
            at = position.offset - start
            frame = data[at : at + position.size]
            try:
                header = header_of(frame, position.size)
            except ProtocolError as error:
                raise corrupt(path, position.offset, str(error)) from None
            if header.log_id != self.identity.log_id or header.flags:
                raise corrupt(path, position.offset, "another record lies where a frame was stored")
            frames.append(frame)
        return frames

    def read_part(self, position: Position, offset: int, size: int, crc: int) -> bytes:
        """`size` bytes at `offset` in the frame at `position`, checked against the CRC that they had in the verified frame.

        Any thread may call it. Raises `Corrupt` as `read` does.
        """
        path = file_path(self.directory, position.file)
        require(offset + size <= position.size, "a part lies inside its frame")
        data = self._read(path, position.offset + offset, size)
        if crc32(data) != crc:
            raise corrupt(path, position.offset + offset, "a record of a stored frame fails its CRC")
        return data

    def check_in_place(self, position: Position, key: FrameKey) -> None:
        """Raise `Corrupt` unless the frame `key` lies at `position` on the disk. Any thread may call it."""
        check_in_place(self.directory, position, key)

    def rewrite_in_place(self, position: Position, key: FrameKey, frame: bytes) -> None:
        """Write `frame` where it was stored before (``inplace``)."""
        rewrite_in_place(self.directory, position, key, frame)

    def bytes_free(self) -> int:
        """How much room the disk has."""
        return shutil.disk_usage(self.directory).free

    def reason_to_end(self) -> str:
        """Why this journal must be opened anew: it was full, and there is room again."""
        if self.full and self.bytes_free() >= 2 * self._file_bytes:
            return "the disk has room again: the journal is opened anew"
        return ""

    def status(self) -> dict[str, Any]:
        """What people may want to know of it."""
        return {
            "directory": str(self.directory),
            "store": self.identity.store,
            "incarnation": self.incarnation,
            "files": self._number,
            "bytes": self._older_bytes + self._offset - self.freed_bytes,
            "freed_bytes": self.freed_bytes,
            "bytes_written": self.bytes_written,
            "fdatasyncs": self.fdatasyncs,
            "full": self.full,
        }

    @staticmethod
    def _read(path: Path, offset: int, size: int) -> bytes:
        # A descriptor of its own: the one that is written may be closed, and its number used again, at any time.
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(error, path, offset) from error
        try:
            return read_all(fd, path, offset, size)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the files; all that was appended is durable already. Harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entries: Sequence[Buffer | Record | IncarnationRaised]) -> list[Position]:
        if self._fd < 0:
            violated("a closed journal is not appended to")
        if self._stopped is not None:
            raise type(self._stopped)(*self._stopped.args)
        total, controls = 0, []
        for entry in entries:
            # The len() of a control record counts its fields: being a tuple tells it from a buffer.
            if isinstance(entry, tuple):
                controls.append(entry)
                total += control_bytes(entry)
            else:
                total += len(entry)
        if total % ALIGNMENT:
            violated("only whole, padded frames are appended")
        in_force, joins = self._with(controls) if controls else (self._fences, self._joins)
        if self._offset + total > self._capacity:
            self._roll(total)
        buffers: Sequence[Any] = self._encoded(entries) if controls else entries
        number, at = self._number, self._offset
        positions = []
        for buffer in buffers:
            size = len(buffer)
            positions.append(_new(Position, (number, at, size)))
            at += size
        if controls:
            positions = [_inside(position, entry) for position, entry in zip(positions, entries, strict=True)]
        try:
            write_all(self._fd, buffers, total, self._offset)
        except OSError as error:
            self._fail(disk_error(error, f"cannot write {self._path}"))
        self._sync()
        self._offset += total
        self.bytes_written += total
        self.full = False
        self._fences, self._joins = in_force, joins
        return positions

    def _encoded(self, entries: Sequence[Buffer | Record | IncarnationRaised]) -> list[Buffer]:
        """The bytes of the entries, to be written at the end of the current file: a control record says where it lies."""
        buffers: list[Buffer] = []
        at = self._offset
        for entry in entries:
            if isinstance(entry, tuple):
                entry = encode_control(entry, log_id=self.identity.log_id, file=self._number, offset=at)
            buffers.append(entry)
            at += len(entry)
        return buffers

    def _with(self, controls: Sequence[Record | IncarnationRaised]) -> tuple[dict[int, FenceRecord], dict[int, int]]:
        """The fences in force, and the joins under them, when these are added. What goes back would be read as damage."""
        in_force, joins = dict(self._fences), dict(self._joins)
        for record in controls:
            if not isinstance(record, FenceRecord | JoinRecord):
                continue
            partition = record.partition
            fence = record.fence if isinstance(record, JoinRecord) else record
            before = in_force.get(partition)
            require(before is None or follows(before, fence), f"{fence} cannot come after {before}")
            if before is not None and fence.epoch > before.epoch:
                joins.pop(partition, None)
            if isinstance(record, JoinRecord):
                newest = joins.get(partition, 0)
                require(record.number > newest, f"join {record.number} cannot come after join {newest}")
                joins[partition] = record.number
            in_force[partition] = fence
        return in_force, joins

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # "No space" too leaves pages that look clean and may not be on disk: nothing is written after it.
            self._stopped = disk_error(error, f"cannot sync {self._path}")
            self.full = isinstance(self._stopped, JournalFull)
            raise self._stopped from error
        self.fdatasyncs += 1

    def _fail(self, trouble: JournalFull | JournalBroken) -> NoReturn:
        """Raise `trouble` of a write; what a full disk took of it is cut off before."""
        if isinstance(trouble, JournalBroken):
            self._stopped = trouble
        else:
            self.full = True
            self._cut()
        raise trouble

    def _cut(self) -> None:
        """Let the current file end where the last durable append ended: as it is, the next append rolls."""
        self._capacity = self._offset
        try:
            os.ftruncate(self._fd, self._offset)
        except OSError as error:
            self._stopped = JournalBroken(f"cannot cut {self._path}: {error.strerror}; the store ends")
            raise self._stopped from error
        self._sync()

    def _roll(self, total: int) -> None:
        """Go on in a new file that begins with the fences in force and has room for `total` bytes. A few syncs."""
        number = self._number + 1
        head = _head(self.identity, number, self._offset, list(self._fences.values()))
        capacity = max(self._file_bytes, len(head) + total)
        try:
            fd = create_file(self.directory, number, head, capacity)
        except JournalFull:
            self.full = True
            raise
        except JournalBroken as broken:
            self._stopped = broken
            raise
        os.close(self._fd)
        self._older_bytes += self._offset
        self._fd, self._number, self._offset, self._capacity = fd, number, len(head), capacity
        self._path = file_path(self.directory, number)

    def _make_ready(self, *, cut: bool) -> None:
        """Cut what a scan allows to cut, preallocate what is missing, and write down a raised incarnation."""
        with contextlib.suppress(JournalFull):
            if cut:
                self._cut()
            if self._capacity < self._file_bytes:
                try:
                    os.posix_fallocate(self._fd, self._capacity, self._file_bytes - self._capacity)
                except OSError as error:
                    self._fail(disk_error(error, f"cannot preallocate {self._path}"))
                self._sync()
                self._capacity = self._file_bytes
            if self._owes_incarnation:
                self.append(())


def _begin(directory: Path, identity: Identity, numbers: Sequence[int], file_bytes: int) -> Identity:
    """Make a new store's first file, then say in `store.json` that there is one."""
    identity = replace(identity, incarnation=1)
    try:
        if not numbers:
            head = _head(identity, 1, 0, ())
            os.close(create_file(directory, 1, head, max(file_bytes, len(head))))
        write_identity(directory, identity)
    except JournalFull:
        raise no_space(directory) from None
    return identity


def _head(identity: Identity, number: int, previous_bytes: int, fences: Sequence[FenceRecord]) -> bytes:
    """The start of file `number`: its FILE record and the fences in force."""
    file = FileRecord(FILE_FORMAT_PLAIN, identity.store, identity.incarnation, previous_bytes, len(fences))
    data = encode_control(file, log_id=identity.log_id, file=number, offset=0)
    for fence in fences:
        data += encode_control(fence, log_id=identity.log_id, file=number, offset=len(data))
    return data


def _inside(position: Position, entry: object) -> Position:
    """The place of the frame inside a FILL; any other entry's place as it is."""
    if not isinstance(entry, FillRecord):
        return position
    return Position(position.file, position.offset + HEADER_BYTES, position.size - HEADER_BYTES)
