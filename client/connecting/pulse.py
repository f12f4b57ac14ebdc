"""What time does to a link's connection: signs of life, the ladder of what was sent, doubts.

Owns the link's timers. It must not know what goes over the connection, or how the next one is made. Rules:

1. A silent connection is pinged, and a dead one closed, as ``keepalive`` says: also when nobody uses it.
2. While an answer is due and the connection is silent, others are asked where the partition is (every 300 ms), and it is left
   at once when that is elsewhere. While the SessionActor waits, they are asked with each ping.
3. The ladder of the link's flow is looked at when it is due, and not later than after a second.
4. No timer runs on a connection with nothing outstanding, but the one that looks every few seconds whether it lives.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.backoff import LOOK_AFTER_S
from trilogue.client.connecting.keepalive import ANSWER_S, IDLE_PING_AFTER_S, KeepAlive, Sign
from trilogue.client.connecting.routes import Routes

if TYPE_CHECKING:
    from trilogue.client.connecting.link import Link

TICK_S = 1.0
TICK_MIN_S = 0.02


class Pulse:
    """The timers of one link. `alive` is that of its present connection."""

    def __init__(self, link: Link, routes: Routes) -> None:
        self.alive = KeepAlive(0.0)
        self.timer: asyncio.TimerHandle | None = None
        self._link = link
        self._routes = routes
        self._loop = asyncio.get_running_loop()
        self._due = self._ladder_due = 0.0
        self._idle: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """A connection is being made."""
        self.alive = KeepAlive(self._loop.time())

    def arm(self) -> None:
        """Look at the connection's life soon, and at the ladder when it is due, if anything is outstanding."""
        self._arm(LOOK_AFTER_S)

    def _arm(self, after_s: float) -> None:
        if self._link.connection is None:
            return
        if self._idle is None:
            self._idle = self._loop.call_later(IDLE_PING_AFTER_S, self._on_idle)
        if self.timer is None and (self._outstanding or self.alive.asked):
            now = self._loop.time()
            if self._ladder_due <= now:
                self._ladder_due = now + TICK_S
            self._due = min(now + after_s, self._ladder_due)
            self.timer = self._loop.call_at(self._due, self._tick)

    def end(self) -> None:
        """The connection is gone."""
        self._stop_looking()
        for timer in (self.timer, self._idle):
            if timer is not None:
                timer.cancel()
        self.timer = self._idle = None

    def tasks(self) -> list[asyncio.Task[None]]:
        """What has to be ended with the link."""
        return [task for task in (self._pinging, self._looking) if task is not None]

    # ------------------------------------------------------------------ inside

    @property
    def _outstanding(self) -> bool:
        """Whether something is to come from the other side."""
        link = self._link
        return bool(link.flow.busy or link.readers or link.requests or not link.flow.is_open)

    def _tick(self) -> None:
        self.timer = None
        link, now, alive = self._link, self._loop.time(), self.alive
        connection = link.connection
        if connection is None:
            return
        if now - self._due > TICK_S:  # this process was stopped or busy: the silence says nothing of the other side
            alive.begin_anew(now)
        if not self._look_alive(connection, now):
            return
        if not self._in_doubt(now):
            self._stop_looking()
        elif self._looking is None:
            self._looking = asyncio.create_task(self._leave_if_elsewhere(connection))
        if now >= self._ladder_due:
            due = link.flow.overdue(now) if connection.writable else None
            self._ladder_due = now + TICK_S if due is None else min(max(due, now + TICK_MIN_S), now + TICK_S)
        left_s = LOOK_AFTER_S - (now - alive.heard_at)
        self._arm(left_s if left_s >= TICK_MIN_S else LOOK_AFTER_S)
        link.pump()

    def _on_idle(self) -> None:
        self._idle = None
        connection, now = self._link.connection, self._loop.time()
        if connection is not None and self._look_alive(connection, now):
            left_s = self.alive.heard_at + IDLE_PING_AFTER_S - now
            self._idle = self._loop.call_later(max(left_s, TICK_S), self._on_idle)
            self.arm()

    def _look_alive(self, connection: Connection, now: float) -> bool:
        """Ping a silent connection, close a dead one. False: it was closed."""
        sign = self.alive.look(now, self._outstanding)
        if sign is Sign.DEAD:
            connection.close(f"silent for {now - self.alive.heard_at:.0f} s")
            return False
        if sign is Sign.PING:
            self._pinging = asyncio.create_task(self._ping(connection))
        return True

    def _in_doubt(self, now: float) -> bool:
        """Whether the silence is reason to ask others where the partition is."""
        link, alive = self._link, self.alive
        if link.flow.in_flight_messages or link.requests:
            return now - alive.heard_at >= LOOK_AFTER_S
        if not alive.asked:
            return False
        return not link.flow.is_open or now - alive.pinged_at >= LOOK_AFTER_S

    async def _leave_if_elsewhere(self, connection: Connection) -> None:
        link = self._link
        assert link.route is not None
        try:
            await self._routes.elsewhere(link.partition, link.route, LOOK_AFTER_S, 0.0)
        finally:
            self._looking = None
        silent = self._loop.time() - self.alive.heard_at >= LOOK_AFTER_S
        if connection is link.connection and (silent or not link.flow.is_open):
            link.move(connection, f"{connection.peer} does not answer, and partition {link.partition} is elsewhere now")

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _ping(self, connection: Connection) -> None:
        alive = self.alive
        try:
            await connection.request(Say.PING, timeout_ms=int((ANSWER_S + TICK_S) * 1000))
        except (Unavailable, Refused):
            return
        if connection is self._link.connection:
            alive.heard_at = self._loop.time()
