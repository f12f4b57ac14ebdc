"""The log writer, rule by rule: write all, a bounded window, commits in order (design §6)."""

from __future__ import annotations

from typing import Any

import pytest

from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import (
    Committed,
    Ended,
    Idle,
    LogWriter,
    MemberBack,
    MemberLost,
    NotStored,
    Proposed,
    SendFrames,
    Stored,
)
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, TailEntry

STORES = ("store-1", "store-2", "store-3")
LIMITS = Limits(frames_in_flight_max=3)
EPOCH, LAST_INDEX, LAST_CRC = 4, 10, 0xABCD


def member_back(store: str, frames: list[bytes] = [], incarnation: int = 1) -> MemberBack:  # noqa: B006
    """A member that holds what was committed at the start, and `frames`."""
    tail = [TailEntry(LAST_INDEX, 1, LAST_CRC)]
    tail += [TailEntry(h.index, h.epoch, h.header_crc) for h in (decode_frame(f, 10_000) for f in frames)]
    return MemberBack(store, (f"uuid of {store}", incarnation), FenceAnswer(LAST_INDEX, True, tail))


class Driver:
    """A writer whose members were all fenced again, and the frames that it made."""

    def __init__(self, connected: tuple[str, ...] = STORES) -> None:
        members = {name: (f"uuid of {name}", 1) for name in STORES}
        self.log = LogWriter(
            log_id=7, partition=3, epoch=EPOCH, members=members, last_index=LAST_INDEX, last_crc=LAST_CRC, limits=LIMITS
        )
        for name in connected:
            assert self.log.handle(member_back(name)) == []

    def propose(self, count: int = 1) -> bytes:
        (sent,) = self.log.handle(Proposed(pack_records([]), count))
        assert isinstance(sent, SendFrames)
        return sent.frames[0]

    def stored(self, store: str, frame: bytes, epoch: int = EPOCH) -> list[Any]:
        header = decode_frame(frame, 10_000)
        return self.log.handle(Stored(store, epoch, header.index, header.header_crc))


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_frame_chains_to_the_last_one_and_says_what_is_committed(driver: Driver) -> None:
    first, second = (decode_frame(driver.propose(), 10_000) for _ in range(2))
    assert (first.index, first.epoch, first.prev_crc, first.committed_upto) == (11, EPOCH, LAST_CRC, 10)
    assert (second.index, second.prev_crc, second.committed_upto) == (12, first.header_crc, 10)


def test_frame_is_committed_only_when_every_member_said_yes_G1(driver: Driver) -> None:
    frame = driver.propose()
    assert driver.stored("store-1", frame) == []
    assert driver.stored("store-2", frame) == []
    assert driver.log.committed == 10
    assert driver.stored("store-3", frame) == [Committed(11)]
    assert driver.log.committed == 11


def test_one_member_that_says_yes_twice_counts_once_G1(driver: Driver) -> None:
    frame = driver.propose()
    for _ in range(3):
        assert driver.stored("store-1", frame) == []
    assert driver.stored("store-2", frame) == []
    assert driver.log.committed == 10


def test_commits_are_in_order_whatever_the_order_of_answers(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(3)]
    assert driver.stored("store-1", frames[2]) == []
    assert driver.stored("store-2", frames[1]) == []
    assert driver.stored("store-3", frames[0]) == [Committed(11)]
    assert driver.stored("store-3", frames[2]) == [Committed(12)]
    assert driver.stored("store-2", frames[2]) == [Committed(13)]


def test_yes_for_another_epoch_counts_for_nothing_G9(driver: Driver) -> None:
    frame = driver.propose()
    driver.stored("store-1", frame)
    driver.stored("store-2", frame)
    assert driver.stored("store-3", frame, epoch=EPOCH - 1) == []
    assert driver.log.committed == 10


def test_yes_for_another_frame_at_the_index_breaks_an_invariant(driver: Driver) -> None:
    driver.propose()
    with pytest.raises(InvariantBroken, match="confirms another frame at 11"):
        driver.log.handle(Stored("store-1", EPOCH, 11, 12345))


def test_yes_for_a_frame_that_was_never_sent_breaks_an_invariant(driver: Driver) -> None:
    with pytest.raises(InvariantBroken, match="never sent"):
        driver.log.handle(Stored("store-1", EPOCH, 11, 12345))


