"""The log writer, rule by rule: write all, a bounded window, commits in order, changes by compare-and-set (design §6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from small_log import LIMITS, LOG_ID, PARTITION, A, B, C, D, E, answer, chain, damaged, emptied, head
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.log import LogWriter
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    AskJoin,
    Backfill,
    Committed,
    CompareAndSet,
    Ended,
    Fenced,
    Filled,
    Frame,
    Idle,
    Joined,
    NotStored,
    Proposed,
    SendFrames,
    Settled,
    Stored,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.takeover import RecordRead
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, TailEntry

EPOCH, VERSION = 4, 5
ABC = (A, B, C)
HISTORY = chain(*[1] * 10)
"""What was committed before: frames 1 to 10."""
LAST_CRC = head(HISTORY[-1]).header_crc
STRICT = Wish(3, 3, tuple(member.name for member in (A, B, C, D, E)))
REDUCED = STRICT._replace(min_copies=2)
LATE_MS = LIMITS.member_grace_ms


class Driver:
    """A writer after frame 10, and what it is told. `log_frames` are all frames that it knows, from the first one on."""

    def __init__(
        self,
        *members: Member,
        ranges: tuple[Range, ...] = (),
        tail: Sequence[bytes] = (),
        wish: Wish = STRICT,
        fenced: bool = True,
    ) -> None:
        """All members are connected; with `fenced`, they obey and hold all that was committed."""
        members = members or ABC
        self.record = PartitionRecord(EPOCH, "writer", "h:1", ranges or (Range(1, members),))
        self.frames = [*HISTORY, *tail]
        self.log = LogWriter(
            log_id=LOG_ID, partition=PARTITION, version=VERSION, record=self.record, committed=10, committed_crc=LAST_CRC,
            tail=[Frame(head(frame).index, head(frame).header_crc, frame) for frame in tail],
            wish=wish, limits=LIMITS,
        )  # fmt: skip
        for member in self.record.ranges[-1].members if fenced else ():
            self.up(member)
            self.fenced(member, base=self.record.ranges[-1].first)

    def told(self, event: object) -> list[Any]:
        return [*self.log.handle(event)]

    def up(self, member: Member) -> list[Any]:
        return self.told(StoreUp(member))

    def lost(self, member: Member) -> list[Any]:
        return self.told(StoreLost(member.key))

    def tick(self, now_ms: int) -> list[Any]:
        return self.told(Tick(now_ms))

    def fenced(self, member: Member, frames: Sequence[bytes] = HISTORY, committed_upto: int = 9, base: int = 1) -> list[Any]:
        return self.told(Fenced(member.key, answer(frames, committed_upto, base=base)))

    def joined(self, member: Member, number: int, frames: Sequence[bytes] = HISTORY, base: int = 11) -> list[Any]:
        return self.told(Joined(member.key, number, answer(frames, base=base)))

    def propose(self, count: int = 1) -> bytes:
        (sent,) = self.told(Proposed(pack_records([]), count))
        assert isinstance(sent, SendFrames)
        self.frames += sent.frames
        return sent.frames[0]

    def stored(self, member: Member, frame: bytes, epoch: int = EPOCH) -> list[Any]:
        return self.told(Stored(member.key, epoch, head(frame).index, head(frame).header_crc))

    def everybody_stored(self, frame: bytes, *members: Member) -> list[Any]:
        return [effect for member in members or self.log.members for effect in self.stored(member, frame)]

    def settled(self, version: int = VERSION + 1) -> list[Any]:
        return self.told(Settled(version))


def keys(*members: Member) -> tuple[str, ...]:
    return tuple(member.key for member in members)


def asks_join(effects: list[Any]) -> list[tuple[str, int]]:
    return [(effect.store, effect.number) for effect in effects if isinstance(effect, AskJoin)]


def kinds(effects: list[Any]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def range_of(effects: list[Any]) -> Range:
    """The range that the one compare-and-set among the effects would declare."""
    (asked,) = [effect for effect in effects if isinstance(effect, CompareAndSet)]
    last: Range = asked.record.ranges[-1]
    return last


@pytest.fixture
def driver() -> Driver:
    return Driver()


# ---------------------------------------------------------------------- rule 1: commits


def test_frame_chains_to_the_last_one_and_says_what_is_committed(driver: Driver) -> None:
    first, second = (head(driver.propose()) for _ in range(2))
    assert (first.index, first.epoch, first.prev_crc, first.committed_upto) == (11, EPOCH, LAST_CRC, 10)
    assert (second.index, second.prev_crc, second.committed_upto) == (12, first.header_crc, 10)


def test_frame_is_committed_only_when_every_member_said_yes_G1(driver: Driver) -> None:
    frame = driver.propose()
    assert driver.stored(A, frame) == []
    assert driver.stored(B, frame) == []
    assert driver.log.committed == 10
    assert driver.stored(C, frame) == [Committed(11)]
    assert driver.log.committed == 11
    assert driver.log.copies == 3


def test_one_member_that_says_yes_twice_counts_once_G1(driver: Driver) -> None:
    frame = driver.propose()
    for _ in range(3):
        assert driver.stored(A, frame) == []
    assert driver.stored(B, frame) == []
    assert driver.log.committed == 10


def test_commits_are_in_order_whatever_the_order_of_answers(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(3)]
    assert driver.stored(A, frames[2]) == []
    assert driver.stored(B, frames[1]) == []
    assert driver.stored(C, frames[0]) == [Committed(11)]
    assert driver.stored(C, frames[2]) == [Committed(12)]
    assert driver.stored(B, frames[2]) == [Committed(13)]


def test_yes_for_another_epoch_counts_for_nothing_G9(driver: Driver) -> None:
    frame = driver.propose()
    driver.stored(A, frame)
    driver.stored(B, frame)
    assert driver.stored(C, frame, epoch=EPOCH - 1) == []
    assert driver.stored(C, frame, epoch=EPOCH + 1) == []
    assert driver.log.committed == 10


def test_yes_of_a_store_that_is_no_member_counts_for_nothing_G1(driver: Driver) -> None:
    frame = driver.propose()
    driver.up(D)
    for store in (A, B, D, damaged(C), emptied(C)):
        assert driver.stored(store, frame) == []


def test_yes_for_another_frame_at_the_index_breaks_an_invariant(driver: Driver) -> None:
    driver.propose()
    with pytest.raises(InvariantBroken, match="confirms another frame at 11"):
        driver.told(Stored(A.key, EPOCH, 11, 12345))


def test_yes_for_a_frame_that_was_never_sent_breaks_an_invariant(driver: Driver) -> None:
    with pytest.raises(InvariantBroken, match="never sent"):
        driver.told(Stored(A.key, EPOCH, 11, 12345))


def shrinking() -> tuple[Driver, bytes]:
    """A is lost and there is no spare: a compare-and-set of {B, C} is under way, and so is frame 11."""
    driver = Driver(wish=REDUCED)
    frame = driver.propose()
    assert range_of(driver.lost(A)) == Range(11, (B, C))
    return driver, frame


def test_old_ensemble_is_needed_until_the_outcome_is_known_G1() -> None:
    driver, frame = shrinking()
    assert driver.everybody_stored(frame, B, C) == []
    assert driver.settled()[0] == Committed(11)
    assert (driver.log.copies, driver.log.version) == (2, VERSION + 1)


def test_new_ensemble_is_needed_until_the_outcome_is_known_G1() -> None:
    driver = Driver()
    driver.up(D)
    driver.lost(C)
    assert range_of(driver.joined(D, 1)) == Range(11, (A, B, D))
    driver.up(C)
    driver.fenced(C)
    frame = driver.propose()
    assert driver.everybody_stored(frame, A, B, C) == []
    assert driver.stored(D, frame) == [Committed(11)], "both are whole"


def test_no_answer_is_never_no_G1() -> None:
    """BookKeeper #1591: however long the register is silent, nothing is committed by the old ensemble or the new one alone."""
    driver, frame = shrinking()
    driver.everybody_stored(frame, B, C)
    for now_ms in range(0, 60_000, 500):
        assert driver.tick(now_ms) == [], "nor is it asked for again, or for something else"
    assert driver.log.committed == 10


