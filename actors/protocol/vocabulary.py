"""What is said on the wire: every message's first item, and its shape.

Owns the numbers and the shapes. It must not know how they travel (``trilogue.actors.wire``). A message is a msgpack array; a
*request* carries an id chosen by the asker and gets exactly one `REPLY` with that id; the others are one-way.
Numbers are never given a second meaning.

    said by        message
    ------------   -------------------------------------------------------------------------------------------
    anyone         REPLY      [id, 0, value]  or  [id, code, text]                      the answer to a request
    anyone to all  PING       [id]                                                      -> [role, name]
                   WHERE      [id]                                                      -> a map: where partitions are
                   STATUS     [id]                                                      -> a map for people
                   GOODBYE    [text]                                                    why this connection ends
    SessionActor   OPEN       [partition, epoch, copies, body_bytes_max]                submit now, in this epoch
     to client     WAITING    [partition, text, readable]                               do not submit yet; why not; reads go on
                   ACKED      [epoch, copies, [[session, sender_id, first_n, count, first_seq, duplicate] …]]
                   REFUSED    [epoch, [[session, sender_id, first_n, count, code, text, expected_n] …]]
                   DELIVER    [[subscription …], [Run …]]                               committed, in seq order, of one session:
                                                                                        to all these of the connection's
                   ENDED      [subscription, code, text] or                             nothing more comes; TRIMMED says in
                              [subscription, code, text, session, first_available]      which session, and where it begins now
    client to      SUBMIT     [[session, sender_id, first_n, [sent_at_us …], [body …]] …]; a run may have
                                                                                        a 6th item: [key or None …]
     SessionActor  GIVE_UP    [[session, sender_id, n] …]                               log a skip for n; ACKED with seq 0
                   HISTORY    [id, session, after, limit]                               -> [[Run …], last_seq], or, if the first
                                                                                        is gone, [first_available, last_seq]
                   NEWEST     [id, session, last]                                       -> [[Run …], last_seq]
                   TRIM       [id, session, before]                                     -> first_available: what lies below it
                                                                                        is gone, on all stores
                   HEADS      [id, [session …]]                                         -> [last_seq …]
                   HOLDERS    [id, partition]                                           -> [committed, [address …]]: stores that
                                                                                        hold all frames, committed up to there
                   SUBSCRIBE  [id, subscription, [[session, after or None] …], messages, bytes] -> [after …]; more sessions
                                                                                        for the subscription, which begins
                                                                                        with the first; credit is added
                   CREDIT     [subscription, messages, bytes]                           that many more may come
                   UNSUBSCRIBE [subscription]
    SessionActor   INSPECT    [id, partition] or                                        -> a StoreView as an array; the
                              [id, partition, epoch, writer, warm]                         writer says that it is there
     to store      FENCE      [id, partition, epoch, writer, address]                   -> a FenceAnswer as an array
                   APPEND     [partition, epoch, writer, [frame …]]                     one-way; answered by:
     store to it   STORED     [partition, epoch, index, crc]                            all up to index is on this disk
                   NOT_STORED [partition, epoch, code, text]                            deposed, full, or not chained
                   FRAMES     [id, partition, first, last]                              -> [frame …]: as many as fit
                   STATES     [id, partition, upto,                                     -> [last_stored_at_us, covered_upto,
                              [[session, [sender_id …], [key …]] …]]                       [[last_seq, {sender_id: last_n},
                                                                                           whole, {key: [seq, stored_at_us,
                                                                                           digest]}, keys_whole] …]]: for as
                                                                                        many as fit, in order; whole: the map
                                                                                        names all senders, otherwise those asked
                                                                                        for; so with the keys that are honoured,
                                                                                        if one is asked for
                   RUNS       [id, partition, upto, session, after, limit] or           -> [Run …] in seq order, or
                              [id, partition, upto, session, after, limit, bytes]          first_available
                   OLD        [id, partition, upto, before_us, bytes]                   -> the last frame that holds nothing
                                                                                        stored since `before_us`, or behind
                                                                                        which `bytes` of frames lie
                   RECALL     [id, partition, upto, session, sender_id, first_n, last_n] -> [Run, Skip, Alias or Gone …], in n
                                                                                        order
                   PARTITIONS [id]                                                      -> [partition …] that it has frames of
                   JOIN       [id, partition, epoch, writer, address, number, first, prev_crc, [[from, to] …]] -> a FenceAnswer;
                                                                                        the intervals are vouched for
                   FILL       [id, partition, epoch, writer, [frame …]]                 -> base; frames below the base
                   HEARD      [id, partition]                                           -> [epoch, silent_ms]: how long it has
                                                                                        not heard the writer (-1: disconnected)
                   DAMAGED    [id, partition]                                           -> [index …]: frames that went bad
                   REPAIR     [id, partition, epoch, writer, [frame …]]                 -> how many of them are whole again
    clients        RECORDS    [id, partition, upto, [[session, after, last, inside] …]] -> [bytes, None or [session,
     to store                                                                           first_available]]: runs as they lie in
                                                                                        frames, those that begin behind `after`
                                                                                        and not behind `last`; inside: also the
                                                                                        one in which `after` + 1 lies, wherever
                                                                                        it begins; as many as fit, in order, up
                                                                                        to the first one that is gone
                   SESSIONS   [id, partition, upto, above]                              -> [[[session, first_seq, last_seq] …],
                                                                                        above]: those that have messages, in the
                                                                                        order of their names; from which name on
                                                                                        to ask again, "" if there are no more
    anyone         CHARTER    [id] or [id, number]                                      -> [acceptor, number, {name: acceptor}]:
     to store, for                                                                      the newest, or that one (number 0: none)
     the register  FOUND      [id, number, {name: acceptor}]                            -> None: it knows this charter now
                   PREPARE    [id, charter, key, n, proposer]                           -> [ok, [n, proposer] promised,
                                                                                        [n, proposer] accepted, value or None]
                                                                                        value: [version, data, moved]
                   ACCEPT     [id, charter, key, n, proposer, value]                    -> [ok, [n, proposer] promised]
    Supervisor to  TAKE       [id, partition, epoch]                                    -> None: take it over from the writer of
     SessionActor                                                                       `epoch` (0: there is none)
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from trilogue.actors.protocol.errors import ProtocolError


class Say(IntEnum):
    """The first item of every message on the wire."""

    REPLY = 1
    PING = 2
    WHERE = 3
    STATUS = 4
    GOODBYE = 5

    OPEN = 10
    WAITING = 11
    ACKED = 12
    REFUSED = 13
    DELIVER = 14
    ENDED = 15

    SUBMIT = 20
    GIVE_UP = 21
    HISTORY = 22
    NEWEST = 23
    HEADS = 24
    SUBSCRIBE = 25
    CREDIT = 26
    UNSUBSCRIBE = 27
    TRIM = 28
    HOLDERS = 29

    INSPECT = 30
    FENCE = 31
    APPEND = 32
    STORED = 33
    NOT_STORED = 34
    FRAMES = 35
    RUNS = 37
    RECALL = 38
    PARTITIONS = 39
    OLD = 36

    CHARTER = 40
    FOUND = 41
    PREPARE = 42
    ACCEPT = 43
    JOIN = 44
    FILL = 45
    HEARD = 46
    REPAIR = 47
    DAMAGED = 48
    STATES = 49
    RECORDS = 51
    SESSIONS = 52

    TAKE = 50


# What is said for every frame and every submission, as plain numbers: an enum's member takes 106 ns to look up in Python 3.11,
# a tenth of what a store spends on a lonely message.
SUBMIT: Final = int(Say.SUBMIT)
ACKED: Final = int(Say.ACKED)
APPEND: Final = int(Say.APPEND)
STORED: Final = int(Say.STORED)
REPLY: Final = int(Say.REPLY)
GOODBYE: Final = int(Say.GOODBYE)
DELIVER: Final = int(Say.DELIVER)


class Code(IntEnum):
    """Why something was refused. A refusal means that nothing was stored (G8)."""

    OK = 0
    # temporary: the same request may succeed later
    OUT_OF_ORDER = 1  # expected_n says which number is next
    NOT_HERE = 2  # another SessionActor owns the session's partition: ask WHERE
    UNAVAILABLE = 3
    OVERLOADED = 4
    FULL = 5  # a store's disk is full
    DEPOSED = 6  # a higher epoch is in force
    NOT_CHAINED = 7  # what was sent does not continue what the store has
    CANNOT_TELL = 8
    # final: the same request can never succeed
    CONFLICTING_RETRY = 20
    INVALID_SESSION = 21
    INVALID_SENDER = 22
    INVALID_RANGE = 23
    MESSAGE_TOO_LARGE = 24
    MALFORMED = 25
    CORRUPT = 26
    PROOF_OF_LOSS = 27
    CONFLICTING_KEY = 28
    TRIMMED = 29

    @property
    def final(self) -> bool:
        """Whether the same request can never succeed."""
        return self >= Code.CONFLICTING_RETRY


class TailEntry(NamedTuple):
    """One frame of a store's tail: enough to compare it with another store's."""

    frame_index: int
    epoch: int
    crc: int


class StoreView(NamedTuple):
    """What a store knows of a partition before it is fenced."""

    epoch: int  # the highest that it has seen, in a fence or in a frame
    last_index: int


class FenceAnswer(NamedTuple):
    """What a store holds of a partition, covering every append that it will ever have answered yes.

    `base` is the first index of its contiguous chain, 1 when it has everything. `tail` runs from the frame at `committed_upto`,
    or from the base if that is higher, to the last frame, without a hole. A tail that begins at a base above 1 has an entry
    (base - 1, 0, CRC) before it: the frame that the base follows, as the writer named it. `certain` is false when the store cut
    a damaged tail and was not joined since: "cannot tell" is not "does not have". A certain answer is a *member's* only if the
    record names this incarnation of the store.
    """

    committed_upto: int
    certain: bool
    base: int
    tail: list[TailEntry]


class Piece(NamedTuple):
    """A part of a session's history that RECORDS asks for: the runs that begin behind `after` and not behind `last`.

    `inside`: also the run that `after` + 1 lies in, wherever it begins. Pieces that follow each other, each but the first
    without it, are answered with each run once.
    """

    session: str
    after: int
    last: int
    inside: bool

    @classmethod
    def of(cls, item: Any) -> Piece:
        """The piece out of its array. Raises `ProtocolError` for an unknown shape."""
        if type(item) is list and [*map(type, item)] == [str, int, int, bool] and 0 <= item[1] <= item[2]:
            return cls(*item)
        raise ProtocolError("a piece of a session has an unknown shape")
