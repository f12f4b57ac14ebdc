"""What a peer may send to an actor: anything malformed ends its connection, and never the actor (design §12)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors import pump
from trilogue.actors.config import SessionConfig, StoreConfig
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.session import actor as session_actor
from trilogue.actors.session.actor import SessionActor
from trilogue.actors.store import actor as store_actor
from trilogue.actors.store.actor import StoreActor
from trilogue.actors.wire import connect

DEADLINE_S = 30
HUGE = 2**63

MALFORMED: list[list[Any]] = [
    [Say.SUBMIT], [Say.SUBMIT, 5], [Say.SUBMIT, None], [Say.SUBMIT, [5]], [Say.SUBMIT, {}], [Say.SUBMIT, [], 1],
    [Say.SUBMIT, [["s", "a", 1, [1], ["text"]]]], [Say.GIVE_UP], [Say.GIVE_UP, 5], [Say.GIVE_UP, [5]],
    [Say.GIVE_UP, [["s", "a", 0]]], [Say.CREDIT], [Say.CREDIT, 1, 0], [Say.CREDIT, 1, HUGE, 1], [Say.CREDIT, "1", 1, 1],
    [Say.CREDIT, 1, 1, -1], [Say.CREDIT, 1, 1, HUGE], [Say.SUBSCRIBE, 1, 1, [5], 1, 1], [Say.SUBSCRIBE, 1, 1, [["s"]], 1, 1],
    [999], [999, 1], [Say.DELIVER, [1], []], [Say.STORED, 0, 1, 1, 1], [-1, -1], [Say.UNSUBSCRIBE], [Say.HISTORY],
    [Say.HISTORY, "x"], [Say.APPEND],
    [Say.APPEND, 0, 1, "w", []], [Say.APPEND, 0, 1, "w", [5]], [Say.APPEND, "0", 1, "w", [b""]],
    [Say.FENCE, 1, 0, 0, "w", "a"], [Say.FENCE, 1, -1, 1, "w", "a"], [Say.FENCE, 1, 99, 1, "w", "a"], [Say.FENCE, 1],
    [Say.FRAMES, 1, "0", 1, 1], [Say.RUNS, 1, 0], [Say.RECALL, 1, 0, 0, "s", "a", 1], [Say.INSPECT, 1],
    [Say.STATES, 1, 0, 0], [Say.STATES, 1, 0, 0, [5]], [Say.STATES, 1, 0, 0, [["s", [], 1]]],
    [Say.STATES, 1, 0, 0, [["s", [1], []]]],
    [Say.OPEN, 0, 1, 3, 5], [Say.WAITING, 0, "x"], [Say.TAKE], [Say.TAKE, 1], [Say.TAKE, 1, 0], [Say.TAKE, 1, 1, 0],
    [Say.TAKE, 1, -1, 0], [Say.TAKE, 1, "0", 0], [Say.TAKE, 1, 0, None], [Say.TAKE, 1, 0, 0, 0], [Say.JOIN],
    [Say.JOIN, 1, 0, 1, "w"],
    [Say.JOIN, 1, 0, 1, "w", "a", 1, 2, -1, []], [Say.JOIN, 1, 0, 1, "w", "a", 1, 2, 0, [5]], [Say.FILL, 1, 0, 1, "w"],
    [Say.FILL, 1, 0, 1, "w", [5]], [Say.HEARD, 1], [Say.HEARD, 1, "0"], [Say.HEARD, 1, 99], [Say.PREPARE, 1], [Say.ACCEPT, 1],
    [Say.PREPARE, 1, 1, 5, 1, "p"], [Say.PREPARE, 1, "1", "k", 1, "p"], [Say.ACCEPT, 1, 1, "k", 1, "p", 5],
    [Say.ACCEPT, 1, 1, "k", HUGE, "p", [1, b"", False]], [Say.FOUND, 1], [Say.FOUND, 1, 1, 5], [Say.FOUND, 1, 1, {"s": 5}],
    [Say.CHARTER, 1, 1], [Say.REPAIR, 1], [Say.REPAIR, 1, 0, 1, "w", [5]], [Say.DAMAGED, 1], [Say.DAMAGED, 1, "0"],
]  # fmt: skip


class NobodyIsThere:
    """An address book in which no store can be found."""

    async def address_of(self, name: str) -> str:
        raise Unavailable(f"{name} is not there")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons for which the process would have ended."""
    found: list[str] = []
    monkeypatch.setattr(pump, "end_process", found.append)
    monkeypatch.setattr(session_actor, "settle_process", lambda: None)
    monkeypatch.setattr(store_actor, "settle_process", lambda: None)
    return found


async def bombard(address: str, ends: list[str]) -> None:
    """Every malformed message, each on a connection of its own; the actor answers a PING after each."""
    for message in MALFORMED:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        bad = await connect(
            address,
            "token",
            on_message=lambda *_: None,
            on_closed=lambda _, reason, ended=ended: ended.done() or ended.set_result(reason),
        )
        bad.send(message)
        pings = asyncio.ensure_future(bad.request(Say.PING))
        await asyncio.wait([ended, pings], return_when=asyncio.FIRST_COMPLETED)
        assert ends == [], f"{message} ended the process"
        bad.close()
        await asyncio.wait([pings])
        pings.exception()
        good = await connect(address, "token", on_message=lambda *_: None, on_closed=lambda *_: None)
        assert (await good.request(Say.PING))[0] in ("session", "store")
        good.close()


def run(work: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(bounded())


def test_malformed_message_never_ends_a_session_actor(ends: list[str]) -> None:
    async def work() -> None:
        config = SessionConfig(
            name="session-0", partitions=1, cluster_id="c", log_id=7, stores=("store-1", "store-2", "store-3"), copies=3,
            min_copies=3, token="token", listen="127.0.0.1:0",
        )  # fmt: skip
        actor = SessionActor(config, NobodyIsThere())
        address = await actor.ready()
        await bombard(address, ends)
        supervisor = await connect(address, "token", on_message=lambda *_: None, on_closed=lambda *_: None)
        await supervisor.request(Say.TAKE, 0, 0)
        assert (await supervisor.request(Say.PING))[2] == 0, "it is no spare any more"
        await bombard(address, ends)
        actor._open = True  # what it says no to before it is open is another path
        await bombard(address, ends)

    run(work)


def test_malformed_message_never_ends_a_store(ends: list[str], tmp_path: Path) -> None:
    interval = sys.getswitchinterval()

    async def work() -> None:
        config = StoreConfig(
            name="store-1", directory=str(tmp_path / "store-1"), cluster_id="c", log_id=7, partitions=4, token="token",
            listen="127.0.0.1:0", allow_tmpfs=True,
        )  # fmt: skip
        actor = StoreActor(config)
        await bombard(await actor.ready(), ends)

    run(work)
    assert sys.getswitchinterval() == interval
