"""The rows of a data file beside those of the stores.

Owns what a file's columns may be, and where two tables differ first. It must not know where either comes from. Pure. Rules:

1. Names and types are checked before any value is looked at. Other software writes the same rows in other ways (names without
   a dictionary, large strings): that is no difference.
2. Whatever a file has in it, the answer is a text: nothing that can be read makes it raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trilogue.client.reading.columns import SCHEMA


class Bounds(NamedTuple):
    """Which of a session's messages the stores have, where these are not all that a range names, and where the range ends."""

    first_seq: int
    last_seq: int
    exported: int


def against(schema: pa.Schema) -> str:
    """What is wrong with a file's columns; nothing if they are those of an export."""
    if schema.names != SCHEMA.names:
        return f"its columns are {', '.join(schema.names)}"
    for name in SCHEMA.names:
        found, wanted = schema.field(name).type, _plain(SCHEMA.field(name).type)
        if _plain(found) != wanted:
            return f"its column {name} is of type {found}, not {wanted}"
    return ""


def as_ours(batch: pa.RecordBatch) -> pa.Table:
    """Rows whose columns were checked, with the types of a table of ours. Raises `pyarrow.lib.ArrowException` for damage."""
    columns = []
    for field in SCHEMA:
        column = batch.column(field.name)
        if pa.types.is_dictionary(field.type) and column.type != field.type:
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            column = column.cast(pa.string()).dictionary_encode()
        elif column.type != field.type:
            column = column.cast(field.type)
        if pa.types.is_dictionary(field.type):
            column.validate(full=True)  # the others' values are looked at by Arrow alone
            column.dictionary.validate(full=True)
        columns.append(column)
    return pa.table(columns, names=SCHEMA.names)  # without the schema: what may not be null in it can be null in a file


def within(rows: pa.Table, bounds: dict[str, Bounds]) -> pa.Table:
    """Those rows that the stores still have."""
    if not bounds or not rows.num_rows:
        return rows
    codes = rows["session"].combine_chunks()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.unify_dictionaries().combine_chunks()
    if isinstance(codes, pa.ChunkedArray):
        codes = pa.concat_arrays(codes.chunks)
    names = codes.dictionary.to_pylist()
    lowest = np.array([bounds[name].first_seq if name in bounds else 0 for name in names] or [0])
    highest = np.array([bounds[name].last_seq if name in bounds else 2**62 for name in names] or [0])
    at, seq = pc.fill_null(codes.indices, 0).to_numpy(), pc.fill_null(rows["seq"], 0).to_numpy()
    return rows.filter(pa.array((seq >= lowest[at]) & (seq <= highest[at])))


def difference(exported: pa.Table, stored: pa.Table) -> str:
    """Where two tables with the types of ours differ first; nothing if they do not."""
    count = min(exported.num_rows, stored.num_rows)
    first, column = count, ""
    for name in SCHEMA.names:
        ours, theirs = _whole(exported[name].slice(0, count)), _whole(stored[name].slice(0, count))
        if not ours.equals(theirs):
            at = pc.index(pc.fill_null(pc.equal(ours, theirs), False), False).as_py()
            if 0 <= at < first:
                first, column = at, name
    if column:
        session, seq = stored["session"][first].as_py(), stored["seq"][first].as_py()
        return f"session {session!r}, seq {seq}: another {column} than in the stores"
    if exported.num_rows > count:
        session, seq = exported["session"][count].as_py(), exported["seq"][count].as_py()
        return f"session {session!r}, seq {seq}: it is not in the stores, and no trim says why"
    return ""


def _plain(kind: Any) -> Any:
    """A type without the ways to write it."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.binary() if pa.types.is_large_binary(kind) else kind


def _whole(column: Any) -> Any:
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole
