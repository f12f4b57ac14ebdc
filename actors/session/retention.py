"""What a partition's writer lets go by itself: messages that are too old, or more than may be kept (issue 4).

Owns when it looks, and what it puts into the log. It must not know how stores give disk space back (``store.thinner``), nor
which messages a frame holds: a store is asked up to where the log is old. Rules:

1. A floor is put into the log and counts from its commit on, as a trim by hand does. It never goes down.
2. A store measures age by the log's own times (`stored_at_us`), from this writer's clock back: a clock that jumps ahead lets
   messages go too early by as much as it jumps, never the order or the numbers.
3. While no store answers nothing is let go; the next look does it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from trilogue.actors.config import SessionConfig
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.messages import FLOOR, Floor
from trilogue.actors.session.reads import Note

KEEP_ALL_BYTES = 1 << 62


class Retention:
    """The retention of one partition, while this process owns it."""

    def __init__(self, config: SessionConfig, old: Callable[[int, int], Awaitable[int]], note: Note) -> None:
        """`old` asks a store: (before_us, bytes) -> the frame up to which the log is too old, or too long."""
        self._keep_us, self._keep_bytes = config.keep_s * 1_000_000, config.keep_bytes
        self._look_s = config.limits.retention_look_ms / 1000
        self._old, self._note = old, note
        self.floor = 0

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to do."""
        return not self._keep_us and not self._keep_bytes

    async def run(self) -> None:
        """Look, again and again, for as long as the process lives."""
        while not self.keeps_all:
            await asyncio.sleep(self._look_s)
            await self.look(time.time_ns() // 1000)

    async def look(self, now_us: int) -> None:
        """Let go what is too old, or too much, at this moment."""
        before_us = now_us - self._keep_us if self._keep_us else 0
        try:
            upto = await self._old(before_us, self._keep_bytes or KEEP_ALL_BYTES)
        except Unavailable:
            return
        if upto > self.floor:
            await self._note(Floor(FLOOR, upto, now_us))
            self.floor = upto
