"""How the first writer with a register takes a partition that has no record, rule by rule (design §6): G2, G9, G11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from small_log import LIMITS, LOG_ID, PARTITION, A, B, C, D, Desk, answer, chain, damaged, emptied, head
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.founding import Founding, Inspect, Inspected
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    CompareAndSet,
    Ended,
    Fenced,
    NotStored,
    SendFrames,
    Settled,
    Stored,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.takeover import FenceRefused, Fetch, Fetched, TookOver
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, StoreView

ABC = (A, B, C)
NAMES = tuple(member.name for member in ABC)
WRITER = "writer"


class Attempt:
    """A founding, and three stores that hold `logs` and last obeyed a writer of epoch 1."""

    def __init__(self, *logs: Sequence[bytes], cut: Sequence[int] = ()) -> None:
        """The stores at the places in `cut` lost the end of their journals, if only a part of a frame that nobody needs."""
        self.machine = Founding(
            log_id=LOG_ID, partition=PARTITION, writer=WRITER, address="h:1", stores=NAMES,
            wish=Wish(3, 3, NAMES), limits=LIMITS,
        )  # fmt: skip
        assert self.machine.begin() == []
        self.desks = [Desk(member, log, epoch=1 if log else 0) for member, log in zip(ABC, logs or ((), (), ()), strict=True)]
        for place in cut:
            self.desks[place].cut(self.desks[place].last_index)
        self.record: PartitionRecord | None = None

    def up(self, *members: Member) -> list[Any]:
        return [effect for member in members for effect in self.machine.handle(StoreUp(member))]

    def inspected(self, *epochs: int) -> list[Any]:
        views = [Inspected(member.key, StoreView(epoch, 0)) for member, epoch in zip(ABC, epochs, strict=False)]
        return [effect for view in views for effect in self.machine.handle(view)]

    def fenced(self, member: Member, frames: Sequence[bytes] = (), committed_upto: int = 0) -> list[Any]:
        return self.machine.handle(Fenced(member.key, answer(frames, committed_upto)))

    def lost(self, member: Member) -> list[Any]:
        return self.machine.handle(StoreLost(member.key))

    def asked_to_fence(self) -> list[Any]:
        """All three are connected and were inspected."""
        self.up(*ABC)
        return self.inspected(1, 1, 1)

    def copying(self, *logs: Sequence[bytes]) -> list[Any]:
        """All three have answered the fence."""
        self.asked_to_fence()
        return [effect for member, log in zip(ABC, logs, strict=True) for effect in self.fenced(member, log)]

    def play(self, page: int = 2) -> Any:
        """Carry out all that it asks of the stores and of the register, until it has nothing to ask; the last effect."""
        effects = self.up(*(desk.member for desk in self.desks))
        desks = {desk.key: desk for desk in self.desks}
        effect: Any = None
        while effects:
            effect = effects.pop(0)
            match effect:
                case Inspect(key):
                    effects += self.machine.handle(Inspected(key, desks[key].view()))
                case AskFence(key, epoch):
                    effects += self.machine.handle(desks[key].fence(epoch, WRITER))
                case Fetch(key, first, last):
                    effects += self.machine.handle(Fetched(desks[key].read(first, last)[:page]))
                case SendFrames(keys, frames):
                    for desk in (desks[key] for key in keys):
                        for frame in frames:
                            effects += self.machine.handle(desk.append(self.machine.epoch, WRITER, frame))
                case CompareAndSet(version, record):
                    assert (version, self.record) == (0, None)
                    self.record = record
                    effects += self.machine.handle(Settled(1))
        return effect

    def logs(self) -> list[list[bytes]]:
        return [desk.read(1, desk.last_index) for desk in self.desks]


def ended(effects: list[Any]) -> str:
    (end,) = effects
    assert isinstance(end, Ended)
    return end.text


# ---------------------------------------------------------------------- rule 1: all are asked and fenced


def test_it_waits_until_all_first_stores_were_asked() -> None:
    attempt = Attempt()
    assert attempt.up(A, B) == [Inspect(A.key), Inspect(B.key)]
    assert attempt.inspected(4, 2) == []
    assert attempt.machine.handle(Tick(60_000)) == []
    assert attempt.machine.waiting_for == [C.name]
    assert attempt.machine.phase == "asking the stores"


def test_other_stores_have_no_say() -> None:
    attempt = Attempt()
    assert attempt.up(A, B, D) == [Inspect(A.key), Inspect(B.key)]


def test_epoch_is_above_the_highest_that_any_store_has_seen_G9() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    assert attempt.inspected(4, 9, 2) == [AskFence(member.key, 10) for member in ABC]


def test_nothing_is_decided_before_all_are_fenced() -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    assert attempt.fenced(A) == attempt.fenced(B) == []
    assert attempt.machine.handle(Tick(60_000)) == []
    assert attempt.machine.waiting_for == [C.name]
    assert isinstance(attempt.fenced(C)[0], CompareAndSet)


def test_store_that_was_lost_is_asked_again_when_it_is_back() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    assert attempt.lost(B) == []
    assert attempt.up(B) == [Inspect(B.key)]
    assert attempt.inspected(1, 1, 1) == [AskFence(member.key, 2) for member in ABC]
    attempt.fenced(B, chain(1))
    assert attempt.lost(B) == []
    assert attempt.up(B) == [AskFence(B.key, 2)]
    assert attempt.fenced(A) == attempt.fenced(C) == [], "what B said before it was lost is forgotten"
    assert isinstance(attempt.fenced(B)[0], CompareAndSet)


def test_refused_fence_ends_the_attempt_G9() -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    assert (
        ended(attempt.machine.handle(FenceRefused(B.key, "epoch 7 was seen"))) == f"{B.key} refuses the fence: epoch 7 was seen"
    )


def test_store_that_changes_its_identity_after_it_was_asked_ends_the_attempt() -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    assert ended(attempt.up(damaged(B))) == "store-b changed its identity while the partition was founded"


def test_answer_of_a_store_that_is_not_at_its_place_any_more_counts_for_nothing() -> None:
    attempt = Attempt()
    attempt.up(A, B, C)
    attempt.lost(C)
    attempt.up(emptied(C))
    assert attempt.inspected(1, 1, 1) == []
    assert attempt.machine.waiting_for == [C.name]


# ---------------------------------------------------------------------- rules 2 and 3: one tail for all

BASE = chain(1, 1)
LONGER = chain(1, before=BASE)
LATER = chain(3, before=BASE)
OTHER = chain(2, 2, 2, before=BASE)
LONG = chain(1, 1, 4, 4, 4, 5, before=BASE)


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("cut", [(), (1,), (0, 1, 2)], ids=["all sure", "one cannot tell", "none can tell"])
@pytest.mark.parametrize(
    ("logs", "tail"),
    [
        ((BASE, BASE, BASE), BASE),
        ((BASE, LONGER, BASE), LONGER),
        ((LONGER, BASE, LATER), LATER),
        ((OTHER, LATER, BASE), LATER),
        (([], OTHER, []), OTHER),
        (([], [], []), []),
        ((BASE[:1], LONG, OTHER), LONG),
    ],
    ids=["equal", "longer", "later epoch wins", "later epoch beats longer", "two are empty", "all are empty", "long"],
)
def test_frames_of_the_first_version_become_one_log_on_all_stores_with_a_record_G2(
    logs: tuple[list[bytes], ...], tail: list[bytes], page: int, cut: tuple[int, ...]
) -> None:
    attempt = Attempt(*logs, cut=cut)
    taken = attempt.play(page)
    assert isinstance(taken, TookOver)
    assert attempt.logs() == [tail] * 3
    members = tuple(desk.member for desk in attempt.desks)
    epoch = max((head(frame).epoch for log in logs for frame in log), default=0) + 1
    assert attempt.record == PartitionRecord(epoch, WRITER, "h:1", (Range(1, members),))
    log = taken.log
    assert (log.epoch, log.version, log.record) == (epoch, 1, attempt.record)
    assert (log.last_index, log.committed, log.open_at) == (len(tail), len(tail), len(tail))
    assert taken.answers == {}, "each is fenced once more before it gets frames"
    assert head(log.propose(b"\x90", 0)).prev_crc == (head(tail[-1]).header_crc if tail else 0)


def test_empty_system_gets_a_record_without_a_frame_being_read() -> None:
    attempt = Attempt()
    (asked,) = attempt.copying([], [], [])
    assert asked == CompareAndSet(0, PartitionRecord(2, WRITER, "h:1", (Range(1, ABC),)))
    assert attempt.machine.phase == "writing its record"


@pytest.mark.parametrize("committed", [(2, 0, 0), (1, 2, 2), (0, 1, 2)])
def test_what_stores_know_to_be_committed_is_not_sent_again(committed: tuple[int, ...]) -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    effects: list[Any] = []
    for member, log, upto in zip(ABC, (LONGER, BASE, LONGER), committed, strict=True):
        effects += attempt.fenced(member, log, upto)
    assert effects == [Fetch(A.key, 3, 3)]
    assert attempt.machine.handle(Fetched(LONGER[2:])) == [SendFrames((B.key,), LONGER[2:])]


def test_only_stores_that_lack_frames_get_them() -> None:
    attempt = Attempt()
    (fetch,) = attempt.copying(LONGER, LONGER, BASE)
    assert attempt.machine.handle(Fetched(LONGER[fetch.first - 1 :])) == [SendFrames((C.key,), LONGER[2:])]


def test_log_that_ends_below_a_committed_frame_is_reported_as_proof_of_loss_G8() -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    attempt.fenced(A, BASE)
    attempt.fenced(B, BASE)
    text = ended(attempt.machine.handle(Fenced(C.key, FenceAnswer(5, True, 1, answer(BASE).tail))))
    assert "proof of loss" in text
    assert "trilogue verify" in text


def test_data_that_was_written_with_a_register_is_not_founded_anew_G8() -> None:
    """A chain that begins above 1 was joined: there was a record. Whoever lost it must hear so, not get a log with a hole."""
    attempt = Attempt()
    attempt.asked_to_fence()
    attempt.machine.handle(Fenced(A.key, answer(LONG, base=5)))
    attempt.machine.handle(Fenced(B.key, answer(LONG, base=5)))
    assert "register" in ended(attempt.machine.handle(Fenced(C.key, answer(LONG, base=5))))


# ---------------------------------------------------------------------- rule 3: making all equal


def last_crc(frames: list[bytes]) -> int:
    return head(frames[-1]).header_crc


def test_record_waits_until_every_store_holds_the_tail_G1() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, BASE)
    attempt.machine.handle(Fetched(LONGER[2:]))
    assert attempt.machine.handle(Stored(B.key, 2, 3, last_crc(LONGER))) == []
    assert isinstance(attempt.machine.handle(Stored(C.key, 2, 3, last_crc(LONGER)))[0], CompareAndSet)


def test_yes_to_an_earlier_attempt_counts_for_nothing_G9() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, LONGER)
    attempt.machine.handle(Fetched(LONGER[2:]))
    assert attempt.machine.handle(Stored(B.key, 1, 3, last_crc(LONGER))) == []
    assert attempt.machine.waiting_for == []
    assert attempt.machine.phase == "making the stores equal"


def test_yes_for_another_frame_breaks_an_invariant() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, LONGER)
    attempt.machine.handle(Fetched(LONGER[2:]))
    with pytest.raises(InvariantBroken, match="confirms another frame at 3"):
        attempt.machine.handle(Stored(B.key, 2, 3, 12345))


def test_store_that_is_lost_while_stores_are_made_equal_ends_the_attempt() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, BASE)
    assert attempt.lost(D) == []
    assert ended(attempt.lost(C)) == "store-c was lost while the stores were made equal"


def test_no_of_a_store_ends_the_attempt_and_a_no_to_another_epoch_does_not() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, BASE)
    assert attempt.machine.handle(NotStored(B.key, 1, Code.DEPOSED, "old")) == []
    assert "cannot take its part: epoch 3 does" in ended(
        attempt.machine.handle(NotStored(B.key, 2, Code.DEPOSED, "epoch 3 does"))
    )


def test_source_that_gives_nothing_ends_the_attempt() -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, BASE)
    assert "from 3 on" in ended(attempt.machine.handle(Fetched([])))


@pytest.mark.parametrize(
    "frames", [[LONGER[0]], [b"junk"], [LATER[2][:-8]], chain(1, 1, 1, 1, 1, 1)[3:4]], ids=["index", "junk", "cut", "hole"]
)
def test_frames_that_were_not_asked_for_are_refused(frames: list[bytes]) -> None:
    attempt = Attempt()
    attempt.copying(LONGER, BASE, BASE)
    with pytest.raises(ProtocolError):
        attempt.machine.handle(Fetched(frames))


FOREIGN = chain(7, 7, 7, 7)[3]
"""A frame 4 of another chain."""


def test_frames_that_do_not_chain_are_refused() -> None:
    attempt = Attempt()
    attempt.copying(OTHER, BASE, OTHER)
    with pytest.raises(ProtocolError, match="does not chain"):
        attempt.machine.handle(Fetched([OTHER[2], FOREIGN]))


def test_pages_that_do_not_chain_to_each_other_are_refused() -> None:
    attempt = Attempt()
    attempt.copying(OTHER, BASE, OTHER)
    attempt.machine.handle(Fetched([OTHER[2]]))
    assert attempt.machine.handle(Stored(B.key, 2, 3, head(OTHER[2]).header_crc)) == [Fetch(A.key, 4, 5)]
    with pytest.raises(ProtocolError, match="does not chain"):
        attempt.machine.handle(Fetched([FOREIGN]))


# ---------------------------------------------------------------------- rule 4: the first record


def test_lost_compare_and_set_ends_the_attempt_G9() -> None:
    attempt = Attempt()
    attempt.copying([], [], [])
    assert ended(attempt.machine.handle(Settled(1, "another writer's"))) == "another writer's"


def test_store_that_is_lost_while_the_record_is_written_is_the_log_writers_concern() -> None:
    attempt = Attempt()
    attempt.copying([], [], [])
    assert attempt.lost(C) == []
    assert attempt.machine.waiting_for == [C.name]
    (taken,) = attempt.machine.handle(Settled(1))
    assert isinstance(taken, TookOver)
    assert taken.log.members == ABC


def test_outcome_that_nobody_asked_for_is_nothing() -> None:
    attempt = Attempt()
    attempt.asked_to_fence()
    assert attempt.machine.handle(Settled(1)) == []
