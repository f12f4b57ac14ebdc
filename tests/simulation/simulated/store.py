"""A store: the product's `StoreState` and indexes around a disk that loses what was not synced.

Owns the disk (a list of entries, of which a prefix is synced) and the glue that `store.actor` is in production.
"""

from __future__ import annotations

from itertools import count
from typing import Any, NamedTuple
from zlib import crc32

from simulated.clockwork import Link, Process
from trilogue.actors.index.catalogue import Catalogue
from trilogue.actors.index.entries import Place, sender_crc
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.protocol import thinning
from trilogue.actors.protocol.holdings import Fence, Interval
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.store import (
    AppendAsked,
    Event,
    FenceAsked,
    FillAsked,
    JoinAsked,
    StoreState,
    SyncFirst,
    Tell,
    WriteFence,
    WriteFill,
    WriteFrame,
    WriteJoin,
)
from trilogue.actors.protocol.submissions import Question
from trilogue.actors.protocol.thinning import find_record, header_of
from trilogue.actors.protocol.vocabulary import Code, Say

PARTITION = 0
LOG_ID = 7
INCARNATION = "incarnation"
FOR_EVER = float("inf")
INDEX_STEPS = 4
"""So often the index looks at its clock between two reads: enough to write a part of what is recent."""


class Join(NamedTuple):
    """A join on disk."""

    fence: Fence
    number: int
    first: int
    prev_crc: int
    intervals: tuple[Interval, ...]


class Fill(NamedTuple):
    """A frame that was filled in, on disk."""

    frame: bytes


Entry = bytes | Fence | Join | Fill | str
"""What a journal holds: a frame, a fence, a join, a frame below the base, or the mark of a raised incarnation."""


class Frames:
    """The frames on a disk, by index: a plain copy of what ``store.places`` knows."""

    def __init__(self) -> None:
        self.base = 1
        self.by_index: dict[int, bytes] = {}
        self.last_index = 0

    def take(self, index: int, frame: bytes) -> None:
        for superseded in range(index, self.last_index + 1):
            self.by_index.pop(superseded)
        self.by_index[index] = frame
        self.last_index = index

    def join(self, first: int, kept: list[Interval], base: int) -> None:
        held = {index for start, end in kept for index in range(start, end + 1)}
        self.by_index = {index: frame for index, frame in self.by_index.items() if index in held}
        self.base, self.last_index = base, first - 1

    def fill(self, index: int, frame: bytes, base: int) -> None:
        self.by_index[index] = frame
        self.base = base

    def between(self, first: int, last: int, count: int) -> list[bytes]:
        """The frames from `first` on, up to `last`, `count` of them, or the first that is missing."""
        found: list[bytes] = []
        while first <= last and len(found) < count and first in self.by_index:
            found.append(self.by_index[first])
            first += 1
        return found


class Disk:
    """What survives a crash."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.incarnation = 1
        self.entries: list[Entry] = []
        self.cells: dict[str, Any] = {}  # of its acceptor
        self.catalogue: Catalogue | None = None  # what its index wrote
        self.catalogue_of = (uuid, 0)
        self.frames = Frames()  # as its store has them, without what is not synced


class Asker:
    """Where an answer goes: the source that the product's effects carry."""

    def __init__(self, store: StoreProcess, link: Link) -> None:
        self.store, self.link = store, link

    def send(self, message: list[Any]) -> None:
        self.link.send(self.store, message)

    def close(self) -> None:
        """Nothing of what was asked is stored."""
        self.link.close(self.store)


