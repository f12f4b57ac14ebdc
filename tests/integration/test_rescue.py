"""`trilogue rescue` over real connections: stores and SessionActors as processes, without Ray (G2, G8, G9, G11)."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from local_system.bare import NEW, TOKEN, BareSystem
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.messages import Ack
from trilogue.actors.protocol.ranges import decode_record, record_key
from trilogue.actors.protocol.register.charter import ERA, founders_of
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.cluster.commands.rescue import Facts, Rescue, Wanted
from trilogue.cluster.commands.rescue_plan import is_nobody
from trilogue.cluster.commands.streams import connection_to

from .conftest import run

COPIES = 3


def say(system: BareSystem, *bodies: bytes) -> list[Ack]:
    """Send these; their acks."""

    async def send() -> list[Ack]:
        async with system.client("alice") as client:
            return await asyncio.gather(*(client.post("room", body) for body in bodies))

    acks: list[Ack] = run(send())
    return acks


def read(system: BareSystem) -> list[bytes]:
    """All that was said."""

    async def history() -> list[bytes]:
        async with system.client("bob") as client:
            return [message.body for message in await client.history("room", limit=1000)]

    bodies: list[bytes] = run(history())
    return bodies


def rescue(system: BareSystem, *lost: str, min_copies: int = COPIES, accept_loss: bool = False) -> tuple[Facts, dict[str, Any]]:
    """Look and carry out, as the command does after `yes`."""

    async def work() -> tuple[Facts, dict[str, Any]]:
        async with AsyncExitStack() as stack:
            connections = {}
            for name, address in zip(system.stores, system.addresses, strict=False):
                try:
                    connections[name] = await stack.enter_async_context(connection_to(address, TOKEN))
                except Unavailable:
                    continue
            one = Rescue(Wanted(system.stores, 1, COPIES, min_copies), connections, lost)
            facts = await one.look()
            return facts, await one.carry_out(facts, lambda _: None, accept_loss=accept_loss)

    done: tuple[Facts, dict[str, Any]] = run(work())
    return done


def lose(system: BareSystem, *names: str) -> None:
    """Their processes and their directories are gone."""
    system.kill(*names)
    for name in names:
        shutil.rmtree(system.root / name)


def started(root: Path, stores: int = 4, min_copies: int = COPIES) -> BareSystem:
    system = BareSystem(root, stores=stores, sessions=2, record=NEW._replace(copies=COPIES, min_copies=min_copies))
    system.start(*system.stores, *system.sessions)
    system.take("session-0")
    return system


def known_epoch(system: BareSystem) -> int:
    """The highest epoch that store-1 knows."""
    return int(system.ask("store-1", Say.INSPECT, 0)[0])


def record_of(system: BareSystem) -> Any:
    """The partition's record in the register."""

    async def found() -> Any:
        async with AsyncExitStack() as stack:
            connections = {}
            for name, address in zip(system.stores, system.addresses, strict=False):
                try:
                    connections[name] = await stack.enter_async_context(connection_to(address, TOKEN))
                except Unavailable:
                    continue
            client = RegisterClient(founders_of(system.stores), connections.get, others=lambda: system.stores)
            value = await client.read(record_key(0))
            assert value.data is not None
            return decode_record(value.data)

    return run(found())


def test_two_of_three_keepers_lost_for_good_lose_nothing_and_the_partition_opens_on_what_is_there_g2_g9_g11(
    tmp_path: Path,
) -> None:
    with started(tmp_path) as system:
        acks = say(system, b"1", b"2", b"3")
        assert [(ack.seq, ack.copies) for ack in acks] == [(1, 3), (2, 3), (3, 3)]
        former = system.status("session-0")["epoch"]
        lose(system, "store-2", "store-3")
        system.start("store-2", "store-3")  # as Ray does: new stores under the old names
        for name in ("store-2", "store-3"):
            system.until(name, state="open")

        facts, report = rescue(system, "store-2", "store-3")
        assert facts.whole
        assert (facts.votes, facts.left, facts.fresh) == (("store-1",), ("store-1", "store-4"), ("store-2", "store-3"))
        assert report["ok"]
        assert report["charter"] == ERA
        assert report["keepers"] == ["store-1", "store-4", "store-2"]

        system.take("session-1", epoch=known_epoch(system))
        status = system.until("session-1", state="open", copies=3)
        assert status["epoch"] > former
        assert read(system) == [b"1", b"2", b"3"]
        assert [(ack.seq, ack.copies) for ack in say(system, b"4")] == [(4, 3)]
        assert read(system) == [b"1", b"2", b"3", b"4"]
        with pytest.raises(Unavailable, match="nothing to rescue"):
            rescue(system)