def test_outcome_of_nothing_breaks_an_invariant(driver: Driver) -> None:
    with pytest.raises(InvariantBroken, match="never asked for"):
        driver.settled()


# ---------------------------------------------------------------------- rule 2: what was made is never changed or withdrawn


def test_member_that_is_lost_gets_nothing_and_nothing_is_committed_without_it(driver: Driver) -> None:
    driver.lost(B)
    assert driver.log.missing == [B.name]
    (sent,) = driver.told(Proposed(pack_records([]), 1))
    assert sent.stores == keys(A, C)
    assert driver.everybody_stored(sent.frames[0], A, C) == []


def test_member_that_comes_back_gets_the_same_bytes_that_it_lacks(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(3)]
    driver.lost(B)
    assert driver.up(B) == [AskFence(B.key, EPOCH)]
    assert driver.fenced(B, [*HISTORY, frames[0]]) == [SendFrames((B.key,), frames[1:])]
    assert driver.log.missing == []


def test_answer_of_a_member_that_comes_back_counts_as_its_yes(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(2)]
    driver.everybody_stored(frames[1], A, C)
    driver.lost(B)
    driver.up(B)
    assert driver.fenced(B, [*HISTORY, *frames]) == [Committed(12)]


def test_other_frames_that_a_member_holds_do_not_count(driver: Driver) -> None:
    frame = driver.propose()
    driver.lost(B)
    driver.up(B)
    assert driver.fenced(B, chain(3, 3, before=HISTORY)) == [SendFrames((B.key,), [frame])]
    assert driver.everybody_stored(frame, A, C) == []


