"""Numbers that were given up enter the outbox's file with their message or later, and leave it when they are settled (G10)."""

from __future__ import annotations

from trilogue.actors.protocol.errors import OutboxUnusable, TrilogueError
from trilogue.client.outbox.given_up import GivenUpNumbers
from trilogue.client.sending.lanes import Lane

ID, OTHER = "0" * 32, "1" * 32


def lane_of(messages: int, saved: int) -> Lane:
    lane = Lane("room", "ann", ID)
    lane.bodies = [b"x"] * messages
    lane.saved = saved
    return lane


def test_a_number_is_never_written_before_its_message_is_g10() -> None:
    told: list[TrilogueError | None] = []
    numbers, lane = GivenUpNumbers(), lane_of(messages=5, saved=1)
    for n in (1, 3, 5):
        numbers.add(lane, n, told.append)
    assert numbers.take({lane: 1}) == (("room", "ann", ID, 1),)
    assert not told
    numbers.committed(None)
    assert told == [None]
    lane.saved = 2
    assert numbers.take({}) == ()
    assert numbers.take({lane: 3}) == (("room", "ann", ID, 3), ("room", "ann", ID, 5))
    numbers.committed(None)
    assert told == [None] * 3
    assert not numbers.due


def test_a_disk_that_fails_is_told_to_all_who_wait() -> None:
    told: list[TrilogueError | None] = []
    numbers, lane = GivenUpNumbers(), lane_of(messages=2, saved=1)
    numbers.add(lane, 1, told.append)
    numbers.add(lane, 2, told.append)
    numbers.take({})
    failure = OutboxUnusable("its disk failed")
    numbers.committed(failure)
    assert told == [failure, failure]


def test_what_is_settled_leaves_the_file_with_the_row_that_says_so() -> None:
    numbers = GivenUpNumbers()
    numbers.found([("room", "ann", ID, 3), ("room", "ann", ID, 7), ("room", "bob", ID, 1)])
    assert numbers.settled([("room", "ann", ID, 5, 0), ("room", "ann", OTHER, 9, 0)]) == (("room", "ann", ID, 5),)
    assert numbers.settled([("room", "ann", ID, 8, 0)]) == (("room", "ann", ID, 8),)
    assert numbers.settled([("room", "ann", ID, 9, 0)]) == ()


def test_a_lane_that_is_numbered_anew_keeps_what_was_given_up() -> None:
    told: list[TrilogueError | None] = []
    numbers, lane = GivenUpNumbers(), lane_of(messages=3, saved=0)
    lane.first_n = 5
    numbers.add(lane, 6, told.append)
    lane.rename(OTHER)
    lane.number_anew()
    assert numbers.take({lane: 3}) == (("room", "ann", OTHER, 2),)
