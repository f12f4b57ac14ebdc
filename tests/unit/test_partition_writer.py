"""One writer from the order to its end: which machine has the word, and what all of them do together (design §6)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_log import LIMITS, A, B, C, D, Desk, E, chain, damaged, emptied
from small_world import Seat, World
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.ranges import Member, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    AskJoin,
    Backfill,
    Committed,
    CompareAndSet,
    Ended,
    Fenced,
    Idle,
    NotStored,
    StoreUp,
)
from trilogue.actors.protocol.takeover import Fetch, ReadRecord
from trilogue.actors.protocol.vocabulary import Code
from trilogue.actors.protocol.writer import Inspect

STRICT = Wish(3, 3, tuple(member.name for member in (A, B, C, D, E)))
REDUCED = STRICT._replace(min_copies=2)


def world_of(*members: Member, wish: Wish = STRICT, limits: Limits = LIMITS, **logs: list[bytes]) -> World:
    """Stores with nothing on their disks, or with `logs` (by the store's letter) of a writer of epoch 1."""
    return World(
        [Desk(member, logs.get(member.name[-1], ()), epoch=1 if logs else 0) for member in members], wish=wish, limits=limits
    )


def opened(world: World) -> Seat:
    """A writer that has nothing in its way."""
    seat = world.writer()
    world.calm(50)
    assert (seat.machine.why_waiting, seat.ended) == (("", []), "")
    return seat


def write(seat: Seat, *salts: bytes) -> None:
    """Frames that are committed, one after the other."""
    for salt in salts:
        seat.propose(salt)
        seat.world.calm(1)


def ranges(seat: Seat) -> list[tuple[int, str]]:
    """The record in the register, in letters."""
    _, record = seat.world.register
    assert record is not None
    return [(one.first, "".join(sorted(member.name[-1] for member in one.members))) for one in record.ranges]


def found(seat: Seat, kind: type[Any]) -> list[Any]:
    return [effect for effect in seat.effects if isinstance(effect, kind)]


# ---------------------------------------------------------------------- from one machine to the next


def test_first_question_is_what_the_register_says() -> None:
    seat = world_of(A, B, C).writer()
    assert isinstance(seat.effects[0], ReadRecord)
    assert seat.machine.epoch == 0
    assert seat.machine.log is None


def test_partition_without_a_record_is_founded_and_open_G11() -> None:
    world = world_of(A, B, C, D)
    seat = opened(world)
    assert ranges(seat) == [(1, "abc")]
    assert {effect.store for effect in found(seat, Inspect)} == {A.key, B.key, C.key}
    assert (seat.machine.epoch, seat.machine.writer, seat.recovered) == (1, "writer-1", [0])
    write(seat, b"1", b"2")
    assert world.acked.keys() >= {1, 2}


def test_founding_goes_on_when_a_store_comes_later() -> None:
    world = world_of(A, B, C)
    seat = world.writer()
    seat.disconnect(C.name)
    while steps := world.steps():
        steps[0]()
    assert seat.machine.why_waiting == ("asking the stores", [C.name])
    world.calm(5)
    assert seat.machine.why_waiting == ("", [])


def test_data_of_the_first_version_gets_a_record_and_goes_on_G2() -> None:
    log = chain(1, 1, 1, 1)
    world = world_of(A, B, C, D, a=log, b=log[:3], c=[])
    seat = opened(world)
    assert (seat.recovered, seat.machine.epoch, ranges(seat)) == ([4], 2, [(1, "abc")])
    write(seat, b"x")
    assert all(world.desks[member.name].read(1, 4) == log for member in (A, B, C))


def test_partition_with_a_record_is_taken_over_at_its_end_G2() -> None:
    world = world_of(A, B, C)
    first = opened(world)
    write(first, b"1", b"2", b"3")
    acked = dict(world.acked)
    first.leave()
    second = opened(world)
    assert second.machine.epoch == 2
    assert second.recovered[0] >= max(acked)
    assert found(second, Inspect) == []
    write(second, b"4")
    assert acked.items() < world.acked.items()


def test_members_that_the_takeover_has_fenced_are_not_fenced_twice() -> None:
    world = world_of(A, B, C)
    opened(world).leave()
    second = opened(world)
    assert sorted(effect.store for effect in found(second, AskFence)) == [A.key, B.key, C.key]


def test_member_that_comes_after_the_tail_was_chosen_is_fenced_by_the_log_writer() -> None:
    world = world_of(A, B, C)
    opened(world).leave()
    second = world.writer()
    second.disconnect(C.name)
    while second.machine.log is None:
        second.tick()
        while steps := world.steps():
            steps[0]()
    assert second.machine.why_waiting == ("waiting for a store to take a lost one's place", [C.name])
    assert second.recovered == [], "what the tail holds may not be committed yet"
    world.calm(3)
    assert second.machine.why_waiting == ("", [])


def test_spare_does_not_push_a_living_writer_out() -> None:
    world = world_of(A, B, C)
    first = opened(world)
    second = world.writer()
    world.calm(50)
    assert (second.ended, first.ended) == ("its writer is alive", "")
    write(first, b"1")


def test_nothing_is_heard_from_a_writer_that_ended_G9() -> None:
    world = world_of(A, B, C)
    seat = opened(world)
    assert seat.machine.handle(NotStored(A.key, 1, Code.DEPOSED, "epoch 2 does")) == [
        Ended(f"{A.key} refuses epoch 1: epoch 2 does")
    ]
    assert seat.machine.handle(StoreUp(D)) == seat.machine.handle(Idle()) == []
    assert seat.machine.check_recovered() == []


def test_writer_that_was_deposed_gets_nothing_acked_that_its_successor_lacks_G9() -> None:
    """It was paused with a frame under way, and goes on as if nothing had been."""
    world = world_of(A, B, C)
    first = opened(world)
    write(first, b"1")
    first.propose(b"paused")
    first.paused = True
    second = opened(world)
    write(second, b"2")
    assert not second.ended
    first.paused = False
    world.calm(5)
    assert "refuses epoch 1" in first.ended
    assert first.committed < second.committed


def test_two_writers_that_found_the_same_partition_leave_one_G9() -> None:
    world = world_of(A, B, C)
    first, second = world.writer(), world.writer()
    world.calm(20)
    assert [bool(first.ended), bool(second.ended)].count(True) >= 1
    last = first if not first.ended else second if not second.ended else opened(world)
    write(last, b"1")


# ---------------------------------------------------------------------- recovered: once, and only then


def test_recovered_is_said_exactly_once() -> None:
    world = world_of(A, B, C, D)
    seat = opened(world)
    write(seat, b"1")
    world.restarted(B.name, Desk(emptied(B)))
    world.calm(100)
    write(seat, b"2")
    assert seat.recovered == [0]


def test_recovered_waits_until_all_that_was_taken_over_is_committed_G2() -> None:
    world = world_of(A, B, C)
    first = opened(world)
    committed = first.committed
    first.propose(b"half")
    first.deliver(A.name)
    first.leave()
    second = world.writer()
    second.disconnect(C.name)
    for _ in range(100):
        second.tick()
        while steps := world.steps():
            steps[0]()
    assert second.machine.log is not None
    assert (second.machine.log.committed, second.machine.log.open_at) == (committed, committed + 1)
    assert second.recovered == []
    world.calm(3)
    assert second.recovered == [committed + 1]


def test_recovered_waits_until_a_member_holds_the_whole_log_G3() -> None:
    """Who is still being filled answers "no such session", and seq would start at 1 again."""
    world = world_of(A, B, C, D, wish=Wish(1, 1, STRICT.order))
    first = opened(world)
    write(first, b"1", b"2")
    first.feed(NotStored(A.key, 1, Code.FULL, "no room"))
    while first.asked or first.outcomes or any(link.out or link.back for link in first.links.values()):
        next(step for step in world.steps() if step != first.copy)()
    write_range = ranges(first)
    assert [letters for _, letters in write_range] == ["a", "b"]
    first.leave()
    second = world.writer()
    for _ in range(20):
        second.tick()
        while steps := [step for step in world.steps() if step != second.copy]:
            steps[0]()
    assert second.recovered == []
    assert second.machine.why_waiting == ("copying what its stores lack", [])
    assert len(second.fills) == 1
    world.calm(3)
    assert len(second.recovered) == 1


# ---------------------------------------------------------------------- replacing, filling, merging


@pytest.mark.parametrize("lost", ["emptied", "gone"])
def test_lost_store_is_replaced_and_filled_until_one_range_is_left_G11(lost: str) -> None:
    world = world_of(A, B, C, D)
    seat = opened(world)
    write(seat, b"1", b"2", b"3")
    if lost == "gone":
        seat.disconnect(C.name)
        del world.desks[C.name]
    else:
        world.restarted(C.name, Desk(emptied(C)))
    world.calm(50)
    assert seat.machine.why_waiting == ("", [])
    assert len(ranges(seat)) == 1
    assert seat.machine.log is not None
    members = seat.machine.log.members
    assert C not in members
    assert all(world.desks[member.name].read(1, 3) == world.desks[A.name].read(1, 3) for member in members)
    write(seat, b"4")


def test_store_that_cut_its_end_is_joined_anew_and_needs_no_copy() -> None:
    world = world_of(A, B, C)
    seat = opened(world)
    write(seat, b"1", b"2", b"3")
    world.desks[C.name].cut(world.desks[C.name].last_index)
    world.restarted(C.name, world.desks[C.name])
    world.calm(5)
    assert seat.machine.log is not None
    assert set(seat.machine.log.members) == {A, B, damaged(C)}
    assert (seat.machine.why_waiting, len(ranges(seat)), found(seat, Backfill)) == (("", []), 1, [])


def test_takeover_goes_on_with_what_its_predecessor_left_half_done_G11() -> None:
    """The predecessor died after the compare-and-set and before the copy: its successor copies and merges."""
    world = world_of(A, B, C, D)
    first = opened(world)
    write(first, b"1", b"2")
    first.disconnect(C.name)
    del world.desks[C.name]
    while not first.fills:
        world.steps()[0]()
    first.leave()
    assert len(ranges(first)) == 2
    second = opened(world)
    assert ranges(second) == [(1, "abd")]
    assert len(found(second, Backfill)) == 1


def test_all_stores_restart_with_damaged_ends_and_nothing_acked_is_lost_G2() -> None:
    world = world_of(A, B, C)
    first = opened(world)
    write(first, b"1", b"2", b"3")
    acked = dict(world.acked)
    first.leave()
    for member in (A, B, C):
        desk = world.desks[member.name]
        desk.cut(desk.last_index)
    second = opened(world)
    assert [member.incarnation for member in second.machine.log.members] == [2, 2, 2] if second.machine.log else False
    write(second, b"4")
    assert acked.items() < world.acked.items()


def test_new_member_that_was_declared_under_load_does_not_stop_the_next_writer_G11() -> None:
    """It was declared while it had not stored what the others had committed, and then its writer died: all three are there."""
    world = world_of(A, B, C, wish=REDUCED)
    first = opened(world)
    first.disconnect(C.name)
    while steps := world.steps():
        steps[0]()
    first.connect(C.name)
    first.deliver(C.name)  # it joins, and its answer is on its way
    for salt in (b"1", b"2", b"3"):
        first.propose(salt)
        for name in (A.name, B.name):
            first.deliver(name)
            first.hear(name)
    first.hear(C.name)
    while first.asked or first.outcomes:
        (first.decide if first.asked else first.settle)()
    first.leave()
    second = opened(world)
    write(second, b"4")
    assert [len(one.members) for one in world.register[1].ranges] == [3] if world.register[1] else False


def test_partition_of_one_copy_stays_readable_and_writable_through_a_change() -> None:
    world = world_of(A, B, wish=Wish(1, 1, STRICT.order))
    seat = opened(world)
    write(seat, b"1")
    seat.feed(NotStored(A.key, 1, Code.FULL, "no room"))
    world.calm(5)
    assert ranges(seat) == [(1, "b")]
    write(seat, b"2")


# ---------------------------------------------------------------------- any order of events

STEPS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 10**6)), max_size=250)