def test_frames_wait_for_members_that_are_not_fenced_yet() -> None:
    driver = Driver(fenced=False)
    frame = driver.propose()
    assert driver.up(A) == [AskFence(A.key, EPOCH)]
    assert driver.fenced(A) == [SendFrames((A.key,), [frame])]


def test_member_that_knows_of_more_commits_than_the_writer_is_as_good_as_any(driver: Driver) -> None:
    """A takeover need not hear everybody: who answers later may have been told of a commit that the others were not."""
    tail = chain(3, 3, 3, before=HISTORY, committed=10)[10:]
    driver = Driver(tail=tail, fenced=False)
    driver.up(A)
    assert driver.fenced(A, [*HISTORY, *tail], committed_upto=12) == [SendFrames((A.key,), tail)]
    assert driver.stored(A, tail[2]) == []


@pytest.mark.parametrize("tail", [[], [TailEntry(9, 1, 5)], [TailEntry(10, 1, 5)]])
def test_member_without_a_committed_frame_is_not_believed_but_replaced_G2(driver: Driver, tail: list[TailEntry]) -> None:
    driver.up(D)
    driver.lost(B)
    driver.lost(D)
    driver.up(B)
    assert driver.told(Fenced(B.key, FenceAnswer(0, True, 1, tail))) == []
    assert driver.log.missing == [B.name]
    assert asks_join(driver.up(D)) == [(D.key, 2)]


def test_fence_of_a_store_that_is_lost_again_counts_for_nothing(driver: Driver) -> None:
    driver.propose()
    driver.lost(B)
    assert driver.fenced(B) == []
    assert driver.log.missing == [B.name]


# ---------------------------------------------------------------------- rule 3: a bounded window


def test_window_is_bounded_and_opens_with_commits(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(LIMITS.frames_in_flight_max)]
    assert not driver.log.has_room
    with pytest.raises(InvariantBroken, match="beyond the window"):
        driver.told(Proposed(pack_records([]), 1))
    driver.everybody_stored(frames[0])
    assert driver.log.has_room


# ---------------------------------------------------------------------- rule 4: join, copy, compare-and-set


def test_lost_member_is_replaced_by_a_spare_that_joins_at_the_first_frame_not_known_committed_G11(driver: Driver) -> None:
    driver.up(D)
    driver.propose()
    assert driver.lost(C) == [AskJoin(D.key, 1, 11, LAST_CRC, [])]


@pytest.mark.parametrize(("spare", "intervals"), [(D, [(1, 3), (6, 7)]), (damaged(D), []), (E, [])])
def test_store_that_joins_is_told_what_the_record_vouches_for_and_no_more(
    spare: Member, intervals: list[tuple[int, int]]
) -> None:
    driver = Driver(ranges=(Range(1, (A, D)), Range(4, (B, C)), Range(6, (C, D)), Range(8, ABC)))
    driver.up(spare)
    assert driver.lost(C) == [AskJoin(spare.key, 1, 11, LAST_CRC, intervals)]


def test_compare_and_set_follows_the_join(driver: Driver) -> None:
    driver.up(D)
    assert kinds(driver.lost(C)) == ["AskJoin"]
    asked = CompareAndSet(VERSION, driver.record._replace(ranges=(Range(1, ABC), Range(11, (A, B, D)))))
    assert driver.joined(D, 1) == [asked]
    driver.settled()
    assert (driver.log.members, driver.log.version) == ((A, B, D), VERSION + 1)


def test_store_that_joined_gets_what_is_not_committed_and_then_every_frame(driver: Driver) -> None:
    driver.up(D)
    frames = [driver.propose(), driver.propose()]
    driver.lost(C)
    sent, _ = driver.joined(D, 1)
    assert sent == SendFrames((D.key,), frames)
    (sent,) = driver.told(Proposed(pack_records([]), 1))
    assert sent.stores == keys(A, B, D)


def test_frames_that_are_committed_while_a_store_joins_are_kept_for_it() -> None:
    driver = Driver(A, B, wish=REDUCED)
    assert asks_join(driver.up(C)) == [(C.key, 1)]
    frames = [driver.propose() for _ in range(3)]
    for frame in frames:
        assert driver.everybody_stored(frame)[-1:] == [Committed(head(frame).index)]
    assert driver.joined(C, 1)[0] == SendFrames((C.key,), frames)


TAIL = chain(2, 3, 3, before=HISTORY, committed=8)[10:]
"""What an earlier epoch left uncommitted, as far as anybody knows: frames 11 to 13."""


