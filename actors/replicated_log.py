"""The group of stores that holds one partition's log, seen from its SessionActor.

Owns the connections to the stores: it makes them, keeps them, and carries events and effects between them and the pure machines
(``protocol.takeover``, then ``protocol.log``). It must not know sessions or clients. Rules:

1. A store is found by its name and known by its identity: (UUID, incarnation).
2. One connection a store; a lost one is made again at once, then every `RECONNECT_S`: at the address where it was, and now and
   then at the one that the address book gives.
3. When a machine says `Ended`, the process ends: a writer never resumes. During a takeover the next attempt begins instead,
   as another writer, after a while that is drawn at random (two that want one partition would meet for ever).
4. An open writer asks its stores every `WATCH_S` whether they have seen a higher epoch: when it is idle nobody else tells it,
   and clients that have heard the other writer do not submit to this one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from trilogue.actors.config import AddressBook, SessionConfig
from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.log import (
    Committed,
    Ended,
    Idle,
    LogWriter,
    MemberBack,
    MemberLost,
    NotStored,
    SendFrames,
    Stored,
)
from trilogue.actors.protocol.takeover import (
    AskFence,
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    Inspect,
    Inspected,
    MemberUp,
    TakenOver,
    Takeover,
)
from trilogue.actors.protocol.vocabulary import APPEND, STORED, Code, FenceAnswer, Say, StoreView, TailEntry
from trilogue.actors.pump import end_process, guarded, spawn
from trilogue.actors.wire import Connection, Refused, connect, pack

logger = logging.getLogger(__name__)

RECONNECT_S = 0.1
ASK_AGAIN_ATTEMPTS = 16
"""A store that was restarted has its former address, as a rule, and is there before Ray's directory knows it."""

WATCH_S = 1.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 0.5


class LogOwner(Protocol):
    """What a ReplicatedLog tells its SessionActor."""

    async def log_is_taken(self, taken: TakenOver) -> None:
        """All stores are equal: rebuild the sessions, then open."""

    def log_committed(self, upto: int) -> None:
        """All frames up to `upto` are on all stores."""

    def log_waits(self, reason: str) -> None:
        """Nothing can be acked now; `reason` says why. An empty one: it goes on."""


