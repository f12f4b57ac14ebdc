"""All that one store holds: what it may say yes to, and where each frame lies in its journal.

Owns that the two agree, while a journal is replayed and while one is written. It must not know connections, sessions or the
journal's files. Rules:

1. `state` knows what was handed to the journal, `places` what is on disk: a write is `stored` after its sync.
2. A replay ends where the running store was (``protocol.holdings``).
"""

from __future__ import annotations

from collections.abc import Sequence

from trilogue.actors.journal import Doubted, Entry, FenceRecord, FrameFilled, FrameFound, FramesFound, JoinRecord, Position
from trilogue.actors.protocol.holdings import Fence
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.store import StoreState, Write, WriteFill, WriteFrame, WriteJoin
from trilogue.actors.store.places import IN_FILES, FramePlaces


class StoreContents:
    """The partitions of one store."""

    def __init__(self, log_id: int, limits: Limits, offset_bits: int = IN_FILES) -> None:
        """`offset_bits`: how its journal's positions are kept (``places``)."""
        self._offset_bits = offset_bits
        self.state = StoreState(log_id, limits)
        self.places: dict[int, FramePlaces] = {}

    def partitions(self) -> list[int]:
        """Those of which it has frames."""
        return sorted(partition for partition, places in self.places.items() if not places.empty)

    def committed_upto(self, partition: int) -> int:
        """What it knows to be committed of a partition."""
        state = self.state.partitions.get(partition)
        return state.committed_upto if state is not None else 0

    def crc_at(self, partition: int, index: int) -> int | None:
        """The CRC of a frame; nothing if it is not held."""
        state = self.state.partitions.get(partition)
        return state.crc_at(index) if state is not None else None

    def stored(self, writes: Sequence[Write], positions: Sequence[Position]) -> None:
        """These writes are on disk, each at its position."""
        for write, position in zip(writes, positions, strict=True):
            if isinstance(write, WriteFrame):
                places = self.places.get(write.partition) or self._places_of(write.partition)
                places.take(write.frame_index, position)
            elif isinstance(write, WriteFill):
                self._places_of(write.partition).fill(write.frame_index, position, write.base)
            elif isinstance(write, WriteJoin) and write.kept is not None:
                self._places_of(write.partition).join(write.first, write.kept, write.base)

    def replay(self, entry: Entry) -> None:
        """An entry of the journal, in order."""
        state = self.state
        if isinstance(entry, FrameFound):
            partition = entry.header.partition
            state.replay_frame(entry.header)
            self._places_of(partition).take(entry.header.index, entry.position)
        elif isinstance(entry, FramesFound):
            partition, first = entry.partition, entry.first
            state.partition(partition).take_run(first, entry.prev_crc, entry.committed_upto, entry.epochs, entry.crcs)
            self._places_of(partition).take_run(first, entry.file, entry.offsets, entry.sizes)
        elif isinstance(entry, FrameFilled):
            partition = entry.header.partition
            state.replay_fill(entry.header)
            self._places_of(partition).fill(entry.header.index, entry.position, state.partition(partition).base)
        elif isinstance(entry, FenceRecord):
            state.replay_fence(entry.partition, Fence(entry.epoch, entry.writer, entry.address))
        elif isinstance(entry, JoinRecord):
            partition, fence = entry.partition, Fence(entry.epoch, entry.writer, entry.address)
            kept = state.replay_join(partition, fence, entry.number, entry.first, entry.prev_crc, entry.intervals)
            if kept is not None:
                self._places_of(partition).join(entry.first, kept, state.partition(partition).base)
        elif isinstance(entry, Doubted):
            state.replay_doubt(entry.partition)
        else:
            state.replay_incarnation()

    def _places_of(self, partition: int) -> FramePlaces:
        places = self.places.get(partition)
        if places is None:
            places = self.places[partition] = FramePlaces(self._offset_bits)
        return places
