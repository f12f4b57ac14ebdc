"""How the first writer with a register takes a partition that has no record yet (design §6, "until the register exists").

Owns the way from nothing, or from data that was written before there was a register, to the record's first version. It must not
know connections or time. Rules:

1. **All** of the partition's first stores are fenced, with an epoch above the highest that any of them has seen; with one
   missing, it waits.
2. The tail is that of the store with the highest (epoch, index) at its end, of all of them: a store that cannot tell what it
   once held counts with what it has (all have answered), and one that is sure may be sure only because it is new and empty.
3. The tail's frames are sent as they are to whoever lacks them, page by page; they supersede what differs.
4. When all hold the same, the record is set from absent, with this epoch. Who loses that compare-and-set ends.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import Header, decode_frame
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import LogWriter
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    CompareAndSet,
    Ended,
    Fenced,
    NotStored,
    SendFrames,
    Settled,
    Stored,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.takeover import FenceRefused, Fetch, Fetched, TookOver
from trilogue.actors.protocol.vocabulary import FenceAnswer, StoreView


class Inspected(NamedTuple):
    """A store said what it has seen of the partition."""

    store: str
    view: StoreView


class Inspect(NamedTuple):
    """Ask the store what it has seen."""

    store: str


Event = StoreUp | StoreLost | Inspected | Fenced | FenceRefused | Fetched | Stored | NotStored | Settled | Tick
Effect = Inspect | AskFence | Fetch | SendFrames | CompareAndSet | TookOver | Ended


class _Phase(Enum):
    INSPECT = "asking the stores"
    FENCE = "fencing the stores"
    COPY = "making the stores equal"
    DECLARE = "writing its record"
    DONE = "done"


class Founding:
    """One attempt of one writer. `stores` are the names of those that a new partition starts on."""

    def __init__(
        self, *, log_id: int, partition: int, writer: str, address: str, stores: tuple[str, ...], wish: Wish, limits: Limits
    ) -> None:
        self.epoch = 0
        self._log_id, self._partition, self._writer, self._address = log_id, partition, writer, address
        self._stores, self._wish, self._limits = stores, wish, limits
        self._phase = _Phase.INSPECT
        self._up: dict[str, Member] = {}  # by name
        self._views: dict[str, StoreView] = {}  # by key, as all that follows
        self._answers: dict[str, FenceAnswer] = {}
        self._source = ""
        self._last_index = self._last_crc = 0
        self._matches: dict[str, int] = {}
        self._copied = 0
        self._copied_crc: int | None = None

    @property
    def waiting_for(self) -> list[str]:
        """The names of the stores without which it cannot go on."""
        answered = self._views if self._phase is _Phase.INSPECT else self._answers
        if self._phase in (_Phase.INSPECT, _Phase.FENCE):
            return [s for s in self._stores if s not in self._up or self._up[s].key not in answered]
        return [s for s in self._stores if s not in self._up]

    @property
    def phase(self) -> str:
        """What it is doing, for people."""
        return self._phase.value

    def begin(self) -> list[Effect]:
        """Nothing to do before the stores are there."""
        return []

    def handle(self, event: object) -> list[Effect]:
        """Decide on one event."""
        match event:
            case StoreUp(member):
                return self._on_up(member) if member.name in self._stores else []
            case StoreLost(store):
                return self._on_lost(store)
            case Inspected(store, view):
                return self._on_inspected(store, view)
            case Fenced(store, answer):
                return self._on_fenced(store, answer)
            case FenceRefused(store, text):
                return self._end(f"{store} refuses the fence: {text}")
            case Fetched(frames):
                return self._on_fetched(frames)
            case Stored():
                return self._on_stored(event)
            case NotStored(store, epoch, _, text):
                return self._end(f"{store} cannot take its part: {text}") if epoch == self.epoch else []
            case Settled(version, text):
                return self._on_settled(version, text)
            case _:
                return []  # time means nothing here, nor what was meant for an earlier phase

    def _end(self, text: str) -> list[Effect]:
        self._phase = _Phase.DONE
        return [Ended(text)]

    # ------------------------------------------------------------------ asking and fencing

    def _on_up(self, member: Member) -> list[Effect]:
        known = self._up.get(member.name)
        if known is not None and known != member and self._phase is not _Phase.INSPECT:
            return self._end(f"{member.name} changed its identity while the partition was founded")
        self._up[member.name] = member
        if self._phase is _Phase.INSPECT:
            return [Inspect(member.key)]
        if self._phase is _Phase.FENCE:
            return [AskFence(member.key, self.epoch)]
        return []

    def _on_lost(self, store: str) -> list[Effect]:
        name = next((name for name, member in self._up.items() if member.key == store), "")
        if not name or self._phase is _Phase.DONE:
            return []
        if self._phase is _Phase.COPY:
            return self._end(f"{name} was lost while the stores were made equal")
        self._views.pop(store, None)
        self._answers.pop(store, None)
        del self._up[name]
        return []

    def _all(self, answered: dict[str, StoreView] | dict[str, FenceAnswer]) -> bool:
        return all(name in self._up and self._up[name].key in answered for name in self._stores)

    def _on_inspected(self, store: str, view: StoreView) -> list[Effect]:
        self._views[store] = view
        if self._phase is not _Phase.INSPECT or not self._all(self._views):
            return []
        self.epoch = max(view.epoch for view in self._views.values()) + 1
        self._phase = _Phase.FENCE
        return [AskFence(self._up[name].key, self.epoch) for name in self._stores]

    def _on_fenced(self, store: str, answer: FenceAnswer) -> list[Effect]:
        if self._phase is not _Phase.FENCE:
            return []
        self._answers[store] = answer
        return self._decide() if self._all(self._answers) else []

    # ------------------------------------------------------------------ choosing the tail, once

    def _decide(self) -> list[Effect]:
        if any(answer.base > 1 for answer in self._answers.values()):
            return self._end(
                "stores hold parts of a log, as the register had said, but it says nothing now: is the register lost?"
            )
        self._source = max(self._answers, key=lambda store: _end(self._answers[store]))
        best = self._answers[self._source]
        _, self._last_index, self._last_crc = _end(best)
        known_committed = max(answer.committed_upto for answer in self._answers.values())
        if self._last_index < known_committed:
            return self._end(
                f"the log ends at frame {self._last_index} but {known_committed} was committed: "
                "proof of loss; keep all store directories as they are and run `trilogue verify`"
            )
        self._phase = _Phase.COPY
        crcs = {entry.frame_index: entry.crc for entry in best.tail}
        self._matches = {s: _match(a, crcs, self._last_index) for s, a in self._answers.items()}
        self._copied = min(self._matches.values())
        return self._next_page()

    def _next_page(self) -> list[Effect]:
        if self._copied < self._last_index:
            return [Fetch(self._source, self._copied + 1, self._last_index)]
        self._phase = _Phase.DECLARE
        members = tuple(self._up[name] for name in self._stores)
        self._record = PartitionRecord(self.epoch, self._writer, self._address, (Range(1, members),))
        return [CompareAndSet(0, self._record)]

    # ------------------------------------------------------------------ making all equal

    def _on_fetched(self, frames: list[bytes]) -> list[Effect]:
        if self._phase is not _Phase.COPY or not frames:
            return self._end(f"no frames from {self._copied + 1} on could be read")
        first = self._copied + 1
        headers: list[Header] = []
        for frame in frames:
            header = decode_frame(frame, self._limits.frame_bytes_max)
            if header.index != first + len(headers) or (header.log_id, header.partition) != (self._log_id, self._partition):
                raise ProtocolError(f"frame {header.index} was given where {first + len(headers)} was asked for")
            before = headers[-1].header_crc if headers else self._copied_crc
            if before is not None and header.prev_crc != before:
                raise ProtocolError(f"frame {header.index} was given, which does not chain")
            headers.append(header)
        self._copied = first + len(frames) - 1
        self._copied_crc = headers[-1].header_crc
        effects: list[Effect] = []
        for store, match in self._matches.items():
            lacking = self._refine(store, match, headers)
            if lacking < self._copied:
                effects.append(SendFrames((store,), frames[max(0, lacking - first + 1) :]))
        return effects or self._next_page()

    def _refine(self, store: str, match: int, headers: list[Header]) -> int:
        """How far the store agrees, now that the source's frames up to `_copied` are known."""
        held = {entry.frame_index: entry.crc for entry in self._answers[store].tail}
        for header in headers:
            if header.index == match + 1 and held.get(header.index) == header.header_crc:
                match = header.index
        self._matches[store] = match
        return match

    def _on_stored(self, event: Stored) -> list[Effect]:
        if self._phase is not _Phase.COPY or event.epoch != self.epoch or event.store not in self._matches:
            return []
        if event.upto == self._copied:
            require(event.crc == self._copied_crc, "{} confirms another frame at {}", event.store, event.upto)
        self._matches[event.store] = max(self._matches[event.store], event.upto)
        if any(match < self._copied for match in self._matches.values()):
            return []
        return self._next_page()

    # ------------------------------------------------------------------ the first record

    def _on_settled(self, version: int, text: str) -> list[Effect]:
        if self._phase is not _Phase.DECLARE:
            return []
        if text:
            return self._end(text)
        self._phase = _Phase.DONE
        log = LogWriter(
            log_id=self._log_id,
            partition=self._partition,
            version=version,
            record=self._record,
            committed=self._last_index,
            committed_crc=self._last_crc,
            tail=(),
            wish=self._wish,
            limits=self._limits,
        )
        return [TookOver(log, {})]


def _end(answer: FenceAnswer) -> tuple[int, int, int]:
    """(epoch, index, CRC) of the last frame: the order in which tails are compared."""
    if not answer.tail:
        return (0, 0, 0)
    last = answer.tail[-1]
    return (last.epoch, last.frame_index, last.crc)


def _match(answer: FenceAnswer, crcs: dict[int, int], last_index: int) -> int:
    """Up to which index a store is known to agree with the source: what it knows committed, and what compares equal."""
    match = min(answer.committed_upto, last_index)
    for entry in answer.tail:
        if entry.frame_index in crcs and entry.frame_index >= match:
            if crcs[entry.frame_index] != entry.crc:
                break
            match = entry.frame_index
    return match
