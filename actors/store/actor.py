"""A store: one durable replica on one node (design §5). The shell around ``protocol.store``, the journal and the index.

Owns the store's process: its streams, its one queue to the journal, its reads. It must not know Ray, sessions' rules or who
the other stores are. Rules:

1. Everything that waits is written with one `append` and one `fdatasync`, in the event loop's own thread (a hop to another
   costs 84 µs); only then do the answers leave.
2. Reads go to one thread of their own, and see committed frames only.
3. A full disk (or a Redis server out of memory) makes a failed member: appends and fences are refused, reads are served;
   when there is room again the process ends, and its successor opens the journal anew.
4. A journal that cannot be opened is never served: `status` says why, and every request is refused with it. The process ends
   when it may be tried again (``opening``).
5. The acceptor of the register is a thing of its own in the same directory: it answers also while the journal is full or
   refused, and the journal serves also while the acceptor is refused.
6. A store whose directory vanished or was replaced has lost what it promised: its process ends, and its successor is a new
   store.
7. Who was heard last, in each partition, and when: the fenced writer, by any request that it is obeyed in (an INSPECT that
   names it, too). A writer whose connection was closed is not heard at all. A spare asks for it before it takes over.
8. A frame that went bad is taken back from a partition's writer, if it is the very one that was stored (``scrubber``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from pathlib import Path
from typing import Any

from trilogue.actors.config import StoreConfig
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.journal import (
    FenceRecord,
    FillRecord,
    JoinRecord,
    JournalFull,
    StoreJournal,
    directory_mark,
)
from trilogue.actors.protocol.errors import (
    Corrupt,
    DataError,
    DirectoryInUse,
    ProtocolError,
    ServerUnusable,
)
from trilogue.actors.protocol.holdings import Interval
from trilogue.actors.protocol.store import (
    AppendAsked,
    Event,
    FenceAsked,
    FillAsked,
    JoinAsked,
    SyncFirst,
    Tell,
    Write,
    WriteFence,
    WriteFill,
    WriteFrame,
    WriteJoin,
)
from trilogue.actors.protocol.vocabulary import APPEND, Code, Say
from trilogue.actors.pump import end_process, guarded, settle_process, spawn
from trilogue.actors.server import Server, answer_later, listen_preferring
from trilogue.actors.store.acceptor import VOTES, Acceptor
from trilogue.actors.store.contents import StoreContents
from trilogue.actors.store.opening import Watched, check_identity, lock_when_free, open_journal, refused
from trilogue.actors.store.reader import READS, StoreReader
from trilogue.actors.store.scrubber import Held, Scrubber
from trilogue.actors.wire import Connection

logger = logging.getLogger(__name__)

CHECK_S = 1.0
EPOCH_END = 1 << 63
_APPEND_TYPES = [int, int, int, str, list]
_FRAMES_TYPES = {bytes}  # there is a frame, and all are bytes
_new = tuple.__new__


class StoreActor:
    """One store. Made inside a running event loop; `ready` waits until it serves."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._limits = config.limits
        self._partitions = config.partitions
        self._held = StoreContents(config.log_id, config.limits)
        self._journal: StoreJournal | None = None
        self._acceptor: Acceptor | None = None
        self._acceptor_problem: DataError | None = None
        self._problem: DataError | None = None
        self._full = False
        self._buffers: list[bytes | FenceRecord | JoinRecord | FillRecord] = []
        self._writes: list[Write] = []
        self._tells: list[Tell] = []
        self._flush_is_due = False
        self._heard: dict[int, tuple[Connection, float]] = {}
        self._indexes: IndexKeeper | None = None
        self._reader: StoreReader | None = None
        self._scrubber: Scrubber | None = None
        self._loop = asyncio.get_running_loop()
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._info: dict[str, Any] = {
            "role": "store",
            "name": config.name,
            "cluster": config.cluster_id,
            "pid": os.getpid(),
        }
        self._server = Server(
            config.token, self._info, guarded(self._on_message), lambda _: None, lambda *_: None, config.limits
        )
        self._flush = guarded(self._flush_now)
        spawn(self._run(), config.name)

    # ------------------------------------------------------------------ what Ray and people call

    async def ready(self) -> str:
        """The address, once the journal is open, or waits for its server. Raises the `DataError` that keeps it from serving."""
        await asyncio.shield(self._settled)
        if self._problem is not None and not isinstance(self._problem, ServerUnusable):
            raise self._problem
        return self._server.address

    async def status(self) -> dict[str, Any]:
        """What it is and how it is, for people and for `trilogue status`."""
        journal = self._journal
        return {
            "role": "store",
            "name": self._config.name,
            "pid": os.getpid(),
            "address": self._server.address,
            "state": self._state_text(),
            "directory": self._config.directory,
            "url": self._config.url,
            "store": self._info.get("store"),
            "incarnation": self._info.get("incarnation"),
            "journal": journal.status() if journal is not None else None,
            "register": self._acceptor.status() if self._acceptor is not None else str(self._acceptor_problem or "not open"),
            "index": self._indexes.status() if self._indexes is not None else None,
            "scrubber": self._scrubber.status() if self._scrubber is not None else None,
            "disk_bytes_free": journal.bytes_free() if journal is not None else None,
            "partitions": {
                partition: {
                    "epoch": state.fence.epoch,
                    "writer": state.fence.address,
                    "base": state.base,
                    "last_index": state.last_index,
                    "committed_upto": state.committed_upto,
                    "certain": state.certain,
                }
                for partition, state in sorted(self._held.state.partitions.items())
            },
        }

    def _state_text(self) -> str:
        if self._problem is not None:
            return f"refuses to serve: {self._problem}"
        if self._journal is None:
            return "opening its journal"
        what = "memory of its server" if self._config.url else "disk space"
        return f"full: it serves reads only; free some {what}" if self._full else "open"

    # ------------------------------------------------------------------ opening

    async def _run(self) -> None:
        await listen_preferring(self._server, self._config.listen)
        try:
            journal = await self._open()
        except DirectoryInUse as problem:
            self._settle(problem)
            raise  # the process ends; its successor finds the directory free, or says the same
        except DataError as problem:
            self._settle(problem)
            watched: Watched | None = refused(self._config, problem)
        else:
            self._serve(journal)
            watched = journal
        end_process(await self._reason_to_end(directory_mark(self._config.directory), watched))

    def _serve(self, journal: StoreJournal) -> None:
        self._journal = journal
        identity = journal.identity
        mark = f"{identity.store} {identity.incarnation} {identity.log_id:x}"
        self._indexes = IndexKeeper(journal.directory, mark, self._held.crc_at, self._limits)
        self._reader = StoreReader(
            journal, self._held.places, self._indexes, self._held.committed_upto, self._found_bad, self._is_back, self._limits
        )
        catalogue = Held(self._held.state.partitions, self._held.places)
        reader = self._reader
        self._scrubber = Scrubber(
            journal, catalogue, reader.readable_again, self._limits, reader.answer, reader.thinner.put_back
        )
        self._full = journal.full
        settle_process()
        self._info.update(store=identity.store, incarnation=identity.incarnation)
        self._settle(None)
        spawn(self._reader.keep_up(), "the indexes")
        spawn(self._scrubber.run(), "the scrubber")

    def _found_bad(self, partition: int, index: int, problem: str) -> None:
        """The reader's thread could not read a frame."""
        if self._scrubber is not None:
            self._loop.call_soon_threadsafe(self._scrubber.found_bad, partition, index, problem)

    def _is_back(self, partition: int, index: int) -> None:
        """The reader's thread wrote a file anew, with this frame in it."""
        if self._scrubber is not None:
            self._loop.call_soon_threadsafe(self._scrubber.mended, partition, index)

    async def _reason_to_end(self, directory: tuple[int, ...], watched: Watched | None) -> str:
        """Returns when the process must end, to begin anew: for most stores, never."""
        while True:
            await asyncio.sleep(CHECK_S)
            if directory_mark(self._config.directory) != directory:
                return f"{self._config.directory} is gone, or another one: what was promised here is lost"
            if watched is not None and (reason := await asyncio.to_thread(watched.reason_to_end)):
                return reason

    def _settle(self, problem: DataError | None) -> None:
        self._problem = problem
        if not self._settled.done():
            self._settled.set_result(None)

    async def _open(self) -> StoreJournal:
        """The open journal; `_held` is what it holds."""
        self._lock = await lock_when_free(self._config)
        identity = check_identity(self._config)
        await asyncio.to_thread(self._open_acceptor, Path(self._config.directory))

        def not_yet(problem: ServerUnusable) -> None:
            if str(problem) != str(self._problem):
                logger.warning("%s does not open: %s", self._config.name, problem)
            self._settle(problem)

        journal, self._held = await open_journal(self._config, identity, not_yet)
        return journal

    def _open_acceptor(self, directory: Path) -> None:
        try:
            self._acceptor = Acceptor.open(
                directory, cluster=self._config.cluster_id, fresh_acceptor=uuid.uuid4().hex, limits=self._limits
            )
        except DataError as problem:
            self._acceptor_problem = problem

    # ------------------------------------------------------------------ taking messages

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        if message[0] == APPEND:
            # No `match`: in Python 3.11 each `int(…)` or `str(…)` of a pattern costs 0.6 µs, this shape 3 µs instead of 0.4.
            if [*map(type, message)] == _APPEND_TYPES:
                _, partition, epoch, writer, frames = message
                if 0 <= partition < self._partitions and {*map(type, frames)} == _FRAMES_TYPES:
                    self._decide(_new(AppendAsked, (connection, partition, epoch, writer, frames)))
                    return
            raise ProtocolError("an append of unknown shape")
        match message:
            case [Say.FENCE, int(request), int(partition), int(epoch), str(writer), str(address)]:
                if 0 <= partition < self._partitions and 0 < epoch < EPOCH_END:
                    self._decide(FenceAsked(connection, request, partition, epoch, writer, address))
                    return
            case [Say.JOIN, int(request), int(partition), int(epoch), str(writer), str(address), *asked]:
                if 0 <= partition < self._partitions and 0 < epoch < EPOCH_END and (join := _join_of(asked)) is not None:
                    self._decide(JoinAsked(connection, request, partition, epoch, writer, address, *join))
                    return
            case [Say.FILL, int(request), int(partition), int(epoch), str(writer), [*frames]]:
                if 0 <= partition < self._partitions and {*map(type, frames)} <= _FRAMES_TYPES:
                    self._decide(FillAsked(connection, request, partition, epoch, writer, frames))
                    return
            case [int(), int(request), *arguments]:
                self._on_request(connection, message[0], request, arguments)
                return
        raise ProtocolError("a message of unknown shape to a store")

    def _on_request(self, connection: Connection, say: int, request: int, arguments: list[Any]) -> None:
        if say == Say.PING:
            connection.reply(request, ["store", self._config.name])
        elif say == Say.STATUS:
            answer_later(connection, request, self.status)
        elif say in VOTES:
            self._on_vote(connection, request, say, arguments)
        elif self._journal is None:
            connection.refuse(request, Code.UNAVAILABLE, f"{self._config.name} is not open: {self._state_text()}")
        elif say == Say.WHERE:
            connection.reply(request, self._route())
        elif say == Say.PARTITIONS:
            connection.reply(request, self._held.partitions())
        elif say == Say.INSPECT and len(arguments) in (1, 4) and arguments[0] in range(self._partitions):
            self._on_inspect(connection, request, *arguments)
        elif say == Say.HEARD and len(arguments) == 1 and arguments[0] in range(self._partitions):
            connection.reply(request, self._heard_of(arguments[0]))
        elif say == Say.DAMAGED and len(arguments) == 1 and (scrubber := self._scrubber) is not None:
            connection.reply(request, scrubber.damaged(arguments[0]))
        elif say == Say.REPAIR:
            self._on_repair(connection, request, arguments)
        elif say in READS and (reader := self._reader) is not None:
            read = reader.reading(say, arguments)
            answer_later(connection, request, lambda: reader.answer(read, connection if say == Say.RECORDS else None))
        else:
            raise ProtocolError(f"a store knows no request {say} of this shape")

    def _on_vote(self, connection: Connection, request: int, say: int, arguments: list[Any]) -> None:
        if self._acceptor is not None:
            self._acceptor.serve(connection, request, say, arguments)
        elif self._acceptor_problem is not None:
            connection.refuse(request, Code.CORRUPT, str(self._acceptor_problem))
        else:
            connection.refuse(request, Code.UNAVAILABLE, f"{self._config.name} is not open: {self._state_text()}")

    def _on_repair(self, connection: Connection, request: int, arguments: list[Any]) -> None:
        scrubber = self._scrubber
        match arguments:
            case [int(partition), int(epoch), str(), [*frames]] if (
                partition in range(self._partitions) and scrubber is not None
            ):
                in_force = self._held.state.partition(partition).fence.epoch
                if epoch < in_force:
                    connection.refuse(request, Code.DEPOSED, f"epoch {in_force} holds partition {partition}, not {epoch}")
                    return
                if {*map(type, frames)} <= _FRAMES_TYPES:
                    answer_later(connection, request, lambda: scrubber.repair(partition, frames))
                    return
        raise ProtocolError("a repair of unknown shape")

    def _on_inspect(self, link: Connection, request: int, partition: int, epoch: int = 0, writer: str = "", *warm: Any) -> None:
        if self._reader is not None and self._held.state.partition(partition).obeys(epoch, writer):
            self._heard[partition] = (link, self._loop.time())
            self._reader.keep_warm(partition, any(warm))
        link.reply(request, list(self._held.state.view(partition)))

    def _heard_of(self, partition: int) -> list[int]:
        """[epoch, for how many ms its writer was not heard]; -1: it has no connection here, or was never heard."""
        epoch = self._held.state.partition(partition).fence.epoch
        heard = self._heard.get(partition)
        if heard is None or heard[0].closed:
            return [epoch, -1]
        return [epoch, int(1000 * (self._loop.time() - heard[1]))]

    def _route(self) -> dict[str, Any]:
        writers = {partition: [fence.epoch, fence.address] for partition, fence in self._held.state.fences()}
        addresses = [self._server.address, *(address for _, address in writers.values())]
        return {
            "cluster": self._config.cluster_id,
            "partitions": self._config.partitions,
            "writers": writers,
            "addresses": addresses,
        }

    # ------------------------------------------------------------------ the one queue to the journal

    def _decide(self, event: Event) -> None:
        if self._journal is None or self._full:
            self._refuse(event)
            return
        for effect in self._held.state.handle(event):
            if isinstance(effect, WriteFrame):
                self._buffers.append(effect.frame)
                self._writes.append(effect)
            elif isinstance(effect, Tell):
                if effect.after_sync:
                    self._tells.append(effect)
                    # Only who is obeyed is answered in this way.
                    self._heard[event.partition] = (effect.source, self._loop.time())
                else:
                    effect.source.send(effect.message)
            elif isinstance(effect, SyncFirst):
                self._flush_now()
                if self._full:
                    return  # what follows would leave a hole
            else:
                self._buffers.append(record_of(effect))
                self._writes.append(effect)
        if not self._flush_is_due and (self._buffers or self._tells):
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _refuse(self, event: Event) -> None:
        code = Code.FULL if self._full else Code.CORRUPT if isinstance(self._problem, Corrupt) else Code.UNAVAILABLE
        text = f"{self._config.name} is not open: {self._state_text()}"
        if isinstance(event, AppendAsked):
            event.source.send([Say.NOT_STORED, event.partition, event.epoch, int(code), text])
        else:
            event.source.refuse(event.request_id, code, text)

    def _flush_now(self) -> None:
        """One write and one `fdatasync` for all that waits, then the answers."""
        self._flush_is_due = False
        self._held.state.synced()
        buffers, writes, tells = self._buffers, self._writes, self._tells
        self._buffers, self._writes, self._tells = [], [], []
        journal = self._journal
        assert journal is not None
        if buffers:
            try:
                positions = journal.append(buffers)
            except JournalFull:
                self._on_full(tells)
                return
        else:
            positions = []
        for source, message, _ in tells:
            source.send(message)
        # Only now: whoever waits for an answer waits for the disk and nothing else, and nobody reads in this turn of the loop.
        self._held.stored(writes, positions)

    def _on_full(self, tells: list[Tell]) -> None:
        """Nothing of this batch counts: who asked is told, and the memory of it ends with this process."""
        self._full = True
        for source, _, _ in tells:
            source.close(f"{self._config.name} is full: nothing of this counts as stored")


def record_of(write: WriteFence | WriteJoin | WriteFill) -> FenceRecord | JoinRecord | FillRecord:
    """What the journal is given."""
    if isinstance(write, WriteFill):
        return FillRecord(write.partition, write.frame)
    if isinstance(write, WriteJoin):
        return JoinRecord(write.partition, *write.fence, write.number, write.first, write.prev_crc, tuple(write.intervals))
    return FenceRecord(write.partition, *write.fence)


def _join_of(asked: list[Any]) -> tuple[int, int, int, list[Interval]] | None:
    """[number, first, prev_crc, intervals] of a JOIN; nothing if they make no sense."""
    match asked:
        case [int(number), int(first), int(prev_crc), [*pairs]] if number > 0 and first > 0 and 0 <= prev_crc < 1 << 32:
            if all(isinstance(pair, list) and [*map(type, pair)] == [int, int] for pair in pairs):
                intervals = [(start, end) for start, end in pairs]
                if all(0 < start <= end for start, end in intervals) and (first > 1 or prev_crc == 0):
                    return number, first, prev_crc, intervals
    return None
