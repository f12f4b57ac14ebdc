"""The checker itself: it finds every kind of bad history, and nothing in a good one. Each test breaks one good run."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import history_checker
from history_checker import (
    Acked,
    Ensembles,
    Fault,
    Frame,
    HandedOver,
    History,
    Holding,
    Kind,
    Read,
    Reading,
    Register,
    Said,
    StoreContents,
    judge,
    load,
    mark_of,
    summary,
)

ID = "/" + "0" * 32
ALICE, BOB = "alice" + ID, "bob" + ID


def body_of(k: int) -> bytes:
    """The body of the run's message number k."""
    return b"m%d with some text" % k


class GoodRun:
    """Six messages of two senders in one session, acked one after another, read by two readers, on three stores."""

    def __init__(self) -> None:
        self.history = History()
        self.places: list[tuple[int, str, int]] = []  # (seq, sender_id, n), message by message
        numbers = {ALICE: 0, BOB: 0}
        for k in range(6):
            sender_id = ALICE if k % 3 else BOB
            numbers[sender_id] += 1
            self.places.append((k + 1, sender_id, numbers[sender_id]))
            self.hand_over(k, sender_id, at_ns=100 * k)
            self.history.acked.append(self.ack(k, at_ns=100 * k + 50))
        self.history.readings = [self.reading("r1"), self.reading("r2")]
        self.history.readings[0].read_upto = 6
        self.history.flushed = {"alice.db", "bob.db"}
        self.stores = [self.store(f"store-{k}") for k in (1, 2, 3)]
        self.register: Register | None = None

    def mark(self, k: int) -> str:
        return mark_of(body_of(k))

    def hand_over(self, k: int, sender_id: str, at_ns: int) -> None:
        sender = sender_id[:-33]
        self.history.handed.append(HandedOver(self.mark(k), f"{sender}.db", "room", sender, at_ns))

    def ack(self, k: int, at_ns: int) -> Acked:
        return Acked(self.mark(k), at_ns, *self.places[k], copies=3)

    def reading(self, reader: str) -> Reading:
        reads = [Read(*place, mark=self.mark(k), at_ns=100 * k + 60) for k, place in enumerate(self.places)]
        return Reading(reader, "room", 0, began_ns=0, reads=reads)

    def store(self, name: str) -> StoreContents:
        store = StoreContents(name, {0: Holding(fence=1)}, identity=(f"id of {name}", 1))
        for seq, sender_id, n in self.places:
            self.append(store, record(sender_id, n, seq, body_of(seq - 1)))
        return store

    def append(self, store: StoreContents, *records: list[Any], epoch: int = 1, crc: int = 0) -> None:
        """Another frame, which says that all before it are committed. Its CRC is its index, unless it is another one."""
        holding = store.partitions[0]
        index = holding.last + 1
        frame = Frame(epoch, crc or index, index - 1, list(records), holding.crc_before(index))
        holding.take(index, frame, store.damage, "frame")

    def append_to_all(self, *records: list[Any]) -> None:
        """Another frame on every store."""
        for store in self.stores:
            self.append(store, *records)

    def say(self, *ranges: tuple[int, str], epoch: int = 1) -> None:
        """What the register says: from which frame on which stores have it: "123", or "12x" (x: another store in 3's place)."""
        said = []
        for first, digits in ranges:
            numbers = [int(digit) if digit != "x" else 3 for digit in digits]
            identities = [("a store before it" if digit == "x" else f"id of store-{digit}", 1) for digit in digits]
            said.append(Said(first, {f"store-{k}": identity for k, identity in zip(numbers, identities, strict=True)}))
        self.register = Register(1, {}, {0: Ensembles(epoch, tuple(said))}, [])

    def on_every_store(self, index: int, records: list[Any]) -> None:
        """Put other records into a frame of every store."""
        for store in self.stores:
            chain = store.partitions[0].chain
            chain[index - 1] = chain[index - 1]._replace(records=records)

    def kinds(self) -> set[Kind]:
        return {one.kind for one in judge(self.history, self.stores, register=self.register)}


@pytest.fixture
def run() -> GoodRun:
    return GoodRun()


def record(sender_id: str, n: int, seq: int, *bodies: bytes) -> list[Any]:
    """One run's record."""
    return [1, "room", sender_id, n, seq, 5, [4] * len(bodies), list(bodies)]


