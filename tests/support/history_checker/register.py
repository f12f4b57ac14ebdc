"""What the register says, in the end: a second reader of the acceptors' files, written from their description alone.

Owns that reading. It imports nothing of trilogue, and never writes. The layout (design §7): each store has a `register.db`, an
SQLite file with `acceptor (id, cluster)`, `charters (number, charter, crc)` and `cells (charter, key, cell, crc)`, where

    charter  msgpack [number, {store: acceptor id}]
    cell     msgpack [charter, key, promised, accepted, value or nil]; a ballot is [n, proposer], a value [version, data, moved]

The key `partition/<p>` holds msgpack [epoch, writer, address, [[first, [[name, store, incarnation] …]] …]]: which stores hold
which part of the partition's log. In force is what the highest ballot of a majority of the newest charter's acceptors says.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

KEY = "partition/"


class Said(NamedTuple):
    """The frames from `first` up to the next one's `first` are on every one of `members`: (store, incarnation) by name."""

    first: int
    members: dict[str, tuple[str, int]]


class Ensembles(NamedTuple):
    """What the record of one partition says."""

    epoch: int
    ranges: tuple[Said, ...]

    def of(self, index: int) -> Said:
        """The range of the frame at `index`."""
        return next(said for said in reversed(self.ranges) if said.first <= index)


class Register(NamedTuple):
    """What was read. `problems`: what must not be."""

    charter: int
    acceptors: dict[str, str]
    partitions: dict[int, Ensembles]
    problems: list[str]


class _Acceptor(NamedTuple):
    """One file."""

    own_id: str
    charters: dict[int, dict[str, str]]
    cells: dict[tuple[int, str], Any]


def read_register(directories: Sequence[Path]) -> Register:
    """What the acceptors in these stores' directories say."""
    problems: list[str] = []
    acceptors = {}
    for directory in directories:
        if (path := directory / "register.db").exists():
            acceptors[directory.name] = _read(path, problems)
    number = max((number for one in acceptors.values() for number in one.charters), default=0)
    charter = next((one.charters[number] for one in acceptors.values() if number in one.charters), {})
    voters = [one for one in acceptors.values() if one.own_id in charter.values()]
    if charter and 2 * len(voters) <= len(charter):
        problems.append(f"{len(voters)} of the {len(charter)} acceptors of charter {number} are there: no majority")
    keys = {key for one in acceptors.values() for _, key in one.cells if key.startswith(KEY)}
    partitions = {int(key.removeprefix(KEY)): said for key in keys if (said := _in_force(key, number, acceptors.values()))}
    return Register(number, charter, partitions, problems)


def _read(path: Path, problems: list[str]) -> _Acceptor:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as database:
        [(own_id,)] = database.execute("SELECT id FROM acceptor").fetchall()
        charters = database.execute("SELECT charter, crc FROM charters").fetchall()
        cells = database.execute("SELECT cell, crc FROM cells").fetchall()
    problems += [f"{path}: a row fails its CRC" for data, crc in (*charters, *cells) if crc32(data) != crc]
    found = [msgpack.unpackb(data, raw=False) for data, _ in cells]
    return _Acceptor(
        own_id,
        dict(msgpack.unpackb(data, raw=False) for data, _ in charters),
        {(charter, key): (accepted, value) for charter, key, _, accepted, value in found if value is not None},
    )


def _in_force(key: str, newest: int, acceptors: Iterable[_Acceptor]) -> Ensembles | None:
    """The value of the highest ballot under the newest charter that has one: one that was moved stands under the next, too."""
    for number in range(newest, 0, -1):
        votes = [one.cells[number, key] for one in acceptors if (number, key) in one.cells]
        if votes:
            _, (_, data, _) = max(votes, key=lambda vote: vote[0])
            if not data:
                return None
            epoch, _, _, ranges = msgpack.unpackb(data, raw=False)
            return Ensembles(
                epoch,
                tuple(
                    Said(first, {name: (store, incarnation) for name, store, incarnation in members})
                    for first, members in ranges
                ),
            )
    return None
