"""What the stores agree on, in the end: the truth that a history is held against.

Owns the comparing of stores, and the way from their frames to messages at their places. It must not know who sent or
read what. What each store should have is what the register says: a frame counts if every living store that its range names has
it, and one that some store says is committed must be there. A store that is none of them may have too much at its end, never
another frame where it knows it to be committed.

Messages may be trimmed: TRIM [5, session, before, time] says that the session's messages below the seq `before` are gone, FLOOR
[4, upto, time] that those of all frames up to `upto` are. Stores then give up bodies, each in its own time, and keep GONE
records with the numbers. What one store has given up and another one has not is read from the latter; what all have given up
still has its place, and a mark that nobody can read any more. No store may have given up what no trim on record names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from history_checker.anomalies import Anomaly, Kind
from history_checker.history import mark_of
from history_checker.journals import Frame, StoreContents
from history_checker.register import Ensembles, Said

RUN, FLOOR, KEYED, GONE = 1, 4, 6, 7
WITH_MESSAGES = RUN, KEYED, GONE
OUTBOX_ID_CHARACTERS = 33  # a slash and 32 hex digits behind the sender's name
ANY = 1 << 64  # above every epoch


class Stored(NamedTuple):
    """A message where it stands, and the epoch of the writer that put it there."""

    session: str
    seq: int
    sender_id: str
    n: int
    mark: str
    epoch: int = 0
    is_gone: bool = False  # on all stores: `mark` is made up, unless somebody who knew its number could name it

    @property
    def sender(self) -> str:
        """The name in its sender_id."""
        return self.sender_id[:-OUTBOX_ID_CHARACTERS]


@dataclass(slots=True)
class Truth:
    """Every message that is on all the stores, in the order of the log, and the numbers that were skipped."""

    sessions: dict[str, list[Stored]] = field(default_factory=dict)
    skips: list[tuple[str, str, int]] = field(default_factory=list)
    aliases: dict[tuple[str, str, int], int] = field(default_factory=dict)  # numbers that stand for the message at a seq
    numbers: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (session, sender_id) -> n in log order
    places: dict[str, list[Stored]] = field(default_factory=dict)  # by mark
    trims: dict[str, int] = field(default_factory=dict)  # session -> its messages below this seq are trimmed
    named: set[str] = field(default_factory=set)  # marks of messages that are gone, which somebody knew
    floored: dict[str, int] = field(default_factory=dict)  # session -> those below this seq lie below their partition's floor

    def trimmed(self, session: str) -> int:
        """The messages of the session below this seq may be gone, as trims on record say."""
        return max(self.trims.get(session, 1), self.floored.get(session, 1))

    def name(self, session: str, seq: int, sender_id: str, n: int, mark: str) -> None:
        """Somebody knows the mark of the message with these numbers: it counts for one that is gone and has no name yet."""
        stored = self.sessions.get(session, [])
        one = stored[seq - 1] if 0 < seq <= len(stored) else None
        if one is None or not one.is_gone or (one.seq, one.sender_id, one.n) != (seq, sender_id, n) or one.mark in self.named:
            return
        stored[seq - 1] = named = one._replace(mark=mark)
        del self.places[one.mark]
        self.places.setdefault(mark, []).append(named)
        self.named.add(mark)

    def unnamed(self) -> Counter[tuple[str, str]]:
        """How many messages of each (session, sender) are gone, and nobody knows which they are."""
        found = (one for stored in self.sessions.values() for one in stored if one.is_gone and one.mark not in self.named)
        return Counter((one.session, one.sender) for one in found)

    def at(self, session: str, seq: int) -> Stored | None:
        """What stands there."""
        stored = self.sessions.get(session, [])
        if 0 < seq <= len(stored) and stored[seq - 1].seq == seq:
            return stored[seq - 1]
        return next((one for one in stored if one.seq == seq), None)

    def add(self, message: Stored) -> None:
        """Take one in."""
        self.sessions.setdefault(message.session, []).append(message)
        self.places.setdefault(message.mark, []).append(message)

    def add_record(self, record: Any, epoch: int = 0) -> None:
        """Take in a record of a frame."""
        match record:
            case [1, session, sender_id, first_n, first_seq, _, times, bodies] if len(times) == len(bodies):
                numbers = self.numbers.setdefault((session, sender_id), [])
                for k, body in enumerate(bodies):
                    self.add(Stored(session, first_seq + k, sender_id, first_n + k, mark_of(body), epoch))
                    numbers.append(first_n + k)
            case [6, session, sender_id, first_n, first_seq, stored_at_us, times, bodies, keys] if len(keys) == len(bodies):
                self.add_record([1, session, sender_id, first_n, first_seq, stored_at_us, times, bodies], epoch)
            case [7, session, sender_id, first_n, first_seq, _, messages, _]:
                numbers = self.numbers.setdefault((session, sender_id), [])
                for k in range(messages):
                    mark = f"gone: {session} {first_seq + k}, {sender_id} n {first_n + k}"
                    self.add(Stored(session, first_seq + k, sender_id, first_n + k, mark, epoch, is_gone=True))
                    numbers.append(first_n + k)
            case [5, session, before, _]:
                self.trims[session] = max(before, self.trims.get(session, 1))
            case [4, _, _]:
                pass
            case [3, session, sender_id, n, seq, _, _]:
                self.aliases[session, sender_id, n] = seq
                self.numbers.setdefault((session, sender_id), []).append(n)
            case [2, session, sender_id, n, _]:
                self.skips.append((session, sender_id, n))
                self.numbers.setdefault((session, sender_id), []).append(n)
            case _:
                raise ValueError(f"a record of unknown shape: {str(record)[:100]}")


def truth_of(
    stores: Sequence[StoreContents], copies: int, ensembles: Mapping[int, Ensembles] | None = None
) -> tuple[Truth, list[Anomaly]]:
    """What the stores agree on, and where they do not. Each partition must be on `copies` of them.

    `ensembles` is what the register says; without it, each store that has anything of a partition should have all of it.
    """
    truth = Truth()
    anomalies = [Anomaly(Kind.DAMAGED, store.name, what) for store in stores for what in store.damage]
    for partition in sorted({*(ensembles or ()), *(partition for store in stores for partition in store.partitions)}):
        holders = [store for store in stores if partition in store.partitions]
        if ensembles is None:
            said = Ensembles(ANY, (Said(1, {store.name: store.identity for store in holders}),))
        elif partition in ensembles:
            said = ensembles[partition]
        else:
            if any(store.partitions[partition].committed_upto for store in holders):
                anomalies.append(
                    Anomaly(Kind.LOST, f"partition {partition}", "it has committed frames, and no record in the register")
                )
            continue
        frames = _Agreement(partition, said, holders, copies, anomalies).frames()
        for _, frame in frames:
            for record in frame.records:
                truth.add_record(record, frame.epoch)
        floor = max((record[1] for _, frame in frames for record in frame.records if record[0] == FLOOR), default=0)
        for session, session_floor in _floors(frames, floor):
            truth.floored[session] = max(session_floor, truth.floored.get(session, 1))
        for store in holders:
            anomalies += _gone_too_early(store, partition, frames, truth, floor)
    return truth, anomalies


def _floors(frames: Sequence[tuple[int, Frame]], floor: int) -> Iterator[tuple[str, int]]:
    """Below which seq the messages of each session lie in frames up to the floor, run by run."""
    for index, frame in frames:
        if index > floor:
            return
        for record in frame.records:
            if record[0] in WITH_MESSAGES:
                yield record[1], record[4] + _messages(record)


def _gone_too_early(
    store: StoreContents, partition: int, frames: Sequence[tuple[int, Frame]], truth: Truth, floor: int
) -> Iterator[Anomaly]:
    """What this store has given up though no trim on record names it, and what it keeps is no part of the frame."""
    for index, agreed in frames:
        held = store.partitions[partition].at(index)
        if held is None or not held.thin or held.crc != agreed.crc:
            continue
        where = f"{store.name}, partition {partition} frame {index}"
        for own, whole in zip(held.records, agreed.records, strict=True):
            if own[0] == GONE:
                before = truth.trims.get(own[1], 1)
                if index > floor and own[4] + own[6] > before:
                    text = f"{own[1]} {own[4]} to {own[4] + own[6] - 1} though its trims end at {before}, the floor at {floor}"
                    yield Anomaly(Kind.NOT_TRIMMED, where, text)
                if (own[1:6], own[6]) != (whole[1:6], _messages(whole)):
                    yield Anomaly(Kind.STORES_DISAGREE, where, f"it says {str(own)[:100]}, others {str(whole)[:100]}")
            elif own != whole:
                yield Anomaly(Kind.STORES_DISAGREE, where, f"it says {str(own)[:100]}, others {str(whole)[:100]}")


def _messages(record: list[Any]) -> int:
    """How many messages a record has, or had; 0 if it is of another kind."""
    if record[0] == GONE:
        return int(record[6])
    return len(record[7]) if record[0] in WITH_MESSAGES else 0


def _together(frames: Sequence[Frame]) -> Frame:
    """One frame out of several copies of it, some of which are thin: of each record what one of them still has in full."""
    whole = next((frame for frame in frames if not frame.thin), None)
    if whole is not None:
        return whole
    first = frames[0]
    if any(len(frame.records) != len(first.records) for frame in frames):
        return first
    rows = zip(*(frame.records for frame in frames), strict=True)
    return first._replace(records=[next((one for one in row if one[0] != GONE), row[0]) for row in rows])


class _Agreement:
    """One partition's frames, as far as they are committed, and the objections to them."""

    def __init__(
        self, partition: int, said: Ensembles, holders: Sequence[StoreContents], copies: int, anomalies: list[Anomaly]
    ) -> None:
        self._partition, self._said, self._holders, self._anomalies = partition, said, holders, anomalies
        self._last = self._living(said.ranges[-1])
        if len(self._last) < copies:
            names = ", ".join(store.name for store in self._last) or "none"
            text = f"of {', '.join(said.ranges[-1].members)}, which should have it, {names} are there"
            self._object(Kind.STORES_DISAGREE, f"partition {partition}", text)
        for store in holders:
            highest = max(frame.epoch for frame in (*store.partitions[partition].frames[-1:], _NONE))
            if highest > said.epoch:
                text = f"{store.name} has a frame of epoch {highest}, the register is in epoch {said.epoch}"
                self._object(Kind.STORES_DISAGREE, f"partition {partition}", text)

    def frames(self) -> list[tuple[int, Frame]]:
        """The partition's frames up to where they are committed, each with its index."""
        everywhere = min((store.partitions[self._partition].last for store in self._last), default=0)
        known = max((store.partitions[self._partition].committed_upto for store in self._holders), default=0)
        agreed: list[tuple[int, Frame]] = []
        for index in range(1, max(everywhere, known) + 1):
            frame = self._frame(index)
            if frame is None:
                continue
            if agreed and frame.prev_crc != agreed[-1][1].crc:
                text = "it does not chain to what the stores have before it"
                self._object(Kind.STORES_DISAGREE, f"partition {self._partition} frame {index}", text)
            agreed.append((index, frame))
        return agreed

    def _frame(self, index: int) -> Frame | None:
        """What stands at `index`, on all that should have it."""
        partition, where = self._partition, f"partition {self._partition} frame {index}"
        range_ = self._said.of(index)
        should = self._last if range_ is self._said.ranges[-1] else self._living(range_)
        found = {store.name: store.partitions[partition].at(index) for store in should}
        others = [store for store in self._holders if store.name not in found]
        for store in others:
            holding = store.partitions[partition]
            if index <= holding.committed_upto and (frame := holding.at(index)) is not None:
                found[store.name] = frame
        if len({frame.crc if frame is not None else None for frame in found.values()}) > 1:
            seen = ", ".join(f"{name} {f'{frame.crc:08x}' if frame else 'nothing'}" for name, frame in found.items())
            self._object(Kind.STORES_DISAGREE, where, seen)
        there = [frame for frame in found.values() if frame is not None]
        if not there:
            self._object(Kind.LOST, where, f"none of {', '.join(range_.members)}, which should have it, has it")
            return None
        return _together([frame for frame in there if frame.crc == there[0].crc])

    def _living(self, said: Said) -> list[StoreContents]:
        """Those of the range's members that are still the stores that they were then."""
        return [store for store in self._holders if said.members.get(store.name) == store.identity]

    def _object(self, kind: Kind, where: str, what: str) -> None:
        self._anomalies.append(Anomaly(kind, where, what))


_NONE = Frame(0, 0, 0, [], 0)
