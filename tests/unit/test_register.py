"""The register, rule by rule (design §7): what an acceptor promises, and what a proposer may conclude (G2, G11)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.register.charter import (
    CHARTER_KEY,
    ERA,
    Charter,
    Charters,
    charter_from,
    decode_charter,
    encode_charter,
    following,
    founders_of,
    is_first,
    is_given_up,
    rescued,
    takes_part,
)
from trilogue.actors.protocol.register.proposal import (
    AskAccept,
    AskPrepare,
    CompareAndSet,
    Failed,
    Found,
    Lacking,
    NotInForce,
    Proposal,
    Read,
    Restore,
    Set,
    Settled,
    TryAgain,
    Voted,
)
from trilogue.actors.protocol.register.votes import (
    EMPTY,
    NO_BALLOT,
    Ballot,
    Ballots,
    Cell,
    Value,
    Vote,
    accept,
    ballot_from,
    check_key,
    prepare,
    value_from,
    vote_from_accept,
    vote_from_prepare,
)

A, B, C, D = "abcd"
FIRST = Charter(1, {A: "id a", B: "id b", C: "id c"})
SECOND = Charter(2, {A: "id a", B: "id b", D: "id d"})
ONE, TWO = Ballot(1, "p"), Ballot(2, "q")
X1, Y1 = Value(1, b"x", False), Value(1, b"y", False)
ballots = st.builds(Ballot, st.integers(1, 5), st.sampled_from("pqr"))


# ---------------------------------------------------------------------- an acceptor


def test_promise_is_kept_and_tells_what_was_accepted() -> None:
    kept, vote = prepare(Cell(ONE, ONE, X1), TWO)
    assert (kept, vote) == (Cell(TWO, ONE, X1), Vote(True, TWO, ONE, X1))


@pytest.mark.parametrize("ballot", [ONE, TWO])
def test_promise_is_given_once_and_to_nothing_lower(ballot: Ballot) -> None:
    kept, vote = prepare(Cell(TWO, ONE, X1), ballot)
    assert (kept, vote) == (None, Vote(False, TWO, ONE, X1))


def test_looking_changes_nothing() -> None:
    assert prepare(EMPTY, NO_BALLOT) == (None, Vote(False, NO_BALLOT, NO_BALLOT, None))
    assert prepare(Cell(TWO, ONE, X1), NO_BALLOT) == (None, Vote(False, TWO, ONE, X1))


def test_value_is_accepted_unless_a_promise_is_above_it() -> None:
    assert accept(Cell(ONE, NO_BALLOT, None), ONE, X1)[0] == Cell(ONE, ONE, X1)
    assert accept(EMPTY, ONE, X1)[0] == Cell(ONE, ONE, X1)
    assert accept(Cell(TWO, NO_BALLOT, None), ONE, X1) == (None, Vote(False, TWO, NO_BALLOT, None))
    assert not accept(EMPTY, NO_BALLOT, X1)[1].ok


def test_same_value_again_is_a_yes_that_needs_no_keeping() -> None:
    assert accept(Cell(ONE, ONE, X1), ONE, X1) == (None, Vote(True, ONE, ONE, X1))


def test_two_values_under_one_ballot_are_a_broken_invariant() -> None:
    with pytest.raises(InvariantBroken, match="two values"):
        accept(Cell(ONE, ONE, X1), ONE, Y1)


@given(st.lists(st.tuples(st.booleans(), ballots)))
def test_what_an_acceptor_keeps_never_goes_back(asked: list[tuple[bool, Ballot]]) -> None:
    cell, promised = EMPTY, NO_BALLOT
    for wants_promise, ballot in asked:
        value = Value(1, repr(ballot).encode(), False)
        kept, vote = prepare(cell, ballot) if wants_promise else accept(cell, ballot, value)
        if kept is not None:
            assert vote.ok
            assert (kept.promised, kept.accepted) >= (cell.promised, cell.accepted)
            cell = kept
        assert vote.promised == cell.promised
        assert not vote.ok or ballot >= promised
        promised = cell.promised


def test_no_ballot_is_drawn_twice_and_each_is_above_all_that_were_seen() -> None:
    drawer = Ballots("p")
    first = drawer.draw()
    drawer.seen(Ballot(9, "q"))
    drawer.seen(Ballot(3, "q"))
    assert drawer.draw() > Ballot(9, "q") > first


# ---------------------------------------------------------------------- how it is said


@pytest.mark.parametrize("fields", [None, [], [1], [1, b"p"], [-1, "p"], [0, "p"], [1, ""], [True, "p"], [2**63, "p"]])
def test_ballot_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError):
        ballot_from(fields)


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [1, b"x"],
        [1, "x", False],
        [-1, b"", False],
        [True, b"x", False],
        [1, b"x", 0],
        [0, b"x", False],
        [1, b"12345", False],
    ],
)
def test_value_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError):
        value_from(fields, 4)


def test_votes_survive_the_wire() -> None:
    told = [True, [2, "q"], [1, "p"], [1, b"x", False]]
    assert vote_from_prepare(told, 9) == Vote(True, TWO, ONE, X1)
    assert vote_from_prepare([False, [0, ""], [0, ""], None], 9) == Vote(False, NO_BALLOT, NO_BALLOT, None)
    assert vote_from_accept([True, [2, "q"]]).ok


@pytest.mark.parametrize(
    "fields", [None, [True], [True, [1, "p"], [0, ""], [1, b"x", False]], [True, [1, "p"], [1, "p"], None]]
)
def test_vote_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError):
        vote_from_prepare(fields, 9)
    with pytest.raises(ProtocolError):
        vote_from_accept(fields)


@pytest.mark.parametrize("key", ["", "k" * 256, "é" * 128, b"k", None])
def test_key_is_a_short_text(key: Any) -> None:
    with pytest.raises(ProtocolError):
        check_key(key)


# ---------------------------------------------------------------------- the charter


def test_charter_survives_its_bytes() -> None:
    assert decode_charter(encode_charter(FIRST)) == FIRST


@pytest.mark.parametrize(
    ("number", "acceptors"),
    [(0, {"a": "i"}), (True, {"a": "i"}), (1, {}), (1, {"a": ""}), (1, {"a": "i", "b": "i"}), (1, None)],
)
def test_charter_of_another_shape_is_refused(number: Any, acceptors: Any) -> None:
    with pytest.raises(ProtocolError):
        charter_from(number, acceptors)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01"])
def test_bytes_that_are_no_charter_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_charter(data)


def test_emptied_directory_under_an_old_name_takes_no_part() -> None:
    assert takes_part(FIRST, "id a")
    assert not takes_part(FIRST, "id of a, emptied")
    assert not takes_part(None, "id a")


def test_what_is_known_of_a_number_stays() -> None:
    charters = Charters()
    assert charters.newest is None
    assert charters.learn(SECOND)
    assert charters.learn(FIRST)
    assert not charters.learn(Charter(1, {D: "id d"}))
    assert (charters.get(1), charters.newest, charters.get(3)) == (FIRST, SECOND, None)


def test_majority_is_more_than_half() -> None:
    assert [following(FIRST, {str(k): str(k) for k in range(n)}).majority for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def test_two_stores_with_one_id_make_no_charter() -> None:
    with pytest.raises(InvariantBroken, match="share"):
        following(FIRST, {A: "same", B: "same"})


def test_first_three_stores_found_the_register() -> None:
    assert founders_of(["a", "b", "c", "d"]) == ("a", "b", "c")
    assert founders_of(["a"]) == ("a",)


def test_rescue_begins_the_next_era_and_gives_up_all_before() -> None:
    first = rescued(7, {A: "id a"})
    assert first == Charter(ERA, {A: "id a"})
    assert rescued(ERA + 3, {A: "id a"}).number == 2 * ERA
    assert [number for number in (1, 2, 7, ERA, ERA + 1, 2 * ERA) if is_first(number)] == [1, ERA, 2 * ERA]
    assert [number for number in (1, 7, ERA - 1, ERA, ERA + 1) if is_given_up(number, first)] == [1, 7, ERA - 1]
    assert not is_given_up(1, SECOND)
    assert not is_given_up(1, None)


# ---------------------------------------------------------------------- a proposer


class Talk:
    """One operation, its acceptors' cells, and the asks that are out."""

    def __init__(self, operation: Any, *known: Charter, key: str = "k", pinned: int = 0, **cells: Cell) -> None:
        self.charters = Charters()
        for charter in known or (FIRST,):
            self.charters.learn(charter)
        self.cells: dict[tuple[int, str, str], Cell] = {(1, "k", name): cell for name, cell in cells.items()}
        self.machine = Proposal(key, operation, self.charters, Ballots("p"), pinned)
        self.asks: list[Any] = []
        self.outcome: Any = None
        self.again: Any = None

    def start(self) -> Talk:
        self.again = None
        self._take(self.machine.start())
        return self

    def _take(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Settled):
                self.outcome = effect.outcome
            elif isinstance(effect, TryAgain | Lacking):
                self.again = effect
            else:
                self.asks.append(effect)

    def asked(self, name: str) -> Voted:
        """What the acceptor answers to the last ask; it keeps what it has to."""
        ask = self.asks[-1]
        at = (ask.charter.number, ask.key, name)
        cell = self.cells.get(at, EMPTY)
        kept, vote = prepare(cell, ask.ballot) if isinstance(ask, AskPrepare) else accept(cell, ask.ballot, ask.value)
        self.cells[at] = kept or cell
        return Voted(ask.ask, name, vote)

    def hear(self, *names: str) -> Talk:
        """These answer, in this order, as long as the ask is the last one."""
        ask = self.asks[-1]
        for name in names:
            if self.asks[-1] is ask:
                self._take(self.machine.handle(self.asked(name)))
        return self

    def miss(self, *names: str) -> Talk:
        for name in names:
            self._take(self.machine.handle(Failed(self.asks[-1].ask, name)))
        return self

    def rounds(self, *names: str) -> Any:
        """The outcome when these answer everything, and the others nothing."""
        self.start()
        for _ in range(30):
            if self.outcome is not None:
                return self.outcome
            if self.again is not None:
                self.start()
            ask = self.asks[-1]
            self.hear(*names)
            if self.asks[-1] is ask and self.outcome is None:
                self.miss(*sorted(set(ask.charter.acceptors) - set(names)))
        raise AssertionError("no outcome in 30 rounds")


