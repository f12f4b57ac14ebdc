"""The catalogue on disk: it survives, and it is thrown away whenever it might be of something else."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexed_log import FOR_EVER, SENDERS, SMALL, Log
from trilogue.actors.index import catalogue
from trilogue.actors.index.catalogue import FILE, Catalogue, CatalogueDamaged, Segment, crc_of
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.protocol.messages import Run, messages_of
from trilogue.actors.protocol.submissions import Question

STEPS = [(k % 3, k % 2, 1 + k % 3) for k in range(40)]
LOTS = 1 << 30
TABLES = ("parts", "senders")


class Reads:
    """Counts the frames that are read."""

    def __init__(self, log: Log) -> None:
        self.log, self.read = log, list[int]()

    def __call__(self, index: int) -> bytes:
        self.read.append(index)
        return self.log.frame(index)


def written(log: Log, directory: Path, upto: int | None = None) -> None:
    """A store's index that wrote everything, and ended."""
    keeper = log.keeper(directory)
    log.index(keeper, upto)
    keeper.tidy(FOR_EVER, rest=True)
    keeper.close()


def frames_read(log: Log, keeper: IndexKeeper) -> list[int]:
    reads = Reads(log)
    assert keeper.advance(0, len(log.frames), reads, FOR_EVER)
    for session, messages in log.messages.items():
        runs = keeper.of(0).runs(session, 0, 1000, LOTS, log.read)
        assert [message for run in runs for message in messages_of(run)] == messages
        [[last_seq, last_n, *_]] = keeper.of(0).states([Question(session, [], [])], 64, LOTS)[2]
        assert (last_seq, last_n) == (len(messages), log.last_n(session))
    return reads.read


def test_nothing_that_was_written_is_read_again_after_a_restart(tmp_path: Path) -> None:
    log = Log(STEPS)
    written(log, tmp_path, 20)
    assert frames_read(log, log.keeper(tmp_path)) == list(range(21, len(log.frames) + 1))


def test_process_that_ends_while_it_writes_leaves_the_catalogue_as_it_was(tmp_path: Path) -> None:
    log = Log(STEPS)
    written(log, tmp_path, 10)
    keeper = log.keeper(tmp_path)
    index = log.index(keeper)
    job = keeper._segments.flush(0, index.leave())
    next(job), next(job)
    keeper.close()
    again = log.keeper(tmp_path)
    assert frames_read(log, again) == list(range(11, len(log.frames) + 1))
    again.tidy(FOR_EVER, rest=True)
    assert frames_read(log, again) == [], "what the dead process left does not stand in the way"


@pytest.mark.parametrize("mark", ["mark of another incarnation"])
def test_catalogue_of_another_store_incarnation_or_log_is_thrown_away(tmp_path: Path, mark: str) -> None:
    log = Log(STEPS)
    written(log, tmp_path)
    assert len(frames_read(log, log.keeper(tmp_path, mark))) == len(log.frames)


def test_catalogue_of_other_frames_is_thrown_away(tmp_path: Path) -> None:
    written(Log([*STEPS, (0, 0, 2)]), tmp_path)
    log = Log([*STEPS, (1, 1, 3), (1, 1, 3)])
    assert len(frames_read(log, log.keeper(tmp_path))) == len(log.frames)


def test_catalogue_that_knows_more_than_the_journal_is_thrown_away(tmp_path: Path) -> None:
    written(Log(STEPS), tmp_path)
    log = Log(STEPS[:20])
    assert len(frames_read(log, log.keeper(tmp_path))) == len(log.frames)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def no_sqlite_file(path: Path) -> None:
    path.write_bytes(b"x" * 100_000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, no_sqlite_file, empty, Path.unlink])
def test_catalogue_that_sqlite_cannot_read_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    log = Log(STEPS)
    written(log, tmp_path)
    damage(tmp_path / FILE)
    assert len(frames_read(log, log.keeper(tmp_path))) == len(log.frames)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE parts SET last_seq = last_seq + 1 WHERE session = 's'",
        "UPDATE parts SET entries = zeroblob(length(entries)) WHERE session = 's'",
        "UPDATE senders SET last_n = last_n - 1 WHERE session = 's'",
        "DELETE FROM parts WHERE session = 's' AND first_seq = 1",
    ],
)
def test_row_that_is_not_what_was_written_is_never_believed(tmp_path: Path, change: str) -> None:
    log = Log(STEPS)
    written(log, tmp_path)
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute(change).rowcount > 0
    database.close()
    index = log.index(log.keeper(tmp_path))

    def ask() -> None:
        index.states([Question("s", [], [])], 64, LOTS)
        index.runs("s", 0, 1000, LOTS, log.read)

    with pytest.raises(CatalogueDamaged):
        ask()


def test_part_that_vanished_at_the_end_is_noticed_by_what_follows(tmp_path: Path) -> None:
    log = Log(STEPS)
    written(log, tmp_path, 20)
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DELETE FROM parts WHERE first_seq = (SELECT max(first_seq) FROM parts WHERE session = 's')")
    database.close()
    index = log.index(log.keeper(tmp_path))
    with pytest.raises(CatalogueDamaged, match="hole"):
        index.states([Question("s", [], [])], 64, LOTS)


