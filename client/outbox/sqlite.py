"""The outbox's file: an SQLite database in WAL mode, one row for each group of messages that was committed together.

Owns the schema, the lock and every statement. It must not know lanes' states, connections or asyncio: it is called from one
thread, blocks, and gives back plain lists. Rules:

1. A commit is one transaction: a group of messages, what is known to be settled, and the groups that are not needed any more.
   It returns after SQLite's fsync (WAL, ``synchronous=FULL``).
2. Of a lane, every number below its `next_n` in `lanes` is settled: a group may be deleted once this says so of all in it.
3. A `retired` lane is never numbered on; its row stays until no group can hold a message of it.
4. One process holds the file: a lock on ``FILE.lock``, released by the system whatever happens to the process.
5. A group's CRC is checked before its messages are believed.
6. A group in which a message has an idempotency key is of format 2, too: a program that knows no keys would send it without.
7. A number in `given_up` is of a message in the file, which no process sends any more. A program that does not know this table
   would send it: the format is 2 from then on.

    outbox   one row: the outbox id under which new lanes number
    lanes    (session, sender, outbox_id) -> next_n, retired
    cursors  (name, session) -> seq: what a reader of that name has confirmed; made when it is first needed
    given_up (session, sender, outbox_id, n): see rule 7; made when it is first needed
    batches  id, payload: msgpack [[session, sender, outbox_id, first_n, [sent_at_us ...], [body ...]] ...], crc: crc32 of it
             a run may have a seventh item: [key or None ...]
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from trilogue.actors.protocol.errors import OutboxInUse, OutboxUnusable
from trilogue.client.outbox.cursors import CursorRow

APPLICATION_ID = 0x74726C67  # "trlg"
FORMAT = 2
FORMAT_AT_FIRST = 1
PAGE_BYTES = 16_384
CHECKPOINT_PAGES = 1024
UPSERT_ROWS = (512, 64, 8, 1)

_SCHEMA = """
CREATE TABLE outbox (outbox_id TEXT NOT NULL);
CREATE TABLE lanes (
    session TEXT NOT NULL, sender TEXT NOT NULL, outbox_id TEXT NOT NULL, next_n INTEGER NOT NULL, retired INTEGER NOT NULL,
    PRIMARY KEY (session, sender, outbox_id)
) WITHOUT ROWID;
CREATE TABLE batches (id INTEGER PRIMARY KEY, payload BLOB NOT NULL, crc INTEGER NOT NULL);
"""

_CURSORS = """
CREATE TABLE IF NOT EXISTS cursors (
    name TEXT NOT NULL, session TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (name, session)
) WITHOUT ROWID
"""
_GIVEN_UP = """
CREATE TABLE IF NOT EXISTS given_up (
    session TEXT NOT NULL, sender TEXT NOT NULL, outbox_id TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (session, sender, outbox_id, n)
) WITHOUT ROWID
"""
_SETTLE = "DELETE FROM given_up WHERE session = ? AND sender = ? AND outbox_id = ? AND n < ?"
_CONFIRM = "INSERT INTO cursors VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)"

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

LaneRow = tuple[str, str, str, int, int]  # session, sender, outbox_id, next_n, retired
NumberRow = tuple[str, str, str, int]  # session, sender, outbox_id, n
StoredRun = list[
    Any
]  # [session, sender, outbox_id, first_n, [sent_at_us ...], [body ...]], and [key or None ...] if any has one
PLAIN_RUN_ITEMS = 6


class Commit(NamedTuple):
    """One transaction: what it adds, what it knows to be settled, what it deletes."""

    batch_id: int  # 0: no runs
    runs: list[StoredRun]
    lanes: list[LaneRow]
    delete: list[int]
    outbox_id: str | None  # a new one
    forget_retired: bool  # no group is left that could hold a retired lane's message
    cursors: tuple[CursorRow, ...] = ()
    given_up: tuple[NumberRow, ...] = ()
    settled: tuple[NumberRow, ...] = ()  # of what was given up, all below these numbers is settled


class Stored(NamedTuple):
    """All that a file held when it was opened."""

    outbox_id: str
    lanes: list[LaneRow]
    batches: list[tuple[int, list[StoredRun]]]  # in the order in which they were committed
    given_up: tuple[NumberRow, ...] = ()


class OutboxFile:
    """The open file. Everything but `path` belongs to the thread that made it."""

    def __init__(self, path: str, fresh_id: Callable[[], str]) -> None:
        """Open or create the outbox. Raises `OutboxInUse`, or `OutboxUnusable` with what to do."""
        self.path = os.path.realpath(path)
        if os.path.isdir(self.path):
            raise OutboxUnusable(f"the outbox {self.path} is a directory: name a file, which is made if it is not there")
        self._lock = _locked(self.path)
        try:
            self._database = _opened(self.path, fresh_id)
        except BaseException:
            os.close(self._lock)
            raise

    def load(self) -> Stored:
        """All that the file holds. Raises `OutboxUnusable` when it is damaged."""
        try:
            (outbox_id,) = self._database.execute("SELECT outbox_id FROM outbox").fetchone()
            lanes = self._database.execute("SELECT session, sender, outbox_id, next_n, retired FROM lanes").fetchall()
            rows = self._database.execute("SELECT id, payload, crc FROM batches ORDER BY id")
            batches = [(number, _runs(self.path, number, payload, crc)) for number, payload, crc in rows]
            given_up = self._database.execute("SELECT * FROM given_up").fetchall() if self._has("given_up") else []
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise _unusable(self.path, error) from error
        return Stored(outbox_id, lanes, batches, tuple(given_up))

    def commit(self, commit: Commit) -> None:
        """Apply `commit` durably, whole or not at all. Raises `OutboxUnusable`; then nothing is known of this commit."""
        execute = self._database.execute
        try:
            execute("BEGIN IMMEDIATE")
            if commit.batch_id:
                payload = _pack(commit.runs)
                execute("INSERT INTO batches VALUES (?, ?, ?)", (commit.batch_id, payload, crc32(payload)))
                if any(len(run) > PLAIN_RUN_ITEMS for run in commit.runs):
                    execute(f"PRAGMA user_version = {FORMAT}")
            if commit.lanes:
                self._upsert(commit.lanes)
            if commit.delete:
                numbers = ",".join(map(str, commit.delete))
                execute("DELETE FROM batches WHERE id IN (SELECT value FROM json_each(?))", (f"[{numbers}]",))
            if commit.forget_retired:
                execute("DELETE FROM lanes WHERE retired = 1")
            if commit.outbox_id is not None:
                execute("UPDATE outbox SET outbox_id = ?", (commit.outbox_id,))
            if commit.given_up:
                execute(_GIVEN_UP)
                execute(f"PRAGMA user_version = {FORMAT}")
                self._database.executemany("INSERT OR REPLACE INTO given_up VALUES (?, ?, ?, ?)", commit.given_up)
            if commit.settled:
                self._database.executemany(_SETTLE, commit.settled)
            if commit.cursors:
                execute(_CURSORS)
                self._database.executemany(_CONFIRM, commit.cursors)
            execute("COMMIT")
        except (sqlite3.Error, MemoryError, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise _unusable(self.path, error) from error

    def cursors(self, name: str) -> dict[str, int]:
        """What the reader of that name has confirmed, by session. Raises `OutboxUnusable`."""
        try:
            if not self._has("cursors"):
                return {}
            return dict(self._database.execute("SELECT session, seq FROM cursors WHERE name = ?", (name,)))
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error

    def _has(self, table: str) -> bool:
        return bool(self._database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())

    def close(self) -> None:
        """Close the file, leaving one file without a log beside it, and release the lock."""
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.close()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        finally:
            os.close(self._lock)

    def _upsert(self, rows: list[LaneRow]) -> None:
        """Few statements for many rows: after each statement the thread has to wait for the interpreter's lock."""
        at = 0
        for size in UPSERT_ROWS:
            statement = f"INSERT OR REPLACE INTO lanes VALUES {','.join(['(?,?,?,?,?)'] * size)}"
            while len(rows) - at >= size:
                self._database.execute(statement, _flat(rows[at : at + size]))
                at += size


