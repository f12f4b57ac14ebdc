"""What the register says of a partition: who writes it, and which stores hold which part of its log (design §6).

Owns the record's shape and its bytes, and the questions that everybody asks of it. It must not know how a record comes to
be changed. Rules:

1. A member is (store, incarnation); its name only says where to find it.
2. Ranges begin at frame 1 and follow each other without a hole: each ends where the next one begins. The last one is open.
3. A record vouches for the closed ranges only: what a member holds of the last one, it must be asked.
4. What is decoded has the right shape, or `ProtocolError` is raised: a record is believed whole or not at all.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import msgpack

from trilogue.actors.protocol.errors import ProtocolError

Identity = tuple[str, int]
"""(store, incarnation)."""


class Member(NamedTuple):
    """One store of a range: `name` is where to find it, (`store`, `incarnation`) who it is."""

    name: str
    store: str
    incarnation: int

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return (self.store, self.incarnation)

    @property
    def key(self) -> str:
        """Who it is, as one word."""
        return f"{self.store}.{self.incarnation}"


class Range(NamedTuple):
    """The frames from `first` on, up to the next range's first, are on every one of `members`."""

    first: int
    members: tuple[Member, ...]


class PartitionRecord(NamedTuple):
    """A partition's writer and where its log is."""

    epoch: int
    writer: str
    address: str
    ranges: tuple[Range, ...]


def record_key(partition: int) -> str:
    """Under which key the register keeps the partition's record."""
    return f"partition/{partition}"


def is_member(member: Member, identity: Identity) -> bool:
    """Whether the store of this identity is the member: another incarnation of it is not."""
    return member.identity == identity


def vouched(ranges: tuple[Range, ...], store: str, incarnation: int) -> list[tuple[int, int]]:
    """The intervals (both ends included) of the closed ranges that name this store, in order; neighbours are joined."""
    found: list[tuple[int, int]] = []
    for range_, following in pairwise(ranges):
        if any(is_member(member, (store, incarnation)) for member in range_.members):
            first, last = range_.first, following.first - 1
            if found and found[-1][1] == first - 1:
                first = found.pop()[0]
            found.append((first, last))
    return found


def encode_record(record: PartitionRecord) -> bytes:
    """The record's bytes. Raises `ProtocolError` for a record that could not be decoded again."""
    fields = [record.epoch, record.writer, record.address, [[r.first, [list(m) for m in r.members]] for r in record.ranges]]
    _checked(fields)
    data: bytes = msgpack.packb(fields, use_bin_type=True)
    return data


def decode_record(data: bytes) -> PartitionRecord:
    """The inverse of `encode_record`. Raises `ProtocolError`."""
    try:
        fields = msgpack.unpackb(data, use_list=True, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a partition's record is not msgpack: {type(error).__name__}") from None
    return _checked(fields)


def _checked(fields: Any) -> PartitionRecord:
    match fields:
        case [int(epoch), str(writer), str(address), [*ranges]] if type(epoch) is int and epoch >= 0 and ranges:
            made = tuple(map(_range, ranges))
            firsts = [range_.first for range_ in made]
            if firsts[0] == 1 and all(a < b for a, b in pairwise(firsts)):
                return PartitionRecord(epoch, writer, address, made)
    raise ProtocolError("a partition's record has an unknown shape")


def _range(fields: Any) -> Range:
    match fields:
        case [int(first), [*members]] if type(first) is int and members:
            made = tuple(map(_member, members))
            if len({member.store for member in made}) == len({member.name for member in made}) == len(made):
                return Range(first, made)
    raise ProtocolError("a range of a partition's record has an unknown shape")


def _member(fields: Any) -> Member:
    match fields:
        case [str(name), str(store), int(incarnation)] if name and store and type(incarnation) is int and incarnation >= 0:
            return Member(name, store, incarnation)
    raise ProtocolError("a member in a partition's record has an unknown shape")
