"""Which messages files hold: ranges of seqs, beside each data file and over all of them.

Owns what follows from ranges: how far a session is exported, what comes twice, what was left out. It must not know file
systems, Parquet or clients. Pure. Rules:

1. A file's ranges, (session, first_seq, last_seq), are in the order of its rows.
2. What is walked goes in the order of the sessions' names, and makes Python objects of a few ranges at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from trilogue.actors.protocol.messages import Run

RANGES: Final = pa.schema([("session", pa.string()), ("first_seq", pa.int64()), ("last_seq", pa.int64())])


class Ranges:
    """The ranges of the messages that pass by, in their order."""

    def __init__(self) -> None:
        self._sessions: list[str] = []
        self._first_seqs: list[int] = []
        self._last_seqs: list[int] = []
        self.sessions = 0  # different ones

    def take(self, runs: Iterable[Run]) -> None:
        """These follow."""
        sessions, first_seqs, last_seqs = self._sessions, self._first_seqs, self._last_seqs
        for run in runs:
            last = run.first_seq + len(run.bodies) - 1
            if sessions and sessions[-1] == run.session:
                if last_seqs[-1] == run.first_seq - 1:
                    last_seqs[-1] = last
                    continue
            else:
                self.sessions += 1
            sessions.append(run.session)
            first_seqs.append(run.first_seq)
            last_seqs.append(last)

    @property
    def table(self) -> pa.Table:
        """All of them."""
        return pa.table([self._sessions, self._first_seqs, self._last_seqs], schema=RANGES)


class Exported:
    """How far each session is exported, asked in the order of the names."""

    def __init__(self, ranges: Iterable[pa.Table]) -> None:
        whole = pa.concat_tables([RANGES.empty_table(), *ranges])
        ends = whole.group_by("session").aggregate([("last_seq", "max")])
        self._ends = iter(rows_of(ends.select(["session", "last_seq_max"]).sort_by("session")))
        self._next = next(self._ends, None)

    def last_seq(self, session: str) -> int:
        """The last seq of it that is exported, 0 if none is. Each name that is asked for is above the one before."""
        while self._next is not None and self._next[0] < session:
            self._next = next(self._ends, None)
        return self._next[1] if self._next is not None and self._next[0] == session else 0


class Coverage(NamedTuple):
    """What several files have of a session."""

    session: str
    last_seq: int
    holes: list[tuple[int, int]]  # from 1 on: first and last seq of each that no file has
    twice: int  # the first seq that several have, 0 if none has


def coverage(ranges: Iterable[pa.Table]) -> Iterator[Coverage]:
    """Each session of these files, in the order of the names."""
    whole = pa.concat_tables([RANGES.empty_table(), *ranges])
    rows = whole.sort_by([("session", "ascending"), ("first_seq", "ascending")])
    for session, stretches in groupby(rows_of(rows), itemgetter(0)):
        last_seq, holes, twice = 0, list[tuple[int, int]](), 0
        for _, first, last in stretches:
            if first > last_seq + 1:
                holes.append((last_seq + 1, first - 1))
            elif first <= last_seq:
                twice = twice or first
            last_seq = max(last_seq, last)
        yield Coverage(session, last_seq, holes, twice)


def messages_in(ranges: pa.Table) -> int:
    """How many messages these are."""
    counts = pc.add(pc.subtract(ranges["last_seq"], ranges["first_seq"]), 1)
    return int(pc.sum(counts).as_py() or 0)


def rows_of(table: pa.Table) -> Iterator[Any]:
    """(session, first_seq, last_seq), one after the other; or what the table's columns are."""
    for batch in table.to_batches(max_chunksize=8_192):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