def test_a_good_history_has_no_anomaly(run: GoodRun) -> None:
    assert judge(run.history, run.stores) == []


def test_a_message_without_an_answer_may_be_there_or_not(run: GoodRun) -> None:
    run.hand_over(70, ALICE, at_ns=900)
    assert run.kinds() == set()
    run.places.append((7, ALICE, 5))
    run.append_to_all(record(ALICE, 5, 7, body_of(70)))
    assert run.kinds() == set()


def test_a_skipped_number_is_no_hole_and_no_message(run: GoodRun) -> None:
    run.places.append((7, ALICE, 6))
    run.hand_over(6, ALICE, at_ns=900)
    run.history.acked.append(run.ack(6, at_ns=950))
    run.append_to_all([2, "room", ALICE, 5, 5], record(ALICE, 6, 7, body_of(6)))
    assert run.kinds() == set()


def test_a_frame_that_was_never_committed_may_stand_on_one_store(run: GoodRun) -> None:
    run.append(run.stores[1], record(ALICE, 5, 7, b"never sent on"))
    assert run.kinds() == set()


def test_an_acked_message_that_stands_nowhere_is_lost(run: GoodRun) -> None:
    for store in run.stores:
        del store.partitions[0].chain[5:]
    run.history.readings = []
    assert run.kinds() == {Kind.LOST}


def test_an_acked_message_that_is_missing_on_one_store_is_a_disagreement(run: GoodRun) -> None:
    run.history.readings = []
    del run.stores[1].partitions[0].chain[4:]
    assert run.kinds() == {Kind.STORES_DISAGREE, Kind.LOST}


def test_a_saved_message_that_a_flushed_outbox_never_sent_is_lost(run: GoodRun) -> None:
    run.hand_over(70, ALICE, at_ns=900)
    run.history.saved.add(run.mark(70))
    assert run.kinds() == {Kind.LOST}


def test_a_proof_of_loss_is_believed(run: GoodRun) -> None:
    run.history.proofs[run.mark(2)] = "it expects n 1, and n 2 was acked"
    assert run.kinds() == {Kind.LOST}


def test_a_read_to_the_end_that_misses_a_message_has_lost_it(run: GoodRun) -> None:
    del run.history.readings[0].reads[5]
    assert run.kinds() == {Kind.LOST}


def test_a_reader_that_is_told_of_an_end_below_an_earlier_ack_has_lost_it(run: GoodRun) -> None:
    reading = run.history.readings[0]
    del reading.reads[4:]
    reading.read_upto, reading.began_ns = 4, 475
    assert run.kinds() == {Kind.LOST}
    reading.began_ns = 440
    assert run.kinds() == set(), "the fifth was not acked yet when it began"


def test_a_message_at_two_seqs_is_duplicated(run: GoodRun) -> None:
    run.append_to_all(record(ALICE, 5, 7, body_of(2)))
    assert run.kinds() == {Kind.DUPLICATED}


def test_a_seq_that_is_given_out_twice_is_duplicated(run: GoodRun) -> None:
    run.hand_over(70, ALICE, at_ns=900)
    run.append_to_all(record(ALICE, 5, 6, body_of(70)))
    assert Kind.DUPLICATED in run.kinds()


def test_a_message_that_stands_elsewhere_than_its_ack_says_is_reordered(run: GoodRun) -> None:
    run.history.readings = []
    run.history.acked[5] = run.history.acked[5]._replace(seq=9)
    assert run.kinds() == {Kind.REORDERED}


def test_a_reader_that_goes_back_has_read_out_of_order(run: GoodRun) -> None:
    reads = run.history.readings[0].reads
    reads[2], reads[3] = reads[3], reads[2]
    assert run.kinds() == {Kind.REORDERED, Kind.CURSOR_SKIPPED}


def test_a_reader_that_gets_a_message_twice_has_read_a_duplicate(run: GoodRun) -> None:
    reads = run.history.readings[0].reads
    reads.insert(3, reads[2])
    assert run.kinds() == {Kind.DUPLICATED}


