"""Records go round, and nothing that `pack_records` did not make gets in."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.messages import (
    RUN,
    SKIP,
    Message,
    Record,
    Run,
    Skip,
    messages_of,
    pack_records,
    part_of,
    unpack_record,
    unpack_records,
)

SENDER_ID = "alice/" + "0" * 32
COUNT = st.integers(1, 2**63)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    bodies = draw(st.lists(st.binary(max_size=30), min_size=1, max_size=8))
    times = [draw(st.integers(0, 2**63)) for _ in bodies]
    return Run(RUN, draw(TEXT), draw(TEXT), draw(COUNT), draw(COUNT), draw(st.integers(0, 2**63)), times, bodies)


SKIPS = st.builds(Skip, st.just(SKIP), TEXT, TEXT, COUNT, st.integers(0, 2**63))


@given(st.lists(st.one_of(runs(), SKIPS), max_size=6))
def test_records_that_were_packed_unpack_to_the_same(records: list[Record]) -> None:
    assert unpack_records(pack_records(records)) == records
    assert unpack_records(memoryview(pack_records(list(map(tuple, records))))) == records


RUN_ITEMS: list[Any] = [RUN, "s", SENDER_ID, 1, 1, 0, [5], [b"x"]]


@pytest.mark.parametrize(
    "record",
    [
        7,
        [],
        "run",
        [3, "s", SENDER_ID, 1, 0],
        [SKIP, "s", SENDER_ID, 0, 0],
        [SKIP, "s", SENDER_ID, 1],
        [SKIP, b"s", SENDER_ID, 1, 0],
        *([*RUN_ITEMS[:at], wrong, *RUN_ITEMS[at + 1 :]] for at, wrong in [
            (0, 9), (1, b"s"), (2, 5), (3, 0), (3, -1), (3, "1"), (4, 0), (5, None), (6, []), (6, [1, 2]), (7, []),
            (7, [b"x", b"y"]), (7, b"x"),
        ]),
        RUN_ITEMS[:-1],
        [*RUN_ITEMS, 1],
    ],
)  # fmt: skip
def test_record_of_another_shape_is_refused(record: Any) -> None:
    with pytest.raises(ProtocolError, match="unknown shape"):
        unpack_record(record)
    with pytest.raises(ProtocolError):
        unpack_records(msgpack.packb([record]))


@given(st.binary(max_size=60))
def test_any_bytes_are_records_or_a_protocol_error(payload: bytes) -> None:
    try:
        records = unpack_records(payload)
    except ProtocolError:
        return
    assert all(isinstance(record, Run | Skip) for record in records)


def test_cut_payload_is_refused_at_every_byte() -> None:
    payload = pack_records([RUN_ITEMS])
    for size in range(len(payload)):
        with pytest.raises(ProtocolError):
            unpack_records(payload[:size])
    with pytest.raises(ProtocolError, match="not msgpack"):
        unpack_records(payload + b"\x00")


@given(runs(), st.data())
def test_part_of_a_run_holds_the_same_messages_at_the_same_seqs(run: Run, data: st.DataObject) -> None:
    skip = data.draw(st.integers(0, len(run.bodies) - 1))
    count = data.draw(st.integers(1, len(run.bodies) - skip))
    part = part_of(run, run.first_seq + skip, count)
    assert messages_of(part) == messages_of(run)[skip : skip + count]


def test_messages_of_a_run_are_numbered_densely() -> None:
    run = Run(RUN, "room", SENDER_ID, 7, 21, 99, [1, 2], [b"a", b"b"])
    assert messages_of(run) == [
        Message("room", 21, "alice", SENDER_ID, 7, b"a", 1, 99),
        Message("room", 22, "alice", SENDER_ID, 8, b"b", 2, 99),
    ]
    assert messages_of(run)[1].unique_key == "room_22"
