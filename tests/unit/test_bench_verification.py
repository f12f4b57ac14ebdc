"""The judge of the benchmarks finds each anomaly in histories made by hand, and none in a good one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trilogue.bench.load.verification import EXAMPLES_MAX, HandedOver, Verdict, judge_session
from trilogue.client import Ack, Message

ROOM = "room"
ALICE, BOB = "alice/" + "a" * 32, "bob/" + "b" * 32


def ack(seq: int, sender_id: str, n: int, *, session: str = ROOM, sender: str = "", copies: int = 3) -> Ack:
    return Ack(session, seq, sender or sender_id[:-33], sender_id, n, copies, 1, False)


def read(seq: int, sender_id: str, n: int, body: bytes) -> Message:
    return Message(ROOM, seq, sender_id[:-33], sender_id, n, body, 0, 0)


def conversation() -> tuple[list[HandedOver], list[Message]]:
    """Three messages of alice and two of bob, acked and stored as they should be."""
    said = [(1, ALICE, 1), (2, BOB, 1), (3, ALICE, 2), (4, ALICE, 3), (5, BOB, 2)]
    handed = [HandedOver(who[:-33], f"{who[:5]} {n}".encode(), ack(seq, who, n)) for seq, who, n in said]
    return handed, [read(seq, who, n, f"{who[:5]} {n}".encode()) for seq, who, n in said]


def counts(handed: Sequence[HandedOver], history: Sequence[Message]) -> tuple[int, int, int]:
    verdict = judge_session(ROOM, handed, history, copies=3)
    assert verdict.clean == (not verdict.examples)
    return verdict.lost, verdict.duplicated, verdict.reordered


def test_a_good_history_is_clean() -> None:
    assert counts(*conversation()) == (0, 0, 0)


def test_the_order_between_senders_is_free() -> None:
    handed, history = conversation()
    assert counts([handed[1], handed[0], *handed[2:]], history) == (0, 0, 0)


def test_an_acked_message_at_the_end_that_cannot_be_read_back_is_lost_g2() -> None:
    handed, history = conversation()
    assert counts(handed, history[:-1]) == (1, 0, 0)


def test_a_hole_in_what_is_read_back_is_a_loss_and_a_gap_g3() -> None:
    handed, history = conversation()
    assert counts(handed, history[:2] + history[3:]) == (1, 0, 1)


def test_nothing_read_back_is_all_lost_g2() -> None:
    handed, _ = conversation()
    assert counts(handed, []) == (5, 0, 0)


def test_another_body_at_the_acked_seq_is_a_loss_g2() -> None:
    handed, history = conversation()
    history[3] = history[3]._replace(body=b"something else")
    assert counts(handed, history) == (1, 0, 0)


def test_another_senders_message_at_the_acked_seq_is_a_loss_and_a_stranger_g2() -> None:
    handed, history = conversation()
    history[4] = read(5, "eve/" + "e" * 32, 1, history[4].body)
    assert counts(handed, history) == (1, 1, 0)


def test_an_ack_with_too_few_copies_is_no_evidence_g1() -> None:
    handed, history = conversation()
    handed[2] = handed[2]._replace(ack=ack(3, ALICE, 2, copies=2))
    assert counts(handed, history) == (1, 0, 0)


@pytest.mark.parametrize("wrong", [{"session": "another"}, {"sender": "mallory"}])
def test_an_ack_for_somebody_else_is_no_evidence_g1(wrong: dict[str, str]) -> None:
    handed, history = conversation()
    handed[2] = handed[2]._replace(ack=ack(3, ALICE, 2, **wrong))
    assert counts(handed, history)[0] == 1


def test_a_message_stored_twice_under_one_number_is_duplicated_g5() -> None:
    handed, history = conversation()
    assert counts(handed, [*history, read(6, ALICE, 3, b"alice 3")]) == (0, 1, 0)


def test_a_message_stored_again_under_a_new_number_is_duplicated_g5() -> None:
    handed, history = conversation()
    assert counts(handed, [*history, read(6, ALICE, 4, b"alice 3")]) == (0, 1, 0)


def test_a_seq_that_is_read_back_twice_is_duplicated_g3() -> None:
    handed, history = conversation()
    assert counts(handed, [*history[:3], history[2], *history[3:]]) == (0, 1, 0)


def test_a_seq_that_was_acked_for_two_messages_is_duplicated_g3() -> None:
    handed, history = conversation()
    handed[4] = handed[4]._replace(ack=ack(4, BOB, 2))
    assert counts(handed, history)[1] == 1


def test_a_number_that_was_acked_for_two_messages_is_duplicated_g5() -> None:
    handed, history = conversation()
    handed[3] = handed[3]._replace(ack=ack(4, ALICE, 2))
    assert counts(handed, history)[1] >= 1


def test_a_senders_messages_that_were_swapped_are_reordered_g4() -> None:
    handed, history = conversation()
    history[2], history[3] = history[2]._replace(seq=4), history[3]._replace(seq=3)
    handed[2] = handed[2]._replace(ack=ack(4, ALICE, 2))
    handed[3] = handed[3]._replace(ack=ack(3, ALICE, 3))
    assert counts(handed, [*history[:2], history[3], history[2], history[4]]) == (0, 0, 2)


def test_numbers_that_do_not_follow_the_hand_overs_are_reordered_g4() -> None:
    handed, history = conversation()
    handed[0], handed[2] = handed[0]._replace(ack=ack(1, ALICE, 2)), handed[2]._replace(ack=ack(3, ALICE, 1))
    history[0], history[2] = history[0]._replace(n=2), history[2]._replace(n=1)
    assert counts(handed, history)[2] >= 2


def test_a_first_number_above_one_is_reordered_g4() -> None:
    handed = [HandedOver("alice", b"x", ack(1, ALICE, 2))]
    assert counts(handed, [read(1, ALICE, 2, b"x")]) == (0, 0, 1)


def test_a_new_sender_id_numbers_from_one_and_keeps_the_senders_order_g4() -> None:
    again = "alice/" + "c" * 32
    handed = [HandedOver("alice", b"x", ack(1, ALICE, 1)), HandedOver("alice", b"y", ack(2, again, 1))]
    assert counts(handed, [read(1, ALICE, 1, b"x"), read(2, again, 1, b"y")]) == (0, 0, 0)
    handed = [HandedOver("alice", b"x", ack(2, ALICE, 1)), HandedOver("alice", b"y", ack(1, again, 1))]
    assert counts(handed, [read(1, again, 1, b"y"), read(2, ALICE, 1, b"x")]) == (0, 0, 1)


def test_a_history_that_starts_above_one_or_goes_backwards_is_reordered_g3() -> None:
    handed, history = conversation()
    assert counts(handed, list(reversed(history)))[2] >= 4
    assert counts([HandedOver("alice", b"x", ack(2, ALICE, 1))], [read(2, ALICE, 1, b"x")]) == (0, 0, 1)


def test_verdicts_add_up_and_keep_a_few_examples_only() -> None:
    handed, _ = conversation()
    total = Verdict()
    for _ in range(10):
        total.add(judge_session(ROOM, handed, [], copies=3))
    assert (total.lost, total.duplicated, total.reordered) == (50, 0, 0)
    assert len(total.examples) == EXAMPLES_MAX
    assert not total.clean


def test_a_second_judge_raises_the_counts_and_never_adds_to_them() -> None:
    verdict = Verdict(lost=2, duplicated=1)
    verdict.at_least(Verdict(lost=1, duplicated=3, examples=["duplicated: seen by the second"]))
    assert (verdict.lost, verdict.duplicated, verdict.reordered) == (2, 3, 0)
    assert verdict.examples == ["duplicated: seen by the second"]
