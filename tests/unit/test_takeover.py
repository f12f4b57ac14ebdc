"""How a writer takes a partition that has a record, rule by rule (design §6, rules 1, 2 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from small_log import LIMITS, LOG_ID, PARTITION, A, B, C, D, answer, chain, damaged, emptied, head
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    CompareAndSet,
    Ended,
    Fenced,
    SendFrames,
    Settled,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.takeover import (
    AskHeard,
    FenceRefused,
    Fetch,
    Fetched,
    Heard,
    NoRecord,
    ReadRecord,
    RecordRead,
    Takeover,
    TookOver,
)
from trilogue.actors.protocol.vocabulary import FenceAnswer

ABC = (A, B, C)
SILENT_MS, WAIT_MS = LIMITS.writer_silent_ms, LIMITS.fence_wait_ms
VERSION = 9
RECORD = PartitionRecord(4, "the writer before", "h:9", (Range(1, ABC),))
LOG = chain(1, 1, 2, 4)


class Attempt:
    """A takeover of a partition whose last writer had epoch 4; its process has been up for a while."""

    def __init__(self, record: PartitionRecord = RECORD) -> None:
        self.record = record
        wish = Wish(3, 3, tuple(member.name for member in (A, B, C, D)))
        self.machine = Takeover(
            log_id=LOG_ID, partition=PARTITION, writer="writer", address="h:1", wish=wish, limits=LIMITS
        )  # fmt: skip
        self.now_ms = 0
        self.ticked(10_000)
        assert self.machine.begin() == [ReadRecord()]

    def up(self, *members: Member) -> list[Any]:
        return [effect for member in members for effect in self.machine.handle(StoreUp(member))]

    def lost(self, member: Member) -> list[Any]:
        return self.machine.handle(StoreLost(member.key))

    def read(self) -> list[Any]:
        return self.machine.handle(RecordRead(VERSION, self.record))

    def heard(self, member: Member, silent_ms: int = -1, epoch: int = 4) -> list[Any]:
        return self.machine.handle(Heard(member.key, epoch, silent_ms))

    def ticked(self, more_ms: int) -> list[Any]:
        self.now_ms += more_ms
        return self.machine.handle(Tick(self.now_ms))

    def claimed(self, *members: Member) -> list[Any]:
        """All members that are there have lost the old writer, and the record is this one's now."""
        self.up(*members)
        self.read()
        effects: list[Any] = [effect for member in members for effect in self.heard(member)]
        if not effects:
            effects = self.ticked(SILENT_MS)
        assert any(isinstance(effect, CompareAndSet) for effect in effects)
        return self.machine.handle(Settled(VERSION + 1))

    def fenced(self, member: Member, frames: Sequence[bytes] = LOG, committed_upto: int = 0, **more: Any) -> list[Any]:
        return self.machine.handle(Fenced(member.key, answer(frames, committed_upto, **more)))


def took_over(effects: list[Any]) -> TookOver:
    (taken,) = effects
    assert isinstance(taken, TookOver)
    return taken


def ended(effects: list[Any]) -> str:
    (end,) = effects
    assert isinstance(end, Ended)
    return end.text


# ---------------------------------------------------------------------- rules 1 and 2: may it begin?


def test_partition_without_a_record_is_founded() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    assert attempt.machine.handle(RecordRead(0, None)) == [NoRecord()]
    assert attempt.read() == []


def test_stores_of_the_last_range_are_asked_whether_they_hear_the_writer() -> None:
    attempt = Attempt(RECORD._replace(ranges=(Range(1, (B, C, D)), Range(3, ABC))))
    assert attempt.up(A, D) == [], "what to ask is not known yet"
    assert attempt.read() == [AskHeard(A.key)]
    assert attempt.up(B) == [AskHeard(B.key)]
    assert attempt.machine.phase == "asking the stores whether its writer is gone"
    assert attempt.machine.waiting_for == [C.name]


def test_epoch_is_above_the_record_and_all_that_the_stores_have_seen_G9() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    attempt.read()
    attempt.heard(A, epoch=4)
    attempt.heard(B, epoch=11)
    claim = PartitionRecord(12, "writer", "h:1", RECORD.ranges)
    assert attempt.heard(C, epoch=0) == [CompareAndSet(VERSION, claim)]
    assert attempt.machine.epoch == 12


def test_claim_waits_for_every_store_that_can_be_reached() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    attempt.read()
    assert attempt.heard(A) == attempt.heard(B) == []
    assert attempt.lost(C) == []
    assert [type(effect) for effect in attempt.ticked(10)] == [CompareAndSet]


def test_claim_waits_a_while_for_most_members_to_be_there() -> None:
    attempt = Attempt()
    attempt.up(A)
    attempt.read()
    assert attempt.heard(A) == []
    assert attempt.ticked(SILENT_MS - 1) == [AskHeard(A.key)]
    (claim,) = attempt.ticked(1)
    assert isinstance(claim, CompareAndSet), "one certain member is enough (G11)"