class ReplicatedLog:
    """The log of one partition: `start` it, then `propose` while there is a `next_index`."""

    def __init__(self, config: SessionConfig, book: AddressBook, owner: LogOwner, own_address: Callable[[], str]) -> None:
        self._config, self._book, self._owner, self._own_address = config, book, owner, own_address
        self._limits = config.limits
        self._connections: dict[str, Connection] = {}
        self._fenced: dict[str, Connection] = {}  # the connection on which a member was fenced for the open log
        self._problems: dict[str, str] = {}
        self._takeover: Takeover | None = None
        self._log: LogWriter | None = None
        self.writer = ""
        self.epoch = 0  # of this writer; 0 before it has one
        self.copies = len(config.stores)  # on how many stores a committed frame is
        self._on_message = guarded(self._message)

    def start(self) -> None:
        """Begin to connect, and to take the partition over."""
        self._begin()
        for store in self._config.stores:
            spawn(self._keep_connected(store), f"connection to {store}")

    @property
    def committed(self) -> int:
        """Up to which frame everything is on every store."""
        return self._log.committed if self._log is not None else 0

    @property
    def next_index(self) -> int:
        """The index that a frame gets which is proposed now; 0 when none may be."""
        log = self._log
        return log.last_index + 1 if log is not None and log.has_room else 0

    @property
    def store_addresses(self) -> list[str]:
        """Where the connected stores are."""
        return [connection.peer for connection in self._connections.values()]

    def propose(self, payload: bytes, count: int) -> None:
        """Make `payload` the next frame and send it to every store."""
        log = self._log
        assert log is not None
        self._send(log.epoch, log.connected, log.propose(payload, count))

    def idle(self) -> None:
        """Nothing has been waiting for a while: let the stores know what is committed."""
        self._feed_log(Idle())

    async def ask(self, say: Say, *items: Any) -> Any:
        """Ask a store, another one if that one is lost. Raises `Unavailable` when none answers."""
        names = list(self._config.stores)
        first = self._config.partition % len(names)
        problem: Exception | None = None
        for name in names[first:] + names[:first]:
            connection = self._connections.get(name)
            if connection is None:
                continue
            try:
                return await connection.request(say, *items)
            except (Unavailable, Refused) as error:
                problem = error
        raise Unavailable(f"no store of partition {self._config.partition} answers: {problem or self.why_waiting()}")

    def why_waiting(self) -> str:
        """Why nothing can be acked now, in words; empty when nothing is in the way."""
        if self._takeover is not None:
            return self._reasons(self._takeover.waiting_for) or self._takeover.phase
        if self._log is not None:
            return self._reasons(self._log.missing)
        return "reading its sessions"

    def _reasons(self, missing: list[str]) -> str:
        return ", ".join(f"{store} ({self._problems.get(store, 'not connected')})" for store in missing)

    # ------------------------------------------------------------------ connections

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
                connection = await self._connect(store, address, lost)
            except (Unavailable, NotAuthorized, ProtocolError, Refused) as error:
                self._note(store, str(error))
                await asyncio.sleep(RECONNECT_S)
                continue
            attempt = 0
            self._connections[store] = connection
            self._on_up(store, connection)
            reason = await lost
            del self._connections[store]
            self._note(store, reason)
            self._on_lost(store)

    async def _connect(self, store: str, address: str, lost: asyncio.Future[str]) -> Connection:
        def on_closed(_: Connection, reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        connection = await connect(
            address, self._config.token, on_message=self._on_message, on_closed=on_closed, limits=self._limits
        )
        info = connection.peer_info
        problem = ""
        if info.get("name") != store or info.get("cluster") != self._config.cluster_id:
            problem = f"{address} is {info.get('name')!r} of cluster {info.get('cluster')!r}, not {store} of this one"
        elif not isinstance(info.get("store"), str) or not isinstance(info.get("incarnation"), int):
            status = await connection.request(Say.STATUS)
            problem = str(status.get("state", "not open yet"))
        if problem:
            connection.close()
            raise Unavailable(problem)
        return connection

    def _note(self, store: str, problem: str) -> None:
        if self._problems.get(store) != problem:
            self._problems[store] = problem
            self._owner.log_waits(self.why_waiting())

    def _identity(self, connection: Connection) -> tuple[str, int]:
        return (connection.peer_info["store"], connection.peer_info["incarnation"])

    def _on_up(self, store: str, connection: Connection) -> None:
        self._problems.pop(store, None)
        if self._takeover is not None:
            self._feed_takeover(MemberUp(store, self._identity(connection)))
        elif self._log is not None:
            spawn(self._fence_again(store, connection), f"fence of {store}")

    def _on_lost(self, store: str) -> None:
        if self._takeover is not None:
            self._feed_takeover(MemberLost(store))
        elif self._log is not None:
            self._feed_log(MemberLost(store))
        self._owner.log_waits(self.why_waiting())

    async def _fence_again(self, store: str, connection: Connection) -> None:
        """A member came back: fence it with the same (epoch, writer), and learn what it has."""
        assert self._log is not None
        try:
            answer = await self._fence(connection, self._log.epoch)
        except Unavailable as error:
            connection.close(f"the fence was not answered: {error}")
            return
        except Refused as refusal:
            if refusal.code == Code.DEPOSED:
                end_process(f"{store} obeys another writer: {refusal}")
            self._note(store, refusal.text)
            await asyncio.sleep(RECONNECT_S)
            connection.close("the fence was refused: try again")
            return
        if self._connections.get(store) is connection and self._fenced.get(store) is not connection:
            self._fenced[store] = connection
            self._feed_log(MemberBack(store, self._identity(connection), answer))
            self._owner.log_waits(self.why_waiting())

    async def _fence(self, connection: Connection, epoch: int) -> FenceAnswer:
        value = await connection.request(Say.FENCE, self._config.partition, epoch, self.writer, self._own_address())
        match value:
            case [int(committed_upto), bool(certain), list(tail)]:
                return FenceAnswer(committed_upto, certain, [TailEntry(*entry) for entry in tail])
        raise ProtocolError("a fence's answer has an unknown shape")

    # ------------------------------------------------------------------ the machines

    def _begin(self) -> None:
        """A new attempt: a new writer."""
        self.writer = uuid.uuid4().hex
        config = self._config
        self._takeover = Takeover(log_id=config.log_id, partition=config.partition, stores=config.stores, limits=self._limits)
        for store, connection in list(self._connections.items()):
            self._feed_takeover(MemberUp(store, self._identity(connection)))

    def _feed_takeover(self, event: Any) -> None:
        takeover = self._takeover
        assert takeover is not None
        for effect in takeover.handle(event):
            match effect:
                case Inspect(store):
                    spawn(self._do_inspect(takeover, store), f"inspection of {store}")
                case AskFence(store, epoch):
                    spawn(self._do_fence(takeover, store, epoch), f"fence of {store}")
                case Fetch(store, first, last):
                    spawn(self._do_fetch(takeover, store, first, last), f"frames of {store}")
                case SendFrames(stores, frames):
                    for frame in frames:
                        self._send(takeover.epoch, stores, frame)
                case TakenOver():
                    self._takeover = None
                    spawn(self._open(effect), "opening")
                case Ended(text):
                    logger.warning("partition %d: %s; another attempt follows", self._config.partition, text)
                    self._owner.log_waits(text)
                    self._takeover = None
                    spawn(self._again(), "the next attempt")
                    return

    async def _again(self) -> None:
        await asyncio.sleep(random.uniform(BACKOFF_S_MIN, BACKOFF_S_MAX))
        self._begin()

    async def _open(self, taken: TakenOver) -> None:
        await self._owner.log_is_taken(taken)
        self._log = taken.log
        self.epoch = taken.log.epoch
        spawn(self._watch(taken.log.epoch), "watch over the epoch")
        # A store may have been lost and be back since it was made equal: each says once more what it holds.
        for store, connection in list(self._connections.items()):
            spawn(self._fence_again(store, connection), f"fence of {store}")

    async def _watch(self, epoch: int) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for store, connection in list(self._connections.items()):
                try:
                    view = StoreView(*await connection.request(Say.INSPECT, self._config.partition))
                except (Unavailable, Refused):
                    continue
                if view.epoch > epoch:
                    end_process(f"{store} has seen epoch {view.epoch}: epoch {epoch} is over")

    async def _do_inspect(self, takeover: Takeover, store: str) -> None:
        try:
            view = StoreView(*await self._connections[store].request(Say.INSPECT, self._config.partition))
        except (Unavailable, Refused, KeyError) as error:
            self._drop(store, f"it cannot be inspected: {error}")
            return
        if takeover is self._takeover:
            self._feed_takeover(Inspected(store, view))

    async def _do_fence(self, takeover: Takeover, store: str, epoch: int) -> None:
        try:
            event: Any = Fenced(store, await self._fence(self._connections[store], epoch))
        except Refused as refusal:
            if refusal.code != Code.DEPOSED:
                await asyncio.sleep(RECONNECT_S)
                self._drop(store, refusal.text)
                return
            event = FenceRefused(store, refusal.text)
        except (Unavailable, KeyError) as error:
            self._drop(store, f"it cannot be fenced: {error}")
            return
        if takeover is self._takeover:
            self._feed_takeover(event)

    async def _do_fetch(self, takeover: Takeover, store: str, first: int, last: int) -> None:
        frames: list[bytes] = []
        try:
            frames = await self._connections[store].request(Say.FRAMES, self._config.partition, first, last)
        except (TrilogueError, Refused, KeyError) as error:
            logger.warning("partition %d: frames of %s cannot be read: %s", self._config.partition, store, error)
        if takeover is self._takeover:
            self._feed_takeover(Fetched(frames))

    def _drop(self, store: str, reason: str) -> None:
        """End the connection: it is made again, and the store is asked again."""
        if (connection := self._connections.get(store)) is not None:
            connection.close(reason)

    def _feed_log(self, event: Any) -> None:
        """Carry one event to the log writer, and its effects out. What happens to every frame does not come by here."""
        log = self._log
        assert log is not None
        for effect in log.handle(event):
            match effect:
                case SendFrames(stores, frames):
                    for frame in frames:
                        self._send(log.epoch, stores, frame)
                case Committed(upto):
                    self._owner.log_committed(upto)
                case Ended(text):
                    end_process(f"partition {self._config.partition}, epoch {log.epoch}: {text}")

    def _send(self, epoch: int, stores: tuple[str, ...], frame: bytes) -> None:
        """One frame, never several: together they could be beyond what the wire takes."""
        packed = pack([APPEND, self._config.partition, epoch, self.writer, [frame]])
        for store in stores:
            connection = self._connections.get(store)
            if connection is not None:
                connection.send_packed(packed)

    def _message(self, connection: Connection, message: list[Any]) -> None:
        store = connection.peer_info.get("name", "?")
        if message[0] == STORED and len(message) == 5:  # 0.9 µs; with `case [int(), …]` it took 3.0: the pattern alone takes 2
            _, partition, epoch, index, crc = message
            if type(partition) is int and type(epoch) is int and type(index) is int and type(crc) is int:
                if (log := self._log) is None:
                    self._feed(Stored(store, epoch, index, crc))
                elif upto := log.stored(store, epoch, index, crc):
                    self._owner.log_committed(upto)
                return
        match message:
            case [Say.NOT_STORED, int(), int(epoch), int(code), str(text)]:
                if code == Code.FULL:
                    self._note(store, text)
                    self._drop(store, text)
                self._feed(NotStored(store, epoch, Code(code), text))
            case _:
                raise ProtocolError(f"{store} said something of unknown shape")

    def _feed(self, event: Stored | NotStored) -> None:
        if self._log is not None:
            self._feed_log(event)
        elif self._takeover is not None:
            self._feed_takeover(event)