def test_a_hole_in_the_seqs_is_a_gap(run: GoodRun) -> None:
    run.history.readings = []
    run.on_every_store(6, [record(ALICE, 4, 8, body_of(5))])
    run.history.acked[5] = run.history.acked[5]._replace(seq=8)
    assert run.kinds() == {Kind.GAP}


def test_a_hole_in_a_senders_numbers_is_a_gap(run: GoodRun) -> None:
    run.history.readings = []
    run.on_every_store(6, [record(ALICE, 7, 6, body_of(5))])
    run.history.acked[5] = run.history.acked[5]._replace(n=7)
    assert run.kinds() == {Kind.GAP}


def test_two_messages_of_one_sender_the_wrong_way_round_break_its_order(run: GoodRun) -> None:
    run.history.readings = []
    run.on_every_store(5, [record(ALICE, 3, 5, body_of(5))])
    run.on_every_store(6, [record(ALICE, 4, 6, body_of(4))])
    run.history.acked[4:] = []
    assert run.kinds() == {Kind.SENDER_ORDER}


def test_a_senders_order_holds_across_its_lives(run: GoodRun) -> None:
    """The same outbox under another sender_id (a copied one goes on so) is still one sender's row of hand-overs."""
    run.history.readings = []
    run.on_every_store(5, [record("alice/" + "1" * 32, 1, 5, body_of(5))])
    run.on_every_store(6, [record(ALICE, 3, 6, body_of(4))])
    run.history.acked[4:] = []
    assert run.kinds() == {Kind.SENDER_ORDER}


def test_a_number_that_comes_after_a_higher_one_breaks_the_senders_order(run: GoodRun) -> None:
    run.history.readings = []
    run.on_every_store(6, [record(ALICE, 3, 6, body_of(5))])
    run.history.acked[5:] = []
    assert run.kinds() == {Kind.SENDER_ORDER}


def test_a_message_before_one_that_was_acked_before_it_was_handed_over_breaks_real_time(run: GoodRun) -> None:
    late = run.history.handed[1]
    run.history.handed[1] = late._replace(at_ns=351, outbox="another.db")
    run.history.acked[1] = run.history.acked[1]._replace(at_ns=400)
    assert run.kinds() == {Kind.REAL_TIME}


def test_messages_that_were_under_way_together_may_have_any_order(run: GoodRun) -> None:
    late = run.history.handed[1]
    run.history.handed[1] = late._replace(at_ns=150, outbox="another.db")
    assert run.kinds() == set()


def test_a_message_that_is_read_and_does_not_stand_there_was_not_committed(run: GoodRun) -> None:
    reads = run.history.readings[0].reads
    reads[5] = reads[5]._replace(n=9)
    assert run.kinds() == {Kind.NOT_COMMITTED}
    reads[5] = Read(6, ALICE, 4, run.mark(5), 0)
    reads.append(Read(7, ALICE, 5, "ghost#00000000", 0))
    assert run.kinds() == {Kind.NOT_COMMITTED}


def test_two_readers_that_see_different_messages_at_one_seq_disagree(run: GoodRun) -> None:
    for reading, mark in zip(run.history.readings, ("one#1", "other#2"), strict=True):
        reading.reads.append(Read(7, ALICE, 5, mark, 0))
    assert run.kinds() == {Kind.READERS_DISAGREE, Kind.NOT_COMMITTED}


def test_a_reader_whose_cursor_jumps_has_skipped(run: GoodRun) -> None:
    del run.history.readings[1].reads[2]
    assert run.kinds() == {Kind.CURSOR_SKIPPED}


def test_a_reader_that_begins_too_late_has_skipped(run: GoodRun) -> None:
    run.history.readings[1].after = 2
    del run.history.readings[1].reads[:3]
    assert run.kinds() == {Kind.CURSOR_SKIPPED}


def test_a_reader_from_now_on_begins_anywhere_and_skips_nothing_from_there(run: GoodRun) -> None:
    reading = run.history.readings[1]
    reading.after = None
    del reading.reads[:3]
    assert run.kinds() == set()
    del reading.reads[1]
    assert run.kinds() == {Kind.CURSOR_SKIPPED}


