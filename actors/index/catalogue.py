"""The index of all but the newest frames: an SQLite file of segments, `index.db` in the store's directory.

Owns the file, its identity, and what it says of a session. It must not know how it is written (``segments``), frames or the
journal. Used by one thread. Rules:

1. It is derived, and disposable. A file of another store, incarnation or log, of another format, or one that SQLite cannot
   read, is removed and begun anew.
2. A *segment* holds what a partition's frames say from the end of the segment before it up to its `upto`, for all sessions.
   Rows of a segment that is not (or not any more) in the table of segments do not count.
3. Each row carries a CRC over all that it says. A row that fails it, or that does not follow the one before, is
   `CatalogueDamaged`: the file is not believed any more.
4. The write-ahead log is synced before the file is written from it (`synchronous=NORMAL`). So a power cut takes the newest
   segments along, never parts of one.
5. A session that no segment names costs one look into each of them, inside SQLite; there are fewer than
   `index_merge_segments_max` of a level. No query goes through more of the other tables than it gives back: where two are
   joined, `CROSS JOIN` says which one comes first.

    identity  mark: what rule 1 compares
    segments  id -> partition, level, upto, frame_crc (of the frame at `upto`), last_stored_at_us, floor (messages in frames up
              to it are gone)
    parts     (segment, session, first_seq, at) -> last_seq, entries: up to `PART_ENTRIES` of them, packed (``entries``)
    senders   (segment, session, sender_id, first_n) -> last_n, and in which part these numbers are
    keys      (segment, session, key, seq) -> stored_at_us, digest: the idempotency keys of the session's messages
    trims     (segment, session, before): the session's messages below this seq are gone
    counted   says: one row, what the thinning has counted of all that is gone (``keeper``)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

from trilogue.actors.index.entries import Part, Place, sender_crc
from trilogue.actors.protocol.keys import KnownKey

FILE: Final = "index.db"
FORMAT: Final = 4
PAGE_BYTES: Final = 8192
CACHE_KIB: Final = 8192
PART_ENTRIES: Final = 40
"""So many entries fit a page of SQLite's beside their key."""

