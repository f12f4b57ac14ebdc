"""What the stores agree on, in the end: the truth that a history is held against.

Owns the comparing of stores, and the way from their frames to messages at their places. It must not know who sent or
read what. What each store should have is what the register says: a frame counts if every living store that its range names has
it, and one that some store says is committed must be there. A store that is none of them may have too much at its end, never
another frame where it knows it to be committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from history_checker.anomalies import Anomaly, Kind
from history_checker.history import mark_of
from history_checker.journals import Frame, StoreContents
from history_checker.register import Ensembles, Said

RUN, SKIP = 1, 2
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
        for frame in _Agreement(partition, said, holders, copies, anomalies).frames():
            for record in frame.records:
                truth.add_record(record, frame.epoch)
    return truth, anomalies


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

    def frames(self) -> list[Frame]:
        """The partition's frames up to where they are committed."""
        everywhere = min((store.partitions[self._partition].last for store in self._last), default=0)
        known = max((store.partitions[self._partition].committed_upto for store in self._holders), default=0)
        agreed: list[Frame] = []
        for index in range(1, max(everywhere, known) + 1):
            frame = self._frame(index)
            if frame is None:
                continue
            if agreed and frame.prev_crc != agreed[-1].crc:
                text = "it does not chain to what the stores have before it"
                self._object(Kind.STORES_DISAGREE, f"partition {self._partition} frame {index}", text)
            agreed.append(frame)
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
        frame = next((frame for frame in found.values() if frame is not None), None)
        if frame is None:
            self._object(Kind.LOST, where, f"none of {', '.join(range_.members)}, which should have it, has it")
        return frame

    def _living(self, said: Said) -> list[StoreContents]:
        """Those of the range's members that are still the stores that they were then."""
        return [store for store in self._holders if said.members.get(store.name) == store.identity]

    def _object(self, kind: Kind, where: str, what: str) -> None:
        self._anomalies.append(Anomaly(kind, where, what))


_NONE = Frame(0, 0, 0, [], 0)