def test_store_becomes_a_member_only_when_it_holds_all_that_an_earlier_epoch_may_have_committed_G2() -> None:
    driver = Driver(tail=TAIL)
    driver.up(D)
    assert driver.lost(C) == [AskJoin(D.key, 1, 11, LAST_CRC, [])]
    assert driver.joined(D, 1) == [SendFrames((D.key,), TAIL)]
    assert driver.stored(D, TAIL[0]) == []
    assert driver.stored(D, TAIL[1]) == []
    assert range_of(driver.stored(D, TAIL[2])) == Range(11, (A, B, D))


def test_what_a_store_that_joins_holds_already_counts() -> None:
    driver = Driver(tail=TAIL)
    driver.up(D)
    driver.lost(C)
    assert kinds(driver.joined(D, 1, [*HISTORY, *TAIL], base=1)) == ["CompareAndSet"]


def test_new_range_replaces_a_last_one_in_which_nothing_is_committed_yet() -> None:
    driver = Driver(ranges=(Range(1, ABC), Range(11, (A, B, D))))
    driver.up(E)
    driver.lost(D)
    (asked,) = [effect for effect in driver.joined(E, 1) if isinstance(effect, CompareAndSet)]
    assert asked.record.ranges == (Range(1, ABC), Range(11, (A, B, E)))


def test_answer_to_an_earlier_join_is_nothing(driver: Driver) -> None:
    driver.up(D)
    assert asks_join(driver.lost(C)) == [(D.key, 1)]
    driver.lost(D)
    assert asks_join(driver.up(D)) == [(D.key, 2)]
    assert driver.joined(D, 1) == []
    assert kinds(driver.joined(D, 2)) == ["CompareAndSet"]


def test_join_of_a_store_that_is_lost_again_is_nothing(driver: Driver) -> None:
    driver.up(D)
    driver.lost(C)
    driver.lost(D)
    assert driver.joined(D, 1) == []


def test_change_that_was_dropped_leaves_no_vote() -> None:
    driver = Driver(wish=REDUCED, tail=TAIL)
    driver.up(D)
    driver.lost(C)
    driver.joined(D, 1)
    driver.stored(D, TAIL[0])
    assert range_of(driver.lost(D)) == Range(11, (A, B)), "there is no spare any more"
    driver.settled()
    assert driver.stored(D, TAIL[2]) == []
    driver.stored(A, TAIL[2])
    assert driver.stored(B, TAIL[2]) == [Committed(13)]


def test_commits_wait_for_a_store_that_was_copied_to_and_go_on_without_it_when_it_is_lost_G11() -> None:
    driver = Driver(A, B, wish=REDUCED)
    driver.up(C)
    frames = [driver.propose(), driver.propose()]
    driver.everybody_stored(frames[0])
    driver.joined(C, 1)
    assert driver.everybody_stored(frames[1]) == [], "C is needed from now on, or it would never catch up"
    assert driver.lost(C) == [Committed(12)]
    assert driver.stored(C, frames[1]) == []


def test_loss_of_a_member_that_stays_drops_the_change() -> None:
    driver = Driver(tail=TAIL)
    driver.up(D)
    driver.lost(C)
    assert driver.lost(B) == [], "two members are out of reach: perhaps it is cut off itself"
    assert driver.joined(D, 1) == []
    driver.up(B)
    assert asks_join(driver.fenced(B)) == [(D.key, 2)]


def test_loss_of_a_member_that_goes_anyway_changes_nothing() -> None:
    driver = Driver()
    driver.up(D)
    assert kinds(driver.told(NotStored(C.key, EPOCH, Code.FULL, "no room"))) == ["AskJoin"]
    assert driver.lost(C) == []
    assert range_of(driver.joined(D, 1)) == Range(11, (A, B, D))


def test_compare_and_set_that_was_sent_counts_though_its_new_member_is_lost_since_G1(driver: Driver) -> None:
    driver.up(D)
    driver.lost(C)
    driver.joined(D, 1)
    assert driver.lost(D) == []
    driver.up(E)
    assert asks_join(driver.settled()) == [(E.key, 2)]
    assert driver.log.members == (A, B, D)


def test_store_that_joins_too_slowly_is_dropped() -> None:
    """Otherwise all frames since its join would have to be kept, for as long as it likes."""
    driver = Driver(A, B, wish=REDUCED)
    driver.up(C)
    for _ in range(LIMITS.join_frames_max + 1):
        driver.everybody_stored(driver.propose())
    assert driver.joined(C, 1) == []
    (asked,) = driver.tick(0)
    assert (asked.store, asked.number, asked.first) == (C.key, 2, driver.log.committed + 1)