_SCHEMA: Final = (
    "CREATE TABLE identity (mark TEXT NOT NULL) STRICT",
    "CREATE TABLE segments (id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, level INTEGER NOT NULL, upto INTEGER NOT NULL,"
    " frame_crc INTEGER NOT NULL, last_stored_at_us INTEGER NOT NULL, floor INTEGER NOT NULL, crc INTEGER NOT NULL) STRICT",
    "CREATE TABLE parts (segment INTEGER NOT NULL, session TEXT NOT NULL, first_seq INTEGER NOT NULL, at INTEGER NOT NULL,"
    " last_seq INTEGER NOT NULL, entries BLOB NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (segment, session, first_seq, at)) STRICT, WITHOUT ROWID",
    "CREATE TABLE senders (segment INTEGER NOT NULL, session TEXT NOT NULL, sender_id TEXT NOT NULL, first_n INTEGER NOT NULL,"
    " last_n INTEGER NOT NULL, first_seq INTEGER NOT NULL, at INTEGER NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (segment, session, sender_id, first_n)) STRICT, WITHOUT ROWID",
    "CREATE TABLE keys (segment INTEGER NOT NULL, session TEXT NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL,"
    " stored_at_us INTEGER NOT NULL, digest BLOB NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (segment, session, key, seq)) STRICT, WITHOUT ROWID",
    "CREATE TABLE trims (segment INTEGER NOT NULL, session TEXT NOT NULL, before INTEGER NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (segment, session, before)) STRICT, WITHOUT ROWID",
    "CREATE TABLE counted (id INTEGER PRIMARY KEY CHECK (id = 1), says BLOB NOT NULL, crc INTEGER NOT NULL) STRICT",
)
_SEGMENTS_WITH: Final = (
    "SELECT id FROM segments WHERE partition = ?1 AND EXISTS"
    " (SELECT 1 FROM senders WHERE segment = segments.id AND session = ?2) ORDER BY upto"
)
_NEWEST_PART: Final = (
    "SELECT first_seq, at, last_seq, entries, crc FROM parts WHERE segment = ? AND session = ?"
    " ORDER BY first_seq DESC, at DESC LIMIT 1"
)
_PARTS_FROM: Final = (
    "SELECT first_seq, at, last_seq, entries, crc FROM parts WHERE segment = ?1 AND session = ?2 AND first_seq >= coalesce("
    "(SELECT max(first_seq) FROM parts WHERE segment = ?1 AND session = ?2 AND first_seq <= ?3), 0) ORDER BY first_seq, at"
)
_ONE_PART: Final = (
    "SELECT first_seq, at, last_seq, entries, crc FROM parts WHERE segment = ? AND session = ? AND first_seq = ? AND at = ?"
)
_SENDER_BELOW: Final = (
    "SELECT sender_id, first_n, last_n, first_seq, at, crc FROM senders WHERE segment = ? AND session = ? AND sender_id < ?"
    " ORDER BY sender_id DESC, first_n DESC LIMIT 1"
)
_NEWEST_OF_SENDER: Final = (
    "SELECT sender_id, first_n, last_n, first_seq, at, crc FROM senders WHERE segment = ? AND session = ? AND sender_id = ?"
    " ORDER BY first_n DESC LIMIT 1"
)
_NUMBERS: Final = (
    "SELECT sender_id, first_n, last_n, first_seq, at, crc FROM senders WHERE segment = ?1 AND session = ?2 AND sender_id = ?3"
    " AND first_n <= ?5 AND first_n >= coalesce((SELECT max(first_n) FROM senders WHERE segment = ?1 AND session = ?2"
    " AND sender_id = ?3 AND first_n <= ?4), 0) ORDER BY first_n"
)
_NEWEST_OF_KEY: Final = (
    "SELECT key, seq, stored_at_us, digest, crc FROM keys WHERE segment = ? AND session = ? AND key = ?"
    " ORDER BY seq DESC LIMIT 1"
)
_SOME_KEYS: Final = (
    "SELECT key, seq, stored_at_us, digest, crc FROM keys WHERE segment = ? AND session = ? ORDER BY key, seq LIMIT ?"
)
_TRIMS: Final = (
    "SELECT before, trims.crc FROM segments CROSS JOIN trims ON segment = id AND session = ?2 WHERE partition = ?1"
    " ORDER BY before DESC LIMIT 1"
)
_TRIMMED_BEHIND: Final = (
    "SELECT session, max(before) FROM trims WHERE segment = ? AND session > ? GROUP BY session ORDER BY session LIMIT ?"
)
_FIRST_BEHIND: Final = (
    "SELECT first_seq, at, last_seq, entries, crc FROM parts WHERE segment = ?1 AND session = ?2 AND first_seq >= coalesce("
    "(SELECT max(first_seq) FROM parts WHERE segment = ?1 AND session = ?2 AND at <= ?3), 0) ORDER BY first_seq, at"
)
_NAMES: Final = (
    "WITH RECURSIVE names(name) AS (SELECT min(session) FROM parts WHERE segment = ?1 AND session > ?2 UNION ALL"
    " SELECT (SELECT min(session) FROM parts WHERE segment = ?1 AND session > names.name) FROM names WHERE name IS NOT NULL"
    " LIMIT ?3) SELECT name FROM names WHERE name IS NOT NULL"
)
_ABOVE_ALL_NAMES: Final = chr(0x10FFFF) * 2


class CatalogueDamaged(Exception):
    """The catalogue contradicts itself, or what it was made from: it must be thrown away. Says nothing of the journal."""


class Segment(NamedTuple):
    """What a row of `segments` says."""

    id: int
    partition: int
    level: int
    upto: int
    frame_crc: int
    last_stored_at_us: int
    floor: int

    @property
    def row(self) -> tuple[int, ...]:
        """It, as it is stored."""
        return (*self, crc_of(*self))


