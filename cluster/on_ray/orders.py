"""The shell around ``assignment``: asks the SessionActors how they are, and gives the orders that are decided there.

Owns the asking: every SessionActor each `supervisor_ping_ms`, every store when it is connected and when an order failed. It
must not decide anything. Invariants: a lost stream is acted upon in the same turn of the event loop; an order that gets no
answer is a refused one; whatever an actor answers, however strange, ends nothing here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection
from trilogue.actors.wire import Refused as RequestRefused
from trilogue.cluster.on_ray.assignment import (
    Answered,
    Assignment,
    Begun,
    Event,
    Heard,
    Lost,
    Order,
    Refused,
    Tick,
)

TICKS_A_PING: Final = 2


class Orders:
    """Made inside a running event loop. `connection_to` gives the stream to an actor, or None while there is none."""

    def __init__(
        self,
        sessions: Sequence[str],
        stores: Sequence[str],
        partitions: int,
        limits: Limits,
        connection_to: Callable[[str], Connection | None],
    ) -> None:
        self._sessions, self._stores = frozenset(sessions), tuple(stores)
        self._limits = limits
        self._connection_to = connection_to
        self._loop = asyncio.get_running_loop()
        self._assignment = Assignment(sessions, stores, partitions, limits, self._now_ms())
        spawn(self._tick(), "the Supervisor's clock")

    def connected(self, name: str, connection: Connection) -> None:
        """There is a stream to the actor `name`: begin to ask it."""
        if name in self._sessions:
            spawn(self._ping(name, connection), f"pings of {name}")
        else:
            spawn(self._ask_new_store(name, connection), f"question to {name}")

    def lost(self, name: str) -> None:
        """The stream to `name` was lost: if it served a partition, a spare is ordered now."""
        if name in self._sessions:
            self._handle(Lost(name, self._now_ms()))

    def status(self) -> dict[str, Any]:
        """Who serves what, and who is there to take over. Times are those of this machine's clock."""
        serving, now_ms = self._assignment.serving(), self._now_ms()
        return {
            "partitions": {
                number: {
                    "actor": one.owner or None,
                    "epoch": one.epoch,
                    "state": one.state,
                    "since": _clock_time(now_ms - one.since_ms),
                    "failovers": one.failovers,
                }
                for number, one in enumerate(serving)
            },
            "spare_sessions": self._assignment.spares(),
            "failovers": sum(one.failovers for one in serving),
        }

    # ------------------------------------------------------------------ events

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._limits.supervisor_ping_ms / 1000 / TICKS_A_PING)
            self._handle(Tick(self._now_ms()))

    async def _ping(self, name: str, connection: Connection) -> None:
        while not connection.closed:
            try:
                answer = await connection.request(Say.PING, timeout_ms=self._limits.supervisor_silent_ms)
            except (Unavailable, RequestRefused):
                answer = None
            if connection.closed:
                return  # what it said last is overtaken by its loss
            match answer:
                case ["session", str(), int(partition), int(epoch), str(state)]:
                    self._handle(Answered(name, partition, epoch, state, self._now_ms()))
            await asyncio.sleep(self._limits.supervisor_ping_ms / 1000)

    async def _ask_new_store(self, name: str, connection: Connection) -> None:
        """Ask until it answers: a store that opens its journal refuses."""
        while not connection.closed:
            if await self._ask_store(name, connection):
                return
            await asyncio.sleep(self._limits.supervisor_ping_ms / 1000)

    async def _ask_store(self, name: str, connection: Connection) -> bool:
        try:
            answer = await connection.request(Say.WHERE, timeout_ms=self._limits.supervisor_silent_ms)
            epochs = {int(partition): int(epoch) for partition, (epoch, _) in answer["writers"].items()}
        except (Unavailable, RequestRefused, TypeError, ValueError, KeyError, AttributeError):
            return False
        self._handle(Heard(name, epochs, self._now_ms()))
        return True

    async def _ask_again(self) -> None:
        for store in self._stores:
            if (connection := self._connection_to(store)) is not None:
                await self._ask_store(store, connection)

    async def _order(self, order: Order) -> None:
        name, partition, epoch = order
        try:
            connection = self._connection_to(name)
            if connection is None:
                raise Unavailable("it is not connected")
            await connection.request(Say.TAKE, partition, epoch, timeout_ms=self._limits.supervisor_silent_ms)
        except (Unavailable, RequestRefused) as error:
            self._handle(Refused(name, partition, str(error), self._now_ms()))
        else:
            self._handle(Begun(name, partition, self._now_ms()))

    # ------------------------------------------------------------------ effects

    def _handle(self, event: Event) -> None:
        for effect in self._assignment.handle(event):
            if isinstance(effect, Order):
                spawn(self._order(effect), f"order to {effect.name}")
            else:
                spawn(self._ask_again(), "questions to the stores")


def _clock_time(ago_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago_ms / 1000))
