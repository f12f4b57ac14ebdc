"""The log of one partition on its stores, seen from its SessionActor: who takes it over, writes it, and keeps it on its disks.

Owns the carrying out of what the pure machine decides (``protocol.writer``): what is asked of which store, of the register,
and how answers come back. It must not know sessions or clients. Rules:

1. Before it is told to `take` a partition it only keeps its connections and the register's charter at hand: a warm spare.
2. An attempt that comes to nothing before it has a log gives up, quietly. When a log says `Ended`, the process ends: a writer
   never resumes.
3. An open writer says every `writer_ping_ms` to its stores that it is there (who asks them hears that), and asks whether they
   have seen a higher epoch: when it is idle nobody else tells it.
4. A frame that went bad on a store's disk is given back to it from another one's (``mender``).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from trilogue.actors.config import AddressBook, SessionConfig
from trilogue.actors.hedge import first_answer
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.log import LogWriter
from trilogue.actors.protocol.ranges import Member
from trilogue.actors.protocol.replication import (
    Committed,
    CompareAndSet,
    Ended,
    Idle,
    NotStored,
    SendFrames,
    Stored,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.vocabulary import APPEND, STORED, Code, Say, StoreView
from trilogue.actors.protocol.writer import PartitionWriter, Recovered
from trilogue.actors.pump import end_process, guarded, spawn
from trilogue.actors.replication.errands import Errands, WriterOrder
from trilogue.actors.replication.mender import mend
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.actors.replication.store_links import StoreLinks
from trilogue.actors.replication.where import where
from trilogue.actors.wire import Connection, Refused, pack

logger = logging.getLogger(__name__)

HURRY_S = 0.01
"""How often a takeover looks at the clock: a person waits for it."""

MEND_S = 1.0
CHARTER_STORES = 3


class LogOwner(Protocol):
    """What a ReplicatedLog tells its SessionActor."""

    async def log_recovered(self, upto: int) -> None:
        """All that an earlier epoch may have committed is committed, up to the log's end `upto`: open."""

    def log_committed(self, upto: int) -> None:
        """All frames up to `upto` are on all members' disks."""

    def log_waits(self, reason: str) -> None:
        """Nothing can be acked now; `reason` says why. An empty one: it goes on."""

    def log_given_up(self, reason: str) -> None:
        """The partition was not taken over: this process is a spare again."""


