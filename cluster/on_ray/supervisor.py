"""Keeps the desired state: creates the actors that are missing, and watches them over their streams.

Owns the watching, and the run files' addresses. It must not know Ray (how an actor is found and created is passed
in), nor who is to serve a partition (``assignment``) or to keep the register (``charter_watch``), nor any truth about
messages: kill it at any time. Invariants: it never ends an actor; what it creates is named, so two Supervisors create
nothing twice; a lost stream is a reason to look and to order a spare, who asks the stores: never a proof of death.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from trilogue.actors.config import AddressBook
from trilogue.actors.protocol.errors import NewerFormat, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.ranges import record_key
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.pump import guarded, settle_process, spawn
from trilogue.actors.replication.where import where
from trilogue.actors.server import Server, answer_later, listen_preferring
from trilogue.actors.wire import Connection, Refused, connect, join_address
from trilogue.cluster.on_ray.orders import Orders
from trilogue.cluster.on_ray.register_keeper import RegisterKeeper
from trilogue.cluster.settings.config import SUPERVISOR, Desired, session_names, store_names
from trilogue.cluster.settings.runfile import read_run_file

LOOK_AGAIN_S: Final = 0.3
CREATE_AGAIN_S: Final = 2.0
HURRY_S: Final = 0.05
ASK_AGAIN_ATTEMPTS: Final = 64
"""A restarted actor has its former address, as a rule, and is there before Ray answers for it."""


class Watched:
    """What the Supervisor knows of one actor: a hint, for people."""

    __slots__ = ("address", "connection", "losses", "state")

    def __init__(self) -> None:
        self.address = ""
        self.state = "not looked at yet"
        self.connection: Connection | None = None
        self.losses = 0


class Supervisor:
    """Made inside a running event loop. `create` makes an actor by its name unless it exists; it may block."""

    def __init__(self, desired: Desired, book: AddressBook, create: Callable[[str], Any]) -> None:
        self._desired, self._book, self._create = desired, book, create
        stores, sessions = store_names(desired.record), session_names(desired.record)
        self._watched = {name: Watched() for name in (*stores, *sessions)}
        partitions = desired.record.partitions
        self._orders = Orders(sessions, stores, partitions, DEFAULT_LIMITS, self._connection_to)
        self._keeper = RegisterKeeper(stores, map(record_key, range(partitions)), DEFAULT_LIMITS, self._connection_to)
        info = {"role": SUPERVISOR, "name": SUPERVISOR, "cluster": desired.record.cluster, "pid": os.getpid()}
        self._server = Server(desired.token, info, guarded(self._on_message), lambda _: None, lambda *_: None, DEFAULT_LIMITS)
        self._places: dict[str, tuple[str, int]] = {}
        self._problem = ""
        self._listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        spawn(self._run(), SUPERVISOR)

    # ------------------------------------------------------------------ what Ray calls

    async def ready(self) -> str:
        """Its address, as soon as it listens."""
        await asyncio.shield(self._listening)
        return self._server.address

    async def where(self) -> dict[str, Any]:
        """Where the system is, for whoever finds the Supervisor by its name: {"addresses", "token"}."""
        await asyncio.shield(self._listening)
        return {"addresses": self._addresses(), "token": self._desired.token, "cluster": self._desired.record.cluster}

    async def desired(self) -> Desired:
        """What this system was asked to be."""
        return self._desired

    async def status(self) -> dict[str, Any]:
        """What it watches, and who serves what, for people and for whoever waits until every partition is open."""
        return {
            "role": SUPERVISOR,
            "name": SUPERVISOR,
            "pid": os.getpid(),
            "address": self._server.address,
            "state": self._problem or "open",
            "watched": {name: one.state for name, one in self._watched.items()},
            "losses": {name: one.losses for name, one in self._watched.items() if one.losses},
            "copies": self._desired.record.copies,
            "min_copies": self._desired.record.min_copies,
            "keep_s": self._desired.record.keep_s,
            "keep_bytes": self._desired.record.keep_bytes,
            "stores": list(store_names(self._desired.record)),
            "register": self._keeper.status(),
            **self._orders.status(),
        }

    # ------------------------------------------------------------------ watching

    async def _run(self) -> None:
        desired = self._desired
        await listen_preferring(self._server, join_address(desired.host, desired.ports.get(SUPERVISOR, 0)))
        self._listening.set_result(None)
        settle_process()
        self._note(SUPERVISOR, self._server.address, os.getpid())
        for name in self._watched:
            spawn(self._watch(name), f"watch of {name}")

    async def _watch(self, name: str) -> None:
        """Stay connected to the actor; when it cannot be found, make sure that it exists."""
        one = self._watched[name]
        loop = asyncio.get_running_loop()
        created = 0.0
        attempt = 0
        while True:
            lost: asyncio.Future[str] = loop.create_future()
            attempt += 1
            by_name = not one.address or attempt % ASK_AGAIN_ATTEMPTS == 0
            try:
                one.connection = await self._connect(name, lost, by_name)
            except (TrilogueError, Refused) as error:
                one.state = str(error)
                if not by_name:
                    await asyncio.sleep(HURRY_S)
                    continue
                if loop.time() - created > CREATE_AGAIN_S:
                    created = loop.time()
                    await self._ensure(name, one)
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            attempt = 0
            one.state = "connected"
            self._orders.connected(name, one.connection)
            self._keeper.connected()
            one.state = f"lost: {await lost}"
            one.connection = None
            one.losses += 1

    def _connection_to(self, name: str) -> Connection | None:
        return self._watched[name].connection if name in self._watched else None

    async def _connect(self, name: str, lost: asyncio.Future[str], by_name: bool) -> Connection:
        def on_closed(_: Connection, reason: str) -> None:
            self._orders.lost(name)
            if not lost.done():
                lost.set_result(reason)

        address = await self._book.address_of(name) if by_name else self._watched[name].address
        connection = await connect(address, self._desired.token, on_message=_ignore, on_closed=on_closed)
        if connection.peer_info.get("name") != name:
            connection.close()
            raise Unavailable(f"{address} is not {name}")
        self._watched[name].address = address
        self._note(name, address, connection.peer_info.get("pid"))
        return connection

    async def _ensure(self, name: str, one: Watched) -> None:
        """Create the actor unless it exists. What keeps it from being created is shown, and tried again."""
        try:
            if await asyncio.to_thread(self._create, name) is None:
                one.state = f"waits for {self._desired.hosts.get(name)}: no Ray node is alive there"
        except Exception as error:
            one.state = f"cannot be created: {' '.join(str(error).split())[:200]}"

    # ------------------------------------------------------------------ answering

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        match message:
            case [Say.PING, int(request)]:
                connection.reply(request, [SUPERVISOR, SUPERVISOR])
            case [Say.STATUS, int(request)]:
                answer_later(connection, request, self.status)
            case [Say.WHERE, int(request)]:
                answer_later(connection, request, self._where)
            case [int(), int(request), *_] if message[0] in Say._value2member_map_:
                connection.refuse(request, Code.NOT_HERE, "the Supervisor keeps no messages: ask WHERE")
            case _:
                raise ProtocolError("a message of unknown shape to the Supervisor")

    async def _where(self) -> Any:
        """The stores' answer: the truth about writers is in their fences."""
        names = store_names(self._desired.record)
        return await where([link for name in names if (link := self._watched[name].connection) is not None])

    # ------------------------------------------------------------------ the run files

    def _addresses(self) -> list[str]:
        found = [one.address for one in self._watched.values() if one.address]
        return [*found, self._server.address]

    def _note(self, name: str, address: str, pid: Any) -> None:
        """Keep the run files true when an actor has moved, as long as they are about this system.

        A file without actors belongs to a start that is under way, which completes it itself.
        """
        if not isinstance(pid, int):
            return
        self._places[name] = (address, pid)
        try:
            for path in map(Path, self._desired.run_files):
                with contextlib.suppress(NewerFormat):  # a later version's, and so another system's
                    self._note_moved(path)
        except TrilogueError as error:
            self._problem = str(error)

    def _note_moved(self, path: Path) -> None:
        """Write where our actors are into the run file at `path`, if it is ours."""
        known = read_run_file(path)
        if known is None or known.cluster != self._desired.record.cluster or not known.actors:
            return
        moved = known
        for actor, place in self._places.items():
            moved = moved.with_actor(actor, *place)
        if moved != known:
            moved.write(path)


def _ignore(_: Connection, __: list[Any]) -> None:
    """What an actor says on its own (OPEN, WAITING) is not for the Supervisor."""
