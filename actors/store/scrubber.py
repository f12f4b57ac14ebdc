"""Re-reading old frames before somebody needs them, and taking back the ones that went bad.

Owns which frame is read next and when, and the list of bad ones. It must not know connections or peers: a store has none. Its
partition's writer asks for the list, fetches the frames from other stores and sends them back (``replication.mender``). Rules:

1. Reading is bounded: `scrub_bytes_per_s`, where each frame costs `FRAME_COST_BYTES` more than it has, and one round every
   `scrub_round_ms`. What was not read while the store was busy is not caught up.
2. Only frames that are known to be committed are read: no other frame can take their place any more.
3. A frame is bad from when it could not be read, by the scrubber or for somebody, until it has been written again, or until the
   store does not hold it any more.
4. What a peer sends is written only if it is the very frame that was stored: its CRC has been known since. So damage on a
   minority never spreads, whoever sends. A thin frame's bytes differ from store to store: for one, the file is
   written anew.
5. The files are read in the reader's thread (``reader``), in which frames move.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from trilogue.actors.journal import InPlace, Position
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.holdings import PartitionState
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import header_of, is_thin

logger = logging.getLogger(__name__)

FRAME_COST_BYTES = 4096
BATCH_BYTES = 256 * 1024
BAD_TOLD_MAX = 64

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs something in the thread that reads."""


class Target(NamedTuple):
    """One stored frame: which it is, and where it lies."""

    key: FrameKey
    position: Position


class Catalogue(Protocol):
    """What the store holds now, of frames that are known to be committed."""

    def partitions(self) -> Sequence[int]:
        """The partitions of which it holds any."""
        ...

    def following(self, partition: int, frame_index: int) -> Target | None:
        """Its next frame behind this index."""
        ...

    def stored(self, partition: int, frame_index: int) -> Target | None:
        """The frame at this index."""
        ...

    def place_of(self, key: FrameKey) -> Position | None:
        """Where it lies now. Any thread may ask."""
        ...


class Places(Protocol):
    """Where the frames of one partition lie."""

    def at(self, index: int) -> Position | None:
        """The place of the frame at `index`; nothing if it is not on disk."""
        ...


class Held:
    """The catalogue of a store that runs: what its state says, where its journal put it."""

    def __init__(self, states: Mapping[int, PartitionState], places: Mapping[int, Places]) -> None:
        self._states = states
        self._places = places

    def partitions(self) -> Sequence[int]:
        """The partitions of which it holds any."""
        return [partition for partition in self._states if partition in self._places]

    def following(self, partition: int, frame_index: int) -> Target | None:
        """Its next frame behind this index."""
        state = self._states.get(partition)
        if state is None:
            return None
        for piece in (*state.older, state.chain):
            if piece.last > frame_index:
                return self.stored(partition, max(frame_index + 1, piece.first))
        return None

    def stored(self, partition: int, frame_index: int) -> Target | None:
        """The frame at this index."""
        state, places = self._states.get(partition), self._places.get(partition)
        if state is None or places is None or not (frame_index <= state.committed_upto or frame_index < state.base):
            return None
        crc, position = state.crc_at(frame_index), places.at(frame_index)
        if crc is None or position is None:
            return None
        return Target(FrameKey(partition, frame_index, crc), position)

    def place_of(self, key: FrameKey) -> Position | None:
        """Where it lies now. Any thread may ask."""
        return self._places[key.partition].at(key.frame_index)


