"""The shell around ``charter_watch``: looks at the register's stores, and moves its charter when that is decided (design §7).

Owns the looking, over the Supervisor's own streams. It must not decide anything, and holds no truth: a move that it did not
finish is finished by whoever needs it, or by the next Supervisor. Rules:

1. Every `LOOK_S`, and when a store has just been connected, each store is asked for its charter and its acceptor.
2. After every change of the charter all keys are moved to it, whoever changed it: then those of the one before may be lost.
3. A store that knows less than the others is told: one that comes back from the dead must not vote under a charter that was
   given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.register.charter import founders_of
from trilogue.actors.pump import spawn
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.actors.wire import Connection
from trilogue.cluster.on_ray.charter_watch import CharterWatch

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0
MOVE_MS: Final = 3_000
"""How long a look may work on a move before it looks again: less than what counts as sleep (``charter_watch``, rule 4)."""


class RegisterKeeper:
    """Made inside a running event loop. `connection_to` gives the stream to a store, or None while there is none."""

    def __init__(
        self, stores: Sequence[str], keys: Iterable[str], limits: Limits, connection_to: Callable[[str], Connection | None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys = tuple(keys)
        self._register = RegisterClient(founders_of(stores), connection_to, limits, others=lambda: stores)
        self._watch = CharterWatch(stores, self._now_ms())
        self._news = asyncio.Event()
        self._settled = 0
        self._moves = 0
        self._problem = ""
        spawn(self._run(), "the register's keeper")

    def connected(self) -> None:
        """A store has just been connected: look at once."""
        self._news.set()

    def status(self) -> dict[str, Any]:
        """How the register is, for people. `may_lose`: how many of its stores at once; below 0, it stands still."""
        health = self._watch.health
        if health is None:
            return {"charter": 0, "stores": [], "answering": [], "gone": {}, "may_lose": None, "lost": False,
                    "moves": 0, "problem": self._problem}  # fmt: skip
        return {
            "charter": health.charter.number,
            "stores": list(health.charter.acceptors),
            "answering": list(health.answering),
            "gone": health.gone,
            "may_lose": health.may_lose,
            "lost": health.lost,
            "moves": self._moves,
            "problem": self._problem,
        }

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                await self._look()
                self._problem = ""
            except (Unavailable, ProtocolError) as error:
                self._problem = str(error)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        charter, acceptors, behind = await self._register.survey()
        if charter is None:
            return  # it is founded by who needs it
        await self._register.tell(charter, behind)
        wanted = self._watch.look(charter, acceptors, self._now_ms())
        if wanted is not None:
            assert self._watch.health is not None
            logger.info("the register moves from charter %d to %s: %s", charter.number, wanted, self._watch.health.gone)
            charter = await self._register.move_charter(wanted, self._keys, timeout_ms=MOVE_MS)
            self._moves += 1
            self._settled = charter.number
            self._watch.look(charter, acceptors, self._now_ms())
        elif charter.number != self._settled and self._watch.health is not None and self._watch.health.may_lose >= 0:
            await self._register.settle(self._keys, timeout_ms=MOVE_MS)
            self._settled = charter.number