def test_writer_that_one_store_hears_is_not_pushed_out() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    attempt.read()
    effects = [*attempt.heard(A), *attempt.heard(B), *attempt.heard(C, silent_ms=SILENT_MS - 1)]
    assert effects == []
    assert attempt.ticked(2 * SILENT_MS) == [AskHeard(member.key) for member in ABC]
    assert ended(attempt.ticked(1)) == "its writer is alive"
    assert attempt.machine.epoch == 0


@pytest.mark.parametrize("silent_ms", [-1, SILENT_MS, 10 * SILENT_MS])
def test_writer_that_falls_silent_while_it_is_asked_for_is_replaced_G11(silent_ms: int) -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    attempt.read()
    for member in ABC:
        attempt.heard(member, silent_ms=10)
    attempt.ticked(SILENT_MS)
    assert attempt.heard(A, silent_ms) == attempt.heard(B, silent_ms) == []
    assert isinstance(attempt.heard(C, silent_ms)[0], CompareAndSet)


def test_store_that_was_never_fenced_hears_nobody() -> None:
    attempt = Attempt()
    attempt.up(A, B)
    attempt.read()
    attempt.heard(A, silent_ms=0, epoch=0)
    assert isinstance(attempt.heard(B, silent_ms=0, epoch=0)[0], CompareAndSet)


def test_what_a_lost_store_heard_is_forgotten() -> None:
    attempt = Attempt()
    attempt.up(*ABC)
    attempt.read()
    attempt.heard(A, silent_ms=0)
    attempt.lost(A)
    attempt.heard(B)
    assert isinstance(attempt.heard(C)[0], CompareAndSet)


def test_spare_stores_have_no_say() -> None:
    attempt = Attempt()
    attempt.up(D)
    assert attempt.read() == []
    assert attempt.ticked(10 * SILENT_MS) == []


def test_member_that_raised_its_incarnation_has_a_say_and_a_new_store_at_its_place_has_none() -> None:
    attempt = Attempt()
    attempt.up(damaged(A), emptied(B))
    assert attempt.read() == [AskHeard(damaged(A).key)]


# ---------------------------------------------------------------------- rule 3: the claim, then the fences


def test_fences_follow_the_compare_and_set_and_go_to_the_last_ranges_members() -> None:
    attempt = Attempt(RECORD._replace(ranges=(Range(1, (B, C, D)), Range(3, ABC))))
    attempt.up(D)
    assert attempt.claimed(A, B) == [AskFence(A.key, 5), AskFence(B.key, 5)]
    assert attempt.up(D) == []
    assert attempt.up(C) == [AskFence(C.key, 5)]


def test_nothing_is_asked_while_the_outcome_is_not_known() -> None:
    attempt = Attempt()
    attempt.up(A, B)
    attempt.read()
    attempt.heard(A)
    attempt.heard(B)
    assert attempt.up(C) == attempt.ticked(60_000) == attempt.heard(A) == attempt.fenced(A) == []
    assert attempt.machine.handle(Settled(VERSION + 1)) == [AskFence(member.key, 5) for member in ABC]


def test_lost_compare_and_set_ends_the_attempt_G9() -> None:
    attempt = Attempt()
    attempt.up(A, B)
    attempt.read()
    attempt.heard(A)
    attempt.heard(B)
    assert ended(attempt.machine.handle(Settled(VERSION + 3, "another writer's"))) == "another writer's"


def test_refused_fence_ends_the_attempt_G9() -> None:
    attempt = Attempt()
    attempt.claimed(*ABC)
    assert "epoch 7 was seen" in ended(attempt.machine.handle(FenceRefused(B.key, "epoch 7 was seen here")))


# ---------------------------------------------------------------------- rule 4: the tail, chosen once

BASE = chain(1, 1)
LONGER = chain(1, before=BASE)
LATER = chain(3, before=BASE)


def test_takeover_waits_a_little_for_the_members_that_are_there() -> None:
    attempt = Attempt()
    attempt.claimed(*ABC)
    assert attempt.fenced(A, BASE) == attempt.fenced(B, BASE) == []
    assert attempt.ticked(WAIT_MS - 1) == []
    assert attempt.ticked(1) == [Fetch(A.key, 1, 2)]


def test_one_certain_answer_is_enough_G11() -> None:
    attempt = Attempt()
    attempt.claimed(B)
    assert attempt.fenced(B, BASE) == [Fetch(B.key, 1, 2)]
    assert took_over(attempt.machine.handle(Fetched(BASE))).log.open_at == 2


