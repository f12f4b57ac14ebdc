"""What users see, and what the log's frames hold.

Owns the shapes of messages, acks and records, and the codec of a frame's payload. It must not know how frames are
framed (``frames``) or moved. Invariants: a record's numbers are dense (message k of a run has n = first_n + k and
seq = first_seq + k), and what `unpack_records` accepts, `pack_records` made.

A payload is a msgpack array of records; a record is an array whose first item is its kind. Kinds:

    RUN   [1, session, sender_id, first_n, first_seq, stored_at_us, [sent_at_us …], [body …]]
    SKIP  [2, session, sender_id, n, stored_at_us]      a number that was given up: it takes its n and no seq
    ALIAS [3, session, sender_id, n, seq, stored_at_us, digest]   a number whose message repeats the key of the one at `seq`: it
                                                        takes its n and no seq of its own
    KEYED [6, …, [key or None …]]                       a RUN, and the idempotency key of each of its messages
    TRIM  [5, session, before, stored_at_us]            the session's messages below the seq `before` are gone from here on
    FLOOR [4, upto, stored_at_us]                       so are all messages of the partition in frames up to `upto`
    GONE  [7, session, sender_id, first_n, first_seq, stored_at_us, count, [[k, key, digest] …]]   what a store keeps of a run
                                                        that is gone, and of its keys that are honoured: never in a frame of
                                                        the log, only in what is left of one (``thinning``)

Readers see a KEYED as the RUN that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, repeat
from typing import Any, NamedTuple

import msgpack

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.ids import sender_of

RUN = 1
SKIP = 2
ALIAS = 3
FLOOR = 4
TRIM = 5
KEYED = 6
GONE = 7


class Message(NamedTuple):
    """One message of a session, as every reader sees it. The times are for show only: `seq` is the order."""

    session: str
    seq: int
    sender: str
    sender_id: str
    n: int
    body: bytes
    sent_at_us: int
    stored_at_us: int

    @property
    def unique_key(self) -> str:
        """`session_seq`: unique in the whole system, for ever."""
        return f"{self.session}_{self.seq}"


class Ack(NamedTuple):
    """The evidence that a message is stored: its place in the order, and on how many disks it is (G1).

    `duplicate` says that this number had been stored before and the answer is the original's.
    """

    session: str
    seq: int
    sender: str
    sender_id: str
    n: int
    copies: int
    epoch: int
    duplicate: bool


class Run(NamedTuple):
    """Consecutive messages of one sender in one session, numbered and ready for the log."""

    kind: int
    session: str
    sender_id: str
    first_n: int
    first_seq: int
    stored_at_us: int
    sent_at_us: list[int]
    bodies: list[bytes]


class Skip(NamedTuple):
    """A number that was given up: the sender's next message may follow it."""

    kind: int
    session: str
    sender_id: str
    n: int
    stored_at_us: int


class Alias(NamedTuple):
    """A number whose message repeats an idempotency key: its answer is the seq of the message that had it first."""

    kind: int
    session: str
    sender_id: str
    n: int
    seq: int
    stored_at_us: int
    digest: bytes  # of its body (``keys``)


class Trim(NamedTuple):
    """From this record on, the messages of the session below the seq `before` are gone."""

    kind: int
    session: str
    before: int
    stored_at_us: int


class Floor(NamedTuple):
    """From this record on, all messages in frames up to `upto` are gone, whatever their session."""

    kind: int
    upto: int
    stored_at_us: int


class Gone(NamedTuple):
    """A run whose bodies a store has given up: its numbers still tell what a retry is answered with (G5)."""

    kind: int
    session: str
    sender_id: str
    first_n: int
    first_seq: int
    stored_at_us: int
    messages: int
    keyed: list[list[Any]]  # [k, key, digest of the body] of its message k, as far as keys are honoured


Numbered = Run | Skip | Alias | Gone
"""Records that take numbers."""

Record = Numbered | Trim | Floor

