"""A bug ends the process; what the network does, and what a peer does wrong, does not (design §3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from trilogue.actors import pump

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reasons: list[str] = []
    monkeypatch.setattr(pump, "end_process", reasons.append)
    return reasons


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class Peer(asyncio.Protocol):
    def __init__(self, fails_with: BaseException) -> None:
        self.fails_with = fails_with
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        raise self.fails_with

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def _a_byte_reaches(fails_with: BaseException) -> None:
    loop = asyncio.get_running_loop()
    pump.end_on_bugs()
    peer = Peer(fails_with)
    server = await loop.create_server(lambda: peer, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"x")
        await asyncio.wait_for(peer.lost, 10)
        writer.close()


def test_a_bug_in_a_callback_of_a_connection_ends_the_process(ended: list[str], run: Run) -> None:
    run(_a_byte_reaches(KeyError("a bug")))
    assert ended == ["KeyError: 'a bug'"]


def test_an_error_of_the_network_does_not_end_the_process(ended: list[str], run: Run) -> None:
    run(_a_byte_reaches(ConnectionResetError("gone")))
    assert ended == []


def test_a_bug_in_a_timer_ends_the_process(ended: list[str], run: Run) -> None:
    async def main() -> None:
        pump.end_on_bugs()
        asyncio.get_running_loop().call_soon(lambda: [][0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert len(ended) == 1
    assert ended[0].startswith("IndexError")


def test_a_background_task_that_dies_ends_the_process(ended: list[str], run: Run) -> None:
    async def dies() -> None:
        raise ValueError("a bug")

    async def main() -> None:
        task: Any = pump.spawn(dies(), "what it does")
        await asyncio.wait({task})
        await asyncio.sleep(0)

    run(main())
    assert ended == ["the task what it does died: ValueError: a bug"]
