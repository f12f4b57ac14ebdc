"""What a store holds of a partition, against the plainest model of it: joins, fills, absorbing, what may follow what (§6)."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilogue.actors.protocol.frames import Header, decode_frame, encode_frame
from trilogue.actors.protocol.holdings import Fence, PartitionState, Row
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.vocabulary import FenceAnswer, TailEntry


def header(index: int, epoch: int = 1, before: Header | int = 0, committed_upto: int = 0, body: bytes = b"") -> Header:
    prev_crc = before if isinstance(before, int) else before.header_crc
    data, _ = encode_frame(
        log_id=7, partition=3, epoch=epoch, index=index, prev_crc=prev_crc, count=0, committed_upto=committed_upto, payload=body
    )
    return decode_frame(data, 1000)


def chain_of(length: int, epoch: int = 1, committed: int = 1) -> list[Header]:
    """Frames 1 … length; each says that the one `committed` before it is committed."""
    frames: list[Header] = []
    for index in range(1, length + 1):
        frames.append(header(index, epoch, frames[-1] if frames else 0, max(0, index - committed)))
    return frames


LOG = chain_of(30)


def holding(*frames: Header, fence: Fence | None = None) -> PartitionState:
    state = PartitionState(certain=True)
    state.obey(fence or Fence(1, "w", ""))
    for one in frames:
        state.take(one)
    return state


def held(state: PartitionState) -> list[int]:
    return [index for index in range(1, state.last_index + 1) if state.crc_at(index) is not None]


# ---------------------------------------------------------------------- the model


class Plain:
    """The model: a list, a dictionary, and the rules word by word (compare `store_join` in the design's model)."""

    def __init__(self) -> None:
        self.base, self.prev = 1, 0
        self.tail: list[Header] = []
        self.older: dict[int, Header] = {}
        self.committed_upto = 0

    @property
    def last(self) -> int:
        return self.base + len(self.tail) - 1

    def get(self, index: int) -> Header | None:
        if self.base <= index <= self.last:
            return self.tail[index - self.base]
        return self.older.get(index)

    def append(self, frame: Header) -> None:
        del self.tail[frame.index - self.base :]
        self.tail.append(frame)
        self.committed_upto = max(self.committed_upto, frame.committed_upto)

    def join(self, first: int, prev_crc: int, intervals: list[tuple[int, int]]) -> bool:
        before = self.prev if first == self.base else None
        if self.base < first <= self.last + 1:
            before = self.tail[first - 1 - self.base].header_crc
        if before == prev_crc:
            return False
        everything = {**self.older, **{frame.index: frame for frame in self.tail}}
        self.older = {
            index: frame
            for index, frame in everything.items()
            if index < first and (index <= self.committed_upto or any(start <= index <= end for start, end in intervals))
        }
        self.base, self.prev, self.tail = first, prev_crc, []
        self.absorb()
        return True

    def fill(self, frame: Header) -> None:
        if frame.index < self.base:
            self.older[frame.index] = frame
            self.absorb()

    def absorb(self) -> None:
        while (frame := self.older.get(self.base - 1)) is not None and frame.header_crc == self.prev:
            self.tail.insert(0, frame)
            del self.older[frame.index]
            self.base, self.prev = frame.index, frame.prev_crc


# Two histories that part after frame 8: what is common, and what each of two epochs made of the rest.
COMMON = chain_of(8)


def _branch(epoch: int) -> list[Header]:
    frames = list(COMMON)
    for index in range(9, 15):
        frames.append(header(index, epoch, frames[-1], index - 3))
    return frames


BRANCHES = (_branch(2), _branch(3), _branch(4))
INTERVALS = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), max_size=3).map(
    lambda pairs: [(min(pair), max(pair)) for pair in pairs]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 14)),
        st.tuples(st.just("fill"), st.integers(0, 2), st.integers(1, 14)),
        st.tuples(st.just("join"), st.integers(0, 2), st.integers(1, 15), INTERVALS),
        st.tuples(st.just("fence")),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(STEPS)
