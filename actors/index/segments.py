"""How the catalogue is written: a segment from memory, one segment from several, and the removal of what does not count.

Owns every statement that changes the file. It must not know who asks the catalogue, nor when there is time. Each job is a
generator that does a little between two `yield`s, so that its thread can do other things meanwhile. Rules:

1. A segment's rows are written first, in transactions of their own. It counts from the transaction on that names it in the
   table of segments; a merge takes the old ones out in the same transaction.
2. Whatever job ends early leaves rows that do not count: they are removed later, and its number is not given again.
3. Segments of one level are merged `index_merge_segments_max` at a time, up to level `LEVELS_MAX`: each row is written so many
   times at most, and a merge is bounded.
4. A merge leaves out the idempotency keys whose time is over by the log's own: no message can repeat them any more.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Generator, Iterable, Iterator
from heapq import merge
from itertools import groupby, islice
from typing import Any, Final
from zlib import crc32

from trilogue.actors.index.catalogue import PART_ENTRIES, Catalogue, Segment, crc_of, part_crc
from trilogue.actors.index.entries import ENTRY_BYTES, seq_at
from trilogue.actors.index.recent import Recent, RecentSession
from trilogue.actors.protocol.limits import Limits

LEVELS_MAX: Final = 3
SLICE_ROWS: Final = 128
MERGE_ROWS: Final = 1024
SORTED_AT_ONCE: Final = 1024
FREE_SHARE: Final = 4
"""Where one page in so many is free, or more, some are given back."""
FREE_PAGES_MIN: Final = 64
SHRUNK_PAGES: Final = 16
_TABLES: Final = {"parts": "session, first_seq, at, last_seq, entries, crc",
                  "senders": "session, sender_id, first_n, last_n, first_seq, at, crc",
                  "keys": "session, key, seq, stored_at_us, digest, crc",
                  "trims": "session, before, crc"}  # fmt: skip
_INSERTS: Final = {
    table: f"INSERT INTO {table} VALUES (?{', ?' * (columns.count(',') + 1)})" for table, columns in _TABLES.items()
}

Job = Iterator[None]


class Segments:
    """Writes one catalogue."""

    def __init__(self, catalogue: Catalogue, limits: Limits) -> None:
        self._catalogue = catalogue
        self._merge_at_once = limits.index_merge_segments_max
        self._key_honoured_us = limits.key_honoured_ms * 1000
        self._database = catalogue.database
        there = {id for table in _TABLES for id in self._ids_in(table)}
        self._garbage = there - {segment.id for segment in catalogue.segments}
        self._has_swept = True  # there may be free pages
        self._next_id = max((0, *there, *(segment.id for segment in catalogue.segments))) + 1

    def _ids_in(self, table: str) -> Iterator[int]:
        found = 0
        while (row := self._database.execute(f"SELECT min(segment) FROM {table} WHERE segment > {found}").fetchone())[0]:
            found = row[0]
            yield found

    def _new_id(self) -> int:
        """A segment's number; until it is named in the table, its rows are garbage."""
        self._next_id += 1
        self._garbage.add(self._next_id - 1)
        return self._next_id - 1

    # ------------------------------------------------------------------ jobs

    def flush(self, partition: int, recent: Recent) -> Job:
        """Write what was recent as the partition's newest segment. It must not change meanwhile."""
        segment = Segment(self._new_id(), partition, 0, recent.upto, recent.frame_crc, recent.last_stored_at_us, recent.floor)
        names = yield from _sorted(recent.sessions)
        sessions = recent.sessions
        yield from self._insert("parts", (row for name in names for row in _part_rows(segment.id, name, sessions[name])))
        yield from self._insert("senders", (row for name in names for row in _sender_rows(segment.id, name, sessions[name])))
        keyed = [name for name in names if sessions[name].keys]
        yield from self._insert("keys", (row for name in keyed for row in _key_rows(segment.id, name, sessions[name])))
        trims = ((segment.id, name, before, crc_of(name, before)) for name, before in sorted(recent.trims.items()))
        yield from self._insert("trims", trims)
        self._register(segment, [])

    def merge(self) -> Job | None:
        """The next merge that is due; nothing if none is."""
        segments = self._catalogue.segments
        for partition in {segment.partition for segment in segments}:
            for level in range(LEVELS_MAX):
                same = [one for one in segments if (one.partition, one.level) == (partition, level)]
                if len(same) >= self._merge_at_once:
                    return self._merge(same[: self._merge_at_once])
        return None

    def _merge(self, old: list[Segment]) -> Job:
        new = old[-1]._replace(id=self._new_id(), level=old[0].level + 1)
        keys_from_us = new.last_stored_at_us - self._key_honoured_us + 1
        for table in _TABLES:
            after: str | None = ""
            while after is not None:
                only = f" AND stored_at_us >= {keys_from_us}" if table == "keys" else ""
                after = self._copy(table, [segment.id for segment in old], new.id, after, only)
                yield
        self._register(new, old)

    def sweep(self) -> Job | None:
        """The removal of rows that do not count; nothing if there are none."""
        return self._sweep(min(self._garbage)) if self._garbage else None

    def _sweep(self, segment: int) -> Job:
        for table in _TABLES:
            after: str | None = ""
            while after is not None:
                after = self._end_of_slice(table, [segment], "")
                until, arguments = ("", (segment,)) if after is None else (" AND session <= ?", (segment, after))
                self._database.execute(f"DELETE FROM {table} WHERE segment = ?{until}", arguments)
                yield
        self._garbage.discard(segment)
        self._has_swept = True

    def shrink(self) -> Job | None:
        """The giving back of disk space that no row needs; nothing if there is little."""
        if self._has_swept and self._is_sparse():
            return self._shrink()
        self._has_swept = False
        return None

    def _is_sparse(self) -> bool:
        pages, free = (self._database.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
        return free > FREE_PAGES_MIN and FREE_SHARE * int(free) > int(pages)

    def _shrink(self) -> Job:
        while self._is_sparse():
            self._database.execute(f"PRAGMA incremental_vacuum({SHRUNK_PAGES})").fetchall()
            yield

    def forget(self, partition: int) -> None:
        """Nothing that is said of the partition counts any more."""
        gone = [segment for segment in self._catalogue.segments if segment.partition == partition]
        self._database.execute("DELETE FROM segments WHERE partition = ?", (partition,))
        self._take_out(gone)

    def note_counted(self, says: bytes) -> None:
        """Keep this instead of what was noted before."""
        self._database.execute("REPLACE INTO counted VALUES (1, ?, ?)", (says, crc32(says)))

    # ------------------------------------------------------------------ statements

    def _insert(self, table: str, rows: Iterator[tuple[Any, ...]]) -> Job:
        while some := list(islice(rows, SLICE_ROWS)):
            with _transaction(self._database):
                self._database.executemany(_INSERTS[table], some)
            yield

    def _copy(self, table: str, old: list[int], new: int, after: str, only: str) -> str | None:
        """Copy the rows of some sessions behind `after`; returns the last of them, or nothing when there are no more."""
        end = self._end_of_slice(table, old, after)
        until = only if end is None else f"{only} AND session <= ?3"
        columns = _TABLES[table]
        self._database.execute(
            f"INSERT OR IGNORE INTO {table} SELECT ?1, {columns} FROM {table}"
            f" WHERE segment IN ({_list(old)}) AND session > ?2 {until} ORDER BY 2, 3, 4",
            (new, after) if end is None else (new, after, end),
        )
        return end

    def _end_of_slice(self, table: str, segments: list[int], after: str) -> str | None:
        """The session up to which about `MERGE_ROWS` rows of them lie behind `after`; nothing if there are fewer."""
        ends = [
            row[0]
            for segment in segments
            for row in self._database.execute(
                f"SELECT session FROM {table} WHERE segment = ? AND session > ? ORDER BY session LIMIT 1 OFFSET ?",
                (segment, after, MERGE_ROWS // len(segments)),
            )
        ]
        return min(ends, default=None)

    def _register(self, segment: Segment, instead_of: list[Segment]) -> None:
        with _transaction(self._database):
            if instead_of:
                self._database.execute(f"DELETE FROM segments WHERE id IN ({_list(one.id for one in instead_of)})")
            self._database.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", segment.row)
        self._take_out(instead_of)
        self._garbage.discard(segment.id)
        self._catalogue.segments.append(segment)
        self._catalogue.segments.sort(key=lambda one: one.upto)

    def _take_out(self, gone: list[Segment]) -> None:
        self._garbage.update(segment.id for segment in gone)
        self._catalogue.segments = [segment for segment in self._catalogue.segments if segment not in gone]


class _transaction:
    """`BEGIN` … `COMMIT`, or `ROLLBACK` when something is raised."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:
            self._database.execute("ROLLBACK")


def _sorted(names: Iterable[str]) -> Generator[None, None, list[str]]:
    """The names in order: only then is a page of the file written once. A little at a time, as a job."""
    all_names, some = iter(names), list[list[str]]()
    while part := sorted(islice(all_names, SORTED_AT_ONCE)):
        some.append(part)
        yield
    ordered, merged = list[str](), merge(*some)
    while part := list(islice(merged, SORTED_AT_ONCE)):
        ordered += part
        yield
    return ordered


def _list(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))


def _part_rows(segment: int, session: str, entry: RecentSession) -> Iterator[tuple[Any, ...]]:
    entries, whole = entry.entries, entry.part
    for first in range(0, len(whole), PART_ENTRIES):
        start, end = first * ENTRY_BYTES, (first + PART_ENTRIES) * ENTRY_BYTES
        some = bytes(entries[start:end])
        last_seq = seq_at(entries, end) - 1 if end < len(entries) else entry.last_seq
        head = whole.place(first)
        key = session, head.first_seq, head.at, last_seq
        yield (segment, *key, some, part_crc(*key, some))


def _sender_rows(segment: int, session: str, entry: RecentSession) -> Iterator[tuple[Any, ...]]:
    whole = entry.part
    for sender_id, own in entry.senders.items():
        if len(whole) <= PART_ENTRIES:  # most sessions: a third of the time
            groups = [(0, own)]
        else:
            groups = [(number, array("I", group)) for number, group in groupby(own, lambda k: k // PART_ENTRIES)]
        for number, numbers in groups:
            first, head = whole.place(numbers[0]), whole.place(number * PART_ENTRIES)
            last_n = first.last_n if len(numbers) == 1 else whole.place(numbers[-1]).last_n
            row = sender_id, first.first_n, last_n, head.first_seq, head.at
            yield (segment, session, *row, crc_of(session, *row))


def _key_rows(segment: int, session: str, entry: RecentSession) -> Iterator[tuple[Any, ...]]:
    for key, (seq, stored_at_us, digest, _) in sorted((entry.keys or {}).items()):
        yield (segment, session, key, seq, stored_at_us, digest, crc_of(session, key, seq, stored_at_us, digest))
