"""`trilogue bench sessions`: what is sent where, and what its judge finds."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import pairwise

import pytest

from trilogue.bench.load import many
from trilogue.bench.load.job import Job
from trilogue.bench.load.many import SENDER, Judge, Plan
from trilogue.bench.report.schema import Memory
from trilogue.client import Ack, Message

JOB = Job(
    kind="fill", address="a", prefix="p/", copies=3, seed=1, messages=75, sessions=25, body_bytes=32, asked=3, read_back=5
)


def message(plan: Plan, session: int, seq: int, body: bytes | None = None) -> Message:
    body = body if body is not None else plan.body(plan.number(session, seq))
    return Message(plan.name(session), seq, SENDER, f"{SENDER}/1", seq, body, 0, 0)


def ack(session: str = "p/session-4", seq: int = 2, copies: int = 3) -> Ack:
    return Ack(session, seq, SENDER, f"{SENDER}/1", seq, copies, 1, False)


def test_each_session_gets_its_messages_in_order_and_never_two_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "WINDOW_SESSIONS", 10)
    plan = Plan(JOB)
    order = list(plan.in_order())
    by_session = defaultdict(list)
    for session, seq in order:
        by_session[session].append(seq)
    assert by_session == {session: [1, 2, 3] for session in range(25)}
    assert all(one[0] != other[0] for one, other in pairwise(order))
    assert len({plan.number(session, seq) for session in range(25) for seq in range(1, 5)}) == 100


def test_loads_of_one_seed_agree_on_whom_they_ask_and_ask_nobody_twice() -> None:
    plan, other = Plan(JOB), Plan(JOB.model_copy(update={"kind": "cold"}))
    assert (plan.read, plan.sent, plan.checked) == (other.read, other.sent, other.checked)
    assert (len(plan.read), len(plan.sent), len(set(plan.checked))) == (3, 3, 11)
    assert {*plan.read, *plan.sent} < {*plan.checked}


def test_judge_finds_nothing_in_what_was_sent() -> None:
    plan = Plan(JOB)
    assert plan.judge(4, [message(plan, 4, seq) for seq in (1, 2, 3)], 3).clean


@pytest.mark.parametrize(
    ("seqs", "found"),
    [((1, 2), (1, 0, 0)), ((1, 2, 3, 4), (0, 1, 0)), ((2, 1, 3), (0, 0, 1)), ((1, 2, 2, 3), (0, 0, 1)), ((), (3, 0, 0))],
)
def test_judge_finds_what_is_missing_too_much_or_out_of_order(seqs: tuple[int, ...], found: tuple[int, int, int]) -> None:
    plan = Plan(JOB)
    verdict = plan.judge(4, [message(plan, 4, seq) for seq in seqs], 3)
    assert (verdict.lost, verdict.duplicated, verdict.reordered) == found


def test_judge_finds_another_sessions_message_in_a_place() -> None:
    plan = Plan(JOB)
    history = [message(plan, 4, 1), message(plan, 4, 2, plan.body(plan.number(5, 2))), message(plan, 4, 3)]
    assert plan.judge(4, history, 3).lost == 1


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (ack(), (0, 0, 0)), (ack(seq=3), (0, 1, 0)), (ack(seq=1), (0, 0, 1)), (ack(copies=2), (1, 0, 0)),
        (ack(session="p/session-5"), (1, 0, 0)), (RuntimeError("gone"), (1, 0, 0)),
    ],
)  # fmt: skip
def test_each_ack_is_judged_when_it_comes(answer: Ack | Exception, found: tuple[int, int, int]) -> None:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Ack] = loop.create_future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    judge = Judge(Plan(JOB), 3)
    judge.heard(4, 2, future)
    loop.close()
    assert (judge.verdict.lost, judge.verdict.duplicated, judge.verdict.reordered) == found
    assert judge.came == 1


def test_a_process_grew_by_its_largest_moment_over_the_empty_system() -> None:
    one = Memory(name="store-1", role="store", empty_mib=50, full_mib=70, restarted_mib=90, read_mib=80)
    assert one.grew_mib == 40
