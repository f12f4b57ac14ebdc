"""Who is told of which committed runs: any interleaving gives each reader each seq once, in order, within its credit (G7)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.messages import RUN, Run, messages_of, part_of
from trilogue.actors.protocol.subscriptions import (
    MESSAGE_COST_BYTES,
    PAGES_AT_ONCE,
    Blocked,
    Committed,
    Credited,
    Deliver,
    Freed,
    PageRead,
    ReadPage,
    Subscribed,
    Subscriptions,
    cost_bytes,
)

SENDER_ID = "a/" + "0" * 32


def run_at(first_seq: int, count: int) -> Run:
    return Run(RUN, "s", SENDER_ID, first_seq, first_seq, 0, [0] * count, [b"%d" % (first_seq + k) for k in range(count)])


class Readers:
    """Subscriptions, committed runs, and what each reader got of each session."""

    def __init__(self, page_messages_max: int = 4, page_bytes_max: int = 100_000) -> None:
        self.page_messages_max = page_messages_max
        self.machine = Subscriptions(page_messages_max, page_bytes_max, 1_000_000)
        self.runs: dict[str, list[Run]] = {"s": []}
        self.pages: list[ReadPage] = []
        self.got: dict[int, list[int]] = {}
        self.of: dict[tuple[int, str], list[int]] = {}
        self.credit: dict[int, int] = {}
        self.bytes: dict[int, int] = {}
        self.deliveries: list[Deliver] = []

    def head_of(self, session: str) -> int:
        runs = self.runs.setdefault(session, [])
        return runs[-1].first_seq + len(runs[-1].bodies) - 1 if runs else 0

    @property
    def head(self) -> int:
        return self.head_of("s")

    def take(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, ReadPage):
                assert 0 < effect.messages <= self.page_messages_max
                same = [page for page in self.pages if (page.session, page.after) == (effect.session, effect.after)]
                assert same == [], "the same page is read once"
                self.pages.append(effect)
            else:
                assert isinstance(effect, Deliver)
                self.deliveries.append(effect)
                messages = [message for run in effect.runs for message in messages_of(run)]
                for number in effect.subscriptions:
                    self.got[number] += [message.seq for message in messages]
                    self.of.setdefault((number, messages[0].session), []).extend(message.seq for message in messages)
                    self.credit[number] -= len(messages)
                    assert self.credit[number] >= 0, "more than the reader takes"
                    largest = max(len(message.body) for message in messages) + MESSAGE_COST_BYTES
                    self.bytes[number] -= sum(map(cost_bytes, effect.runs))
                    assert self.bytes[number] > -largest, "more bytes than the reader takes, and one message"

    def subscribe(
        self, number: int, after: int, credit: int, size_bytes: int = 100_000, sessions: Any = ("s",), source: str = "c"
    ) -> None:
        self.got.setdefault(number, [])
        self.credit[number] = self.credit.get(number, 0) + credit
        self.bytes[number] = self.bytes.get(number, 0) + size_bytes
        places = [(session, after, self.head_of(session)) for session in sessions]
        self.take(self.machine.handle(Subscribed(source, number, places, credit, size_bytes)))

    def commit(self, *counts: int, session: str = "s", body_bytes: int = 0) -> None:
        added = []
        for count in counts:
            run = run_at(self.head_of(session) + 1, count)._replace(session=session)
            if body_bytes:
                run = run._replace(bodies=[bytes(body_bytes)] * count)
            self.runs[session].append(run)
            added.append(run)
        self.take(self.machine.handle(Committed(added)))

    def give_credit(self, number: int, messages: int, size_bytes: int = 100_000) -> None:
        self.credit[number] += messages
        self.bytes[number] += size_bytes
        self.take(self.machine.handle(Credited("c", number, messages, size_bytes)))

    def read(self, at: int = 0) -> None:
        """A page that was asked for arrives; a run may be longer than what was asked for."""
        page = self.pages.pop(at)
        found = []
        left = page.messages
        for run in self.runs[page.session]:
            end = run.first_seq + len(run.bodies) - 1
            if end > page.after and left > 0:
                first = max(run.first_seq, page.after + 1)
                found.append(part_of(run, first, end - first + 1))
                left -= end - first + 1
        self.take(self.machine.handle(PageRead(page.session, page.after, found, self.head_of(page.session))))

    def read_all(self) -> None:
        while self.pages:
            self.read()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 6)),
        st.tuples(st.just("credit"), st.tuples(st.integers(0, 2), st.integers(1, 5))),
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("subscribe"), st.tuples(st.integers(0, 8), st.integers(1, 6))),
        st.tuples(st.just("block"), st.booleans()),
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
        elif what == "block":
            readers.take(readers.machine.handle(Blocked("c") if value else Freed("c")))
    readers.take(readers.machine.handle(Freed("c")))
    for number in after:
        readers.give_credit(number, 1000)
    readers.read_all()
    for number, first in after.items():
        assert readers.got[number] == list(range(first + 1, readers.head + 1))


def test_run_goes_to_a_reader_that_is_up_to_date_at_once() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10)
    readers.commit(3)
    assert (readers.got[1], readers.pages) == ([1, 2, 3], [])


def test_credit_that_comes_before_the_first_session_counts_G7() -> None:
    """While a store is asked how far the sessions are, the client may give more."""
    readers = Readers()
    readers.commit(5)
    readers.subscribe(1, 0, 1, sessions=())
    readers.give_credit(1, 3)
    readers.subscribe(1, 0, 0, 0)
    readers.read_all()
    assert readers.got[1] == [1, 2, 3, 4]


def test_subscription_that_is_refused_before_it_follows_anything_is_forgotten() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 1, sessions=())
    readers.subscribe(2, 0, 1)
    for number in (1, 2):
        readers.machine.refused("c", number)
    assert not readers.machine.has("c", 1)
    assert readers.machine.has("c", 2)


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
    assert readers.machine.handle(Committed([run_at(1, 1)._replace(session="t")])) == []
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
    assert (readers.machine.has("c", 1), readers.machine.count("c"), readers.machine.count()) == (False, 0, 0)


def test_page_of_an_earlier_subscription_is_not_taken_for_the_same_numbers_next_one() -> None:
    readers = Readers()
    readers.commit(3)
    readers.subscribe(1, 0, 10)
    readers.machine.forget("c", 1)
    assert not readers.machine.awaits("s", 0)
    readers.subscribe(1, 2, 10)
    assert readers.machine.awaits("s", 2)
    readers.read()
    assert readers.got[1] == []
    readers.read()
    assert readers.got[1] == [3]


def test_all_subscriptions_of_a_lost_connection_are_forgotten() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10)
    readers.subscribe(2, 0, 10)
    readers.subscribe(3, 0, 10, source="other")
    assert readers.machine.count() == 3
    readers.machine.forget("c")
    assert (readers.machine.count("c"), readers.machine.count("other")) == (0, 1)
    readers.machine.forget("c", 7)
    assert readers.machine.handle(Credited("c", 1, 5, 5)) == []


def test_page_with_a_hole_breaks_an_invariant_G7() -> None:
    readers = Readers()
    readers.commit(3)
    readers.subscribe(1, 0, 10)
    with pytest.raises(InvariantBroken, match="hole"):
        readers.machine.handle(PageRead("s", 0, [run_at(2, 1)], 3))


def test_run_for_many_readers_of_one_connection_is_one_delivery() -> None:
    readers = Readers()
    for number in range(5):
        readers.subscribe(number, 0, 10, source="c" if number < 3 else "d")
    readers.commit(2, 1)
    assert [(d.source, d.subscriptions) for d in readers.deliveries] == [("c", [0, 1, 2]), ("d", [3, 4])]
    assert readers.deliveries[0].runs is readers.deliveries[1].runs, "so that they are packed once"
    assert all(readers.got[number] == [1, 2, 3] for number in range(5))


def test_readers_that_are_behind_at_the_same_place_share_their_page_within_each_ones_credit() -> None:
    readers = Readers()
    readers.commit(3, 1)
    readers.subscribe(1, 0, 10)
    readers.subscribe(2, 0, 10)
    readers.subscribe(3, 0, 2)
    assert len(readers.pages) == 1
    readers.read()
    assert [(d.subscriptions, len(d.runs)) for d in readers.deliveries] == [([1, 2], 2), ([3], 1)]
    readers.give_credit(3, 10)
    readers.read_all()
    assert readers.got == {1: [1, 2, 3, 4], 2: [1, 2, 3, 4], 3: [1, 2, 3, 4]}


def test_bytes_are_a_bound_of_their_own_and_one_large_message_passes_all_the_same() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 100, size_bytes=1000)
    readers.commit(5, body_bytes=400)
    readers.read_all()
    assert readers.got[1] == [1, 2], "the second may cost more than what is left, the third has to wait"
    readers.commit(1, body_bytes=50_000)
    readers.give_credit(1, 0, 1600)
    readers.read_all()
    assert readers.got[1] == [1, 2, 3, 4, 5]
    for _ in range(60):
        readers.give_credit(1, 0, 1000)
        readers.read_all()
    assert readers.got[1] == [1, 2, 3, 4, 5, 6]


def test_one_credit_is_for_all_sessions_of_a_subscription_and_they_take_turns() -> None:
    readers = Readers()
    names = [f"room-{k}" for k in range(20)]
    for name in names:
        readers.commit(10, session=name)
    readers.subscribe(1, 0, 8, size_bytes=1_000_000, sessions=names)
    assert len(readers.pages) == 2, "the credit is for two pages of four"
    readers.read_all()
    assert len(readers.got[1]) == 8
    while len(readers.got[1]) < 200:
        readers.give_credit(1, 8)
        assert len(readers.pages) <= PAGES_AT_ONCE
        readers.read_all()
        told = [len(readers.of.get((1, name), [])) for name in names]
        assert max(told) - min(told) <= 4, "none is left behind while another goes on"
    assert all(readers.of[1, name] == list(range(1, 11)) for name in names)
    readers.commit(1, session=names[3])
    readers.give_credit(1, 1)
    readers.read_all()
    assert readers.of[1, names[3]][-1] == 11


def test_sessions_are_added_to_a_subscription_that_is_there() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 10, sessions=("s",))
    readers.subscribe(1, 0, 0, size_bytes=0, sessions=("t", "u"))
    assert (readers.machine.count("c"), readers.machine.is_in("c", 1, "u"), readers.machine.is_in("c", 1, "v")) == (
        3,
        True,
        False,
    )
    readers.commit(1, session="u")
    readers.machine.forget("c", 1)
    readers.commit(1, session="t")
    assert readers.of == {(1, "u"): [1]}
    assert (readers.machine.empty, readers.machine.follows("t")) == (True, False)


def test_blocked_source_is_sent_nothing_and_loses_nothing() -> None:
    readers = Readers()
    readers.subscribe(1, 0, 100)
    readers.machine.handle(Blocked("c"))
    for _ in range(9):
        readers.commit(2)
    assert (readers.got[1], readers.pages) == ([], [])
    readers.take(readers.machine.handle(Freed("c")))
    readers.read_all()
    readers.commit(1)
    assert readers.got[1] == list(range(1, 20))
