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
    FillRecord,
    FrameFilled,
    FrameFound,
    IncarnationRaised,
    JoinRecord,
    Journal,
    Position,
    open_identity,
)
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.frames import Header, decode_frame, encode_frame, payload_of
from trilogue.actors.protocol.limits import DEFAULT_LIMITS

LOG_ID = 0x1122334455667788
CLUSTER = "cluster-a"
STORE = "ab" * 16

Key = tuple[Any, ...]
Appended = bytes | FenceRecord | JoinRecord | FillRecord
Files = dict[str, bytes]


class Written(NamedTuple):
    """One line of the book."""

    key: Key
    position: Position


def key_of(entry: Entry) -> Key:
    """What a replayed entry says, without where it lies."""
    if isinstance(entry, FrameFound | FrameFilled):
        return _key_of_frame("frame" if isinstance(entry, FrameFound) else "filled", entry.header, entry.payload)
    if isinstance(entry, JoinRecord):
        return ("join", *entry)
    return ("incarnation" if isinstance(entry, IncarnationRaised) else "fence", *entry)


def _key_of_frame(kind: str, header: Header, payload: bytes | memoryview) -> Key:
    return (kind, header.partition, header.index, header.epoch, header.committed_upto, bytes(payload))


class Store:
    """A journal in `directory`, with the book of what was appended to it."""

    def __init__(self, directory: Path, file_bytes: int = 8192) -> None:
        self.directory = directory
        self.file_bytes = file_bytes
        self.book: list[Written] = []
        self.chains: dict[int, list[int]] = {}
        self.bases: dict[int, tuple[int, int]] = {}  # partition -> the chain's first index, and the CRC before it
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
        base, base_prev = self.bases.get(partition, (1, 0))
        if index:
            del chain[index - base :]
        data, crc = encode_frame(
            log_id=LOG_ID,
            partition=partition,
            epoch=epoch,
            index=base + len(chain),
            prev_crc=chain[-1] if chain else base_prev,
            count=1,
            committed_upto=committed,
            payload=body,
        )
        chain.append(crc)
        return data

    def join(self, partition: int, epoch: int, number: int, first: int, prev_crc: int, *kept: tuple[int, int]) -> JoinRecord:
        """A join that begins a new chain; it goes on behind it."""
        self.chains[partition] = []
        self.bases[partition] = (first, prev_crc)
        return JoinRecord(partition, epoch, f"writer-{epoch}", "127.0.0.1:9", number, first, prev_crc, kept)

    def append(self, *entries: Appended) -> list[Position]:
        """Append, and write it in the book once it is durable."""
        positions = self.open_journal.append(entries)
        for entry, position in zip(entries, positions, strict=True):
            if isinstance(entry, FenceRecord):
                key: Key = ("fence", *entry)
            elif isinstance(entry, JoinRecord):
                key = ("join", *entry)
            else:
                filled = isinstance(entry, FillRecord)
                frame = bytes(entry.frame) if isinstance(entry, FillRecord) else entry
                header = decode_frame(frame, len(frame))
                key = _key_of_frame("filled" if filled else "frame", header, payload_of(frame, header))
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

    def fill_joined(self) -> None:
        """A small journal of a store that was taken in late: joins, frames from a base on, and older ones filled in."""
        log = [self.frame(0, committed=max(0, k - 2), body=b"older" + bytes([k])) for k in range(1, 5)]
        self.append(FenceRecord(0, 1, "writer-1", "127.0.0.1:1"), FenceRecord(1, 1, "writer-b", "127.0.0.1:2"))
        self.append(*log[:2])
        self.append(log[2], self.frame(1, body=b"eins"))
        self.append(self.frame(0, committed=1, index=4, body=b"junk"))
        before = decode_frame(log[3], 1000).header_crc
        self.append(self.join(0, 2, 1, 5, before, (3, 3)))
        self.append(self.frame(0, epoch=2, committed=4, body=b"five"))
        self.append(FillRecord(0, log[3]), self.frame(1, committed=1, body=b"zwei"))
        self.append(self.frame(0, epoch=2, committed=5, body=b"six"))
        self.append(FenceRecord(0, 3, "writer-3", "127.0.0.1:3"))
        self.append(self.frame(0, epoch=3, committed=5, index=6, body=b"six, of epoch 3"))
        self.append(self.join(0, 4, 3, 9, 99))
        self.append(FillRecord(0, self.other_frame(0, 8, body=b"eight, that 9 names")))
        self.append(self.frame(0, epoch=4, committed=8, body=b"nine"))
        self.append(self.frame(0, epoch=4, committed=9, body=b"ten"), self.frame(1, committed=2, body=b"drei" * 5))

    def other_frame(self, partition: int, index: int, *, epoch: int = 1, prev_crc: int = 5, body: bytes = b"") -> bytes:
        """A frame that stands alone."""
        return encode_frame(
            log_id=LOG_ID,
            partition=partition,
            epoch=epoch,
            index=index,
            prev_crc=prev_crc,
            count=1,
            committed_upto=0,
            payload=body,
        )[0]

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
            # A filled frame is held in its place by nothing that follows: it may vanish with the old memberships.
            mine = [key for key in self.keys if key[1] == partition and key[0] != "filled"]
            have = [key for key in got if key[1] == partition and key[0] != "filled"]
            filled = iter([key for key in self.keys if key[0] == "filled" and key[1] == partition])
            in_order = all(key in filled for key in got if key[0] == "filled" and key[1] == partition)
            assert in_order, "what is replayed was filled in, in this order"
            assert have == mine[: len(have)], "what is replayed was appended, in this order"
            for key in mine[len(have) :]:
                proven = key[0] == "frame" and key[2] <= committed.get(partition, 0)
                assert not proven, f"{key} was known to be committed, and vanished in silence"

    def lines_at(self, first: int, last: int) -> set[int]:
        """The lines of the book that have bytes in `first` … `last` of the first file."""
        return {line for line, (start, end) in enumerate(self.extents) if start <= last and first < end}

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Each line's first byte, and the first one behind it. A filled frame lies inside its record."""
        return [(offset - 64 * (key[0] == "filled"), offset + size) for key, (_, offset, size) in self.book]


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
def joined(store: Store) -> Store:
    """A store that was taken in late, open."""
    store.fill_joined()
    return store


@pytest.fixture
def small(store: Store) -> Store:
    """A store with a small journal, open."""
    store.fill_small()
    return store
