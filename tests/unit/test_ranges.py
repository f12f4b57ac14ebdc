"""A partition's record: believed whole or not at all, and vouching for closed ranges only."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.ranges import (
    Member,
    PartitionRecord,
    Range,
    decode_record,
    encode_record,
    is_member,
    record_key,
    vouched,
)

A, B, C, D = (Member(f"store-{k}", f"uuid-{k}", 1) for k in range(4))
ABC, ABD = (A, B, C), (A, B, D)
GOOD = PartitionRecord(3, "w", "h:1", (Range(1, ABC), Range(5, ABD), Range(9, ABC)))


@st.composite
def records(draw: Any) -> PartitionRecord:
    firsts = [1, *sorted(draw(st.sets(st.integers(2, 2**40), max_size=4)))]
    members = st.lists(
        st.tuples(st.text(min_size=1), st.text(min_size=1), st.integers(0, 99)),
        min_size=1, max_size=5, unique_by=(lambda m: m[0], lambda m: m[1]),
    )  # fmt: skip
    ranges = tuple(Range(first, tuple(Member(*m) for m in draw(members))) for first in firsts)
    return PartitionRecord(draw(st.integers(0, 2**40)), draw(st.text()), draw(st.text()), ranges)


@given(records())
def test_record_survives_its_bytes(record: PartitionRecord) -> None:
    assert decode_record(encode_record(record)) == record


def test_record_has_a_key_of_its_own() -> None:
    assert record_key(7) == "partition/7"


M = ["store-1", "uuid", 1]


@pytest.mark.parametrize(
    "fields",
    [
        None, [], [1, "w", "a"], [1, "w", "a", []], [-1, "w", "a", [[1, [M]]]], [True, "w", "a", [[1, [M]]]],
        [1, b"w", "a", [[1, [M]]]], [1, "w", "a", [[2, [M]]]], [1, "w", "a", [[1, []]]], [1, "w", "a", [[1, [M, M]]]],
        [1, "w", "a", [[1, [M]], [1, [M]]]], [1, "w", "a", [[1, [M]], [9, [M]], [5, [M]]]], [1, "w", "a", [[True, [M]]]],
        [1, "w", "a", [[1, [["s", "u", -1]]]]], [1, "w", "a", [[1, [["s", "", 1]]]]], [1, "w", "a", [[1, [["s", "u"]]]]],
        [1, "w", "a", [[1, [M]]], "more"], [1, "w", "a", [[1, [["s", "u", True]]]]],
        [1, "w", "a", [[1, [["s", "u", 1], ["s", "v", 1]]]]],
    ],
)  # fmt: skip
def test_record_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_record(msgpack.packb(fields))


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_record(GOOD)[:-1], encode_record(GOOD) + b"\x00", b"\x81\x90\x00"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_record(data)


def test_record_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(ProtocolError):
        encode_record(GOOD._replace(ranges=()))
    with pytest.raises(ProtocolError):
        encode_record(GOOD._replace(ranges=(Range(1, (A, A)),)))


def test_record_vouches_for_closed_ranges_that_name_the_store() -> None:
    assert vouched(GOOD.ranges, *C.identity) == [(1, 4)]
    assert vouched(GOOD.ranges, *D.identity) == [(5, 8)]
    assert vouched(GOOD.ranges[:1], *A.identity) == []


def test_neighbouring_intervals_are_one() -> None:
    assert vouched(GOOD.ranges, *A.identity) == [(1, 8)]


def test_record_vouches_for_nothing_of_another_incarnation() -> None:
    assert vouched(GOOD.ranges, A.store, 2) == []
    assert is_member(A, (A.store, 1))
    assert not is_member(A, (A.store, 2))
    assert not is_member(A, ("another", 1))
