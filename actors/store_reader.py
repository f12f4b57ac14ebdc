"""What a store reads back for those who ask (design §9): frames, sessions' states, runs, a retry's originals.

Owns the one thread that reads, and each partition's index. It must not know connections, fences or the append path: it is given
the journal and the places of what is on disk. Rules:

1. An index is only touched in the reader's thread; it takes in frames only up to what the asking writer vouches for.
2. Whatever leaves here was checked against a CRC after it was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trilogue.actors.journal import Journal, Position
from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.store_index import Place, StoreIndex

READS = (Say.FRAMES, Say.SESSIONS, Say.RUNS, Say.RECALL)


class StoreReader:
    """The reads of one store. `positions` maps a partition to its frames' places, in order; the store keeps it up to date."""

    def __init__(self, journal: Journal, positions: dict[int, list[Position]], limits: Limits) -> None:
        self._journal = journal
        self._positions = positions
        self._limits = limits
        self._indexes: dict[int, StoreIndex] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trilogue-read")

    async def answer(self, read: Callable[[], Any]) -> Any:
        """Run what `reading` gave in the reader's thread. Raises `Corrupt` or `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, read)

    def reading(self, say: int, arguments: list[Any]) -> Callable[[], Any]:
        """What to run for a request. Raises `ProtocolError` for one of unknown shape."""
        match say, arguments:
            case Say.FRAMES, [int(partition), int(first), int(last)]:
                return lambda: self._frames(partition, first, last)
            case Say.SESSIONS, [int(partition), int(upto), int(session_at), int(sender_at)]:
                page_bytes = self._limits.history_bytes_max
                return lambda: self._index(partition, upto).state(session_at, sender_at, page_bytes)
            case Say.RUNS, [int(partition), int(upto), str(session), int(after), int(limit)]:
                bytes_max = self._limits.history_bytes_max
                return lambda: self._index(partition, upto).runs(
                    session, after, limit, bytes_max, lambda place: self._record(partition, place)
                )
            case Say.RECALL, [int(partition), int(upto), str(session), str(sender_id), int(first_n), int(last_n)]:
                return lambda: self._index(partition, upto).recall(
                    session, sender_id, first_n, last_n, lambda place: self._record(partition, place)
                )
        raise ProtocolError(f"a read {say} of unknown shape")

    def _index(self, partition: int, upto: int) -> StoreIndex:
        """The partition's index, with every frame up to `upto`, which its writer vouches for."""
        if upto > len(self._positions.get(partition, ())):
            raise Unavailable(f"this store does not hold frame {upto} of partition {partition} yet: ask again")
        index = self._indexes.setdefault(partition, StoreIndex())
        index.catch_up(upto, lambda i: self._frame(partition, i))
        return index

    def _frame(self, partition: int, index: int) -> bytes:
        return self._journal.read(self._positions[partition][index - 1])

    def _record(self, partition: int, place: Place) -> bytes:
        position = self._positions[partition][place.frame_index - 1]
        return self._journal.read_part(position, place.offset, place.size, place.crc)

    def _frames(self, partition: int, first: int, last: int) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        positions = self._positions.get(partition, [])
        for index in range(max(1, first), min(last, len(positions)) + 1):
            size += positions[index - 1].size
            if frames and size > self._limits.frame_bytes_max:
                break
            frames.append(self._frame(partition, index))
        return frames