class Weather:
    """Turns numbers into what happens next: mostly what is under way goes on, now and then something is lost."""

    def __init__(self, stores: int, min_copies: int) -> None:
        self.world = world_of(*(A, B, C, D, E)[:stores], wish=STRICT._replace(min_copies=min_copies))
        self.world.writer()
        self.world.calm(2)

    def happen(self, kind: int, which: int) -> None:
        world = self.world
        living = [seat for seat in world.seats if not seat.ended]
        seat = living[which % len(living)] if living else None
        names = list(world.desks)
        name = names[which % len(names)]
        if kind == 0 and (seat is None or which % 3 == 0) and len(world.seats) < 4:
            world.writer()
        elif seat is None:
            return
        elif kind == 1 and which % 4 == 0:
            seat.leave()
        elif kind == 2:
            (seat.disconnect if name in seat.links else seat.connect)(name)
        elif kind == 3 and name not in seat.links:
            seat.connect(name)
        elif kind == 4:
            for _ in range(1 + which % 30):
                seat.tick()
        elif kind in (5, 6, 7) and seat.may_propose:
            seat.propose(bytes([which % 256]))
        elif steps := world.steps():
            steps[which % len(steps)]()


@settings(max_examples=150)
@given(st.integers(3, 5), st.integers(2, 3), STEPS)
def test_whatever_happens_acked_frames_are_on_every_named_store_and_stay_G1_G2_G9_G11(
    stores: int, min_copies: int, steps: list[tuple[int, int]]
) -> None:
    """The judge looks at each commit (`small_world`); in the end, when all goes well again, a new writer has it all."""
    weather = Weather(stores, min_copies)
    world = weather.world
    for kind, which in steps:
        weather.happen(kind, which)
    for seat in world.seats:
        seat.leave()
    acked = dict(world.acked)
    last = world.writer()
    world.calm(60)
    if last.ended:  # a compare-and-set of a dead writer may have come first
        last = world.writer()
        world.calm(60)
    assert (last.machine.why_waiting, last.ended) == (("", []), "")
    assert len(last.recovered) == 1
    world.judge(last, max([last.committed, *acked]))
    assert [one.first for one in world.register[1].ranges] == [1] if world.register[1] else False
    assert all(len(seat.recovered) <= 1 for seat in world.seats)


def test_effects_of_all_machines_are_known_to_the_world() -> None:
    """So that the test above leaves none out."""
    world = world_of(A, B, C, D, a=chain(1), b=[], c=[])
    first = opened(world)
    write(first, b"1")
    world.restarted(C.name, Desk(emptied(C)))
    world.calm(20)
    first.leave()
    second = opened(world)
    seen = {type(effect) for effect in (*first.effects, *second.effects)}
    assert seen > {ReadRecord, Inspect, AskFence, Fetch, AskJoin, CompareAndSet, Backfill, Committed}
    assert Range in {type(one) for one in (world.register[1].ranges if world.register[1] else ())}
    assert not any(isinstance(event, Fenced) for event in first.effects)
