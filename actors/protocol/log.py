"""The log writer of a partition (design §6): write all, a bounded window, commits in order.

Owns one epoch of one partition's log: which frames were sent, which store has which, what is committed. It must not know
connections, payloads or time. It begins where ``takeover`` ends: all members equal. Rules:

1. A frame is committed when every member said yes to (my epoch, index, CRC). Commits are in order.
2. A frame's bytes never change once made, and a frame that was made is never withdrawn: a member that comes back gets it again.
3. At most `frames_in_flight_max` frames are uncommitted.
4. A member is (store, incarnation). One that comes back under another incarnation is not the member: this writer ends.
5. A writer that is told of another one ends, and never resumes (one process, one epoch).
6. Until the register exists, a missing member is waited for. Nothing is acked meanwhile.
7. When nothing is waiting, an empty frame carries `committed_upto` to the stores, once: it lets them know what they may serve.

What happens to every frame has a method of its own, `propose` and `stored`, with plain arguments and answers: with events and
effects, as `handle` has them, a frame takes 6.6 µs here instead of 3.0.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer


class Proposed(NamedTuple):
    """A payload of `count` records wants to be a frame. Only legal while `LogWriter.has_room`."""

    payload: bytes
    records: int


class Stored(NamedTuple):
    """A member says: all up to (index, CRC), sent by `epoch`, is on my disk."""

    store: str
    epoch: int
    upto: int
    crc: int


class NotStored(NamedTuple):
    """A member says no."""

    store: str
    epoch: int
    code: Code
    text: str


class MemberBack(NamedTuple):
    """A member is connected again, fenced to this writer, and holds what `answer` says."""

    store: str
    identity: tuple[str, int]
    answer: FenceAnswer


class MemberLost(NamedTuple):
    """The connection to a member is gone."""

    store: str


class Idle(NamedTuple):
    """Nothing has been waiting for a while."""


class SendFrames(NamedTuple):
    """Send these frames to these members, in this order."""

    stores: tuple[str, ...]
    frames: list[bytes]


class Committed(NamedTuple):
    """All frames up to `upto` are on every member's disk."""

    upto: int


class Ended(NamedTuple):
    """This writer is over: the process must end. `text` says why."""

    text: str


Event = Proposed | Stored | NotStored | MemberBack | MemberLost | Idle
Effect = SendFrames | Committed | Ended


class _Frame(NamedTuple):
    frame_index: int
    crc: int
    data: bytes


_new = tuple.__new__


class LogWriter:
    """One epoch of one partition's log."""

    def __init__(
        self,
        *,
        log_id: int,
        partition: int,
        epoch: int,
        members: dict[str, tuple[str, int]],
        last_index: int,
        last_crc: int,
        limits: Limits,
    ) -> None:
        """`members` maps a store's name to its identity; each holds the chain up to (last_index, last_crc)."""
        self.epoch = epoch
        self.last_index = last_index
        self.committed = last_index
        self.has_room = True  # whether another frame may be proposed now
        self.connected: tuple[str, ...] = ()  # each is fenced once more when the log opens, and says what it has
        self._members = members
        self._log_id, self._partition, self._limits = log_id, partition, limits
        self._last_crc = last_crc
        self._committed_crc = last_crc
        self._vouched = -1  # so that the epoch begins with an empty frame, which ends every "cannot tell" before it
        self._stored = dict.fromkeys(members, last_index)
        self._frames: deque[_Frame] = deque()

    @property
    def missing(self) -> list[str]:
        """The members that are not connected."""
        return [name for name in self._members if name not in self.connected]

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        match event:
            case Stored():
                upto = self.stored(*event)
                return [Committed(upto)] if upto else []
            case Proposed():
                return self._propose(event.payload, event.records)
            case MemberLost(store):
                self.connected = tuple(name for name in self.connected if name != store)
                return []
            case MemberBack():
                return self._on_back(event)
            case NotStored():
                return self._on_not_stored(event)
            case Idle():
                return self._on_idle()

    def propose(self, payload: bytes, count: int) -> bytes:
        """What `Proposed` asks: make `payload` the next frame. It is to be sent to those who are `connected`."""
        if not self.has_room:
            violated("a frame was proposed beyond the window")
        index = self.last_index + 1
        frame, crc = encode_frame(
            log_id=self._log_id,
            partition=self._partition,
            epoch=self.epoch,
            index=index,
            prev_crc=self._last_crc,
            count=count,
            committed_upto=self.committed,
            payload=payload,
        )
        if len(frame) > self._limits.frame_bytes_max:
            violated("a frame of {} bytes was made", len(frame))
        self.last_index = index
        self._last_crc = crc
        self._vouched = self.committed
        frames = self._frames
        frames.append(_new(_Frame, (index, crc, frame)))
        self.has_room = len(frames) < self._limits.frames_in_flight_max
        return frame

    def _propose(self, payload: bytes, count: int) -> list[Effect]:
        return [SendFrames(self.connected, [self.propose(payload, count)])]

    def stored(self, store: str, epoch: int, upto: int, crc: int) -> int:
        """What `Stored` says. Up to where everything is committed now; 0 when that is where it was."""
        held = self._stored
        if epoch != self.epoch or upto <= held[store]:
            return 0
        if upto > self.last_index:
            violated("{} confirms frame {}, which was never sent", store, upto)
        committed = self.committed
        if self._frames[upto - committed - 1].crc != crc:
            violated("{} confirms another frame at {}", store, upto)
        held[store] = upto
        upto = min(held.values())
        return self._commit(upto) if upto != committed else 0

    def _commit(self, upto: int) -> int:
        index = self.committed
        if upto < index:
            violated("a commit goes back")
        while index < upto:
            frame = self._frames.popleft()
            index += 1
            if frame.frame_index != index:
                violated("commits are out of order")
            self._committed_crc = frame.crc
        self.committed = index
        self.has_room = len(self._frames) < self._limits.frames_in_flight_max
        return index

    def _on_back(self, event: MemberBack) -> list[Effect]:
        if event.identity != self._members[event.store]:
            return [Ended(f"{event.store} is another store, or lost its memory: a new epoch must begin")]
        held = {entry.frame_index: entry.crc for entry in event.answer.tail}
        require(held.get(self.committed, self._committed_crc) == self._committed_crc, f"{event.store} lost a commit")
        require(self.committed == 0 or max(held, default=0) >= self.committed, f"{event.store} lost a commit")
        match = self.committed
        for frame in self._frames:
            if held.get(frame.frame_index) != frame.crc:
                break
            match = frame.frame_index
        self.connected = tuple(name for name in self._members if name in self.connected or name == event.store)
        effects: list[Effect] = []
        if match > self._stored[event.store]:
            self._stored[event.store] = match
            if (upto := min(self._stored.values())) != self.committed:
                effects.append(Committed(self._commit(upto)))
        rest = [frame.data for frame in self._frames if frame.frame_index > match]
        if rest:
            effects.append(SendFrames((event.store,), rest))
        return effects

    def _on_not_stored(self, event: NotStored) -> list[Effect]:
        if event.epoch != self.epoch or event.code == Code.FULL:
            return []
        return [Ended(f"{event.store} refuses epoch {self.epoch}: {event.text}")]

    def _on_idle(self) -> list[Effect]:
        if self._frames or self.committed == self._vouched:
            return []
        effects = self._propose(pack_records([]), 0)
        self._vouched = self.last_index  # an empty frame needs no voucher of its own
        return effects
