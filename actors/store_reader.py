"""What a store reads back for those who ask (design §9): frames, sessions' states, runs, a retry's originals.

Owns the one thread that reads, and each partition's index. It must not know connections, fences or the append path: it is given
the journal, the places of what is on disk and, for each partition, what is known to be committed. Rules:

1. An index is only touched in the reader's thread; it takes in frames only up to what the asking writer vouches for, or what
   the store itself knows to be committed.
2. Whatever leaves here was checked against a CRC after it was read.
3. Indexes exist for partitions that are here from frame 1 on. All else is `Unavailable`: a store that lacks the beginning would
   answer "no such session" by mistake. A frame, though, is given whoever asks for it by its index.
4. Indexes are kept up in the background, so that a takeover finds them ready: with all of the time while the store does not
   write; with a quarter of it at most while it does, and then only where its writer says that a taker would ask here first
   (three stores that did so cost 80 µs a lonely message).
5. A frame that cannot be read is told, so that it is taken back from a peer (`found_bad`, called in the reader's thread).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any

from trilogue.actors.journal import Journal
from trilogue.actors.protocol.errors import Corrupt, ProtocolError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.store_index import Place, StoreIndex
from trilogue.actors.store_places import FramePlaces

READS = (Say.FRAMES, Say.STATES, Say.RUNS, Say.RECALL)
SLICE_S = 0.001
"""How long the thread works on indexes before others may have it: an append that comes meanwhile waits for it."""
SLICE_FRAMES = 64
READ_AHEAD_BYTES = 256 * 1024
RESTS_WHILE_BUSY = 3
"""How many times as long as a slice it rests after it while the store writes: a quarter of the time is its share."""
QUIET_S = 0.25
"""A store that wrote nothing for so long is not busy."""
LOOK_AGAIN_S = 0.1


class StoreReader:
    """The reads of one store. `places` maps a partition to its frames' places; the store keeps it up to date."""

    def __init__(
        self,
        journal: Journal,
        places: Mapping[int, FramePlaces],
        committed_upto: Callable[[int], int],
        found_bad: Callable[[int, int, str], None],
        limits: Limits,
    ) -> None:
        self._journal = journal
        self._places = places
        self._committed_upto = committed_upto
        self._found_bad = found_bad
        self._limits = limits
        self._indexes: dict[int, StoreIndex] = {}
        self._warm: set[int] = set()
        self._unreadable: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trilogue-read")

    async def answer(self, read: Callable[[], Any]) -> Any:
        """Run what `reading` gave in the reader's thread. Raises `Corrupt` or `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, read)

    def reading(self, say: int, arguments: list[Any]) -> Callable[[], Any]:
        """What to run for a request. Raises `ProtocolError` for one of unknown shape."""
        match say, arguments:
            case Say.FRAMES, [int(partition), int(first), int(last)]:
                return lambda: self._frames(partition, first, last)
            case Say.STATES, [int(partition), int(upto), list(asked)]:
                sessions = list(map(_asked_for, asked))
                return lambda: self._index(partition, upto).states(sessions, self._limits.history_bytes_max)
            case Say.RUNS, [int(), int(), str(), int(), int()]:
                return self.reading(say, [*arguments, self._limits.history_bytes_max])
            case Say.RUNS, [int(partition), int(upto), str(session), int(after), int(limit), int(size)]:
                bytes_max = min(size, self._limits.history_bytes_max)
                return lambda: self._index(partition, upto).runs(
                    session, after, limit, bytes_max, lambda place: self._record(partition, place)
                )
            case Say.RECALL, [int(partition), int(upto), str(session), str(sender_id), int(first_n), int(last_n)]:
                return lambda: self._index(partition, upto).recall(
                    session, sender_id, first_n, last_n, lambda place: self._record(partition, place)
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
            busy = clock() - wrote_at < QUIET_S
            partitions = [p for p in self._places if p in self._warm or not busy]
            behind, took_s = await self.answer(partial(self._catch_up_a_little, partitions)) if partitions else (False, 0.0)
            if not behind:
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                await asyncio.sleep(RESTS_WHILE_BUSY * took_s if busy else 0)

    def _catch_up_a_little(self, partitions: list[int]) -> tuple[bool, float]:
        began = monotonic()
        behind = False
        for partition in partitions:
            try:
                behind = self._catch_up(partition, began + SLICE_S) or behind
            except Unavailable:
                continue  # its base has moved
            except Corrupt:
                self._unreadable.add(partition)  # who asks for it will be told
        return behind, monotonic() - began

    def _catch_up(self, partition: int, deadline: float) -> bool:
        """Take committed frames into the partition's index until the deadline; whether there are more."""
        places = self._places[partition]
        if places.base != 1 or partition in self._unreadable:
            return False
        upto = min(self._committed_upto(partition), places.last_index)
        index = self._indexes.setdefault(partition, StoreIndex())
        while index.upto < upto:
            if monotonic() >= deadline:
                return True
            last = min(upto, index.upto + SLICE_FRAMES)
            index.catch_up(last, self._frames_ahead(partition, last))
        return False

    def _frames_ahead(self, partition: int, upto: int) -> Callable[[int], bytes]:
        """`_frame` for frames up to `upto` in their order: those that lie in a row are read at once (a tenth of the time)."""
        ahead: dict[int, bytes] = {}
        read_upto = 0

        def frame(index: int) -> bytes:
            nonlocal read_upto
            if index > read_upto and (row := self._places[partition].row(index, upto, READ_AHEAD_BYTES)):
                read_upto = index + len(row) - 1
                # If one of them went bad, each is read alone, and `_frame` says so of the right one.
                with contextlib.suppress(Corrupt):
                    ahead.update(enumerate(self._journal.read_row(row), index))
            return ahead.pop(index, None) or self._frame(partition, index)

        return frame

    def _index(self, partition: int, upto: int) -> StoreIndex:
        """The partition's index, with every frame up to `upto`, which its writer vouches for."""
        places = self._places.get(partition)
        if places is not None and places.base != 1:
            raise Unavailable(f"this store holds partition {partition} from frame {places.base} on only: ask another one")
        if upto > (places.last_index if places is not None else 0):
            raise Unavailable(f"this store does not hold frame {upto} of partition {partition} yet: ask again")
        index = self._indexes.setdefault(partition, StoreIndex())
        index.catch_up(upto, self._frames_ahead(partition, upto))
        return index

    def _frame(self, partition: int, index: int) -> bytes:
        position = self._places[partition].at(index)
        if position is None:
            raise Unavailable(f"this store does not hold frame {index} of partition {partition} any more: ask another one")
        return self._read(partition, index, lambda: self._journal.read(position))

    def _record(self, partition: int, place: Place) -> bytes:
        position = self._places[partition].at(place.frame_index)
        if position is None:
            raise Unavailable(f"this store does not hold frame {place.frame_index} any more: ask another one")
        part = position, place.offset, place.size, place.crc
        return self._read(partition, place.frame_index, lambda: self._journal.read_part(*part))

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


def _asked_for(item: Any) -> tuple[str, list[str]]:
    """One session of STATES, and the senders that are asked for."""
    match item:
        case [str(session), list(senders), list()] if all(type(sender_id) is str for sender_id in senders):
            return session, senders
    raise ProtocolError("a session whose state is asked for has an unknown shape")
