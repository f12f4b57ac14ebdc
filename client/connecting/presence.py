"""How a client stands with the system, for people: online, connecting or offline, and since when.

Owns that word, its time, and who watches it. It must not know connections: it is told what is wrong, and whether anybody is
reached. Rules:

1. *Online*: nothing is known to be wrong. *Connecting*: something is, for less than `OFFLINE_AFTER_S`, or with somebody of the
   system at the other end of a connection. *Offline*: nobody has been reached for that long.
2. A watcher is given what holds when it asks: changes that it was too slow for are left out, and nothing queues.
3. `since_s` is wall-clock time, for show only: nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Literal, NamedTuple

OFFLINE_AFTER_S = 2.0

Standing = Literal["online", "connecting", "offline"]


class ClientState(NamedTuple):
    """How a client stands with the system. `waiting` counts messages without an outcome; `trouble` says what is wrong."""

    standing: Standing
    since_s: float  # Unix time
    waiting: int
    trouble: str


class Presence:
    """One client's. `waiting` is asked whenever somebody looks."""

    def __init__(self, waiting: Callable[[], int], trouble: str) -> None:
        self._waiting = waiting
        self._standing: Standing = "offline"
        self._since_s = time.time()
        self._trouble = trouble
        self._ended = False
        self._changed: asyncio.Event | None = None  # the next change; None: nobody waits for it
        self._timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> ClientState:
        """What holds now."""
        return ClientState(self._standing, self._since_s, self._waiting(), self._trouble)

    def update(self, trouble: str, reached: bool) -> None:
        """What is wrong now (nothing: ""), and whether a connection to anybody of the system is there."""
        if self._ended:
            return
        if reached or not trouble:
            self._stop_timer()
        elif self._timer is None and self._standing != "offline":
            self._timer = asyncio.get_running_loop().call_later(OFFLINE_AFTER_S, self._not_reached)
        if not trouble:
            self._become("online", "")
        elif reached or self._standing == "online":
            self._become("connecting", trouble)
        else:
            self._become(self._standing, trouble)

    def begin(self) -> None:
        """The client opens."""
        self._become("connecting", self._trouble)
        self._timer = asyncio.get_running_loop().call_later(OFFLINE_AFTER_S, self._not_reached)

    def end(self, trouble: str) -> None:
        """The client is closed: those who watch are told so, and then no more."""
        self._stop_timer()
        self._become("offline", trouble)
        self._ended = True
        self._wake()

    async def watch(self) -> AsyncGenerator[ClientState, None]:
        """What holds now, and then each time that another thing does."""
        seen: tuple[Standing, float, str] | None = None
        while True:
            now = (self._standing, self._since_s, self._trouble)
            if now != seen:
                seen = now
                yield self.state
            elif self._ended:
                return
            else:
                self._changed = self._changed or asyncio.Event()
                await self._changed.wait()

    def _become(self, standing: Standing, trouble: str) -> None:
        if standing != self._standing:
            self._standing, self._since_s = standing, time.time()
        elif trouble == self._trouble:
            return
        self._trouble = trouble
        self._wake()

    def _not_reached(self) -> None:
        self._timer = None
        self._become("offline", self._trouble)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
