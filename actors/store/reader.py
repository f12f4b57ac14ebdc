"""What a store reads back for those who ask (design §9): frames, sessions' states, runs, a retry's originals.

Owns the one thread that reads, and when there is time for the indexes. It must not know connections, fences or the append path:
it is given the journal, the places of what is on disk, the indexes and, for each partition, what is known to be committed.
Rules:

1. The indexes are only touched in the reader's thread; they take in frames only up to what the asking writer vouches for, or
   what the store itself knows to be committed.
2. Whatever leaves here was checked against a CRC after it was read.
3. Indexes exist for partitions that are here from frame 1 on. All else is `Unavailable`: a store that lacks the beginning would
   answer "no such session" by mistake. A frame, though, is given whoever asks for it by its index.
4. Indexes are kept up in the background, so that a takeover finds them ready: with all of the time while the store does not
   write; with a quarter of it at most while it does, and then only where its writer says that a taker would ask here first
   (three stores that did so cost 80 µs a lonely message). Who asks while one is far behind is told so, and that partition is
   caught up at once.
5. An index that is more than a file of the journal behind is caught up in any case, so that what is trimmed becomes known here.
   Behind all else that is due, files are written anew without what is gone (``thinner``).
6. A closed file of the journal is read once more, and summarised, so that the next opening need not read it
   (``journal.summary``): behind all else that is due, in the same slices.
7. A frame that cannot be read is told, so that it is taken back from a peer (`found_bad`, called in the reader's thread), and
   so is one that is back (`is_back`).
8. Whoever else reads the journal's files does it in this thread, for in it frames move.
9. At most `records_pages_at_once_max` pages of records are on their way, and none to whom has not taken those before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any

from trilogue.actors.index.catalogue import CatalogueDamaged
from trilogue.actors.index.entries import Place, sender_crc
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.index.partition import PartitionIndex, ReadRecord
from trilogue.actors.journal import StoreJournal
from trilogue.actors.journal.files import summary_path
from trilogue.actors.journal.summary import summarise
from trilogue.actors.protocol.errors import Corrupt, ProtocolError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.submissions import Question
from trilogue.actors.protocol.thinning import find_record
from trilogue.actors.protocol.vocabulary import Piece, Say
from trilogue.actors.store.overdue import Overdue
from trilogue.actors.store.places import FramePlaces
from trilogue.actors.store.thinner import Thinner
from trilogue.actors.wire import Connection

logger = logging.getLogger(__name__)

READS = (Say.FRAMES, Say.STATES, Say.RUNS, Say.RECORDS, Say.SESSIONS, Say.RECALL, Say.OLD)
SLICE_S = 0.001
"""How long the thread works on indexes before others may have it: an append that comes meanwhile waits for it."""
ASKED_SLICE_S = 0.25
"""How long it works on an index that is behind before who asked is told to ask again."""
STATES_SLICE_S = 0.05
"""How long it looks up sessions for one request (70 µs each), or reads records, before the rest is to be asked for again."""
OLD_SLICE_S = 0.02
"""How long it looks at every `retention_look_ms` for what is too old or too much: what it has not found by then stays till the
next time."""
READ_AHEAD_BYTES = 256 * 1024
RESTS_WHILE_BUSY = 3
"""How many times as long as a slice it rests after it while the store writes: a quarter of the time is its share."""
QUIET_S = 0.25
"""A store that wrote nothing for so long is not busy."""
REST_S = 3.0
"""A store that wrote nothing for so long has time to write its indexes to the catalogue."""
LOOK_AGAIN_S = 0.1


class StoreReader:
    """The reads of one store. `places` maps a partition to its frames' places; the store keeps it up to date."""

    def __init__(
        self,
        journal: StoreJournal,
        places: Mapping[int, FramePlaces],
        indexes: IndexKeeper,
        committed_upto: Callable[[int], int],
        found_bad: Callable[[int, int, str], None],
        is_back: Callable[[int, int], None],
        limits: Limits,
    ) -> None:
        self._journal = journal
        self._places = places
        self._committed_upto = committed_upto
        self._found_bad = found_bad
        self._limits = limits
        self._indexes = indexes
        self._warm: set[int] = set()
        self._asked_for: set[int] = set()  # partitions whose index was behind when it was needed
        self._unreadable: set[int] = set()
        self._ahead: dict[int, ReadAhead] = {}
        self._overdue: dict[int, Overdue] = {}
        self._summary: Iterator[None] | None = None  # it is being made, of the file `_summarised`; those before are there
        self._summarised = 0
        self.thinner = Thinner(journal, places, indexes, committed_upto, limits, self._summarise_again, is_back)
        self._pages = asyncio.Semaphore(limits.records_pages_at_once_max)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trilogue-read")

    async def answer(self, read: Callable[[], Any], asker: Connection | None = None) -> Any:
        """Run what `reading` gave in the reader's thread; for an `asker`, when he has taken what was said to him before.

        Raises `Corrupt` or `Unavailable`.
        """
        loop = asyncio.get_running_loop()
        while asker is not None:
            await asker.drained()  # not while he holds a place: who stands still keeps none
            async with self._pages:
                if asker.writable or asker.closed:
                    return await loop.run_in_executor(self._thread, read)
        return await loop.run_in_executor(self._thread, read)

    def reading(self, say: int, arguments: list[Any]) -> Callable[[], Any]:
        """What to run for a request. Raises `ProtocolError` for one of unknown shape."""
        match say, arguments:
            case Say.FRAMES, [int(partition), int(first), int(last)]:
                return lambda: self._frames(partition, first, last)
            case Say.STATES, [int(partition), int(upto), list(asked)]:
                sessions, senders_max = list(map(_asked_for, asked)), self._limits.senders_answered_max
                page_bytes = self._limits.history_bytes_max
                return lambda: self._ask(
                    partition, upto, lambda index, _: index.states(_for_a_while(sessions), senders_max, page_bytes)
                )
            case Say.RUNS, [int(), int(), str(), int(), int()]:
                return self.reading(say, [*arguments, self._limits.history_bytes_max])
            case Say.RUNS, [int(partition), int(upto), str(session), int(after), int(limit), int(size)]:
                page_bytes = min(size, self._limits.history_bytes_max)
                return lambda: self._ask(
                    partition, upto, lambda index, read: index.runs(session, after, limit, page_bytes, read)
                )
            case Say.OLD, [int(partition), int(upto), int(before_us), int(size)]:
                return lambda: self._ask(partition, upto, lambda index, _: self._old(index, upto, before_us, size))
            case Say.RECORDS, [int(partition), int(upto), list(asked)]:
                pieces, page_bytes = [*map(Piece.of, asked)], self._limits.history_bytes_max
                return lambda: self._ask(
                    partition, upto, lambda index, read: index.records(pieces, _for_a_while_below(page_bytes), read)
                )
            case Say.SESSIONS, [int(partition), int(upto), str(above)]:
                count = self._limits.records_sessions_max
                return lambda: self._ask(
                    partition, upto, lambda index, _: index.sessions(above, count, _for_a_while_below(count))
                )
            case Say.RECALL, [int(partition), int(upto), str(session), str(sender_id), int(first_n), int(last_n)]:
                return lambda: self._ask(
                    partition, upto, lambda index, read: index.recall(session, sender_id, first_n, last_n, read)
                )
        raise ProtocolError(f"a read {say} of unknown shape")

    def keep_warm(self, partition: int, warm: bool) -> None:
        """Whether a taker would ask this store first: only then the partition's index is kept up while the store writes."""
        (self._warm.add if warm else self._warm.discard)(partition)

    def readable_again(self, partition: int) -> None:
        """A frame of the partition that could not be read is whole again."""
        self._unreadable.discard(partition)

    async def keep_up(self) -> None:
        """Keep the indexes up, for ever (rule 4)."""
        clock = asyncio.get_running_loop().time
        syncs, wrote_at = self._journal.fdatasyncs, clock()
        while True:
            if self._journal.fdatasyncs != syncs:
                syncs, wrote_at = self._journal.fdatasyncs, clock()
            quiet_s = clock() - wrote_at
            busy = quiet_s < QUIET_S
            urgent = not busy or bool(self._asked_for)
            partitions = [p for p in self._places if p in self._warm or p in self._asked_for or not busy or self._lags(p)]
            more, took_s = await self.answer(partial(self._work_a_little, partitions, rest=quiet_s >= REST_S))
            if not more:
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                await asyncio.sleep(0 if urgent else RESTS_WHILE_BUSY * took_s)

    def _work_a_little(self, partitions: list[int], *, rest: bool) -> tuple[bool, float]:
        began = monotonic()
        more = False
        try:
            for partition in partitions:
                more = self._catch_up(partition, began + SLICE_S) or more
            more = self._indexes.tidy(monotonic() + SLICE_S, rest=rest and not more) or more
            more = more or self._summarise(monotonic() + SLICE_S) or self.thinner.work(monotonic() + SLICE_S)
        except (CatalogueDamaged, sqlite3.Error) as damage:
            self._discard(damage)
            more = True
        return more, monotonic() - began

    def _summarise_again(self, number: int) -> None:
        """That file was written anew; a log on a server has no summaries."""
        if number <= self._summarised:
            self._summarised, self._summary = number - 1, None

    def _summarise(self, deadline: float) -> bool:
        """Go on with the summary of a closed file until the deadline; whether there is more to do."""
        journal = self._journal
        try:
            while monotonic() < deadline:
                if self._summary is None:
                    missing = (n for n in journal.closed_files() if n > self._summarised)
                    number = next(missing, None)
                    if number is None:
                        return False
                    self._summarised = number
                    if not summary_path(journal.directory, number).exists():
                        self._summary = summarise(journal.directory, number, journal.identity)
                elif next(self._summary, self) is self:
                    self._summary = None
        except (Corrupt, OSError) as error:
            logger.warning("journal file %d is not summarised: %s", self._summarised, error)
            self._summary = None
        return True

    def _lags(self, partition: int) -> bool:
        """Whether the partition's index is more than a file behind."""
        index = self._indexes.indexes.get(partition)
        position = self._places[partition].at(index.upto + 1 if index is not None else 1)
        return position is not None and self._journal.is_far_behind(position)

    def _catch_up(self, partition: int, deadline: float) -> bool:
        """Take committed frames into the partition's index until the deadline; whether there are more."""
        places = self._places[partition]
        if places.base != 1 or partition in self._unreadable:
            return False
        upto = min(self._committed_upto(partition), places.last_index)
        try:
            if not self._advance(partition, upto, deadline):
                return True
        except Unavailable:
            return False  # its base has moved
        except Corrupt:
            self._unreadable.add(partition)  # who asks for it will be told
            return False
        self._asked_for.discard(partition)
        return False

    def _ask(self, partition: int, upto: int, query: Callable[[PartitionIndex, ReadRecord], Any]) -> Any:
        """Ask the partition's index, with every frame in it up to `upto`, which its writer vouches for."""
        places = self._places.get(partition)
        if places is not None and places.base != 1:
            raise Unavailable(f"this store holds partition {partition} from frame {places.base} on only: ask another one")
        if upto > (places.last_index if places is not None else 0):
            raise Unavailable(f"this store does not hold frame {upto} of partition {partition} yet: ask again")
        try:
            if not self._advance(partition, upto, monotonic() + ASKED_SLICE_S):
                self._asked_for.add(partition)
                done = self._indexes.of(partition).upto
                raise Unavailable(f"this store has indexed {done} of {upto} frames of partition {partition}: ask again")
            return query(self._indexes.of(partition), partial(self._record, partition))
        except (CatalogueDamaged, sqlite3.Error) as damage:
            self._discard(damage)
            raise Unavailable(f"this store makes its index of partition {partition} anew: ask again") from damage

    def _advance(self, partition: int, upto: int, deadline: float) -> bool:
        if partition not in self._places:
            return True  # nothing is here, and nothing was asked for
        ahead = self._ahead.get(partition)
        if ahead is None:
            ahead = self._ahead[partition] = ReadAhead(self._journal, self._places[partition])
        ahead.upto = upto
        return self._indexes.advance(partition, upto, lambda i: ahead.take(i) or self._frame(partition, i), deadline)

    def _discard(self, damage: Exception) -> None:
        self._indexes.discard(damage)
        self.thinner.start_again()
        self._ahead.clear()

    def _frame(self, partition: int, index: int) -> bytes:
        position = self._places[partition].at(index)
        if position is None:
            raise Unavailable(f"this store does not hold frame {index} of partition {partition} any more: ask another one")
        return self._read(partition, index, lambda: self._journal.read(position))

    def _record(self, partition: int, session: str, place: Place) -> bytes:
        position = self._places[partition].at(place.frame_index)
        if position is None:
            raise Unavailable(f"this store does not hold frame {place.frame_index} any more: ask another one")
        if place.offset + place.size <= position.size:
            with contextlib.suppress(Corrupt):
                return self._journal.read_part(position, place.offset, place.size, place.crc)
        frame = self._frame(partition, place.frame_index)  # damaged, or thin by now: then its records lie elsewhere in it
        record = find_record(frame, session, place.sender, place.first_n, sender_crc)
        if record is None:
            raise CatalogueDamaged(f"frame {place.frame_index} does not hold what its entry says of session {session!r}")
        return record

    def _old(self, index: PartitionIndex, upto: int, before_us: int, bytes_max: int) -> int:
        partition = index.partition
        overdue = self._overdue.get(partition)
        if overdue is None:
            places, frame_bytes_max = self._places[partition], self._limits.frame_bytes_max
            overdue = self._overdue[partition] = Overdue(places, partial(self._frame, partition), frame_bytes_max)
        return overdue.upto(index.recent.floor, upto, before_us, bytes_max, monotonic() + OLD_SLICE_S)

    def _read(self, partition: int, index: int, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except Corrupt as error:
            self._found_bad(partition, index, str(error))
            raise

    def _frames(self, partition: int, first: int, last: int) -> list[bytes]:
        """The frames from `first` to `last`: as many as fit, up to the first one that is not held."""
        frames: list[bytes] = []
        size = 0
        places = self._places.get(partition)
        for index in range(max(1, first), last + 1):
            position = places.at(index) if places is not None else None
            if position is None:
                break
            size += position.size
            if frames and size > self._limits.frame_bytes_max:
                break
            frames.append(self._frame(partition, index))
        return frames


class ReadAhead:
    """Frames in their order: those that lie in a row are read at once (a tenth of the time)."""

    def __init__(self, journal: StoreJournal, places: FramePlaces) -> None:
        self.upto = 0  # none behind this is read
        self._journal, self._places = journal, places
        self._frames: dict[int, bytes] = {}
        self._read_upto = 0

    def take(self, index: int) -> bytes | None:
        """The frame at `index`; nothing if it, or one that lies in its row, cannot be read: then read it alone."""
        if index > self._read_upto and (row := self._places.row(index, self.upto, READ_AHEAD_BYTES)):
            self._read_upto = index + len(row) - 1
            with contextlib.suppress(Corrupt):
                self._frames = dict(enumerate(self._journal.read_row(row), index))
        return self._frames.pop(index, None)


def _for_a_while(sessions: list[Question]) -> Iterator[Question]:
    """The first of them, and those that are reached in time: others wait for this thread, too."""
    deadline = monotonic() + STATES_SLICE_S
    for k, session in enumerate(sessions):
        if k and monotonic() >= deadline:
            return
        yield session


def _for_a_while_below(bound: int) -> Callable[[int], bool]:
    """Whether an answer of that size goes on: up to the bound, and no longer than others may wait for this thread."""
    deadline = monotonic() + STATES_SLICE_S
    return lambda size: size < bound and monotonic() < deadline


def _asked_for(item: Any) -> Question:
    """One session of STATES, and the senders and keys that are asked for."""
    match item:
        case [str(session), list(senders), list(keys)] if all(type(name) is str for name in (*senders, *keys)):
            return Question(session, senders, keys)
    raise ProtocolError("a session whose state is asked for has an unknown shape")
