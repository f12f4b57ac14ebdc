"""A store: the product's `StoreState` and `StoreIndex` around a disk that loses what was not synced.

Owns the disk (a list of entries, of which a prefix is synced) and the glue that `store_actor` is in production.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Clockwork, Link, Process
from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.store import AppendAsked, Fence, FenceAsked, StoreState, Tell, WriteFence, WriteFrame
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.store_index import Place, StoreIndex

PARTITION = 0
LOG_ID = 7
INCARNATION = "incarnation"

Entry = bytes | Fence | str
"""What a journal holds: a frame, a fence, or the mark of a raised incarnation."""


class Disk:
    """What survives a crash."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.incarnation = 1
        self.entries: list[Entry] = []


class Asker:
    """Where an answer goes: the source that the product's effects carry."""

    def __init__(self, store: StoreProcess, link: Link) -> None:
        self.store, self.link = store, link

    def send(self, message: list[Any]) -> None:
        self.link.send(self.store, message)


class StoreProcess(Process):
    """One run of a store, from the replay of its disk to its death."""

    def __init__(self, world: Clockwork, name: str, disk: Disk, limits: Limits) -> None:
        super().__init__(world, name)
        self.disk, self.limits = disk, limits
        self.state = StoreState(LOG_ID, limits)
        self.index = StoreIndex()
        self.frames: list[bytes] = []
        self.unsynced: list[Entry] = []
        self._tells: list[Tell] = []
        self._flush_is_due = False
        self.sync_ms = world.rng.choice((2, 2, 10))
        for entry in disk.entries:
            self._replay(entry)
        world.note("store up", name, disk.incarnation, len(disk.entries))

    @property
    def identity(self) -> tuple[str, int]:
        return (self.disk.uuid, self.disk.incarnation)

    def _replay(self, entry: Entry) -> None:
        if isinstance(entry, bytes):
            header = decode_frame(entry, self.limits.frame_bytes_max)
            self.state.replay_frame(header)
            self._place(header.index, entry)
        elif isinstance(entry, Fence):
            self.state.replay_fence(PARTITION, entry)
        else:
            self.state.replay_incarnation()

    def _place(self, index: int, frame: bytes) -> None:
        del self.frames[index - 1 :]
        self.frames.append(frame)
        assert len(self.frames) == index

    # ------------------------------------------------------------------ the queue to the disk

    def _decide(self, event: AppendAsked | FenceAsked) -> None:
        for effect in self.state.handle(event):
            match effect:
                case WriteFrame(_, _, frame):
                    self.unsynced.append(frame)
                case WriteFence(_, fence):
                    self.unsynced.append(fence)
                case Tell(source, message, after_sync):
                    if after_sync:
                        self._tells.append(effect)
                    else:
                        source.send(message)
        if not self._flush_is_due and (self.unsynced or self._tells):
            self._flush_is_due = True
            self.world.at(self.world.rng.randrange(0, self.sync_ms), self, self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        entries, tells = self.unsynced, self._tells
        self.unsynced, self._tells = [], []
        self.disk.entries += entries
        for entry in entries:
            if isinstance(entry, bytes):
                self._place(decode_frame(entry, self.limits.frame_bytes_max).index, entry)
        for source, message, _ in tells:
            source.send(message)

    # ------------------------------------------------------------------ messages

    def on_message(self, link: Link, message: list[Any]) -> None:
        source = Asker(self, link)
        match message:
            case [Say.APPEND, partition, epoch, writer, frames]:
                self._decide(AppendAsked(source, partition, epoch, writer, frames))
            case [Say.FENCE, request, partition, epoch, writer, address]:
                self._decide(FenceAsked(source, request, partition, epoch, writer, address))
            case [Say.INSPECT, request, partition]:
                source.send([Say.REPLY, request, 0, list(self.state.view(partition))])
            case [Say.FRAMES, request, _, first, last]:
                source.send([Say.REPLY, request, 0, self.frames[first - 1 : last][:3]])
            case [say, request, _, upto, *rest]:
                if upto > len(self.frames):
                    source.send([Say.REPLY, request, int(Code.UNAVAILABLE), "not here yet"])
                    return
                self.index.catch_up(upto, lambda index: self.frames[index - 1])
                source.send([Say.REPLY, request, 0, self._read(say, rest)])

    def _read(self, say: int, rest: list[Any]) -> Any:
        if say == Say.SESSIONS:
            return list(self.index.state(*rest, 300))
        if say == Say.RUNS:
            return self.index.runs(*rest, 200, self._record)
        assert say == Say.RECALL
        return self.index.recall(*rest, self._record)

    def _record(self, place: Place) -> bytes:
        return self.frames[place.frame_index - 1][place.offset : place.offset + place.size]

    def on_closed(self, link: Link) -> None:
        """Nothing depends on it: a writer comes back by itself."""