def test_store_that_does_not_join_within_its_time_gives_way_to_another_spare_G11(driver: Driver) -> None:
    driver.tick(0)
    driver.up(D)
    driver.up(E)
    assert asks_join(driver.lost(C)) == [(D.key, 1)]
    assert driver.tick(LIMITS.member_lag_ms - 1) == []
    assert asks_join(driver.tick(LIMITS.member_lag_ms)) == [(E.key, 2)]


def test_only_one_change_is_under_way_at_a_time() -> None:
    driver = Driver(A, B, wish=REDUCED)
    assert asks_join(driver.up(C)) == [(C.key, 1)]
    assert driver.up(D) == []
    assert driver.log.spares == [C.name, D.name]
    driver.joined(C, 1)
    driver.settled()
    assert driver.log.spares == [D.name]


def test_removed_member_gets_no_more_frames(driver: Driver) -> None:
    driver.up(D)
    driver.told(NotStored(C.key, EPOCH, Code.FULL, "no room"))
    driver.joined(D, 1)
    driver.settled()
    (sent,) = driver.told(Proposed(pack_records([]), 1))
    assert sent.stores == keys(A, B, D)
    assert driver.stored(C, sent.frames[0]) == []


# ---------------------------------------------------------------------- rule 4: who, and when


def test_member_that_this_writer_never_met_is_waited_for_and_then_replaced() -> None:
    driver = Driver(fenced=False)
    for member in (A, B, D):
        driver.up(member)
    for member in (A, B):
        assert driver.fenced(member) == []
    assert driver.tick(LATE_MS - 1) == []
    assert asks_join(driver.tick(LATE_MS)) == [(D.key, 1)]


@pytest.mark.parametrize("anew", [damaged(C), emptied(C)], ids=["damaged", "emptied"])
def test_store_with_another_identity_is_not_the_member_but_may_take_its_place_at_once(driver: Driver, anew: Member) -> None:
    driver.lost(C)
    assert driver.up(anew) == [AskJoin(anew.key, 1, 11, LAST_CRC, [])]


def test_full_member_is_replaced_and_a_no_to_an_earlier_epoch_is_nothing(driver: Driver) -> None:
    driver.up(D)
    assert driver.told(NotStored(A.key, EPOCH - 1, Code.DEPOSED, "old")) == []
    assert asks_join(driver.told(NotStored(A.key, EPOCH, Code.FULL, "no room"))) == [(D.key, 1)]


def test_full_member_is_waited_for_when_there_is_no_spare(driver: Driver) -> None:
    assert driver.told(NotStored(A.key, EPOCH, Code.FULL, "no room")) == []
    assert driver.log.members == ABC


def test_full_store_is_asked_again_when_it_is_back(driver: Driver) -> None:
    driver.told(NotStored(A.key, EPOCH, Code.FULL, "no room"))
    driver.lost(A)
    assert driver.up(A) == [AskFence(A.key, EPOCH)]
    assert driver.fenced(A) == []
    assert driver.log.missing == []


def test_laggard_is_replaced_after_a_while(driver: Driver) -> None:
    driver.up(D)
    frame = driver.propose()
    driver.everybody_stored(frame, A, B)
    assert driver.tick(100) == []
    assert driver.tick(100 + LIMITS.member_lag_ms - 1) == []
    assert asks_join(driver.tick(100 + LIMITS.member_lag_ms)) == [(D.key, 1)]
    assert range_of(driver.joined(D, 1)) == Range(11, (A, B, D))


def test_laggard_that_catches_up_meanwhile_stays(driver: Driver) -> None:
    driver.up(D)
    frame = driver.propose()
    driver.everybody_stored(frame, A, B)
    driver.tick(100)
    driver.stored(C, frame)
    driver.tick(500)
    driver.everybody_stored(driver.propose(), A, B)
    assert driver.tick(100 + LIMITS.member_lag_ms) == []


def test_laggard_is_replaced_only_if_a_spare_is_there_G1() -> None:
    driver = Driver(wish=REDUCED)
    driver.everybody_stored(driver.propose(), A, B)
    driver.tick(100)
    assert driver.tick(100 + LIMITS.member_lag_ms) == [], "slow is not a reason to hold fewer copies"
    assert asks_join(driver.up(D)) == [(D.key, 1)]


def test_member_that_does_not_answer_the_fence_is_a_laggard(driver: Driver) -> None:
    driver.up(D)
    driver.lost(C)
    driver.lost(D)
    driver.up(C)
    assert driver.tick(100) == []
    driver.up(D)
    assert asks_join(driver.tick(100 + LIMITS.member_lag_ms)) == [(D.key, 2)]


@pytest.mark.parametrize(("later_ms", "joins"), [(LIMITS.member_grace_ms - 1, [(D.key, 1)]), (LIMITS.member_grace_ms, [])])
def test_member_that_was_slow_is_forgiven_in_time(driver: Driver, later_ms: int, joins: list[tuple[str, int]]) -> None:
    driver.lost(C)
    driver.up(C)
    driver.tick(0)
    driver.tick(LIMITS.member_lag_ms)
    driver.fenced(C)
    driver.tick(LIMITS.member_lag_ms + later_ms)
    assert asks_join(driver.up(D)) == joins


