"""Where the frames of one partition lie in a store's journal (design §5): those of its chain, and older ones below its base.

Owns the places, and nothing else: which frames there are is decided by ``protocol.holdings``, and told here once it is on
disk. It must not know what a frame holds. Rules:

1. The store's event loop changes it, in the order in which the journal was written; any thread may ask. One thing is done by
   the thread that reads: a frame moves, when its file was written anew (`move`).
2. Whoever asks while the base moves gets the place of the frame that he asked for, or none: never another one's.
3. Nobody holds the lock for long: the event loop waits for it, too. Whoever goes through many frames lets go of it between.
4. A place comes out as it went in. One number holds which file and where in it; how many bits each has (`offset_bits`) depends
   on the journal: many files of some MiB, or one log a partition that grows for ever. What does not fit breaks an invariant.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from threading import Lock
from typing import Final, NamedTuple

from trilogue.actors.journal import Position
from trilogue.actors.protocol.frames import ALIGNMENT
from trilogue.actors.protocol.holdings import Interval, Row
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.invariants import require, violated

IN_FILES: Final = 36
"""Bits of an offset, in units of the alignment: files of half a TiB at most, and 2^28 of them."""
IN_LOGS: Final = 53
"""The same on a server, where a file is a partition's log: 2^56 bytes each."""
require(PARTITIONS_MAX <= 1 << 64 - IN_LOGS, "each partition has a log")
_SIZE_BYTES_MAX: Final = ((1 << 32) - 1) * ALIGNMENT
_MOVED_AT_ONCE = 1024
_SUMMED_AT_ONCE = 4096  # a power of two
_new = tuple.__new__


class Ready(NamedTuple):
    """Frames that move: their indexes, where they lay, where they lie now, and their sizes."""

    indexes: array[int]
    was: array[int]
    now: array[int]
    sizes: array[int]


