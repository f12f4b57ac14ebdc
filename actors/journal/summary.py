"""What a closed journal file holds, in short: `journal-00000001.sum`, so that it need not be read again at each opening.

Owns the summary's format, how it is made, and when it may be taken instead of the file. It must not know payloads. Rules:

1. It is made from a whole file that was read from the disk and verified, record by record; never from one with any damage, and
   never from the newest, which may still grow.
2. It is taken only if its own CRC holds, and the file is the one it was made from: the same head, inode, size and end (as the
   next file says), with the same last record on the disk.
3. It names each frame: its epoch, its CRC and its place. So frames still have to chain, within a file and from one to the next;
   and whoever reads one later notices damage by its CRC. What went bad in an old file is the scrubber's to find, not the
   opening's.
4. It is derived, and disposable: without it, the file is scanned.

    The file: crc32 u32 of the rest · msgpack [format, store, log_id, number, head_crc, inode, file_bytes, end, last_offset,
    last_crc, records, [item …]]. An item is, in the order of the journal,
    [0, partition, first, prev_crc, committed_upto, epochs, crcs, offsets, sizes]   consecutive frames that chain (little-endian
                                                                                    u64, u32, u64, u32; what each takes there)
    [1, offset, record]                                                             a control record, its bytes
    [2, offset, partition, header, size]                                            a FILL: its frame's header, and size there
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from trilogue.actors.journal.files import FileReader, file_path, read_all, summary_path
from trilogue.actors.journal.identity import Identity
from trilogue.actors.journal.records import FLAG_FILL, FramesFound
from trilogue.actors.protocol.errors import Corrupt, ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, check_payload, decode_header
from trilogue.actors.protocol.thinning import FLAG_THIN, header_of, inner_of, records_at

FORMAT: Final = 2
FRAMES, CONTROL, FILL = 0, 1, 2
_ANY_BYTES: Final = 1 << 33
_STEP_BYTES: Final = 256 * 1024
_STEP_RECORDS: Final = 64


class Summary(NamedTuple):
    """One closed file. `items` are as in the module's docstring, but for the arrays of frames: a `FramesFound`."""

    end: int
    records: int
    items: list[Any]