_RUN_TYPES = [int, str, str, int, int, int, list, list]
_SKIP_TYPES = [int, str, str, int, int]
_ALIAS_TYPES = [int, str, str, int, int, int, bytes]
_KEYED_TYPES = [*_RUN_TYPES, list]
_TRIM_TYPES = [int, str, int, int]
_FLOOR_TYPES = [int, int, int]
_GONE_TYPES = [int, str, str, int, int, int, int, list]
_KEYED_GONE_TYPES = [int, str, bytes]
_KEY_TYPES = {str, type(None)}
_new = tuple.__new__

pack_records: Callable[[list[Any]], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack
"""The payload of a frame. Records are tuples (or plain sequences) of the shapes above."""


def unpack_records(payload: bytes | memoryview) -> list[Record]:
    """The records of a payload. Raises `ProtocolError` if the bytes are not what `pack_records` makes."""
    return [unpack_record(item) for item in unpack_items(payload)]


def unpack_items(payload: bytes | memoryview) -> list[Any]:
    """As `unpack_records`, but as arrays of any shape: for `unpack_record` and `keys_of`."""
    try:
        raw = msgpack.unpackb(payload, use_list=True, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a frame's payload is not msgpack: {error}") from None
    if not isinstance(raw, list):
        raise ProtocolError("a frame's payload is not an array of records")
    return raw


def unpack_record(item: Any) -> Record:
    """A record out of its array; raises `ProtocolError` for an unknown shape."""
    # No `match`: in Python 3.11 each `int(…)` or `str(…)` of a pattern costs 0.6 µs, and an index reads millions.
    if type(item) is list and item:
        types = [*map(type, item)]
        if types == _RUN_TYPES and item[0] == RUN:
            if item[3] > 0 and item[4] > 0 and item[7] and len(item[6]) == len(item[7]):
                return _new(Run, item)
        elif types == _SKIP_TYPES and item[0] == SKIP and item[3] > 0:
            return _new(Skip, item)
        elif types == _KEYED_TYPES and item[0] == KEYED:
            if len(item[8]) == len(item[7]) and {*map(type, item[8])} <= _KEY_TYPES:
                return unpack_record([RUN, *item[1:8]])
        elif types == _ALIAS_TYPES and item[0] == ALIAS and item[3] > 0 and item[4] > 0:
            return _new(Alias, item)
        elif types == _GONE_TYPES and item[0] == GONE and min(item[3], item[4], item[6]) > 0:
            if all([*map(type, key)] == _KEYED_GONE_TYPES and 0 <= key[0] < item[6] for key in item[7]):
                return _new(Gone, item)
        elif types == _TRIM_TYPES and item[0] == TRIM and item[2] > 0:
            return _new(Trim, item)
        elif types == _FLOOR_TYPES and item[0] == FLOOR and item[1] > 0:
            return _new(Floor, item)
    raise ProtocolError(f"a record of unknown shape in a frame: kind {item[:1] if isinstance(item, list) else item!r}")


def keys_of(item: list[Any]) -> list[str | None]:
    """The keys of a record's messages, out of its array; empty if it has none. `unpack_record` has checked it."""
    return item[8] if item[0] == KEYED else []


def messages_of(run: Run) -> list[Message]:
    """The run's messages, one by one: for readers, never on the append path."""
    _, session, sender_id, first_n, first_seq, stored_at_us, sent_at_us, bodies = run
    if len(sent_at_us) != len(bodies):
        raise ValueError("a run has another number of times than of bodies")
    # Without a loop in Python: a reader that is far behind takes hundreds of thousands a second.
    same = repeat(session), count(first_seq), repeat(sender_of(sender_id)), repeat(sender_id), count(first_n)
    return [*map(_new, repeat(Message), zip(*same, bodies, sent_at_us, repeat(stored_at_us)))]


def part_of(run: Run, first_seq: int, count: int) -> Run:
    """The `count` messages of `run` from `first_seq` on: `first_seq` lies in the run, and so does the last of them."""
    skip = first_seq - run.first_seq
    if skip == 0 and count == len(run.bodies):
        return run
    return run._replace(
        first_n=run.first_n + skip,
        first_seq=first_seq,
        sent_at_us=run.sent_at_us[skip : skip + count],
        bodies=run.bodies[skip : skip + count],
    )
