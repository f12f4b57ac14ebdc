"""The register over real connections in one process: founding, changing, losing acceptors, moving the charter (G2, G11)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.register.charter import CHARTER_KEY, Charter, encode_charter
from trilogue.actors.protocol.register.proposal import CompareAndSet, Found, NotInForce, Set
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.actors.server import Server
from trilogue.actors.store.acceptor import VOTES, Acceptor
from trilogue.actors.wire import Connection, connect

TOKEN = "the token"
STORES = ("store-1", "store-2", "store-3", "store-4")
FOUNDERS = STORES[:3]
DEADLINE_S = 30
QUICK = Limits(register_round_ms=300, register_wait_ms=600)


class Store:
    """An acceptor behind a server, and what it was asked."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.silent = False
        self.asked: list[int] = []

    async def start(self, fresh: str = "") -> None:
        self.directory.mkdir(exist_ok=True)
        fresh = fresh or f"id of {self.name}"
        self.acceptor = Acceptor.open(self.directory, cluster="c", fresh_acceptor=fresh, limits=DEFAULT_LIMITS)
        info = {"role": "store", "name": self.name}
        self.server = Server(TOKEN, info, self._on_message, lambda _: None, lambda *_: None, DEFAULT_LIMITS)
        await self.server.listen("127.0.0.1:0")

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        say, request, *arguments = message
        assert say in VOTES
        self.asked.append(say)
        if not self.silent:
            self.acceptor.serve(connection, request, say, arguments)

    async def stop(self) -> None:
        await self.server.close()
        self.acceptor.close()


class System:
    """Four stores, the connections to them, and clients."""

    def __init__(self, place: Path) -> None:
        self.stores = {name: Store(name, place / name) for name in STORES}
        self.connections: dict[str, Connection] = {}

    async def up(self, *names: str) -> None:
        for name in names:
            await self.stores[name].start()
            await self.connect(name)

    async def connect(self, name: str) -> None:
        address = self.stores[name].server.address
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        self.connections[name] = await connect(address, TOKEN, on_message=nothing, on_closed=nothing)

    async def down(self, *names: str) -> None:
        for name in names:
            self.connections.pop(name).close()
            await self.stores[name].stop()

    async def empty(self, name: str) -> None:
        """The directory is lost; the store comes back under its old name."""
        await self.down(name)
        for path in self.stores[name].directory.iterdir():
            path.unlink()
        await self.stores[name].start(f"another id of {name}")
        await self.connect(name)

    def client(self, limits: Limits = DEFAULT_LIMITS, founders: tuple[str, ...] = FOUNDERS) -> RegisterClient:
        return RegisterClient(founders, self.connections.get, limits, others=lambda: STORES, chance=random.Random(1))

    def asked(self, name: str) -> list[int]:
        """What the store was asked since this was called last."""
        asked, self.stores[name].asked = self.stores[name].asked, []
        return asked


def play(place: Path, story: Callable[[System], Coroutine[Any, Any, None]], *up: str) -> None:
    async def bounded() -> None:
        system = System(place)
        async with asyncio.timeout(DEADLINE_S):
            try:
                await system.up(*(up or STORES))
                await story(system)
            finally:
                await system.down(*system.connections)

    asyncio.run(bounded())


