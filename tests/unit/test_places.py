"""Where frames lie, when their file is written anew: they move, a whole row at once, and others stay."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from trilogue.actors.journal import Position
from trilogue.actors.store.places import _MOVED_AT_ONCE, FramePlaces

FRAMES = 3 * _MOVED_AT_ONCE + 10
Moved = tuple[int, int, int, int]


def places(base: int = 1) -> FramePlaces:
    """Frames of 80 bytes, one behind the other in file 1; those below `base` were filled in."""
    made = FramePlaces()
    if base > 1:
        made.join(base, [], base)
    made.take_run(base, 1, array("Q", [80 * k for k in range(base, FRAMES + 1)]), array("I", [80] * (FRAMES + 1 - base)))
    for index in range(base - 1, 0, -1):
        made.fill(index, Position(1, 80 * index, 80), index)
    assert [made.at(index) for index in (1, FRAMES)] == [Position(1, 80, 80), Position(1, 80 * FRAMES, 80)]
    return made


def move(made: FramePlaces, moves: list[Moved]) -> list[Position | None]:
    for ready in list(made.ready(1, moves)):
        made.move(ready)
    return [made.at(index) for index in range(1, FRAMES + 1)]


@pytest.mark.parametrize("base", [1, 2000])
@pytest.mark.parametrize("order", ["a row", "with gaps", "twice", "backwards"])
def test_frames_lie_where_their_file_was_written_anew_and_others_where_they_did(base: int, order: str) -> None:
    moves: list[Moved] = [(index, 80 * index, 40 * index, 40) for index in range(5, FRAMES - 5)]
    if order == "with gaps":
        moves = Random(1).sample(moves, len(moves) // 2)
    elif order == "twice":  # a frame that was superseded lies in the file, too
        moves = [one for index, old, new, size in moves for one in ((index, old + 8, new + 8, size), (index, old, new, size))]
    elif order == "backwards":
        moves = moves[::-1]
    moved = {index for index, *_ in moves}
    assert move(places(base), moves) == [
        Position(1, 40 * index, 40) if index in moved else Position(1, 80 * index, 80) for index in range(1, FRAMES + 1)
    ]


def test_a_frame_that_lies_elsewhere_by_now_stays_there_and_the_row_around_it_moves() -> None:
    made = places()
    move(made, [(100, 8000, 8, 16)])
    found = move(made, [(index, 80 * index, 40 * index, 40) for index in range(1, FRAMES + 1)])
    assert found[99] == Position(1, 8, 16)
    assert found[98:101:2] == [Position(1, 40 * 99, 40), Position(1, 40 * 101, 40)]


def test_frames_that_are_not_held_move_nothing() -> None:
    made = places()
    before = move(made, [])
    assert move(made, [(index, 80 * index, 40, 40) for index in range(FRAMES + 1, FRAMES + 5)]) == before
