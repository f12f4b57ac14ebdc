"""The stores that a client reads from directly, when it reads much.

Owns one connection for each such store, and for a reading, which stores it asks and how far. It must not know what is read.
Rules:

1. Which stores hold a partition, and up to which frame it is committed, its SessionActor says: at the beginning of a reading,
   and again when none of them was of use. Nothing above what it named is asked for.
2. A store that was lost, that refuses or whose answer is not accepted gives way to the next one; when all did, all are tried
   again, until the request's deadline.
3. A store from which nothing at all has come for `hedge_ms` since it was asked is not waited for: the next one is asked, too,
   and the first answer counts (``actors.hedge``). It is asked last for `request_timeout_ms` then, by all of the client's
   readings, so that not each page pays for it. One whose large answer is on its way is not silent.
4. There is one connection to a store, whoever wants it at the same time, and none is left when the client has closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from trilogue.actors.hedge import first_answer
from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.backoff import reconnect_after_s
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.routes import Routes
from trilogue.client.sending.refusals import error_of, is_final


class Stores:
    """Connections to stores, by address: made when they are first used, kept until the client ends."""

    def __init__(self, routes: Routes, limits: Limits) -> None:
        self._routes = routes
        self._connections: dict[str, Connection] = {}
        self._making: dict[str, asyncio.Task[Connection]] = {}
        self._silent_until: dict[str, float] = {}
        self._silence_s = limits.request_timeout_ms / 1000
        self.patience_s = limits.hedge_ms / 1000

    async def connection(self, address: str) -> Connection:
        """The connection to the store there. Raises `Unavailable`, `NotAuthorized` or `ProtocolError`."""
        known = self._connections.get(address)
        if known is not None and not known.closed:
            return known
        making = self._making.get(address)
        if making is None:
            making = self._making[address] = asyncio.create_task(self._make(address), name="trilogue-store")
            making.add_done_callback(partial(self._made, address))
        return await asyncio.shield(making)  # others wait for it, too

    async def _make(self, address: str) -> Connection:
        made = await self._routes.dialer.connect(address, self._routes.token, on_message=_ignore, on_closed=_ignore)
        self._routes.dialer.answered()
        self._connections[address] = made
        return made

    def _made(self, address: str, making: asyncio.Task[Connection]) -> None:
        del self._making[address]
        if not making.cancelled():
            making.exception()  # those who wait for it hear of it; when nobody does any more, it is no news

    def is_silent(self, address: str) -> bool:
        """Whether the store there has said nothing when it was asked, not long ago."""
        return self._silent_until.get(address, 0.0) > asyncio.get_running_loop().time()

    def note_silent(self, address: str) -> None:
        """The store there says nothing."""
        self._silent_until[address] = asyncio.get_running_loop().time() + self._silence_s

    def close(self) -> None:
        """End all of them."""
        for making in self._making.values():
            making.cancel()
        for connection in self._connections.values():
            connection.close("the client closes")


class Holder:
    """The stores that hold the whole partition; those of that `host` are asked first, if there are any."""

    def __init__(self, connections: Connections, stores: Stores, partition: int, host: str | None = None) -> None:
        self._connections, self._stores, self._partition, self._host = connections, stores, partition, host
        self._named_last: tuple[int, list[str]] | None = None
        self._failed: set[str] = set()
        self._naming = asyncio.Lock()

    async def ask(self, accept: Callable[[Any], str | None], say: Say, *items: Any) -> Any:
        """Ask until `accept` has nothing against the answer (it says what, otherwise). Raises `Unavailable` at the deadline."""
        deadline, attempt = self._connections.deadline(), 0
        loop = asyncio.get_running_loop()
        while True:
            named = None
            try:
                named = await self._known()
                asking = _Asking(self._stores, self._partition, named[0], say, items, self._failed)
                address, answer = await asking.first(self._in_turn(named[1]))
                why = accept(answer)
                if why is None:
                    return answer
                self._failed.add(address)
            except Refused as refused:
                if is_final(refused.code) and refused.code != Code.CORRUPT:  # another store may have it whole
                    raise error_of(refused.code, refused.text) from None
                why = refused.text
            except Unavailable as error:
                why = str(error)
            if named is self._named_last:  # several requests may find out the same
                self._named_last = None
            attempt += 1
            if loop.time() >= deadline:
                raise Unavailable(f"{say.name} of partition {self._partition} failed {attempt} times: {why}; try again later")
            await asyncio.sleep(reconnect_after_s(attempt, 0.0))

    def _in_turn(self, addresses: list[str]) -> list[str]:
        """In which order they are asked."""
        if self._failed.issuperset(addresses):
            self._failed.clear()

        def rank(address: str) -> tuple[bool, bool, bool]:
            is_elsewhere = self._host is not None and address.rpartition(":")[0] != self._host
            return address in self._failed, self._stores.is_silent(address), is_elsewhere

        return sorted(addresses, key=rank)

    async def addresses(self) -> list[str]:
        """Where the stores are that hold the partition. Raises `Unavailable` when none does, for a while."""
        return (await self._named())[1]

    async def _known(self) -> tuple[int, list[str]]:
        async with self._naming:
            if self._named_last is None:
                self._named_last = await self._named()
            return self._named_last

    async def _named(self) -> tuple[int, list[str]]:
        """Up to which frame the partition is committed, and the stores that hold it."""
        upto, addresses = 0, list[str]()

        def accept(answer: Any) -> str | None:
            nonlocal upto, addresses
            match answer:
                case [int(committed), [*named]] if all(type(address) is str for address in named):
                    upto, addresses = committed, [*dict.fromkeys(named)]
                    return None if named else f"no store holds all of partition {self._partition} now"
            raise ProtocolError("HOLDERS was answered in an unknown shape")

        await self._connections.ask_partition(self._partition, accept, Say.HOLDERS, self._partition)
        return upto, addresses


class _Asking:
    """One question to the stores of a partition, the next one being asked when the others fail or are silent."""

    def __init__(self, stores: Stores, partition: int, upto: int, say: Say, items: tuple[Any, ...], failed: set[str]) -> None:
        self._stores, self._question, self._failed = stores, (say, partition, upto, *items), failed
        self._begun: list[str] = []
        self._waited_for: dict[Connection, int] = {}  # what was heard from each before it was asked

    async def first(self, addresses: list[str]) -> tuple[str, Any]:
        """The first answer, and whose it is. Raises `Unavailable` or `Refused` when all fail."""
        address, answer = await first_answer((partial(self._ask, one) for one in addresses), self._stores.patience_s)
        for silent in self._begun[: self._begun.index(address)]:
            if silent not in self._failed:
                self._stores.note_silent(silent)
        return address, answer

    async def _ask(self, address: str) -> tuple[str, Any]:
        await self._until_silent()
        self._begun.append(address)
        connection = None
        try:
            connection = await self._stores.connection(address)
            self._waited_for[connection] = connection.heard
            return address, await connection.request(*self._question)
        except (Unavailable, Refused):
            self._failed.add(address)
            raise
        finally:
            if connection is not None:
                self._waited_for.pop(connection, None)

    async def _until_silent(self) -> None:
        """Wait as long as anything comes from those who were asked before."""
        before = dict(self._waited_for)
        while any(before.get(one) != one.heard for one in self._waited_for):
            before = {one: one.heard for one in self._waited_for}
            await asyncio.sleep(self._stores.patience_s)


def _ignore(*_: Any) -> None:
    """What a store says on its own, and when its connection ends, matters to nobody: the next request finds out."""
