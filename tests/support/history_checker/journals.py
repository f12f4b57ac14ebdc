"""What stands on a store: a second, small reader of the journal's files, written from their description alone.

Owns that reading. It imports nothing of trilogue: a mistake in trilogue's own reader must not hide here, too. It
believes a byte only under its CRC, a frame only where it chains, and reports all else. It never writes.

The layout (design §5): `journal-NNNNNNNN.trl`, each a row of records up to zeros or the file's end. A record is a
header of 64 bytes, little-endian, a payload and zeros up to a multiple of 8. Flags 0 is a frame of a partition's log;
any other is the store's own note. A frame at an index that is there already replaces that one and all after it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

HEADER = struct.Struct("<IBBHQIQQIIIQII")
MAGIC = 0x4C52547F


class Frame(NamedTuple):
    """One frame of a partition's log, checked against its CRCs. `crc` is its header's, which covers all of it."""

    epoch: int
    crc: int
    committed_upto: int
    records: list[Any]


@dataclass(slots=True)
class StoreContents:
    """What one store holds: each partition's frames 1, 2, 3 … `damage`: what must not be; `torn`: what may be."""

    name: str
    partitions: dict[int, list[Frame]] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    torn: str = ""

    def committed_upto(self, partition: int) -> int:
        """The highest index that a frame here says is committed."""
        return max((frame.committed_upto for frame in self.partitions.get(partition, [])), default=0)


class _Bad(Exception):
    """The record at hand cannot be believed."""


def read_store(directory: Path) -> StoreContents:
    """What the journal in `directory` holds."""
    contents = StoreContents(directory.name)
    log_id = json.loads((directory / "store.json").read_bytes())["log_id"]
    paths = sorted(directory.glob("journal-*.trl"))
    for number, path in enumerate(paths, 1):
        if path.name != f"journal-{number:08d}.trl":
            contents.damage.append(f"file {number} is missing: {path.name} is there instead")
        with path.open("rb") as file, mmap(file.fileno(), 0, prot=PROT_READ) as data:
            offset, problem = _read_file(data, log_id, contents)
        if problem and path is paths[-1]:
            contents.torn = f"{path.name} at byte {offset}: {problem}"
        elif problem:
            contents.damage.append(f"{path.name} at byte {offset}: {problem}")
    return contents


def _read_file(data: mmap, log_id: int, contents: StoreContents) -> tuple[int, str]:
    """Take in the file's records; where they end, and why if it is not at zeros or at the file's end."""
    offset = 0
    while offset < len(data):
        if not any(data[offset : offset + HEADER.size]):
            return offset, ""
        try:
            offset = _take_record(data, offset, log_id, contents)
        except _Bad as bad:
            return offset, str(bad)
    return offset, ""


def _take_record(data: mmap, offset: int, log_id: int, contents: StoreContents) -> int:
    """Take in the record at `offset`; where the next one begins."""
    if offset + HEADER.size > len(data):
        raise _Bad("half a header")
    fields = HEADER.unpack_from(data, offset)
    magic, version, codec, flags, log, partition, epoch, index, prev_crc, count, size, upto, payload_crc, own_crc = fields
    if magic != MAGIC or crc32(data[offset : offset + HEADER.size - 4]) != own_crc:
        raise _Bad("no header, or a damaged one")
    if (version, codec, log) != (1, 1, log_id):
        raise _Bad(f"version {version}, codec {codec}, log {log}")
    payload = data[offset + HEADER.size : offset + HEADER.size + size]
    following: int = offset + HEADER.size + -(-size // 8) * 8
    if len(payload) != size or crc32(payload) != payload_crc or any(data[offset + HEADER.size + size : following]):
        raise _Bad("a damaged payload")
    if flags == 0:
        records = msgpack.unpackb(payload, raw=False, use_list=True)
        if len(records) != count:
            raise _Bad(f"{len(records)} records where the header says {count}")
        _chain(contents, partition, index, prev_crc, Frame(epoch, own_crc, upto, records))
    return following


def _chain(contents: StoreContents, partition: int, index: int, prev_crc: int, frame: Frame) -> None:
    """Put the frame in its place."""
    frames = contents.partitions.setdefault(partition, [])
    where = f"partition {partition} frame {index} of epoch {frame.epoch}"
    if not 0 < index <= len(frames) + 1:
        raise _Bad(f"{where} after {len(frames)} frames")
    if prev_crc != (frames[index - 2].crc if index > 1 else 0):
        raise _Bad(f"{where} does not chain to the one before")
    if index <= len(frames):
        if frame.epoch <= frames[index - 1].epoch:
            raise _Bad(f"{where} replaces one of epoch {frames[index - 1].epoch}")
        if index <= contents.committed_upto(partition):
            contents.damage.append(f"{where} replaces one that was said to be committed")
        del frames[index - 1 :]
    frames.append(frame)
