"""A store's journal on a real Redis server, and the book that is kept of what it said is durable.

Owns the making of frames and the book. The judge shares nothing with the replay that it judges: it compares what is read back
with the book.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilogue.actors.config import Credentials
from trilogue.actors.journal import Entry, FenceRecord, FillRecord, FrameFilled, FrameFound, JoinRecord, Position
from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.redis_journal.journal import RedisJournal
from trilogue.actors.redis_journal.opening import Opening, open_redis_journal
from trilogue.actors.redis_journal.place import parse_place
from trilogue.bench.recipe.server import RedisServer

LOG_ID = 0x1122334455667788
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory_policy": "noeviction"}
PARTITIONS = 4
JUMP = 1 << 30
Appended = bytes | FenceRecord | JoinRecord | FillRecord
_numbers = itertools.count(1)


class RedisStore:
    """A store named store-1 on the server; `book` is what it has called durable, as a replay tells it."""

    def __init__(self, server: RedisServer, directory: Path, limits: Limits = DEFAULT_LIMITS, options: str = "") -> None:
        self.server, self.directory, self.limits, self.options = server, directory, limits, options
        self.credentials = Credentials()
        self.book: list[Any] = []
        self.chains: dict[int, list[int]] = {}
        self.journal: RedisJournal | None = None
        directory.mkdir(exist_ok=True)

    def open(self, url: str = "", also: Callable[[Entry], None] = lambda _: None) -> list[Any]:
        """Open the journal as another process would; what it replays, which `also` is told, too."""
        replayed: list[Any] = []

        def replay(entry: Entry) -> None:
            also(entry)
            if isinstance(entry, FrameFound | FrameFilled):
                replayed.append((type(entry).__name__, entry.position, bytes(entry.payload)))
            else:
                replayed.append(entry)

        opening = Opening(
            parse_place(url or f"redis://{self.server.address}/0{self.options}"), self.credentials, self.directory, "store-1",
            "c" * 32, LOG_ID, PARTITIONS, f"{next(_numbers):032x}", f"owner-{next(_numbers)}", JUMP, self.limits,
        )  # fmt: skip
        self.journal = open_redis_journal(opening, replay)
        return replayed

    @property
    def opened(self) -> RedisJournal:
        """The open journal."""
        assert self.journal is not None
        return self.journal

    def frame(
        self, partition: int = 0, body: bytes = b"body", committed: int = 0, index: int = 0, prev_crc: int = 0, count: int = 1
    ) -> bytes:
        """The partition's next frame; with an `index`, one that lies elsewhere."""
        chain = self.chains.setdefault(partition, [])
        data, crc = encode_frame(
            log_id=LOG_ID, partition=partition, epoch=1, index=index or len(chain) + 1,
            prev_crc=prev_crc if index else (chain[-1] if chain else 0), count=count, committed_upto=committed, payload=body,
        )  # fmt: skip
        if not index:
            chain.append(crc)
        return data

    def append(self, *entries: Appended) -> list[Position]:
        """Append, and write it down once it is durable."""
        positions = self.opened.append(entries)
        for entry, position in zip(entries, positions, strict=True):
            if isinstance(entry, FillRecord):
                self.book.append((entry.partition, ("FrameFilled", position, _payload(bytes(entry.frame)))))
            elif isinstance(entry, bytes):
                self.book.append((position.file, ("FrameFound", position, _payload(entry))))
            else:
                self.book.append((entry.partition, entry))
        return positions

    def in_order(self) -> list[Any]:
        """The book, partition by partition."""
        return [entry for _, entry in sorted(self.book, key=lambda line: line[0])]


def fence(partition: int, epoch: int) -> FenceRecord:
    """A fence of that epoch's writer."""
    return FenceRecord(partition, epoch, f"writer-{epoch}", "127.0.0.1:9")


def _payload(frame: bytes) -> bytes:
    return frame[64 : 64 + int.from_bytes(frame[44:48], "little")]
