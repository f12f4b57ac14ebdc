"""What is asked of a partition's log writer and of the machines before it, and what they ask for in return.

Owns the events and effects that ``founding``, ``takeover`` and ``log`` share. It must not know what is decided. A store is
named by its key: (UUID, incarnation) as one word.
"""

from __future__ import annotations

from typing import NamedTuple

from trilogue.actors.protocol.ranges import Member, PartitionRecord
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer

# ---------------------------------------------------------------------- events


class Proposed(NamedTuple):
    """A payload of `count` records wants to be a frame. Only legal while `LogWriter.has_room`."""

    payload: bytes
    records: int


class Stored(NamedTuple):
    """A store says: all up to (index, CRC), sent by `epoch`, is on my disk."""

    store: str
    epoch: int
    upto: int
    crc: int


class NotStored(NamedTuple):
    """A store says no."""

    store: str
    epoch: int
    code: Code
    text: str


class StoreUp(NamedTuple):
    """A store is connected: a member that was away, or one that could become a member."""

    member: Member


class StoreLost(NamedTuple):
    """The connection to a store is gone."""

    store: str


class Fenced(NamedTuple):
    """A member obeys this writer, and holds what `answer` says."""

    store: str
    answer: FenceAnswer


class Joined(NamedTuple):
    """A store has joined under the number of a change, and holds what `answer` says."""

    store: str
    number: int
    answer: FenceAnswer


class Settled(NamedTuple):
    """The compare-and-set has its outcome: the record is this writer's, with this version; or it is not, and `text` says
    why.
    """

    version: int
    text: str = ""


class Filled(NamedTuple):
    """The copy `number` came to an end: the member holds the chain from the frame `base` on."""

    number: int
    store: str
    base: int


class Idle(NamedTuple):
    """Nothing has been waiting for a while."""


class Tick(NamedTuple):
    """Time passes: said at once, and then every `tick_ms`. `now_ms` is how long this process has been looking for its
    stores.
    """

    now_ms: int


# ---------------------------------------------------------------------- effects


class SendFrames(NamedTuple):
    """Send these frames to these stores, in this order."""

    stores: tuple[str, ...]
    frames: list[bytes]


class Committed(NamedTuple):
    """All frames up to `upto` are on every member's disk."""

    upto: int


class AskFence(NamedTuple):
    """Ask the member to obey this writer's epoch; answered by `Fenced`."""

    store: str
    epoch: int


class AskJoin(NamedTuple):
    """Ask the store to join at the frame `first`; answered by `Joined`. `intervals` are the frames that the record vouches
    for.
    """

    store: str
    number: int
    first: int
    prev_crc: int
    intervals: list[tuple[int, int]]


class CompareAndSet(NamedTuple):
    """Put `record` into the register in the place of `version`; answered by `Settled`, however long it takes."""

    version: int
    record: PartitionRecord


class Backfill(NamedTuple):
    """Copy the frames from `first` to `last`, newest first, to the store, from the first of `sources` that has them.

    Answered by `Filled`.
    """

    number: int
    store: str
    first: int
    last: int
    sources: tuple[str, ...]


class Ended(NamedTuple):
    """This writer is over: the process must end. `text` says why."""

    text: str


Event = Proposed | Stored | NotStored | StoreUp | StoreLost | Fenced | Joined | Settled | Filled | Idle | Tick
Effect = SendFrames | Committed | AskFence | AskJoin | CompareAndSet | Backfill | Ended


class Frame(NamedTuple):
    """A frame that may still have to be sent."""

    frame_index: int
    crc: int
    data: bytes
