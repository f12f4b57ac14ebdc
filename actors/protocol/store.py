"""What a store may say yes to (design §5, §6): append, fence, idempotent re-append, supersede.

Owns the state of every partition on one store, up to the last byte that was handed to the journal. It must not know files,
connections or time: it is told what was asked and answers with effects. Rules:

1. A store obeys only the writer that it is fenced to. A fence is accepted with a strictly higher epoch, or as the identical
   (epoch, writer) again.
2. A frame is appended only if it chains to the partition's last frame.
3. The same index with the same CRC is a yes. Another frame at an index that it has supersedes that one and all after it; its
   epoch is higher than that of the frame that it replaces, and it never replaces one that is known to be committed.
4. No yes and no fence's answer leaves before everything handed over until then is on disk (`after_sync`).
5. A frame that carries `committed_upto` vouches for the chain that ends in it, and for nothing else.
6. A store that cut a damaged tail cannot tell what it once held ("cannot tell" is not "does not have": BookKeeper BP-46,
   #2908). It is certain again with the first frame that was made in an epoch after the cut: until the register exists, a
   writer makes such a frame only after it has made all three stores equal.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import Header, decode_frame
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import STORED, Code, FenceAnswer, Say, StoreView, TailEntry

_new = tuple.__new__  # a `NamedTuple` without its own `__new__`: 0.15 µs instead of 0.3

CERTAIN = -1
"""An `uncertain_epoch` that no epoch is below: the store has lost nothing that it ever said yes to."""


class Fence(NamedTuple):
    """The writer that a partition obeys, and where that writer can be found."""

    epoch: int
    writer: str
    address: str


UNFENCED = Fence(0, "", "")


class AppendAsked(NamedTuple):
    """A writer sends frames."""

    source: Any
    partition: int
    epoch: int
    writer: str
    frames: list[bytes]


class FenceAsked(NamedTuple):
    """A writer wants the partition."""

    source: Any
    request_id: int
    partition: int
    epoch: int
    writer: str
    address: str


class WriteFrame(NamedTuple):
    """Hand the frame to the journal, in this order. It stands at `frame_index`, and replaces what stood there."""

    partition: int
    frame_index: int
    frame: bytes


class WriteFence(NamedTuple):
    """Hand the fence to the journal, in the same queue."""

    partition: int
    fence: Fence


class Tell(NamedTuple):
    """Send `message` to `source`: at once, or when all that was handed over until now is on disk."""

    source: Any
    message: list[Any]
    after_sync: bool


Event = AppendAsked | FenceAsked
Effect = WriteFrame | WriteFence | Tell


class PartitionState:
    """One partition's chain on this store. Frame `index` stands at position `index - 1` of the arrays."""

    __slots__ = ("committed_upto", "crcs", "epochs", "fence", "uncertain_epoch")

    def __init__(self, uncertain_epoch: int) -> None:
        self.fence = UNFENCED
        self.crcs = array("I")
        self.epochs = array("Q")
        self.committed_upto = 0
        self.uncertain_epoch = uncertain_epoch

    @property
    def last_index(self) -> int:
        """The index of the last frame, 0 for none."""
        return len(self.crcs)

    @property
    def highest_epoch(self) -> int:
        """The highest epoch seen, in a fence or in a frame."""
        return max(self.fence.epoch, self.epochs[-1] if self.epochs else 0)

    def take(self, header: Header) -> None:
        """Put an accepted frame at its index, superseding what stood there and after it."""
        epoch, index, committed_upto = header.epoch, header.index, header.committed_upto
        crcs, epochs = self.crcs, self.epochs
        last = len(crcs)
        if not 1 <= index <= last + 1:
            violated("frame {} leaves a hole after {}", index, last)
        if header.prev_crc != (crcs[index - 2] if index > 1 else 0):
            violated("frame {} does not chain", index)
        if committed_upto >= index:
            violated("frame {} vouches for itself", index)
        if index <= last:
            require(index > self.committed_upto, "frame {} would replace a committed one", index)
            require(epoch > epochs[index - 1], "frame {} of epoch {} supersedes a later one", index, epoch)
            del crcs[index - 1 :]
            del epochs[index - 1 :]
        if epochs and epoch < epochs[-1]:
            violated("frame {}: its epoch goes back", index)
        crcs.append(header.header_crc)
        epochs.append(epoch)
        if committed_upto > self.committed_upto:
            self.committed_upto = committed_upto
        if epoch > self.uncertain_epoch:
            self.uncertain_epoch = CERTAIN

    def answer(self) -> FenceAnswer:
        """What this store holds, for the writer that has just fenced it."""
        first = max(1, self.committed_upto)
        tail = [TailEntry(i, self.epochs[i - 1], self.crcs[i - 1]) for i in range(first, self.last_index + 1)]
        return FenceAnswer(self.committed_upto, self.uncertain_epoch == CERTAIN, tail)