class Places:
    """The places of consecutive frames: 12 bytes each."""

    __slots__ = ("_files", "_mask", "_offset_bits", "_offset_bytes", "_sizes", "_where")

    def __init__(self, offset_bits: int, where: Row[int] | None = None, sizes: Row[int] | None = None) -> None:
        self._offset_bits, self._mask = offset_bits, (1 << offset_bits) - 1
        self._files, self._offset_bytes = 1 << 64 - offset_bits, ALIGNMENT << offset_bits
        self._where: Row[int] = where if where is not None else Row(array("Q"))
        self._sizes: Row[int] = sizes if sizes is not None else Row(array("I"))

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, at: int) -> Position:
        where, size = self._where[at], self._sizes[at]
        return _new(Position, (where >> self._offset_bits, (where & self._mask) * ALIGNMENT, size * ALIGNMENT))

    def ready(self, file: int, moves: list[tuple[int, int, int, int]]) -> Ready:
        """Moves of frames in a file, as they are kept here."""
        indexes, old, new, sizes = zip(*moves, strict=True)
        for offset, size in ((min(new), min(sizes)), (max(new), max(sizes)), (new[-1], sizes[-1])):
            self._check(file, offset, size)
        start = file << self._offset_bits
        was, now = (array("Q", [start | offset // ALIGNMENT for offset in offsets]) for offsets in (old, new))
        return Ready(array("Q", indexes), was, now, array("I", [size // ALIGNMENT for size in sizes]))

    def move(self, at: int, was: int, now: int, size: int) -> None:
        """Let the frame lie elsewhere, if it lies where it was: all as it is kept here."""
        if self._where[at] == was:
            self._where[at], self._sizes[at] = now, size

    def move_row(self, at: int, ready: Ready) -> bool:
        """As `move`, for consecutive frames, at once; false, and nothing done, where not all lie where they were."""
        if not 0 <= at <= len(self) - len(ready.was) or self._where.part(at, at + len(ready.was)).plain() != ready.was:
            return False
        self._where.replace(at, ready.now)
        self._sizes.replace(at, ready.sizes)
        return True

    def sizes(self, start: int, end: int) -> list[int]:
        """The sizes of those from `start` to before `end`, in bytes."""
        return [size * ALIGNMENT for size in self._sizes.part(start, end).plain()]

    def append(self, position: Position) -> None:
        """Put a place behind all others."""
        file, offset, size = position
        self._check(file, offset, size)
        self._where.append(file << self._offset_bits | offset // ALIGNMENT)
        self._sizes.append(size // ALIGNMENT)

    def _check(self, file: int, offset: int, size: int) -> None:
        """Assert that the place comes out as it goes in: its bits do not run into each other, and none is dropped."""
        if (offset | size) % ALIGNMENT or not (
            0 <= file < self._files and 0 <= offset < self._offset_bytes and 0 <= size <= _SIZE_BYTES_MAX
        ):
            violated("a frame of {} bytes at byte {} of file {} has no place", size, offset, file)

    def extend(self, file: int, offsets: array[int], sizes: array[int]) -> None:
        """Put many of one file behind all others."""
        if not offsets:
            return
        for offset, size in ((min(offsets), min(sizes)), (max(offsets), max(sizes)), (offsets[-1], sizes[-1])):
            self._check(file, offset, size)
        at = file << self._offset_bits
        self._where.put_behind(Row(array("Q", [at | offset // ALIGNMENT for offset in offsets])))
        self._sizes.put_behind(Row(array("I", [size // ALIGNMENT for size in sizes])))

    def put_behind(self, places: Places) -> None:
        """Put those of the frames that follow behind these."""
        self._where.put_behind(places._where)
        self._sizes.put_behind(places._sizes)

    def put_before(self, places: Places) -> None:
        """Put those of the frames that these follow before these, at their cost."""
        self._where.put_before(places._where)
        self._sizes.put_before(places._sizes)

    def cut(self, at: int) -> None:
        """Drop those from position `at` on."""
        self._where.cut(at)
        self._sizes.cut(at)

    def part(self, start: int, end: int) -> Places:
        """Those from `start` to before `end`, copied."""
        return Places(self._offset_bits, self._where.part(start, end), self._sizes.part(start, end))


class FramePlaces:
    """The places of one partition's frames."""

    def __init__(self, offset_bits: int = IN_FILES) -> None:
        """`offset_bits`: `IN_FILES` or `IN_LOGS`."""
        self.base = 1
        self.last_index = 0  # of the chain, on disk
        self._offset_bits = offset_bits
        self._chain = Places(offset_bits)
        self._older: list[tuple[int, Places]] = []  # (the first index, …), in order
        self._sums: dict[int, int] = {}  # a multiple of `_SUMMED_AT_ONCE` -> how many bytes so many frames from it on take
        self._lock = Lock()

    @property
    def empty(self) -> bool:
        """Whether there is no frame at all."""
        return not self._older and not len(self._chain)

    def at(self, index: int) -> Position | None:
        """Where the frame at `index` lies; nothing if it is not held."""
        with self._lock:
            held = self._held(index)
            return held[0][held[1]] if held is not None else None

    def ready(self, file: int, moves: Iterable[tuple[int, int, int, int]]) -> Iterator[Ready]:
        """Frames that are to lie elsewhere in the file: (index, where it lies, where it will, its size then) each. A little at
        a time, so that `move` is quick: until all have moved, nobody can read them."""
        moves = iter(moves)
        while some := list(islice(moves, _MOVED_AT_ONCE)):
            yield self._chain.ready(file, some)

    def move(self, ready: Ready) -> None:
        """These frames lie elsewhere now. Of another one that lies at such an index by now nothing changes."""
        indexes = ready.indexes
        first, last = indexes[0], indexes[-1]
        is_row = last + 1 - first == len(indexes) and indexes == array("Q", range(first, last + 1))
        with self._lock:
            for start in range(first, last + _SUMMED_AT_ONCE, _SUMMED_AT_ONCE) if is_row else indexes:
                self._sums.pop(start & -_SUMMED_AT_ONCE, None)
            if is_row and self._chain.move_row(first - self.base, ready):
                return
            for index, was, now, size in zip(*ready, strict=True):
                held = self._held(index)
                if held is not None:
                    held[0].move(held[1], was, now, size)

    def _held(self, index: int) -> tuple[Places, int] | None:
        first, places = self.base, self._chain
        if index < first:
            at = bisect_right(self._older, index, key=lambda piece: piece[0]) - 1
            if at < 0:
                return None
            first, places = self._older[at]
        return (places, index - first) if index < first + len(places) else None

    def row(self, first: int, last: int, bytes_max: int) -> list[Position]:
        """Where the frames from `first` on lie, up to `last`, as far as they lie one behind the other: about `bytes_max`."""
        found: list[Position] = []
        with self._lock:
            at = first - self.base
            if not 0 <= at < len(self._chain):
                return []
            end = 0
            for k in range(at, min(at + last - first + 1, len(self._chain))):
                position = self._chain[k]
                file, offset, size = position
                if found and (file != found[0].file or offset != end or end - found[0].offset >= bytes_max):
                    break
                found.append(position)
                end = offset + size
        return found

    def before_last(self, upto: int, floor: int, bytes_max: int, goes_on: Callable[[], bool] = lambda: True) -> int:
        """The lowest index, not below `floor`, behind which the frames up to `upto` take `bytes_max` at most.

        The floor, too, when `goes_on` says no before: what was counted till then costs next to nothing the next time.
        """
        while upto > floor and goes_on():
            first = max(floor + 1, upto & -_SUMMED_AT_ONCE)
            is_whole = upto + 1 - first == _SUMMED_AT_ONCE
            size = self._sums.get(first) if is_whole else None
            if size is None or size > bytes_max:
                with self._lock:
                    if first < self.base:
                        return floor  # it has moved
                    sizes = self._chain.sizes(first - self.base, upto + 1 - self.base)
                    size = sum(sizes)
                    if is_whole:
                        self._sums[first] = size
                if size > bytes_max:
                    while sizes[-1] <= bytes_max:
                        bytes_max -= sizes.pop()
                    return first - 1 + len(sizes)
            bytes_max -= size
            upto = first - 1
        return floor

    def take(self, index: int, position: Position) -> None:
        """A frame of the chain; it supersedes what stood there and after it."""
        if index != self.last_index + 1:
            self._make_room(index)
        self._chain.append(position)
        self.last_index = index

    def take_run(self, first: int, file: int, offsets: array[int], sizes: array[int]) -> None:
        """As `take`, for consecutive frames of one file."""
        if first != self.last_index + 1:
            self._make_room(first)
        self._chain.extend(file, offsets, sizes)
        self.last_index = first + len(offsets) - 1

    def _make_room(self, index: int) -> None:
        require(self.base <= index <= self.last_index, "the place of frame {} is not its own", index)
        with self._lock:
            self._sums.clear()
            self._chain.cut(index - self.base)

    def join(self, first: int, kept: list[Interval], base: int) -> None:
        """The chain was cut, and begins at `first`; of what lies below, `kept` was. Then the chain reached down to `base`."""
        with self._lock:
            self._sums.clear()
            pieces = [*self._older, (self.base, self._chain)]
            self._older = [
                (start, places.part(start - at, min(end, at + len(places) - 1) - at + 1))
                for at, places in pieces
                for start, end in kept
                if at <= start < at + len(places)
            ]
            require([(at, at + len(places) - 1) for at, places in self._older] == kept, "what was kept has no places")
            self.base, self._chain, self.last_index = first, Places(self._offset_bits), first - 1
            self._settle(base)

    def fill(self, index: int, position: Position, base: int) -> None:
        """A frame below the base; with it, the chain reaches down to `base`."""
        with self._lock:
            self._sums.clear()
            at = bisect_right(self._older, index, key=lambda piece: piece[0]) - 1
            if at >= 0 and index < self._older[at][0] + len(self._older[at][1]):
                first, places = self._older[at]
                rests = [(first, places.part(0, index - first)), (index + 1, places.part(index - first + 1, len(places)))]
                self._older[at : at + 1] = [rest for rest in rests if len(rest[1])]
                at = bisect_right(self._older, index, key=lambda piece: piece[0]) - 1
            if at >= 0 and index == self._older[at][0] + len(self._older[at][1]):
                self._older[at][1].append(position)
            else:
                at += 1
                places = Places(self._offset_bits)
                places.append(position)
                self._older.insert(at, (index, places))
            self._connect(at)
            self._settle(base)

    def _connect(self, at: int) -> None:
        """Make the piece at `at` and the one behind it one, if they touch."""
        if at + 1 == len(self._older):
            return
        (first, places), (behind_first, behind) = self._older[at], self._older[at + 1]
        if first + len(places) != behind_first:
            return
        if len(places) < len(behind):
            behind.put_before(places)
            self._older[at : at + 2] = [(first, behind)]
        else:
            places.put_behind(behind)
            del self._older[at + 1]

    def _settle(self, base: int) -> None:
        """Make what lies from `base` on part of the chain."""
        while self.base > base:
            first, places = self._older.pop()
            require(first + len(places) == self.base, "frames below {} have no places", self.base)
            if first < base:
                self._older.append((first, places.part(0, base - first)))
                first, places = base, places.part(base - first, len(places))
            self._chain.put_before(places)
            self.base = first