def test_g2_any_history_of_appends_fences_joins_and_fills_holds_what_the_plain_model_holds(steps: list[Any]) -> None:
    state, plain = PartitionState(certain=True), Plain()
    state.obey(Fence(1, "w1", ""))
    for step in steps:
        match step:
            case ("take", branch, index):
                frame = BRANCHES[branch][index - 1]
                if not state.problem(frame):
                    state.take(frame)
                    plain.append(frame)
            case ("fill", branch, index):
                frame = BRANCHES[branch][index - 1]
                if index >= state.base or state.crc_at(index) == frame.header_crc:
                    assert not state.fill(frame)
                elif not state.fill_problem(frame):
                    assert state.fill(frame)
                    plain.fill(frame)
            case ("join", branch, first, intervals):
                prev_crc = BRANCHES[branch][first - 2].header_crc if first > 1 else 0
                kept = state.join(state.joins + 1, first, prev_crc, intervals)
                assert (kept is not None) is plain.join(first, prev_crc, intervals)
            case _:
                state.obey(Fence(state.fence.epoch + 1, "w", ""))
        assert (state.base, state.base_prev, state.last_index) == (plain.base, plain.prev, plain.last)
        assert state.committed_upto == plain.committed_upto
        crcs = [None if (frame := plain.get(index)) is None else frame.header_crc for index in range(1, 16)]
        assert [state.crc_at(index) for index in range(1, 16)] == crcs
        firsts = [piece.first for piece in state.older]
        assert firsts == sorted(firsts)
        assert all(len(piece.crcs) and piece.last < state.base for piece in state.older)
        first = max(plain.base, min(plain.committed_upto, plain.last))
        tail = [TailEntry(f.index, f.epoch, f.header_crc) for f in plain.tail if f.index >= first]
        if plain.base > 1 and first == plain.base:
            tail.insert(0, TailEntry(plain.base - 1, 0, plain.prev))
        assert state.answer() == FenceAnswer(plain.committed_upto, True, plain.base, tail)


