"""Where one record of a session lies, and the packed entries of many.

Owns the layout of an entry, and finding one among others. It must not know files or frames. Rules:

1. The entries of a part are of one session, in the order of the log, and dense: an entry's messages go up to the next one's
   `first_seq`, those of the last one up to the part's `last_seq`. A skip has no messages, and takes one number.
2. An entry carries the CRC of its record's bytes, taken from a frame that was verified as a whole.
3. It names its sender by a CRC of the id. Whoever reads the record compares the whole id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

_ENTRY: Final = struct.Struct("<QQQIIII")
ENTRY_BYTES: Final = _ENTRY.size
_FIRST_SEQ: Final = struct.Struct("<Q")
POSITION_BITS: Final = 24  # more than a frame has bytes

_new = tuple.__new__

pack_entry = _ENTRY.pack
"""(first_seq, first_n, frame_index, offset, size, crc, sender) as bytes."""


class Place(NamedTuple):
    """One record: what it holds, and where it lies inside the frame `frame_index`."""

    first_seq: int
    first_n: int
    frame_index: int
    offset: int
    size: int
    crc: int
    sender: int  # `sender_crc` of its id
    messages: int  # 0: a skip

    @property
    def last_n(self) -> int:
        """The last number that it takes."""
        return self.first_n + max(self.messages, 1) - 1

    @property
    def at(self) -> int:
        """Its place in the log as one number, which rises from record to record."""
        return self.frame_index << POSITION_BITS | self.offset


class Part(NamedTuple):
    """Consecutive entries of one session: at least one."""

    entries: bytes | bytearray
    last_seq: int

    def __len__(self) -> int:
        return len(self.entries) // ENTRY_BYTES

    @property
    def first_seq(self) -> int:
        """The seq that its first entry begins with."""
        return seq_at(self.entries, 0)

    def place(self, k: int) -> Place:
        """The entry number `k`."""
        at = k * ENTRY_BYTES
        fields = _ENTRY.unpack_from(self.entries, at)
        at += ENTRY_BYTES
        end = seq_at(self.entries, at) if at < len(self.entries) else self.last_seq + 1
        return _new(Place, (*fields, end - fields[0]))

    def from_seq(self, seq: int) -> int:
        """The number of the entry that holds `seq`, or of the nearest one before it; 0 if there is none before it."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if seq_at(self.entries, middle * ENTRY_BYTES) <= seq:
                low = middle + 1
            else:
                high = middle
        return max(0, low - 1)

    def places(self) -> Iterator[Place]:
        """All of them."""
        return map(self.place, range(len(self)))


def seq_at(entries: bytes | bytearray, at: int) -> int:
    """The first seq of the entry that begins at byte `at`."""
    first: int = _FIRST_SEQ.unpack_from(entries, at)[0]
    return first


def sender_crc(sender_id: str) -> int:
    """How an entry names its sender."""
    return crc32(sender_id.encode())
