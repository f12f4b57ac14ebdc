"""Where all connections of a client begin.

Owns which attempts are under way, and who waits for his turn. It must not know what a connection is for. Rules:

1. All attempts of a client keep one pace (``backoff``): without an answer there are no more of them for many partitions and
   places than for one.
2. At one place one attempt at a time is under way. Whoever wants to go to the same place waits for it; if it fails, it has
   failed for him, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.wire import Connection, OnClosed, OnMessage, connect
from trilogue.client.connecting.backoff import Pace


class Dialer:
    """One client's. `attempts` counts the connections that it has begun."""

    def __init__(self, limits: Limits, jitter: Callable[[], float]) -> None:
        self.attempts = 0
        self._limits = limits
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._turn = asyncio.Lock()  # it is fair: first come, first served
        self._answer = asyncio.Event()  # the next one
        self._under_way: dict[str, asyncio.Future[TrilogueError | None]] = {}

    async def connect(self, address: str, token: str, *, on_message: OnMessage, on_closed: OnClosed) -> Connection:
        """As `wire.connect`, when it is this one's turn."""
        while (ahead := self._under_way.get(address)) is not None:
            if (error := await asyncio.shield(ahead)) is not None:
                raise type(error)(*error.args)
        mine = self._under_way[address] = self._loop.create_future()
        failure: TrilogueError | None = None
        try:
            await self._wait_for_turn()
            self.attempts += 1
            return await connect(address, token, on_message=on_message, on_closed=on_closed, limits=self._limits)
        except TrilogueError as error:
            failure = error
            raise
        finally:
            del self._under_way[address]
            mine.set_result(failure)

    def answered(self) -> None:
        """Somebody of the system has answered: the network is there, and those who wait may go."""
        self._pace.answered()
        if self._turn.locked():
            self._answer.set()

    async def _wait_for_turn(self) -> None:
        async with self._turn:
            while (left_s := self._pace.wait_s(self._loop.time())) > 0:
                self._answer.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._answer.wait()
            self._pace.began(self._loop.time(), self._jitter())
