"""Which sessions' states a sequencer has in memory, and how the others come back, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.session_states import SessionStates
from trilogue.actors.protocol.submissions import (
    Answered,
    FrameCommitted,
    GivenUp,
    Loaded,
    LookedUp,
    LookUp,
    Recall,
    Refused,
    Submitted,
    Told,
    Wanted,
)
from trilogue.actors.protocol.vocabulary import Code

ALICE, BOB, CAROL = (f"{name}/{k:032d}" for k, name in enumerate(("alice", "bob", "carol")))
NEW = Told(0, {}, True)
FEW = Limits(sessions_hot_max=2, senders_hot_max=8, session_senders_hot_max=2, loads_at_once_max=1, subscribe_sessions_max=2)


class Writer:
    """A sequencer that took over a log of ten frames; what it asks of stores is kept here."""

    def __init__(self, limits: Limits = FEW) -> None:
        self.machine = Sequencer(0, 1, limits, 10)
        self.frame = 10
        self.asked: list[LookUp] = []

    def do(self, event: Any) -> list[Any]:
        effects = self.machine.handle(event)
        self.asked += [effect for effect in effects if isinstance(effect, LookUp)]
        return [effect for effect in effects if not isinstance(effect, LookUp)]

    def submit(self, *runs: tuple[str, str, int], source: str = "c") -> list[Any]:
        return self.do(Submitted(source, [[session, sender, n, [5], [b"x"]] for session, sender, n in runs], 7))

    def tell(self, *told: Told) -> list[Any]:
        """The answer to what was asked for first."""
        order = self.asked.pop(0)
        if order.asked[len(told) :]:
            self.asked.insert(0, LookUp(order.upto, order.asked[len(told) :]))
        return self.do(LookedUp(order.asked[: len(told)], list(told), 7))

    def commit(self) -> list[Any]:
        self.frame += 1
        if self.machine.waiting:
            self.machine.cut_frame(self.frame)
        return self.do(FrameCommitted(self.frame))

    def store(self, session: str, sender: str = ALICE, told: Told = NEW) -> None:
        """A first message in a session that is not in memory."""
        assert self.submit((session, sender, told.last_n.get(sender, 0) + 1)) == []
        assert self.tell(told) == []
        self.commit()


@pytest.fixture
def writer() -> Writer:
    return Writer()


def acked(effects: list[Any]) -> list[tuple[str, str, int, int]]:
    return [(a[0], a[1], a[2], a[4]) for effect in effects if isinstance(effect, Answered) for a in effect.acks]


def refused(effects: list[Any]) -> list[tuple[str, int, Code]]:
    return [(r.session, r.first_n, Code(r.code)) for effect in effects if isinstance(effect, Refused) for r in effect.refusals]


# ---------------------------------------------------------------------- 1: what is not here is not known


def test_nothing_of_a_cold_session_is_numbered_before_a_store_has_told_its_state_G3_G5(writer: Writer) -> None:
    assert writer.submit(("s", ALICE, 4), ("t", BOB, 1)) == []
    assert writer.machine.waiting == 0
    assert writer.machine.parked_bytes > 0
    assert writer.asked == [LookUp(10, [("s", [ALICE], []), ("t", [BOB], [])])], (
        "all that a submission misses is asked for at once"
    )
    assert writer.tell(Told(7, {ALICE: 3}, True), NEW) == []
    assert acked(writer.commit()) == [("s", ALICE, 4, 8), ("t", BOB, 1, 1)]
    assert writer.machine.parked_bytes == 0


def test_retry_in_a_cold_session_is_answered_from_the_log_however_old_it_is_G5(writer: Writer) -> None:
    writer.submit(("s", ALICE, 2))
    (recall,) = writer.tell(Told(7, {ALICE: 3}, True))
    assert isinstance(recall, Recall)
    assert (recall.retry.first_n, writer.machine.waiting) == (2, 0)


def test_cold_session_refuses_what_comes_too_early_G4(writer: Writer) -> None:
    writer.submit(("s", ALICE, 9))
    (effect,) = writer.tell(Told(7, {ALICE: 3}, True))
    assert [(r.code, r.expected_n) for r in effect.refusals] == [(Code.OUT_OF_ORDER, 4)]


def test_number_that_is_given_up_in_a_cold_session_waits_for_its_state_too_G3(writer: Writer) -> None:
    assert writer.do(GivenUp("c", [["s", ALICE, 4]], 7)) == []
    writer.submit(("s", ALICE, 5))
    assert writer.tell(Told(7, {ALICE: 3}, True)) == []
    assert acked(writer.commit()) == [("s", ALICE, 4, 0), ("s", ALICE, 5, 8)]


def test_another_sender_is_new_without_asking_only_where_all_are_known_G5(writer: Writer) -> None:
    writer.store("s")
    assert writer.submit(("s", BOB, 1)) == []
    assert (writer.machine.waiting, writer.asked) == (1, []), "all senders of a new session are known"
    writer.store("t", ALICE, Told(7, {ALICE: 3}, False))
    writer.submit(("t", BOB, 1))
    assert writer.asked == [LookUp(10, [("t", [BOB], [])])]


def test_sender_that_was_asked_for_and_is_not_named_is_new(writer: Writer) -> None:
    writer.submit(("s", BOB, 1))
    assert writer.tell(Told(7, {}, False)) == []
    assert acked(writer.commit()) == [("s", BOB, 1, 8)]
    assert writer.asked == []


@pytest.mark.parametrize(("session", "sender"), [("", ALICE), ("s", "nobody")])
def test_no_store_is_asked_for_names_that_nobody_can_have(writer: Writer, session: str, sender: str) -> None:
    assert len(refused(writer.submit((session, sender, 1)))) == 1
    assert writer.asked == []


# ---------------------------------------------------------------------- 2: what may go, and when


def test_longest_unused_session_goes_and_comes_back_where_it_was_G3_G5(writer: Writer) -> None:
    for session in "stu":
        writer.store(session)
    assert writer.machine.hot_sessions == 2
    writer.submit(("s", ALICE, 2))
    writer.tell(Told(1, {ALICE: 1}, True))
    assert acked(writer.commit()) == [("s", ALICE, 2, 2)]


def test_session_in_use_stays(writer: Writer) -> None:
    for session in "st":
        writer.store(session)
    writer.submit(("s", ALICE, 2))
    writer.commit()
    writer.store("u")
    assert writer.submit(("s", ALICE, 3)) == []
    assert writer.asked == []


def test_session_with_uncommitted_records_does_not_go_G1_G3(writer: Writer) -> None:
    writer.submit(*((session, ALICE, 1) for session in "stuv"))
    writer.tell(*[NEW] * 4)
    writer.machine.cut_frame(11)
    assert writer.machine.hot_sessions == 4
    writer.frame = 10
    assert len(acked(writer.do(FrameCommitted(11)))) == 4
    assert writer.machine.hot_sessions == 2


def test_session_with_a_run_that_waits_does_not_go(writer: Writer) -> None:
    writer.store("s", ALICE, Told(7, {ALICE: 3}, False))
    writer.submit(("s", BOB, 1))
    for session in "tuv":
        writer.submit((session, ALICE, 1))
        writer.do(LookedUp(writer.asked.pop().asked, [NEW], 7))
        writer.commit()
    writer.tell(Told(8, {BOB: 0}, False))
    assert acked(writer.commit()) == [("s", BOB, 1, 9)]


def test_many_that_may_not_go_do_not_hold_up_the_others() -> None:
    writer = Writer(replace(FEW, sessions_hot_max=2))
    sessions = [f"s{k}" for k in range(200)]
    writer.submit(*((session, ALICE, 1) for session in sessions))
    writer.tell(*[NEW] * 200)
    assert writer.machine.hot_sessions == 200
    writer.commit()
    assert writer.machine.hot_sessions == 2


def test_longest_known_senders_go_and_are_asked_for_again_G5(writer: Writer) -> None:
    writer.store("s")
    for sender in (BOB, CAROL):
        writer.submit(("s", sender, 1))
        writer.commit()
    assert writer.submit(("s", CAROL, 2)) == []
    writer.commit()
    writer.submit(("s", ALICE, 2))
    assert writer.asked == [LookUp(13, [("s", [ALICE], [])])], "the last commit before it went was of frame 13"
    writer.tell(Told(3, {ALICE: 1}, False))
    assert acked(writer.commit()) == [("s", ALICE, 2, 5)]


def test_sender_with_uncommitted_records_does_not_go_G1_G5(writer: Writer) -> None:
    writer.store("s")
    writer.submit(("s", ALICE, 2), ("s", BOB, 1), ("s", CAROL, 1))
    writer.machine.cut_frame(12)
    writer.submit(("s", ALICE, 3))
    assert writer.asked == []
    assert writer.do(FrameCommitted(10)) == []
    writer.submit(("s", ALICE, 4), ("s", BOB, 2), ("s", CAROL, 2))
    assert writer.asked == []


# ---------------------------------------------------------------------- 3: which frames an answer must cover


def test_store_is_asked_for_the_frames_of_the_takeover_until_something_of_this_writer_has_gone(writer: Writer) -> None:
    for session in "st":
        writer.store(session)
    writer.submit(("u", ALICE, 1))
    assert writer.asked[-1].upto == 10
    writer.tell(NEW)
    writer.commit()
    writer.submit(("s", ALICE, 2))
    assert writer.asked[-1].upto == 12, "it went when frame 12 was the last one committed"


def test_state_that_was_only_read_goes_without_asking_for_newer_frames(writer: Writer) -> None:
    for session in "stu":
        writer.do(Wanted("reader", [session]))
        writer.tell(Told(3, {ALICE: 3}, True))
        writer.commit()
    writer.do(Wanted("reader", ["s"]))
    assert writer.asked[-1].upto == 10


# ---------------------------------------------------------------------- 4 and 5: what waits, and what is believed


def test_what_comes_for_a_session_that_is_looked_up_waits_behind_what_came_before_G4(writer: Writer) -> None:
    writer.submit(("s", ALICE, 1), source="c1")
    writer.submit(("s", ALICE, 2), source="c1")
    writer.submit(("s", ALICE, 3), source="c2")
    assert len(writer.asked) == 1
    assert writer.tell(NEW) == []
    assert acked(writer.commit()) == [("s", ALICE, n, n) for n in (1, 2, 3)]


def test_other_sessions_go_on_while_one_is_looked_up(writer: Writer) -> None:
    writer.store("t")
    writer.submit(("s", ALICE, 1), ("t", ALICE, 2))
    assert acked(writer.commit()) == [("t", ALICE, 2, 2)]


def test_same_sender_of_a_hot_session_waits_behind_a_stranger_and_keeps_its_numbers(writer: Writer) -> None:
    writer.store("s", ALICE, Told(7, {ALICE: 3}, False))
    writer.submit(("s", ALICE, 5))
    writer.submit(("s", BOB, 1))
    writer.submit(("s", ALICE, 6))
    assert writer.machine.waiting == 1
    writer.tell(Told(7, {ALICE: 3, BOB: 0}, True))
    assert acked(writer.commit()) == [("s", ALICE, 5, 9), ("s", BOB, 1, 10), ("s", ALICE, 6, 11)], "the answer is older"


def test_failed_look_up_refuses_what_waited_for_now_and_loses_no_order_G8(writer: Writer) -> None:
    writer.submit(("s", ALICE, 1), ("s", ALICE, 2))
    writer.do(GivenUp("c", [["s", BOB, 1]], 7))
    writer.do(Wanted("reader", ["s"]))
    effects = writer.do(LookedUp(writer.asked.pop().asked, None, 7))
    assert refused(effects) == [("s", 1, Code.UNAVAILABLE), ("s", 2, Code.UNAVAILABLE), ("s", 1, Code.UNAVAILABLE)]
    assert [effect for effect in effects if isinstance(effect, Loaded)] == [Loaded("reader", None)]
    assert (writer.machine.waiting, writer.machine.parked_bytes) == (0, 0)
    writer.store("s")


# ---------------------------------------------------------------------- 6: how much is asked for at a time


def test_no_more_names_are_asked_for_than_may_be_and_the_rest_follows() -> None:
    writer = Writer(replace(FEW, states_names_max=4))
    writer.submit(*((f"s{k}", ALICE, 1) for k in range(5)))
    assert [len(order.asked) for order in writer.asked] == [2]
    writer.submit(("s1", BOB, 1), ("s4", BOB, 1))
    writer.tell(NEW)
    assert [order.asked for order in writer.asked] == [[("s1", [ALICE], [])], [("s2", [ALICE], [])]]
    while writer.asked:
        writer.tell(*[NEW] * len(writer.asked[0].asked))
    assert len(acked(writer.commit())) == 7


def test_more_senders_than_may_be_asked_for_are_asked_for_in_turns() -> None:
    writer = Writer(replace(FEW, states_names_max=3))
    senders = [f"a{k}/{k:032d}" for k in range(9)]
    writer.submit(*(("s", sender, 1) for sender in senders))
    rounds = 0
    while writer.asked:
        rounds += 1
        writer.tell(Told(4, {}, False))
    assert rounds == 5
    assert acked(writer.commit()) == [("s", sender, 1, 5 + k) for k, sender in enumerate(senders)]


# ---------------------------------------------------------------------- readers


def test_readers_are_told_when_the_last_of_their_sessions_is_known_as_it_is_then_G7(writer: Writer) -> None:
    writer.store("s")
    assert writer.do(Wanted("r", ["s", "t", "u"])) == []
    writer.submit(("s", ALICE, 2))
    assert writer.tell(Told(5, {}, False)) == []
    writer.commit()
    assert writer.tell(Told(6, {}, False)) == [Loaded("r", [2, 5, 6])]
    writer.commit()
    assert writer.machine.hot_sessions == 2
    assert writer.do(Wanted("r", ["u"])) == [Loaded("r", [6])], "what is here is told at once"


def test_reader_of_a_session_that_is_known_does_not_wait_for_a_sender_of_it(writer: Writer) -> None:
    writer.store("s", ALICE, Told(7, {ALICE: 3}, False))
    writer.submit(("s", BOB, 1))
    assert writer.do(Wanted("r", ["s"])) == [Loaded("r", [8])]


def test_reader_whose_other_session_cannot_be_looked_up_is_told_so_once_and_holds_nothing() -> None:
    writer = Writer(replace(FEW, states_names_max=2))
    writer.do(Wanted("r", ["s", "t", "u"]))
    assert writer.do(LookedUp(writer.asked.pop(0).asked, None, 7)) == [Loaded("r", None)]
    while writer.asked:
        assert writer.tell(NEW) == []
    for session in "vwxy":
        writer.store(session)
    assert writer.machine.hot_sessions == 2


# ---------------------------------------------------------------------- the count of senders


@given(st.lists(st.tuples(st.sampled_from("stuv"), st.integers(0, 5), st.booleans()), max_size=60))
def test_senders_are_counted_right_whatever_comes_and_goes(steps: list[tuple[str, int, bool]]) -> None:
    writer = Writer(replace(FEW, senders_hot_max=4))
    log: dict[str, dict[str, int]] = {}
    for session, k, is_whole in steps:
        sender = f"a{k}/{k:032d}"
        own = log.setdefault(session, {})
        n = own.get(sender, 0) + 1
        writer.submit((session, sender, n))
        if writer.asked:
            named = own if is_whole else {name: last for name, last in own.items() if name == sender}
            writer.tell(Told(sum(own.values()), dict(named), is_whole))
        own[sender] = n
        assert [(ack[2], ack[3]) for ack in acked(writer.commit())] == [(n, sum(own.values()))]
        states: SessionStates = writer.machine._states
        assert states._senders == sum(len(state.last_n) for state in states.hot.values()) <= 4
        assert states._asked_names == 0
