"""What a writer asks of a store: the wire's arrays as ``protocol.store``'s events, and its writes as the journal's records.

Owns the shapes, and nothing that lasts. It must not know whether what is asked may be done. An APPEND has a way of its own in
``store_actor``: it is the hot one.
"""

from __future__ import annotations

from typing import Any

from trilogue.actors.journal import FenceRecord, FillRecord, JoinRecord
from trilogue.actors.protocol.holdings import Interval
from trilogue.actors.protocol.store import Event, FenceAsked, FillAsked, JoinAsked, WriteFence, WriteFill, WriteJoin
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection

EPOCH_END = 1 << 63


def asked_of(source: Connection, message: list[Any], partitions: int) -> Event | None:
    """The FENCE, JOIN or FILL that the message is; None if it is none, or makes no sense."""
    match message:
        case [Say.FENCE, int(request), int(partition), int(epoch), str(writer), str(address)]:
            if 0 <= partition < partitions and 0 < epoch < EPOCH_END:
                return FenceAsked(source, request, partition, epoch, writer, address)
        case [Say.JOIN, int(request), int(partition), int(epoch), str(writer), str(address), *asked]:
            if 0 <= partition < partitions and 0 < epoch < EPOCH_END and (join := _join_of(asked)) is not None:
                return JoinAsked(source, request, partition, epoch, writer, address, *join)
        case [Say.FILL, int(request), int(partition), int(epoch), str(writer), [*frames]]:
            if 0 <= partition < partitions and all(type(frame) is bytes for frame in frames):
                return FillAsked(source, request, partition, epoch, writer, frames)
    return None


def _join_of(asked: list[Any]) -> tuple[int, int, int, list[Interval]] | None:
    """[number, first, prev_crc, intervals] of a JOIN; nothing if they make no sense."""
    match asked:
        case [int(number), int(first), int(prev_crc), [*pairs]] if number > 0 and first > 0 and 0 <= prev_crc < 1 << 32:
            if all(isinstance(pair, list) and [*map(type, pair)] == [int, int] for pair in pairs):
                intervals = [(start, end) for start, end in pairs]
                if all(0 < start <= end for start, end in intervals) and (first > 1 or prev_crc == 0):
                    return number, first, prev_crc, intervals
    return None


def record_of(write: WriteFence | WriteJoin | WriteFill) -> FenceRecord | JoinRecord | FillRecord:
    """What the journal is given."""
    if isinstance(write, WriteFill):
        return FillRecord(write.partition, write.frame)
    if isinstance(write, WriteJoin):
        return JoinRecord(write.partition, *write.fence, write.number, write.first, write.prev_crc, tuple(write.intervals))
    return FenceRecord(write.partition, *write.fence)