class Catalogue:
    """One open file."""

    def __init__(self, path: Path | None, database: sqlite3.Connection) -> None:
        """Use `open`."""
        self.path = path
        self.database = database
        self.segments: list[Segment] = []  # those that count, oldest first

    @classmethod
    def open(cls, path: Path | None, mark: str) -> Catalogue:
        """The catalogue at `path` if it bears this mark, otherwise a new one; in memory where there is no path."""
        if path is not None:
            with contextlib.suppress(sqlite3.Error, CatalogueDamaged):
                catalogue = cls(path, _connect(path))
                try:
                    catalogue._load(mark)
                    return catalogue
                except BaseException:
                    catalogue.database.close()
                    raise
            remove(path)
        catalogue = cls(path, _connect(path))
        catalogue._begin(mark)
        return catalogue

    def _load(self, mark: str) -> None:
        if self.database.execute("SELECT mark FROM identity").fetchall() != [(mark,)]:
            raise CatalogueDamaged("it belongs to another store, or is of another format")
        for row in self.database.execute("SELECT * FROM segments ORDER BY upto"):
            segment = Segment(*row[:-1])
            if segment.row != row:
                raise CatalogueDamaged("a segment fails its CRC")
            self.segments.append(segment)

    def _begin(self, mark: str) -> None:
        execute = self.database.execute
        execute("BEGIN")
        for statement in _SCHEMA:
            execute(statement)
        execute("INSERT INTO identity VALUES (?)", (mark,))
        execute("COMMIT")

    def close(self) -> None:
        """Let go of the file. Harmless when called twice."""
        self.database.close()

    @property
    def size_bytes(self) -> int:
        """How much of the disk it takes."""
        if self.path is None:
            return 0
        return sum(path.stat().st_size for path in _files_of(self.path) if path.exists())

    # ------------------------------------------------------------------ what it says

    def newest(self, partition: int) -> Segment | None:
        """The partition's newest segment: up to its `upto` the catalogue says everything."""
        return next((segment for segment in reversed(self.segments) if segment.partition == partition), None)

    def segments_with(self, partition: int, session: str) -> list[int]:
        """The segments that name the session, oldest first."""
        return [row[0] for row in self.database.execute(_SEGMENTS_WITH, (partition, session))]

    def names(self, partition: int, above: str, count: int) -> list[str]:
        """Sessions whose names are above that one: the first `count` of each segment, some of them several times."""
        segments = [segment.id for segment in self.segments if segment.partition == partition]
        return [row[0] for segment in segments for row in self.database.execute(_NAMES, (segment, above, count))]

    def last_seq(self, segments: list[int], session: str) -> int:
        """The session's last seq in these segments, 0 if there is none."""
        for segment in reversed(segments):
            for row in self.database.execute(_NEWEST_PART, (segment, session)):
                return self._part(session, row).last_seq
        return 0

    def parts(self, segments: list[int], session: str, seq: int) -> Iterator[Part]:
        """The session's entries in these segments, from the one on that holds `seq`, or one before it."""
        for segment in segments:
            for row in self.database.execute(_PARTS_FROM, (segment, session, seq)):
                yield self._part(session, row)

    def senders(self, segments: list[int], session: str, count: int) -> dict[str, int]:
        """The session's senders with their last numbers: all of them if they are fewer than `count`."""
        found: dict[str, int] = {}
        for segment in reversed(segments):
            below = _ABOVE_ALL_NAMES
            while len(found) < count and (row := self._one(_SENDER_BELOW, segment, session, below)):
                below = row[0]
                if below not in found:
                    found[below] = self._last_n(session, row)
        return found

    def last_n(self, segments: list[int], session: str, sender_id: str) -> int:
        """The sender's last number in the session, 0 if there is none."""
        for segment in reversed(segments):
            if row := self._one(_NEWEST_OF_SENDER, segment, session, sender_id):
                return self._last_n(session, row)
        return 0

    def numbers(self, segments: list[int], session: str, sender_id: str, first_n: int, last_n: int) -> Iterator[Place]:
        """The records that hold the sender's numbers from `first_n` to `last_n`, in their order."""
        crc = sender_crc(sender_id)
        for segment in segments:
            rows = self.database.execute(_NUMBERS, (segment, session, sender_id, first_n, last_n)).fetchall()
            for row in rows:
                if self._last_n(session, row) < first_n:
                    continue
                part = self._one(_ONE_PART, segment, session, row[3], row[4])
                if part is None:
                    raise CatalogueDamaged("a sender's numbers have no part")
                for place in self._part(session, part).places():
                    if place.sender == crc and place.first_n <= last_n and place.last_n >= first_n:
                        yield place

    def trimmed(self, partition: int, session: str) -> int:
        """The session's messages below this seq are gone, as trims say; 0 if there was none."""
        row = self._one(_TRIMS, partition, session)
        if row is None:
            return 0
        before, crc = row
        if crc_of(session, before) != crc:
            raise CatalogueDamaged(f"a trim of session {session!r} fails its CRC")
        return int(before)

    def trimmed_sessions(self, partition: int, after: str, count: int) -> list[tuple[str, int]]:
        """Sessions that were trimmed, in the order of their names behind `after`, `count` at most: each with its `trimmed`."""
        found: dict[str, int] = {}
        for segment in self.segments:
            if segment.partition == partition:
                for session, before in self.database.execute(_TRIMMED_BEHIND, (segment.id, after, count)):
                    found[session] = max(before, found.get(session, 0))
        return sorted(found.items())[:count]

    def counted(self) -> bytes | None:
        """What was noted of the thinning's count (``segments.note_counted``)."""
        row = self._one("SELECT says, crc FROM counted")
        if row is not None and crc32(row[0]) != row[1]:
            raise CatalogueDamaged("what was counted fails its CRC")
        return row[0] if row is not None else None

    def parts_behind(self, segments: list[int], session: str, at: int) -> Iterator[Part]:
        """The session's entries in these segments, from the part on in which those begin that lie behind the place `at`."""
        for segment in segments:
            for row in self.database.execute(_FIRST_BEHIND, (segment, session, at)):
                yield self._part(session, row)

    def key(self, segments: list[int], session: str, key: str) -> KnownKey | None:
        """The newest message of the session that has this key."""
        for segment in reversed(segments):
            if row := self._one(_NEWEST_OF_KEY, segment, session, key):
                return self._known_key(session, row)
        return None

    def keys(self, segments: list[int], session: str, count: int) -> tuple[dict[str, KnownKey], bool]:
        """Some of the session's keys, and whether these are all: at most `count` of a segment are looked at."""
        found: dict[str, KnownKey] = {}
        whole = True
        for segment in segments:
            rows = self.database.execute(_SOME_KEYS, (segment, session, count + 1)).fetchall()
            whole = whole and len(rows) <= count
            found.update((row[0], self._known_key(session, row)) for row in rows)
        return found, whole

    @staticmethod
    def _known_key(session: str, row: tuple[Any, ...]) -> KnownKey:
        key, seq, stored_at_us, digest, crc = row
        if crc_of(session, key, seq, stored_at_us, digest) != crc:
            raise CatalogueDamaged(f"a key of session {session!r} fails its CRC")
        return KnownKey(seq, stored_at_us, digest)

    def _one(self, query: str, *arguments: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self.database.execute(query, arguments).fetchone()
        return row

    @staticmethod
    def _part(session: str, row: tuple[Any, ...]) -> Part:
        first_seq, at, last_seq, entries, crc = row
        if part_crc(session, first_seq, at, last_seq, entries) != crc:
            raise CatalogueDamaged(f"a part of session {session!r} fails its CRC")
        return Part(entries, last_seq)

    @staticmethod
    def _last_n(session: str, row: tuple[Any, ...]) -> int:
        *says, crc = row
        if crc_of(session, *says) != crc:
            raise CatalogueDamaged(f"a sender's numbers in session {session!r} fail their CRC")
        last_n: int = says[2]
        return last_n


def crc_of(*says: Any) -> int:
    """The CRC of a row that says this."""
    return crc32(repr(says).encode())


def part_crc(session: str, first_seq: int, at: int, last_seq: int, entries: bytes) -> int:
    """The CRC of a row of `parts`."""
    return crc32(entries, crc_of(session, first_seq, at, last_seq))


def remove(path: Path) -> None:
    """Remove the file, and what SQLite keeps beside it."""
    for file in _files_of(path):
        file.unlink(missing_ok=True)


def _files_of(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))]


def _connect(path: Path | None) -> sqlite3.Connection:
    database = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=64)
    if path is not None:
        os.chmod(path, 0o600)
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        f"cache_size = -{CACHE_KIB}",
        "auto_vacuum = INCREMENTAL",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"journal_size_limit = {16 * 1024 * 1024}",
        "cell_size_check = ON",
    ):
        database.execute(f"PRAGMA {pragma}").fetchall()
    return database
