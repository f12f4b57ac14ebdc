"""Up to where a log is too old, or too long, is found a little at a time, and what was found once is not looked for again."""

from __future__ import annotations

from array import array
from pathlib import Path
from random import Random

import pytest

from trilogue.actors.protocol.messages import FLOOR, TRIM
from trilogue.actors.store import overdue
from trilogue.actors.store.overdue import Overdue
from trilogue.actors.store.places import _SUMMED_AT_ONCE, FramePlaces
from trimmed_store import FOR_EVER, SMALL, Store, filled, run

FRAMES = 3 * _SUMMED_AT_ONCE + 100
KEEP_ALL = 1 << 62


class Looking:
    """Looks into a store, and counts the frames that are read for it."""

    def __init__(self, store: Store) -> None:
        self.store, self.read = store, list[int]()
        self.overdue = Overdue(store.places, self._frame, SMALL.frame_bytes_max)

    def _frame(self, index: int) -> bytes:
        self.read.append(index)
        return self.store.frame(index)

    def look(self, before_us: int, keep_bytes: int = KEEP_ALL, deadline: float = FOR_EVER) -> int:
        self.read.clear()
        floor = self.store.indexes.of(0).recent.floor
        return self.overdue.upto(floor, self.store.places.last_index, before_us, keep_bytes, deadline)


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    """A hundred frames of "s" that are trimmed, and thin, behind them thirty of "t"."""
    store = Store(tmp_path / "store")
    for k in range(100):
        store.append(run("s", 4 * k + 1))
    store.append((TRIM, "s", 401, 6))
    for k in range(70):
        store.append(run("t", 4 * k + 1, at_us=20))
    store.thin()
    return Looking(store)


def places_of(sizes: list[int]) -> FramePlaces:
    places = FramePlaces()
    places.take_run(1, 1, array("Q", [8 * k for k in range(len(sizes))]), array("I", sizes))
    return places


def before_last_slowly(sizes: list[int], upto: int, floor: int, bytes_max: int) -> int:
    while upto > floor:
        bytes_max -= sizes[upto - 1]
        if bytes_max < 0:
            break
        upto -= 1
    return upto


def test_frames_behind_which_so_many_bytes_lie_are_found_however_often_they_are_asked_for_and_move() -> None:
    random = Random(1)
    sizes = [8 * random.randint(10, 100) for _ in range(FRAMES)]
    places = places_of(sizes)
    for _ in range(300):
        upto = random.randint(1, FRAMES)
        floor, bytes_max = random.randint(0, upto), random.randint(0, sum(sizes))
        assert places.before_last(upto, floor, bytes_max) == before_last_slowly(sizes, upto, floor, bytes_max)
        index = random.randint(1, FRAMES)
        old = places.at(index)
        assert old is not None
        sizes[index - 1] = 8 * random.randint(10, 100)
        [ready] = places.ready(1, [(index, old.offset, old.offset, sizes[index - 1])])
        places.move(ready)


def test_a_place_is_not_waited_for_while_a_long_log_is_looked_through() -> None:
    """Seen: 0.45 s for a million frames, for which acks stood still."""
    places = places_of([80] * FRAMES)
    looked = 0

    def goes_on() -> bool:
        nonlocal looked
        looked += 1
        return not places._lock.locked()

    assert places.before_last(FRAMES, 0, KEEP_ALL, goes_on) == 0
    assert looked >= FRAMES // _SUMMED_AT_ONCE


def test_a_log_that_cannot_be_too_long_is_not_looked_through(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FramePlaces, "before_last")
    assert looking.look(1) == 0


def test_frames_without_messages_are_read_once(looking: Looking) -> None:
    """Seen: each look read all frames down to the floor that had been trimmed by hand."""
    assert looking.look(7) == 0
    assert len(looking.read) > 100
    assert looking.look(7) == 0
    assert len(looking.read) < 12, "those by which the age is found, half of what is left each"
    store = looking.store
    store.append(run("t", 281, at_us=30))
    assert looking.look(21) == 171
    assert len(looking.read) < 12
    store.append((FLOOR, 171, 31))
    store.catch_up()
    assert looking.look(21) == 171


def test_a_look_goes_on_where_the_one_before_had_to_end(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 1
        return now

    monkeypatch.setattr(overdue, "monotonic", monotonic)
    looks, read = 0, set[int]()
    while looking.overdue._nothing[0] > 0 or not looks:
        assert looking.look(7, deadline=now + 10) == 0
        read |= set(looking.read)
        looks += 1
        assert looks < 20
    assert looks >= 10
    assert read >= {*range(1, 102)}


def test_the_last_frame_behind_which_too_much_lies_is_found_in_a_store(tmp_path: Path) -> None:
    looking = Looking(filled(tmp_path / "store"))
    last = looking.store.places.last_index
    size = looking.store.places.at(last)
    assert size is not None
    assert looking.look(0, 50 * size.size) == pytest.approx(last - 50, abs=1)
    assert looking.look(0, 50 * size.size, deadline=0.0) == 0, "it is not known in time"