def held(value: Value, ballot: Ballot = ONE) -> Cell:
    return Cell(ballot, ballot, value)


def test_compare_and_set_takes_two_rounds_of_a_majority_G11() -> None:
    talk = Talk(CompareAndSet(0, b"x"))
    assert talk.rounds(A, B) == Set(1)
    assert [type(ask) for ask in talk.asks] == [AskPrepare, AskAccept]
    assert talk.cells[1, "k", A].value == X1


def test_one_yes_of_three_is_no_outcome() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().hear(A, B).hear(A)
    assert talk.outcome is None
    assert talk.hear(A).outcome is None  # the same one again is no other one


def test_value_of_the_highest_ballot_is_carried_on_before_anything_else() -> None:
    talk = Talk(CompareAndSet(0, b"z"), a=held(Y1, TWO), b=held(X1))
    assert talk.rounds(A, B) == NotInForce(1, b"y", False)
    assert talk.cells[1, "k", B].value == Y1


def test_version_in_force_is_followed() -> None:
    assert Talk(CompareAndSet(1, b"z"), a=held(X1), b=held(X1)).rounds(A, B) == Set(2)


def test_compare_and_set_that_finds_its_own_data_is_done() -> None:
    assert Talk(CompareAndSet(0, b"x"), a=held(X1), b=held(X1)).rounds(A, B) == Set(1)
    assert Talk(CompareAndSet(0, b"x"), a=held(X1)).rounds(A, B) == Set(1)


