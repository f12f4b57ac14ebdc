"""The connection to one partition's SessionActor, made anew for as long as the client lives.

Owns when to connect, ping, give up and look elsewhere, and what goes over the connection. It must not know how lanes or readers
decide: ``flow``, ``answers`` and ``subscription`` do. Rules:

1. One connection at a time, one attempt at a time; what comes from an older connection is ignored.
2. The first attempt after a loss is made at once, the next ones after the ladder's waits; each asks where the partition is now.
3. A connection with something outstanding that is silent for 2 s is pinged, and given up 4 s later.
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
from trilogue.client.connecting.backoff import DEAD_AFTER_S, PING_AFTER_S, reconnect_after_s
from trilogue.client.connecting.routes import Routes
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.lanes import Lane

logger = logging.getLogger(__name__)

TICK_S = 1.0
TICK_MIN_S = 0.02
PROVEN_AFTER_S = 5.0


class Reader(Protocol):
    """A subscription, as its link sees it."""

    def delivered(self, runs: list[Any]) -> None:
        """Committed runs came."""

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
        self._connecting = False
        self._proven = False  # something useful came over this connection
        self._gone = asyncio.Event()
        self._readable = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = self._heard_at = self._pinged_at = 0.0
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
            self._arm(TICK_S)

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
            self._arm(TICK_S)
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
            self._arm(TICK_S)
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
        tasks = [task for task in (self._task, self._draining, self._pinging) if task is not None]
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
        fresh = False
        while True:
            await asyncio.sleep(reconnect_after_s(attempt, self._jitter()))
            attempt += 1
            self._proven = False
            try:
                address = await self._routes.address_of(self.partition, fresh)
                fresh = True
                opened_at = self._loop.time()
                await self._connect(address)
            except TrilogueError as error:
                self.trouble = str(error)
                continue
            except Exception as error:
                logger.exception("partition %d: connecting failed", self.partition)
                self.trouble = f"{type(error).__name__}: {error}"
                continue
            await self._gone.wait()
            if self._proven or self._loop.time() - opened_at > PROVEN_AFTER_S:
                attempt = 0

    async def _connect(self, address: str) -> None:
        self._gone.clear()
        self._connecting = True
        self._heard_at, self._pinged_at = self._loop.time(), 0.0
        try:
            connection = await connect(
                address, self._routes.token, on_message=self._on_message, on_closed=self._on_closed, limits=self._limits
            )
        except BaseException:
            self._lost("")
            raise
        finally:
            self._connecting = False
        if self.connection is None:
            self.connection = connection
            self.trouble = f"{address} has not said yet that it is open"
        self._arm(TICK_S)

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
                _, number, runs = message
                reader = self.readers.get(number)
                if reader is not None:
                    self._proven = True
                    reader.delivered(runs)
            case Say.REFUSED:
                _, epoch, runs = message
                if self._answers.refused(self._heard_at, epoch, runs):
                    self.move(connection, f"{connection.peer} does not have partition {self.partition} any more")
                self.pump()
                self._on_settled()
            case Say.ENDED:
                _, number, code, text = message
                reader = self.readers.pop(number, None)
                if reader is not None:
                    reader.ended(code, text)
            case Say.OPEN:
                _, partition, epoch, _, body_bytes_max = message
                self._on_open(connection, partition, epoch, body_bytes_max)
            case Say.WAITING:
                _, _, text, readable = message
                self.trouble = f"it waits: {text}"
                self.flow.closed()
                if readable:
                    self._readable.set()
                else:
                    self._readable.clear()

    def _on_open(self, connection: Connection, partition: int, epoch: int, body_bytes_max: int) -> None:
        if partition != self.partition:
            self.move(connection, f"{connection.peer} has partition {partition} now")
        elif not self.flow.opened(epoch, body_bytes_max):
            self.move(connection, f"{connection.peer} has lost partition {partition} to epoch {self.flow.epoch}")
        else:
            self.trouble = ""
            self._readable.set()
            self.pump()

    # ------------------------------------------------------------------ time

    def _arm(self, delay_s: float) -> None:
        """Look at the ladder and at the connection's life after `delay_s`, if anything is outstanding."""
        if self._timer is None and self.connection is not None and (self.flow.busy or self.readers or self.requests):
            self._timer_due = self._loop.time() + delay_s
            self._timer = self._loop.call_at(self._timer_due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        connection, now = self.connection, self._loop.time()
        if connection is None:
            return
        if now - self._timer_due > TICK_S:  # this process was stopped or busy: the silence says nothing of the other side
            self._heard_at, self._pinged_at = now, 0.0
        if self._pinged_at > self._heard_at and now - self._pinged_at >= DEAD_AFTER_S - PING_AFTER_S:
            connection.close(f"silent for {now - self._heard_at:.0f} s")
            return
        if now - self._heard_at >= PING_AFTER_S and self._pinged_at <= self._heard_at:
            self._pinged_at = now
            self._pinging = asyncio.create_task(self._ping(connection))
        delay_s = TICK_S
        if connection.writable:
            due = self.flow.overdue(now)
            self.pump()
            if due is not None:
                delay_s = min(max(due - now, TICK_MIN_S), TICK_S)
        self._arm(delay_s)

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