def test_a_session_that_acks_nothing_new_after_a_fault_never_came_back(run: GoodRun) -> None:
    run.history.faults = [Fault(450, "kill -9 of store-1", 10.0, ("room",))]
    assert run.kinds() == set()
    run.history.faults = [Fault(500, "kill -9 of store-1", 10.0, ("room",))]
    assert run.kinds() == {Kind.NEVER_CAME_BACK}, "the last message was handed over before"
    run.history.faults = [Fault(450, "kill -9 of store-1", 10.0, ("room", "quiet room"))]
    assert run.kinds() == {Kind.NEVER_CAME_BACK}


def test_a_session_that_came_back_too_late_never_came_back(run: GoodRun) -> None:
    run.history.faults = [Fault(450, "kill -9 of store-1", 50e-9, ("room",))]
    assert run.kinds() == {Kind.NEVER_CAME_BACK}
    run.history.faults = [Fault(450, "kill -9 of store-1", 150e-9, ("room",))]
    assert run.kinds() == set()


def test_a_saved_message_that_still_waits_never_came_back(run: GoodRun) -> None:
    run.hand_over(70, ALICE, at_ns=900)
    run.history.saved.add(run.mark(70))
    run.history.flushed.clear()
    assert run.kinds() == {Kind.NEVER_CAME_BACK}


def test_another_frame_on_one_store_is_a_disagreement(run: GoodRun) -> None:
    chain = run.stores[2].partitions[0].chain
    chain[3] = chain[3]._replace(crc=99)
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_a_partition_that_one_store_has_nothing_of_is_a_disagreement(run: GoodRun) -> None:
    run.stores[0].partitions.clear()
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_a_commit_that_one_store_does_not_have_is_a_disagreement(run: GoodRun) -> None:
    run.append(run.stores[0])
    run.append(run.stores[0])
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_damage_on_a_store_is_reported(run: GoodRun) -> None:
    run.stores[0].damage.append("journal-00000001.trl at byte 0: no header")
    assert run.kinds() == {Kind.DAMAGED}


def test_two_acks_for_one_number_with_other_seqs_conflict(run: GoodRun) -> None:
    run.history.acked.append(run.history.acked[3]._replace(seq=1))
    assert run.kinds() == {Kind.CONFLICTING_ANSWERS, Kind.REORDERED}


def test_one_seq_that_was_acked_for_two_messages_is_a_conflict(run: GoodRun) -> None:
    run.hand_over(70, ALICE, at_ns=900)
    run.history.acked.append(Acked(run.mark(70), 950, 6, ALICE, 5, copies=3))
    assert Kind.CONFLICTING_ANSWERS in run.kinds()


def test_a_body_that_nobody_handed_over_is_made_up(run: GoodRun) -> None:
    run.history.readings = []
    run.history.acked[5:] = []
    run.on_every_store(6, [record(ALICE, 4, 6, b"m5 with some texT")])
    assert run.kinds() == {Kind.MADE_UP}


def test_a_message_in_a_session_or_of_a_sender_that_it_was_not_for_is_made_up(run: GoodRun) -> None:
    one = run.history.handed[5]
    run.history.handed[5] = one._replace(sender="mallory", outbox="mallory.db")
    assert run.kinds() == {Kind.MADE_UP}


def test_an_ack_for_what_nobody_handed_over_is_made_up(run: GoodRun) -> None:
    run.history.acked.append(Acked("ghost#00000000", 950, 6, ALICE, 4, copies=3))
    assert Kind.MADE_UP in run.kinds()


def test_an_ack_with_fewer_copies_than_declared_is_one_of_too_few(run: GoodRun) -> None:
    run.history.acked[2] = run.history.acked[2]._replace(copies=2)
    assert run.kinds() == {Kind.TOO_FEW_COPIES}


def test_a_refused_message_that_stands_there_was_not_refused(run: GoodRun) -> None:
    del run.history.acked[5]
    run.history.failed[run.mark(5)] = "ConflictingRetry"
    assert run.kinds() == {Kind.REFUSED_BUT_STORED}


# ---------------------------------------------------------------------- messages that were trimmed


def gone(sender_id: str, n: int, seq: int, messages: int = 1) -> list[Any]:
    """What a store keeps of a run that is gone."""
    return [7, "room", sender_id, n, seq, 5, messages, []]


TRIM_BELOW_4: list[Any] = [5, "room", 4, 9]
FLOOR_AT_3: list[Any] = [4, 3, 9]


