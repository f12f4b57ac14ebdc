"""What the outbox wants committed and when, with a file that the test plays: nothing is forgotten too early (G10)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lane_bench import LIMITS, Bench, file_outbox, seqs
from trilogue.actors.protocol.errors import (
    ConflictingRetry,
    OutboxUnusable,
)
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Code
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.outbox.sqlite import Commit, Stored


def test_a_conflict_of_a_message_from_a_former_process_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    stored = Stored("a" * 32, [], [(1, [["red", "ann", "a" * 32, 1, [1, 1], [b"old", b"older"]]])])
    ids = itertools.count(1)
    outbox = FileOutbox(LIMITS, lambda: f"{next(ids):032x}", lambda: None, lambda commit: None, lambda: None)
    outbox.restore("a.db", stored)
    bench = Bench(outbox)
    bench.flow.add(bench.lane)
    assert bench.submitted() == [(f"ann/{'a' * 32}", 1, [b"old", b"older"])]
    bench.refuse(1, 1, Code.CONFLICTING_RETRY, 1)
    bench.ack(2, 1, 5)
    assert outbox.messages == 0
    assert "number 1: why" in outbox.conflicts[0]
    assert "was not stored" in caplog.text


def test_what_is_numbered_anew_is_committed_whole_and_with_the_end_of_the_old_numbering_g10() -> None:
    limits = Limits(outbox_commit_bytes_max=30, in_flight_messages_max=1)
    commits: list[Commit] = []
    ids = itertools.count(1)
    outbox = FileOutbox(limits, lambda: f"{next(ids):032x}", lambda: None, commits.append, lambda: None)
    outbox.restore("a.db", Stored("a" * 32, [], []))
    bench = Bench(outbox, limits)
    callers = bench.post(b"1" * 20, b"2" * 20, b"3" * 20)
    while len(commits) < 3:
        outbox.committed(None)
    outbox.committed(None)
    bench.submitted()
    bench.refuse(1, 1, Code.CONFLICTING_RETRY, 1)
    assert isinstance(callers[0].outcome, ConflictingRetry)
    outbox.save()
    commit = commits[3]
    assert [run[3:4] + run[5:] for run in commit.runs] == [[1, [b"2" * 20, b"3" * 20]]]
    assert ("red", "ann", "a" * 32, 4, 1) in commit.lanes
    assert commit.outbox_id is not None
    assert bench.submitted() == [], "not before its commit returned"
    outbox.committed(None)
    assert bench.submitted() == [(bench.lane.sender_id, 1, [b"2" * 20])]
    assert sorted(number for commit in commits for number in commit.delete) == [1, 2, 3]


def test_all_lanes_that_are_numbered_anew_stand_in_one_commit_g10() -> None:
    limits = Limits(outbox_commit_bytes_max=30, in_flight_messages_max=1)
    outbox, commits = file_outbox(limits)
    bench = Bench(outbox, limits)
    for sender in ("ann", "bob"):
        bench.post(b"1" * 20, b"2" * 20, sender=sender)
    while len(commits) < 4:
        outbox.committed(None)
    outbox.committed(None)
    for _ in range(2):
        [(sender_id, first_n, _bodies)] = bench.submitted()
        bench.answers.refused(0.0, 1, [["red", sender_id, first_n, 1, Code.CONFLICTING_RETRY, "copied", first_n]])
    outbox.save()
    assert [run[1] for run in commits[4].runs] == ["bob", "ann"]
    assert [row[:2] for row in commits[4].lanes if row[4]] == [("red", "ann"), ("red", "bob")]


def test_a_commit_that_was_under_way_when_its_lane_was_numbered_anew_saves_nothing_of_it() -> None:
    limits = Limits(in_flight_messages_max=1)
    outbox, commits = file_outbox(limits)
    bench = Bench(outbox, limits)
    bench.post(b"1")
    outbox.committed(None)
    bench.submitted()
    bench.post(b"2")
    bench.refuse(1, 1, Code.CONFLICTING_RETRY, 1)
    outbox.committed(None)
    assert bench.submitted() == [], "the commit that returned held it under its old number"
    assert [run[2:4] for run in commits[2].runs] == [[bench.lane.outbox_id, 1]]
    outbox.committed(None)
    assert bench.submitted() == [(bench.lane.sender_id, 1, [b"2"])]


def test_a_group_stays_in_the_file_until_all_of_it_has_its_outcome_g10() -> None:
    outbox, commits = file_outbox()
    bench = Bench(outbox)
    bench.post(b"1", b"2")
    outbox.committed(None)
    bench.submitted()
    bench.ack(1, 1, 1)
    outbox.tidy()
    assert len(commits) == 1
    bench.ack(2, 1, 2)
    outbox.tidy()
    assert commits[1].delete == [1]
    assert commits[1].lanes == [("red", "ann", "a" * 32, 3, 0)]


def test_what_the_file_knows_to_be_settled_is_not_sent_again_and_not_kept_for_ever() -> None:
    runs = [["red", sender, "a" * 32, 1, [1, 1], [b"1", b"2"]] for sender in ("ann", "bob")]
    outbox, commits = file_outbox(stored=Stored("a" * 32, [("red", "ann", "a" * 32, 3, 0)], [(1, runs)]))
    bench = Bench(outbox)
    for lane in outbox.lanes.values():
        bench.flow.add(lane)
    assert bench.submitted() == [(f"bob/{'a' * 32}", 1, [b"1", b"2"])]
    bench.ack(1, 2, 3, lane=outbox.lanes[("red", "bob")])
    outbox.tidy()
    assert commits[0].delete == [1]


def test_a_failed_disk_fails_what_is_not_saved_and_keeps_sending_what_is() -> None:
    commits: list[Commit] = []
    outbox = FileOutbox(LIMITS, lambda: "a" * 32, lambda: None, commits.append, lambda: None)
    outbox.restore("a.db", Stored("a" * 32, [], []))
    bench = Bench(outbox)
    saved = bench.post(b"saved")
    heard: list[Any] = []
    outbox.committed(None)
    lost = bench.post(b"not saved")
    outbox.when_saved(heard.append)
    outbox.committed(OutboxUnusable("the disk failed"))
    assert isinstance(lost[0].outcome, OutboxUnusable)
    assert isinstance(heard[0], OutboxUnusable)
    assert outbox.failed is not None
    assert bench.submitted() == [(bench.lane.sender_id, 1, [b"saved"])]
    bench.ack(1, 1, 1)
    assert seqs(saved) == [1]
    assert outbox.messages == 0


def test_saved_waits_for_what_is_dirty_now_and_not_for_what_comes_later() -> None:
    commits: list[Commit] = []
    outbox = FileOutbox(LIMITS, lambda: "a" * 32, lambda: None, commits.append, lambda: None)
    outbox.restore("a.db", Stored("a" * 32, [], []))
    bench = Bench(outbox)
    heard: list[Any] = []
    outbox.when_saved(lambda error: heard.append("nothing to wait for"))
    bench.post(b"1")
    bench.post(b"2", session="blue")
    outbox.when_saved(lambda error: heard.append("both"))
    bench.post(b"3", session="green")
    outbox.committed(None)
    assert heard == ["nothing to wait for"]
    outbox.committed(None)
    assert heard == ["nothing to wait for", "both"]


def test_a_file_with_a_gap_in_its_numbers_is_refused() -> None:
    outbox = FileOutbox(LIMITS, lambda: "a" * 32, lambda: None, lambda commit: None, lambda: None)
    runs = [["red", "ann", "a" * 32, n, [1], [b"x"]] for n in (1, 3)]
    with pytest.raises(OutboxUnusable, match="lacks number 2"):
        outbox.restore("a.db", Stored("a" * 32, [], [(1, runs)]))