@given(st.lists(st.tuples(st.sampled_from(["append", "before", "behind", "cut", "part"]), st.integers(0, 9)), max_size=30))
def test_row_is_a_list_that_grows_at_both_ends(steps: list[tuple[str, int]]) -> None:
    row, plain = Row(array("I")), list[int]()
    for number, (what, size) in enumerate(steps):
        other = list(range(number, number + size))
        if what == "append":
            row.append(number)
            plain.append(number)
        elif what == "before":
            row.put_before(Row(array("I", other)))
            plain = other + plain
        elif what == "behind":
            row.put_behind(Row(array("I", other)))
            plain += other
        elif what == "cut":
            at = min(size, len(plain))
            row.cut(at)
            del plain[at:]
        else:
            start = min(size, len(plain))
            row, plain = row.part(start, len(plain) - start // 2), plain[start : len(plain) - start // 2]
        assert [row[at] for at in range(len(row))] == plain == list(row.plain())
        assert not plain or row.last == plain[-1]


# ---------------------------------------------------------------------- joins, one by one


def test_g2_join_at_a_place_of_the_chain_cuts_nothing() -> None:
    state = holding(*LOG[:10])
    for number, first in enumerate((1, 5, 10, 11), 1):
        before = LOG[first - 2].header_crc if first > 1 else 0
        assert state.join(number, first, before, []) is None
        assert (state.base, state.last_index) == (1, 10)


def test_g2_join_that_does_not_chain_keeps_what_is_committed_or_vouched_for_and_nothing_else() -> None:
    state = holding(*chain_of(10, committed=8))
    assert state.committed_upto == 2
    assert state.join(1, 20, 99, [(5, 7), (9, 9)]) == [(1, 2), (5, 7), (9, 9)]
    assert held(state) == [1, 2, 5, 6, 7, 9]
    assert (state.base, state.last_index, state.committed_upto) == (20, 19, 2)
    assert state.answer() == FenceAnswer(2, True, 20, [TailEntry(19, 0, 99)])


def test_g9_uncommitted_frames_of_an_old_epoch_are_dropped_by_a_join() -> None:
    state = holding(*LOG[:5], header(6, 1, LOG[4], 5, b"junk"))
    assert state.join(1, 7, LOG[5].header_crc, []) == [(1, 5)]
    assert state.crc_at(6) is None
    assert state.fill(LOG[5])
    assert (state.base, held(state)) == (1, [1, 2, 3, 4, 5, 6])


def test_each_join_is_obeyed_once_and_a_late_one_never() -> None:
    state = holding(*LOG[:5])
    state.join(3, 20, 99, [])
    for number in (1, 2, 3):
        with pytest.raises(InvariantBroken, match=f"join {number} of epoch 1 comes after join 3"):
            state.join(number, 6, LOG[4].header_crc, [])
    state.obey(Fence(1, "w", "elsewhere"))
    assert state.joins == 3, "the same writer's fence again does not begin a new count"
    state.obey(Fence(2, "v", ""))
    assert state.joins == 0


def test_joined_store_takes_the_frames_from_its_base_on() -> None:
    state = PartitionState(certain=True)
    state.obey(Fence(4, "w", ""))
    state.join(1, 10, LOG[8].header_crc, [])
    assert state.problem(LOG[8]) == "frame 9 lies below the base 10"
    assert state.problem(LOG[10]) == "frame 11 leaves a hole after 9"
    assert state.problem(header(10, 1, 5)) == "frame 10 does not chain to the one before"
    for frame in LOG[9:12]:
        state.take(frame)
    assert state.answer() == FenceAnswer(
        11, True, 10, [TailEntry(11, 1, LOG[10].header_crc), TailEntry(12, 1, LOG[11].header_crc)]
    )


# ---------------------------------------------------------------------- fills


@pytest.mark.parametrize("order", ["rising", "falling", "odd ones first"])
def test_g2_filled_frames_become_part_of_the_chain_as_soon_as_they_connect(order: str) -> None:
    state = PartitionState(certain=True)
    state.obey(Fence(4, "w", ""))
    state.join(1, 21, LOG[19].header_crc, [])
    state.take(LOG[20])
    frames = {"rising": LOG[:20], "falling": LOG[19::-1], "odd ones first": LOG[:20:2] + LOG[1:20:2]}[order]
    for frame in frames:
        assert state.base == min(
            (index for index in range(1, 22) if all(state.crc_at(k) is not None for k in range(index, 21))), default=21
        )
        assert state.fill(frame)
        assert not state.fill(frame), "it is there already"
    assert (state.base, state.base_prev, state.last_index, state.older) == (1, 0, 21, [])


def test_frame_at_or_above_the_base_is_not_filled_in() -> None:
    state = holding(*LOG[:5])
    assert not state.fill(LOG[2])
    assert not state.fill(LOG[5])
    assert held(state) == [1, 2, 3, 4, 5]


def test_g2_filled_frame_that_does_not_chain_to_the_base_never_becomes_part_of_it() -> None:
    state = PartitionState(certain=True)
    state.obey(Fence(4, "w", ""))
    state.join(1, 10, LOG[8].header_crc, [])
    assert state.fill(header(9, 1, LOG[7], 8, b"another"))
    assert state.base == 10
    assert state.fill(LOG[8]), "the right one takes its place"
    assert state.base == 9


def test_g2_filling_in_another_frame_where_one_is_committed_breaks_an_invariant() -> None:
    state = holding(*LOG[:5])
    state.join(1, 10, LOG[8].header_crc, [])
    with pytest.raises(InvariantBroken, match="frame 3 would replace a committed one"):
        state.fill(header(3, 1, LOG[1], 2, b"another"))


# ---------------------------------------------------------------------- what may supersede


def test_g2_frame_of_an_older_epoch_supersedes_a_newer_one_after_a_higher_fence() -> None:
    # Epoch 3 put its frame 6 on this store alone; epoch 4 took over from a store that still had frame 6 of epoch 2.
    old = header(6, 2, LOG[4], 4)
    state = holding(*LOG[:5], header(6, 3, LOG[4], 5), fence=Fence(3, "w3", ""))
    assert state.problem(old) == "frame 6 supersedes one of the same writer"
    state.obey(Fence(4, "w4", ""))
    state.take(old)
    assert state.crc_at(6) == old.header_crc
    with pytest.raises(InvariantBroken, match="supersedes one of the same writer"):
        state.take(header(6, 3, LOG[4], 5))


def test_g2_nothing_supersedes_a_committed_frame() -> None:
    state = holding(*LOG[:5])
    state.obey(Fence(2, "v", ""))
    with pytest.raises(InvariantBroken, match="would replace a committed one"):
        state.take(header(4, 2, LOG[2], 3))


def test_two_frames_of_one_epoch_never_take_each_others_place() -> None:
    state = holding(*LOG[:5])
    state.obey(Fence(2, "v", ""))
    with pytest.raises(InvariantBroken, match="supersedes another one of that epoch"):
        state.take(header(5, 1, LOG[3], 3, b"another"))


def test_frame_below_what_is_known_committed_may_come_again_after_a_cut() -> None:
    state = holding(*LOG[:10])
    state.obey(Fence(2, "v", ""))
    state.join(1, 15, LOG[13].header_crc, [])
    state.join(2, 6, 99, [])
    assert (state.base, state.last_index, state.committed_upto) == (6, 5, 9)
    state.take(header(6, 2, 99, 5))
    assert state.answer().tail[-1].frame_index == 6, "the last frame is told even below what is known committed"


# ---------------------------------------------------------------------- cannot tell


def test_after_a_damaged_tail_only_a_join_makes_a_store_certain_again() -> None:
    state = holding(*LOG[:5])
    state.doubt()
    state.obey(Fence(9, "v", ""))
    state.take(header(6, 9, LOG[4], 5))
    assert not state.answer().certain, "a frame proves nothing of those that were lost"
    state.join(1, 7, state.crc_before(7), [])
    assert state.answer().certain