def test_same_data_at_another_version_is_not_its_own() -> None:
    talk = Talk(CompareAndSet(0, b"x"), a=held(Value(7, b"x", False)), b=held(Value(7, b"x", False)))
    assert talk.rounds(A, B) == NotInForce(7, b"x", False)


def test_silence_is_another_round_and_never_an_outcome() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().hear(A, B).miss(A, B)
    assert talk.outcome is None
    assert talk.again == TryAgain(False)
    assert talk.rounds(B, C) == Set(1)


def test_one_failure_of_three_is_not_waited_for() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().miss(C).hear(A, B).miss(C).hear(A, B)
    assert talk.outcome == Set(1)


def test_retry_that_finds_another_version_says_that_it_tried() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().hear(A, B).miss(A, B)
    for name in (A, B, C):
        talk.cells[1, "k", name] = held(Y1, Ballot(5, "q"))
    assert talk.rounds(A, B) == NotInForce(1, b"y", True)


def test_conflict_is_followed_by_a_higher_ballot() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start()
    for name in (A, B, C):
        talk.cells[1, "k", name] = Cell(Ballot(40, "q"), NO_BALLOT, None)
    talk.hear(A, B)
    assert talk.again == TryAgain(True)
    assert talk.start().asks[-1].ballot.n > 40


