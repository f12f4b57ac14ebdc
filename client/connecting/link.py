"""The connection to one partition's SessionActor, made anew for as long as the client lives.

Owns when to connect, ping, give up and look elsewhere, and what goes over the connection. It must not know how lanes or readers
decide: ``flow``, ``answers`` and ``subscription`` do. Rules:

1. One connection at a time, one attempt at a time; what comes from an older connection is ignored.
2. After a loss it asks where the partition is now: at once, then after the ladder's waits, until a newer writer is known; to
   that it connects without waiting. The route that was lost is tried again only when nothing newer has appeared for a while:
   what listens there may be another process, which owns nothing. Each newer writer starts the ladder anew.
3. A connection with something outstanding, or not open, that is silent for 2 s is pinged, and given up 4 s later.
4. While an answer is due and the connection is silent, it asks others where the partition is (every 300 ms), and leaves at once
   when that is elsewhere. While the SessionActor waits, it asks with each ping. An attempt that hangs is left in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from trilogue.actors.protocol.errors import ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import ACKED, SUBMIT, Say
from trilogue.actors.wire import Connection, Refused, connect
from trilogue.client.connecting.backoff import (
    DEAD_AFTER_S,
    LOOK_AFTER_S,
    OLD_ROUTE_AFTER_S,
    PING_AFTER_S,
    reconnect_after_s,
)
from trilogue.client.connecting.routes import Route, Routes
from trilogue.client.reading.delivery import Delivery, delivery_of
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.lanes import Lane

logger = logging.getLogger(__name__)

TICK_S = 1.0
TICK_MIN_S = 0.02
PROVEN_AFTER_S = 5.0


class Reader(Protocol):
    """A subscription, as its link sees it."""

    def delivered(self, delivery: Delivery) -> None:
        """Committed runs came; others may have got the same."""

    def ended(self, code: int, text: str) -> None:
        """Nothing more comes under this number."""

    def lost(self) -> None:
        """The connection is gone."""


class Link:
    """One partition's connection. `on_settled` is called after answers were taken in."""

    def __init__(
        self, answers: Answers, routes: Routes, limits: Limits, jitter: Callable[[], float], on_settled: Callable[[], None]
    ) -> None:
        self.flow = answers.flow
        self.partition = answers.flow.partition
        self.connection: Connection | None = None
        self.readers: dict[int, Reader] = {}
        self.requests = 0  # how many wait for an answer on this link
        self.trouble = "not connected yet"
        self.flow.send_alone = self._send_alone
        self._answers = answers
        self._routes = routes
        self._limits = limits
        self._jitter = jitter
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self._route: Route | None = None  # of this connection, or of the last one
        self._connecting = False
        self._proven = False  # something useful came over this connection
        self._gone = asyncio.Event()
        self._readable = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = self._ladder_due = self._heard_at = self._pinged_at = 0.0
        self._task = asyncio.create_task(self._run(), name=f"trilogue-link-{self.partition}")

    # ------------------------------------------------------------------ what the client wants

    def pump(self) -> None:
        """Submit what is waiting, as far as the window and the socket allow."""
        connection = self.connection
        if connection is None:
            return
        flow = self.flow
        while flow.waiting:
            if not connection.writable:
                if self._draining is None:
                    self._draining = asyncio.create_task(self._pump_when_drained(connection))
                break
            taken = flow.take(self._loop.time())
            if taken is None:
                break
            runs, given_up = taken
            if runs:
                connection.send([SUBMIT, runs])
            if given_up:
                connection.send([Say.GIVE_UP, given_up])
        if self._timer is None:
            self._arm(LOOK_AFTER_S)

    def _send_alone(self, lane: Lane) -> bool:
        """As `pump`, for a lane that holds the only message that waits anywhere. False: it has to take the usual way."""
        connection = self.connection
        if connection is None or not connection.writable:
            return False
        run = self.flow.take_alone(lane, self._loop.time())
        if run is None:
            return False
        connection.send([SUBMIT, [run]])
        if self._timer is None:
            self._arm(LOOK_AFTER_S)
        return True

    async def readable(self, deadline: float) -> Connection:
        """The connection, as soon as the SessionActor serves reads: it may be waiting for a store then.

        Raises `Unavailable` at `deadline`, with the reason.
        """
        while True:
            if self.connection is not None and self._readable.is_set():
                return self.connection
            try:
                async with asyncio.timeout_at(deadline):
                    await self._readable.wait()
            except TimeoutError:
                raise Unavailable(self.why()) from None

    async def request(self, connection: Connection, say: Say, *items: Any) -> Any:
        """Ask over `connection`, which `readable` gave. Raises `Refused`, or `Unavailable`."""
        self.requests += 1
        try:
            self._arm(LOOK_AFTER_S)
            answer = await connection.request(say, *items)
        finally:
            self.requests -= 1
        self._proven = True
        return answer

    def move(self, connection: Connection | None, why: str) -> None:
        """This SessionActor does not have the partition any more: look where it is (unless that was done already)."""
        if connection is not None and connection is self.connection:
            connection.close(why)
            self.trouble = why

    def why(self) -> str:
        """Why nothing goes out now, and what to do."""
        return f"partition {self.partition} does not answer yet: {self.trouble} (`trilogue status` says more)"

    async def close(self) -> None:
        """End the connection and all that belongs to it."""
        tasks = [task for task in (self._task, self._draining, self._pinging, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.connection is not None:
            self.connection.close("the client closes")
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------ the connection's life

    async def _run(self) -> None:
        attempt = 0
        lost_at = 0.0
        while True:
            if await self._routes.other(self.partition, self._route, reconnect_after_s(attempt, self._jitter())):
                attempt = 0
            attempt += 1
            is_new = useful = self._proven = False
            try:
                route = await self._next_route(lost_at)
                if route is None:
                    continue
                is_new, self._route = route != self._route, route
                await self._connect(route)
                opened_at = self._loop.time()
                await self._gone.wait()
                useful = self._proven or self._loop.time() - opened_at > PROVEN_AFTER_S
            except TrilogueError as error:
                self.trouble = str(error)
            except Exception as error:
                logger.exception("partition %d: connecting failed", self.partition)
                self.trouble = f"{type(error).__name__}: {error}"
            if useful:
                attempt = 0
            elif is_new:
                attempt = 1
            if useful or is_new:
                lost_at = self._loop.time()

    async def _next_route(self, lost_at: float) -> Route | None:
        """Where to connect now. None: only where the connection was lost just now, which is not worth it yet."""
        if self._routes.writers.get(self.partition) in (None, self._route):
            await self._routes.refresh()
        route = self._routes.writers.get(self.partition)
        if route is None:
            raise Unavailable(f"partition {self.partition} has no SessionActor yet: `trilogue status` says what it waits for")
        if route == self._route and self._loop.time() - lost_at < OLD_ROUTE_AFTER_S:
            return None
        return route

    async def _connect(self, route: Route) -> None:
        self._gone.clear()
        self._connecting = True
        self._heard_at, self._pinged_at = self._loop.time(), 0.0
        try:
            connection = await self._reach(route)
        except BaseException as error:
            said = self.trouble if self.connection is not None else ""
            self._lost("")
            if said and isinstance(error, Unavailable):  # it spoke before `connect` returned, and was left for what it said
                raise Unavailable(said) from None
            raise
        finally:
            self._connecting = False
        if connection.closed:  # since `connect` returned
            self._gone.set()
        elif self.connection is None:
            self.connection = connection
            self.trouble = f"{route.address} has not said yet that it is open"
        self._arm(LOOK_AFTER_S)

    async def _reach(self, route: Route) -> Connection:
        """A connection to that writer. Raises `Unavailable` also when it hangs and the partition is elsewhere meanwhile."""
        address = route.address
        connecting = asyncio.create_task(
            connect(address, self._routes.token, on_message=self._on_message, on_closed=self._on_closed, limits=self._limits)
        )
        moved = asyncio.create_task(self._routes.elsewhere(self.partition, route, LOOK_AFTER_S, LOOK_AFTER_S))
        try:
            await asyncio.wait((connecting, moved), return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise Unavailable(f"{address} does not answer, and partition {self.partition} is elsewhere now")
            return connecting.result()
        finally:
            moved.cancel()
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)

    def _on_closed(self, connection: Connection, reason: str) -> None:
        if connection is self.connection:
            self._lost(f"the connection to {connection.peer} ended: {reason}")

    def _lost(self, trouble: str) -> None:
        self.connection = None
        self.trouble = trouble or self.trouble
        self._readable.clear()
        self.flow.closed()
        for reader in list(self.readers.values()):
            reader.lost()
        self.readers.clear()
        self._stop_looking()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gone.set()

    # ------------------------------------------------------------------ what comes

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        if connection is not self.connection:
            if self.connection is not None or not self._connecting:
                return
            self.connection = connection  # it speaks before `connect` has returned
        self._heard_at = self._loop.time()
        try:
            if message[0] == ACKED:
                _, epoch, copies, runs = message
                self._answers.acked(self._heard_at, epoch, copies, runs)
                self._proven = True
                if self.flow.waiting:
                    self.pump()
                self._on_settled()
            else:
                self._take(connection, message)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise ProtocolError(f"a message {message[:1]} of unknown shape: {error}") from error

    def _take(self, connection: Connection, message: list[Any]) -> None:
        match message[0]:
            case Say.DELIVER:
                _, numbers, raw = message
                readers = [reader for reader in map(self.readers.get, numbers) if reader is not None]
                if readers:
                    self._proven = True
                    delivery = delivery_of(raw)
                    for reader in readers:
                        reader.delivered(delivery)
            case Say.REFUSED:
                _, epoch, runs = message
                if self._answers.refused(self._heard_at, epoch, runs):
                    self.move(connection, f"{connection.peer} does not have partition {self.partition} any more")
                self.pump()
                self._on_settled()
            case Say.ENDED:
                _, number, code, text = message
                ended = self.readers.pop(number, None)
                if ended is not None:
                    ended.ended(code, text)
            case Say.OPEN:
                _, partition, epoch, _, body_bytes_max = message
                self._on_open(connection, partition, epoch, body_bytes_max)
            case Say.WAITING:
                _, partition, text, readable = message
                self._on_waiting(connection, partition, text, readable)

    def _on_open(self, connection: Connection, partition: int, epoch: int, body_bytes_max: int) -> None:
        if partition != self.partition:
            self.move(connection, f"{connection.peer} has partition {partition} now")
        elif not self.flow.opened(epoch, body_bytes_max):
            self.move(connection, f"{connection.peer} has lost partition {partition} to epoch {self.flow.epoch}")
        else:
            if self._route is None or epoch > self._route.epoch:  # who told the way knew less than the SessionActor itself
                self._route = Route(epoch, connection.peer)
                self._routes.note(partition, self._route)
            self.trouble = ""
            self._readable.set()
            self.pump()

    def _on_waiting(self, connection: Connection, partition: int, text: str, readable: bool) -> None:
        if partition != self.partition:
            self.move(connection, f"{connection.peer} does not have partition {self.partition}: {text}")
            return
        self.trouble = f"it waits: {text}"
        self.flow.closed()
        if readable:
            self._readable.set()
        else:
            self._readable.clear()
        self._arm(LOOK_AFTER_S)

    # ------------------------------------------------------------------ time

    def _arm(self, after_s: float) -> None:
        """Look at the connection's life after that time, and at the ladder when it is due, if anything is outstanding."""
        if self._timer is not None or self.connection is None:
            return
        if self.flow.busy or self.readers or self.requests or not self.flow.is_open:
            now = self._loop.time()
            if self._ladder_due <= now:
                self._ladder_due = now + TICK_S
            self._timer_due = min(now + after_s, self._ladder_due)
            self._timer = self._loop.call_at(self._timer_due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        connection, now = self.connection, self._loop.time()
        if connection is None:
            return
        if now - self._timer_due > TICK_S:  # this process was stopped or busy: the silence says nothing of the other side
            self._heard_at, self._pinged_at = now, 0.0
        silent_s = now - self._heard_at
        if self._pinged_at > self._heard_at and now - self._pinged_at >= DEAD_AFTER_S - PING_AFTER_S:
            connection.close(f"silent for {silent_s:.0f} s")
            return
        if silent_s >= PING_AFTER_S and self._pinged_at <= self._heard_at:
            self._pinged_at = now
            self._pinging = asyncio.create_task(self._ping(connection))
        if not self._in_doubt(now):
            self._stop_looking()
        elif self._looking is None:
            self._looking = asyncio.create_task(self._leave_if_elsewhere(connection))
        if now >= self._ladder_due:
            due = self.flow.overdue(now) if connection.writable else None
            self._ladder_due = now + TICK_S if due is None else min(max(due, now + TICK_MIN_S), now + TICK_S)
        left_s = LOOK_AFTER_S - silent_s
        self._arm(left_s if left_s >= TICK_MIN_S else LOOK_AFTER_S)
        self.pump()

    def _in_doubt(self, now: float) -> bool:
        """Whether the silence is reason to ask others where the partition is."""
        if self.flow.in_flight_messages or self.requests:
            return now - self._heard_at >= LOOK_AFTER_S
        if self._pinged_at <= self._heard_at:
            return False
        return not self.flow.is_open or now - self._pinged_at >= LOOK_AFTER_S

    async def _leave_if_elsewhere(self, connection: Connection) -> None:
        route = self._route
        assert route is not None
        try:
            await self._routes.elsewhere(self.partition, route, LOOK_AFTER_S, 0.0)
        finally:
            self._looking = None
        silent = self._loop.time() - self._heard_at >= LOOK_AFTER_S
        if connection is self.connection and (silent or not self.flow.is_open):
            self.move(connection, f"{connection.peer} does not answer, and partition {self.partition} is elsewhere now")

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _ping(self, connection: Connection) -> None:
        try:
            await connection.request(Say.PING, timeout_ms=int(DEAD_AFTER_S * 1000))
        except (Unavailable, Refused):
            return
        if connection is self.connection:
            self._heard_at = self._loop.time()

    async def _pump_when_drained(self, connection: Connection) -> None:
        try:
            await connection.drained()
        finally:
            self._draining = None
        self.pump()
