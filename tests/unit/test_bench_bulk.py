"""`trilogue bench table` and `bench export`: what their judge finds in columns."""

from __future__ import annotations

import pyarrow as pa
import pytest

from trilogue.bench.load.bulk import ColumnJudge, _judge_files
from trilogue.bench.load.job import Job
from trilogue.bench.load.many import SENDER, Plan
from trilogue.bench.load.pouring import Pulse

JOB = Job(kind="export", address="a", prefix="p/", copies=3, seed=1, messages=6, sessions=2, body_bytes=32)
SENT = [(session, seq) for session in (0, 1) for seq in (1, 2, 3)]


def rows(plan: Plan, sent: list[tuple[int, int]]) -> pa.Table:
    return pa.table(
        {
            "session": [plan.name(session) for session, _ in sent],
            "seq": [seq for _, seq in sent],
            "sender": [SENDER] * len(sent),
            "n": [seq for _, seq in sent],
            "body": [plan.body(plan.number(session, seq)) for session, seq in sent],
        }
    )


def found(sent: list[tuple[int, int]]) -> tuple[int, int, int]:
    plan = Plan(JOB)
    judge = ColumnJudge(plan)
    for at in range(0, len(sent), 4):
        judge.take(rows(plan, sent[at : at + 4]))
    verdict = judge.end()
    return verdict.lost, verdict.duplicated, verdict.reordered


def test_judge_finds_nothing_in_what_was_sent() -> None:
    assert found(SENT) == (0, 0, 0)


@pytest.mark.parametrize(
    ("sent", "verdict"),
    [
        (SENT[:5], (1, 0, 0)),
        ([*SENT[:1], *SENT[2:]], (1, 0, 0)),
        (SENT[3:], (3, 0, 0)),
        ([], (6, 0, 0)),
        ([*SENT[:2], *SENT[1:]], (0, 1, 0)),
        ([*SENT, (1, 4)], (0, 1, 0)),
        ([SENT[0], SENT[2], SENT[1], *SENT[3:]], (1, 1, 0)),
    ],
)
def test_judge_finds_what_is_missing_or_too_much(sent: list[tuple[int, int]], verdict: tuple[int, int, int]) -> None:
    assert found(sent) == verdict


def test_judge_finds_another_body_another_sender_and_a_session_that_nobody_sent_to() -> None:
    plan = Plan(JOB)
    whole = rows(plan, SENT)
    for name, value in (("body", b"x"), ("sender", "somebody"), ("n", 9)):
        judge = ColumnJudge(plan)
        values = whole[name].to_pylist()
        values[1] = value
        judge.take(whole.set_column(whole.schema.get_field_index(name), name, pa.array(values)))
        assert judge.end().lost == 1
    judge = ColumnJudge(plan)
    judge.take(whole)
    judge.take(rows(Plan(JOB.model_copy(update={"prefix": "q/"})), [(0, 1)]))
    assert judge.end().duplicated == 1


def test_files_that_are_not_there_are_losses() -> None:
    assert _judge_files(Plan(JOB), [], Pulse(), 6).lost == 6
