"""Idempotency keys in a partition: what is a repetition, what becomes of its number, for how long (design §8; G4, G5, G8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.keys import KnownKey, digest_of, is_honoured, new_upto
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import ALIAS, KEYED, RUN, SKIP, Alias, Run, keys_of, pack_records, unpack_record
from trilogue.actors.protocol.messages import unpack_items as items_of
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import Answered, LookedUp, LookUp, Recall, Recalled, Refused, Told, check_runs
from trilogue.actors.protocol.vocabulary import Code

ANN, BOB = "ann/" + "0" * 32, "bob/" + "1" * 32
HONOURED_US = 1000 * DEFAULT_LIMITS.key_honoured_ms
FEW = replace(
    DEFAULT_LIMITS, keyed_run_messages_max=2, session_keys_hot_max=4, keys_hot_max=4, sessions_hot_max=2, loads_at_once_max=1,
    subscribe_sessions_max=1,
)  # fmt: skip


class Partition:
    """A sequencer, and what a store that has all committed frames would tell it."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, tells_all: bool = True) -> None:
        self.limits, self.tells_all = limits, tells_all
        self.now_us = 1_000
        self.log: list[Any] = []  # records, as arrays
        self.frames = 0
        self.asked: list[list[str]] = []  # the keys of each question
        self.writer = Sequencer(0, 1, limits)

    def take_over(self) -> None:
        """Another writer goes on from the log."""
        self.writer = Sequencer(0, 1, self.limits, self.frames, max((item_time(item) for item in self.log), default=0))

    def submit(self, sender_id: str, first_n: int, *messages: tuple[bytes, str | None], session: str = "s") -> list[Any]:
        bodies, keys = [body for body, _ in messages], [key for _, key in messages]
        run = [session, sender_id, first_n, [5] * len(bodies), bodies, keys]
        check_runs([run], self.limits)
        return self.settle(self.writer.submit_any("c", [run], self.now_us))

    def settle(self, effects: list[Any]) -> list[Any]:
        """Answer what stores are asked, commit everything, and return what the client hears."""
        heard: list[Any] = []
        while effects or self.writer.waiting:
            more: list[Any] = []
            for effect in effects:
                if isinstance(effect, LookUp):
                    self.asked += [question.keys for question in effect.asked]
                    told = [self._told(*question) for question in effect.asked]
                    more += self.writer.handle(LookedUp(effect.asked, told, self.now_us))
                elif isinstance(effect, Recall):
                    retry = effect.retry
                    records = [unpack_record(item) for item in self.log if item[1:3] == [retry.session, retry.sender_id]]
                    more += self.writer.handle(Recalled(retry, records))
                elif isinstance(effect, Answered):
                    heard += effect.acks
                elif isinstance(effect, Refused):
                    heard += effect.refusals
            if self.writer.waiting:
                self.frames += 1
                self.log += items_of(pack_records(self.writer.cut_frame(self.frames)))
                more += self.writer.committed(self.frames)
            effects = more
        return heard

    def _told(self, session: str, senders: list[str], keys: list[str]) -> Told:
        own = [item for item in self.log if item[1] == session]
        last_n = {item[2]: item[3] + (len(item[7]) if item[0] in (RUN, KEYED) else 1) - 1 for item in own}
        known: dict[str, KnownKey] = {}
        for item in own:
            for k, key in enumerate(keys_of(item)):
                if key is not None:
                    known[key] = KnownKey(item[4] + k, item[5], digest_of(item[7][k]))
        if not self.tells_all:
            known = {key: one for key, one in known.items() if key in keys}
        return Told(sum(len(item[7]) for item in own if item[0] in (RUN, KEYED)), last_n, True, known, self.tells_all)


def item_time(item: list[Any]) -> int:
    return int(item[{SKIP: 4, RUN: 5, KEYED: 5, ALIAS: 5}[item[0]]])


@pytest.fixture(params=[True, False], ids=["told all keys", "told those asked for"])
def partition(request: pytest.FixtureRequest) -> Partition:
    return Partition(tells_all=request.param)


# ---------------------------------------------------------------------- repetitions


def test_repeated_key_is_logged_as_an_alias_and_the_next_number_follows_G4_G5(partition: Partition) -> None:
    assert partition.submit(ANN, 1, (b"pay", "k")) == [("s", ANN, 1, 1, 1, False)]
    assert partition.submit(ANN, 2, (b"pay", "k"), (b"next", None)) == [("s", ANN, 2, 1, 1, True), ("s", ANN, 3, 1, 2, False)]
    assert partition.submit(BOB, 1, (b"pay", "k")) == [("s", BOB, 1, 1, 1, True)], "whoever repeats it"
    assert [item[0] for item in partition.log] == [KEYED, ALIAS, RUN, ALIAS]
    assert partition.log[1][3:5] == [2, 1]