def _flat(rows: Iterable[LaneRow]) -> list[Any]:
    return [value for row in rows for value in row]


def _unusable(path: str, error: Exception) -> OutboxUnusable:
    text = f"the outbox {path} cannot be used: {type(error).__name__}: {error}"
    return OutboxUnusable(f"{text}; look at its disk, or give another file (this one is left as it is)")


def _locked(path: str) -> int:
    """A descriptor that holds the lock; closing it, or the end of the process, releases the lock."""
    lock_path = f"{path}.lock"
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        remedy = "create its directory" if isinstance(error, FileNotFoundError) else "make its directory writable"
        raise OutboxUnusable(f"cannot open {lock_path}: {error.strerror}; {remedy}, or give another file") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise OutboxInUse(f"the outbox {path} is in use by process {holder}: close it there, or give another file") from None
    except OSError as error:
        os.close(descriptor)
        raise OutboxUnusable(f"cannot lock {lock_path}: {error.strerror}; give a file on a local disk") from error
    return descriptor


def _opened(path: str, fresh_id: Callable[[], str]) -> sqlite3.Connection:
    try:
        new = not os.path.exists(path) or os.path.getsize(path) == 0
        if not new:
            with Path(path).open("rb") as file:
                if not file.read(16).startswith(b"SQLite format 3\0"):
                    raise OutboxUnusable(f"{path} is not an outbox: give another file (this one is left as it is)")
        database = sqlite3.connect(path, isolation_level=None, cached_statements=32)
        try:
            _prepare(database, path, new, fresh_id)
        except BaseException:
            database.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from error
    return database


def _prepare(database: sqlite3.Connection, path: str, new: bool, fresh_id: Callable[[], str]) -> None:
    database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not new and application_id != APPLICATION_ID and (application_id or tables):
        raise OutboxUnusable(f"{path} is a database, but no outbox: give another file (this one is left as it is)")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise OutboxUnusable(f"{path} has format {version}, and this program reads up to {FORMAT}: upgrade trilogue")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA secure_delete = OFF")
    database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    database.execute(f"PRAGMA journal_size_limit = {2 * CHECKPOINT_PAGES * PAGE_BYTES}")
    if not tables:
        database.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.strip().split(";\n"):
            database.execute(statement)
        database.execute("INSERT INTO outbox VALUES (?)", (fresh_id(),))
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT_AT_FIRST}")
        database.execute("COMMIT")


def _runs(path: str, number: int, payload: bytes, crc: int) -> list[StoredRun]:
    if crc32(payload) != crc:
        text = f"the outbox {path} is damaged: group {number} fails its CRC"
        raise OutboxUnusable(f"{text}; restore the file, or give another one (this one is left as it is)")
    runs = msgpack.unpackb(payload, use_list=True, raw=False)
    for session, sender, outbox_id, first_n, times, bodies, *keys in runs:
        names = {type(session), type(sender), type(outbox_id)} == {str}
        if not names or type(first_n) is not int or len(times) != len(bodies) or not bodies:
            raise ValueError(f"group {number} has an unknown shape")
        if keys and (len(keys) > 1 or len(keys[0]) != len(bodies)):
            raise ValueError(f"group {number} has an unknown shape")
    return runs  # type: ignore[no-any-return]
