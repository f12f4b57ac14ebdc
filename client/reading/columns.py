"""Messages as columns: Arrow arrays built from runs, without an object for each message.

Owns the columns' names and types, and how a run becomes part of them. It must not know where runs come from. Rules:

1. What a run says once (session, sender, where its numbers begin) is repeated by numpy; what it says for each message (bodies,
   times) goes into Arrow as whole lists. No step is a loop over messages in Python.
2. Names are dictionary-encoded: a row has four bytes for each. `Columns.batch` gives all names that were met so far, so the
   batches of one `Columns` made at its end share their dictionaries.
3. Times are microseconds, UTC. One that does not fit 64 bits (a sender's clock may say anything) is the nearest that does.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trilogue.actors.protocol.ids import sender_of
from trilogue.actors.protocol.messages import Run

_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_TIME: Final = pa.timestamp("us", tz="UTC")
SCHEMA: Final = pa.schema(
    [
        pa.field("session", _NAME, nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("sender", _NAME, nullable=False),
        pa.field("sender_id", _NAME, nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("sent_at", _TIME, nullable=False),
        pa.field("stored_at", _TIME, nullable=False),
        pa.field("body", pa.binary(), nullable=False),
    ]
)
"""The columns of a table of messages."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
Ints = NDArray[np.int64]


class Names:
    """Different names in the order in which they were met: a dictionary's values."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self._values: pa.Array | None = None

    def code(self, name: str) -> int:
        """The name's place among them."""
        return self.codes.setdefault(name, len(self.codes))

    @property
    def values(self) -> pa.Array:
        """All of them."""
        if self._values is None or len(self._values) != len(self.codes):
            self._values = pa.array(list(self.codes), pa.string())
        return self._values


class Rows(NamedTuple):
    """Some rows, whose names are numbers still."""

    session: pa.Array
    seq: pa.Array
    sender: pa.Array
    sender_id: pa.Array
    n: pa.Array
    sent_at: pa.Array
    stored_at: pa.Array
    body: pa.Array


class Columns:
    """Takes runs, and gives them as rows, a part at a time."""

    def __init__(self) -> None:
        self._sessions, self._senders, self._sender_ids = Names(), Names(), Names()
        self._begin()

    def _begin(self) -> None:
        self.count = 0  # rows that wait to be cut
        self.size_bytes = 0  # of their bodies
        self._heads: list[int] = []
        self._sent_at_us: list[int] = []
        self._bodies: list[bytes] = []

    @property
    def names(self) -> int:
        """How many different names are remembered."""
        return len(self._sessions.codes) + len(self._sender_ids.codes)

    def take(self, run: Run) -> None:
        """Add the messages of a run."""
        _, session, sender_id, first_n, first_seq, stored_at_us, sent_at_us, bodies = run
        count = len(bodies)
        self._heads += (
            count, self._sessions.code(session), self._senders.code(sender_of(sender_id)), self._sender_ids.code(sender_id),
            first_seq - self.count, first_n - self.count, stored_at_us,
        )  # fmt: skip
        self._sent_at_us += sent_at_us
        self._bodies += bodies
        self.count += count
        self.size_bytes += sum(map(len, bodies))

    def cut(self) -> Rows:
        """What was taken since the last cut, as arrays."""
        heads = np.array(self._heads, np.int64).reshape(-1, 7)
        counts, row = heads[:, 0], np.arange(self.count, dtype=np.int64)

        def each(k: int) -> Ints:
            return np.repeat(heads[:, k], counts)

        rows = Rows(
            session=pa.array(each(1).astype(np.int32)),
            seq=pa.array(each(4) + row),
            sender=pa.array(each(2).astype(np.int32)),
            sender_id=pa.array(each(3).astype(np.int32)),
            n=pa.array(each(5) + row),
            sent_at=pa.array(_as_int64(self._sent_at_us)).view(_TIME),
            stored_at=pa.array(each(6)).view(_TIME),
            body=pa.array(self._bodies, pa.binary()),
        )
        self._begin()
        return rows

    def batch(self, rows: Rows) -> pa.RecordBatch:
        """Rows that `cut` gave, with their names."""
        arrays = rows._replace(
            session=pa.DictionaryArray.from_arrays(rows.session, self._sessions.values),
            sender=pa.DictionaryArray.from_arrays(rows.sender, self._senders.values),
            sender_id=pa.DictionaryArray.from_arrays(rows.sender_id, self._sender_ids.values),
        )
        return pa.RecordBatch.from_arrays(list(arrays), schema=SCHEMA)


def _as_int64(values: list[int]) -> Ints:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([min(max(value, INT64_MIN), INT64_MAX) for value in values], np.int64)