@pytest.mark.parametrize(
    ("logs", "source"),
    [
        ((BASE, LONGER, BASE), B),
        ((LONGER, BASE, LATER), C),
        ((LATER, chain(2, 2, 2, before=BASE), BASE), A),
        (([], [], BASE), C),
    ],
    ids=["longer", "later epoch", "later epoch beats longer", "two are empty"],
)
def test_tail_is_that_of_the_highest_epoch_and_index_G2(logs: tuple[list[bytes], ...], source: Member) -> None:
    attempt = Attempt()
    attempt.claimed(*ABC)
    effects = [effect for member, frames in zip(ABC, logs, strict=True) for effect in attempt.fenced(member, frames)]
    (fetch,) = effects
    assert fetch.store == source.key


def test_what_a_member_knows_committed_is_not_fetched() -> None:
    attempt = Attempt()
    attempt.claimed(*ABC)
    attempt.fenced(A, LOG, committed_upto=2)
    attempt.fenced(B, LOG[:3], committed_upto=1)
    assert attempt.fenced(C, LOG[:3], committed_upto=0) == [Fetch(A.key, 3, 4)]
    log = took_over(attempt.machine.handle(Fetched(LOG[2:]))).log
    assert (log.committed, log.last_index, log.open_at) == (2, 4, 4)


def test_what_earlier_ranges_vouch_for_is_not_fetched() -> None:
    attempt = Attempt(RECORD._replace(ranges=(Range(1, (B, C, D)), Range(4, ABC))))
    attempt.claimed(A)
    assert attempt.fenced(A, LOG, base=4) == [Fetch(A.key, 4, 4)]
    log = took_over(attempt.machine.handle(Fetched(LOG[3:]))).log
    assert (log.committed, log.last_index) == (3, 4)


def test_empty_last_range_has_an_empty_tail() -> None:
    attempt = Attempt(RECORD._replace(ranges=(Range(1, (B, C, D)), Range(5, ABC))))
    attempt.claimed(A)
    log = took_over(attempt.fenced(A, LOG, base=5)).log
    assert (log.committed, log.last_index) == (4, 4)
    assert head(log.propose(b"\x90", 0)).prev_crc == head(LOG[3]).header_crc


def test_empty_log_is_taken_over() -> None:
    attempt = Attempt()
    attempt.claimed(A)
    assert took_over(attempt.fenced(A, [])).log.open_at == 0


def test_member_that_raised_its_incarnation_is_no_certain_answer_G2() -> None:
    attempt = Attempt()
    attempt.claimed(damaged(A), B)
    assert attempt.fenced(damaged(A), LONGER, certain=False) == []
    assert attempt.fenced(B, BASE) == [Fetch(B.key, 1, 2)]


def test_members_that_cannot_tell_are_believed_only_when_all_have_answered_G2() -> None:
    attempt = Attempt()
    attempt.claimed(damaged(A), damaged(B))
    assert attempt.fenced(damaged(A), LONGER, certain=False) == attempt.fenced(damaged(B), BASE, certain=False) == []
    assert attempt.ticked(60_000) == []
    assert attempt.up(damaged(C)) == [AskFence(damaged(C).key, 5)]
    assert attempt.fenced(damaged(C), LATER, certain=False) == [Fetch(damaged(C).key, 1, 3)]
    assert took_over(attempt.machine.handle(Fetched(LATER))).log.members == ABC, "until they are joined anew"


def test_new_store_at_a_members_place_does_not_speak_for_it_G2() -> None:
    """BookKeeper #4812: an empty directory under an old name would have been believed to hold nothing."""
    attempt = Attempt()
    attempt.claimed(damaged(A), damaged(B))
    assert attempt.up(emptied(C)) == []
    attempt.fenced(damaged(A), BASE, certain=False)
    assert attempt.fenced(damaged(B), BASE, certain=False) == attempt.fenced(emptied(C), []) == []
    assert attempt.ticked(60_000) == []


def test_member_that_the_record_names_is_certain_whatever_it_says_of_its_past() -> None:
    """Who founded the partition believed it, with all others: the record names this incarnation."""
    attempt = Attempt(RECORD._replace(ranges=(Range(1, (damaged(A), B, C)),)))
    attempt.claimed(damaged(A))
    assert attempt.fenced(damaged(A), BASE, certain=False) == [Fetch(damaged(A).key, 1, 2)]


def test_tail_is_chosen_once_G9() -> None:
    attempt = Attempt()
    attempt.claimed(A, B)
    attempt.fenced(A, BASE)
    assert attempt.ticked(WAIT_MS) == [Fetch(A.key, 1, 2)]
    assert attempt.fenced(B, LATER) == attempt.up(C) == attempt.fenced(C, LATER) == attempt.ticked(60_000) == []
    taken = took_over(attempt.machine.handle(Fetched(BASE)))
    assert taken.log.last_index == 2
    assert set(taken.answers) == {A.key}
    assert not attempt.machine.has_fenced(B.key), "it is fenced again, by the log writer"