def test_register_is_founded_by_all_founders_and_then_serves(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        assert await client.charter() == Charter(1, {name: f"id of {name}" for name in FOUNDERS})
        assert await client.read("k") == Found(0, None)
        assert await client.compare_and_set("k", 0, b"a") == Set(1)
        assert await client.compare_and_set("k", 0, b"b") == NotInForce(1, b"a", False)
        assert await system.client().read("k") == Found(1, b"a")

    play(tmp_path, story)


def test_register_is_not_founded_without_a_founder(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        with pytest.raises(Unavailable, match=r"founding it needs all .* missing: store-3 \(not connected\)"):
            await system.client(QUICK).compare_and_set("k", 0, b"a")
        assert all(store.acceptor.charter is None for name, store in system.stores.items() if name != "store-3")
        await system.up("store-3")
        assert await system.client().compare_and_set("k", 0, b"a") == Set(1)

    play(tmp_path, story, "store-1", "store-2", "store-4")


def test_many_found_at_once_and_agree(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        clients = [system.client() for _ in range(5)]
        outcomes = await asyncio.gather(*(client.compare_and_set("k", 0, b"%d" % k) for k, client in enumerate(clients)))
        assert sum(isinstance(outcome, Set) for outcome in outcomes) == 1
        found = await clients[0].read("k")
        assert all(outcome in (Set(1), NotInForce(found.version, found.data, outcome[-1])) for outcome in outcomes)  # type: ignore[misc]

    play(tmp_path, story)


def test_change_takes_two_rounds_and_a_read_one_that_writes_nothing(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        await client.charter()
        system.asked("store-1")
        assert await client.compare_and_set("k", 0, b"a") == Set(1)
        assert system.asked("store-1") == [Say.PREPARE, Say.ACCEPT]
        assert await client.read("k") == Found(1, b"a")
        assert system.asked("store-1") == [Say.PREPARE]

    play(tmp_path, story)


def test_dead_or_silent_acceptor_is_not_waited_for_G11(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client(Limits(register_round_ms=20_000, register_wait_ms=40_000))  # none is waited for
        await client.charter()
        system.stores["store-1"].silent = True
        assert await client.compare_and_set("k", 0, b"a") == Set(1)
        system.stores["store-1"].silent = False
        await system.down("store-2")
        assert await client.compare_and_set("k", 1, b"b") == Set(2)
        assert await client.read("k") == Found(2, b"b")

    play(tmp_path, story)


def test_lost_majority_is_said_and_the_change_may_have_been_made(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client(QUICK)
        await client.charter()
        await system.down("store-1")
        system.stores["store-2"].silent = True
        with pytest.raises(Unavailable, match="may have been made") as raised:
            await client.compare_and_set("k", 0, b"a")
        assert "charter 1 needs 2" in str(raised.value)
        assert "store-1 (not connected)" in str(raised.value)
        assert "store-2 (" in str(raised.value)

    play(tmp_path, story)


def test_operation_goes_on_when_the_majority_is_back(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        await client.charter()
        await system.down("store-1", "store-2")
        change = asyncio.create_task(client.compare_and_set("k", 0, b"a"))
        system.asked("store-3")
        while Say.CHARTER not in system.stores["store-3"].asked:  # noqa: ASYNC110  # a fruitless round is over
            await asyncio.sleep(0)
        await system.up("store-1")
        assert await change == Set(1)

    play(tmp_path, story)


def test_contenders_count_up_without_a_gap_G2(tmp_path: Path) -> None:
    async def count(client: RegisterClient, name: str) -> list[int]:
        made = []
        while len(made) < 4:
            found = await client.read("k")
            outcome = await client.compare_and_set("k", found.version, f"{name} {found.version}".encode())
            if isinstance(outcome, Set):
                made.append(outcome.version)
        return made

    async def story(system: System) -> None:
        made = await asyncio.gather(*(count(system.client(), f"c{k}") for k in range(3)))
        assert sorted(version for versions in made for version in versions) == list(range(1, 13))

    play(tmp_path, story)


def test_emptied_acceptor_is_no_vote_and_is_taken_in_by_a_new_charter(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        assert await client.compare_and_set("k", 0, b"a") == Set(1)
        await system.empty("store-1")
        assert await client.read("k") == Found(1, b"a")
        system.stores["store-2"].silent = True
        with pytest.raises(Unavailable, match=r"store-1 .*does not vote under charter 1"):
            await client.compare_and_set("k", 1, b"b", timeout_ms=1_500)
        system.stores["store-2"].silent = False
        moved = await client.move_charter(FOUNDERS, ["k"])
        assert moved.number == 2
        assert moved.acceptors["store-1"] == "another id of store-1"
        await system.down("store-2")
        assert (await client.read("k")).version in (1, 2)

    play(tmp_path, story)


def test_charter_moves_and_every_client_follows_G11(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        mover, old = system.client(), system.client()
        assert await old.compare_and_set("k", 0, b"a") == Set(1)
        await system.down("store-1")
        moved = await mover.move_charter(("store-2", "store-3", "store-4"), ["k", "absent"])
        assert moved == Charter(2, {name: f"id of {name}" for name in ("store-2", "store-3", "store-4")})
        assert await mover.move_charter(("store-2", "store-3", "store-4"), ["k", "absent"]) == moved
        assert await old.compare_and_set("k", 1, b"b") == Set(2)
        assert await old.charter() == moved
        await system.down("store-2")  # of charter 1 only store-3 is left: what was moved is served all the same
        fresh = system.client()
        assert await fresh.read("k") == Found(2, b"b")
        assert await fresh.compare_and_set("absent", 0, b"c") == Set(1)

    play(tmp_path, story)


@pytest.mark.parametrize("told", [False, True])
def test_move_that_its_mover_did_not_finish_is_finished_by_another(tmp_path: Path, told: bool) -> None:
    async def story(system: System) -> None:
        dead, other = system.client(), system.client()
        assert await dead.compare_and_set("k", 0, b"a") == Set(1)
        present = await dead.charter()
        chosen = Charter(2, {name: f"id of {name}" for name in STORES[1:]})
        assert await dead._operate(CHARTER_KEY, CompareAndSet(0, encode_charter(chosen)), pinned=1) == Set(1)
        if told:
            await dead._tell(present, chosen)
        assert await other.move_charter(FOUNDERS[:2], ["k"]) in (chosen, Charter(3, {n: f"id of {n}" for n in FOUNDERS[:2]}))
        assert await system.client().read("k") == Found(1, b"a")
        assert system.stores["store-4"].acceptor.charter is not None

    play(tmp_path, story)


def test_two_movers_make_one_charter_each_number(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        first, second = system.client(), system.client()
        await first.compare_and_set("k", 0, b"a")
        moved = await asyncio.gather(first.move_charter(STORES[1:], ["k"]), second.move_charter(STORES[:1], ["k"]))
        by_number = {charter.number: charter for charter in moved}
        assert all(by_number[charter.number] == charter for charter in moved)
        assert await system.client().read("k") == Found(1, b"a")

    play(tmp_path, story)


def test_charter_survives_a_restart_of_all_stores(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        client = system.client()
        await client.compare_and_set("k", 0, b"a")
        await client.move_charter(STORES[1:], ["k"])
        await system.down(*STORES)
        await system.up(*STORES)
        assert await client.read("k") == Found(1, b"a")
        assert (await system.client().charter()).number == 2

    play(tmp_path, story)


def test_data_beyond_its_bound_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    async def story(system: System) -> None:
        with pytest.raises(ProtocolError, match="at most"):
            await system.client().compare_and_set("k", 0, bytes(DEFAULT_LIMITS.register_data_bytes_max + 1))
        assert system.asked("store-1") == []

    play(tmp_path, story)