def test_two_that_lag_together_are_not_called_slow(driver: Driver) -> None:
    driver.up(D)
    driver.stored(A, driver.propose())
    for now_ms in range(0, 20_000, 50):
        assert driver.tick(now_ms) == []


def test_partition_waits_for_a_lost_member_when_there_is_no_spare(driver: Driver) -> None:
    assert driver.lost(C) == []
    assert driver.tick(10 * LATE_MS) == []
    assert driver.log.missing == [C.name]


def test_writer_that_is_cut_off_does_not_churn_spares(driver: Driver) -> None:
    driver.up(D)
    driver.up(E)
    assert asks_join(driver.lost(C)) == [(D.key, 1)]
    assert driver.lost(B) == []
    for now_ms in range(0, 20_000, 100):
        assert driver.tick(now_ms) == []
    assert driver.lost(A) == []
    driver.up(A)
    assert driver.fenced(A) == [], "two are still out of reach"
    driver.up(B)
    assert asks_join(driver.fenced(B)) == [(D.key, 2)]


def test_smaller_ensemble_is_declared_without_a_join_and_acks_say_so() -> None:
    driver = Driver(wish=REDUCED)
    assert range_of(driver.lost(C)) == Range(11, (A, B))
    assert driver.log.copies == 3, "not declared yet"
    driver.settled()
    assert driver.log.copies == 2
    frame = driver.propose()
    assert driver.everybody_stored(frame, A, B) == [Committed(11)]


def test_smaller_ensemble_is_made_whole_when_a_store_is_there_G1() -> None:
    driver = Driver(wish=REDUCED)
    driver.lost(C)
    driver.settled()
    driver.everybody_stored(driver.propose())
    assert driver.settled(VERSION + 2) == [], "that was the merge of what A and B hold"
    (asked,) = driver.up(C)
    assert (asked.store, asked.first, asked.intervals) == (C.key, 12, [])
    assert range_of(driver.joined(C, asked.number, driver.frames, base=12)) == Range(12, (A, B, C))
    driver.settled(VERSION + 3)
    assert driver.log.copies == 3


def test_whole_ensemble_that_lost_its_memory_is_declared_anew_with_the_tail_in_hand_G2_G11() -> None:
    anew = [damaged(member) for member in ABC]
    driver = Driver(fenced=False, tail=TAIL)
    effects = [effect for member in anew for effect in driver.up(member)]
    assert asks_join(effects) == [(member.key, 1) for member in anew]
    for member in anew:
        driver.joined(member, 1, HISTORY, base=1)
    assert driver.everybody_stored(TAIL[2], *anew[:2]) == []
    assert range_of(driver.everybody_stored(TAIL[2], anew[2])) == Range(11, tuple(anew))
    assert driver.settled()[0] == Committed(13)


# ---------------------------------------------------------------------- rule 4: older frames are copied, ranges merge

LAST = (A, B, D)


def merging(*others: Member, tail: Sequence[bytes] = (), bases: tuple[int, int, int] = (1, 1, 11)) -> tuple[Driver, list[Any]]:
    """Frames 1 to 10 are on A, B and C; the rest goes to A, B and D. `others` are there too. And what the fences led to."""
    driver = Driver(ranges=(Range(1, ABC), Range(11, LAST)), fenced=False, tail=tail)
    for member in others:
        driver.up(member)
    for member in LAST:
        driver.up(member)
    effects = [e for member, base in zip(LAST, bases, strict=True) for e in driver.fenced(member, base=base)]
    return driver, effects


def test_older_frames_are_copied_to_the_member_that_lacks_them_from_those_who_have_them() -> None:
    _, effects = merging(C, E)
    (copy,) = effects
    assert isinstance(copy, Backfill)
    assert copy._replace(sources=()) == Backfill(1, D.key, 1, 10, ())
    assert set(copy.sources) == set(keys(A, B, C))


def test_members_whose_end_was_not_cut_are_asked_before_those_that_lost_it_G2() -> None:
    driver = Driver(ranges=(Range(1, ABC), Range(11, (D, E, B))), fenced=False)
    for member in (damaged(A), D, E, B):
        driver.up(member)
    effects = [e for member, base in zip((D, E, B), (11, 11, 1), strict=True) for e in driver.fenced(member, base=base)]
    (copy,) = effects
    assert copy.sources == (B.key, damaged(A).key)


