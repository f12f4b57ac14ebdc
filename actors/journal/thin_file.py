"""Writing a closed journal file anew, without the bodies of messages that are gone: so disk space is given back (issue 4).

Owns the new file, from its first byte until it has taken the old one's place. It must not know which messages are gone, nor
when there is time. Rules:

1. Each record is read from the disk and verified before it is copied. The order stays; a frame that is stored where it lies may
   become thin (``protocol.thinning``), everything else stays what it was. Control records say where they lie now.
2. The new file is whole on the disk, and was read back, before it gets the old one's name, in one step. A crash leaves the old
   one or the new one. It holds the frames of the old one, each as often and in the same order: no other is put in, none is
   left out.
3. The newest file is never touched: it is written to.
4. What cannot be read is taken from elsewhere if there is such (`instead`), otherwise the file stays as it is (`Corrupt`).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from trilogue.actors.journal.files import FileReader, JournalBroken, file_path, summary_path, sync_directory
from trilogue.actors.journal.identity import Identity
from trilogue.actors.journal.records import (
    FILE_FORMAT,
    FLAG_FILL,
    ControlRecord,
    FileRecord,
    FillRecord,
    Position,
    decode_control,
    encode_control,
)
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.journal.summary import records_in
from trilogue.actors.protocol.errors import Corrupt, ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, decode_header
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.thinning import FLAG_THIN, header_of, inner_of, is_thin, placed

STEP_BYTES: Final = 256 * 1024
RECORD_COST_BYTES: Final = 32 * 1024
"""What a record costs beside its bytes: 0.1 ms and more, so a step is some ms at most."""
_ANY_BYTES: Final = 1 << 33

Thin = Callable[[int, int, Position, bytes], bytes]
"""(partition, index, place, frame) -> what is to be left of it; the same bytes where nothing of it is gone."""


class Moves:
    """Where the frames of a file lie in the new one, of each partition in their order there: in compact rows, for there may be
    hundreds of thousands."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[array[int], ...]] = {}

    def add(self, partition: int, index: int, old_offset: int, offset: int, size: int) -> None:
        """One frame."""
        rows = self._rows.get(partition)
        if rows is None:
            rows = self._rows[partition] = array("Q"), array("Q"), array("Q"), array("I")
        for row, item in zip(rows, (index, old_offset, offset, size), strict=True):
            row.append(item)

    @property
    def partitions(self) -> list[int]:
        """Those of which there are frames."""
        return list(self._rows)

    def of(self, partition: int) -> Iterator[tuple[int, int, int, int]]:
        """Those of one partition: (index, where it lay, where it lies, its size now)."""
        indexes, old_offsets, offsets, sizes = self._rows[partition]
        return zip(indexes, old_offsets, offsets, sizes, strict=True)