class StoreProcess(Process):
    """One run of a store, from the replay of its disk to its death."""

    def __init__(self, world: Any, name: str, disk: Disk, limits: Limits) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.disk, self.limits = disk, limits
        self.state = StoreState(LOG_ID, limits)
        self._steps = count()
        self.indexes = IndexKeeper(None, "", self._crc_at, limits, self._steps.__next__)
        if disk.catalogue is not None and disk.catalogue_of == self.identity:
            self.indexes.begin_with(disk.catalogue)
        disk.catalogue, disk.catalogue_of = self.indexes.catalogue, self.identity
        self.frames = disk.frames = Frames()
        self.full = self.fills_up = self.sync_fails = False
        self.unsynced: list[Entry] = []
        self._last_written = 0
        self._tells: list[Tell] = []
        self._placings: list[Any] = []
        self._heard: tuple[Link, int] | None = None
        self._flush_is_due = False
        self.sync_ms = world.rng.choice((2, 2, 10))
        for entry in disk.entries:
            self._replay(entry)
        self._last_written = self.frames.last_index
        if world.profile == "trims":
            self._thin_soon()
        world.note("store up", name, disk.incarnation, len(disk.entries))

    def _thin_soon(self) -> None:
        self.thin()
        self.world.at(self.world.rng.randrange(20, 200), self, self._thin_soon)

    @property
    def identity(self) -> tuple[str, int]:
        return (self.disk.uuid, self.disk.incarnation)

    @property
    def _base(self) -> int:
        return self.state.partition(PARTITION).base

    def _replay(self, entry: Entry) -> None:
        if isinstance(entry, bytes):
            header = header_of(entry, self.limits.frame_bytes_max)
            self.state.replay_frame(header)
            self.frames.take(header.index, entry)
        elif isinstance(entry, Fill):
            header = header_of(entry.frame, self.limits.frame_bytes_max)
            self.state.replay_fill(header)
            self.frames.fill(header.index, entry.frame, self._base)
        elif isinstance(entry, Join):
            kept = self.state.replay_join(PARTITION, *entry)
            if kept is not None:
                self.frames.join(entry.first, kept, self._base)
        elif isinstance(entry, Fence):
            self.state.replay_fence(PARTITION, entry)
        else:
            self.state.replay_incarnation()

    # ------------------------------------------------------------------ the queue to the disk

    def _decide(self, link: Link, event: Event) -> None:
        if self.full:
            self._refuse(event)
            return
        for effect in self.state.handle(event):
            match effect:
                case WriteFrame(_, index, frame):
                    self.world.count("frame superseded" if index <= self._last_written else "frame written")
                    self._last_written = index
                    self._write(frame, self.frames.take, index, frame)
                case WriteFill(_, index, frame, base):
                    self.world.count("fill: absorbed")
                    self._write(Fill(frame), self.frames.fill, index, frame, base)
                case WriteJoin(_, fence, number, first, prev_crc, intervals, kept, base):
                    self.world.count("join: the chain was cut" if kept is not None else "join: the chain goes on")
                    self.world.count("join: older frames were kept" if kept else "join: nothing was kept")
                    entry = Join(fence, number, first, prev_crc, tuple(intervals))
                    if kept is None:
                        self._write(entry)
                    else:
                        self._write(entry, self.frames.join, first, kept, base)
                        self._last_written = first - 1
                case WriteFence(_, fence):
                    self._write(fence)
                case SyncFirst():
                    self._flush()
                    if self.full or not self.alive:
                        return
                case Tell(source, message, after_sync):
                    if not after_sync and message[0] == Say.NOT_STORED:
                        self.world.count(f"store refuses: {Code(message[3]).name.lower()}")
                    if after_sync:
                        self._tells.append(effect)
                        self._heard = (link, self.world.now)
                    else:
                        source.send(message)
        if not self._flush_is_due and (self.unsynced or self._tells):
            self._flush_is_due = True
            self.world.at(self.world.rng.randrange(0, self.sync_ms), self, self._flush)

    def _write(self, entry: Entry, *placing: Any) -> None:
        self.unsynced.append(entry)
        if placing:
            self._placings.append(placing)

    def _refuse(self, event: Event) -> None:
        self.world.count("store refuses: full")
        if isinstance(event, AppendAsked):
            message = [Say.NOT_STORED, event.partition, event.epoch, int(Code.FULL), "its disk is full"]
        else:
            message = [Say.REPLY, event.request_id, int(Code.FULL), "its disk is full"]
        event.source.send(message)

    def _flush(self) -> None:
        if self.full or not self.alive:
            return
        self._flush_is_due = False
        if self.sync_fails and self.unsynced:
            self.world.sync_failed(self)
            return
        if self.fills_up and self.unsynced:
            self.full = True
            for source, _, _ in self._tells:
                source.close()
            self.world.note(self.name, "is full")
            return
        self.state.synced()
        entries, tells, placings = self.unsynced, self._tells, self._placings
        self.unsynced, self._tells, self._placings = [], [], []
        self.disk.entries += entries
        for place, *arguments in placings:
            place(*arguments)
        for source, message, _ in tells:
            source.send(message)

    # ------------------------------------------------------------------ messages

    def on_message(self, link: Link, message: list[Any]) -> None:
        source = Asker(self, link)
        match message:
            case [Say.APPEND, partition, epoch, writer, frames]:
                self._decide(link, AppendAsked(source, partition, epoch, writer, frames))
            case [Say.FENCE, request, partition, epoch, writer, address]:
                self._decide(link, FenceAsked(source, request, partition, epoch, writer, address))
            case [Say.JOIN, request, partition, epoch, writer, address, number, first, prev_crc, intervals]:
                pairs = [(start, end) for start, end in intervals]
                self._decide(
                    link, JoinAsked(source, request, partition, epoch, writer, address, number, first, prev_crc, pairs)
                )
            case [Say.FILL, request, partition, epoch, writer, frames]:
                self._decide(link, FillAsked(source, request, partition, epoch, writer, frames))
            case [Say.INSPECT, request, partition, *who]:
                if who and self.state.partition(partition).obeys(*who):
                    self._heard = (link, self.world.now)
                source.send([Say.REPLY, request, 0, list(self.state.view(partition))])
            case [Say.HEARD, request, partition]:
                source.send([Say.REPLY, request, 0, [self.state.partition(partition).fence.epoch, self._silent_ms()]])
            case [Say.WHERE, request]:
                writers = {partition: [fence.epoch, fence.address] for partition, fence in self.state.fences()}
                source.send([Say.REPLY, request, 0, writers])
            case [Say.FRAMES, request, _, first, last]:
                source.send([Say.REPLY, request, 0, self.frames.between(first, last, 3)])
            case [say, request, _, upto, *rest]:
                if not self.is_whole(upto):
                    source.send([Say.REPLY, request, int(Code.UNAVAILABLE), "not here yet"])
                    return
                self.indexes.advance(PARTITION, upto, self._frame, FOR_EVER)
                source.send([Say.REPLY, request, 0, self._read(say, upto, rest)])
                self.indexes.tidy(next(self._steps) + INDEX_STEPS, rest=True)

    def is_whole(self, upto: int) -> bool:
        """Whether it holds the log from its first frame on, up to `upto`."""
        return self.frames.base == 1 and upto <= self.frames.last_index

    def _silent_ms(self) -> int:
        if self._heard is None or self._heard[0].is_closed(self):
            return -1
        return int(self.world.now - self._heard[1])

    def _read(self, say: int, upto: int, rest: list[Any]) -> Any:
        index = self.indexes.of(PARTITION)
        match say, rest:
            case Say.STATES, [asked]:
                return self._states(upto, [Question(*one) for one in asked])
            case Say.RUNS, [session, after, limit, *_]:
                return index.runs(session, after, limit, 200, self._record)
            case Say.RECALL, [session, sender_id, first_n, last_n]:
                return index.recall(session, sender_id, first_n, last_n, self._record)
        raise AssertionError(f"a read {say} of unknown shape")

    def _states(self, upto: int, asked: list[Question]) -> Any:
        """Now and then no more is covered than was asked, or is told of a session's senders: any store may do so."""
        indexes = self.indexes
        if asked and self.world.rng.random() < 0.3:
            indexes = IndexKeeper(None, "", self._crc_at, self.limits)
            indexes.advance(PARTITION, upto, self._frame, FOR_EVER)
        bytes_max = self.world.rng.choice((1, 300))
        answer = indexes.of(PARTITION).states(asked, self.limits.senders_answered_max, bytes_max)
        last_stored_at_us, covered, told = answer
        for (_, senders, keys), state in zip(asked, told, strict=False):
            if self.world.rng.random() < 0.5:
                state[1] = {sender_id: n for sender_id, n in state[1].items() if sender_id in senders}
                state[2] = False
                state[3] = {key: known for key, known in state[3].items() if key in keys}
                state[4] = False
        return [last_stored_at_us, covered, told]

    def _frame(self, index: int) -> bytes:
        return self.frames.by_index[index]

    def _crc_at(self, _: int, index: int) -> int | None:
        return self.state.partition(PARTITION).crc_at(index)

    def _record(self, session: str, place: Place) -> bytes:
        frame = self.frames.by_index[place.frame_index]
        record = frame[place.offset : place.offset + place.size]
        if len(record) == place.size and crc32(record) == place.crc:
            return record
        found = find_record(frame, session, place.sender, place.first_n, sender_crc)
        assert found is not None, "an entry leads nowhere"
        return found

    def thin(self) -> None:
        """Leave of the frames that are on disk, and in the index, what is not gone; each in one step, as a file is renamed."""
        index = self.indexes.indexes.get(PARTITION)
        if index is None or not self.alive:
            return
        is_gone = index.gone()
        keys_from_us = index.recent.last_stored_at_us - self.limits.key_honoured_ms * 1000
        for frame_index, frame in list(self.frames.by_index.items()):
            if not self._base <= frame_index <= index.upto:
                continue
            left = thinning.thinned(frame, lambda item, at=frame_index: is_gone(at, item), keys_from_us)
            for at, entry in enumerate(self.disk.entries):
                if entry is frame or (isinstance(entry, Fill) and entry.frame is frame):
                    if left is not frame:
                        self.world.count("store: a frame became thin")
                        self.disk.entries[at] = left if entry is frame else Fill(left)
                        self.frames.by_index[frame_index] = left
                    break

    def on_closed(self, link: Link) -> None:
        """Nothing depends on it: a writer comes back by itself."""