def test_answer_to_an_earlier_round_is_not_looked_at() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start()
    late = talk.asked(A)
    talk.start().hear(B)
    assert talk.machine.handle(late) == []
    assert talk.machine.handle(Failed(late.ask, C)) == []
    assert talk.machine.handle(Voted(talk.asks[-1].ask, "stranger", late.vote)) == []


def test_yes_that_came_before_a_no_of_the_same_acceptor_counts() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().hear(A, B).hear(A).miss(A, C)
    assert talk.again is None
    assert talk.hear(B).outcome == Set(1)


# ---------------------------------------------------------------------- reading


def test_reading_what_a_majority_holds_writes_nothing() -> None:
    talk = Talk(Read(), a=held(X1), b=held(X1))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert [ask.ballot for ask in talk.asks] == [NO_BALLOT]


def test_reading_what_is_absent_says_so() -> None:
    assert Talk(Read()).rounds(A, B) == Found(0, None)


def test_reading_what_one_of_two_holds_puts_it_in_force_first_G2() -> None:
    talk = Talk(Read(), a=held(X1))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert talk.cells[1, "k", B].value == X1


def test_two_ballots_of_one_value_are_not_yet_in_force() -> None:
    talk = Talk(Read(), a=held(X1, TWO), b=held(X1))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert isinstance(talk.asks[-1], AskAccept)


# ---------------------------------------------------------------------- from charter to charter

MOVED = Value(1, b"x", True)
NEXT = held(Value(1, encode_charter(SECOND), False))


def decided(talk: Talk) -> Talk:
    """Charter 1 says that charter 2 follows."""
    for name in FIRST.acceptors:
        talk.cells[1, CHARTER_KEY, name] = NEXT
    return talk


def test_moved_key_is_followed_to_the_charter_that_the_old_one_names() -> None:
    talk = decided(Talk(CompareAndSet(1, b"z"), a=held(MOVED), b=held(MOVED)))
    assert talk.rounds(A, B) == Set(2)
    assert talk.charters.newest == SECOND
    assert talk.cells[2, "k", A].value == Value(2, b"z", False)
    assert talk.cells[1, "k", A].value == MOVED


def test_mark_that_one_acceptor_holds_is_put_in_force_before_it_is_followed() -> None:
    talk = decided(Talk(Read(), a=held(MOVED)))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert talk.cells[1, "k", B].value == MOVED


def test_key_that_is_empty_under_the_new_charter_is_marked_under_the_old_one_first() -> None:
    talk = Talk(Read(), FIRST, SECOND, a=held(X1), b=held(X1))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert talk.cells[1, "k", A].value == MOVED
    assert talk.cells[2, "k", A].value == X1


def test_absent_key_is_marked_too() -> None:
    talk = Talk(CompareAndSet(0, b"x"), FIRST, SECOND)
    assert talk.rounds(A, B) == Set(1)
    assert talk.cells[1, "k", B].value == Value(0, b"", True)
    assert talk.cells[2, "k", A].value == X1


def test_key_moves_through_all_charters_between() -> None:
    third = Charter(3, {A: "id a", B: "id b", "e": "id e"})
    talk = Talk(Read(), FIRST, SECOND, third, a=held(X1), b=held(X1))
    assert talk.rounds(A, B) == Found(1, b"x")
    assert [talk.cells[number, "k", A].value for number in (1, 2, 3)] == [MOVED, MOVED, X1]


def test_key_with_a_value_under_the_new_charter_is_not_sought_under_the_old_one() -> None:
    talk = Talk(Read(), FIRST, SECOND)
    talk.cells[2, "k", A] = talk.cells[2, "k", B] = held(Y1)
    assert talk.rounds(A, B) == Found(1, b"y")
    assert {ask.charter.number for ask in talk.asks} == {2}


