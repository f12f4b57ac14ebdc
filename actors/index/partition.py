"""One partition's index: the catalogue's segments, what is being written to it, and what is recent, asked as one.

Owns the order in which they are read, and that they fit each other. It must not know connections, the journal or when there is
time to write. Used by one thread. Rules:

1. Only committed frames enter, in order of their index: what entered is never superseded.
2. What the catalogue says ends at its newest segment's `upto`, what is being written begins there, what is recent behind it:
   each frame is in exactly one of them.
3. No hole is passed over: runs that do not follow each other break an invariant, or are the catalogue's damage.
4. Records are compared with what was asked for after they were read: an entry only says where one should be. What leaves as
   it lies in the log is compared by its session here, and by its numbers by whoever unpacks it.
5. What trims say of the frames that are in is gone: it is not read any more, though its numbers are. Where a session begins now
   is told instead of a page (`runs`, `records`).
6. Nothing that is read here outlives a call: the catalogue is written, merged and swept between two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from itertools import chain, islice
from typing import Any

import msgpack

from trilogue.actors.index.catalogue import Catalogue, CatalogueDamaged
from trilogue.actors.index.entries import POSITION_BITS, Part, Place
from trilogue.actors.index.recent import News, Recent, RecentSession
from trilogue.actors.protocol.messages import GONE, KEYED, RUN, Floor, Gone, Numbered, Run, Trim, part_of, unpack_record
from trilogue.actors.protocol.submissions import Question
from trilogue.actors.protocol.vocabulary import Piece

STATE_ITEM_BYTES = 24
"""What an item of a page of states takes on the wire beside its name (at most 4 bytes a character), rounded up."""

KEY_ITEM_BYTES = 64
KEYS_WHOLE = 64
"""A session with so many keys, or fewer, tells all of them: then its writer knows of another one that it is new."""

ReadFrame = Callable[[int], bytes]
"""Reads and verifies the whole frame of an index."""

ReadRecord = Callable[[str, Place], bytes]
"""Reads the bytes of one record of a session."""

GoesOn = Callable[[int], bool]
"""Whether an answer that has so many bytes may go on."""


class PartitionIndex:
    """Where the messages of one partition's sessions are."""

    def __init__(self, partition: int, catalogue: Catalogue) -> None:
        self.partition = partition
        self._catalogue = catalogue
        newest = catalogue.newest(partition)
        self.recent = Recent(newest.upto, newest.last_stored_at_us, newest.floor) if newest is not None else Recent(0, 0)
        self.leaving: Recent | None = None  # it is being written to the catalogue

    @property
    def upto(self) -> int:
        """The last frame that it has taken in."""
        return self.recent.upto

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return self.recent.size_bytes + (self.leaving.size_bytes if self.leaving is not None else 0)

    def catch_up(self, upto: int, read_frame: ReadFrame) -> None:
        """Take in the frames up to `upto`, which is committed."""
        recent = self.recent
        while recent.upto < upto:
            recent.take(read_frame(recent.upto + 1), self._last_seq, self._trimmed)

    def leave(self) -> Recent:
        """What is recent is written to the catalogue from now on, and something new begins."""
        assert self.leaving is None
        self.leaving = self.recent
        self.recent = Recent(self.leaving.upto, self.leaving.last_stored_at_us, self.leaving.floor)
        self.recent.news, self.leaving.news = self.leaving.news, []  # it is not written
        return self.leaving

    def left(self) -> None:
        """What was leaving is in the catalogue."""
        self.leaving = None

    def _in_memory(self, session: str) -> list[RecentSession]:
        """What is not in the catalogue of a session, oldest first."""
        found = [self.leaving.sessions.get(session)] if self.leaving is not None else []
        return [entry for entry in (*found, self.recent.sessions.get(session)) if entry is not None]

    def _last_seq(self, session: str) -> int:
        for entry in reversed(self._in_memory(session)):
            return entry.last_seq
        return self._catalogue.last_seq(self._catalogue.segments_with(self.partition, session), session)

    # ------------------------------------------------------------------ states

    def states(self, asked: Iterable[Question], senders_max: int, bytes_max: int) -> list[Any]:
        """What STATES answers: for each session that is asked for, in order, until about `bytes_max`; at least for one."""
        found: list[list[Any]] = []
        size = 0
        for session, senders, keys in asked:
            if size >= bytes_max:
                break
            state = self._state(session, senders, keys, senders_max)
            found.append(state)
            size += STATE_ITEM_BYTES + sum(STATE_ITEM_BYTES + 4 * len(sender_id) for sender_id in state[1])
            size += sum(KEY_ITEM_BYTES + 4 * len(key) for key in state[3])
        return [self.recent.last_stored_at_us, self.upto, found]

    def _state(self, session: str, asked: list[str], keys: list[str], senders_max: int) -> list[Any]:
        catalogue, memory = self._catalogue, self._in_memory(session)
        segments = catalogue.segments_with(self.partition, session)
        last_n = catalogue.senders(segments, session, senders_max + 1)
        for entry in memory:
            last_n.update((sender_id, entry.last_n(sender_id)) for sender_id in entry.senders)
        whole = len(last_n) <= senders_max
        if not whole:
            last_n = {sender_id: n for sender_id in asked if (n := self._last_n(segments, memory, session, sender_id))}
        last_seq = catalogue.last_seq(segments, session)
        for entry in memory:
            if entry.part.first_seq != last_seq + 1:
                raise CatalogueDamaged(f"session {session!r} has a hole after seq {last_seq}")
            last_seq = entry.last_seq
        return [last_seq, last_n, whole, *self._keys(segments, memory, session, keys)]

    def _keys(
        self, segments: list[int], memory: list[RecentSession], session: str, asked: list[str]
    ) -> tuple[dict[str, list[Any]], bool]:
        """The session's keys, if they are few, otherwise those of the asked ones that it has; and whether these are all.

        Who asks for none is told none: most sessions have no keys, and looking costs a query for each segment.
        """
        if not asked:
            return {}, False
        found, whole = self._catalogue.keys(segments, session, KEYS_WHOLE)
        whole = whole and len(found) + sum(len(entry.keys or ()) for entry in memory) <= KEYS_WHOLE
        if not whole:
            there = ((key, self._catalogue.key(segments, session, key)) for key in asked)
            found = {key: known for key, known in there if known is not None}
        for entry in memory:
            known_keys = entry.keys or {}
            found.update(known_keys if whole else {key: known_keys[key] for key in asked if key in known_keys})
        return {key: [*known[:3]] for key, known in found.items()}, whole

    def _last_n(self, segments: list[int], memory: list[RecentSession], session: str, sender_id: str) -> int:
        for entry in reversed(memory):
            if sender_id in entry.senders:
                return entry.last_n(sender_id)
        return self._catalogue.last_n(segments, session, sender_id)

    # ------------------------------------------------------------------ which sessions there are

    def sessions(self, above: str, count: int, goes_on: GoesOn) -> list[Any]:
        """What SESSIONS answers: those whose names are above that one, at most `count`, and from which name on to ask again."""
        names = set(self._catalogue.names(self.partition, above, count + 1))
        for memory in (self.leaving, self.recent):
            if memory is not None:
                names.update(nsmallest(count + 1, (name for name in memory.sessions if name > above)))
        found: list[list[Any]] = []
        for looked_at, name in enumerate(sorted(names)):
            if looked_at == count or (looked_at and not goes_on(looked_at)):
                return [found, above]
            above = name
            if last_seq := self._last_seq(name):
                found.append([name, self.first_available(name), last_seq])
        return [found, ""]

    # ------------------------------------------------------------------ runs

    def runs(self, session: str, after: int, limit: int, bytes_max: int, read: ReadRecord) -> list[Run] | int:
        """The session's messages after `after`, in seq order without a hole: `limit` at most, and about `bytes_max` bytes.

        If the first of them is gone: the lowest seq that is not.
        """
        found: list[Run] = []
        size, next_seq = 0, after + 1
        if next_seq < self._trimmed(session):
            return self.first_available(session)
        for place in self._places_from(session, next_seq):
            if limit <= 0 or size >= bytes_max:
                break
            if place.frame_index <= self.recent.floor:
                return self.first_available(session)
            run = unpack_record(msgpack.unpackb(read(session, place), raw=False))
            if isinstance(run, Gone):  # the trim lies behind what this asker knows of
                return run.first_seq + run.messages
            if not isinstance(run, Run) or (run.session, run.first_seq) != (session, place.first_seq):
                raise CatalogueDamaged(f"another record lies where seq {place.first_seq} of session {session!r} should be")
            count = min(limit, run.first_seq + len(run.bodies) - next_seq)
            found.append(part_of(run, next_seq, count))
            next_seq += count
            limit -= count
            size += place.size
        return found

    def records(self, asked: Iterable[Piece], goes_on: GoesOn, read: ReadRecord) -> list[Any]:
        """What RECORDS answers: runs, packed as they lie in the log, without a hole in each piece, at least one if there is;
        and if the next one is gone, where its session begins now."""
        found: list[bytes] = []
        size = 0
        for session, after, last, inside in asked:
            trimmed, floor = self._trimmed(session), self.recent.floor
            heads, gone = (_heads_of(session, RUN, 8), _heads_of(session, KEYED, 9)), _heads_of(session, GONE, 8)
            for place in self._places_from(session, after + 1):
                if place.first_seq <= after and not inside:
                    continue
                if place.first_seq > last:
                    break
                if found and not goes_on(size):
                    return [b"".join(found), None]
                if max(place.first_seq, after + 1) < trimmed or place.frame_index <= floor:
                    return [b"".join(found), [session, self.first_available(session)]]
                record = read(session, place)
                if record.startswith(gone):  # the trim lies behind what this asker knows of
                    return [b"".join(found), [session, place.first_seq + place.messages]]
                if not record.startswith(heads):
                    raise CatalogueDamaged(f"another record lies where seq {place.first_seq} of session {session!r} should be")
                found.append(record)
                size += place.size
        return [b"".join(found), None]

    def _places_from(self, session: str, seq: int) -> Iterator[Place]:
        """The session's runs from the one on that holds `seq`, each following the one before."""
        for part in self._parts_from(session, seq):
            if part.last_seq < seq:
                continue
            for k in range(part.from_seq(seq), len(part)):
                place = part.place(k)
                if not place.messages or place.first_seq + place.messages <= seq:
                    continue
                if place.first_seq > seq:
                    raise CatalogueDamaged(f"session {session!r} has a hole at seq {seq}")
                yield place
                seq = place.first_seq + place.messages

    def _parts_from(self, session: str, seq: int) -> Iterator[Part]:
        memory = self._in_memory(session)
        if not memory or seq < memory[0].part.first_seq:
            segments = self._catalogue.segments_with(self.partition, session)
            yield from self._catalogue.parts(segments, session, seq)
        for entry in memory:
            yield entry.part

    # ------------------------------------------------------------------ what is gone

    def _trimmed(self, session: str) -> int:
        """What trims of this session say: its messages below this seq are gone."""
        memory = (recent.trims.get(session, 0) for recent in (self.leaving, self.recent) if recent is not None)
        return max(self._catalogue.trimmed(self.partition, session), *memory)

    def first_available(self, session: str) -> int:
        """The lowest seq of the session that is not gone: of its next message, if all are."""
        trimmed, floor = max(1, self._trimmed(session)), self.recent.floor
        if not floor:
            return trimmed
        at = (floor + 1 << POSITION_BITS) - 1  # behind it nothing is gone with the floor
        segments = [one.id for one in self._catalogue.segments if one.partition == self.partition and one.upto > floor]
        for part in chain(
            self._catalogue.parts_behind(segments, session, at), (entry.part for entry in self._in_memory(session))
        ):
            first = bisect_right(range(len(part)), at, key=lambda k: part.place(k).at)
            for place in map(part.place, range(first, len(part))):
                if place.messages:
                    return max(trimmed, place.first_seq)
        return max(trimmed, self._last_seq(session) + 1)

    def gone(self) -> Callable[[int, list[Any]], bool]:
        """Tells of a frame's index and a record with messages in it, as an array, whether all of these are gone. It remembers
        what it has looked up: what is taken in later it may not know."""
        floor = self.recent.floor
        trims: dict[str, int] = {}

        def is_gone(frame_index: int, item: list[Any]) -> bool:
            session, first_seq, bodies = item[1], item[4], item[7]
            if frame_index <= floor:
                return True
            if session not in trims:
                trims[session] = self._trimmed(session)
            return bool(first_seq + len(bodies) <= trims[session])

        return is_gone

    def take_news(self) -> list[News]:
        """The trims that were taken in since this was asked last."""
        news, self.recent.news = self.recent.news, []
        return news

    def trimmed_sessions(self, after: str, count: int) -> list[tuple[str, int]]:
        """Those that the catalogue names, in the order of their names behind `after`, `count` at most: each with the seq below
        which its messages are gone."""
        return self._catalogue.trimmed_sessions(self.partition, after, count)

    def gone_records(self, session: str, first: int, before: int, count: int) -> tuple[list[tuple[int, int]], int]:
        """Of the session's records from seq `first` on, `count` at most, those below `before`: of each its frame, and its size
        when it was taken in; and from which seq on to ask again, 0 if these are all."""
        found: list[tuple[int, int]] = []
        places = list(islice(self._places_from(session, first), count))
        for place in places:
            first = place.first_seq + place.messages
            if first > before:
                return found, 0
            if place.frame_index > self.recent.floor:
                found.append((place.frame_index, place.size))
        return found, first if len(places) == count and first < before else 0

    # ------------------------------------------------------------------ retries

    def recall(self, session: str, sender_id: str, first_n: int, last_n: int, read: ReadRecord) -> list[Numbered]:
        """The records that hold the sender's numbers from `first_n` to `last_n`."""
        segments = self._catalogue.segments_with(self.partition, session)
        places = chain(
            self._catalogue.numbers(segments, session, sender_id, first_n, last_n),
            *(entry.numbers(sender_id, first_n, last_n) for entry in self._in_memory(session)),
        )
        found: list[Numbered] = []
        for place in places:
            record = unpack_record(msgpack.unpackb(read(session, place), raw=False))
            if isinstance(record, Trim | Floor):
                raise CatalogueDamaged(f"a trim lies where a number of session {session!r} should be")
            if (record.session, record.sender_id) == (session, sender_id):
                found.append(_numbers_of(record, first_n, last_n))
        return found


def _heads_of(session: str, kind: int, items: int) -> bytes:
    """How a record of a session begins in a frame: the head of an array, its kind, the name."""
    return b"%c%c%b" % (0x90 | items, kind, msgpack.packb(session))


def _numbers_of(record: Numbered, first_n: int, last_n: int) -> Numbered:
    """The part of a record that holds the numbers asked for: an answer is no larger than what was asked about."""
    if not isinstance(record, Run):
        return record
    first = max(first_n, record.first_n)
    last = min(last_n, record.first_n + len(record.bodies) - 1)
    return part_of(record, record.first_seq + first - record.first_n, last - first + 1)