class ReplicatedLog:
    """The log of one partition: `start` it, `take` a partition, then `propose` while there is a `next_index`."""

    def __init__(self, config: SessionConfig, book: AddressBook, owner: LogOwner, own_address: Callable[[], str]) -> None:
        self._config, self._owner, self._own_address = config, owner, own_address
        self._limits = config.limits
        self._links = StoreLinks(config, book, guarded(self._message), self._up, self._lost)
        self._register = RegisterClient(
            config.stores[:CHARTER_STORES], self._links.by_name, config.limits, others=lambda: config.stores
        )
        self._machine: PartitionWriter | None = None
        self._errands: Errands | None = None
        self._log: LogWriter | None = None
        self._began = self._ordered = time.monotonic()
        self.partition = -1
        self.writer = ""
        self.epoch = 0  # of this writer; 0 before it has one
        self.copies = config.copies  # on how many stores a committed frame is
        self.took_ms: dict[str, float] = {}  # how long after the order each step of the takeover was reached

    # ------------------------------------------------------------------ what its SessionActor asks

    def start(self) -> None:
        """Begin to connect to the stores."""
        self._links.start()
        spawn(self._warm_up(), "the register's charter")

    def take(self, partition: int) -> None:
        """Take the partition over, as a new writer (design §6, rule 1)."""
        assert self._machine is None
        config = self._config
        self.partition = partition
        self.writer = uuid.uuid4().hex
        self.took_ms = {}
        self._ordered = time.monotonic()
        preferred = config.ensemble(partition)
        machine = self._machine = PartitionWriter(
            log_id=config.log_id,
            partition=partition,
            writer=self.writer,
            address=self._own_address(),
            stores=preferred,
            wish=Wish(config.copies, config.min_copies, (*preferred, *(s for s in config.stores if s not in preferred))),
            limits=self._limits,
        )
        order = WriterOrder(machine, partition, self.writer, self._own_address())
        self._errands = Errands(order, self._limits, self._links, self._register, self)
        self._run(machine, machine.begin(self._links.members))
        spawn(self._tick(machine), "ticks")
        spawn(self._mend(machine), "mending")

    @property
    def committed(self) -> int:
        """Up to which frame everything is on every member."""
        return self._log.committed if self._log is not None else 0

    @property
    def next_index(self) -> int:
        """The index that a frame gets which is proposed now; 0 when none may be."""
        log = self._log
        return log.last_index + 1 if log is not None and log.has_room else 0

    @property
    def is_idle(self) -> bool:
        """Whether a frame may be proposed now, and all frames are committed."""
        log = self._log
        return log is not None and log.last_index == log.committed

    @property
    def members(self) -> list[str]:
        """The names of the stores that every frame goes to."""
        return [member.name for member in self._log.members] if self._log is not None else []

    @property
    def spares(self) -> list[str]:
        """The names of the stores that could take a lost one's place."""
        return self._log.spares if self._log is not None else []

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with stores that are connected, by name."""
        names = {member.key: member.name for member in self._links.members}
        troubles = self._log.troubles if self._log is not None else {}
        return {names.get(key, key): text for key, text in troubles.items()}

    @property
    def ranges(self) -> list[tuple[int, list[str]]]:
        """Which stores hold the log from which frame on, for people."""
        ranges = self._log.record.ranges if self._log is not None else ()
        return [(one.first, [member.name for member in one.members]) for one in ranges]

    @property
    def holders(self) -> list[str]:
        """Where the stores are that hold the whole log, the one first that has its index at hand."""
        links = self._links.by_key
        return [links[key].peer for key in (self._log.whole if self._log is not None else ()) if key in links]

    @property
    def store_addresses(self) -> list[str]:
        """Where the connected stores are."""
        return [connection.peer for connection in self._links.by_key.values()]

    def propose(self, payload: bytes, count: int) -> None:
        """Make `payload` the next frame and send it to every member."""
        log = self._log
        assert log is not None
        self._send(log.epoch, log.connected, log.propose(payload, count))

    def idle(self) -> None:
        """Nothing has been waiting for a while: let the stores know what is committed."""
        self._feed(Idle())

    async def ask(self, say: Say, *items: Any) -> Any:
        """Ask a store that holds the whole log, and another one, too, if that one is lost or says nothing for `hedge_ms`.

        For what changes nothing. Raises `Unavailable` when none answers.
        """
        links = self._links.by_key
        connected = [links[key] for key in (self._log.whole if self._log is not None else ()) if key in links]
        try:
            return await first_answer((partial(one.request, say, *items) for one in connected), self._limits.hedge_ms / 1000)
        except (Unavailable, Refused) as error:
            why = error if connected else self.why_waiting()
            raise Unavailable(f"no store of partition {self.partition} answers: {why}") from None

    async def where(self) -> dict[str, Any]:
        """Where the partitions' writers are. Raises `Unavailable` when no store answers."""
        return await where(self._links.by_key.values())

    def why_waiting(self) -> str:
        """Why nothing can be acked now, in words; empty when nothing is in the way."""
        machine = self._machine
        if machine is None:
            return "it is a spare"
        doing, missing = machine.why_waiting
        return ", ".join(f"{name} ({self._links.why_missing(name)})" for name in missing) or doing

    # ------------------------------------------------------------------ stores come and go

    async def _warm_up(self) -> None:
        while True:
            try:
                await self._register.charter()
                return
            except (Unavailable, ProtocolError) as error:
                logger.info("the register's charter is not known yet: %s", error)

    def _up(self, member: Member) -> None:
        self._feed(StoreUp(member))
        self._note()

    def _lost(self, key: str) -> None:
        self._feed(StoreLost(key))
        self._note()

    def _note(self) -> None:
        if self._machine is not None:
            self._owner.log_waits(self.why_waiting())

    # ------------------------------------------------------------------ the machine

    def reached(self, step: str) -> None:
        """Note when a step of the takeover was reached, for people and benchmarks."""
        self.took_ms.setdefault(step, round((time.monotonic() - self._ordered) * 1000, 1))

    def _feed(self, event: Any) -> None:
        machine = self._machine
        if machine is not None:
            self._run(machine, machine.handle(event))

    def is_current(self, machine: PartitionWriter) -> bool:
        """Whether this attempt is not over."""
        return machine is self._machine

    def answered(self, machine: PartitionWriter, event: Any) -> None:
        """What an errand found out. What an earlier attempt asked for is nobody's any more."""
        if machine is self._machine:
            self._run(machine, machine.handle(event))

    def waits(self, reason: str) -> None:
        """An errand is held up."""
        self._owner.log_waits(reason)

    def _run(self, machine: PartitionWriter, effects: list[Any]) -> None:
        errands = self._errands
        assert errands is not None
        for effect in effects:
            match effect:
                case SendFrames(stores, frames):
                    for frame in frames:
                        self._send(machine.epoch, stores, frame)
                case Committed(upto):
                    self._owner.log_committed(upto)
                case CompareAndSet():
                    self.reached("claim")
                    errands.run(effect)
                case Recovered(upto):
                    self.reached("recovered")
                    spawn(self._owner.log_recovered(upto), "opening")
                case Ended(text):
                    self._over(machine, text)
                    return
                case _:
                    errands.run(effect)
        if machine.log is not None and self._log is None:
            self._log, self.epoch = machine.log, machine.epoch
            self.reached("tail")
        if self._log is not None:
            self.copies = self._log.copies

    def _over(self, machine: PartitionWriter, text: str) -> None:
        if machine.log is not None:
            end_process(f"partition {self.partition}, epoch {machine.epoch}: {text}")
        logger.info("partition %d was not taken over: %s", self.partition, text)
        self._machine = None
        self.partition = -1
        self._owner.log_given_up(text)

    async def _tick(self, machine: PartitionWriter) -> None:
        pinged = 0.0
        while machine is self._machine:
            now = time.monotonic()
            self.answered(machine, Tick(int((now - self._began) * 1000)))
            if self._log is not None and now - pinged >= self._limits.writer_ping_ms / 1000:
                pinged = now
                for key in list(self._links.by_key):
                    spawn(self._ping(machine, key), "ping of a store")
            self._note()
            await asyncio.sleep(self._limits.tick_ms / 1000 if self._log is not None else HURRY_S)

    async def _mend(self, machine: PartitionWriter) -> None:
        while machine is self._machine:
            await asyncio.sleep(MEND_S)
            if machine.log is not None:
                await mend(self.partition, machine.epoch, self.writer, dict(self._links.by_key))

    async def _ping(self, machine: PartitionWriter, key: str) -> None:
        warm = self._log is not None and self._log.whole[:1] == [key]  # a taker asks this one for the sessions
        try:
            answer = await self._links.by_key[key].request(Say.INSPECT, self.partition, machine.epoch, self.writer, warm)
        except (Unavailable, Refused, KeyError):
            return
        view = StoreView(*answer)
        if view.epoch > machine.epoch:
            end_process(f"a store has seen epoch {view.epoch}: epoch {machine.epoch} of partition {self.partition} is over")

    # ------------------------------------------------------------------ frames

    def _send(self, epoch: int, stores: tuple[str, ...], frame: bytes) -> None:
        """One frame, never several: together they could be beyond what the wire takes."""
        packed = pack([APPEND, self.partition, epoch, self.writer, [frame]])
        links = self._links.by_key
        for store in stores:
            connection = links.get(store)
            if connection is not None:
                connection.send_packed(packed)

    def _message(self, connection: Connection, message: list[Any]) -> None:
        store = self._links.keys.get(connection, "")
        if message[0] == STORED and len(message) == 5:  # three of four: `case [int(), …]` would take 2 µs of the 3 it takes
            _, partition, epoch, index, crc = message
            if type(partition) is int and type(epoch) is int and type(index) is int and type(crc) is int:
                log, machine = self._log, self._machine
                if log is None or machine is None or log.changing or not machine.recovered:
                    self._feed(Stored(store, epoch, index, crc))
                elif upto := log.stored(store, epoch, index, crc):
                    self._owner.log_committed(upto)
                return
        match message:
            case [Say.NOT_STORED, int(), int(epoch), int(code), str(text)]:
                self._feed(NotStored(store, epoch, Code(code), text))
                if code == Code.FULL:
                    self._links.drop(store, text)
            case _:
                raise ProtocolError(f"{store} said something of unknown shape")