class _Making:
    """The items of one file, while it is read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: list[Any] = []
        self.records = 0
        self._open: dict[int, FramesFound] = {}

    def frame(self, offset: int, header: Header, size: int) -> None:
        index, crc = header.index, header.header_crc
        frames = self._open.get(header.partition)
        if (
            frames is None
            or index != frames.first + len(frames.crcs)
            or header.prev_crc != frames.crcs[-1]
            or header.epoch < frames.epochs[-1]
        ):
            self._close(header.partition)
            frames = FramesFound(
                header.partition, index, header.prev_crc, 0, array("Q"), array("I"), self.number, array("Q"), array("I")
            )
        if header.committed_upto >= index:
            raise ProtocolError(f"frame {index} vouches for itself")
        frames.epochs.append(header.epoch)
        frames.crcs.append(crc)
        frames.offsets.append(offset)
        frames.sizes.append(size)
        if header.committed_upto > frames.committed_upto:
            frames = frames._replace(committed_upto=header.committed_upto)
        self._open[header.partition] = frames

    def control(self, offset: int, header: Header, data: memoryview) -> None:
        for partition in list(self._open):
            self._close(partition)
        if header.flags == FLAG_FILL:
            frame = data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
            header_of(frame, _ANY_BYTES)
            at = records_at(frame)
            self.items.append([FILL, offset, header.partition, bytes(frame[at - HEADER_BYTES : at]), len(frame)])
        else:
            self.items.append([CONTROL, offset, bytes(data)])

    def _close(self, partition: int) -> None:
        frames = self._open.pop(partition, None)
        if frames is not None:
            arrays = [items.tobytes() for items in (frames.epochs, frames.crcs, frames.offsets, frames.sizes)]
            self.items.append([FRAMES, *frames[:4], *arrays])

    def done(self) -> list[Any]:
        for partition in list(self._open):
            self._close(partition)
        return self.items


def records_in(
    file: FileReader, log_id: int, offset: int = 0, upto: int = _ANY_BYTES
) -> Iterator[tuple[int, Header, memoryview]]:
    """The records of a closed file, from the one at `offset` on and up to byte `upto`, each verified: (offset, header, bytes).
    Raises `Corrupt` where one is damaged."""
    while offset < min(upto, file.size):
        head = file.view(offset, HEADER_BYTES)
        if offset and not any(head):
            return
        try:
            header = decode_header(head, 0, _ANY_BYTES)
            data = file.view(offset, header.frame_bytes)
            check_payload(header, data, 0)
            if header.log_id != log_id:
                raise ProtocolError(f"a record of log {header.log_id}")
        except ProtocolError as error:
            raise Corrupt(f"{file.path} is damaged at byte {offset}: {error}") from None
        yield offset, header, data
        offset += header.frame_bytes


def summarise(directory: Path, number: int, identity: Identity) -> Iterator[None]:
    """Read a closed file and write its summary, a little between two `yield`s. Raises `Corrupt` where the file is damaged."""
    making = _Making(number)
    with FileReader(directory, number) as file:
        offset, last_offset, head_crc, last_crc = 0, 0, 0, 0
        step = 0
        for offset, header, data in records_in(file, identity.log_id):
            try:
                if header.flags == FLAG_THIN:
                    making.frame(offset, inner_of(header, data[HEADER_BYTES:]), header.frame_bytes)
                elif header.flags:
                    making.control(offset, header, data)
                else:
                    making.frame(offset, header, header.frame_bytes)
            except ProtocolError as error:
                raise Corrupt(f"{file.path} is damaged at byte {offset}: {error}") from None
            head_crc = head_crc or header.header_crc
            last_offset, last_crc = offset, header.header_crc
            making.records += 1
            step += 1 + header.frame_bytes * _STEP_RECORDS // _STEP_BYTES
            if step >= _STEP_RECORDS:
                step = 0
                yield
        end = offset + header.frame_bytes
        inode = os.stat(file.path).st_ino
        head_says = [FORMAT, identity.store, identity.log_id, number, head_crc, inode, file.size, end, last_offset, last_crc]
    packed = msgpack.packb([*head_says, making.records, making.done()], use_bin_type=True)
    path = summary_path(directory, number)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(crc32(packed).to_bytes(4, "little") + packed)
    os.rename(temporary, path)


def load_summary(directory: Path, number: int, identity: Identity, head_crc: int, end: int) -> Summary | None:
    """The summary of a file, if it may be taken instead of it (rule 2)."""
    with contextlib.suppress(OSError, ValueError, TypeError, Corrupt, msgpack.exceptions.UnpackException):
        data = summary_path(directory, number).read_bytes()
        if crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            return None
        says = msgpack.unpackb(memoryview(data)[4:], use_list=True, raw=False)
        path = file_path(directory, number)
        stat = os.stat(path)
        known = [FORMAT, identity.store, identity.log_id, number, head_crc, stat.st_ino, stat.st_size, end]
        if says[: len(known)] != known:
            return None
        last_offset, last_crc, records, items = says[len(known) :]
        fd = os.open(path, os.O_RDONLY)
        try:
            last = decode_header(read_all(fd, path, last_offset, HEADER_BYTES), 0, _ANY_BYTES)
        except ProtocolError:
            return None
        finally:
            os.close(fd)
        if last.header_crc == last_crc:
            return Summary(end, records, [_frames(number, item) if item[0] == FRAMES else item for item in items])
    return None


def _frames(number: int, item: list[Any]) -> FramesFound:
    _, partition, first, prev_crc, committed_upto, *packed = item
    arrays = array("Q"), array("I"), array("Q"), array("I")
    for items, data in zip(arrays, packed, strict=True):
        items.frombytes(data)
    epochs, crcs, offsets, sizes = arrays
    return FramesFound(partition, first, prev_crc, committed_upto, epochs, crcs, number, offsets, sizes)
