"""The Supervisor keeps what is desired, and is believed in nothing that it does not pass on from a store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.server import Server
from trilogue.actors.wire import Connection, Refused
from trilogue.cluster.commands.streams import connection_to
from trilogue.cluster.on_ray import supervisor as module
from trilogue.cluster.on_ray.supervisor import Supervisor
from trilogue.cluster.settings.config import ClusterRecord, Desired
from trilogue.cluster.settings.runfile import RayRun, RunFile, read_run_file

TOKEN, CLUSTER, HOST = "secret", "c" * 32, "127.0.0.1"
ROUTE = {"cluster": CLUSTER, "partitions": 1, "writers": {}, "addresses": []}
DEADLINE_S = 10.0


class Actor:
    """Something that answers as the actor `name`."""

    def __init__(self, name: str, pid: int = 4711) -> None:
        info = {"name": name, "role": "store", "cluster": CLUSTER, "pid": pid}
        self.serves: tuple[int, int, str] = (-1, 0, "spare")
        self.name, self.orders, self.refusals = name, list[list[int]](), 0
        self.deaf = False
        self.server = Server(TOKEN, info, self._on_message, lambda _: None, lambda *_: None, DEFAULT_LIMITS)

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        if message[0] == Say.WHERE:
            connection.reply(message[1], ROUTE)
        elif message[0] == Say.PING and not self.deaf:
            connection.reply(message[1], ["session", self.name, *self.serves])
        elif message[0] == Say.TAKE:
            _, request, partition, epoch = message
            self.orders.append([partition, epoch])
            if self.refusals:
                self.refusals -= 1
                connection.refuse(request, Code.UNAVAILABLE, "not now")
                return
            self.serves = (partition, epoch + 1, "open")
            connection.reply(request, None)

    async def listen(self) -> str:
        await self.server.listen(f"{HOST}:0")
        return self.server.address


class World:
    """A directory of actors, and the power to create them: what Ray is to the Supervisor."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.actors: dict[str, Actor] = {}
        self.created: list[str] = []
        self.fails = False
        self._loop = asyncio.get_running_loop()

    async def address_of(self, name: str) -> str:
        if name not in self.addresses:
            raise Unavailable(f"{name} is not there yet")
        return self.addresses[name]

    async def start(self, name: str, pid: int = 4711) -> None:
        self.actors[name] = Actor(name, pid)
        self.addresses[name] = await self.actors[name].listen()

    async def end(self, name: str) -> None:
        del self.addresses[name]
        await self.actors.pop(name).server.close()

    def create(self, name: str) -> str:
        """As through Ray: called in a thread."""
        self.created.append(name)
        if self.fails:
            raise RuntimeError("Ray says no,\nat length")
        asyncio.run_coroutine_threadsafe(self.start(name), self._loop).result(DEADLINE_S)
        return name


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "settle_process", lambda: None)
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(module, "CREATE_AGAIN_S", 0.001)
    monkeypatch.setattr(module, "HURRY_S", 0.001)


def desired(run_files: tuple[str, ...] = ()) -> Desired:
    record = ClusterRecord(CLUSTER, 7, 1, 2, 2, "now", 2, 2, 1)
    return Desired(record, "/data", TOKEN, HOST, {}, run_files, False, False, {}, {})


def in_world(test: Callable[[World, Supervisor], Awaitable[None]], run_files: tuple[str, ...] = ()) -> None:
    """Run `test` with a Supervisor in an empty world."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            world = World()
            await test(world, Supervisor(desired(run_files), world, world.create))

    asyncio.run(bounded())


async def until(condition: Callable[[dict[str, Any]], bool], supervisor: Supervisor) -> dict[str, Any]:
    """The Supervisor's status, as soon as it fulfils `condition`."""
    while not condition(status := await supervisor.status()):  # noqa: ASYNC110  (it sets no event for tests)
        await asyncio.sleep(0)
    return status


def all_connected(status: dict[str, Any]) -> bool:
    return set(status["watched"].values()) == {"connected"}


def test_whatever_is_missing_is_created_by_its_name() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        await until(all_connected, supervisor)
        assert sorted(set(world.created)) == ["session-0", "session-1", "store-1", "store-2"]
        where = await supervisor.where()
        assert set(where["addresses"]) == {*world.addresses.values(), await supervisor.ready()}
        assert where["token"] == TOKEN

    in_world(test)


def served_by(name: str | None) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["partitions"][0]["actor"] == name


