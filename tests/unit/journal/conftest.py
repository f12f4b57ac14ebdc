"""A store's journal and the book that is kept of it: what was handed over, and what may be replayed after damage.

The judge shares nothing with the scan that it judges: it compares a replay with the book.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trilogue.actors.journal import (
    Entry,
    FenceRecord,
    FrameFound,
    IncarnationRaised,
    Journal,
    Position,
    open_identity,
)
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.frames import decode_frame, encode_frame
from trilogue.actors.protocol.limits import DEFAULT_LIMITS

LOG_ID = 0x1122334455667788
CLUSTER = "cluster-a"
STORE = "ab" * 16

Key = tuple[Any, ...]
Files = dict[str, bytes]


class Written(NamedTuple):
    """One line of the book."""

    key: Key
    position: Position


def key_of(entry: Entry) -> Key:
    """What a replayed entry says, without where it lies."""
    if isinstance(entry, FrameFound):
        header = entry.header
        return ("frame", header.partition, header.index, header.epoch, header.committed_upto, bytes(entry.payload))
    return ("incarnation" if isinstance(entry, IncarnationRaised) else "fence", *entry)


class Store:
    """A journal in `directory`, with the book of what was appended to it."""

    def __init__(self, directory: Path, file_bytes: int = 8192) -> None:
        self.directory = directory
        self.file_bytes = file_bytes
        self.book: list[Written] = []
        self.chains: dict[int, list[int]] = {}
        self.journal: Journal | None = None
        self.found: list[FrameFound] = []
        self.error = ""

    def open(self) -> list[Key]:
        """Open the journal; returns what it replays."""
        self.close()
        replayed: list[Key] = []
        self.found = []

        def replay(entry: Entry) -> None:
            replayed.append(key_of(entry))
            if isinstance(entry, FrameFound):
                self.found.append(entry)

        identity = open_identity(self.directory, cluster=CLUSTER, log_id=LOG_ID, fresh_store=STORE)
        self.journal = Journal.open(self.directory, identity, DEFAULT_LIMITS, replay, file_bytes=self.file_bytes)
        return replayed

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    @property
    def open_journal(self) -> Journal:
        assert self.journal is not None
        return self.journal

    @property
    def keys(self) -> list[Key]:
        return [written.key for written in self.book]

    def path(self, number: int = 1) -> Path:
        return self.directory / f"journal-{number:08d}.trl"

    def frame(self, partition: int = 0, *, epoch: int = 1, committed: int = 0, body: bytes = b"body", index: int = 0) -> bytes:
        """The partition's next frame, or the one that supersedes `index`; the chain goes on behind it."""
        chain = self.chains.setdefault(partition, [])
        if index:
            del chain[index - 1 :]
        data, crc = encode_frame(
            log_id=LOG_ID,
            partition=partition,
            epoch=epoch,
            index=len(chain) + 1,
            prev_crc=chain[-1] if chain else 0,
            count=1,
            committed_upto=committed,
            payload=body,
        )
        chain.append(crc)
        return data

    def append(self, *entries: bytes | FenceRecord) -> list[Position]:
        """Append, and write it in the book once it is durable."""
        positions = self.open_journal.append(entries)
        for entry, position in zip(entries, positions, strict=True):
            if isinstance(entry, FenceRecord):
                key: Key = ("fence", *entry)
            else:
                header = decode_frame(entry, len(entry))
                payload = entry[64 : 64 + header.payload_bytes]
                key = ("frame", header.partition, header.index, header.epoch, header.committed_upto, payload)
            self.book.append(Written(key, position))
        return positions

    def fill_small(self) -> None:
        """A small journal with all that may lie in one: two partitions, fences, a superseded tail, a shared write."""
        self.append(FenceRecord(0, 1, "writer-a", "127.0.0.1:1"), FenceRecord(1, 1, "writer-b", "127.0.0.1:2"))
        self.append(self.frame(0, body=b"one"))
        self.append(self.frame(0, committed=1, body=b"two" * 5), self.frame(1, body=b"eins" * 2))
        self.append(self.frame(0, committed=2, body=b"superseded"), self.frame(1, committed=1, body=b"zwei"))
        self.append(self.frame(0, committed=2, body=b"superseded too"))
        self.append(FenceRecord(0, 2, "writer-c", "127.0.0.1:3"))
        self.append(self.frame(0, epoch=2, index=3, committed=2, body=b"three"))
        self.append(self.frame(0, epoch=2, committed=3, body=b"four!!!!"), self.frame(1, committed=2, body=b""))
        self.append(self.frame(0, epoch=2, committed=4, body=b"five" * 9))

    def snapshot(self) -> Files:
        """Every file's bytes."""
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def restore(self, files: Files) -> None:
        """Make the directory hold exactly these files."""
        self.close()
        for path in self.directory.iterdir():
            if path.name not in files:
                path.unlink()
        for name, data in files.items():
            (self.directory / name).write_bytes(data)

    def open_damaged(self, files: Files, altered: Iterable[int]) -> list[Key] | None:
        """Open the directory with these files and judge the replay; None if it says that it is corrupt.

        `altered` are the lines of the book whose bytes are not what was written.
        """
        self.restore(files)
        try:
            replayed = self.open()
        except Corrupt as error:
            self.error = str(error)
            assert self.error.count("\n") == 0
            assert self.error.count("keep"), "the error says what to do"
            assert self.snapshot() == files, "a corrupt store is left as it is"
            return None
        self.judge(replayed, set(altered))
        return replayed

    def judge(self, replayed: list[Key], altered: set[int]) -> None:
        """Fail unless each partition's replay is a correct prefix that keeps what survivors prove to be committed."""
        committed: dict[int, int] = {}
        for line, (key, _) in enumerate(self.book):
            if key[0] == "frame" and line not in altered:
                committed[key[1]] = max(committed.get(key[1], 0), key[4])
        got = [key for key in replayed if key[0] != "incarnation"]
        for partition in {key[1] for key in [*self.keys, *got]}:
            mine = [key for key in self.keys if key[1] == partition]
            have = [key for key in got if key[1] == partition]
            assert have == mine[: len(have)], "what is replayed was appended, in this order"
            for key in mine[len(have) :]:
                proven = key[0] == "frame" and key[2] <= committed.get(partition, 0)
                assert not proven, f"{key} was known to be committed, and vanished in silence"

    def lines_at(self, first: int, last: int) -> set[int]:
        """The lines of the book that have bytes in `first` … `last` of the first file."""
        return {line for line, (_, (_, offset, size)) in enumerate(self.book) if offset <= last and first < offset + size}


@pytest.fixture(scope="module")
def fast_directory() -> Iterator[Path]:
    """A directory where a sync costs nothing, for tests that open thousands of journals."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="trilogue-test-", dir=memory if memory.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def make_store(fast_directory: Path) -> Iterator[Callable[..., Store]]:
    """Makes stores in directories of their own, and closes them."""
    stores: list[Store] = []

    def make(**options: int) -> Store:
        stores.append(Store(Path(tempfile.mkdtemp(dir=fast_directory)), **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
        shutil.rmtree(store.directory)


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """An open, empty store."""
    made = make_store()
    made.open()
    return made


@pytest.fixture
def small(store: Store) -> Store:
    """A store with a small journal, open."""
    store.fill_small()
    return store