class ThinFile:
    """One file that is being written anew. `write` does it a little at a time; then `freed_bytes` says what `take_place` is
    worth, or `give_up`."""

    def __init__(
        self, directory: Path, number: int, identity: Identity, thin: Thin, instead: Mapping[int, tuple[int, bytes]]
    ) -> None:
        """`instead`: offset -> how many bytes of the old file are a frame that cannot be read, and the frame."""
        self.file = number
        self.moves = Moves()
        self.freed_bytes = 0
        self._directory, self._number, self._identity = directory, number, identity
        self._thin, self._instead = thin, instead
        self._path = file_path(directory, number)
        self._temporary = self._path.with_name(self._path.name + ".tmp")
        self._end = 0

    def write(self) -> Iterator[None]:
        """Write the new file beside the old one. Raises `Corrupt` (what cannot be read), or `OSError`; then `give_up`."""
        with FileReader(self._directory, self._number) as file, self._temporary.open("wb") as out:
            os.fchmod(out.fileno(), 0o600)
            head: FileRecord | None = None
            since = 0
            for offset, size, header, data in self._records(file):
                self._end = offset + size
                if head is None:
                    head = self._begin(header, data, out)
                    continue
                out.write(self._copied(offset, header, data, out.tell()))
                since += len(data) + RECORD_COST_BYTES
                if since >= STEP_BYTES:
                    since = 0
                    yield
            require(head is not None, "a closed file has a head")
            assert head is not None
            end = out.tell()
            out.seek(0)
            out.write(self._encoded(head._replace(original_bytes=head.original_bytes or self._end, end=end), 0))
            out.flush()
            os.fsync(out.fileno())
            self.freed_bytes = self._end - end
        yield from self._read_back(end)

    def take_place(self) -> None:
        """Let the new file have the old one's name. From then on the frames lie where `moves` says.

        Raises `OSError` (nothing happened), or `JournalBroken`: which file has the name is unknown, and the process must end.
        """
        os.rename(self._temporary, self._path)
        try:
            summary_path(self._directory, self._number).unlink(missing_ok=True)
            sync_directory(self._directory)
        except OSError as error:
            raise JournalBroken(f"cannot sync the name of {self._path}: {error.strerror}; the store ends") from error

    def give_up(self) -> None:
        """Leave everything as it is."""
        self._temporary.unlink(missing_ok=True)

    # ------------------------------------------------------------------ records

    def _records(self, file: FileReader) -> Iterator[tuple[int, int, Header, bytes]]:
        """The records of the old file, each with where it lies and its size there; of a frame that cannot be read, what is to
        stand there instead."""
        start = 0
        for bad in sorted(self._instead):
            size, frame = self._instead[bad]
            header = header_of(frame, _ANY_BYTES)
            key = FrameKey(header.partition, header.index, header.header_crc)
            if self._other_frame(file, bad, key):
                raise Corrupt(f"frame {key.frame_index} cannot be put back: another one lies at byte {bad} of {file.path}")
            if self._is_filled(file, bad, size):
                bad, size = bad - HEADER_BYTES, size + HEADER_BYTES
                frame = encode_control(FillRecord(header.partition, frame), log_id=header.log_id, file=self._number, offset=bad)
                header = decode_header(frame, 0, _ANY_BYTES)
            for offset, old_size, old_header, data in self._between(file, start, bad):
                yield offset, old_size, old_header, data
                start = offset + old_size
            if start != bad or bad + size > file.size:
                raise Corrupt(f"frame {key.frame_index} cannot be put back: no record begins at byte {bad} of {file.path}")
            yield bad, size, header, frame
            start = bad + size
        yield from self._between(file, start, file.size)

    def _other_frame(self, file: FileReader, offset: int, key: FrameKey) -> bool:
        """Whether another frame than this one can be told to lie there: damage may leave nothing to tell by."""
        try:
            header = decode_header(file.view(offset, HEADER_BYTES), 0, _ANY_BYTES)
            if header.flags == FLAG_THIN:
                header = inner_of(header, file.view(offset + HEADER_BYTES, HEADER_BYTES))
        except ProtocolError:
            return False
        return (header.flags, header.partition, header.index, header.header_crc) != (0, *key)

    def _is_filled(self, file: FileReader, offset: int, size: int) -> bool:
        """Whether the frame of that size at `offset` lies inside a FILL."""
        start = offset - HEADER_BYTES
        try:
            header = decode_header(file.view(start, HEADER_BYTES), 0, _ANY_BYTES)
        except ProtocolError:
            return False
        place = header.flags, header.count, header.index, header.frame_bytes
        return place == (FLAG_FILL, self._number, start, HEADER_BYTES + size)

    def _between(self, file: FileReader, start: int, end: int) -> Iterator[tuple[int, int, Header, bytes]]:
        for offset, header, data in records_in(file, self._identity.log_id, start, end):
            yield offset, len(data), header, bytes(data)

    def _begin(self, header: Header, data: bytes, out: BinaryIO) -> FileRecord:
        record = decode_control(header, data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes], file=self._number, offset=0)
        require(isinstance(record, FileRecord), "a file begins with its head")
        assert isinstance(record, FileRecord)
        record = record._replace(format=FILE_FORMAT)
        out.write(self._encoded(record._replace(original_bytes=record.original_bytes or 1), 0))  # of the size that it will have
        return record

    def _copied(self, offset: int, header: Header, data: bytes, at: int) -> bytes:
        """The record as it stands at `at` in the new file."""
        number = self._number
        if data[6] in (0, FLAG_THIN):  # of the record: what stands there instead of a thin frame has the header inside
            frame = self._left_of(Position(number, offset, len(data)), data, at)
            return placed(frame, number, at) if is_thin(frame) else frame
        payload = data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
        record = decode_control(header, payload, file=number, offset=offset)
        if isinstance(record, FillRecord):
            place = Position(number, offset + HEADER_BYTES, len(record.frame))
            record = FillRecord(record.partition, self._left_of(place, bytes(record.frame), at + HEADER_BYTES))
        return self._encoded(record, at)

    def _left_of(self, place: Position, frame: bytes, at: int) -> bytes:
        header = header_of(frame, _ANY_BYTES)
        left = self._thin(header.partition, header.index, place, frame)
        require(header_of(left, _ANY_BYTES) == header, "a frame stays what it is when bodies are taken out")
        self.moves.add(header.partition, header.index, place.offset, at, len(left))
        return left

    def _encoded(self, record: ControlRecord, offset: int) -> bytes:
        return encode_control(record, log_id=self._identity.log_id, file=self._number, offset=offset)

    def _read_back(self, end: int) -> Iterator[None]:
        """Assert that the disk gives back what was written: each record whole, and the frames that were copied, no more."""
        said = {partition: self.moves.of(partition) for partition in self.moves.partitions}
        since = reached = 0
        with FileReader(self._directory, self._number, self._temporary) as file:
            for offset, header, data in records_in(file, self._identity.log_id):
                reached = offset + len(data)
                if header.flags in (0, FLAG_THIN, FLAG_FILL):
                    at = HEADER_BYTES if header.flags == FLAG_FILL else 0
                    size = decode_header(data[at : at + HEADER_BYTES], 0, _ANY_BYTES).frame_bytes
                    found = header_of(bytes(data[at : at + size]), _ANY_BYTES)
                    index, _, *place = next(said.get(found.partition, iter(())), (0, 0, 0, 0))
                    if [index, *place] != [found.index, offset + at, size]:
                        raise Corrupt(f"{self._temporary} holds another frame at byte {offset + at} than was copied there")
                since += len(data) + RECORD_COST_BYTES
                if since >= STEP_BYTES:
                    since = 0
                    yield
        missing = [row for rows in said.values() for row in rows]
        if missing or reached != end:
            raise Corrupt(f"{self._temporary} ends at byte {reached}, and {len(missing)} frames are missing")