def test_discarded_catalogue_is_made_anew_from_the_journal(tmp_path: Path) -> None:
    log = Log(STEPS)
    written(log, tmp_path)
    keeper = log.keeper(tmp_path)
    keeper.discard("a test says so")
    assert len(frames_read(log, keeper)) == len(log.frames)
    assert keeper.status()["rebuilds"] == 1


class FullDisk:
    """Takes two groups of rows, and nothing more."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self.takes = database, 2

    def executemany(self, *statement: Any) -> None:
        if not self.takes:
            raise sqlite3.OperationalError("database or disk is full")
        self.takes -= 1
        self._database.executemany(*statement)

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)


def test_on_a_full_disk_what_is_recent_stays_in_memory_and_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(STEPS)
    written(log, tmp_path, 10)
    keeper = log.keeper(tmp_path)
    log.index(keeper, 20)
    with monkeypatch.context() as patch:
        patch.setattr(keeper._segments, "_database", FullDisk(keeper.catalogue.database))
        assert not keeper.tidy(FOR_EVER, rest=True)
        assert keeper.status()["trouble"] == "database or disk is full"
        assert frames_read(log, keeper) == list(range(21, len(log.frames) + 1))
    keeper._tried_at = -FOR_EVER
    keeper.tidy(FOR_EVER, rest=True)
    assert keeper.status()["trouble"] == ""
    held = {row[0] for table in TABLES for row in keeper.catalogue.database.execute(f"SELECT segment FROM {table}")}
    assert held == {segment.id for segment in keeper.catalogue.segments}, "what was begun in vain is removed"
    keeper.close()
    assert frames_read(log, log.keeper(tmp_path)) == []


def test_memory_is_bounded_while_a_long_journal_is_read() -> None:
    log = Log([(k % 3, k % 2, 1) for k in range(3000)])
    limits = SMALL.__class__(index_recent_bytes_max=20_000, index_resting_bytes_max=20_000, index_merge_segments_max=2)
    keeper = IndexKeeper(None, "mark", log.crc_at, limits)
    largest = 0

    def frame(index: int) -> bytes:
        nonlocal largest
        largest = max(largest, keeper.of(0).size_bytes)
        return log.frame(index)

    assert keeper.advance(0, len(log.frames), frame, FOR_EVER)
    assert 19_000 <= largest <= 2 * 20_000 + 1000
    assert frames_read(log, keeper) == []
    [record] = keeper.of(0).recall("s", SENDERS[0], 2, 2, log.read)
    assert isinstance(record, Run)
    assert record.first_seq == 3, "the oldest are found again"


def test_disk_space_that_merged_segments_took_is_given_back(tmp_path: Path) -> None:
    log = Log([(k % 3, k % 2, 1) for k in range(8000)])
    keeper = log.keeper(tmp_path)
    for upto in range(1000, 8001, 1000):
        log.index(keeper, upto)
        while keeper.tidy(FOR_EVER, rest=True):
            pass
    database = keeper.catalogue.database
    pages, free = (database.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
    assert free <= max(64, pages // 4)
    [[last_seq, *_]] = keeper.of(0).states([Question("s", [], [])], 64, LOTS)[2]
    assert last_seq == len(log.messages["s"])


def test_store_without_room_for_a_catalogue_serves_from_memory(tmp_path: Path) -> None:
    log = Log(STEPS)
    keeper = log.keeper(tmp_path / "not there")
    log.index(keeper)
    keeper.tidy(FOR_EVER, rest=True)
    assert frames_read(log, keeper) == []
    assert "unable to open" in keeper.status()["trouble"]


QUERIES = {
    name: query for name, query in vars(catalogue).items() if isinstance(query, str) and query.startswith(("SELECT", "WITH"))
}


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_goes_through_a_table_that_may_be_large(name: str) -> None:
    """Seen: SQLite turned a join round, and each page of a session went through the trims of all the others."""
    query = QUERIES[name]
    arguments = [1] * max([int(number) for number in re.findall(r"[?](\d)", query)] or [query.count("?")])
    plan = [row[3] for row in Catalogue.open(None, "m").database.execute(f"EXPLAIN QUERY PLAN {query}", arguments)]
    assert [step for step in plan if step.startswith("SCAN") and step not in ("SCAN segments", "SCAN names")] == []
    assert not any("TEMP B-TREE FOR GROUP BY" in step for step in plan)


def test_trimmed_sessions_are_told_in_the_order_of_their_names_each_with_its_highest_trim() -> None:
    catalogue = Catalogue.open(None, "m")
    rows = {1: ["a", "c", "e", "g"], 2: ["a", "b", "c"], 3: ["c", "f"], 4: ["d"]}
    for segment, names in rows.items():
        catalogue.segments.append(Segment(segment, int(segment == 4), 0, 10 * segment, 0, 0, 0))
        for name in names:
            for before in (5, 10 - segment):
                catalogue.database.execute(
                    "INSERT INTO trims VALUES (?, ?, ?, ?)", (segment, name, before, crc_of(name, before))
                )
    found: list[tuple[str, int]] = []
    while some := catalogue.trimmed_sessions(0, found[-1][0] if found else "", 2):
        found += some
    assert found == [("a", 9), ("b", 8), ("c", 9), ("e", 9), ("f", 7), ("g", 9)]
    assert catalogue.trimmed_sessions(1, "", 2) == [("d", 6)]
