"""What the unit tests of a partition's writer share: five stores by name, frames that chain, and a store on a small desk.

Owns no judgement. `Desk` is the store's own state machine, with a disk that has stored at once what it was told: it answers
what a real store would, so that a test need not write answers by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trilogue.actors.protocol.frames import Header, decode_frame, encode_frame
from trilogue.actors.protocol.holdings import Fence
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.ranges import Member
from trilogue.actors.protocol.replication import AskJoin, Fenced, Joined, NotStored, Stored
from trilogue.actors.protocol.store import (
    AppendAsked,
    FenceAsked,
    FillAsked,
    JoinAsked,
    StoreState,
    Tell,
    WriteFill,
    WriteFrame,
)
from trilogue.actors.protocol.takeover import FenceRefused
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry

LOG_ID, PARTITION = 7, 3
A, B, C, D, E = (Member(f"store-{letter}", f"uuid-{letter}", 1) for letter in "abcde")
LIMITS = Limits(frames_in_flight_max=3, join_frames_max=6)


def damaged(member: Member) -> Member:
    """The same store after it cut a damaged tail: it has raised its incarnation."""
    return member._replace(incarnation=member.incarnation + 1)


def emptied(member: Member) -> Member:
    """Another store, in an empty directory at the place of the member."""
    return member._replace(store=f"{member.store}-anew", incarnation=1)


def head(frame: bytes) -> Header:
    return decode_frame(frame, 1 << 20)


def chain(*epochs: int, before: Sequence[bytes] = (), committed: int = 0, salt: bytes = b"") -> list[bytes]:
    """`before`, and behind it a frame of each epoch. All carry `committed`; another `salt` makes other frames."""
    frames = list(before)
    for epoch in epochs:
        frame, _ = encode_frame(
            log_id=LOG_ID, partition=PARTITION, epoch=epoch, index=len(frames) + 1,
            prev_crc=head(frames[-1]).header_crc if frames else 0, count=0, committed_upto=committed,
            payload=pack_records([]) + salt,
        )  # fmt: skip
        frames.append(frame)
    return frames


def answer(frames: Sequence[bytes], committed_upto: int = 0, certain: bool = True, base: int = 1) -> FenceAnswer:
    """What a store says that holds `frames` (from the log's first one on) from `base` on, and no others."""
    first = max(base, min(committed_upto, len(frames)))
    tail = [TailEntry(h.index, h.epoch, h.header_crc) for h in map(head, frames[first - 1 :])]
    if first == base > 1:
        tail.insert(0, TailEntry(base - 1, 0, head(frames[base - 2]).header_crc))
    return FenceAnswer(committed_upto, certain, base, tail)


class Desk:
    """One store of one partition. Whatever it is told is on its disk before it answers."""

    def __init__(self, member: Member, frames: Sequence[bytes] = (), epoch: int = 0) -> None:
        """It holds `frames`, and obeys a writer of `epoch` that is long gone."""
        self._replay(member, frames, Fence(epoch, f"writer of {epoch}", ""))

    def _replay(self, member: Member, frames: Sequence[bytes], fence: Fence) -> None:
        self.member = member
        self._state = StoreState(LOG_ID, LIMITS)
        self._bytes: dict[int, bytes] = {}
        for frame in frames:
            self._state.replay_frame(head(frame))
            self._bytes[head(frame).index] = frame
        if fence.epoch:
            self._state.replay_fence(PARTITION, fence)

    @property
    def key(self) -> str:
        return self.member.key

    @property
    def last_index(self) -> int:
        return self._state.partition(PARTITION).last_index

    @property
    def base(self) -> int:
        return self._state.partition(PARTITION).base

    @property
    def epoch(self) -> int:
        return self._state.partition(PARTITION).highest_epoch

    def cut(self, last: int) -> None:
        """It was restarted, and found its frames after `last` damaged."""
        fence = self._state.partition(PARTITION).fence
        self._replay(damaged(self.member), [self._bytes[index] for index in range(1, last + 1)], fence)
        self._state.replay_incarnation()

    def crc(self, index: int) -> int | None:
        """The CRC of its frame at `index`."""
        return self._state.partition(PARTITION).crc_at(index)

    def read(self, first: int, last: int) -> list[bytes]:
        """Its frames from `first` on, as far as it has them without a hole."""
        frames: list[bytes] = []
        for index in range(first, last + 1):
            frame = self._bytes.get(index)
            if frame is None or self.crc(index) != head(frame).header_crc:
                break
            frames.append(frame)
        return frames

    def view(self) -> StoreView:
        return self._state.view(PARTITION)

    def fence(self, epoch: int, writer: str) -> Fenced | FenceRefused:
        code, value = self._reply(FenceAsked(None, 1, PARTITION, epoch, writer, ""))
        return FenceRefused(self.key, value) if code else Fenced(self.key, _answer_of(value))

    def join(self, epoch: int, writer: str, ask: AskJoin) -> Joined | NotStored:
        asked = JoinAsked(None, 1, PARTITION, epoch, writer, "", ask.number, ask.first, ask.prev_crc, ask.intervals)
        code, value = self._reply(asked)
        return NotStored(self.key, epoch, Code(code), value) if code else Joined(self.key, ask.number, _answer_of(value))

    def append(self, epoch: int, writer: str, frame: bytes) -> Stored | NotStored:
        (message,) = self._do(AppendAsked(None, PARTITION, epoch, writer, [frame]))
        match message:
            case [int(say), _, int(epoch), int(index), int(crc)] if say == Say.STORED:
                return Stored(self.key, epoch, index, crc)
            case [_, _, int(epoch), int(code), str(text)]:
                return NotStored(self.key, epoch, Code(code), text)
        raise AssertionError(message)

    def fill(self, epoch: int, writer: str, frames: list[bytes]) -> int:
        """The base after it took in these frames."""
        code, value = self._reply(FillAsked(None, 1, PARTITION, epoch, writer, frames))
        assert code == 0, value
        return int(value)

    def _reply(self, event: Any) -> tuple[int, Any]:
        (message,) = self._do(event)
        assert message[0] == Say.REPLY
        return message[2], message[3]

    def _do(self, event: Any) -> list[list[Any]]:
        messages = []
        for effect in self._state.handle(event):
            match effect:
                case WriteFrame(_, index, frame) | WriteFill(_, index, frame, _):
                    self._bytes[index] = frame
                case Tell(_, message, _):
                    messages.append(message)
        self._state.synced()
        return messages


def _answer_of(value: list[Any]) -> FenceAnswer:
    committed_upto, certain, base, tail = value
    return FenceAnswer(committed_upto, certain, base, [TailEntry(*entry) for entry in tail])