def test_a_partition_is_given_away_when_all_is_there_and_to_the_spare_when_its_owner_is_lost() -> None:
    """G11."""

    async def test(world: World, supervisor: Supervisor) -> None:
        status = await until(served_by("session-0"), supervisor)
        assert status["partitions"][0]["state"] == "open"
        assert status["spare_sessions"] == ["session-1"]
        spare = world.actors["session-1"]
        started = asyncio.get_running_loop().time()
        await world.end("session-0")
        while not spare.orders:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - started < DEFAULT_LIMITS.supervisor_ping_ms / 1000
        assert spare.orders == [[0, 1]]
        status = await until(served_by("session-1"), supervisor)
        assert (status["partitions"][0]["epoch"], status["failovers"]) == (2, 1)
        await until(lambda status: status["spare_sessions"] == ["session-0"], supervisor)

    in_world(test)


def test_an_owner_that_does_not_answer_is_replaced_and_a_spare_that_cannot_yet_is_ordered_again() -> None:
    """G11: its connections stay, as those of a stopped process do."""

    async def test(world: World, supervisor: Supervisor) -> None:
        await until(served_by("session-0"), supervisor)
        spare = world.actors["session-1"]
        spare.refusals = 2
        world.actors["session-0"].deaf = True
        await until(served_by("session-1"), supervisor)
        assert spare.orders == [[0, 1]] * 3

    in_world(test)


def test_a_lost_actor_is_looked_up_again_and_only_then_created() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        await until(all_connected, supervisor)
        world.created.clear()
        former = world.actors["store-1"]
        await world.start("store-1")
        await former.server.close()
        await until(lambda status: status["losses"] == {"store-1": 1} and all_connected(status), supervisor)
        assert world.created == []
        await world.end("store-1")
        await until(lambda status: status["losses"] == {"store-1": 2} and all_connected(status), supervisor)
        assert "store-1" in world.created

    in_world(test)


def test_whoever_answers_under_another_name_is_not_taken_for_the_actor() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        await until(all_connected, supervisor)
        await world.end("store-1")
        world.create = lambda name: name  # type: ignore[method-assign]  # Ray's answer is stale
        world.addresses["store-1"] = world.addresses["store-2"]
        status = await until(lambda status: "is not store-1" in status["watched"]["store-1"], supervisor)
        assert status["watched"]["store-2"] == "connected"

    in_world(test)


def test_what_keeps_an_actor_from_being_created_is_shown_in_one_line_and_tried_again() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        world.fails = True
        shown = "cannot be created: Ray says no, at length"
        await until(lambda status: status["watched"]["store-1"] == shown, supervisor)
        world.fails = False
        await until(all_connected, supervisor)

    in_world(test)


def test_the_question_where_is_answered_by_a_store_and_no_message_is_kept() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        await until(all_connected, supervisor)
        async with connection_to(await supervisor.ready(), TOKEN) as connection:
            assert await connection.request(Say.WHERE) == ROUTE
            assert await connection.request(Say.PING) == ["supervisor", "supervisor"]
            with pytest.raises(Refused, match="ask WHERE"):
                await connection.request(Say.HISTORY, "room", 0, 10)
            await world.end("store-1")
            await until(lambda status: "store-1" in status["losses"], supervisor)
            assert await connection.request(Say.WHERE) == ROUTE

    in_world(test)


def test_without_a_store_where_is_refused_rather_than_guessed() -> None:
    async def test(world: World, supervisor: Supervisor) -> None:
        world.fails = True
        async with connection_to(await supervisor.ready(), TOKEN) as connection:
            with pytest.raises(Refused, match="no store answers"):
                await connection.request(Say.WHERE)

    in_world(test)


def test_the_run_file_follows_actors_that_move_and_one_of_another_system_is_left_alone(tmp_path: Path) -> None:
    own, foreign = tmp_path / "own.json", tmp_path / "foreign.json"
    ray = RayRun("127.0.0.1:6400")
    RunFile(CLUSTER, "/data", "/data/token", "up", ray, "", {"store-1": "127.0.0.1:1"}, {"store-1": 1}).write(own)
    RunFile("other", "/data", "/data/token", "up", ray, "", {}, {}).write(foreign)
    before = foreign.read_bytes()

    async def test(world: World, supervisor: Supervisor) -> None:
        await until(all_connected, supervisor)
        noted = read_run_file(own)
        assert noted is not None
        assert noted.actors == {**world.addresses, "supervisor": await supervisor.ready()}
        assert noted.processes["store-1"] == 4711

    in_world(test, (str(own), str(foreign), str(tmp_path / "absent.json")))
    assert foreign.read_bytes() == before
    assert not (tmp_path / "absent.json").exists()
