"""A store's index answers what a walk over all records answers."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors import store_index
from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.messages import RUN, SKIP, Message, Run, Skip, messages_of, pack_records
from trilogue.actors.store_index import Place, StoreIndex

SESSIONS, SENDERS = ("s", "t", "ü"), ("a/" + "0" * 32, "b/" + "1" * 32)
LOTS = 1 << 30


class Log:
    """Frames of numbered records, and the same as plain lists of messages."""

    def __init__(self, steps: list[tuple[int, int, int]]) -> None:
        self.frames: list[bytes] = []
        self.messages: dict[str, list[Message]] = {name: [] for name in SESSIONS}
        self.records: dict[tuple[str, str], list[Run | Skip]] = {}
        self._last_n: dict[tuple[str, str], int] = {}
        records: list[Any] = []
        for session_at, sender_at, count in steps:
            records.append(self._record(SESSIONS[session_at], SENDERS[sender_at], count))
            if count % 2:
                self._frame(records)
                records = []
        self._frame(records)

    def _record(self, session: str, sender_id: str, count: int) -> Run | Skip:
        n = self._last_n.get((session, sender_id), 0) + 1
        record: Run | Skip
        if count == 0:
            record = Skip(SKIP, session, sender_id, n, 5)
        else:
            seq = len(self.messages[session]) + 1
            record = Run(RUN, session, sender_id, n, seq, 5, [7] * count, [b"%d" % (n + k) for k in range(count)])
            self.messages[session] += messages_of(record)
        self._last_n[session, sender_id] = n + max(count, 1) - 1
        self.records.setdefault((session, sender_id), []).append(record)
        return record

    def _frame(self, records: list[Any]) -> None:
        self.frames.append(
            encode_frame(
                log_id=1, partition=0, epoch=1, index=len(self.frames) + 1, prev_crc=0, count=len(records), committed_upto=0,
                payload=pack_records(records),
            )[0]
        )  # fmt: skip

    def index(self, upto: int | None = None) -> StoreIndex:
        index = StoreIndex()
        index.catch_up(len(self.frames) if upto is None else upto, lambda i: self.frames[i - 1])
        return index

    def read(self, place: Place) -> bytes:
        return self.frames[place.frame_index - 1][place.offset : place.offset + place.size]


LOGS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)), max_size=25).map(Log)


@given(LOGS, st.sampled_from(SESSIONS), st.integers(0, 40), st.integers(1, 40))
def test_page_of_a_session_is_the_slice_of_its_messages(log: Log, session: str, after: int, limit: int) -> None:
    runs = log.index().runs(session, after, limit, LOTS, log.read)
    assert [message for run in runs for message in messages_of(run)] == log.messages[session][after : after + limit]


@given(LOGS, st.sampled_from(SESSIONS), st.integers(1, 60))
def test_pages_that_are_bounded_by_bytes_follow_each_other_without_a_hole(log: Log, session: str, bytes_max: int) -> None:
    index = log.index()
    found: list[Message] = []
    while page := index.runs(session, len(found), 1000, bytes_max, log.read):
        found += [message for run in page for message in messages_of(run)]
    assert found == log.messages[session]


@given(LOGS, st.sampled_from(SESSIONS), st.sampled_from(SENDERS), st.data())
def test_recall_finds_exactly_the_numbers_that_were_asked_for_G5(
    log: Log, session: str, sender_id: str, data: st.DataObject
) -> None:
    numbered = {}
    for record in log.records.get((session, sender_id), []):
        if isinstance(record, Run):
            numbered |= {record.first_n + k: (record.first_seq + k, body) for k, body in enumerate(record.bodies)}
        else:
            numbered[record.n] = (0, b"")
    first = data.draw(st.integers(1, max(1, len(numbered))))
    last = data.draw(st.integers(first, max(first, len(numbered))))
    found = {}
    for record in log.index().recall(session, sender_id, first, last, log.read) if numbered else []:
        if isinstance(record, Run):
            found |= {record.first_n + k: (record.first_seq + k, body) for k, body in enumerate(record.bodies)}
        else:
            found[record.n] = (0, b"")
    assert found == {n: what for n, what in numbered.items() if first <= n <= last}


@given(LOGS, st.lists(st.sampled_from([*SESSIONS, "unknown"]), unique=True), st.integers(1, 400))
def test_states_are_told_in_the_order_asked_a_page_at_a_time(log: Log, names: list[str], bytes_max: int) -> None:
    index = log.index()
    found: list[Any] = []
    while len(found) < len(names):
        _, upto, page = index.states([(name, []) for name in names[len(found) :]], bytes_max)
        assert upto == len(log.frames)
        assert page, "at least one is told"
        found += page
    for name, (last_seq, last_n, whole, keys) in zip(names, found, strict=True):
        assert last_seq == len(log.messages.get(name, []))
        assert last_n == {sender_id: n for (session, sender_id), n in log._last_n.items() if session == name}
        assert (whole, keys) == (True, {})


def test_of_a_session_with_many_senders_only_those_asked_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_index, "SENDERS_WHOLE", 1)
    log = Log([(0, 0, 3), (0, 1, 2), (1, 0, 1)])
    asked = [("s", [SENDERS[1], "c/" + "2" * 32]), ("t", [SENDERS[1]])]
    assert log.index().states(asked, LOTS)[2] == [[5, {SENDERS[1]: 2}, False, {}], [1, {SENDERS[0]: 1}, True, {}]]


@given(LOGS, st.data())
def test_index_that_catches_up_in_steps_is_the_same(log: Log, data: st.DataObject) -> None:
    index = log.index(data.draw(st.integers(0, len(log.frames))))
    index.catch_up(len(log.frames), lambda i: log.frames[i - 1])
    asked = [(name, []) for name in SESSIONS]
    assert index.states(asked, LOTS) == log.index().states(asked, LOTS)


def test_unknown_session_has_no_runs_and_no_records() -> None:
    log = Log([(0, 0, 3)])
    assert log.index().runs("nobody", 0, 10, LOTS, log.read) == []
    assert log.index().recall("nobody", SENDERS[0], 1, 5, log.read) == []


def test_places_carry_the_crc_of_the_records_own_bytes() -> None:
    log = Log([(0, 0, 3), (1, 0, 2)])
    places = [entry.runs[0] for entry in log.index().sessions.values()]
    assert [place.crc for place in places] == [crc32(log.read(place)) for place in places]


def test_gap_in_a_sessions_seqs_breaks_an_invariant_G3() -> None:
    log = Log([(0, 0, 1), (0, 0, 1)])
    with pytest.raises(InvariantBroken, match="gap at seq 2"):
        StoreIndex().catch_up(1, lambda _: log.frames[1])