class StoreState:
    """All partitions of one store. `handle` decides; the `replay_…` methods rebuild the state from the journal."""

    def __init__(self, log_id: int, limits: Limits) -> None:
        self.partitions: dict[int, PartitionState] = {}
        self._log_id = log_id
        self._limits = limits
        self._unknown_is_uncertain = False

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one request. Raises `ProtocolError` for a malformed frame: that connection ends, nothing changed."""
        if isinstance(event, AppendAsked):
            return self._append(event)
        return self._fence(event)

    def partition(self, partition: int) -> PartitionState:
        """The partition's state, made when it is first spoken of."""
        state = self.partitions.get(partition)
        if state is None:
            state = self.partitions[partition] = PartitionState(0 if self._unknown_is_uncertain else CERTAIN)
        return state

    def view(self, partition: int) -> StoreView:
        """What may be known of a partition before it is fenced."""
        state = self.partition(partition)
        return StoreView(state.highest_epoch, state.last_index)

    # ------------------------------------------------------------------ deciding

    def _append(self, event: AppendAsked) -> list[Effect]:
        partition, epoch = event.partition, event.epoch
        state = self.partitions.get(partition) or self.partition(partition)
        fence = state.fence
        if epoch != fence.epoch or event.writer != fence.writer or epoch == 0:
            text = f"epoch {epoch} does not hold partition {partition}: epoch {fence.epoch} does"
            return [self._not_stored(event, Code.DEPOSED, text)]
        checked = self._checked(event)
        crcs = state.crcs
        effects: list[Effect] = []
        for header, frame in checked:
            index, crc, last = header.index, header.header_crc, len(crcs)
            if index <= last and crcs[index - 1] == crc:
                continue
            if index > last + 1 or header.prev_crc != (crcs[index - 2] if index > 1 else 0):
                text = f"frame {index} does not chain to this store's frames, which end at {last}"
                effects.append(self._not_stored(event, Code.NOT_CHAINED, text))
                return effects
            state.take(header)
            effects.append(_new(WriteFrame, (partition, index, frame)))
        if checked:
            effects.append(_new(Tell, (event.source, [STORED, partition, epoch, index, crc], True)))
        return effects

    def _checked(self, event: AppendAsked) -> list[tuple[Header, bytes]]:
        """The frames with their headers: all intact, of this partition, and such as their writer may send."""
        log_id, frame_bytes_max = self._log_id, self._limits.frame_bytes_max
        checked = []
        for frame in event.frames:
            header = decode_frame(frame, frame_bytes_max)
            if header.log_id != log_id or header.partition != event.partition or header.flags:
                raise ProtocolError(f"a frame of another log or partition was sent to partition {event.partition}")
            index = header.index
            if header.epoch > event.epoch or index < 1 or header.committed_upto >= index:
                raise ProtocolError(f"frame {index} of epoch {header.epoch} cannot come from epoch {event.epoch}")
            checked.append((header, frame))
        return checked

    def _fence(self, event: FenceAsked) -> list[Effect]:
        state = self.partition(event.partition)
        same = (event.epoch, event.writer) == state.fence[:2]
        if not same and event.epoch <= state.highest_epoch:
            text = f"epoch {state.highest_epoch} was seen here: epoch {event.epoch} is too low"
            return [Tell(event.source, [Say.REPLY, event.request_id, int(Code.DEPOSED), text], after_sync=False)]
        state.fence = Fence(event.epoch, event.writer, event.address)
        reply = [Say.REPLY, event.request_id, 0, list(state.answer())]
        return [WriteFence(event.partition, state.fence), Tell(event.source, reply, after_sync=True)]

    @staticmethod
    def _not_stored(event: AppendAsked, code: Code, text: str) -> Tell:
        return Tell(event.source, [Say.NOT_STORED, event.partition, event.epoch, int(code), text], after_sync=False)

    # ------------------------------------------------------------------ rebuilding

    def replay_frame(self, header: Header) -> None:
        """A frame of the journal, in order."""
        self.partition(header.partition).take(header)

    def replay_fence(self, partition: int, fence: Fence) -> None:
        """A fence of the journal, in order. A file's repeated fences are among them."""
        state = self.partition(partition)
        require(fence.epoch >= state.fence.epoch, f"a fence of partition {partition} goes back")
        state.fence = fence

    def replay_incarnation(self) -> None:
        """Here the store once cut a damaged tail: from now on it cannot tell what it held of any partition."""
        self._unknown_is_uncertain = True
        for state in self.partitions.values():
            state.uncertain_epoch = state.highest_epoch

    def fences(self) -> Iterable[tuple[int, Fence]]:
        """The fences in force."""
        return ((partition, state.fence) for partition, state in self.partitions.items() if state.fence.epoch)