def test_without_enough_stores_the_rescued_partition_waits_for_them_g1_g11(tmp_path: Path) -> None:
    with started(tmp_path, stores=3) as system:
        say(system, b"1", b"2")
        lose(system, "store-2", "store-3")
        facts, report = rescue(system, "store-2", "store-3")
        assert facts.whole
        assert report["keepers"] == ["store-1"]
        last = record_of(system).ranges[-1]
        assert [is_nobody(member) for member in last.members] == [False, True]

        system.take("session-1", epoch=known_epoch(system))
        system.until("session-1", epoch=lambda epoch: epoch > 0, state=lambda state: state.startswith("waiting"))
        system.start("store-2", "store-3")
        system.until("session-1", state="open", copies=3)
        assert read(system) == [b"1", b"2"]
        assert [(ack.seq, ack.copies) for ack in say(system, b"3")] == [(3, 3)]


def test_a_healthy_register_is_not_touched_and_a_store_that_has_its_memory_is_not_lost(tmp_path: Path) -> None:
    with started(tmp_path) as system:
        say(system, b"1")
        for lost in ((), ("store-4",)):
            with pytest.raises(Unavailable, match="nothing to rescue: 3 of the 3"):
                rescue(system, *lost)
        with pytest.raises(Unavailable, match="store-2 answers, and has its memory"):
            rescue(system, "store-2")
        system.kill("store-3")
        with pytest.raises(Unavailable, match="nothing to rescue: 2 of the 3"):
            rescue(system, "store-3")
        system.kill("store-2")
        with pytest.raises(Unavailable, match="store-3 does not answer: a rescue needs every store"):
            rescue(system, "store-2")
        assert known_epoch(system) == system.status("session-0")["epoch"], "nobody was fenced"


def test_an_emptied_store_that_is_not_said_to_be_lost_is_noticed_g8(tmp_path: Path) -> None:
    with started(tmp_path) as system:
        say(system, b"1")
        lose(system, "store-2", "store-3")
        system.start("store-2", "store-3")
        for name in ("store-2", "store-3"):
            system.until(name, state="open")
        with pytest.raises(Unavailable, match="store-3 is another store than the one that was there"):
            rescue(system, "store-2")


def test_as_many_lost_as_a_message_has_copies_may_have_lost_it_g8(tmp_path: Path) -> None:
    with started(tmp_path, min_copies=2) as system:
        say(system, b"1")
        lose(system, "store-2", "store-3")

        async def facts() -> Facts:
            async with AsyncExitStack() as stack:
                named = dict(zip(system.stores, system.addresses, strict=False))
                connections = {
                    name: await stack.enter_async_context(connection_to(named[name], TOKEN)) for name in ("store-1", "store-4")
                }
                return await Rescue(Wanted(system.stores, 1, COPIES, 2), connections, ("store-2", "store-3")).look()

        assert not run(facts()).whole
        _, report = rescue(system, "store-2", "store-3", min_copies=2, accept_loss=True)
        assert not report["whole"]
        system.take("session-1", epoch=known_epoch(system))
        system.until("session-1", state="open", copies=2)
        assert read(system) == [b"1"]


def test_a_lost_store_that_comes_back_after_all_has_no_vote_and_no_say_g9(tmp_path: Path) -> None:
    with started(tmp_path) as system:
        say(system, b"1")
        system.kill("store-2", "store-3")
        aside = [(system.root / name, system.root / f"{name}.aside") for name in ("store-2", "store-3")]
        for here, there in aside:
            here.rename(there)
        system.start("store-2", "store-3")
        for name in ("store-2", "store-3"):
            system.until(name, state="open")
        rescue(system, "store-2", "store-3")
        system.take("session-1", epoch=known_epoch(system))
        system.until("session-1", state="open", copies=3)
        say(system, b"2")

        system.kill("store-2", "store-3")
        for here, there in aside:
            shutil.rmtree(here)
            there.rename(here)
        system.start("store-2", "store-3")
        system.until("session-1", state="open", copies=3)
        assert [ack.seq for ack in say(system, b"3")] == [3]
        assert read(system) == [b"1", b"2", b"3"]


def test_a_rescue_that_ended_half_way_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        """The command was killed here."""

    async def killed(*_: Any) -> Any:
        raise Killed

    with started(tmp_path) as system:
        say(system, b"1")
        lose(system, "store-2", "store-3")
        system.start("store-2")  # it is among the keepers of the new charter
        system.until("store-2", state="open")
        with monkeypatch.context() as patch:
            patch.setattr(RegisterClient, "restore", killed)
            with pytest.raises(Killed):
                rescue(system, "store-2", "store-3")
        facts, report = rescue(system, "store-2", "store-3")
        assert facts.resumed
        assert report["charter"] == ERA
        assert "store-2" in report["keepers"]
        system.take("session-1", epoch=known_epoch(system))
        system.until("session-1", state="open", copies=3)
        assert read(system) == [b"1"]
