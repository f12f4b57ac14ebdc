"""A store without its connections, whose messages are trimmed: journal, places, indexes and thinner together.

Owns what a StoreActor does between them; trims are made as a SessionActor would. The journal is a real one in a temporary
directory, with small files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilogue.actors.index.entries import Place, sender_crc
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.journal import Entry, Journal, open_identity
from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import RUN, Gone, Run, pack_records
from trilogue.actors.protocol.thinning import find_record, header_of
from trilogue.actors.store.contents import StoreContents
from trilogue.actors.store.places import IN_FILES, IN_LOGS, FramePlaces
from trilogue.actors.store.thinner import Thinner

LOG_ID, EPOCH = 7, 1
ANN = "ann/" + "0" * 32
SMALL = Limits(
    body_bytes_max=4 * KIB, submit_bytes_max=8 * KIB, frame_bytes_target=4 * KIB, frame_bytes_max=96 * KIB,
    journal_file_bytes=160 * KIB, history_bytes_max=8 * KIB, page_bytes_max=4 * KIB, credit_bytes_max=8 * KIB,
)  # fmt: skip
BODY = bytes(1000)
FOR_EVER = float("inf")


Opened = Callable[[Callable[[Entry], None]], Any]


class Store:
    """A store without its connections: what it appends is committed at once."""

    def __init__(self, directory: Path, *, summaries: bool = True, opened: Opened | None = None) -> None:
        """`opened`: how its journal is opened, if it does not lie in files."""
        self.directory, self._opened = directory, opened
        directory.mkdir(exist_ok=True)
        offset_bits = IN_LOGS if opened is not None else IN_FILES
        self.held = StoreContents(LOG_ID, SMALL, offset_bits)
        if opened is not None:
            self.journal: Any = opened(self.held.replay)
        else:
            identity = open_identity(directory, cluster="c", log_id=LOG_ID, fresh_store="a" * 32)
            self.journal = Journal.open(directory, identity, SMALL, self.held.replay, summaries=summaries)
        identity = self.journal.identity
        if not self.held.places:
            self.held.places[0] = FramePlaces(offset_bits)
        mark = f"{identity.store} {identity.log_id}"
        self.indexes = IndexKeeper(directory, mark, self.held.crc_at, SMALL)
        self.back: list[tuple[int, int]] = []
        known = self.held.committed_upto
        self.thinner = Thinner(
            self.journal,
            self.held.places,
            self.indexes,
            known,
            SMALL,
            lambda number: None,
            lambda *frame: self.back.append(frame),
        )
        self.catch_up()

    @property
    def places(self) -> FramePlaces:
        return self.held.places[0]

    def append(self, *records: Any) -> int:
        """The frame's index."""
        state = self.held.state.partition(0)
        frame, _ = encode_frame(
            log_id=LOG_ID, partition=0, epoch=EPOCH, index=state.last_index + 1, prev_crc=state.last_crc, count=len(records),
            committed_upto=state.last_index, payload=pack_records(list(records)),
        )  # fmt: skip
        header = header_of(frame, SMALL.frame_bytes_max)
        state.take(header)
        [position] = self.journal.append([frame])
        self.places.take(header.index, position)
        return header.index

    def catch_up(self) -> None:
        self.indexes.advance(0, self.places.last_index, self.frame, FOR_EVER)

    def frame(self, index: int) -> bytes:
        position = self.places.at(index)
        assert position is not None
        return self.journal.read(position)

    def read(self, session: str, place: Place) -> bytes:
        record = find_record(self.frame(place.frame_index), session, place.sender, place.first_n, sender_crc)
        assert record is not None
        return record

    def thin(self) -> None:
        """As much as is due."""
        self.catch_up()
        while self.thinner.work(FOR_EVER):
            pass

    def runs(self, session: str, after: int) -> list[Run] | int:
        return self.indexes.of(0).runs(session, after, 10_000, 1 << 30, self.read)

    def originals(self, session: str, first_n: int, last_n: int) -> dict[int, int]:
        """n -> seq, as a retry would be answered."""
        found: dict[int, int] = {}
        for record in self.indexes.of(0).recall(session, ANN, first_n, last_n, self.read):
            count = len(record.bodies) if isinstance(record, Run) else record.messages if isinstance(record, Gone) else 0
            first = record.first_n if isinstance(record, Run | Gone) else 0
            seq = record.first_seq if isinstance(record, Run | Gone) else 0
            found |= {first + k: seq + k for k in range(count)}
        return found

    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("journal-*.trl"))

    def reopen(self, *, summaries: bool = True) -> Store:
        self.journal.close()
        self.indexes.close()
        return Store(self.directory, summaries=summaries, opened=self._opened)


def run(session: str, n: int, count: int = 4, at_us: int = 5) -> tuple[Any, ...]:
    return (RUN, session, ANN, n, n, at_us, [1] * count, [BODY] * count)


def filled(directory: Path, frames: int = 200) -> Store:
    """Two sessions by turns, four messages a frame: some 800 KiB in several files."""
    store = Store(directory)
    for k in range(frames):
        store.append(run("st"[k % 2], k // 2 * 4 + 1))
    store.catch_up()
    return store


def seqs(runs: list[Run] | int) -> list[int]:
    assert isinstance(runs, list)
    return [one.first_seq + k for one in runs for k in range(len(one.bodies))]