def test_window_is_bounded_and_opens_with_commits(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(LIMITS.frames_in_flight_max)]
    assert not driver.log.has_room
    with pytest.raises(InvariantBroken, match="beyond the window"):
        driver.log.handle(Proposed(pack_records([]), 1))
    for store in STORES:
        driver.stored(store, frames[0])
    assert driver.log.has_room


def test_member_that_is_lost_gets_nothing_and_nothing_is_committed_without_it(driver: Driver) -> None:
    driver.log.handle(MemberLost("store-2"))
    assert driver.log.missing == ["store-2"]
    (sent,) = driver.log.handle(Proposed(pack_records([]), 1))
    assert sent.stores == ("store-1", "store-3")
    driver.stored("store-1", sent.frames[0])
    assert driver.stored("store-3", sent.frames[0]) == []


def test_member_that_comes_back_gets_the_same_bytes_that_it_lacks(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(3)]
    driver.log.handle(MemberLost("store-2"))
    assert driver.log.handle(member_back("store-2", frames[:1])) == [SendFrames(("store-2",), frames[1:])]
    assert driver.log.missing == []


def test_answer_of_a_member_that_comes_back_counts_as_its_yes(driver: Driver) -> None:
    frames = [driver.propose() for _ in range(2)]
    driver.stored("store-1", frames[1])
    driver.stored("store-3", frames[1])
    driver.log.handle(MemberLost("store-2"))
    assert driver.log.handle(member_back("store-2", frames)) == [Committed(12)]


def test_other_frames_that_a_member_holds_do_not_count(driver: Driver) -> None:
    other = Driver()
    other.log.epoch = EPOCH - 1
    stale = other.propose()
    frame = driver.propose()
    driver.log.handle(MemberLost("store-2"))
    assert driver.log.handle(member_back("store-2", [stale])) == [SendFrames(("store-2",), [frame])]


def test_frames_wait_for_members_that_are_not_fenced_yet() -> None:
    driver = Driver(connected=())
    frame = driver.propose()
    assert driver.log.handle(member_back("store-1")) == [SendFrames(("store-1",), [frame])]


@pytest.mark.parametrize("identity", [("uuid of store-2", 2), ("another uuid", 1)])
def test_member_with_another_identity_ends_the_writer(driver: Driver, identity: tuple[str, int]) -> None:
    driver.log.handle(MemberLost("store-2"))
    (ended,) = driver.log.handle(member_back("store-2")._replace(identity=identity))
    assert isinstance(ended, Ended)
    assert "store-2 is another store" in ended.text


@pytest.mark.parametrize("tail", [[], [TailEntry(9, 1, 5)], [TailEntry(10, 1, 5)]])
def test_same_member_without_a_committed_frame_breaks_an_invariant_G2(driver: Driver, tail: list[TailEntry]) -> None:
    back = MemberBack("store-2", ("uuid of store-2", 1), FenceAnswer(0, True, tail))
    with pytest.raises(InvariantBroken, match="lost a commit"):
        driver.log.handle(back)


@pytest.mark.parametrize("code", [Code.DEPOSED, Code.NOT_CHAINED])
def test_no_ends_the_writer_G9(driver: Driver, code: Code) -> None:
    (ended,) = driver.log.handle(NotStored("store-1", EPOCH, code, "epoch 5 does"))
    assert ended == Ended("store-1 refuses epoch 4: epoch 5 does")


def test_full_store_is_waited_for_and_a_no_to_an_earlier_epoch_is_nothing(driver: Driver) -> None:
    assert driver.log.handle(NotStored("store-1", EPOCH, Code.FULL, "no room")) == []
    assert driver.log.handle(NotStored("store-1", EPOCH - 1, Code.DEPOSED, "old")) == []


def test_idle_writer_tells_the_stores_once_what_is_committed(driver: Driver) -> None:
    frame = driver.propose()
    for store in STORES:
        driver.stored(store, frame)
    (sent,) = driver.log.handle(Idle())
    header = decode_frame(sent.frames[0], 10_000)
    assert (header.count, header.committed_upto) == (0, 11)
    assert driver.log.handle(Idle()) == [], "it is under way"
    for store in STORES:
        driver.stored(store, sent.frames[0])
    assert driver.log.handle(Idle()) == [], "an empty frame needs no voucher"


def test_epoch_begins_with_a_frame_even_when_nobody_writes(driver: Driver) -> None:
    (sent,) = driver.log.handle(Idle())
    assert decode_frame(sent.frames[0], 10_000).epoch == EPOCH
