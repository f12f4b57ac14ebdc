"""How a SessionActor asks stores how far sessions are: in parts, again, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.submissions import LookedUp, LookUp, Told
from trilogue.actors.replication.replicated_log import ReplicatedLog
from trilogue.actors.session import lookups
from trilogue.actors.session.lookups import TRIES, Lookups

ALICE = "alice/" + "0" * 32
ORDER = LookUp(5, [("s", [ALICE], []), ("t", [], []), ("u", [], [])])


class Stores:
    """A log whose stores answer with what is put here; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.partition, self.committed = 3, 9
        self.answers = list(answers)
        self.asked: list[list[Any]] = []

    async def ask(self, *items: Any) -> Any:
        self.asked.append(list(items[1:]))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nobody waits, and nobody ends: the reasons are kept."""
    ended: list[str] = []

    def end(reason: str) -> None:
        ended.append(reason)
        raise asyncio.CancelledError

    monkeypatch.setattr(lookups, "ASK_AGAIN_S", 0)
    monkeypatch.setattr(lookups, "end_process", end)
    monkeypatch.setattr(lookups, "_now_us", lambda: 7)
    return ended


def look_up(stores: Stores) -> list[LookedUp]:
    told: list[LookedUp] = []
    with asyncio.Runner() as runner:
        runner.run(Lookups(cast(ReplicatedLog, stores), told.append)._look_up(ORDER))
    return told


def test_answer_in_parts_is_told_in_parts_and_the_rest_is_asked_for() -> None:
    stores = Stores([1, 5, [[7, {ALICE: 3}, False, {}, False], [0, {}, True, {}, True]]], [1, 9, [[2, {}, True, {}, True]]])
    assert look_up(stores) == [
        LookedUp(ORDER.asked[:2], [Told(7, {ALICE: 3}, False), Told(0, {}, True, {}, True)], 7),
        LookedUp(ORDER.asked[2:], [Told(2, {}, True, {}, True)], 7),
    ]
    assert stores.asked == [[3, 5, [("s", [ALICE], []), ("t", [], []), ("u", [], [])]], [3, 5, [("u", [], [])]]]


def test_look_up_is_tried_again_and_then_told_to_have_failed_G8() -> None:
    states = [[0, {}, True, {}, True]] * 3
    assert look_up(Stores(*[Unavailable("no store")] * (TRIES - 1), [1, 5, states]))[0].told is not None
    assert look_up(Stores(*[Unavailable("no store")] * TRIES)) == [LookedUp(ORDER.asked, None, 7)]


def test_store_that_has_served_another_writer_ends_this_one_G9(hurry: list[str]) -> None:
    with pytest.raises(asyncio.CancelledError):
        look_up(Stores([1, 10, [[0, {}, True, {}, True]]]))
    assert "up to 10: another writer took this partition over" in hurry[0]


def test_takeover_waits_for_a_store_and_wants_the_index_of_exactly_the_logs_end_G9(hurry: list[str]) -> None:
    waits: list[str] = []

    def clock(stores: Stores) -> int:
        with asyncio.Runner() as runner:
            return runner.run(Lookups(cast(ReplicatedLog, stores), lambda _: None).clock_at_end(5, waits.append))

    assert clock(Stores(Unavailable("no store yet"), [123, 5, []])) == 123
    assert waits == ["no store yet"]
    with pytest.raises(asyncio.CancelledError):
        clock(Stores([123, 6, []]))
    assert "up to 6" in hurry[0]