def test_scope_of_a_key_is_its_session(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    assert partition.submit(ANN, 1, (b"pay", "k"), session="t") == [("t", ANN, 1, 1, 1, False)]


def test_key_that_is_twice_in_one_run_is_stored_once(partition: Partition) -> None:
    heard = partition.submit(ANN, 1, (b"a", "k"), (b"b", None), (b"a", "k"), (b"c", "l"), (b"c", "l"))
    assert [ack[2:] for ack in heard] == [(1, 2, 1, False), (3, 1, 1, True), (4, 1, 3, False), (5, 1, 3, True)]


def test_key_of_a_message_that_is_not_committed_yet_counts_and_its_alias_is_committed_after_it(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"0", None))
    partition.submit(BOB, 1, (b"0", None))
    for sender_id in (ANN, BOB):
        run = ["s", sender_id, 2, [5], [b"pay"], ["k"]]
        for effect in partition.writer.submit_any("c", [run], partition.now_us):
            assert isinstance(effect, LookUp)
            told = [partition._told(*question) for question in effect.asked]
            assert not partition.writer.handle(LookedUp(effect.asked, told, partition.now_us))
    assert partition.writer.waiting == 2, "nothing is answered yet"
    assert partition.settle([]) == [("s", ANN, 2, 1, 3, False), ("s", BOB, 2, 1, 3, True)]


