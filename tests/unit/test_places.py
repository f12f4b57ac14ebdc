"""Where frames lie is kept in a few bytes each, and comes out as it went in."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.journal import Position
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.store.places import IN_FILES, IN_LOGS, FramePlaces

TIB = 1 << 40
SIZES = st.integers(1, (1 << 32) - 1).map(lambda n: n * 8)


def read_back(offset_bits: int, position: Position) -> list[Position | None]:
    """By each way in."""
    taken, run, filled, moved = (FramePlaces(offset_bits) for _ in range(4))
    taken.take(1, position)
    run.take_run(1, position.file, array("Q", [position.offset]), array("Q", [position.size]))
    filled.join(9, [], 9)
    filled.fill(3, position, 9)
    moved.take(1, position._replace(offset=0))
    moved.move(position.file, [(1, 0, position.offset, position.size)])
    return [taken.at(1), run.at(1), filled.at(3), moved.at(1)]


@given(st.integers(0, PARTITIONS_MAX - 1), st.integers(0, (1 << 53) - 1), SIZES)
def test_a_place_in_a_log_of_up_to_2_to_the_56_bytes_comes_out_as_it_went_in(log: int, offset: int, size: int) -> None:
    position = Position(log, offset * 8, size)
    assert read_back(IN_LOGS, position) == [position] * 4


@given(st.integers(0, (1 << 28) - 1), st.integers(0, (1 << 36) - 1), SIZES)
def test_a_place_in_one_of_many_files_comes_out_as_it_went_in(file: int, offset: int, size: int) -> None:
    position = Position(file, offset * 8, size)
    assert read_back(IN_FILES, position) == [position] * 4


@pytest.mark.parametrize(
    ("offset_bits", "position"),
    [
        (IN_FILES, Position(0, TIB // 2, 72)),  # it was taken for the first byte of file 1
        (IN_FILES, Position(1 << 28, 0, 72)),
        (IN_LOGS, Position(0, 1 << 56, 72)),
        (IN_LOGS, Position(1 << 11, 0, 72)),
        (IN_LOGS, Position(0, 4, 72)),
        (IN_LOGS, Position(0, 0, 76)),
        (IN_LOGS, Position(0, 0, 1 << 35)),
        (IN_LOGS, Position(0, -8, 72)),
    ],
)
def test_a_place_that_does_not_fit_is_refused_and_never_taken_for_another(offset_bits: int, position: Position) -> None:
    places = FramePlaces(offset_bits)
    with pytest.raises(InvariantBroken, match="has no place"):
        places.take(1, position)
    assert places.at(1) is None
    if min(position) >= 0:
        with pytest.raises(InvariantBroken, match="has no place"):
            places.take_run(1, position.file, array("Q", [position.offset]), array("Q", [position.size]))
