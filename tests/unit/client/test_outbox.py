"""Answers that are rare, one by one: refusals, conflicts, proof of loss, and what becomes of the numbering."""

from __future__ import annotations

import pytest

from lane_bench import FIRST_ID, LIMITS, Bench, seqs
from trilogue.actors.protocol.errors import (
    ConflictingRetry,
    InvalidSender,
    MessageTooLarge,
    ProofOfLoss,
    ProtocolError,
)
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Ack
from trilogue.actors.protocol.vocabulary import Code


def test_an_ack_carries_its_evidence() -> None:
    bench = Bench()
    callers = bench.post(b"1", b"2")
    bench.submitted()
    bench.ack(1, 2, 41)
    assert callers[1].outcome == Ack("red", 42, "ann", f"ann/{FIRST_ID}", 2, 3, 1, False)
    assert (bench.outbox.messages, bench.outbox.bytes) == (0, 0)


def test_an_unanswered_lane_is_submitted_again_after_1_3_5_and_5_seconds() -> None:
    bench = Bench()
    bench.post(b"1")
    assert len(bench.submitted(now=100.0)) == 1
    times: list[float] = []
    due = bench.flow.overdue(100.0)
    while len(times) < 5:
        assert due is not None
        assert bench.flow.overdue(due - 0.001) == due, "not a moment before"
        assert bench.submitted(due - 0.001) == []
        now, due = due, bench.flow.overdue(due)
        assert bench.submitted(now) == [(bench.lane.sender_id, 1, [b"1"])]
        times.append(now - 100.0)
    assert times == [1.0, 4.0, 9.0, 14.0, 19.0]


def test_an_outcome_starts_the_ladder_anew_and_more_messages_do_not() -> None:
    bench = Bench()
    bench.post(b"1", b"2")
    bench.submitted(now=0.0)
    bench.flow.overdue(1.0)
    bench.submitted(now=1.0)
    bench.ack(1, 1, 1, now=2.0)
    assert bench.flow.overdue(2.0) == 3.0
    bench.post(b"3")
    bench.submitted(now=2.5)
    assert bench.flow.overdue(2.5) == 3.0
    assert bench.flow.overdue(3.0) == 6.0
    assert bench.submitted(now=3.0) == [(bench.lane.sender_id, 2, [b"2", b"3"])]


def test_a_new_opening_sends_at_once_from_the_lowest_unacked_on_g4() -> None:
    bench = Bench()
    bench.post(b"1", b"2", b"3")
    bench.submitted()
    bench.ack(1, 1, 1)
    bench.flow.closed()
    bench.post(b"4")
    assert bench.submitted() == []
    assert bench.flow.opened(2, LIMITS.body_bytes_max)
    assert bench.submitted() == [(bench.lane.sender_id, 2, [b"2", b"3", b"4"])]


def test_answers_and_openings_of_an_older_epoch_are_ignored_g9() -> None:
    bench = Bench()
    callers = bench.post(b"1")
    bench.flow.opened(5, LIMITS.body_bytes_max)
    bench.submitted()
    bench.ack(1, 1, 1, epoch=4)
    assert seqs(callers) == [None]
    assert not bench.flow.opened(4, LIMITS.body_bytes_max)
    assert bench.submitted() == []


def test_acks_that_come_early_or_again_tell_each_message_once_g5() -> None:
    bench = Bench()
    callers = bench.post(b"1", b"2", b"3", b"4")
    bench.submitted()
    bench.ack(3, 1, 30)
    assert seqs(callers) == [None] * 4
    bench.ack(1, 2, 10)
    assert seqs(callers) == [10, 11, 30, None]
    bench.ack(1, 3, 99)
    bench.ack(2, 3, 38)
    assert seqs(callers) == [10, 11, 30, 40]


def test_answers_for_later_messages_do_not_put_off_the_retry_of_the_first_one_g5_g11() -> None:
    bench = Bench()
    bench.post(b"1", b"2", b"3", b"4")
    bench.submitted(now=0.0)
    bench.ack(2, 1, 2, now=0.9)
    assert bench.flow.overdue(1.0) is not None
    assert [n for _, n, _ in bench.submitted(now=1.0)] == [1]


def test_an_ack_for_what_was_never_submitted_ends_the_connection() -> None:
    bench = Bench()
    bench.post(b"1")
    bench.submitted()
    with pytest.raises(ProtocolError, match="never submitted"):
        bench.ack(1, 2, 1)


def test_out_of_order_goes_back_once_and_not_again_for_what_was_under_way() -> None:
    bench = Bench(limits=Limits(run_messages_max=1))
    bench.post(b"1", b"2", b"3", b"4")
    assert [n for _, n, _ in bench.submitted()] == [1, 2, 3, 4]
    bench.refuse(3, 1, Code.OUT_OF_ORDER, 2)
    assert [n for _, n, _ in bench.submitted()] == [2, 3, 4]
    bench.refuse(4, 1, Code.OUT_OF_ORDER, 2)
    assert bench.submitted() == []
    bench.ack(1, 2, 1)
    bench.refuse(4, 1, Code.OUT_OF_ORDER, 3)
    assert [n for _, n, _ in bench.submitted()] == [3, 4], "after progress a new gap is a new one"