def test_log_that_ends_below_a_committed_frame_is_reported_as_proof_of_loss_G8() -> None:
    attempt = Attempt()
    attempt.claimed(A)
    text = ended(attempt.machine.handle(Fenced(A.key, FenceAnswer(5, True, 1, answer(BASE).tail))))
    assert "proof of loss" in text
    assert "trilogue verify" in text


def test_log_that_ends_below_the_last_range_is_reported_as_proof_of_loss_G8() -> None:
    attempt = Attempt(RECORD._replace(ranges=(Range(1, ABC), Range(4, ABC))))
    attempt.claimed(A)
    assert "proof of loss" in ended(attempt.fenced(A, BASE))


# ---------------------------------------------------------------------- rule 4: reading the tail


def fetching() -> Attempt:
    """A holds LOG, and knows 1 committed: frames 2 to 4 are being read from it."""
    attempt = Attempt()
    attempt.claimed(A)
    assert attempt.fenced(A, LOG, committed_upto=1) == [Fetch(A.key, 2, 4)]
    return attempt


def test_tail_is_read_page_by_page() -> None:
    attempt = fetching()
    assert attempt.machine.handle(Fetched(LOG[1:2])) == [Fetch(A.key, 3, 4)]
    assert attempt.machine.handle(Fetched(LOG[2:3])) == [Fetch(A.key, 4, 4)]
    assert took_over(attempt.machine.handle(Fetched(LOG[3:]))).log.last_index == 4


def foreign(**other: int) -> bytes:
    """The frame that should come first, of another log or partition."""
    fields = {"log_id": LOG_ID, "partition": PARTITION, **other}
    prev_crc = head(LOG[0]).header_crc
    frame, _ = encode_frame(epoch=1, index=2, prev_crc=prev_crc, count=0, committed_upto=0, payload=b"\x90", **fields)
    return frame


@pytest.mark.parametrize(
    "frames",
    [
        LOG[2:], LOG[:1], [LOG[1], LOG[3]], [LOG[1], LOG[1]], [*LOG[1:3], chain(4, 4, 4, 4, salt=b"other")[3]],
        chain(1, 1, salt=b"other")[1:], [LOG[1][:-8]], [b"junk"], [foreign(log_id=8)], [foreign(partition=4)],
    ],
    ids=["hole", "before", "gap", "twice", "page", "chain", "cut", "junk", "log", "partition"],
)  # fmt: skip
def test_frames_that_were_not_asked_for_or_do_not_chain_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        fetching().machine.handle(Fetched(frames))


def test_pages_that_do_not_chain_to_each_other_are_refused() -> None:
    attempt = fetching()
    attempt.machine.handle(Fetched(LOG[1:2]))
    with pytest.raises(ProtocolError):
        attempt.machine.handle(Fetched(chain(1, 1, 2, salt=b"other")[2:]))


def test_frames_that_chain_but_are_not_those_of_the_chosen_tail_are_refused_G9() -> None:
    """A writer of a higher epoch may have superseded them since: 'choose once' means these CRCs."""
    with pytest.raises(ProtocolError):
        fetching().machine.handle(Fetched(chain(7, 7, 7, before=LOG[:1])[1:]))


def test_source_that_gives_nothing_ends_the_attempt() -> None:
    assert "cannot be read" in ended(fetching().machine.handle(Fetched([])))


def test_source_that_is_lost_while_it_is_read_ends_the_attempt() -> None:
    assert "lost" in ended(fetching().lost(A))


def test_others_may_be_lost_while_the_source_is_read() -> None:
    attempt = fetching()
    attempt.up(B)
    assert attempt.lost(B) == []


def test_page_that_nobody_asked_for_is_nothing() -> None:
    attempt = Attempt()
    attempt.claimed(A)
    assert attempt.machine.handle(Fetched(LOG)) == []


# ---------------------------------------------------------------------- rule 5: then an ordinary writer


def test_writer_has_the_tail_as_its_uncommitted_frames_and_sends_them_as_they_are() -> None:
    attempt = fetching()
    log = took_over(attempt.machine.handle(Fetched(LOG[1:]))).log
    assert (log.epoch, log.version, log.record.ranges) == (5, VERSION + 1, RECORD.ranges)
    log.handle(StoreUp(B))
    assert log.handle(Fenced(B.key, answer(LOG[:1]))) == [SendFrames((B.key,), LOG[1:])]


def test_longest_tail_that_a_writer_can_leave_is_no_reason_to_give_up() -> None:
    frames = chain(*[4] * (LIMITS.frames_in_flight_max + 3))
    attempt = Attempt()
    attempt.claimed(A)
    attempt.fenced(A, frames)
    log = took_over(attempt.machine.handle(Fetched(frames))).log
    assert log.has_room is False