class Round:
    """Which frames are read next, round and round, and when. Pure: time is handed in."""

    def __init__(self, catalogue: Catalogue, limits: Limits) -> None:
        self.finished = 0  # rounds
        self._catalogue = catalogue
        self._bytes_per_s = limits.scrub_bytes_per_s
        self._round_s = limits.scrub_round_ms / 1000
        self._partition, self._frame_index = -1, 0
        self._began_s: float | None = None
        self._due_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long nothing is read."""
        return max(0.0, self._due_s - now_s)

    def take(self, now_s: float) -> list[Target]:
        """What to read now; nothing when it is not due, or when nothing is stored."""
        if self.wait_s(now_s):
            return []
        if self._began_s is None:
            self._began_s = now_s
        taken: list[Target] = []
        cost = 0
        while cost < BATCH_BYTES:
            target = self._next()
            if target is None:
                return self._end_round(now_s, taken, cost)
            taken.append(target)
            cost += target.position.size + FRAME_COST_BYTES
        self._due_s = now_s + cost / self._bytes_per_s
        return taken

    def _end_round(self, now_s: float, taken: list[Target], cost: int) -> list[Target]:
        assert self._began_s is not None
        if self._partition >= 0:
            self.finished += 1
        self._due_s = max(self._began_s + self._round_s, now_s + cost / self._bytes_per_s)
        self._partition, self._frame_index, self._began_s = -1, 0, None
        return taken

    def _next(self) -> Target | None:
        """The next frame of this round."""
        for partition in sorted(self._catalogue.partitions()):
            if partition >= self._partition:
                after = self._frame_index if partition == self._partition else 0
                target = self._catalogue.following(partition, after)
                if target is not None:
                    self._partition, self._frame_index = partition, target.key.frame_index
                    return target
        return None


class Scrubber:
    """The scrubber of one store. `run` it in the background."""

    def __init__(
        self,
        journal: InPlace,
        catalogue: Catalogue,
        on_mended: Callable[[int], None],
        limits: Limits,
        in_thread: InThread = asyncio.to_thread,
        put_back: Callable[[Position, bytes], None] = lambda position, frame: None,
    ) -> None:
        """`put_back`: write this frame's file anew, with these bytes where it lies; then `mended` is called."""
        self._journal = journal
        self._in_thread, self._put_back = in_thread, put_back
        self._on_mended = on_mended  # of a partition
        self._catalogue = catalogue
        self._round = Round(catalogue, limits)
        self._bad: dict[tuple[int, int], str] = {}
        self.frames_read = 0
        self.frames_mended = 0

    async def run(self) -> None:
        """Read, for as long as the process lives."""
        now_s = asyncio.get_running_loop().time
        while True:
            if batch := self._round.take(now_s()):
                await self.scrub(batch)
            await asyncio.sleep(self._round.wait_s(now_s()))

    async def scrub(self, batch: Sequence[Target]) -> None:
        """Read these frames again, in a thread."""
        for target, problem in await self._in_thread(partial(self._read, batch)):
            if self._is_stored(target):
                self.found_bad(target.key.partition, target.key.frame_index, problem)
        self.frames_read += len(batch)

    def found_bad(self, partition: int, frame_index: int, problem: str) -> None:
        """Somebody could not read this frame."""
        if (partition, frame_index) not in self._bad:
            logger.warning("frame %d of partition %d went bad: %s", frame_index, partition, problem)
        self._bad[partition, frame_index] = problem

    def damaged(self, partition: int) -> list[int]:
        """The bad frames of the partition, as many as are told at once."""
        for key in [key for key in self._bad if self._catalogue.stored(*key) is None]:
            del self._bad[key]
        return sorted(frame_index for p, frame_index in self._bad if p == partition)[:BAD_TOLD_MAX]

    async def repair(self, partition: int, frames: Sequence[bytes]) -> int:
        """Write frames that the partition's writer sends where they were; how many were bad, and are not any more.

        Raises `ProtocolError` for bytes that are no whole frame, `JournalBroken`: the process must end.
        """
        mended = 0
        for frame in frames:
            header = header_of(frame, len(frame))
            target = self._catalogue.stored(partition, header.index)
            if (partition, header.index) not in self._bad or target is None:
                continue
            if target.key != (header.partition, header.index, header.header_crc):
                logger.error("frame %d that came for partition %d is not the one that was stored", header.index, partition)
                continue
            try:
                if await self._in_thread(partial(self._write, target, frame)):
                    mended += self.mended(partition, header.index)
            except Corrupt as error:
                self._bad[partition, header.index] = str(error)
        return mended

    def mended(self, partition: int, frame_index: int) -> int:
        """The frame is whole again; 0 if it was not bad."""
        if self._bad.pop((partition, frame_index), None) is None:
            return 0
        self.frames_mended += 1
        self._on_mended(partition)
        logger.warning("frame %d of partition %d was mended from a peer", frame_index, partition)
        return 1

    def _write(self, target: Target, frame: bytes) -> bool:
        """Whether it is whole again."""
        if self._catalogue.place_of(target.key) != target.position:
            return False  # its file was written anew meanwhile
        if len(frame) == target.position.size and not is_thin(frame):
            self._journal.rewrite_in_place(target.position, target.key, frame)
            return True
        self._put_back(target.position, frame)
        return False

    def status(self) -> dict[str, Any]:
        """For people: how far it is, and what is bad now."""
        bad = [
            {"partition": partition, "frame": frame_index, "problem": problem}
            for (partition, frame_index), problem in sorted(self._bad.items())[:BAD_TOLD_MAX]
        ]
        return {
            "rounds": self._round.finished,
            "frames_read": self.frames_read,
            "frames_mended": self.frames_mended,
            "frames_bad": len(self._bad),
            "bad": bad,
        }

    def _is_stored(self, target: Target) -> bool:
        return self._catalogue.stored(target.key.partition, target.key.frame_index) == target

    def _read(self, batch: Sequence[Target]) -> list[tuple[Target, str]]:
        problems: list[tuple[Target, str]] = []
        for target in batch:
            if self._catalogue.place_of(target.key) != target.position:
                continue
            try:
                self._journal.check_in_place(target.position, target.key)
            except Corrupt as error:
                problems.append((target, str(error)))
        return problems
