"""A store's index answers what a walk over all records answers, wherever it keeps them: memory, segments, merged segments."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexed_log import FOR_EVER, SENDERS, SESSIONS, Log
from trilogue.actors.index import partition
from trilogue.actors.index.catalogue import CatalogueDamaged
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.index.partition import PartitionIndex
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.messages import FLOOR, TRIM, Floor, Message, Run, Trim, messages_of
from trilogue.actors.protocol.submissions import Question
from trilogue.actors.protocol.vocabulary import Piece
from trilogue.client.reading.windows import page_in

LOTS = 1 << 30
LOGS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)), max_size=25).map(Log)
CUTS = st.lists(st.tuples(st.integers(0, 25), st.booleans()), max_size=6)
"""(a frame up to which it catches up, whether all is then written to the catalogue)."""


def index_of(log: Log, cuts: list[tuple[int, bool]]) -> PartitionIndex:
    keeper = log.keeper()
    for upto, write in sorted(cuts):
        index = log.index(keeper, min(upto, len(log.frames)))
        if write:
            keeper.tidy(FOR_EVER, rest=True)
        elif index.leaving is None:
            index.leave()  # it is being written, and none of it is there yet
            keeper._writing = index
    return log.index(keeper)


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.integers(0, 40), st.integers(1, 40))
def test_page_of_a_session_is_the_slice_of_its_messages_G3(
    log: Log, cuts: list[tuple[int, bool]], session: str, after: int, limit: int
) -> None:
    runs = index_of(log, cuts).runs(session, after, limit, LOTS, log.read)
    assert [message for run in runs for message in messages_of(run)] == log.messages[session][after : after + limit]


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.integers(0, 40), st.integers(1, 40), st.integers(1, 60))
def test_page_is_the_same_bytes_wherever_the_index_keeps_it(
    log: Log, cuts: list[tuple[int, bool]], session: str, after: int, limit: int, bytes_max: int
) -> None:
    asked = session, after, limit, bytes_max, log.read
    assert index_of(log, cuts).runs(*asked) == log.index().runs(*asked)


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.integers(1, 60))
def test_pages_that_are_bounded_by_bytes_follow_each_other_without_a_hole(
    log: Log, cuts: list[tuple[int, bool]], session: str, bytes_max: int
) -> None:
    index = index_of(log, cuts)
    found: list[Message] = []
    while page := index.runs(session, len(found), 1000, bytes_max, log.read):
        found += [message for run in page for message in messages_of(run)]
    assert found == log.messages[session]


@given(LOGS, CUTS, st.lists(st.tuples(st.sampled_from(SESSIONS), st.integers(0, 40), st.integers(0, 40)), max_size=3))
def test_records_of_a_piece_are_the_runs_that_begin_in_it_and_the_one_that_it_begins_in(
    log: Log, cuts: list[tuple[int, bool]], asked: list[tuple[str, int, int]]
) -> None:
    index = index_of(log, cuts)
    for inside in (False, True):
        pieces = [Piece(session, after, after + count, inside) for session, after, count in asked]
        expected = [
            run
            for session, after, last, _ in pieces
            for run in log.index().runs(session, 0, LOTS, LOTS, log.read)
            if after < run.first_seq <= last
            or (inside and run.first_seq <= after < last and run.first_seq + len(run.bodies) > after + 1)
        ]
        assert page_in(index.records(pieces, lambda size: True, log.read))[::2] == (expected, None)
        found = page_in(index.records(pieces, lambda size: False, log.read)).runs
        assert found == expected[:1], "a page that has no room has one run"


def test_a_record_of_another_session_is_never_handed_out() -> None:
    log = Log([(0, 0, 3), (1, 0, 3)])
    other = next(log.index()._places_from("t", 1))
    with pytest.raises(CatalogueDamaged, match="another record"):
        log.index().records([Piece("s", 0, 9, True)], lambda size: True, lambda session, place: log.read(session, other))


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.integers(1, 40), st.integers(0, 40), st.booleans())
def test_records_end_where_something_is_gone_and_say_from_where_on_nothing_is(
    log: Log, cuts: list[tuple[int, bool]], session: str, before: int, after: int, by_floor: bool
) -> None:
    whole = log.index().runs(session, 0, LOTS, LOTS, log.read)
    assert isinstance(whole, list)
    last_seq, floor = len(log.messages[session]), min(before, len(log.frames))
    if by_floor and floor:
        log._frame([Floor(FLOOR, floor, 9)])
    else:
        log._frame([Trim(TRIM, session, min(before, last_seq + 1), 9)])
    index = index_of(log, cuts)
    first = index.first_available(session)
    [listed] = [item for item in index.sessions("", 99, lambda size: True)[0] if item[0] == session] or [[session, first, 0]]
    assert listed == [session, first, last_seq]
    page = page_in(index.records([Piece(session, after, max(after, last_seq), True)], lambda size: True, log.read))
    wanted = [run for run in whole if after + 1 < run.first_seq + len(run.bodies)] if after < last_seq else []
    if wanted and max(wanted[0].first_seq, after + 1) < first:
        assert (page.runs, page.gone) == ([], (session, first))
    else:
        assert (page.runs, page.gone) == (wanted, None)


@given(LOGS, CUTS, st.integers(1, 3), st.booleans())
def test_list_of_sessions_has_each_that_has_messages_in_the_order_of_names(
    log: Log, cuts: list[tuple[int, bool]], count: int, in_time: bool
) -> None:
    index = index_of(log, cuts)
    found, above = list[list[Any]](), ""
    while True:
        page, next_above = index.sessions(above, count, lambda looked_at: in_time)
        assert len(page) <= count
        found += page
        if not next_above:
            break
        assert next_above > above
        above = next_above
    assert found == [[name, 1, len(log.messages[name])] for name in sorted(SESSIONS) if log.messages[name]]


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.sampled_from(SENDERS), st.data())
def test_recall_finds_exactly_the_numbers_that_were_asked_for_however_old_G5(
    log: Log, cuts: list[tuple[int, bool]], session: str, sender_id: str, data: st.DataObject
) -> None:
    own = log.numbers.get((session, sender_id), {})
    first = data.draw(st.integers(1, max(1, len(own))))
    last = data.draw(st.integers(first, max(first, len(own))))
    found = []
    for record in index_of(log, cuts).recall(session, sender_id, first, last, log.read):
        if isinstance(record, Run):
            found += [(record.first_n + k, (record.first_seq + k, body)) for k, body in enumerate(record.bodies)]
        else:
            found.append((record.n, (0, b"")))
    assert found == [(n, what) for n, what in own.items() if first <= n <= last]


@given(LOGS, CUTS, st.lists(st.sampled_from([*SESSIONS, "unknown"]), unique=True), st.integers(1, 400), st.integers(1, 3))
def test_states_are_told_in_the_order_asked_a_page_at_a_time(
    log: Log, cuts: list[tuple[int, bool]], names: list[str], bytes_max: int, senders_max: int
) -> None:
    index = index_of(log, cuts)
    found: list[Any] = []
    while len(found) < len(names):
        asked = [Question(name, [SENDERS[1]], []) for name in names[len(found) :]]
        _, upto, page = index.states(asked, senders_max, bytes_max)
        assert upto == len(log.frames)
        assert page, "at least one is told"
        found += page
    for name, (last_seq, last_n, whole, *_) in zip(names, found, strict=True):
        assert last_seq == len(log.messages.get(name, []))
        every = log.last_n(name)
        assert whole == (len(every) <= senders_max)
        assert last_n == (every if whole else {sender_id: n for sender_id, n in every.items() if sender_id == SENDERS[1]})


@given(LOGS, CUTS, st.sampled_from(SESSIONS), st.sampled_from([0, 2, 64]))
def test_keys_are_told_with_the_newest_message_that_has_them_all_of_a_session_that_has_few_G5(
    log: Log, cuts: list[tuple[int, bool]], session: str, few: int
) -> None:
    index, known = index_of(log, cuts), log.keys[session]
    wanted = ["k3", "k6", "often", "never"]
    before, partition.KEYS_WHOLE = partition.KEYS_WHOLE, few
    try:
        [[*_, keys, whole]] = index.states([Question(session, [], wanted)], 64, LOTS)[2]
    finally:
        partition.KEYS_WHOLE = before
    told = {key: tuple(value) for key, value in keys.items()}
    assert told == (known if whole else {key: known[key] for key in wanted if key in known})
    assert whole or few < 64
    assert not whole or len(known) <= few


@pytest.mark.parametrize(("last_at_us", "kept"), [(4, True), (5, False)])
def test_merge_leaves_out_the_keys_whose_time_is_over_and_no_others(last_at_us: int, kept: bool) -> None:
    log = Log([(0, 0, 3)] * 4)  # all of it was stored at 5
    keeper = log.keeper()
    for upto in range(1, len(log.frames) + 1):
        log.index(keeper, upto)
        keeper.of(0).recent.last_stored_at_us = keeper._segments._key_honoured_us + last_at_us
        keeper.tidy(FOR_EVER, rest=True)
    assert max(segment.level for segment in keeper.catalogue.segments) > 0, "they were merged"
    [[*_, keys, _]] = keeper.of(0).states([Question("s", [], ["k3"])], 64, LOTS)[2]
    assert ("k3" in keys) == kept


@given(LOGS)
def test_segments_are_few_and_each_frame_is_in_one_of_them(log: Log) -> None:
    keeper = log.keeper()
    for upto in range(1, len(log.frames) + 1):
        log.index(keeper, upto)
        keeper.tidy(FOR_EVER, rest=True)
    segments = keeper.catalogue.segments
    assert len(segments) == 0 or segments[-1].upto >= len(log.frames) - 1, "an empty frame is not worth a segment"
    assert all(one.upto < other.upto for one, other in pairwise(segments))
    levels = [segment.level for segment in segments]
    assert levels == sorted(levels, reverse=True)
    assert all(levels.count(level) < 2 for level in range(3))
    held = {
        row[0]
        for table in ("parts", "senders", "keys")
        for row in keeper.catalogue.database.execute(f"SELECT segment FROM {table}")
    }
    assert held <= {segment.id for segment in segments}, "what was merged is removed"


def test_unknown_session_has_no_runs_and_no_records() -> None:
    log = Log([(0, 0, 3)])
    assert log.index().runs("nobody", 0, 10, LOTS, log.read) == []
    assert log.index().recall("nobody", SENDERS[0], 1, 5, log.read) == []


def test_last_number_of_one_sender_of_a_crowd_is_the_newest_wherever_it_is_G5() -> None:
    log = Log([(0, 1, 1), (0, 0, 1), (0, 1, 1), (0, 0, 1), (0, 1, 1), (0, 0, 1)])
    keeper = log.keeper()
    for upto, last_n in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        index = log.index(keeper, upto)
        if upto == 1:
            keeper.tidy(FOR_EVER, rest=True)
        elif upto == 3:
            index.leave()
        [[_, found, whole, *_]] = index.states([Question("s", [SENDERS[1], "unknown"], [])], 1, LOTS)[2]
        assert (found, whole) == ({SENDERS[1]: last_n}, upto == 1)


def test_two_senders_whose_ids_have_the_same_crc_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from trilogue.actors.index import catalogue, recent

    monkeypatch.setattr(catalogue, "sender_crc", lambda _: 5)
    monkeypatch.setattr(recent, "sender_crc", lambda _: 5)
    log = Log([(0, 0, 2), (0, 1, 2), (0, 0, 1)])
    keeper = log.keeper()
    index = log.index(keeper)
    keeper.tidy(FOR_EVER, rest=True)
    assert [record.sender_id for record in index.recall("s", SENDERS[1], 1, 2, log.read)] == [SENDERS[1]]


def test_gap_in_a_sessions_seqs_breaks_an_invariant_G3() -> None:
    log = Log([(0, 0, 1), (0, 0, 1)])
    keeper = IndexKeeper(None, "mark", log.crc_at, log.keeper()._limits)
    with pytest.raises(InvariantBroken, match="gap at seq 2"):
        keeper.of(0).catch_up(1, lambda _: log.frames[1])