@pytest.mark.parametrize("code", [Code.OVERLOADED, Code.UNAVAILABLE, Code.FULL, Code.CORRUPT, 9])
def test_a_refusal_for_now_waits_for_the_ladder(code: int) -> None:
    bench = Bench(limits=Limits(run_messages_max=1))
    callers = bench.post(b"1", b"2", b"3")
    bench.submitted(now=0.0)
    assert bench.refuse(2, 1, code, now=0.5) is False
    bench.refuse(3, 1, Code.OUT_OF_ORDER, 2, now=0.5)
    bench.post(b"4")
    assert bench.submitted(now=1.4) == []
    assert bench.flow.overdue(1.5) is not None
    assert [n for _, n, _ in bench.submitted(now=1.5)] == [1, 2, 3, 4]
    bench.ack(1, 4, 1)
    assert seqs(callers) == [1, 2, 3]


@pytest.mark.parametrize("code", [Code.NOT_HERE, Code.DEPOSED])
def test_a_partition_that_moved_is_looked_up(code: int) -> None:
    bench = Bench()
    bench.post(b"1")
    bench.submitted()
    assert bench.refuse(1, 1, code) is True


def test_a_message_that_is_too_large_there_is_given_up_and_the_next_one_follows() -> None:
    bench = Bench()
    callers = bench.post(b"1", b"two", b"3")
    bench.submitted()
    bench.refuse(2, 1, Code.MESSAGE_TOO_LARGE, 2)
    bench.refuse(3, 1, Code.OUT_OF_ORDER, 2)
    assert [(kind == "give up", n) for kind, n, _ in bench.submitted()] == [(True, 2), (False, 3)]
    bench.ack(1, 1, 1)
    bench.ack(2, 1, 0)
    bench.ack(3, 1, 2)
    assert isinstance(callers[1].outcome, MessageTooLarge)
    assert (callers[0].outcome.seq, callers[2].outcome.seq) == (1, 2)


def test_a_message_that_was_refused_for_good_is_never_submitted_again() -> None:
    bench = Bench()
    bench.post(b"1", b"two", b"3")
    bench.submitted()
    bench.refuse(2, 1, Code.MESSAGE_TOO_LARGE, 2)
    bench.flow.closed()
    bench.flow.opened(2, LIMITS.body_bytes_max)
    sender_id = bench.lane.sender_id
    assert bench.submitted() == [(sender_id, 1, [b"1"]), ("give up", 2, []), (sender_id, 3, [b"3"])]


def test_a_give_up_that_finds_the_message_stored_is_its_ack_g8() -> None:
    bench = Bench()
    callers = bench.post(b"one")
    bench.submitted()
    bench.refuse(1, 1, Code.MESSAGE_TOO_LARGE, 1)
    bench.submitted()
    bench.ack(1, 1, 7)
    assert seqs(callers) == [7]


def test_names_that_are_refused_stop_the_lane_and_no_other() -> None:
    bench = Bench()
    callers = bench.post(b"1", b"2")
    others = bench.post(b"1", sender="bob")
    bench.submitted()
    bench.refuse(1, 2, Code.INVALID_SENDER, 1)
    assert [type(caller.outcome) for caller in callers] == [InvalidSender, InvalidSender]
    bench.ack(1, 1, 1, lane=bench.outbox.lanes[("red", "bob")])
    assert seqs(others) == [1]
    assert isinstance(bench.lane.stopped, InvalidSender)


def test_an_expected_number_that_was_acked_is_proof_of_loss() -> None:
    bench = Bench()
    callers = bench.post(b"1", b"2", b"3")
    bench.submitted()
    bench.ack(1, 2, 1)
    bench.refuse(3, 1, Code.OUT_OF_ORDER, 2)
    assert isinstance(callers[2].outcome, ProofOfLoss)
    assert "expects number 2" in str(callers[2].outcome)
    assert "trilogue verify" in str(callers[2].outcome)
    assert bench.outbox.messages == 0


def test_after_a_conflict_what_was_never_submitted_goes_on_under_a_new_id_g5() -> None:
    bench = Bench(limits=Limits(in_flight_messages_max=2))
    callers = bench.post(b"1", b"2", b"3", b"4")
    assert bench.submitted() == [(f"ann/{FIRST_ID}", 1, [b"1", b"2"])]
    bench.refuse(1, 1, Code.CONFLICTING_RETRY, 1)
    assert isinstance(callers[0].outcome, ConflictingRetry)
    assert bench.submitted() == [], "what is in flight is settled first: the order holds"
    bench.ack(2, 1, 9)
    bench.outbox.save()
    assert bench.lane.outbox_id != FIRST_ID
    assert bench.submitted() == [(bench.lane.sender_id, 1, [b"3", b"4"])]
    bench.ack(1, 2, 10)
    assert seqs(callers[1:]) == [9, 10, 11]
    assert [caller.outcome.n for caller in callers[1:]] == [2, 1, 2]
    new = bench.outbox.lane("red", "new")
    assert new.outbox_id != FIRST_ID, "the old outbox id is suspect everywhere"


def test_idle_lanes_are_forgotten_when_there_are_too_many_and_never_numbered_on() -> None:
    bench = Bench(limits=Limits(in_flight_messages_max=2, outbox_messages_max=2, lanes_max=3))
    waiting = bench.post(b"1", session="blue")
    bench.post(b"1")
    bench.submitted()
    bench.ack(1, 1, 1)
    old = bench.lane
    bench.outbox.lane("green", "ann")
    bench.outbox.lane("brown", "ann")
    assert ("red", "ann") not in bench.outbox.lanes
    bench.post(b"2")
    assert bench.lane.next_n == 2
    assert bench.lane.sender_id != old.sender_id
    assert ("blue", "ann") in bench.outbox.lanes, "what waits is not forgotten"
    assert not waiting[0].done()