def give_up(run: GoodRun, *indexes: int, stores: tuple[int, ...] = (0, 1, 2)) -> None:
    """These stores give up the messages of these frames."""
    for index in indexes:
        seq, sender_id, n = run.places[index - 1]
        for k in stores:
            chain = run.stores[k].partitions[0].chain
            chain[index - 1] = chain[index - 1]._replace(records=[gone(sender_id, n, seq)], thin=True)


@pytest.mark.parametrize("trim", [TRIM_BELOW_4, FLOOR_AT_3])
@pytest.mark.parametrize("stores", [(0, 1, 2), (1,)])
def test_what_a_trim_on_record_names_may_be_gone_and_counts_as_stored(
    run: GoodRun, trim: list[Any], stores: tuple[int, ...]
) -> None:
    run.append_to_all(trim)
    give_up(run, 1, 2, 3, stores=stores)
    assert judge(run.history, run.stores) == []


@pytest.mark.parametrize("trim", [[], [TRIM_BELOW_4], [FLOOR_AT_3], [[5, "another room", 99, 9]]])
@pytest.mark.parametrize("stores", [(0, 1, 2), (1,)])
def test_a_message_that_is_gone_and_not_trimmed_is_an_anomaly_of_its_own(
    run: GoodRun, trim: list[Any], stores: tuple[int, ...]
) -> None:
    run.append_to_all(*trim)
    give_up(run, 4, stores=stores)
    assert run.kinds() == {Kind.NOT_TRIMMED}


def test_a_run_that_a_trim_names_only_a_part_of_must_be_there(run: GoodRun) -> None:
    for k in (6, 7):
        run.hand_over(k, ALICE, at_ns=900)
    run.append_to_all(record(ALICE, 5, 7, body_of(6), body_of(7)))
    run.append_to_all([5, "room", 8, 9])
    for store in run.stores:
        chain = store.partitions[0].chain
        chain[6] = chain[6]._replace(records=[gone(ALICE, 5, 7, 2)], thin=True)
    assert run.kinds() == {Kind.NOT_TRIMMED}


