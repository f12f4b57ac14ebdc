"""One question, several stores: who is asked when, and whose answer counts (G8, G11)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from trilogue.actors.hedge import Ask, first_answer
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Code
from trilogue.actors.wire import Refused

FOR_EVER_S = 3600.0


class Stores:
    """Stores that answer when they are told to."""

    def __init__(self) -> None:
        self.answers: dict[str, asyncio.Future[str]] = {}
        self.let_go: list[str] = []

    def store(self, name: str) -> Ask:
        async def ask() -> str:
            self.answers[name] = asyncio.get_running_loop().create_future()
            try:
                return await self.answers[name]
            except asyncio.CancelledError:
                self.let_go.append(name)
                raise

        return ask

    def question(self, *names: str, patience_s: float = FOR_EVER_S) -> asyncio.Task[str]:
        return asyncio.ensure_future(first_answer(map(self.store, names), patience_s))


async def turns() -> None:
    """Everything that can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(story)


def test_nobody_else_is_asked_while_the_first_store_may_still_answer() -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b")
        await turns()
        assert [*stores.answers] == ["a"]
        stores.answers["a"].set_result("of a")
        assert await question == "of a"
        assert [*stores.answers] == ["a"]

    run(story())


@pytest.mark.parametrize("problem", [Unavailable("lost"), Refused(Code.UNAVAILABLE, "not now")])
def test_next_store_is_asked_at_once_when_one_fails_G8(problem: Exception) -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b")
        await turns()
        stores.answers["a"].set_exception(problem)
        await turns()
        stores.answers["b"].set_result("of b")
        assert await question == "of b"

    run(story())


@pytest.mark.parametrize("first", ["a", "b", "c"])
def test_when_a_store_says_nothing_others_are_asked_and_the_first_answer_counts_G11(first: str) -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b", "c", patience_s=0.0)
        await turns()
        assert [*stores.answers] == ["a", "b", "c"]
        assert not question.done()
        stores.answers[first].set_result(f"of {first}")
        assert await question == f"of {first}"
        await turns()
        assert sorted([first, *stores.let_go]) == ["a", "b", "c"], "the others are not waited for"

    run(story())


def test_last_problem_is_told_when_nobody_has_an_answer_G8() -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b")
        await turns()
        stores.answers["a"].set_exception(Unavailable("a is lost"))
        await turns()
        stores.answers["b"].set_exception(Unavailable("b is lost"))
        with pytest.raises(Unavailable, match="b is lost"):
            await question
        with pytest.raises(Unavailable, match="no store is connected"):
            await stores.question()

    run(story())


def test_bug_is_not_taken_for_a_store_without_an_answer() -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b")
        await turns()
        stores.answers["a"].set_exception(TypeError("a bug"))
        with pytest.raises(TypeError, match="a bug"):
            await question
        assert [*stores.answers] == ["a"]

    run(story())


def test_whoever_does_not_wait_any_more_leaves_no_question_behind() -> None:
    async def story() -> None:
        stores = Stores()
        question = stores.question("a", "b", patience_s=0.0)
        await turns()
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
        await turns()
        assert sorted(stores.let_go) == ["a", "b"]

    run(story())
