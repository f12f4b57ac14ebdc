"""Who gets which seq, rule by rule (design §8): G1, G3, G4, G5, G7, G8."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, KIB, Limits
from trilogue.actors.protocol.messages import RUN, SKIP, Record, pack_records, unpack_records
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import (
    Answered,
    FrameCommitted,
    GivenUp,
    Loaded,
    LookedUp,
    LookUp,
    Readable,
    Recall,
    Recalled,
    Refused,
    Retry,
    Submitted,
    Told,
    Wanted,
    check_runs,
)
from trilogue.actors.protocol.vocabulary import Code

ALICE, BOB = "alice/" + "0" * 32, "bob/" + "1" * 32
SMALL = Limits(
    body_bytes_max=8,
    submit_bytes_max=200,
    frame_bytes_target=2700,
    frame_bytes_max=80 * KIB + 200,
    history_bytes_max=16 * KIB,
    page_bytes_max=4 * KIB,
    credit_bytes_max=16 * KIB,
)


class Partition:
    """A sequencer with a log behind it: frames are cut, committed, and recalled from; states are told as of the frame asked.

    With `slow` set, states are told by `tell` only. A session with more than `whole_max` senders is not told as a whole.
    """

    def __init__(
        self, limits: Limits = SMALL, partitions: int = 1, partition: int = 0, log: list[list[Record]] | None = None
    ) -> None:
        self.frames = log or []  # that are committed
        self.machine = Sequencer(partition, partitions, limits, len(self.frames))
        self.uncommitted: list[list[Record]] = []
        self.slow = False
        self.whole_max = 100
        self.asked: list[LookUp] = []
        self.now_us = 1000

    @property
    def log(self) -> list[Record]:
        return [record for frame in self.frames for record in frame]

    def do(self, event: Any) -> list[Any]:
        return self.settle(self.machine.handle(event))

    def settle(self, effects: list[Any]) -> list[Any]:
        """Answer what is asked of stores at once, but for retries."""
        out: list[Any] = []
        for effect in effects:
            if isinstance(effect, LookUp):
                self.asked.append(effect)
            else:
                out.append(effect)
        return out if self.slow else out + self.tell()

    def tell(self, most: int = 1000) -> list[Any]:
        """Tell the states that were asked for first, `most` of them, as of the frame that was named: nothing newer counts."""
        if not self.asked:
            return []
        upto, asked = self.asked.pop(0)
        if asked[most:]:
            self.asked.insert(0, LookUp(upto, asked[most:]))
        told = [self._state(upto, session, senders) for session, senders, _ in asked[:most]]
        return self.settle(self.machine.handle(LookedUp(asked[:most], told, self.now_us)))

    def _state(self, upto: int, session: str, senders: list[str]) -> Told:
        own = [record for frame in self.frames[:upto] for record in frame if record.session == session]
        last_n = {record.sender_id: _numbers(record)[-1] for record in own}
        whole = len(last_n) <= self.whole_max
        seq = sum(len(record.bodies) for record in own if record.kind == RUN)  # type: ignore[union-attr]
        return Told(seq, {name: n for name, n in last_n.items() if whole or name in senders}, whole)

    def submit(self, first_n: int, *bodies: bytes, session: str = "s", sender: str = ALICE, source: str = "c") -> list[Any]:
        run = [session, sender, first_n, [5] * len(bodies), list(bodies)]
        check_runs([run], SMALL)
        return self.do(Submitted(source, [run], self.now_us))

    def give_up(self, n: int, session: str = "s", sender: str = ALICE, source: str = "c") -> list[Any]:
        return self.do(GivenUp(source, [[session, sender, n]], self.now_us))

    def head(self, session: str) -> int:
        [loaded] = self.do(Wanted("reader", [session]))
        return int(loaded.heads[0])

    def cut(self) -> None:
        index = len(self.frames) + len(self.uncommitted) + 1
        self.uncommitted.append(unpack_records(pack_records(self.machine.cut_frame(index))))

    def commit(self, frames: int = 1) -> list[Any]:
        """The oldest frames are committed; what must be recalled is answered from the log."""
        self.frames += self.uncommitted[:frames]
        del self.uncommitted[:frames]
        return self.recall(self.do(FrameCommitted(len(self.frames))))

    def recall(self, effects: list[Any]) -> list[Any]:
        out: list[Any] = []
        for effect in effects:
            if isinstance(effect, Recall):
                own = [r for r in self.log if (r.session, r.sender_id) == (effect.retry.session, effect.retry.sender_id)]
                out += self.do(Recalled(effect.retry, own))
            else:
                out.append(effect)
        return out

    def store(self, first_n: int, *bodies: bytes, **who: Any) -> list[Any]:
        assert self.submit(first_n, *bodies, **who) == []
        self.cut()
        return self.commit()


@pytest.fixture
def partition() -> Partition:
    return Partition()


def acks(effects: list[Any]) -> list[Any]:
    return [ack for effect in effects if isinstance(effect, Answered) for ack in effect.acks]


def refusals(effects: list[Any]) -> list[Any]:
    return [refusal for effect in effects if isinstance(effect, Refused) for refusal in effect.refusals]


# ---------------------------------------------------------------------- new runs


def test_new_run_gets_the_sessions_next_seqs_and_is_acked_when_it_is_committed_G1(partition: Partition) -> None:
    assert partition.submit(1, b"a", b"b") == []
    assert partition.submit(1, b"c", sender=BOB) == []
    assert partition.machine.waiting == 2
    partition.cut()
    answered, readable = partition.commit()
    assert answered == Answered("c", [("s", ALICE, 1, 2, 1, False), ("s", BOB, 1, 1, 3, False)])
    assert [(run[3], run[4], run[7]) for run in readable.runs] == [(1, 1, [b"a", b"b"]), (1, 3, [b"c"])]


def test_no_ack_leaves_for_a_frame_that_is_not_committed_G1(partition: Partition) -> None:
    partition.submit(1, b"a")
    partition.cut()
    partition.submit(2, b"b")
    partition.cut()
    assert [ack[2] for ack in acks(partition.commit())] == [1]
    assert partition.machine.handle(FrameCommitted(1)) == []
    assert [ack[2] for ack in acks(partition.commit())] == [2]


def test_readers_see_committed_messages_only_G7(partition: Partition) -> None:
    partition.submit(1, b"a", b"b")
    assert partition.head("s") == 0
    partition.cut()
    assert partition.head("s") == 0
    partition.commit()
    assert partition.head("s") == 2
    assert partition.head("unknown") == 0


def test_each_source_gets_its_own_acks_and_each_session_its_own_seqs_G3(partition: Partition) -> None:
    partition.submit(1, b"a", source="c1")
    partition.submit(1, b"b", session="t", source="c2")
    partition.submit(2, b"c", source="c1")
    partition.cut()
    answers = {effect.source: effect.acks for effect in partition.commit() if isinstance(effect, Answered)}
    assert answers == {
        "c1": [("s", ALICE, 1, 1, 1, False), ("s", ALICE, 2, 1, 2, False)],
        "c2": [("t", ALICE, 1, 1, 1, False)],
    }


def test_stored_at_never_goes_back_whatever_the_clock_does() -> None:
    partition = Partition()
    partition.machine = Sequencer(0, 1, SMALL, 0, 500)
    for now_us in (100, 900, 200):
        partition.now_us = now_us
        partition.submit(partition.machine.waiting + 1, b"x")
    partition.give_up(4)
    records = partition.machine.cut_frame(1)
    assert [record[5] if record[0] == RUN else record[4] for record in records] == [500, 900, 900, 900]


# ---------------------------------------------------------------------- out of order


def test_run_above_the_next_number_is_refused_with_what_is_expected_and_nothing_of_it_is_stored_G4(
    partition: Partition,
) -> None:
    partition.store(1, b"a")
    (refusal,) = refusals(partition.submit(3, b"c", b"d"))
    assert (refusal.code, refusal.first_n, refusal.messages, refusal.expected_n) == (Code.OUT_OF_ORDER, 3, 2, 2)
    assert partition.machine.waiting == 0
    assert acks(partition.store(2, b"b")) == [("s", ALICE, 2, 1, 2, False)]


def test_unknown_sender_must_begin_with_1(partition: Partition) -> None:
    (refusal,) = refusals(partition.submit(2, b"b"))
    assert (refusal.code, refusal.expected_n) == (Code.OUT_OF_ORDER, 1)
    assert partition.machine.waiting == 0


# ---------------------------------------------------------------------- retries


def test_retry_is_answered_with_the_original_seq_G5(partition: Partition) -> None:
    partition.store(1, b"a", b"b")
    partition.store(1, b"x", sender=BOB)
    assert partition.recall(partition.submit(1, b"a", b"b", source="other")) == [
        Answered("other", [("s", ALICE, 1, 2, 1, True)])
    ]
    assert partition.machine.waiting == 0


def test_retry_before_the_commit_waits_for_it_G1_G5(partition: Partition) -> None:
    partition.submit(1, b"a")
    assert partition.submit(1, b"a", source="again") == []
    partition.cut()
    assert partition.submit(1, b"a", source="third") == []
    assert acks(partition.commit()) == [("s", ALICE, 1, 1, 1, False), ("s", ALICE, 1, 1, 1, True), ("s", ALICE, 1, 1, 1, True)]


def test_retry_waits_for_its_own_frame_when_what_waits_is_cut_into_several_G1(partition: Partition) -> None:
    for n in range(1, 11):
        partition.submit(n, b"12345678")
    partition.submit(10, b"12345678", source="again")
    partition.cut()
    assert partition.machine.waiting > 0, "the retry's original is in a later frame"
    assert [effect for effect in partition.commit() if effect == Answered("again", [("s", ALICE, 10, 1, 10, True)])] == []
    while partition.machine.waiting:
        partition.cut()
        last = partition.commit()
    assert Answered("again", [("s", ALICE, 10, 1, 10, True)]) in last


def test_same_retry_twice_from_one_source_is_answered_once(partition: Partition) -> None:
    partition.submit(1, b"a")
    partition.submit(1, b"a", source="again")
    partition.submit(1, b"a", source="again")
    partition.cut()
    assert len(acks(partition.commit())) == 2


def test_what_of_a_retry_lies_above_the_last_number_is_new_G5(partition: Partition) -> None:
    partition.store(1, b"a", b"b")
    early = partition.recall(partition.submit(2, b"b", b"c", b"d"))
    assert acks(early) == [("s", ALICE, 2, 1, 2, True)]
    partition.cut()
    assert acks(partition.commit()) == [("s", ALICE, 3, 2, 3, False)]


def test_retry_over_runs_that_others_interrupted_gets_each_original_seq_G5(partition: Partition) -> None:
    partition.store(1, b"a")
    partition.store(1, b"x", sender=BOB)
    partition.store(2, b"b", b"c")
    assert acks(partition.recall(partition.submit(1, b"a", b"b", b"c"))) == [
        ("s", ALICE, 1, 1, 1, True),
        ("s", ALICE, 2, 2, 3, True),
    ]


def test_same_number_with_another_body_is_a_conflict_and_the_rest_is_answered_G5_G8(partition: Partition) -> None:
    partition.store(1, b"a", b"b", b"c")
    effects = partition.recall(partition.submit(1, b"a", b"B", b"c"))
    assert acks(effects) == [("s", ALICE, 1, 1, 1, True), ("s", ALICE, 3, 1, 3, True)]
    (refusal,) = refusals(effects)
    assert (refusal.code, refusal.first_n, refusal.messages) == (Code.CONFLICTING_RETRY, 2, 1)
    assert "copied or restored: this message was not stored; send it again" in refusal.text


def test_conflict_is_told_only_when_the_original_is_committed(partition: Partition) -> None:
    partition.submit(1, b"a")
    assert partition.submit(1, b"A", source="copy") == []
    partition.cut()
    assert refusals(partition.commit())[0].code == Code.CONFLICTING_RETRY


def test_retry_when_no_store_answers_is_refused_for_now_G8(partition: Partition) -> None:
    partition.store(1, b"a")
    (recall,) = partition.submit(1, b"a")
    (refusal,) = refusals(partition.machine.handle(Recalled(recall.retry, None)))
    assert (refusal.code, refusal.code.final) == (Code.UNAVAILABLE, False)


def test_number_that_was_given_out_and_is_not_in_the_log_breaks_an_invariant_G2(partition: Partition) -> None:
    with pytest.raises(InvariantBroken, match="is not in the log"):
        partition.machine.handle(Recalled(Retry("c", "s", ALICE, 1, [b"a"]), []))


def test_dedupe_comes_before_every_other_refusal(partition: Partition) -> None:
    partition.store(1, b"a")
    effects = partition.recall(partition.submit(1, b"beyond the bound"))
    assert [refusal.code for refusal in refusals(effects)] == [Code.CONFLICTING_RETRY]


# ---------------------------------------------------------------------- limits and names


def test_too_large_message_in_the_middle_is_refused_before_it_gets_a_seq_G8(partition: Partition) -> None:
    too_large, after = refusals(partition.submit(1, b"a", b"b", b"123456789", b"c", b"d"))
    assert (too_large.code, too_large.first_n, too_large.messages) == (Code.MESSAGE_TOO_LARGE, 3, 1)
    assert (after.code, after.first_n, after.messages, after.expected_n) == (Code.OUT_OF_ORDER, 4, 2, 3)
    partition.cut()
    assert acks(partition.commit()) == [("s", ALICE, 1, 2, 1, False)]
    partition.give_up(3)
    partition.submit(4, b"c")
    partition.cut()
    assert acks(partition.commit()) == [("s", ALICE, 3, 1, 0, False), ("s", ALICE, 4, 1, 3, False)]


def test_body_at_the_bound_is_taken_and_a_first_one_above_it_leaves_no_trace(partition: Partition) -> None:
    assert len(refusals(partition.submit(1, b"123456789"))) == 1
    assert partition.machine.waiting == 0
    assert acks(partition.store(1, b"12345678")) == [("s", ALICE, 1, 1, 1, False)]


@pytest.mark.parametrize(
    ("session", "sender", "code"),
    [
        ("", ALICE, Code.INVALID_SESSION),
        ("s" * 256, ALICE, Code.INVALID_SESSION),
        ("s", "alice", Code.INVALID_SENDER),
        ("s", "a\n/" + "0" * 32, Code.INVALID_SENDER),
    ],
)
@pytest.mark.parametrize("first_n", [1, 7])
def test_invalid_names_are_refused_and_leave_no_trace(session: str, sender: str, code: Code, first_n: int) -> None:
    partition = Partition()
    assert [r.code for r in refusals(partition.submit(first_n, b"a", session=session, sender=sender))] == [code]
    assert partition.machine.hot_sessions == 0
    assert partition.machine.waiting == 0


@pytest.mark.parametrize("first_n", [1, 7])
def test_session_of_another_partition_is_refused_whatever_its_number_is(first_n: int) -> None:
    here = partition_of("s", 8)
    partition = Partition(partitions=8, partition=(here + 1) % 8)
    (refusal,) = refusals(partition.submit(first_n, b"a"))
    assert (refusal.code, refusal.text) == (Code.NOT_HERE, f"session 's' belongs to partition {here}")
    assert refusals(partition.give_up(first_n))[0].code == Code.NOT_HERE
    assert refusals(Partition(partitions=8, partition=here).submit(1, b"a")) == []


def test_run_that_no_frame_could_hold_is_refused() -> None:
    partition = Partition(DEFAULT_LIMITS)
    bodies = [bytes(1 << 20)] * 4
    assert [r.code for r in refusals(partition.submit(1, *bodies))] == [Code.MALFORMED]
    assert refusals(partition.submit(1, *bodies[:3])) == []


@pytest.mark.parametrize(
    ("session", "bodies"), [("s" * 255, [b""]), ("s" * 255, [b"x" * 100] * 50), ("é" * 127, [bytes(1 << 19)] * 5)]
)
def test_frame_that_is_cut_from_the_largest_runs_stays_within_its_bound(session: str, bodies: list[bytes]) -> None:
    partition = Partition(DEFAULT_LIMITS)
    for k in range(2000):
        sender = "ß" * 127 + "/" + f"{k:032x}"
        partition.submit(1, *bodies, session=session, sender=sender)
        if partition.machine.waiting_bytes > 8 * DEFAULT_LIMITS.frame_bytes_target:
            break
    index = 0
    while partition.machine.waiting:
        index += 1
        size = HEADER_BYTES + 8 + len(pack_records(partition.machine.cut_frame(index)))
        assert size <= DEFAULT_LIMITS.frame_bytes_max
    assert partition.machine.waiting_bytes == 0


@pytest.mark.parametrize(
    "run",
    [
        None, [], ["s", ALICE, 1, [1]], ["s", ALICE, 0, [1], [b""]], ["s", ALICE, True, [1], [b""]],
        [b"s", ALICE, 1, [1], [b""]],
        ["s", None, 1, [1], [b""]], ["s", ALICE, 1, [], []], ["s", ALICE, 1, [1, 2], [b""]], ["s", ALICE, 1, [1], ["text"]],
        ["s", ALICE, 1, ["1"], [b""]], ["s", ALICE, 1, [1], b"x"], ["s", ALICE, 1, [1], [b""], 0],
        ("s", ALICE, 1, [1], [b""]),
        ["s", ALICE, 1, [1] * 9, [b""] * 9],
    ],
)  # fmt: skip
def test_run_of_another_shape_is_a_protocol_error(run: Any) -> None:
    with pytest.raises(ProtocolError, match="unknown shape"):
        check_runs([run], replace(SMALL, run_messages_max=8))


# ---------------------------------------------------------------------- skips


def test_number_that_was_given_up_takes_its_n_and_no_seq_G3(partition: Partition) -> None:
    partition.submit(1, b"a")
    partition.give_up(2)
    partition.submit(3, b"c")
    partition.cut()
    assert acks(partition.commit()) == [
        ("s", ALICE, 1, 1, 1, False),
        ("s", ALICE, 2, 1, 0, False),
        ("s", ALICE, 3, 1, 2, False),
    ]
    assert partition.log[1][:4] == (SKIP, "s", ALICE, 2)


def test_number_that_is_given_up_after_all_answers_with_the_seq_of_its_original(partition: Partition) -> None:
    partition.store(1, b"a")
    assert acks(partition.recall(partition.give_up(1))) == [("s", ALICE, 1, 1, 1, True)]


def test_retry_of_a_skipped_number_is_answered_with_the_skip(partition: Partition) -> None:
    partition.store(1, b"a")
    partition.give_up(2)
    partition.cut()
    partition.commit()
    assert acks(partition.recall(partition.submit(1, b"a", b"late"))) == [
        ("s", ALICE, 1, 1, 1, True),
        ("s", ALICE, 2, 1, 0, True),
    ]
    assert acks(partition.recall(partition.give_up(2))) == [("s", ALICE, 2, 1, 0, True)]


def test_number_that_is_given_up_out_of_order_is_refused(partition: Partition) -> None:
    (refusal,) = refusals(partition.give_up(2))
    assert (refusal.code, refusal.expected_n) == (Code.OUT_OF_ORDER, 1)


# ---------------------------------------------------------------------- frames and rebuilding


def test_frames_take_what_waits_in_order_up_to_their_target(partition: Partition) -> None:
    for n in range(1, 10):
        partition.submit(n, b"12345678")
    sizes = []
    while partition.machine.waiting:
        before = partition.machine.waiting
        partition.cut()
        sizes.append(before - partition.machine.waiting)
    assert len(sizes) > 1
    assert [ack[2] for _ in sizes for ack in acks(partition.commit())] == list(range(1, 10))


def test_frame_is_never_cut_from_nothing_or_out_of_order(partition: Partition) -> None:
    with pytest.raises(InvariantBroken):
        partition.machine.cut_frame(1)
    partition.submit(1, b"a")
    partition.machine.cut_frame(5)
    partition.submit(2, b"b")
    with pytest.raises(InvariantBroken):
        partition.machine.cut_frame(5)


def test_session_of_an_earlier_writer_goes_on_where_it_was_and_knows_its_retries_G5() -> None:
    before = Partition()
    before.store(1, b"a", b"b", b"c")
    before.store(1, b"d", sender=BOB)
    partition = Partition(log=before.frames)
    assert partition.head("s") == 4
    assert isinstance(partition.submit(3, b"c")[0], Recall)
    assert refusals(partition.submit(5, b"x"))[0].expected_n == 4
    assert acks(partition.store(4, b"e")) == [("s", ALICE, 4, 1, 5, False)]
    assert acks(partition.store(2, b"f", sender=BOB)) == [("s", BOB, 2, 1, 6, False)]


# ---------------------------------------------------------------------- against a model


TINY = replace(
    SMALL, sessions_hot_max=1, senders_hot_max=2, session_senders_hot_max=1, states_names_max=2, loads_at_once_max=1,
    subscribe_sessions_max=1,
)  # fmt: skip
"""One session with one sender is in memory, and one is asked for at a time: everything goes and comes back all the time."""


class AgainstAModel(RuleBasedStateMachine):
    """Any order of submissions, retries, skips, cuts, commits, look-ups and takeovers, beside a model: one list a session."""

    @initialize(whole_max=st.sampled_from((0, 1, 2)), tiny=st.booleans())
    def start(self, whole_max: int, tiny: bool) -> None:
        self.whole_max, self.limits = whole_max, TINY if tiny else SMALL
        self.begin([])

    def begin(self, log: list[list[Record]]) -> None:
        self.partition = Partition(self.limits, log=log)
        self.partition.slow, self.partition.whole_max = True, self.whole_max
        self.model: dict[str, list[tuple[str, int, bytes]]] = {name: [] for name in "stu"}  # the session's messages in order
        self.numbers: dict[tuple[str, str], list[bytes | None]] = {}  # what each number was first used for
        self.acked: dict[tuple[str, str, int], int] = {}
        self.refused: Counter[tuple[str, str, int, int]] = Counter()  # refusals that are due

    def _number(self, session: str, sender: str, body: bytes | None) -> int:
        numbers = self.numbers.setdefault((session, sender), [])
        numbers.append(body)
        if body is not None:
            self.model[session].append((sender, len(numbers), body))
        return len(numbers)

    @rule(session=st.sampled_from("stu"), sender=st.sampled_from((ALICE, BOB)), back=st.integers(0, 3), new=st.integers(0, 3))
    def submit(self, session: str, sender: str, back: int, new: int) -> None:
        """A run that overlaps `back` old numbers and brings `new` ones."""
        numbers = self.numbers.get((session, sender), [])
        old = numbers[max(0, len(numbers) - back) :]
        first_n = len(numbers) - len(old) + 1
        fresh = [b"%d" % (len(numbers) + k) for k in range(new)]
        bodies = [body if body is not None else b"late" for body in old] + fresh
        if bodies:
            for body in fresh:
                self._number(session, sender, body)
            self.take(self.partition.submit(first_n, *bodies, session=session, sender=sender))

    @rule(session=st.sampled_from("stu"), sender=st.sampled_from((ALICE, BOB)), ahead=st.integers(2, 4))
    def submit_above(self, session: str, sender: str, ahead: int) -> None:
        known = len(self.numbers.get((session, sender), []))
        self.refused[session, sender, known + ahead, known + 1] += 1
        self.take(self.partition.submit(known + ahead, b"x", session=session, sender=sender))

    @rule(session=st.sampled_from("stu"), sender=st.sampled_from((ALICE, BOB)))
    def give_up(self, session: str, sender: str) -> None:
        n = self._number(session, sender, None)
        self.take(self.partition.give_up(n, session=session, sender=sender))

    @rule(most=st.integers(1, 3))
    def tell(self, most: int) -> None:
        self.take(self.partition.tell(most))

    @rule(sessions=st.lists(st.sampled_from("stu"), min_size=1, max_size=3))
    def want(self, sessions: list[str]) -> None:
        self.take(self.partition.do(Wanted(tuple(sessions), sessions)))

    @rule()
    def cut(self) -> None:
        if self.partition.machine.waiting:
            self.partition.cut()

    @rule()
    def commit(self) -> None:
        if self.partition.uncommitted:
            self.take(self.partition.commit())

    @rule()
    def take_over(self) -> None:
        """Everything that was cut is committed by the next writer; what was not cut is forgotten, and was never acked."""
        while self.partition.uncommitted:
            self.commit()
        acked = self.acked
        self.begin(self.partition.frames)
        self.acked = acked
        for record in self.partition.log:
            for body in record.bodies if record.kind == RUN else [None]:  # type: ignore[union-attr]
                self._number(record.session, record.sender_id, body)

    def teardown(self) -> None:
        """In the end everything is told, and has its answer."""
        if hasattr(self, "partition"):
            while self.partition.asked:
                self.tell(3)
            while self.partition.machine.waiting or self.partition.uncommitted:
                self.cut()
                self.commit()
            assert self.partition.machine.parked_bytes == 0
            assert self.refused.total() == 0
            expected = {(*who, k + 1) for who, bodies in self.numbers.items() for k in range(len(bodies))}
            assert {(r.session, r.sender_id, n) for r in self.partition.log for n in _numbers(r)} == expected

    def take(self, effects: list[Any]) -> None:
        effects = self.partition.recall(effects)
        for refusal in refusals(effects):
            assert refusal.code == Code.OUT_OF_ORDER
            self.refused[refusal.session, refusal.sender_id, refusal.first_n, refusal.expected_n] -= 1
        assert min(self.refused.values(), default=0) >= 0, "a refusal that was not due"
        log = self.partition.log
        in_log = {(r.session, r.sender_id, n) for r in log for n in _numbers(r)}
        for session, sender, first_n, count, first_seq, _ in acks(effects):
            for k in range(count):
                number = (session, sender, first_n + k)
                assert number in in_log, "an ack before the commit (G1)"
                seq = first_seq and first_seq + k
                assert self.acked.setdefault(number, seq) == seq, "two answers (G5)"
                body = self.numbers[session, sender][first_n + k - 1]
                assert (seq == 0) == (body is None)
                if seq:
                    assert self.model[session][seq - 1] == (sender, first_n + k, body)
        for loaded in (effect for effect in effects if isinstance(effect, Loaded)):
            assert loaded.heads == [sum(len(_bodies(r)) for r in log if r.session == name) for name in loaded.waiter]

    @invariant()
    def seqs_are_dense_and_follow_the_order_of_submission_G3_G4(self) -> None:
        seqs = dict.fromkeys("stu", 0)
        for record in self.partition.log:
            if record.kind == RUN:
                assert record.first_seq == seqs[record.session] + 1  # type: ignore[union-attr]
                seqs[record.session] += len(_bodies(record))

    @invariant()
    def memory_is_bounded(self) -> None:
        """A state that is above the bound belongs to a session that has uncommitted records, or is waited for."""
        partition = self.partition
        if self.limits is TINY and not partition.asked and not partition.uncommitted and not partition.machine.waiting:
            assert partition.machine.hot_sessions <= 1


def _numbers(record: Record) -> range:
    if record.kind == RUN:
        return range(record.first_n, record.first_n + len(record.bodies))  # type: ignore[union-attr]
    return range(record.n, record.n + 1)  # type: ignore[union-attr]


def _bodies(record: Record) -> list[bytes]:
    return record.bodies if record.kind == RUN else []  # type: ignore[union-attr]


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=150, stateful_step_count=40)


def test_readable_runs_are_those_that_were_committed_G7(partition: Partition) -> None:
    partition.submit(1, b"a")
    partition.give_up(2)
    partition.cut()
    effects = partition.commit()
    assert next(effect for effect in effects if isinstance(effect, Readable)).runs[0][7] == [b"a"]