def test_an_ack_with_other_numbers_does_not_name_what_is_gone(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    give_up(run, 2)
    run.history.readings = []
    run.history.acked[1] = run.history.acked[1]._replace(n=9)
    assert run.kinds() == {Kind.LOST}


def test_a_message_that_is_gone_and_stands_again_elsewhere_is_duplicated(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    give_up(run, 2)
    run.append_to_all(record(ALICE, 5, 7, body_of(1)))
    assert Kind.DUPLICATED in run.kinds()


def test_numbers_that_a_thin_copy_changes_are_a_disagreement(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    give_up(run, 2, stores=(1,))
    chain = run.stores[1].partitions[0].chain
    chain[1] = chain[1]._replace(records=[gone(ALICE, 7, 2)])
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_numbers_that_are_missing_between_messages_that_are_gone_are_a_gap(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    give_up(run, 1, 2, 3)
    for store in run.stores:
        store.partitions[0].chain[1].records.clear()
    assert Kind.GAP in run.kinds()


def test_a_reader_that_was_told_where_history_begins_has_skipped_nothing(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    reading = run.history.readings[0]
    del reading.reads[:3]
    assert run.kinds() == {Kind.CURSOR_SKIPPED, Kind.LOST}
    reading.begins.add(4)
    assert run.kinds() == set()


def test_a_reader_that_was_told_that_more_is_gone_than_was_trimmed_has_lost_it(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    reading = run.history.readings[0]
    del reading.reads[:4]
    reading.begins.add(5)
    assert run.kinds() == {Kind.LOST}


def test_a_saved_message_that_is_gone_before_anybody_saw_its_ack_may_be_one_of_those_without_a_name(run: GoodRun) -> None:
    run.append_to_all(TRIM_BELOW_4)
    give_up(run, 2)
    run.history.readings = []
    del run.history.acked[1]
    run.history.saved.add(run.mark(1))
    assert run.kinds() == set()
    run.hand_over(70, ALICE, at_ns=900)
    run.history.saved.add(run.mark(70))
    assert run.kinds() == {Kind.LOST}, "two are missing, and one is gone"


def test_the_summary_counts_and_shows_the_first_few(run: GoodRun) -> None:
    for store in run.stores:
        store.partitions[0] = Holding()
    run.history.readings = []
    text = summary(judge(run.history, run.stores), each_max=2)
    assert text.splitlines()[0] == "6 × lost"
    assert len(text.splitlines()) == 3
    assert summary([]) == ""


# ---------------------------------------------------------------------- who should have what: the final ensemble


def filled_from(run: GoodRun, base: int) -> StoreContents:
    """A fourth store, which has the frames from `base` on."""
    whole = run.store("store-4")
    holding = whole.partitions[0]
    holding.base_prev = base - 1
    del holding.chain[: base - 1]
    holding.base = base
    return whole


def test_the_members_of_the_final_ensemble_are_judged_and_no_others(run: GoodRun) -> None:
    run.say((1, "123"))
    assert run.kinds() == set()
    run.stores.append(StoreContents("store-4", identity=("id of store-4", 1)))
    assert run.kinds() == set(), "a spare has nothing"
    del run.stores[2].partitions[0].chain[2:]
    assert Kind.STORES_DISAGREE in run.kinds()
    run.say((1, "124"))
    run.stores[3] = run.store("store-4")
    run.stores[2].partitions[0].committed_upto = 2
    assert run.kinds() == set(), "store-3 was replaced, and has stayed behind"


def test_a_member_that_is_no_longer_the_store_that_it_was_is_no_copy(run: GoodRun) -> None:
    run.say((1, "12x"))
    assert run.kinds() == {Kind.STORES_DISAGREE}
    run.say((1, "123"))
    run.stores[2].identity = (run.stores[2].identity[0], 2)
    assert run.kinds() == {Kind.STORES_DISAGREE}, "it has cut a damaged tail since"


def test_a_new_member_need_not_have_what_was_there_before_its_range_until_it_is_merged(run: GoodRun) -> None:
    run.stores.append(filled_from(run, 4))
    run.say((1, "123"), (4, "124"))
    assert run.kinds() == set()
    run.say((1, "124"))
    assert run.kinds() == {Kind.STORES_DISAGREE}, "the ranges were merged before it was filled"


def test_a_new_member_without_the_first_frames_of_its_range_is_a_disagreement(run: GoodRun) -> None:
    run.stores.append(filled_from(run, 5))
    run.say((1, "123"), (4, "124"))
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_a_closed_range_outlives_its_members_but_not_all_of_them(run: GoodRun) -> None:
    run.stores.append(filled_from(run, 4))
    run.stores[1] = filled_from(run, 4)
    run.stores[1].name, run.stores[1].identity = "store-2", ("id of store-2", 1)
    run.say((1, "13x"), (4, "124"))
    assert run.kinds() == set()
    run.say((1, "x"), (4, "124"))
    run.stores[0].partitions[0] = run.stores[1].partitions[0]
    run.stores[2].partitions[0] = Holding()
    assert Kind.LOST in run.kinds()


def test_what_only_one_that_was_never_named_has_of_a_range_is_lost(run: GoodRun) -> None:
    run.say((1, "123"))
    run.history.readings = []
    run.stores.append(run.store("store-4"))
    for store in run.stores[:3]:
        del store.partitions[0].chain[5:]
    assert run.kinds() == {Kind.LOST}


def test_another_frame_on_a_spare_is_junk_unless_it_says_that_it_is_committed(run: GoodRun) -> None:
    run.say((1, "123"), epoch=2)
    spare = run.store("store-4")
    run.stores.append(spare)
    run.append(spare, record(ALICE, 5, 7, b"of a deposed writer"), crc=99)
    run.append_to_all()
    del spare.partitions[0].chain[-1]
    spare.partitions[0].committed_upto = 6
    assert run.kinds() == set()
    spare.partitions[0].committed_upto = 7
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_a_frame_of_an_epoch_that_the_register_does_not_know_is_a_disagreement(run: GoodRun) -> None:
    run.say((1, "123"))
    for store in run.stores:
        store.partitions[0].fence = 2
        run.append(store, epoch=2)
    assert run.kinds() == {Kind.STORES_DISAGREE}
    run.say((1, "123"), epoch=2)
    assert run.kinds() == set()


def test_a_log_whose_frames_do_not_chain_is_a_disagreement(run: GoodRun) -> None:
    for store in run.stores:
        chain = store.partitions[0].chain
        chain[3] = chain[3]._replace(prev_crc=77)
    assert run.kinds() == {Kind.STORES_DISAGREE}


def test_a_partition_that_the_register_has_forgotten_is_lost(run: GoodRun) -> None:
    run.register = Register(1, {}, {}, [])
    assert Kind.LOST in run.kinds()


def test_a_register_without_a_majority_is_reported(run: GoodRun) -> None:
    run.say((1, "123"))
    assert run.register is not None
    run.register.problems.append("1 of the 3 acceptors of charter 1 are there: no majority")
    assert run.kinds() == {Kind.DAMAGED}


def test_an_ack_of_an_earlier_epoch_than_that_which_stored_it_came_from_a_deposed_writer(run: GoodRun) -> None:
    run.history.acked[:] = [ack._replace(epoch=1, by="alice.1") for ack in run.history.acked]
    assert run.kinds() == set()
    for store in run.stores:
        chain = store.partitions[0].chain
        chain[5] = chain[5]._replace(epoch=3)
    assert run.kinds() == {Kind.DEPOSED}
    run.history.acked[5] = run.history.acked[5]._replace(epoch=4)
    assert run.kinds() == set(), "a later writer may answer for an earlier one"


def test_a_client_that_believes_a_lower_epoch_than_before_believes_a_deposed_writer(run: GoodRun) -> None:
    acked = run.history.acked
    acked[:] = [ack._replace(epoch=1, by="alice.1") for ack in acked]
    acked[3] = acked[3]._replace(epoch=2)
    assert run.kinds() == {Kind.DEPOSED}
    acked[:4] = [ack._replace(by="bob.1") for ack in acked[:4]]
    assert run.kinds() == set(), "another client may not know yet"


# ---------------------------------------------------------------------- the files of a history


def write_lines(path: Path, *events: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_history_is_read_from_its_files_life_after_life(tmp_path: Path) -> None:
    handed = {"e": "handed", "session": "room", "sender": "alice"}
    for life in range(1, 12):
        events = [
            {**handed, "mark": f"m{life}", "t": life},
            {"e": "saved", "upto": 1},
            {**handed, "mark": f"n{life}", "t": life},
        ]
        write_lines(tmp_path / f"alice.{life}.jsonl", *events)
    history = load(tmp_path)
    assert [one.mark for one in history.handed if one.mark[0] == "m"] == [f"m{life}" for life in range(1, 12)]
    assert {one.outbox for one in history.handed} == {"alice"}
    assert history.saved == {f"m{life}" for life in range(1, 12)}
    assert history.flushed == set()


def test_a_flush_counts_only_until_the_next_hand_over(tmp_path: Path) -> None:
    handed = {"e": "handed", "session": "room", "sender": "alice"}
    write_lines(tmp_path / "alice.1.jsonl", {**handed, "mark": "m1", "t": 1}, {"e": "flushed"})
    assert load(tmp_path).flushed == {"alice"}
    write_lines(tmp_path / "alice.2.jsonl", {**handed, "mark": "m2", "t": 2})
    history = load(tmp_path)
    assert history.flushed == set()
    assert history.saved == {"m1"}


def test_half_a_line_of_a_killed_process_is_left_out_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alice.1.jsonl"
    write_lines(path, {"e": "failed", "mark": "m1", "error": "no"})
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert load(tmp_path).failed == {"m1": "no"}
    path.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(ValueError, match=r"alice\.1\.jsonl:1"):
        load(tmp_path)


def test_an_event_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "alice.1.jsonl", {"e": "dreamt"})
    with pytest.raises(ValueError, match="dreamt"):
        load(tmp_path)


def test_two_messages_with_one_mark_are_the_recorders_fault(run: GoodRun) -> None:
    run.history.handed.append(run.history.handed[0])
    with pytest.raises(ValueError, match="one mark"):
        judge(run.history, run.stores)


def test_the_checker_shares_no_code_with_what_it_judges() -> None:
    for path in Path(history_checker.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [node.module or ""]
            else:
                continue
            assert not any(name.split(".")[0] in ("trilogue", "local_system") for name in named), path
