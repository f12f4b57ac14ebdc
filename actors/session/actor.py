"""The owner of one partition, or a spare: it serialises its sessions' messages and answers their readers (design §4, §8, §9).

Owns the streams to clients, and the way of a message between the pure machines: ``protocol.sequencer`` gives seqs,
``replication.replicated_log`` makes frames durable, ``reads`` answers readers and ``readers`` tells them. It must not know Ray
or files. Rules:

1. What waits is framed at once while the log's window has room; there is no timer in the way of a message.
2. Nothing is submitted here before `OPEN` was said; `WAITING` says why not yet, and whether reads are served meanwhile.
3. When more waits (for a frame, or for cold sessions to be looked up) than `waiting_bytes_max`, clients are not read from until
   half of it has gone: they feel it as back-pressure.
4. Reads go to a store, within what this writer knows to be committed.
5. It starts as a spare and takes one partition, when it is told to (`TAKE`). Who loses its partition ends its process.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any

from trilogue.actors.config import AddressBook, SessionConfig
from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.messages import Floor, Numbered, Trim, pack_records, unpack_record
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import (
    Answered,
    Done,
    Effect,
    Event,
    GivenUp,
    Loaded,
    LookedUp,
    LookUp,
    Noted,
    Readable,
    Recalled,
    Refused,
    Retry,
    check_runs,
)
from trilogue.actors.protocol.vocabulary import ACKED, SUBMIT, Code, Say
from trilogue.actors.pump import guarded, settle_process, spawn
from trilogue.actors.replication.replicated_log import ReplicatedLog
from trilogue.actors.server import Server, answer_later, listen_preferring
from trilogue.actors.session.lookups import Lookups
from trilogue.actors.session.readers import Readers
from trilogue.actors.session.reads import Reads
from trilogue.actors.session.retention import Retention
from trilogue.actors.wire import Connection
from trilogue.actors.wire import Refused as RequestRefused

SPARE = "it is a spare: it owns no partition"


class SessionActor:
    """One partition's owner, or a spare. Made inside a running event loop; `ready` waits until it listens."""

    def __init__(self, config: SessionConfig, book: AddressBook) -> None:
        self._config = config
        self._limits = config.limits
        self._sequencer = Sequencer(0, config.partitions, config.limits)  # of no use before a partition is taken
        self._readers = Readers(config.limits, lambda sessions, then: self._reads.load(sessions, then), self._page)
        self._reads = Reads(
            config.limits, self._readers, lambda session: self._sequencer.owns(session),
            lambda session: self._sequencer.is_hot(session), self._handle, self._page, self._note, self._holders,
        )  # fmt: skip
        self._info = {"role": "session", "name": config.name, "cluster": config.cluster_id, "pid": os.getpid()}
        self._server = Server(
            config.token, self._info, guarded(self._on_message), guarded(self._on_opened), guarded(self._on_closed),
            config.limits,
        )  # fmt: skip
        self._log = ReplicatedLog(config, book, self, lambda: self._server.address)
        self._lookups = Lookups(self._log, self._looked_up)
        self._retention = Retention(config, self._old, self._note)
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._waiting_text = SPARE
        self._given_up = ""  # why it did not become the owner of what it was told to take, the last time
        self._paused = False
        self._cut = guarded(self._cut_now)
        self._cut_is_due = False
        self._idle: asyncio.TimerHandle | None = None
        self._listening: asyncio.Future[None] = self._loop.create_future()
        spawn(self._run(), config.name)

    async def _run(self) -> None:
        await listen_preferring(self._server, self._config.listen)
        self._listening.set_result(None)
        settle_process()
        self._log.start()

    # ------------------------------------------------------------------ what Ray and people call

    async def ready(self) -> str:
        """The address, as soon as it listens. Whether the partition is open, `status` says."""
        await asyncio.shield(self._listening)
        return self._server.address

    async def status(self) -> dict[str, Any]:
        """What it is and how it is, for people and for `trilogue status`."""
        return {
            "role": "session",
            "name": self._config.name,
            "pid": os.getpid(),
            "address": self._server.address,
            "state": self._state(),
            "gave_up": self._given_up,
            "partition": self._partition if self._partition >= 0 else None,
            "epoch": self._log.epoch,
            "copies": self._log.copies,
            "members": self._log.members,
            "spares": self._log.spares,
            "ranges": self._log.ranges,
            "troubles": self._log.troubles,
            "took_ms": self._log.took_ms,
            "committed": self._log.committed,
            "hot_sessions": self._sequencer.hot_sessions,
            "connections": len(self._server.connections),
            "subscriptions": self._readers.count,
            "waiting_bytes": self._sequencer.waiting_bytes,
            "floor": self._retention.floor,
        }

    @property
    def _partition(self) -> int:
        return self._log.partition

    def _state(self) -> str:
        if self._partition < 0:
            return "spare"
        return "open" if self._open and not self._waiting_text else f"waiting: {self._waiting_text}"

    # ------------------------------------------------------------------ what the log tells

    async def log_recovered(self, upto: int) -> None:
        """Open where the log ends: how far its sessions are is asked when it is needed, of stores that have all of it."""
        clock = await self._lookups.clock_at_end(upto, self.log_waits)
        self._sequencer = Sequencer(self._partition, self._config.partitions, self._limits, upto, clock)
        self._open = True
        spawn(self._retention.run(), "retention")
        self._log.reached("open")
        self.log_waits(self._log.why_waiting())
        self._schedule_idle()

    def log_given_up(self, reason: str) -> None:
        """The partition was not taken over: a spare again."""
        self._given_up = reason
        self.log_waits(SPARE)

    def log_waits(self, reason: str) -> None:
        """Tell the clients why nothing can be acked now, or that it goes on."""
        if reason == self._waiting_text or (not self._open and not reason):
            return
        self._waiting_text = reason
        for connection in self._server.connections:
            self._greet(connection)
        if self._open and not reason:
            self._schedule_cut()
            self._schedule_idle()

    def log_committed(self, upto: int) -> None:
        """Frames are on every store: acks leave, readers are told, the next frames are cut."""
        sequencer = self._sequencer
        self._run_effects(sequencer.committed(upto))
        if sequencer.waiting_bytes:
            self._schedule_cut()
        elif self._idle is None:
            self._schedule_idle()

    # ------------------------------------------------------------------ frames

    def _schedule_cut(self) -> None:
        if not self._cut_is_due and self._open:
            self._cut_is_due = True
            self._loop.call_soon(self._cut)

    def _cut_now(self) -> None:
        """Frame what waits while the window has room."""
        self._cut_is_due = False
        sequencer, log = self._sequencer, self._log
        while sequencer.waiting_bytes and (index := log.next_index):
            records = sequencer.cut_frame(index)
            log.propose(pack_records(records), len(records))
        waits = sequencer.waiting_bytes + sequencer.parked_bytes
        if waits > self._limits.waiting_bytes_max and not self._paused:
            self._paused = True
            for connection in self._server.connections:
                connection.pause_reading()
        elif self._paused and waits <= self._limits.waiting_bytes_max // 2:
            self._paused = False
            for connection in self._server.connections:
                connection.resume_reading()

    def _schedule_idle(self) -> None:
        if self._idle is None:
            self._idle = self._loop.call_later(self._limits.idle_commit_ms / 1000, guarded(self._on_idle))

    def _on_idle(self) -> None:
        self._idle = None
        if self._open and not self._sequencer.waiting_bytes and self._log.next_index:
            self._log.idle()

    # ------------------------------------------------------------------ clients

    def _on_opened(self, connection: Connection) -> None:
        self._greet(connection)
        if self._paused:
            connection.pause_reading()

    def _greet(self, connection: Connection) -> None:
        partition = self._partition
        if self._open and not self._waiting_text:
            limits = self._limits
            connection.send([Say.OPEN, partition, self._log.epoch, self._log.copies, limits.body_bytes_max])
        else:
            connection.send([Say.WAITING, partition, self._waiting_text, self._open])

    def _on_closed(self, connection: Connection, _reason: str) -> None:
        self._reads.forget(connection)

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        say = message[0]
        if say == SUBMIT and len(message) == 2 and type(message[1]) is list:
            runs = message[1]
            sequencer = self._sequencer
            submit = sequencer.submit_any if check_runs(runs, self._limits) else sequencer.submit
            if not self._open:
                raise ProtocolError(f"partition {self._partition} is not open: wait for OPEN before you submit")
            if effects := submit(connection, runs, time.time_ns() // 1000):
                self._run_effects(effects)
            if self._log.is_idle:  # nothing is on its way that this could wait for: it leaves at once
                self._cut_now()
            elif not self._cut_is_due:  # `_schedule_cut` without its call: 0.1 µs, in cold caches 0.3
                self._cut_is_due = True
                self._loop.call_soon(self._cut)
            return
        match message:
            case [Say.CREDIT, int(number), int(messages), int(size)] if (
                min(messages, size) >= 0 < max(messages, size) < 1 << 32
            ):
                self._readers.credit(connection, number, messages, size)
            case [Say.UNSUBSCRIBE, int(number)]:
                self._reads.forget(connection, number)
            case [Say.GIVE_UP, list(numbers)]:
                self._give_up(connection, numbers)
            case [int(), int(request), *arguments]:
                self._on_request(connection, say, request, arguments)
            case _:
                raise ProtocolError("a message of unknown shape to a SessionActor")

    def _give_up(self, connection: Connection, numbers: list[Any]) -> None:
        for item in numbers:
            match item:
                case [str(), str(), int(n)] if n > 0:
                    pass
                case _:
                    raise ProtocolError("a number to give up has an unknown shape")
        if not self._open:
            raise ProtocolError(f"partition {self._partition} is not open: wait for OPEN")
        self._handle(GivenUp(connection, numbers, time.time_ns() // 1000))
        self._schedule_cut()

    def _on_request(self, connection: Connection, say: int, request: int, arguments: list[Any]) -> None:
        if say == Say.PING:
            connection.reply(request, ["session", self._config.name, self._partition, self._log.epoch, self._state()])
            return
        if say == Say.TAKE:
            self._take(connection, request, arguments)
            return
        if say == Say.STATUS:
            answer_later(connection, request, self.status)
            return
        if say == Say.WHERE:
            answer_later(connection, request, self._where)
            return
        if not self._open:
            connection.refuse(request, Code.UNAVAILABLE, f"the partition is not open: {self._waiting_text}")
            return
        self._reads.on_request(connection, say, request, arguments)

    def _take(self, connection: Connection, request: int, arguments: list[Any]) -> None:
        """The Supervisor's order. Whether the partition may be taken, the stores and the register say."""
        match arguments:
            case [int(partition), int()] if 0 <= partition < self._config.partitions:
                pass
            case _:
                raise ProtocolError("an order to take a partition has an unknown shape")
        if self._partition not in (-1, partition):
            connection.refuse(request, Code.OVERLOADED, f"{self._config.name} owns partition {self._partition}")
            return
        if self._partition < 0:
            self._log.take(partition)
            self.log_waits(self._log.why_waiting())
        connection.reply(request, None)

    # ------------------------------------------------------------------ reading

    async def _where(self) -> dict[str, Any]:
        route = await self._log.where()
        route["addresses"] = sorted({*route["addresses"], *self._log.store_addresses, self._server.address})
        return route

    async def _note(self, record: Trim | Floor) -> None:
        """Put it into the log; returns when it is committed."""
        committed: asyncio.Future[None] = self._loop.create_future()
        self._handle(Noted(committed, record))
        self._schedule_cut()
        await committed

    async def _old(self, before_us: int, size: int) -> int:
        """The frame up to which the log is older than this, or has more bytes behind it."""
        upto: int = await self._log.ask(Say.OLD, self._partition, self._log.committed, before_us, size)
        return upto

    async def _page(self, session: str, after: int, limit: int, size: int) -> list[Any] | int:
        page: list[Any] | int = await self._log.ask(Say.RUNS, self._partition, self._log.committed, session, after, limit, size)
        return page

    def _holders(self, partition: int) -> list[Any] | None:
        return [self._log.committed, self._log.holders] if partition == self._partition else None

    # ------------------------------------------------------------------ effects

    def _handle(self, event: Event) -> None:
        self._run_effects(self._sequencer.handle(event))

    def _looked_up(self, event: LookedUp) -> None:
        """What waited for these sessions goes on, and is framed at once if it can be."""
        self._handle(event)
        if self._log.is_idle:
            self._cut_now()
        else:
            self._schedule_cut()

    def _run_effects(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answered):
                source, acks = effect
                assert isinstance(source, Connection)
                source.send([ACKED, self._log.epoch, self._log.copies, acks])
            elif isinstance(effect, Readable):
                self._readers.tell(effect.runs)
            elif isinstance(effect, Refused):
                assert isinstance(effect.source, Connection)
                effect.source.send([Say.REFUSED, self._log.epoch, effect.refusals])
            elif isinstance(effect, LookUp):
                self._lookups.look_up(effect)
            elif isinstance(effect, Loaded):
                effect.waiter(effect.heads)
            elif isinstance(effect, Done):
                if not effect.waiter.done():
                    effect.waiter.set_result(None)
            else:
                spawn(self._recall(effect.retry), "recall")

    async def _recall(self, retry: Retry) -> None:
        """What the log holds of a retry's numbers, out of a store."""
        records: list[Numbered] | None
        try:
            raw = await self._log.ask(
                Say.RECALL, self._partition, self._log.committed,
                retry.session, retry.sender_id, retry.first_n, retry.last_n,
            )  # fmt: skip
            records = [record for record in map(unpack_record, raw) if not isinstance(record, Trim | Floor)]
        except (Unavailable, RequestRefused):
            records = None
        self._handle(Recalled(retry, records))
