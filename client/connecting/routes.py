"""Where partitions are: asked of whoever answers.

Owns the known addresses, what they last said, and the connections that only ask. It must not know lanes, messages or how the
first addresses were found. Rules:

1. Any actor answers WHERE; all addresses that were ever named are remembered, up to a bound, so nobody depends on one actor.
2. Of two answers, each partition's writer is the one with the higher epoch. A SessionActor that says OPEN is an answer, too.
3. One look-up runs at a time; whoever wants the same waits for it. It asks a few addresses at the same time and more as time
   goes by, and ends with the first good answer. What the others say later counts too: who is dead or silent delays nobody.
4. Whoever was asked longest ago is asked first: an actor that knows only an old state of things cannot keep a client from
   the others. Nobody is asked twice at the same time.
5. Connections that ask stay open for a while: when a SessionActor was lost, the next look-ups follow in quick succession.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.dialing import Dialer
from trilogue.client.connecting.discovery import Found

ADDRESSES_MAX = 4096
LOOK_UP_GAP_S = 0.01  # between two look-ups of one client, however many partitions it has lost
ASKED_FIRST = 3
STAGGER_S = 0.02
ASKED_AT_ONCE_MAX = 64
WHERE_TIMEOUT_MS = 2_000
KEPT_S = 5.0


class Route(NamedTuple):
    """A partition's writer: which one, and where."""

    epoch: int
    address: str


class Routes:
    """The client's map of the system. `find` is asked again when nobody answers at the addresses that are known."""

    def __init__(self, found: Found, find: Callable[[], Awaitable[Found]], dialer: Dialer) -> None:
        self.token = found.token
        self.addresses: dict[str, None] = dict.fromkeys(found.addresses)  # in the order in which they are asked
        self.cluster: str | None = None
        self.partitions: int | None = None
        self.writers: dict[int, Route] = {}
        self.source = found.source
        self._find = find
        self.dialer = dialer
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None
        self._look_up_at = 0.0
        self._asks: dict[str, asyncio.Task[None]] = {}  # by address; they outlive the look-up that began them
        self._kept: dict[str, Connection] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()  # of the next change of `writers`

    async def refresh(self) -> None:
        """Ask again. Raises `NotAuthorized`, or `Unavailable` when nobody answers; what is known stays known."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._refresh(), name="trilogue-where")
            self._looking.add_done_callback(_heard)
        await asyncio.shield(self._looking)

    def note(self, partition: int, route: Route) -> None:
        """Somebody says that this is the partition's writer."""
        known = self.writers.get(partition)
        if known is None or (route.epoch >= known.epoch and route != known):
            self.writers[partition] = route
            self._news.set()
            self._news = asyncio.Event()

    async def other(self, partition: int, than: Route | None, within_s: float) -> bool:
        """Wait until another writer than this one is known, but not longer than that, and ask nobody. True: one is."""
        try:
            async with asyncio.timeout(within_s):
                while self.writers.get(partition) in (None, than):
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def elsewhere(self, partition: int, than: Route, every_s: float, first_s: float) -> None:
        """Return as soon as another writer than this one is known; ask for one after `first_s`, then again and again."""
        wait_s = first_s
        while not await self.other(partition, than, wait_s):
            wait_s = every_s
            with contextlib.suppress(TrilogueError):
                await self.refresh()

    async def close(self) -> None:
        """Stop asking."""
        tasks = [task for task in (self._looking, *self._asks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hang_up()

    # ------------------------------------------------------------------ one look-up

    async def _refresh(self) -> None:
        await asyncio.sleep(max(self._look_up_at - self._loop.time(), 0.0))
        self._look_up_at = self._loop.time() + LOOK_UP_GAP_S
        try:
            await self._ask_around()
        except (Unavailable, NotAuthorized, ProtocolError) as error:
            try:
                found = await self._find()  # perhaps the system is elsewhere now
            except TrilogueError:
                raise error from None
            if found.token == self.token and set(found.addresses) <= set(self.addresses):
                raise
            if found.token != self.token:
                self._hang_up()
            self.token = found.token
            self.addresses = dict.fromkeys([*found.addresses, *self.addresses])
            await self._ask_around()

    async def _ask_around(self) -> None:
        """Return when there is a good answer, whoever gives it; raise when everybody was asked in vain."""
        waiting = [address for address in self.addresses if address not in self._asks]
        more = ASKED_FIRST
        trouble: TrilogueError | None = None
        while True:
            for address in waiting[: min(more, ASKED_AT_ONCE_MAX - len(self._asks))]:
                waiting.remove(address)
                self._begin(address)
            if not self._asks:
                raise trouble or Unavailable('no address is known: give address="HOST:PORT"')
            done, _ = await asyncio.wait(
                self._asks.values(), timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            more = max(len(done), 1)
            errors = [task.exception() for task in done]
            for error in errors:
                if error is None:
                    continue
                if not isinstance(error, TrilogueError):
                    raise error
                if trouble is None or _weight(error) > _weight(trouble):
                    trouble = error
            if None in errors:
                return

    def _begin(self, address: str) -> None:
        self.addresses.pop(address, None)
        self.addresses[address] = None  # at the end now
        task = self._asks[address] = asyncio.create_task(self._ask(address), name=f"trilogue-ask-{address}")
        task.add_done_callback(lambda _: self._asks.pop(address, None))
        task.add_done_callback(_heard)

    async def _ask(self, address: str) -> None:
        connection = self._kept.get(address)
        if connection is None:
            connection = await self.dialer.connect(address, self.token, on_message=self._on_message, on_closed=self._on_closed)
            self._kept[address] = connection
        try:
            self._learn(address, await connection.request(Say.WHERE, timeout_ms=WHERE_TIMEOUT_MS))
        except Refused as refused:
            raise Unavailable(f"{address} cannot say where the sessions are: {refused.text}") from None
        except BaseException:
            connection.close()  # silent, or not of this system
            raise
        finally:
            self._keep_for_a_while()

    def _learn(self, address: str, answer: Any) -> None:
        match answer:
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
        self.dialer.answered()
        others = [a for a in answer.get("addresses") or () if isinstance(a, str)]
        for partition, writer in writers.items():
            match writer:
                case [int(epoch), str(where)]:
                    others.append(where)
                    self.note(partition, Route(epoch, where))
        new = [where for where in others if where not in self.addresses]
        self.addresses = dict.fromkeys([*new, *self.addresses][:ADDRESSES_MAX])

    # ------------------------------------------------------------------ the connections that ask

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        """What a SessionActor says to everybody: a spare that was asked says here that it has taken a partition over."""
        match message:
            case [Say.OPEN, int(partition), int(epoch), *_] if connection.peer_info.get("cluster") == self.cluster:
                self.note(partition, Route(epoch, connection.peer))

    def _on_closed(self, connection: Connection, _reason: str) -> None:
        if self._kept.get(connection.peer) is connection:
            del self._kept[connection.peer]

    def _keep_for_a_while(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.call_later(KEPT_S, self._hang_up)

    def _hang_up(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        for connection in list(self._kept.values()):
            connection.close()


def _weight(error: TrilogueError) -> int:
    """Which of several errors a person should read first: one that waiting does not heal."""
    return 2 if isinstance(error, NotAuthorized) else 1 if isinstance(error, ProtocolError) else 0


def _heard(task: asyncio.Task[None]) -> None:
    """Whoever asked may be gone: then nobody else has to look at the task's error."""
    if not task.cancelled():
        task.exception()
