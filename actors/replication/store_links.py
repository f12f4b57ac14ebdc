"""The connections of one process to all stores (design §6): made, kept, and known by who is at the other end.

Owns one connection a store. It must not know what is said on it. Rules:

1. A store is found by its name and known by its key: (UUID, incarnation). Who answers at an old address and is another store,
   is another store.
2. A lost connection is made again at once, then every `RECONNECT_S`: at the address where it was, and now and then at the one
   that the address book gives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trilogue.actors.config import AddressBook, SessionConfig
from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, Unavailable
from trilogue.actors.protocol.ranges import Member
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection, OnMessage, Refused, connect

RECONNECT_S = 0.1
ASK_AGAIN_ATTEMPTS = 32
"""A store that was restarted has its former address, as a rule, and is there before Ray's directory knows it."""


class StoreLinks:
    """All stores that can be reached now. `start` once."""

    def __init__(
        self,
        config: SessionConfig,
        book: AddressBook,
        on_message: OnMessage,
        on_up: Callable[[Member], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """`on_up` and `on_lost` are told of each connection once; `on_lost` gets the key."""
        self._config, self._book = config, book
        self._on_message, self._on_up, self._on_lost = on_message, on_up, on_lost
        self.by_key: dict[str, Connection] = {}  # for others to read only, as the next one
        self.keys: dict[Connection, str] = {}
        self._by_name: dict[str, Connection] = {}
        self._members: dict[str, Member] = {}
        self._problems: dict[str, str] = {}

    def start(self) -> None:
        """Begin to connect."""
        for store in self._config.stores:
            spawn(self._keep_connected(store), f"connection to {store}")

    @property
    def members(self) -> list[Member]:
        """Who is connected."""
        return list(self._members.values())

    def by_name(self, name: str) -> Connection | None:
        """The connection to the store of this name."""
        return self._by_name.get(name)

    def why_missing(self, name: str) -> str:
        """Why nothing comes from the store of this name."""
        return "it does not answer" if name in self._by_name else self._problems.get(name, "not connected")

    def drop(self, key: str, reason: str) -> None:
        """End the connection: it is made again."""
        if (connection := self.by_key.get(key)) is not None:
            connection.close(reason)

    async def _keep_connected(self, store: str) -> None:
        """Connect to the store, again and again, for as long as this process lives."""
        address = ""
        attempt = 0
        while True:
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            try:
                attempt += 1
                if not address or attempt % ASK_AGAIN_ATTEMPTS == 0:
                    address = await self._book.address_of(store)
                connection, member = await self._connect(store, address, lost)
            except (Unavailable, NotAuthorized, ProtocolError, Refused) as error:
                self._problems[store] = str(error)
                await asyncio.sleep(RECONNECT_S)
                continue
            attempt = 0
            key = member.key
            self.by_key[key] = self._by_name[store] = connection
            self.keys[connection] = key
            self._members[key] = member
            self._problems.pop(store, None)
            self._on_up(member)
            self._problems[store] = await lost
            del self.by_key[key], self.keys[connection], self._by_name[store], self._members[key]
            self._on_lost(key)

    async def _connect(self, store: str, address: str, lost: asyncio.Future[str]) -> tuple[Connection, Member]:
        def on_closed(_: Connection, reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        config = self._config
        connection = await connect(
            address, config.token, on_message=self._on_message, on_closed=on_closed, limits=config.limits
        )
        info: dict[str, Any] = connection.peer_info
        uuid, incarnation = info.get("store"), info.get("incarnation")
        problem = ""
        if info.get("name") != store or info.get("cluster") != config.cluster_id:
            problem = f"{address} is {info.get('name')!r} of cluster {info.get('cluster')!r}, not {store} of this one"
        elif not isinstance(uuid, str) or not isinstance(incarnation, int):
            status = await connection.request(Say.STATUS)
            problem = str(status.get("state", "not open yet"))
        else:
            return connection, Member(store, uuid, incarnation)
        connection.close()
        raise Unavailable(problem)
