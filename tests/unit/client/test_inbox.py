"""Whatever order runs come in, a reader sees 1, 2, 3, … (G7)."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.messages import RUN, Message, Run
from trilogue.client.reading.inbox import Inbox

OUTBOX_ID = "0" * 32


def run_of(first_seq: int, count: int) -> Run:
    bodies = [str(seq).encode() for seq in range(first_seq, first_seq + count)]
    return Run(RUN, "room", f"alice/{OUTBOX_ID}", first_seq, first_seq, 5, [1] * count, bodies)


def seqs(messages: list[Message]) -> list[int]:
    assert all(message.body == str(message.seq).encode() for message in messages), "a body stands at another seq"
    return [message.seq for message in messages]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, int, list[Run]]:
    """A session of `head` messages, cut into runs in several ways, shuffled, with duplicates; (after, head, runs)."""
    head = draw(st.integers(1, 40))
    runs: list[Run] = []
    for _ in range(draw(st.integers(1, 3))):
        at = 1
        while at <= head:
            count = draw(st.integers(1, head - at + 1))
            runs.append(run_of(at, count))
            at += count
    random.Random(draw(st.integers())).shuffle(runs)
    return draw(st.integers(0, head)), head, runs


@given(deliveries())
def test_any_order_with_duplicates_becomes_one_dense_order_g7(delivery: tuple[int, int, list[Run]]) -> None:
    after, head, runs = delivery
    inbox = Inbox(after, 1000)
    handed_on = seqs([message for run in runs for message in inbox.add([run])])
    assert handed_on == list(range(after + 1, head + 1))
    assert inbox.missing is None


@given(deliveries(), st.data())
def test_a_hole_is_named_and_nothing_after_it_is_handed_on_until_it_is_filled_g7(
    delivery: tuple[int, int, list[Run]], data: st.DataObject
) -> None:
    after, head, runs = delivery
    lost = data.draw(st.integers(1, head))
    inbox = Inbox(after, data.draw(st.sampled_from([1, 5, 1000])))  # what does not fit is asked for, too
    handed_on = seqs(inbox.add(run for run in runs if not run.first_seq <= lost < run.first_seq + len(run.bodies)))
    assert handed_on == list(range(after + 1, after + 1 + len(handed_on)))
    asked = 0
    while (missing := inbox.missing) is not None:
        hole_after, hole_upto = missing
        assert hole_after == inbox.at < hole_upto <= head
        handed_on += seqs(inbox.add([run_of(hole_after + 1, 1)]))
        asked += 1
        assert asked <= head, "asking for what is missing must come to an end"
    assert handed_on == list(range(after + 1, inbox.at + 1))


def test_what_was_seen_is_dropped() -> None:
    inbox = Inbox(0, 10)
    assert seqs(inbox.add([run_of(1, 3)])) == [1, 2, 3]
    assert inbox.add([run_of(1, 3), run_of(2, 1)]) == []
    assert seqs(inbox.add([run_of(2, 4)])) == [4, 5]


def test_early_messages_are_bounded() -> None:
    inbox = Inbox(0, 10)
    for first_seq in range(100, 200, 5):
        inbox.add([run_of(first_seq, 5)])
    assert inbox.missing == (0, 99)
    assert seqs(inbox.add([run_of(1, 99)])) == list(range(1, 110)), "two runs of 5 were kept, the others are asked for"
    assert inbox.missing == (109, 199)
