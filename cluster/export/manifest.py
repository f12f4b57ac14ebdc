"""What an export consists of: its files, and which messages each of them holds.

Owns the manifest's shape, the files' names, and the ranges of seqs. It must not know file systems, Parquet or clients. Pure.
Rules:

1. `_trilogue/manifest.json` names every file that counts. Whatever else lies there is the rest of an export that was cut short.
2. A data file has a file of ranges beside it, `_trilogue/….ranges` (an Arrow file): (session, first_seq, last_seq) in the
   order of its rows. So the manifest stays small, however many sessions there are.
3. Files are only added. What a later run finds exported is where the ranges end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from trilogue.actors.protocol.errors import NewerFormat, UsageError
from trilogue.actors.protocol.messages import Run

FORMAT: Final = 1
FOLDER: Final = "_trilogue"
MANIFEST: Final = f"{FOLDER}/manifest.json"
RANGES: Final = pa.schema([("session", pa.string()), ("first_seq", pa.int64()), ("last_seq", pa.int64())])


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file, and where its ranges are; paths are relative to the export."""

    path: str
    ranges: str
    partition: int
    rows: int
    body_bytes: int
    sessions: int
    first_session: str
    last_session: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that counts of an export. `run` is the number of the last run that wrote to it."""

    cluster: str
    partitions: int
    run: int
    files: tuple[DataFile, ...] = ()

    def as_json(self) -> bytes:
        """It, as it is stored."""
        return json.dumps({"trilogue_export": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def of_json(cls, data: bytes, where: str) -> Manifest:
        """The manifest in these bytes. Raises `NewerFormat`, or `UsageError` when they are none."""
        try:
            value: dict[str, Any] = json.loads(data)
            version = value.pop("trilogue_export")
            if version != FORMAT:
                raise NewerFormat(f"{where} is an export of format {version}, this program knows {FORMAT}: upgrade it")
            return cls(**{**value, "files": tuple(DataFile(**one) for one in value["files"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{where} has a {MANIFEST} that is no manifest: {error}; name another directory") from None

    def next_run(self) -> Manifest:
        """It, as the next run begins."""
        return replace(self, run=self.run + 1)

    def with_file(self, file: DataFile) -> Manifest:
        """It, with one file more."""
        return replace(self, files=(*self.files, file))

    def of_partition(self, partition: int) -> list[DataFile]:
        """The partition's files, oldest first."""
        return [file for file in self.files if file.partition == partition]


def data_path(partition: int, run: int, number: int) -> str:
    """The name of the file `number` that a run writes."""
    return f"partition={partition:05d}/part-{run:06d}-{number:05d}.parquet"


def ranges_path(partition: int, run: int, number: int) -> str:
    """The name of its ranges."""
    return f"{FOLDER}/partition-{partition:05d}-{run:06d}-{number:05d}.ranges"


def is_ours(path: str) -> bool:
    """Whether an export may have written a file of this name: then it is a rest if no manifest names it."""
    folder, _, name = path.rpartition("/")
    if folder == FOLDER:
        return name.endswith((".ranges", ".writing"))
    return folder.startswith("partition=") and folder[10:].isdigit() and name.startswith("part-") and name.endswith(".parquet")


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
    """How far each session is exported, asked in the order of the names: Python objects are made of a few at a time."""

    def __init__(self, ranges: Iterable[pa.Table]) -> None:
        whole = pa.concat_tables([RANGES.empty_table(), *ranges])
        ends = whole.group_by("session").aggregate([("last_seq", "max")])
        self._ends = iter(_rows(ends.select(["session", "last_seq_max"]).sort_by("session")))
        self._next = next(self._ends, None)

    def last_seq(self, session: str) -> int:
        """The last seq of it that is exported, 0 if none is. Each name that is asked for is above the one before."""
        while self._next is not None and self._next[0] < session:
            self._next = next(self._ends, None)
        return self._next[1] if self._next is not None and self._next[0] == session else 0


def messages_in(ranges: pa.Table) -> int:
    """How many messages these are."""
    counts = pc.add(pc.subtract(ranges["last_seq"], ranges["first_seq"]), 1)
    return int(pc.sum(counts).as_py() or 0)


def rows_of(ranges: pa.Table) -> Iterator[tuple[str, int, int]]:
    """(session, first_seq, last_seq), one after the other."""
    return _rows(ranges)


def _rows(table: pa.Table) -> Iterator[Any]:
    for batch in table.to_batches(max_chunksize=8_192):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