def test_another_body_under_a_key_is_refused_for_good_and_what_follows_is_sent_back_G8(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    heard = partition.submit(ANN, 2, (b"a", None), (b"other", "k"), (b"b", None), (b"c", "l"))
    assert heard[0][2:5] == (3, 1, Code.CONFLICTING_KEY)
    assert "was used in session 's' for another message" in heard[0].text
    assert (heard[1].first_n, heard[1].messages, heard[1].code, heard[1].expected_n) == (4, 2, Code.OUT_OF_ORDER, 3)
    assert heard[2] == ("s", ANN, 2, 1, 2, False)
    assert partition.settle(partition.writer._give_up("c", [["s", ANN, 3]], 5)) == [("s", ANN, 3, 1, 0, False)]
    assert partition.submit(ANN, 4, (b"b", None), (b"c", "l")) == [("s", ANN, 4, 2, 3, False)]


def test_retry_of_an_alias_gets_the_same_seq_and_another_body_under_its_number_is_a_conflict_G5(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    partition.submit(ANN, 2, (b"pay", "k"))
    partition.take_over()
    assert partition.submit(ANN, 2, (b"pay", "k")) == [("s", ANN, 2, 1, 1, True)]
    (refusal,) = partition.submit(ANN, 2, (b"other", None))
    assert refusal.code == Code.CONFLICTING_RETRY
    assert len(partition.log) == 2


def test_run_with_keys_out_of_order_is_refused_whole(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    (refusal,) = partition.submit(ANN, 3, (b"pay", "k"), (b"next", None))
    assert (refusal.code, refusal.first_n, refusal.messages, refusal.expected_n) == (Code.OUT_OF_ORDER, 3, 2, 2)
    assert len(partition.log) == 1


def test_too_large_message_among_keys_leaves_no_hole_and_its_key_is_free_G8() -> None:
    partition = Partition()
    large = bytes(partition.limits.body_bytes_max + 1)
    heard = partition.submit(ANN, 1, (b"a", "a"), (large, "k"), (b"b", "b"))
    assert [(refusal.first_n, refusal.code) for refusal in heard[:2]] == [(2, Code.MESSAGE_TOO_LARGE), (3, Code.OUT_OF_ORDER)]
    partition.settle(partition.writer._give_up("c", [["s", ANN, 2]], 5))
    assert partition.submit(ANN, 3, (b"small", "k")) == [("s", ANN, 3, 1, 2, False)]


# ---------------------------------------------------------------------- time


def test_key_is_honoured_for_its_time_and_not_a_microsecond_longer_whoever_writes_G5(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    began = partition.now_us
    partition.now_us = began + HONOURED_US - 1
    partition.take_over()
    assert partition.submit(ANN, 2, (b"pay", "k")) == [("s", ANN, 2, 1, 1, True)]
    partition.now_us = began + HONOURED_US
    partition.take_over()
    assert partition.submit(ANN, 3, (b"pay", "k")) == [("s", ANN, 3, 1, 2, False)], "a repetition does not prolong it"
    assert partition.submit(ANN, 4, (b"pay", "k")) == [("s", ANN, 4, 1, 2, True)], "the newest message counts"
    assert partition.submit(ANN, 5, (b"other", "k"))[0].code == Code.CONFLICTING_KEY


def test_clock_that_goes_back_prolongs_no_key(partition: Partition) -> None:
    partition.submit(ANN, 1, (b"pay", "k"))
    partition.now_us += HONOURED_US
    partition.submit(ANN, 2, (b"later", None))
    partition.now_us -= HONOURED_US
    partition.take_over()
    assert partition.submit(ANN, 3, (b"pay", "k")) == [("s", ANN, 3, 1, 3, False)], "log time does not go back"


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=8), st.integers(0, 7), st.integers(0, 30))
def test_what_is_new_ends_before_the_first_repetition(keys: list[str | None], at: int, now_us: int) -> None:
    known = {"a": KnownKey(1, 5, b""), "b": KnownKey(0, 0, b"")}
    end = new_upto(keys, at, known, now_us, 10)
    new = [key for key in keys[at:end] if key is not None]
    assert len(set(new)) == len(new)
    assert not any(is_honoured(known.get(key), now_us, 10) for key in new)
    if end < len(keys):
        assert keys[end] in new or is_honoured(known.get(str(keys[end])), now_us, 10)


# ---------------------------------------------------------------------- memory


def test_store_is_asked_once_for_a_session_with_few_keys_and_for_each_new_key_of_one_with_many() -> None:
    few, many = Partition(tells_all=True), Partition(tells_all=False)
    for partition in (few, many):
        for n in range(1, 6):
            partition.submit(ANN, n, (b"%d" % n, f"k{n}"))
    assert few.asked == [["k1"]]
    assert many.asked == [[f"k{n}"] for n in range(1, 6)]


@pytest.mark.parametrize("tells_all", [True, False])
def test_keys_in_memory_are_bounded_and_those_that_went_are_looked_up_again_G5(tells_all: bool) -> None:
    partition = Partition(FEW, tells_all)
    for session in ("s1", "s2", "s3"):
        partition.submit(ANN, 1, (b"1", "k1"), session=session)
    for n in range(2, 30):
        assert partition.submit(ANN, n, (b"%d" % n, f"k{n}"), session="s1")[0][5] is False
        assert len(partition.writer._states.hot["s1"].keys or ()) <= FEW.session_keys_hot_max
    for n in range(2, 30):
        assert partition.submit(BOB, n - 1, (b"%d" % n, f"k{n}"), session="s1")[0][5] is True
    assert partition.writer._states._keys == sum(len(state.keys or ()) for state in partition.writer._states.hot.values())


# ---------------------------------------------------------------------- shapes


def test_readers_see_a_run_with_keys_as_the_run_that_it_is() -> None:
    item = [KEYED, "s", ANN, 1, 1, 5, [7, 7], [b"a", b"b"], ["k", None]]
    assert unpack_record(item) == Run(RUN, "s", ANN, 1, 1, 5, [7, 7], [b"a", b"b"])
    assert keys_of(item) == ["k", None]
    assert unpack_record([ALIAS, "s", ANN, 3, 1, 9, b"digest"]) == Alias(ALIAS, "s", ANN, 3, 1, 9, b"digest")


@pytest.mark.parametrize(
    "item",
    [
        [KEYED, "s", ANN, 1, 1, 5, [7], [b"a"], []], [KEYED, "s", ANN, 1, 1, 5, [7], [b"a"], [7]],
        [KEYED, "s", ANN, 1, 0, 5, [7], [b"a"], ["k"]], [KEYED, "s", ANN, 1, 1, 5, [7], [b"a"]],
        [ALIAS, "s", ANN, 3, 0, 9, b"d"], [ALIAS, "s", ANN, 0, 1, 9, b"d"], [ALIAS, "s", ANN, 3, 1, 9],
    ],
)  # fmt: skip
def test_record_of_another_shape_is_a_protocol_error(item: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="unknown shape"):
        unpack_record(item)


@pytest.mark.parametrize("keys", [[], ["k", "k"], [7], [""], ["x" * 256], "k"])
def test_submitted_keys_are_short_and_one_for_each_message(keys: Any) -> None:
    with pytest.raises(ProtocolError):
        check_runs([["s", ANN, 1, [5], [b"a"], keys]], DEFAULT_LIMITS)
    with pytest.raises(ProtocolError):
        check_runs([["s", ANN, 1, [5] * 3, [b"a"] * 3, [None] * 3]], FEW)
    assert check_runs([["s", ANN, 1, [5], [b"a"], ["k"]]], DEFAULT_LIMITS)
    assert not check_runs([["s", ANN, 1, [5], [b"a"]]], DEFAULT_LIMITS)