def test_ranges_merge_when_every_member_holds_the_older_one() -> None:
    driver, _ = merging()
    assert driver.log.whole == list(keys(A, B))
    (asked,) = driver.told(Filled(1, D.key, 1))
    assert asked == CompareAndSet(VERSION, driver.record._replace(ranges=(Range(1, LAST),)))
    assert driver.settled() == []
    assert driver.log.record.ranges == (Range(1, LAST),)
    assert driver.log.whole == list(keys(A, B, D))


def test_copy_that_was_not_finished_is_asked_for_again_and_nothing_merges() -> None:
    driver, _ = merging()
    (copy,) = driver.told(Filled(1, D.key, 6))
    assert (copy.store, copy.first, copy.last) == (D.key, 1, 5)


def test_one_member_is_filled_at_a_time() -> None:
    driver, effects = merging(bases=(1, 11, 11))
    (copy,) = effects
    assert copy.store == B.key
    (copy,) = driver.told(Filled(1, B.key, 1))
    assert copy.store == D.key


def test_end_of_a_copy_that_was_given_up_is_not_believed_G2() -> None:
    """The store was lost meanwhile, and may have been joined anew and hold less: merging would vouch for what it lacks."""
    driver, _ = merging()
    driver.lost(D)
    assert driver.told(Filled(1, D.key, 1)) == []
    driver.up(D)
    assert kinds(driver.fenced(D, base=11)) == ["Backfill"]
    assert driver.told(Filled(2, B.key, 1)) == [], "another one's copy is under way"
    assert driver.told(Filled(1, D.key, 1)) == [], "that is the end of the first copy, not of the second"


def test_nothing_is_copied_before_the_tail_is_committed() -> None:
    driver, effects = merging(tail=TAIL)
    assert kinds(effects) == ["SendFrames"] * 3
    assert kinds(driver.everybody_stored(TAIL[2]) + driver.tick(0)) == ["Committed", "Backfill"]


def test_nothing_is_copied_while_a_member_before_it_is_away() -> None:
    driver, _ = merging()
    driver.lost(D)
    driver.up(D)
    driver.lost(A)
    assert kinds(driver.fenced(D, base=11)) == []


def test_nothing_is_copied_while_nobody_has_the_older_frames() -> None:
    driver = Driver(ranges=(Range(1, ABC), Range(11, (D, E))), wish=Wish(2, 2, STRICT.order), fenced=False)
    for member in (D, E):
        driver.up(member)
        assert driver.fenced(member, base=11) == []
    (copy,) = driver.up(damaged(C))
    assert copy == Backfill(1, D.key, 1, 10, (damaged(C).key,)), "what it holds still holds, though it cannot be a member"


def test_ranges_merge_one_pair_after_the_other_newest_first() -> None:
    driver = Driver(ranges=(Range(1, ABC), Range(5, ABC), Range(11, ABC)), fenced=False)
    for member in ABC:
        driver.up(member)
    effects = [effect for member in ABC for effect in driver.fenced(member)]
    (asked,) = effects
    assert asked.record.ranges == (Range(1, ABC), Range(5, ABC))
    (asked,) = driver.settled()
    assert (asked.version, asked.record.ranges) == (VERSION + 1, (Range(1, ABC),))


def test_change_waits_for_the_outcome_of_a_merge() -> None:
    driver, _ = merging()
    driver.told(Filled(1, D.key, 1))
    driver.up(E)
    assert driver.lost(B) == []
    assert asks_join(driver.settled()) == [(E.key, 1)]


# ---------------------------------------------------------------------- rule 4: what a new member holds when it is declared


def test_store_holds_all_that_is_committed_below_its_range_before_that_is_declared_G2() -> None:
    """Otherwise ranges merge (by bases alone) over frames that it lacks, and a takeover that hears it alone forgets them."""
    driver = Driver(A, B, wish=REDUCED)
    driver.up(C)
    frames = [driver.propose(), driver.propose()]
    driver.everybody_stored(frames[1])
    assert driver.log.committed == 12
    assert kinds(driver.joined(C, 1)) == ["SendFrames"]
    assert kinds(driver.stored(C, frames[0])) == []
    assert range_of(driver.stored(C, frames[1])) == Range(13, (A, B, C))


def test_ranges_never_merge_over_frames_that_a_member_lacks_G2() -> None:
    driver = Driver(A, B, wish=REDUCED)
    driver.up(C)
    frames = [driver.propose(), driver.propose()]
    driver.everybody_stored(frames[1])
    effects = driver.joined(C, 1, base=1)
    if "CompareAndSet" in kinds(effects):
        assert kinds(driver.settled()) == [], "frames 11 and 12 are not on C's disk"


# ---------------------------------------------------------------------- rule 5: one process, one epoch


@pytest.mark.parametrize("code", [Code.DEPOSED, Code.NOT_CHAINED])
def test_no_ends_the_writer_G9(driver: Driver, code: Code) -> None:
    (ended,) = driver.told(NotStored(A.key, EPOCH, code, "epoch 5 does"))
    assert ended == Ended(f"{A.key} refuses epoch 4: epoch 5 does")


