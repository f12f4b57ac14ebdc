"""Who is told of which committed runs: any interleaving gives each reader each seq once, in order, within its credit (G7)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.messages import RUN, Run, messages_of, part_of
from trilogue.actors.protocol.subscriptions import Committed, Credited, Deliver, PageRead, ReadPage, Subscribed, Subscriptions

SENDER_ID = "a/" + "0" * 32


def run_at(first_seq: int, count: int) -> Run:
    return Run(RUN, "s", SENDER_ID, first_seq, first_seq, 0, [0] * count, [b"%d" % (first_seq + k) for k in range(count)])


class Readers:
    """Subscriptions of one session, its committed runs, and what each reader got."""

    def __init__(self, page_messages_max: int = 4) -> None:
        self.machine = Subscriptions(page_messages_max)
        self.runs: list[Run] = []
        self.pages: list[ReadPage] = []
        self.got: dict[int, list[int]] = {}
        self.credit: dict[int, int] = {}

    @property
    def head(self) -> int:
        return self.runs[-1].first_seq + len(self.runs[-1].bodies) - 1 if self.runs else 0

    def take(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ReadPage):
                assert effect.limit <= 4
                assert [page for page in self.pages if page.subscription == effect.subscription] == [], "one page at a time"
                self.pages.append(effect)
            else:
                assert isinstance(effect, Deliver)
                seqs = [message.seq for run in effect.runs for message in messages_of(run)]
                self.got[effect.subscription] += seqs
                self.credit[effect.subscription] -= len(seqs)
                assert self.credit[effect.subscription] >= 0, "more than the reader takes"

    def subscribe(self, number: int, after: int, credit: int) -> None:
        self.got[number], self.credit[number] = [], credit
        self.take(self.machine.handle(Subscribed("c", number, "s", after, credit, self.head)))

    def commit(self, count: int) -> None:
        self.runs.append(run_at(self.head + 1, count))
        self.take(self.machine.handle(Committed(self.runs[-1])))

    def give_credit(self, number: int, messages: int) -> None:
        self.credit[number] += messages
        self.take(self.machine.handle(Credited("c", number, messages, self.head)))

    def read(self, at: int = 0) -> None:
        """A page that was asked for arrives; a run may be longer than what was asked for."""
        page = self.pages.pop(at)
        found = []
        left = page.limit
        for run in self.runs:
            end = run.first_seq + len(run.bodies) - 1
            if end > page.after and left > 0:
                first = max(run.first_seq, page.after + 1)
                found.append(part_of(run, first, end - first + 1))
                left -= end - first + 1
        self.take(self.machine.handle(PageRead("c", page.subscription, page.session, page.after, found, self.head)))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 6)),
        st.tuples(st.just("credit"), st.tuples(st.integers(0, 2), st.integers(1, 5))),
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("subscribe"), st.tuples(st.integers(0, 8), st.integers(1, 6))),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_reader_gets_each_seq_once_in_order_and_within_its_credit_G7(steps: list[tuple[str, Any]]) -> None:
    readers = Readers()
    after: dict[int, int] = {}
    for what, value in steps:
        if what == "commit":
            readers.commit(value)
        elif what == "subscribe" and len(after) < 3:
            after[len(after)] = value[0]
            readers.subscribe(len(after) - 1, *value)
        elif what == "credit" and value[0] in after:
            readers.give_credit(*value)
        elif what == "read" and readers.pages:
            readers.read(value % len(readers.pages))
    for number in after:
        readers.give_credit(number, 1000)
    while readers.pages:
        readers.read()
    for number, first in after.items():
        assert readers.got[number] == list(range(first + 1, readers.head + 1))


def test_run_goes_to_a_reader_that_is_up_to_date_at_once() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10)
    readers.commit(3)
    assert (readers.got[1], readers.pages) == ([1, 2, 3], [])


def test_reader_without_credit_gets_nothing_and_costs_nothing() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 1)
    readers.commit(1)
    readers.commit(2)
    readers.commit(2)
    assert (readers.got[1], readers.pages) == ([1], [])
    readers.give_credit(1, 2)
    readers.read()
    assert readers.got[1] == [1, 2, 3]


def test_reader_from_now_on_gets_what_comes_after_the_head() -> None:
    readers = Readers()
    readers.commit(5)
    readers.subscribe(1, 5, 10)
    readers.commit(1)
    assert readers.got[1] == [6]


def test_reader_that_starts_beyond_the_head_gets_nothing_below_its_start() -> None:
    readers = Readers()
    readers.subscribe(1, 3, 10)
    readers.commit(2)
    readers.read() if readers.pages else None
    readers.commit(3)
    while readers.pages:
        readers.read()
    assert readers.got[1] == [4, 5]


def test_other_sessions_are_not_told() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10)
    assert readers.machine.handle(Committed(run_at(1, 1)._replace(session="t"))) == []
    assert (readers.machine.follows("s"), readers.machine.follows("t")) == (True, False)


def test_subscription_that_is_over_is_forgotten_with_its_page() -> None:
    readers = Readers()
    readers.commit(3)
    readers.subscribe(1, 0, 10)
    readers.machine.forget("c", 1)
    readers.read()
    assert readers.got[1] == []
    assert readers.machine.empty
    assert not readers.machine.follows("s")
    assert (readers.machine.session_of("c", 1), readers.machine.count("c"), readers.machine.count()) == ("", 0, 0)


def test_page_of_an_earlier_subscription_is_not_taken_for_the_same_numbers_next_one() -> None:
    readers = Readers()
    readers.commit(3)
    readers.subscribe(1, 0, 10)
    readers.machine.forget("c", 1)
    old = readers.pages.pop()
    readers.subscribe(1, 2, 10)
    page = PageRead("c", 1, old.session, old.after, [run_at(1, 3)], 3)
    assert readers.machine.handle(page) == []
    readers.read()
    assert readers.got[1] == [3]


def test_all_subscriptions_of_a_lost_connection_are_forgotten() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10)
    readers.subscribe(2, 0, 10)
    readers.machine.handle(Subscribed("other", 1, "s", 0, 10, 0))
    assert readers.machine.count() == 3
    readers.machine.forget("c")
    assert (readers.machine.count("c"), readers.machine.count("other")) == (0, 1)
    readers.machine.forget("c", 7)
    assert readers.machine.handle(Credited("c", 1, 5, 0)) == []


def test_page_with_a_hole_breaks_an_invariant_G7() -> None:
    readers = Readers()
    readers.commit(3)
    readers.subscribe(1, 0, 10)
    with pytest.raises(InvariantBroken, match="hole"):
        readers.machine.handle(PageRead("c", 1, "s", 0, [run_at(2, 1)], 3))
