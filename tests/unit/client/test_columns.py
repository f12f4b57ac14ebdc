"""Runs as columns: what a table says is what the messages say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.messages import RUN, Message, Run, messages_of
from trilogue.client.reading.columns import INT64_MAX, SCHEMA, Columns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RUNS = st.lists(
    st.builds(
        lambda session, sender, first, stored, rows: Run(
            RUN, session, f"{sender}/{'0' * 32}", *first, stored, [sent for sent, _ in rows], [body for _, body in rows]
        ),
        st.sampled_from(("s", "ü", "t" * 255)),
        st.sampled_from(("ann", "bob/x", "")),
        st.tuples(st.integers(1, 2**61), st.integers(1, 2**61)),
        st.integers(0, 2**50),
        st.lists(st.tuples(st.integers(-(2**50), 2**50), st.binary(max_size=5)), min_size=1, max_size=4),
    ),
    max_size=8,
)


def row_of(message: Message) -> dict[str, Any]:
    row = message._asdict()
    for name in ("sent_at", "stored_at"):
        row[name] = EPOCH + timedelta(microseconds=row.pop(f"{name}_us"))
    return {name: row[name] for name in SCHEMA.names}


@given(RUNS, st.integers(1, 4))
def test_table_says_what_the_messages_say_however_it_is_cut(runs: list[Run], runs_each: int) -> None:
    columns, parts = Columns(), []
    for at in range(0, len(runs), runs_each):
        for run in runs[at : at + runs_each]:
            columns.take(run)
        parts.append(columns.cut())
    table = pa.Table.from_batches([columns.batch(part) for part in parts], SCHEMA)
    assert table.schema == SCHEMA
    assert table.to_pylist() == [row_of(message) for run in runs for message in messages_of(run)]


def test_a_table_of_nothing_has_its_columns() -> None:
    batch = Columns().batch(Columns().cut())
    assert batch.schema == SCHEMA
    assert batch.num_rows == 0


def test_a_time_that_no_timestamp_can_say_is_the_nearest_one() -> None:
    columns = Columns()
    columns.take(Run(RUN, "s", f"ann/{'0' * 32}", 1, 1, 7, [2**64 - 1, 5], [b"", b""]))
    batch = columns.batch(columns.cut())
    assert batch["sent_at"].cast(pa.int64()).to_pylist() == [INT64_MAX, 5]
