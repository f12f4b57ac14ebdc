"""Giving disk space back: which parts of a store's journal are written anew, and when (issue 4). A part is a closed file, or
a stretch of a log on a server.

Owns the count of what is gone in each part, and the one that is being written. It must not know connections or the append
path: it is given the journal, the places of frames and the indexes, which know what was trimmed. Used by the reader's thread
alone, a little at a time. Rules:

1. A part is written anew when a quarter of it may be gone, or when one of its frames went bad and another store gave it back in
   another size. What it is worth is known when it is written: if that is too little, it stays as it was.
2. What is gone is what the indexes say, of frames that are in them, and that this store itself knows to be committed: an index
   may be ahead of that, by its writer's word, and a next writer could still ask for such a frame, to send it on as it was.
3. What was trimmed is counted once, in the background, also when the process ends meanwhile: the catalogue keeps the counts.
   They are estimates, and may be lost with it; then all is counted again.
4. A frame that is given back goes where that frame lies when its part's turn comes: a place is true only until its part was
   written anew. For the part that is being written nothing is given back: who wants it done asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from time import monotonic
from typing import Any, Final

from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.index.partition import PartitionIndex
from trilogue.actors.index.recent import News
from trilogue.actors.journal import Position, StoreJournal
from trilogue.actors.journal.interface import Part
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.journal.thin_file import Thin
from trilogue.actors.protocol.errors import Corrupt, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import header_of, thinned
from trilogue.actors.store.places import FramePlaces, Ready

logger = logging.getLogger(__name__)

GAIN_SHARE: Final = 4
"""One byte in so many must be gone before a file is written anew."""
STEP_FRAMES: Final = 256
STEP_SESSIONS: Final = 64


class Thinner:
    """The thinning of one store's journal."""

    def __init__(
        self,
        journal: StoreJournal,
        places: Mapping[int, FramePlaces],
        indexes: IndexKeeper,
        committed_upto: Callable[[int], int],
        limits: Limits,
        is_anew: Callable[[int], None],
        is_back: Callable[[int, int], None],
    ) -> None:
        """`is_anew` hears of a file that was written anew, `is_back` of a frame (partition, index) that was put back in one."""
        self.files_thinned = 0
        self._journal, self._places, self._indexes = journal, places, indexes
        self._committed_upto = committed_upto
        self._key_honoured_us = limits.key_honoured_ms * 1000
        self._gain_bytes = journal.part_bytes // GAIN_SHARE
        self._is_anew, self._is_back = is_anew, is_back
        self._instead: dict[FrameKey, bytes] = {}  # what is to stand where a bad frame stands
        # partition -> up to which frame trims were counted, and up to which floor; of each part about how much is gone
        self._counted, self._gone_bytes = indexes.counted()
        self._put_off: dict[Part, int] = {}  # as `_gone_bytes`, of parts that could not be written anew: the next process tries
        self._counting: dict[int, Iterator[None]] = {}
        self._jobs_done = 0
        self._noted: tuple[int, int] | None = None  # how many jobs and segments there were when the counts were kept
        self._job: Generator[None] | None = None
        self._part: Part | None = None  # it is being written anew by the job

    def work(self, deadline: float) -> bool:
        """Go on until the deadline; whether there is more to do."""
        while monotonic() < deadline:
            if self._job is None and not self._count_a_little():
                part = self._due()
                if part is None:
                    self._note_counted()
                    return False
                self._job, self._part = self._thin(part), part
            if self._job is not None and next(self._job, self) is self:
                self._job = self._part = None
                self._jobs_done += 1
        return True

    def put_back(self, position: Position, frame: bytes) -> None:
        """A frame that cannot be read at its place is to stand there again, in whatever size (rule 4)."""
        if self._journal.part_of(position) != self._part:
            header = header_of(frame, len(frame))
            self._instead[FrameKey(header.partition, header.index, header.header_crc)] = frame

    def start_again(self) -> None:
        """The indexes are made anew: what is gone they will tell again. A job asks those that were, and is not finished."""
        if self._job is not None:
            self._job.close()
            self._job = self._part = None
        self._counted.clear()
        self._counting.clear()
        self._gone_bytes.clear()
        self._put_off.clear()
        self._noted = None

    # ------------------------------------------------------------------ what is gone

    def _count_a_little(self) -> bool:
        """Whether something was counted."""
        for partition, index in list(self._indexes.indexes.items()):
            if partition not in self._counting:
                upto, counted = self._counted.get(partition, (0, -1))
                floor, news = index.recent.floor, [one for one in index.take_news() if one.frame_index > upto]
                self._counted[partition] = max(upto, index.upto), max(counted, floor)
                if floor <= counted and not news:
                    continue
                self._counting[partition] = self._count(index, counted, floor, news)
            if next(self._counting[partition], self) is self:
                del self._counting[partition]
            return True
        return False

    def _count(self, index: PartitionIndex, counted: int, floor: int, news: list[News]) -> Iterator[None]:
        """Count what the floor took from `counted` on, and what trims did; -1: since ever."""
        for frame_index in range(max(counted, 0) + 1, floor + 1):
            position = self._places[index.partition].at(frame_index)
            if position is not None:
                self._note(position, position.size)
            if frame_index % STEP_FRAMES == 0:
                yield
        after = ""
        while counted < 0 and (some := index.trimmed_sessions(after, STEP_SESSIONS)):
            after = some[-1][0]
            for session, before in some:
                yield from self._count_session(index, session, 1, before)
            yield
        for _, session, first, before in news:
            yield from self._count_session(index, session, first, before)

    def _count_session(self, index: PartitionIndex, session: str, first: int, before: int) -> Iterator[None]:
        while first:
            records, first = index.gone_records(session, first, before, STEP_FRAMES)
            for frame_index, size in records:
                position = self._places[index.partition].at(frame_index)
                if position is not None:
                    self._note(position, min(size, position.size))
            if first:
                yield

    def _note(self, position: Position, size: int) -> None:
        part = self._journal.part_of(position)
        self._gone_bytes[part] = self._gone_bytes.get(part, 0) + size

    def _note_counted(self) -> None:
        """All is counted that was told, and nothing is being written anew."""
        now = self._jobs_done, max((segment.id for segment in self._indexes.catalogue.segments), default=0)
        if now != self._noted and self._counted:
            self._indexes.note_counted(self._counted, self._gone_bytes | self._put_off)
            self._noted = now

    def _due(self) -> Part | None:
        journal = self._journal
        for key in list(self._instead):
            position = self._places[key.partition].at(key.frame_index)
            if position is None:
                del self._instead[key]  # the store does not hold it any more
            elif journal.is_closed(part := journal.part_of(position)):
                return part
        due = (part for part, gone in self._gone_bytes.items() if gone >= self._gain_bytes and journal.is_closed(part))
        return next((part for part in due if journal.size_of(part) > self._gain_bytes), None)

    # ------------------------------------------------------------------ one part

    def _thin(self, part: Part) -> Generator[None]:
        journal = self._journal
        gone_bytes = self._gone_bytes.pop(part, 0)
        instead = self._taken_for(part)
        anew = journal.written_anew(part, self._left_of(), instead)
        try:
            yield from anew.write()
            if anew.freed_bytes < self._gain_bytes // 2 and not instead:
                anew.give_up()
                return
            ready: list[tuple[FramePlaces, Ready]] = []
            for partition in anew.moves.partitions:
                places = self._places[partition]
                for some in places.ready(anew.file, anew.moves.of(partition)):
                    ready.append((places, some))
                    yield
            anew.take_place()
        except (Corrupt, OSError, Unavailable) as error:
            anew.give_up()
            self._put_off[part] = gone_bytes
            logger.warning("part %s of the journal is not written anew: %s", part, error)
            return
        except BaseException:
            anew.give_up()
            raise
        for places, some in ready:
            places.move(some)
        for partition in anew.moves.partitions if instead else ():
            for frame_index, old_offset, _, _ in anew.moves.of(partition):
                if old_offset in instead:
                    self._is_back(partition, frame_index)
        journal.freed_bytes += anew.freed_bytes
        self.files_thinned += 1
        self._is_anew(anew.file)
        logger.info("part %s of the journal: %d bytes of trimmed messages were given back", part, anew.freed_bytes)

    def _taken_for(self, part: Part) -> dict[int, tuple[int, bytes]]:
        """What was given back for this part: the offset at which a frame lies now -> the size of it there, and the frame."""
        taken: dict[int, tuple[int, bytes]] = {}
        for key in list(self._instead):
            position = self._places[key.partition].at(key.frame_index)
            if position is not None and self._journal.part_of(position) == part:
                taken[position.offset] = position.size, self._instead.pop(key)
        return taken

    def _left_of(self) -> Thin:
        """What is to be left of each frame: of one that lies where it is stored, and is in its index, what is not gone."""
        gone: dict[int, Callable[[int, list[Any]], bool]] = {}

        def left_of(partition: int, frame_index: int, place: Position, frame: bytes) -> bytes:
            index = self._indexes.indexes.get(partition)
            places = self._places.get(partition)
            if index is None or places is None or places.at(frame_index) != place:
                return frame
            if frame_index > min(index.upto, self._committed_upto(partition)):
                return frame
            if partition not in gone:
                gone[partition] = index.gone()
            is_gone, keys_from_us = gone[partition], index.recent.last_stored_at_us - self._key_honoured_us
            return thinned(frame, lambda item: is_gone(frame_index, item), keys_from_us)

        return left_of
