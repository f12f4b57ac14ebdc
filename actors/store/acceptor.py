"""A store's acceptor of the register, on disk (design §7): `register.db` in the store's directory.

Owns the file, its checks, and the answers to CHARTER, FOUND, PREPARE and ACCEPT. It must not know proposers, nor the journal.
Rules:

1. Every answer leaves after the commit of all that it says, with `synchronous=FULL` in a write-ahead log: one sync a commit.
2. The file and the acceptor's id are made in one transaction. So an emptied directory is another acceptor, and the charters
   that name the old one get no vote from it (``protocol.register.charter``, rule 1).
3. Nothing blocks the event loop: a thread of its own does all that touches the file, all that waits in one transaction.
4. A row that fails its CRC, or a file that SQLite finds damaged, is `Corrupt`: a vote that may be forgotten is never given.
5. An acceptor that knows of a rescue votes under no charter of an earlier era; it still tells what it accepted there.
6. A full disk refuses, and nothing of that transaction was done. Any other error of the disk ends the process: whether a commit
   is on disk cannot be known after a failed sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgpack

from trilogue.actors.protocol.errors import Corrupt, DirectoryUnusable, NewerFormat, ProtocolError, WrongCluster
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.register.charter import (
    Charter,
    Charters,
    charter_from,
    check_number,
    decode_charter,
    encode_charter,
    is_given_up,
    takes_part,
)
from trilogue.actors.protocol.register.votes import (
    EMPTY,
    NO_BALLOT,
    Ballot,
    Cell,
    Value,
    accept,
    ballot_from,
    check_key,
    prepare,
    value_from,
)
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection, Refused

VOTES: Final = frozenset((int(Say.CHARTER), int(Say.FOUND), int(Say.PREPARE), int(Say.ACCEPT)))
"""What an acceptor is asked."""
FORMAT: Final = 1
FILE: Final = "register.db"
_APPLICATION_ID: Final = 0x54524C52  # "TRLR"
_HEAD: Final = b"SQLite format 3\0"
_SCHEMA: Final = (
    "CREATE TABLE acceptor (id TEXT NOT NULL, cluster TEXT NOT NULL) STRICT",
    "CREATE TABLE charters (number INTEGER PRIMARY KEY, charter BLOB NOT NULL, crc INTEGER NOT NULL) STRICT",
    "CREATE TABLE cells (charter INTEGER NOT NULL, key TEXT NOT NULL, cell BLOB NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (charter, key)) STRICT, WITHOUT ROWID",
)
_Work = Callable[[], Any]


class Acceptor:
    """One open acceptor. `answer` and `serve` belong to the event loop, the file to the acceptor's own thread."""

    def __init__(self, path: Path, database: sqlite3.Connection, acceptor: str, charters: Charters, limits: Limits) -> None:
        self.id = acceptor
        self._path, self._database, self._charters, self._limits = path, database, charters, limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="acceptor")
        self._waiting: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._busy = False
        self._damaged: Corrupt | None = None

    @classmethod
    def open(cls, directory: Path, *, cluster: str, fresh_acceptor: str, limits: Limits) -> Acceptor:
        """Open the directory's acceptor; without one, make it as `fresh_acceptor` (a UUID in hex). Blocks.

        Raises `Corrupt`, `NewerFormat`, `WrongCluster` or `DirectoryUnusable`.
        """
        path = directory / FILE
        try:
            if path.exists() and path.stat().st_size and path.read_bytes()[: len(_HEAD)] != _HEAD:
                raise _corrupt(path, "it is not an SQLite file")
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise DirectoryUnusable(f"{path} cannot be opened ({error}): make it readable and writable") from error
        try:
            _prepare_file(path, database, cluster, fresh_acceptor)
            acceptor, charters = _load(path, database, cluster)
        except sqlite3.Error as error:
            database.close()
            raise _disk_error(path, error) from error
        except BaseException:
            database.close()
            raise
        return cls(path, database, acceptor, charters, limits)

    @property
    def charter(self) -> Charter | None:
        """The newest charter that it knows."""
        return self._charters.newest

    def status(self) -> dict[str, Any]:
        """What it is, for people."""
        newest = self._charters.newest
        return {
            "acceptor": self.id,
            "charter": newest.number if newest is not None else 0,
            "acceptors": sorted(newest.acceptors) if newest is not None else [],
            "member": takes_part(newest, self.id),
        }

    def close(self) -> None:
        """Finish what was begun, and close the file. Blocks."""
        self._thread.shutdown()
        self._database.close()

    # ------------------------------------------------------------------ answers

    def serve(self, connection: Connection, request: int, say: int, arguments: list[Any]) -> None:
        """Answer one of the requests in `VOTES`, later. Raises `ProtocolError` at once when its shape is unknown."""
        work = self._work(say, arguments)

        async def answer() -> None:
            try:
                connection.reply(request, await self._do(work))
            except Corrupt as error:
                connection.refuse(request, Code.CORRUPT, str(error))
            except Refused as error:
                connection.refuse(request, error.code, error.text)

        spawn(answer(), "answer of the acceptor")

    async def answer(self, say: int, arguments: list[Any]) -> Any:
        """The same without a connection. Raises `ProtocolError`, `Refused` or `Corrupt`."""
        return await self._do(self._work(say, arguments))

    def _work(self, say: int, arguments: list[Any]) -> _Work:
        """What has to be done in the thread, with its arguments checked."""
        data_bytes_max = self._limits.register_data_bytes_max
        match [say, *arguments]:
            case [Say.CHARTER]:
                return lambda: self._charter(0)
            case [Say.CHARTER, asked]:
                number = check_number(asked)
                return lambda: self._charter(number)
            case [Say.FOUND, number, acceptors]:
                charter = charter_from(number, acceptors)
                return lambda: self._found(charter)
            case [Say.PREPARE, asked, name, n, proposer]:
                number, key, ballot = check_number(asked), check_key(name), ballot_from([n, proposer])
                return lambda: self._prepare(number, key, ballot)
            case [Say.ACCEPT, asked, name, n, proposer, fields]:
                number, key, ballot = check_number(asked), check_key(name), ballot_from([n, proposer])
                value = value_from(fields, data_bytes_max)
                return lambda: self._accept(number, key, ballot, value)
        raise ProtocolError(f"an acceptor knows no request {say} of this shape")

    async def _do(self, work: _Work) -> Any:
        if self._damaged is not None:
            raise self._damaged
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if not self._busy:
            self._busy = True
            spawn(self._drain(), "acceptor")
        return await future

    async def _drain(self) -> None:
        """Do all that waits in one transaction, until nothing waits."""
        try:
            while self._waiting:
                jobs, self._waiting = self._waiting, []
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, [w for w, _ in jobs])
                for (_, future), result in zip(jobs, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._busy = False

    # ------------------------------------------------------------------ in the thread

    def _commit(self, works: list[_Work]) -> list[Any]:
        """The result of each work, or its refusal; all of it is durable (rule 1)."""
        results: list[Any] = []
        learned: list[Charter] = []
        self._learned = learned
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for work in works:
                try:
                    results.append(work())
                except Refused as refusal:
                    results.append(refusal)
            self._database.execute("COMMIT")
        except (sqlite3.Error, Corrupt) as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                text = f"the disk of {self._path} is full: nothing of this was stored; free some space"
                return [Refused(Code.FULL, text) for _ in works]
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _DAMAGE:
                error = _corrupt(self._path, str(error))
            if isinstance(error, Corrupt):
                self._damaged = error
                return [error for _ in works]
            raise
        for charter in learned:
            self._charters.learn(charter)
        return results

    def _charter(self, number: int) -> list[Any]:
        charter = self._charters.get(number) if number else self._charters.newest
        return [self.id, charter.number, charter.acceptors] if charter is not None else [self.id, 0, {}]

    def _found(self, charter: Charter) -> None:
        known = self._known(charter.number)
        if known is not None and known != charter:
            raise Refused(Code.CANNOT_TELL, f"charter {charter.number} was founded by other acceptors: ask for it again")
        if known is None:
            data = encode_charter(charter)
            self._database.execute("INSERT INTO charters VALUES (?, ?, ?)", (charter.number, data, crc32(data)))
            self._learned.append(charter)

    def _known(self, number: int) -> Charter | None:
        """The charter of this number, with those of the running transaction."""
        return self._charters.get(number) or next((c for c in self._learned if c.number == number), None)

    def _prepare(self, number: int, key: str, ballot: Ballot) -> list[Any]:
        if ballot != NO_BALLOT:
            self._check_era(number)
        cell, vote = prepare(self._cell(number, key), ballot)
        self._keep(number, key, cell)
        return [vote.ok, list(vote.promised), list(vote.accepted), None if vote.value is None else list(vote.value)]

    def _accept(self, number: int, key: str, ballot: Ballot, value: Value) -> list[Any]:
        self._check_era(number)
        cell, vote = accept(self._cell(number, key), ballot, value)
        self._keep(number, key, cell)
        return [vote.ok, list(vote.promised)]

    def _check_era(self, number: int) -> None:
        """Rule 5."""
        known = [c for c in (self._charters.newest, *self._learned) if c is not None]
        newest = max(known, key=lambda charter: charter.number, default=None)
        if is_given_up(number, newest):
            raise Refused(Code.DEPOSED, f"charter {number} was given up: a rescue has founded another one")

    def _cell(self, number: int, key: str) -> Cell:
        if not takes_part(self._known(number), self.id):
            raise Refused(Code.CANNOT_TELL, f"this acceptor does not vote under charter {number}: it may be new or emptied")
        row = self._database.execute("SELECT cell, crc FROM cells WHERE charter = ? AND key = ?", (number, key)).fetchone()
        return EMPTY if row is None else _cell_from(self._path, number, key, *row)

    def _keep(self, number: int, key: str, cell: Cell | None) -> None:
        if cell is not None:
            data = msgpack.packb([number, key, *cell], use_bin_type=True)
            self._database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?)", (number, key, data, crc32(data)))


_DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


def _prepare_file(path: Path, database: sqlite3.Connection, cluster: str, fresh_acceptor: str) -> None:
    """Check the file's kind and format; make its tables and the acceptor, durably, when it holds none (rule 2)."""
    ((application,),) = database.execute("PRAGMA application_id").fetchall()
    ((version,),) = database.execute("PRAGMA user_version").fetchall()
    ((tables,),) = database.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if tables and application != _APPLICATION_ID:
        raise _corrupt(path, "it is a database, but no register")
    if version > FORMAT:
        raise NewerFormat(f"{path} has format {version}; this program knows formats up to {FORMAT}: upgrade it")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if not tables:
        database.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute("INSERT INTO acceptor VALUES (?, ?)", (fresh_acceptor, cluster))
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _load(path: Path, database: sqlite3.Connection, cluster: str) -> tuple[str, Charters]:
    """Who it is and which charters it knows; every row is checked."""
    checks = database.execute("PRAGMA quick_check(1)").fetchall()
    if checks != [("ok",)]:
        raise _corrupt(path, str(checks[0][0]))
    rows = database.execute("SELECT id, cluster FROM acceptor").fetchall()
    if len(rows) != 1:
        raise _corrupt(path, f"it names {len(rows)} acceptors")
    if rows[0][1] != cluster:
        raise WrongCluster(f"{path} belongs to cluster {rows[0][1]}, not to {cluster}: give this cluster another directory")
    charters = Charters()
    for number, data, crc in database.execute("SELECT number, charter, crc FROM charters ORDER BY number"):
        charter = decode_charter(data) if crc32(data) == crc else None
        if charter is None or charter.number != number:
            raise _corrupt(path, f"charter {number} fails its check")
        charters.learn(charter)
    for number, key, data, crc in database.execute("SELECT charter, key, cell, crc FROM cells"):
        _cell_from(path, number, key, data, crc)
    return rows[0][0], charters


def _cell_from(path: Path, number: int, key: str, data: bytes, crc: int) -> Cell:
    try:
        if crc32(data) == crc:
            match msgpack.unpackb(data, use_list=True, raw=False):
                case [named, name, promised, accepted, value] if (named, name) == (number, key):
                    return Cell(Ballot(*promised), Ballot(*accepted), None if value is None else Value(*value))
    except (ValueError, TypeError):
        pass
    raise _corrupt(path, f"the cell {key!r} of charter {number} fails its check")


def _corrupt(path: Path, what: str) -> Corrupt:
    return Corrupt(
        f"{path} is damaged: {what}; do not use this store, and keep its directory: move the directory away, "
        "restart the store, and give the register a new charter with it"
    )


def _disk_error(path: Path, error: sqlite3.Error) -> Corrupt | DirectoryUnusable:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _DAMAGE:
        return _corrupt(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return DirectoryUnusable(f"{path} has no space for the register: free some, or give another directory")
    return DirectoryUnusable(f"{path} cannot be used ({error}): make it readable and writable")
