"""Where partitions are: asked of whoever answers.

Owns the known addresses and what they last said. It must not know lanes, messages or how the first addresses were found. Rules:

1. Any actor answers WHERE; all addresses that were ever named are remembered, up to a bound, so nobody depends on one actor.
2. Of two answers, each partition's writer is the one with the higher epoch.
3. One look-up runs at a time; whoever wants the same waits for it.
4. Whoever was asked longest ago is asked first: an actor that knows only an old state of things cannot keep a client from
   the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, Refused, connect
from trilogue.client.connecting.discovery import Found

ADDRESSES_MAX = 4096
STAGGER_S = 0.05
ASKED_AT_ONCE_MAX = 8
WHERE_TIMEOUT_MS = 2_000


class Routes:
    """The client's map of the system. `find` is asked again when nobody answers at the addresses that are known."""

    def __init__(self, found: Found, find: Callable[[], Awaitable[Found]], limits: Limits) -> None:
        self.token = found.token
        self.addresses: dict[str, None] = dict.fromkeys(found.addresses)  # in the order in which they are asked
        self.cluster: str | None = None
        self.partitions: int | None = None
        self.writers: dict[int, tuple[int, str]] = {}  # partition -> (epoch, address)
        self.source = found.source
        self._find = find
        self._limits = limits
        self._asking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Ask again. Raises `NotAuthorized`, or `Unavailable` when nobody answers; what is known stays known."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._refresh(), name="trilogue-where")
            self._asking.add_done_callback(_heard)
        await asyncio.shield(self._asking)

    async def address_of(self, partition: int, fresh: bool) -> str:
        """The address of the partition's writer. `fresh`: ask, even if an answer is remembered."""
        if fresh or partition not in self.writers:
            await self.refresh()
        if partition not in self.writers:
            raise Unavailable(f"partition {partition} has no SessionActor yet: `trilogue status` says what it waits for")
        return self.writers[partition][1]

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            answer = await self._ask_all()
        except (Unavailable, NotAuthorized, ProtocolError) as error:
            try:
                found = await self._find()  # perhaps the system is elsewhere now
            except TrilogueError:
                raise error from None
            if found.token == self.token and set(found.addresses) <= set(self.addresses):
                raise
            self.token = found.token
            self.addresses = dict.fromkeys([*found.addresses, *self.addresses])
            answer = await self._ask_all()
        self._learn(*answer)

    async def _ask_all(self) -> tuple[str, Any]:
        """The first good answer; the known addresses are asked one after another, without waiting for the slow ones."""
        waiting = list(self.addresses)
        asking: set[asyncio.Task[tuple[str, Any]]] = set()
        trouble: TrilogueError | None = None
        try:
            while waiting or asking:
                if waiting and len(asking) < ASKED_AT_ONCE_MAX:
                    asking.add(asyncio.create_task(self._ask(waiting.pop(0))))
                done, asking = await asyncio.wait(
                    asking, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, TrilogueError):
                        raise error
                    if trouble is None or isinstance(error, NotAuthorized):
                        trouble = error
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise trouble or Unavailable('no address is known: give address="HOST:PORT"')

    async def _ask(self, address: str) -> tuple[str, Any]:
        del self.addresses[address]
        self.addresses[address] = None  # at the end now
        connection = await connect(address, self.token, on_message=_ignore, on_closed=_ignore, limits=self._limits)
        try:
            return address, await connection.request(Say.WHERE, timeout_ms=WHERE_TIMEOUT_MS)
        except Refused as refused:
            raise Unavailable(f"{address} cannot say where the sessions are: {refused.text}") from None
        finally:
            connection.close()

    def _learn(self, address: str, route: Any) -> None:
        match route:
            case {"cluster": str(cluster), "partitions": int(partitions), "writers": dict(writers)}:
                pass
            case _:
                raise ProtocolError(
                    f"{address} answered WHERE in a shape that this version does not know: upgrade the older side"
                )
        if not 0 < partitions <= PARTITIONS_MAX:
            raise ProtocolError(f"{address} speaks of {partitions} partitions: {PARTITIONS_MAX} at most")
        if self.cluster not in (None, cluster) or self.partitions not in (None, partitions):
            raise ProtocolError(f"{address} is another system than the one that this client sends to: open a new Client for it")
        self.cluster, self.partitions = cluster, partitions
        others = [a for a in route.get("addresses") or () if isinstance(a, str)]
        for partition, writer in writers.items():
            match writer:
                case [int(epoch), str(where)]:
                    others.append(where)
                    if epoch >= self.writers.get(partition, (0, ""))[0]:
                        self.writers[partition] = (epoch, where)
        new = [where for where in others if where not in self.addresses]
        self.addresses = dict.fromkeys([*new, *self.addresses][:ADDRESSES_MAX])


def _ignore(_: Connection, __: Any) -> None:
    """Nothing is expected on a connection that only asks."""


def _heard(task: asyncio.Task[None]) -> None:
    """Whoever asked may be gone: then nobody else has to look at the task's error."""
    if not task.cancelled():
        task.exception()
