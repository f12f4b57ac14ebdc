"""The stores that a client reads from directly, when it reads much.

Owns one connection for each such store, and for a reading, which store it asks and how far. It must not know what is read.
Rules:

1. Which stores hold a partition, and up to which frame it is committed, its SessionActor says: at the beginning of a reading,
   and again when a store was of no use. Nothing above what it named is asked for.
2. A store that was lost, that refuses or whose answer is not accepted gives way to the next one; when all did, all are tried
   again, until the request's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.backoff import reconnect_after_s
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.routes import Routes
from trilogue.client.sending.refusals import error_of, is_final


class Stores:
    """Connections to stores, by address: made when they are first used, kept until the client ends."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._connections: dict[str, Connection] = {}

    async def connection(self, address: str) -> Connection:
        """The connection to the store there. Raises `Unavailable`, `NotAuthorized` or `ProtocolError`."""
        known = self._connections.get(address)
        if known is not None and not known.closed:
            return known
        made = await self._routes.dialer.connect(address, self._routes.token, on_message=_ignore, on_closed=_ignore)
        self._routes.dialer.answered()
        self._connections[address] = made
        return made

    def close(self) -> None:
        """End all of them."""
        for connection in self._connections.values():
            connection.close("the client closes")


class _Place(NamedTuple):
    address: str
    connection: Connection
    upto: int  # the last frame that is known to be committed


class Holder:
    """A store that holds the whole partition, another one when that one fails; one of that `host` first, if there is one."""

    def __init__(self, connections: Connections, stores: Stores, partition: int, host: str | None = None) -> None:
        self._connections, self._stores, self._partition, self._host = connections, stores, partition, host
        self._at: _Place | None = None
        self._failed: set[str] = set()
        self._finding = asyncio.Lock()

    async def ask(self, accept: Callable[[Any], str | None], say: Say, *items: Any) -> Any:
        """Ask until `accept` has nothing against the answer (it says what, otherwise). Raises `Unavailable` at the deadline."""
        deadline, attempt = self._connections.deadline(), 0
        loop = asyncio.get_running_loop()
        while True:
            at = None
            try:
                at = await self._place()
                answer = await at.connection.request(say, self._partition, at.upto, *items)
                why = accept(answer)
                if why is None:
                    return answer
            except Refused as refused:
                if is_final(refused.code) and refused.code != Code.CORRUPT:  # another store may have it whole
                    raise error_of(refused.code, refused.text) from None
                why = refused.text
            except Unavailable as error:
                why = str(error)
            self._leave(at)
            attempt += 1
            if loop.time() >= deadline:
                raise Unavailable(f"{say.name} of partition {self._partition} failed {attempt} times: {why}; try again later")
            await asyncio.sleep(reconnect_after_s(attempt, 0.0))

    def _leave(self, place: _Place | None) -> None:
        """This store was of no use; several requests may find that out."""
        if place is not None and place is self._at:
            self._failed.add(place.address)
            self._at = None

    async def _place(self) -> _Place:
        async with self._finding:
            if self._at is None or self._at.connection.closed:
                self._at = await self._find()
            return self._at

    async def addresses(self) -> list[str]:
        """Where the stores are that hold the partition. Raises `Unavailable` when none does, for a while."""
        return (await self._named())[1]

    async def _find(self) -> _Place:
        upto, addresses = await self._named()
        if self._host is not None:
            addresses.sort(key=lambda address: address.rpartition(":")[0] != self._host)
        if not (left := [address for address in addresses if address not in self._failed]):
            self._failed.clear()
        address = (left or addresses)[0]
        try:
            return _Place(address, await self._stores.connection(address), upto)
        except Unavailable:
            self._failed.add(address)
            raise

    async def _named(self) -> tuple[int, list[str]]:
        """Up to which frame the partition is committed, and the stores that hold it."""
        upto, addresses = 0, list[str]()

        def accept(answer: Any) -> str | None:
            nonlocal upto, addresses
            match answer:
                case [int(committed), [*named]] if all(type(address) is str for address in named):
                    upto, addresses = committed, named
                    return None if named else f"no store holds all of partition {self._partition} now"
            raise ProtocolError("HOLDERS was answered in an unknown shape")

        await self._connections.ask_partition(self._partition, accept, Say.HOLDERS, self._partition)
        return upto, addresses


def _ignore(*_: Any) -> None:
    """What a store says on its own, and when its connection ends, matters to nobody: the next request finds out."""
