"""The connection to one partition's SessionActor, made anew for as long as the client lives.

Owns when to connect and to look elsewhere, and what goes over the connection. It must not know how lanes or readers
decide: ``flow``, ``answers`` and ``subscription`` do. Rules:

1. One connection at a time, one attempt at a time; what comes from an older connection is ignored.
2. After a loss it asks where the partition is now: at once, then after the ladder's waits, until a newer writer is known; to
   that it connects without waiting. The route that was lost is tried again only when nothing newer has appeared for a while:
   what listens there may be another process, which owns nothing. Each newer writer starts the ladder anew.
3. What time does to a connection that was made stands in ``pulse``. An attempt that hangs is left when the partition is
   elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from trilogue.actors.protocol.errors import ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.vocabulary import ACKED, SUBMIT, Say
from trilogue.actors.wire import Connection
from trilogue.client.connecting.backoff import LOOK_AFTER_S, OLD_ROUTE_AFTER_S, reconnect_after_s
from trilogue.client.connecting.pulse import Pulse
from trilogue.client.connecting.routes import Route, Routes
from trilogue.client.reading.delivery import Delivery, delivery_of
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.lanes import Lane

logger = logging.getLogger(__name__)

PROVEN_AFTER_S = 5.0


class Reader(Protocol):
    """A subscription, as its link sees it."""

    def delivered(self, delivery: Delivery) -> None:
        """Committed runs came; others may have got the same."""

    def ended(self, code: int, text: str, *gone: Any) -> None:
        """Nothing more comes under this number. `gone` is what TRIMMED adds: a session, and its first message now."""

    def lost(self) -> None:
        """The connection is gone."""


class Link:
    """One partition's connection. `on_settled` is called after answers were taken in, `on_news` when it goes well or ill."""

    def __init__(
        self,
        answers: Answers,
        routes: Routes,
        jitter: Callable[[], float],
        on_settled: Callable[[], None],
        on_news: Callable[[], None],
    ) -> None:
        self.flow = answers.flow
        self.partition = answers.flow.partition
        self.connection: Connection | None = None
        self.readers: dict[int, Reader] = {}
        self.route: Route | None = None  # of this connection, or of the last one
        self.requests = 0  # how many wait for an answer on this link
        self.trouble = "not connected yet"
        self.tried = False  # it was open once, or the first attempt has failed
        self.flow.send_alone = self._send_alone
        self._answers = answers
        self._routes = routes
        self._jitter = jitter
        self._on_settled = on_settled
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._connecting = False
        self._proven = False  # something useful came over this connection
        self._gone = asyncio.Event()
        self._readable = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._pulse = Pulse(self, routes)
        self.flow.jitter = jitter()
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
        if self._pulse.timer is None:
            self._pulse.arm()

    def _send_alone(self, lane: Lane) -> bool:
        """As `pump`, for a lane that holds the only message that waits anywhere. False: it has to take the usual way."""
        connection = self.connection
        if connection is None or not connection.writable:
            return False
        run = self.flow.take_alone(lane, self._loop.time())
        if run is None:
            return False
        connection.send([SUBMIT, [run]])
        if self._pulse.timer is None:
            self._pulse.arm()
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
            self._pulse.arm()
            answer = await connection.request(say, *items)
        finally:
            self.requests -= 1
        self._proven = True
        return answer

    def move(self, connection: Connection | None, why: str) -> None:
        """This SessionActor does not have the partition any more: look where it is (unless that was done already)."""
        if connection is not None and connection is self.connection:
            connection.close(why)
            self._say(why)

    def why(self) -> str:
        """Why nothing goes out now, and what to do."""
        return f"partition {self.partition} does not answer yet: {self.trouble} (`trilogue status` says more)"

    def _say(self, trouble: str) -> None:
        """What is wrong now; nothing: ""."""
        self.trouble = trouble
        self.tried = True
        self._on_news()

    async def close(self) -> None:
        """End the connection and all that belongs to it."""
        tasks = [task for task in (self._task, self._draining, *self._pulse.tasks()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.connection is not None:
            self.connection.close("the client closes")
        self._pulse.end()

    # ------------------------------------------------------------------ the connection's life

    async def _run(self) -> None:
        attempt = 0
        lost_at = 0.0
        while True:
            if await self._routes.other(self.partition, self.route, reconnect_after_s(attempt, self._jitter())):
                attempt = 0
            attempt += 1
            is_new = useful = self._proven = False
            try:
                route = await self._next_route(lost_at)
                if route is None:
                    continue
                is_new, self.route = route != self.route, route
                await self._connect(route)
                opened_at = self._loop.time()
                await self._gone.wait()
                useful = self._proven or self._loop.time() - opened_at > PROVEN_AFTER_S
            except TrilogueError as error:
                self._say(str(error))
            except Exception as error:
                logger.exception("partition %d: connecting failed", self.partition)
                self._say(f"{type(error).__name__}: {error}")
            if useful:
                attempt = 0
            elif is_new:
                attempt = 1
            if useful or is_new:
                lost_at = self._loop.time()

    async def _next_route(self, lost_at: float) -> Route | None:
        """Where to connect now. None: only where the connection was lost just now, which is not worth it yet."""
        if self._routes.writers.get(self.partition) in (None, self.route):
            await self._routes.refresh()
        route = self._routes.writers.get(self.partition)
        if route is None:
            raise Unavailable(f"partition {self.partition} has no SessionActor yet: `trilogue status` says what it waits for")
        if route == self.route and self._loop.time() - lost_at < OLD_ROUTE_AFTER_S:
            return None
        return route

    async def _connect(self, route: Route) -> None:
        self._gone.clear()
        self._connecting = True
        self._pulse.begin()
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
        self._pulse.arm()

    async def _reach(self, route: Route) -> Connection:
        """A connection to that writer. Raises `Unavailable` also when it hangs and the partition is elsewhere meanwhile."""
        address = route.address
        connecting = asyncio.create_task(
            self._routes.dialer.connect(address, self._routes.token, on_message=self._on_message, on_closed=self._on_closed)
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
        self._readable.clear()
        self.flow.closed()
        for reader in list(self.readers.values()):
            reader.lost()
        self.readers.clear()
        self._pulse.end()
        self._gone.set()
        self._say(trouble or self.trouble)

    # ------------------------------------------------------------------ what comes

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        if connection is not self.connection:
            if self.connection is not None or not self._connecting:
                return
            self.connection = connection  # it speaks before `connect` has returned
        now = self._pulse.alive.heard_at = self._loop.time()
        try:
            if message[0] == ACKED:
                _, epoch, copies, runs = message
                self._answers.acked(now, epoch, copies, runs)
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
                if self._answers.refused(self._pulse.alive.heard_at, epoch, runs):
                    self.move(connection, f"{connection.peer} does not have partition {self.partition} any more")
                self.pump()
                self._on_settled()
            case Say.ENDED:
                _, number, code, text, *gone = message
                ended = self.readers.pop(number, None)
                if ended is not None:
                    ended.ended(code, text, *gone)
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
            if self.route is None or epoch > self.route.epoch:  # who told the way knew less than the SessionActor itself
                self.route = Route(epoch, connection.peer)
                self._routes.note(partition, self.route)
            self._routes.dialer.answered()
            self._say("")
            self._readable.set()
            self.pump()

    def _on_waiting(self, connection: Connection, partition: int, text: str, readable: bool) -> None:
        if partition != self.partition:
            self.move(connection, f"{connection.peer} does not have partition {self.partition}: {text}")
            return
        self._routes.dialer.answered()
        self._say(f"it waits: {text}")
        self.flow.closed()
        if readable:
            self._readable.set()
        else:
            self._readable.clear()
        self._pulse.arm()

    async def _pump_when_drained(self, connection: Connection) -> None:
        try:
            await connection.drained()
        finally:
            self._draining = None
        self.pump()
