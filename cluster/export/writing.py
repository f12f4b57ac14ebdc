"""Runs into Parquet files: row groups of a bounded size, sorted by session and seq.

Owns how the files look inside. It must not know where runs come from, nor which of them are new. Rules:

1. Rows lie in the order in which they are taken: by session, then by seq. Each row group has least and greatest values of
   session, seq, n, sender and the times, and a page index, so that a reader skips what it does not need.
2. zstd at its lowest level: every reader knows it, it makes chat text a third smaller than snappy does, and costs no more than
   the rest of the writing. Names are dictionary-encoded, numbers and times as differences; bodies are neither.
3. What waits to be written is at most a row group, of about `GROUP_BYTES` of bodies.
"""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trilogue.actors.protocol.errors import counted
from trilogue.actors.protocol.messages import Run
from trilogue.client.reading.columns import SCHEMA, Columns, Rows
from trilogue.cluster.export.manifest import DataFile, Manifest, data_path, ranges_path
from trilogue.cluster.export.ranges import RANGES, Ranges, messages_in
from trilogue.cluster.export.target import Target

GROUP_BYTES: Final = 16 * 1024 * 1024
GROUP_ROWS: Final = 128 * 1024
FILE_BYTES: Final = 256 * 1024 * 1024
FILE_ROWS: Final = 2 * 1024 * 1024
_NAMES: Final = ["session", "sender", "sender_id"]
_NUMBERS: Final = ["seq", "n", "sent_at", "stored_at"]


class Group:
    """Runs that become one row group."""

    def __init__(self) -> None:
        self._columns = Columns()
        self._parts: list[Rows] = []
        self.rows = 0
        self.body_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it is as large as a row group may be."""
        return self.rows >= GROUP_ROWS or self.body_bytes >= GROUP_BYTES

    def take(self, runs: list[Run]) -> None:
        """These follow."""
        for run in runs:
            self._columns.take(run)
        self.rows += self._columns.count
        part = self._columns.cut()
        self._parts.append(part)
        self.body_bytes += part.body.nbytes

    def table(self) -> pa.Table:
        """All of it."""
        return pa.Table.from_batches([self._columns.batch(part) for part in self._parts], SCHEMA)


class FileWriter:
    """One data file and its ranges. Neither is there before `close`; `write` and `close` block, `note` does not."""

    def __init__(self, target: Target, manifest: Manifest, partition: int, number: int) -> None:
        self._target, self._partition = target, partition
        names = (partition, manifest.run, manifest.run_id, number)
        self._path, self._ranges_path = data_path(*names), ranges_path(*names)
        self._stack = ExitStack()
        self._ranges = Ranges()
        self._first_session = self._last_session = ""
        self._parquet: Any = None
        self.rows = 0
        self.body_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the next row group belongs into another file."""
        return self.rows >= FILE_ROWS or self.body_bytes >= FILE_BYTES

    def note(self, runs: list[Run]) -> None:
        """These runs are in it, or in the next group that is written."""
        self._first_session = self._first_session or runs[0].session
        self._last_session = runs[-1].session
        self._ranges.take(runs)

    def count(self, group: Group) -> None:
        """This group is the next to be written."""
        self.rows += group.rows
        self.body_bytes += group.body_bytes

    def write(self, group: Group) -> None:
        """Add a row group that was counted."""
        if self._parquet is None:
            self._parquet = _parquet(self._stack.enter_context(self._target.writing(self._path)))
        self._parquet.write_table(group.table(), row_group_size=group.rows)

    def close(self) -> DataFile:
        """Give the file its name, then its ranges theirs; what the manifest is to say of it."""
        self._parquet.close()
        self._stack.close()
        table = self._ranges.table
        with self._target.writing(self._ranges_path) as stream:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(stream, table.schema, options=options) as file:
                file.write_table(table, max_chunksize=64 * 1024)
        return DataFile(
            self._path, self._ranges_path, self._partition, self.rows, self.body_bytes, self._ranges.sessions,
            self._first_session, self._last_session,
        )  # fmt: skip

    def give_up(self, error: BaseException) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(Exception):
            if self._parquet is not None:
                self._parquet.close()
        with contextlib.suppress(type(error)):
            self._stack.__exit__(type(error), error, error.__traceback__)


def read_ranges(target: Target, file: DataFile) -> pa.Table:
    """The ranges of a data file. Raises `FileNotFoundError`, or `pyarrow.ArrowInvalid` when they are damaged."""
    with target.open_input(file.ranges) as stream:
        try:
            ranges = pa.ipc.open_file(stream).read_all()
            ranges.validate(full=True)
        except pa.lib.ArrowException as error:
            raise pa.ArrowInvalid(str(error)) from None
    if not ranges.schema.equals(RANGES) or any(column.null_count for column in ranges.columns):
        raise pa.ArrowInvalid("it has no ranges")
    if (messages := messages_in(ranges)) != file.rows:
        raise pa.ArrowInvalid(f"its ranges name {counted(messages, 'message')}, the manifest {file.rows}")
    return ranges


def _parquet(stream: Any) -> Any:
    sorting = [pq.SortingColumn(SCHEMA.get_field_index(name)) for name in ("session", "seq")]
    return pq.ParquetWriter(
        stream,
        SCHEMA,
        compression="zstd",
        compression_level=1,
        use_dictionary=_NAMES,
        column_encoding=dict.fromkeys(_NUMBERS, "DELTA_BINARY_PACKED"),
        write_statistics=[*_NAMES, *_NUMBERS],
        write_page_index=True,
        sorting_columns=sorting,
    )