def test_old_charter_that_nobody_told_is_asked_for() -> None:
    talk = Talk(Read(), SECOND).start().hear(A, B)
    assert talk.again == Lacking(1)
    talk.charters.learn(FIRST)
    assert talk.rounds(A, B) == Found(0, None)


def test_newer_charter_is_turned_to_at_the_next_round() -> None:
    talk = Talk(CompareAndSet(0, b"x")).start().miss(A, B)
    talk.charters.learn(SECOND)
    talk.cells[2, "k", A] = talk.cells[2, "k", B] = held(Value(0, b"", False))
    assert talk.rounds(A, B) == Set(1)
    assert talk.machine._here == 2
    assert (1, "k", A) not in talk.cells


def test_next_charter_is_set_once_and_never_moves() -> None:
    ours = CompareAndSet(0, encode_charter(SECOND))
    assert decided(Talk(ours, key=CHARTER_KEY, pinned=1)).rounds(A, B) == Set(1)
    other = CompareAndSet(0, encode_charter(SECOND._replace(acceptors={C: "id c"})))
    found = decided(Talk(other, key=CHARTER_KEY, pinned=1)).rounds(A, B)
    assert found == NotInForce(1, encode_charter(SECOND), False)


def test_round_that_fails_while_the_next_charter_is_looked_up_is_begun_again() -> None:
    talk = decided(Talk(Read(), a=held(MOVED), b=held(MOVED))).start().hear(A, B)
    assert talk.asks[-1].key == CHARTER_KEY
    talk.miss(A, B)
    assert talk.again == TryAgain(False)
    assert talk.rounds(A, B) == Found(1, b"x")


def test_only_the_next_charter_is_pinned() -> None:
    with pytest.raises(InvariantBroken):
        Talk(Read(), key="k", pinned=1)
    with pytest.raises(InvariantBroken):
        Talk(Read(), key=CHARTER_KEY)


def test_operation_that_is_over_does_not_begin_again() -> None:
    talk = Talk(Read())
    talk.rounds(A, B)
    with pytest.raises(InvariantBroken):
        talk.start()


# ---------------------------------------------------------------------- after a rescue

SAVED = rescued(1, {A: "id a", B: "id b", C: "id c"})
X9 = Value(9, b"x", False)


@pytest.mark.parametrize("operation", [Read(), CompareAndSet(0, b"y")])
def test_key_that_was_not_restored_yet_is_waited_for_and_never_absent_G8(operation: Any) -> None:
    talk = Talk(operation, FIRST, SAVED, a=held(X1), b=held(X1)).start().hear(A, B)
    assert talk.again == TryAgain(False)
    assert talk.outcome is None
    assert (1, "k", A) not in {(ask.charter.number, ask.key, A) for ask in talk.asks}
    talk.cells[SAVED.number, "k", A] = talk.cells[SAVED.number, "k", B] = held(X9)
    assert talk.rounds(A, B) == (Found(9, b"x") if operation == Read() else NotInForce(9, b"x", False))


def test_restored_value_has_the_version_that_the_rescue_says_and_stays() -> None:
    talk = Talk(Restore(9, b"x"), FIRST, SAVED)
    assert talk.rounds(A, B) == Set(9)
    assert talk.cells[SAVED.number, "k", A].value == X9
    for operation, outcome in [
        (Restore(9, b"x"), Set(9)),
        (Restore(9, b"y"), NotInForce(9, b"x", False)),
        (CompareAndSet(1, b"y"), NotInForce(9, b"x", False)),  # whoever knows a version of before
        (CompareAndSet(9, b"y"), Set(10)),
    ]:
        later = Talk(operation, FIRST, SAVED)
        later.cells = dict(talk.cells)
        assert later.rounds(A, B) == outcome


def test_key_is_restored_also_when_the_charter_has_moved_on_meanwhile() -> None:
    talk = Talk(Restore(9, b"x"), SAVED, following(SAVED, {A: "id a", B: "id b", D: "id d"}))
    assert talk.rounds(A, B) == Set(9)
    assert talk.cells[SAVED.number, "k", A].value == X9._replace(moved=True)
    assert talk.cells[SAVED.number + 1, "k", A].value == X9
