"""What the stores agree on, in the end: the truth that a history is held against.

Owns the comparing of stores, and the way from their frames to messages at their places. It must not know who sent or
read what. A frame counts if every store that should have it has it; a frame that some store says is committed must
be on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from history_checker.anomalies import Anomaly, Kind
from history_checker.history import mark_of
from history_checker.journals import Frame, StoreContents

RUN, SKIP = 1, 2
OUTBOX_ID_CHARACTERS = 33  # a slash and 32 hex digits behind the sender's name


class Stored(NamedTuple):
    """A message where it stands."""

    session: str
    seq: int
    sender_id: str
    n: int
    mark: str

    @property
    def sender(self) -> str:
        """The name in its sender_id."""
        return self.sender_id[:-OUTBOX_ID_CHARACTERS]


@dataclass(slots=True)
class Truth:
    """Every message that is on all the stores, in the order of the log, and the numbers that were skipped."""

    sessions: dict[str, list[Stored]] = field(default_factory=dict)
    skips: list[tuple[str, str, int]] = field(default_factory=list)
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

    def add_record(self, record: Any) -> None:
        """Take in a record of a frame."""
        match record:
            case [1, session, sender_id, first_n, first_seq, _, times, bodies] if len(times) == len(bodies):
                numbers = self.numbers.setdefault((session, sender_id), [])
                for k, body in enumerate(bodies):
                    self.add(Stored(session, first_seq + k, sender_id, first_n + k, mark_of(body)))
                    numbers.append(first_n + k)
            case [2, session, sender_id, n, _]:
                self.skips.append((session, sender_id, n))
                self.numbers.setdefault((session, sender_id), []).append(n)
            case _:
                raise ValueError(f"a record of unknown shape: {str(record)[:100]}")


def truth_of(stores: Sequence[StoreContents], copies: int) -> tuple[Truth, list[Anomaly]]:
    """What the stores agree on, and where they do not. Each partition must be on `copies` of them."""
    truth = Truth()
    anomalies = [Anomaly(Kind.DAMAGED, store.name, what) for store in stores for what in store.damage]
    for partition in sorted({partition for store in stores for partition in store.partitions}):
        holders = [store for store in stores if partition in store.partitions]
        if len(holders) < copies:
            names = ", ".join(store.name for store in holders)
            anomalies.append(Anomaly(Kind.STORES_DISAGREE, f"partition {partition}", f"only {names} have any of it"))
        for frame in _agreed(partition, holders, anomalies):
            for record in frame.records:
                truth.add_record(record)
    return truth, anomalies


def _agreed(partition: int, holders: Sequence[StoreContents], anomalies: list[Anomaly]) -> list[Frame]:
    """The partition's frames up to where they are committed."""
    chains = [store.partitions[partition] for store in holders]
    upto = max(min(map(len, chains)), max(store.committed_upto(partition) for store in holders))
    agreed: list[Frame] = []
    for index in range(1, upto + 1):
        found = {
            store.name: chain[index - 1] if index <= len(chain) else None for store, chain in zip(holders, chains, strict=True)
        }
        crcs = {frame.crc if frame is not None else None for frame in found.values()}
        if len(crcs) != 1:
            seen = ", ".join(f"{name} {f'{frame.crc:08x}' if frame else 'nothing'}" for name, frame in found.items())
            anomalies.append(Anomaly(Kind.STORES_DISAGREE, f"partition {partition} frame {index}", seen))
        agreed.extend([frame for frame in found.values() if frame is not None][:1])
    return agreed
