"""The indexes of all partitions of one store, and their one catalogue.

Owns how much of them is in memory, when the catalogue is written, and what becomes of one that is not believed. It must not
know connections or the journal: it is given frames, and what the chain's CRC is at an index. Used by one thread, but for
`status`. Rules:

1. What is recent takes about `index_recent_bytes_max` in all, and as much again while it is being written. Where it would take
   more, the largest partition's is written first, and nothing more is taken in until there is room.
2. A catalogue is believed for a partition if the frame at its `upto` is the one that the journal holds there: frames form a
   chain, so all before it are the same, too.
3. A catalogue that is damaged is removed, and made anew from the journal. One that cannot be written (a full disk) stays as it
   is: what is recent stays in memory, and it is tried again. One that cannot be made at all is made in memory.
4. Work is cut into slices: `work` ends soon after its deadline.
5. What the thinning has counted of a partition is believed if it was counted up to a frame that the journal holds, and not less
   far than the catalogue goes: the trims behind that are told again.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import msgpack

from trilogue.actors.index.catalogue import FILE, FORMAT, Catalogue, CatalogueDamaged, remove
from trilogue.actors.index.partition import PartitionIndex, ReadFrame
from trilogue.actors.index.segments import Job, Segments
from trilogue.actors.protocol.limits import Limits

logger = logging.getLogger(__name__)

CrcAt = Callable[[int, int], int | None]
"""(partition, index) -> the CRC of the frame that the journal holds there."""

TRY_AGAIN_S = 10.0


class IndexKeeper:
    """The indexes of one store. `directory` is None where nothing is to survive."""

    def __init__(
        self, directory: Path | None, mark: str, crc_at: CrcAt, limits: Limits, clock: Callable[[], float] = monotonic
    ) -> None:
        self._path = directory / FILE if directory is not None else None
        self._mark = f"{mark} {FORMAT}"
        self._crc_at = crc_at
        self._limits = limits
        self._clock = clock
        self.indexes: dict[int, PartitionIndex] = {}
        self.rebuilds = 0
        self.trouble = ""  # why the catalogue cannot be written
        self.begin_with(self._opened())

    def _opened(self) -> Catalogue:
        try:
            return Catalogue.open(self._path, self._mark)
        except (sqlite3.Error, OSError) as error:
            self.trouble = f"no {FILE}: {error}"
            logger.warning("the index is kept in memory alone until the store starts again: %s", error)
            return Catalogue.open(None, self._mark)

    def begin_with(self, catalogue: Catalogue) -> None:
        """Go on from this catalogue; nothing is in memory."""
        self.catalogue = catalogue
        self._segments = Segments(catalogue, self._limits)
        self._writing: PartitionIndex | None = None
        self._flush: Job | None = None
        self._tidying: Job | None = None
        self._tried_at = -TRY_AGAIN_S
        self.indexes.clear()

    def close(self) -> None:
        """Let go of the file."""
        self.catalogue.close()

    def of(self, partition: int) -> PartitionIndex:
        """The partition's index; the first time, the catalogue is compared with the journal (rule 2)."""
        index = self.indexes.get(partition)
        if index is None:
            newest = self.catalogue.newest(partition)
            if newest is not None and self._crc_at(partition, newest.upto) != newest.frame_crc:
                logger.warning("the index of partition %d is of other frames: it is made anew", partition)
                self._segments.forget(partition)
                self._tidying = None
            index = self.indexes[partition] = PartitionIndex(partition, self.catalogue)
        return index

    def discard(self, reason: object) -> None:
        """The catalogue is not believed any more (rule 3): all is read again from the journal."""
        logger.error("the index is made anew from the journal: %s", reason)
        self.rebuilds += 1
        self.catalogue.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                remove(self._path)
        self.begin_with(self._opened())

    # ------------------------------------------------------------------ taking in, and making room

    def advance(self, partition: int, upto: int, read_frame: ReadFrame, deadline: float) -> bool:
        """Take committed frames in up to `upto`, and make room for them, until the deadline; whether all are in."""
        index = self.of(partition)
        while index.upto < upto:
            if self._clock() >= deadline:
                return False
            if self._is_full():
                self._write_a_little(deadline)
                continue
            index.catch_up(index.upto + 1, read_frame)
        return True

    def tidy(self, deadline: float, *, rest: bool) -> bool:
        """Write and merge what is due, until the deadline; whether more is. `rest`: the store has nothing else to do, so
        little stays in memory."""
        while self._clock() < deadline:
            if self._flush is not None or self._is_full() or (rest and self._is_worth_writing()):
                if not self._write_a_little(deadline):
                    return False
            elif not self._merge_a_little():
                return False
        return True

    def _recent_bytes(self) -> int:
        return sum(index.recent.size_bytes for index in list(self.indexes.values()))

    def _is_full(self) -> bool:
        """Whether what is recent must be written before more is taken in; not while the disk does not take it."""
        return self._recent_bytes() >= self._limits.index_recent_bytes_max and self._may_write()

    def _is_worth_writing(self) -> bool:
        return self._recent_bytes() >= self._limits.index_resting_bytes_max and self._may_write()

    def _may_write(self) -> bool:
        return self._flush is not None or self._clock() >= self._tried_at + TRY_AGAIN_S

    def _write_a_little(self, deadline: float) -> bool:
        """Go on writing, or begin with the largest partition; false when the disk does not take it."""
        try:
            if self._flush is None:
                index = self._writing or max(self.indexes.values(), key=lambda one: one.recent.size_bytes)
                recent = index.leaving or index.leave()
                self._writing, self._flush = index, self._segments.flush(index.partition, recent)
            while self._clock() < deadline:
                if next(self._flush, self) is self:
                    assert self._writing is not None
                    self._writing.left()
                    self._writing = self._flush = None
                    self.trouble = self.trouble if self.catalogue.path is None else ""
                    break
        except sqlite3.OperationalError as error:
            self._not_written(error)
            return False
        return True

    def _merge_a_little(self) -> bool:
        """Go on merging or removing; false when nothing is left to do."""
        try:
            if self._tidying is None:
                self._tidying = self._segments.sweep() or self._segments.merge() or self._segments.shrink()
            if self._tidying is None or not self._may_write():
                return False
            if next(self._tidying, self) is self:
                self._tidying = None
        except sqlite3.OperationalError as error:
            self._tidying = None
            self._not_written(error)
            return False
        return True

    def _not_written(self, error: sqlite3.OperationalError) -> None:
        if not self.trouble:
            logger.warning("the index cannot be written: %s; it is tried again", error)
        self.trouble, self._flush, self._tried_at = str(error), None, self._clock()

    # ------------------------------------------------------------------ what the thinning counted

    def note_counted(self, counted: Mapping[int, tuple[int, int]], gone_bytes: Mapping[tuple[int, int], int]) -> None:
        """Keep what is gone in each part of the journal by the trims up to some frame of each partition, and by some floor;
        nothing is kept where the disk does not take it."""
        rows = [(partition, upto, self._crc_at(partition, upto) or 0, floor) for partition, (upto, floor) in counted.items()]
        says: bytes = msgpack.packb([rows, [(*part, size) for part, size in gone_bytes.items()]])
        with contextlib.suppress(sqlite3.OperationalError):
            self._segments.note_counted(says)

    def counted(self) -> tuple[dict[int, tuple[int, int]], dict[tuple[int, int], int]]:
        """What `note_counted` kept, as far as it is believed (rule 5)."""
        try:
            says = self.catalogue.counted()
        except (CatalogueDamaged, sqlite3.Error) as damage:
            self.discard(damage)
            says = None
        rows, gone_bytes = msgpack.unpackb(says) if says is not None else ([], [])
        counted = {}
        for partition, upto, crc, floor in rows:
            newest = self.catalogue.newest(partition)
            if crc == self._crc_at(partition, upto) and (newest is None or newest.upto <= upto):
                counted[partition] = upto, floor
        return counted, {(file, part): size for file, part, size in gone_bytes}

    # ------------------------------------------------------------------ for people

    def status(self) -> dict[str, Any]:
        """How far it is. Any thread may ask."""
        return {
            "indexed_upto": {partition: index.upto for partition, index in sorted(self.indexes.copy().items())},
            "memory_bytes": sum(index.size_bytes for index in self.indexes.copy().values()),
            "catalogue_bytes": self.catalogue.size_bytes,
            "segments": len(self.catalogue.segments),
            "rebuilds": self.rebuilds,
            "trouble": self.trouble,
        }


__all__ = ["CatalogueDamaged", "CrcAt", "IndexKeeper"]
