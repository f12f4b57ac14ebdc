"""The Supervisor's keeper of the register over real connections: a lost store is replaced, and writers follow (G2, G11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.register.charter import Charter
from trilogue.actors.protocol.register.proposal import Found, Set
from trilogue.cluster.on_ray import charter_watch, register_keeper
from trilogue.cluster.on_ray.register_keeper import RegisterKeeper

from .test_register_client import FOUNDERS, STORES, System, play

KEYS = ("k", "absent")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_keeper, "LOOK_S", 0.02)
    monkeypatch.setattr(charter_watch, "GONE_MS", 300)


def keeper_of(system: System) -> RegisterKeeper:
    return RegisterKeeper(STORES, KEYS, DEFAULT_LIMITS, system.connections.get)


async def until(keeper: RegisterKeeper, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while not condition(status := keeper.status()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return status


def test_g11_emptied_stores_are_taken_in_again_one_after_another_and_nothing_is_forgotten(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        writer = system.client()
        assert await writer.compare_and_set("k", 0, b"a") == Set(1)
        keeper = keeper_of(system)
        for number, name in enumerate(FOUNDERS, 2):
            await system.empty(name)
            keeper.connected()
            status = await until(keeper, lambda status, number=number: status["charter"] == number)  # type: ignore[misc]
            assert set(status["stores"]) == set(FOUNDERS)
        assert await writer.read("k") == Found(1, b"a")
        assert await writer.compare_and_set("k", 1, b"b") == Set(2)
        assert await system.client().compare_and_set("absent", 0, b"c") == Set(1)

    play(tmp_path, story)


def test_g11_a_store_that_stays_away_is_replaced_by_the_spare_one_and_one_that_is_back_in_time_is_not(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        await system.client().compare_and_set("k", 0, b"a")
        keeper = keeper_of(system)
        await until(keeper, lambda status: status["charter"] == 1 and status["may_lose"] == 1)
        await system.down("store-1")
        await until(keeper, lambda status: status["may_lose"] == 0)
        await system.up("store-1")
        status = await until(keeper, lambda status: status["may_lose"] == 1)
        assert (status["charter"], status["moves"]) == (1, 0)
        await system.down("store-1")
        status = await until(keeper, lambda status: status["charter"] == 2)
        assert status["stores"] == ["store-4", "store-2", "store-3"]
        await system.down("store-2")
        assert await system.client().read("k") == Found(1, b"a")

    play(tmp_path, story)


def test_g2_a_move_that_its_mover_did_not_finish_is_finished_before_the_old_charter_is_needed_no_more(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        mover = system.client()
        await mover.compare_and_set("k", 0, b"a")
        await mover.move_charter(STORES[1:], ())  # no key is moved
        keeper = keeper_of(system)
        await until(keeper, lambda _: keeper._settled == 2)
        await system.down("store-2")
        assert await system.client().read("k") == Found(1, b"a")

    play(tmp_path, story)


def test_g8_a_lost_majority_is_said_and_nothing_is_moved(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        await system.client().compare_and_set("k", 0, b"a")
        keeper = keeper_of(system)
        await until(keeper, lambda status: status["may_lose"] == 1)
        await system.down("store-1", "store-2")
        status = await until(keeper, lambda status: status["lost"])
        assert set(status["gone"]) == {"store-1", "store-2"}
        assert (status["charter"], status["may_lose"]) == (1, -1)

    play(tmp_path, story)


def test_every_store_is_told_of_the_newest_charter(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        await client.compare_and_set("k", 0, b"a")
        keeper_of(system)
        while system.stores["store-4"].acceptor.charter != Charter(1, {n: f"id of {n}" for n in FOUNDERS}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    play(tmp_path, story)