def test_lost_compare_and_set_ends_the_writer_G9() -> None:
    driver, frame = shrinking()
    driver.everybody_stored(frame, B, C)
    assert driver.told(Settled(9, "the record is another writer's")) == [Ended("the record is another writer's")]
    assert driver.log.committed == 10


def test_lost_compare_and_set_of_a_merge_ends_the_writer_too_G9() -> None:
    driver, _ = merging()
    driver.told(Filled(1, D.key, 1))
    assert kinds(driver.told(Settled(9, "another writer's"))) == ["Ended"]


def test_what_was_meant_for_an_earlier_machine_is_nothing(driver: Driver) -> None:
    assert driver.told(RecordRead(1, None)) == []


# ---------------------------------------------------------------------- rule 6: the tail first


def test_tail_is_sent_as_it_is_and_is_committed_before_the_writer_is_open() -> None:
    driver = Driver(tail=TAIL, fenced=False)
    assert (driver.log.open_at, driver.log.committed, driver.log.last_index, driver.log.has_room) == (13, 10, 13, False)
    driver.up(A)
    assert driver.fenced(A, [*HISTORY, TAIL[0]]) == [SendFrames((A.key,), TAIL[1:])], "epochs and all"
    for member in (B, C):
        driver.up(member)
        driver.fenced(member)
    assert driver.everybody_stored(TAIL[2]) == [Committed(13)]
    assert driver.log.committed >= driver.log.open_at
    assert head(driver.propose()).prev_crc == head(TAIL[2]).header_crc


def test_member_that_holds_the_whole_tail_needs_no_frame() -> None:
    driver = Driver(tail=TAIL, fenced=False)
    for member in ABC:
        driver.up(member)
    effects = [effect for member in ABC for effect in driver.fenced(member, [*HISTORY, *TAIL])]
    assert effects == [Committed(13)]


# ---------------------------------------------------------------------- rule 7: what may be served


def test_idle_writer_tells_the_stores_once_what_is_committed(driver: Driver) -> None:
    driver.everybody_stored(driver.propose())
    (sent,) = driver.told(Idle())
    header = head(sent.frames[0])
    assert (header.count, header.committed_upto) == (0, 11)
    assert driver.told(Idle()) == [], "it is under way"
    driver.everybody_stored(sent.frames[0])
    assert driver.told(Idle()) == [], "an empty frame needs no voucher"


def test_epoch_begins_with_a_frame_even_when_nobody_writes(driver: Driver) -> None:
    (sent,) = driver.told(Idle())
    assert head(sent.frames[0]).epoch == EPOCH


def test_idle_writer_says_nothing_while_something_is_under_way() -> None:
    assert Driver(tail=TAIL).log.handle(Idle()) == []


def test_only_members_that_hold_the_whole_log_may_be_asked_for_sessions() -> None:
    driver = Driver(A, B, wish=REDUCED)
    driver.up(C)
    driver.joined(C, 1, base=1)
    assert driver.log.whole == list(keys(A, B)), "C is not a member yet"
    driver.settled()
    assert driver.log.whole == list(keys(A, B, C))
    driver.lost(A)
    assert driver.log.whole == list(keys(B, C))


def test_member_that_is_connected_and_does_not_answer_is_named_G8() -> None:
    driver = Driver()
    driver.told(Tick(0))
    driver.told(Proposed(pack_records([]), 0))
    index, crc = driver.log.last_index, driver.log._last_crc
    for member in (A, B):
        driver.told(Stored(member.key, EPOCH, index, crc))
    assert driver.log.holding_up == []
    driver.told(Tick(LIMITS.member_lag_ms + 1))
    assert driver.log.holding_up == [C.name]
    driver.told(Stored(C.key, EPOCH, index, crc))
    driver.told(Tick(LIMITS.member_lag_ms + 2))
    assert driver.log.holding_up == []


def test_copy_to_a_store_that_left_the_ensemble_and_joined_anew_is_not_believed_G2() -> None:
    """Found by the simulation (seed 592): the join may have cut what was copied before, and a merge would vouch for it."""
    driver, (copy,) = merging()
    frame = driver.propose()
    driver.everybody_stored(frame, A, B)
    driver.up(E)
    driver.tick(0)
    assert asks_join(driver.tick(LIMITS.member_lag_ms)) == [(E.key, 1)], "D is slow"
    driver.joined(E, 1)
    driver.settled()
    driver.everybody_stored(frame, E)
    assert asks_join(driver.lost(A)) == [(D.key, 2)]
    driver.joined(D, 2, driver.frames, base=12)
    driver.settled(VERSION + 2)
    assert D in driver.log.members
    assert driver.told(Filled(copy.number, D.key, 1)) == []
