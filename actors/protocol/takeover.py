"""How a new writer takes a partition, until the register exists (design §6, the interim rule).

Owns the way from "nothing known" to a `LogWriter` whose members are all equal. It must not know connections or time. Rules:

1. Each start of a writer is a new writer UUID and a new epoch, above the highest that any of the three stores has seen. Nobody
   resumes one (with ties instead of "strictly higher", acked messages are lost: an exhaustive check of two writers shows it).
2. **All** stores are fenced; with one missing, the writer waits.
3. The tail is that of the store with the highest (epoch, index) at its end, of all three: a store that cannot tell what it
   once held counts with what it has (all have answered), and one that is sure may be sure only because it is new and empty.
   The tail is chosen once and never again within the epoch.
4. The tail's frames are sent as they are to whoever lacks them, page by page; they supersede what differs. A store that is
   empty or was cut is filled in the same way.
5. New messages are accepted when all stores hold the tail: by then it is committed.
6. A refused fence ends this writer; the next attempt is another one.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import Header, decode_frame
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import Ended, LogWriter, MemberLost, NotStored, SendFrames, Stored
from trilogue.actors.protocol.vocabulary import FenceAnswer, StoreView


class MemberUp(NamedTuple):
    """A store is connected; `identity` is (UUID, incarnation)."""

    store: str
    identity: tuple[str, int]


class Inspected(NamedTuple):
    """A store said what it has seen of the partition."""

    store: str
    view: StoreView


class Fenced(NamedTuple):
    """A store obeys this writer."""

    store: str
    answer: FenceAnswer


class FenceRefused(NamedTuple):
    """A store has seen a higher epoch."""

    store: str
    text: str


class Fetched(NamedTuple):
    """The frames that `Fetch` asked for: the first of them at least, without a hole."""

    frames: list[bytes]


class Inspect(NamedTuple):
    """Ask the store what it has seen."""

    store: str


class AskFence(NamedTuple):
    """Ask the store to obey this writer's epoch."""

    store: str
    epoch: int


class Fetch(NamedTuple):
    """Read the frames from `first` to `last`, or as many from the start as fit an answer, from the store."""

    store: str
    first: int
    last: int


class TakenOver(NamedTuple):
    """All stores hold the same frames, so all of them are committed: the log is open. Any store can say what the sessions
    are at `log.last_index`, and none can be ahead of it."""

    log: LogWriter


Event = MemberUp | MemberLost | Inspected | Fenced | FenceRefused | Fetched | Stored | NotStored
Effect = Inspect | AskFence | Fetch | SendFrames | TakenOver | Ended


class _Phase(Enum):
    INSPECT = "asking the stores"
    FENCE = "fencing the stores"
    COPY = "making the stores equal"
    DONE = "done"


class Takeover:
    """One attempt of one writer."""

    def __init__(self, *, log_id: int, partition: int, stores: tuple[str, ...], limits: Limits) -> None:
        self.epoch = 0
        self._log_id, self._partition, self._limits = log_id, partition, limits
        self._stores = stores
        self._phase = _Phase.INSPECT
        self._identities: dict[str, tuple[str, int]] = {}
        self._up: set[str] = set()
        self._views: dict[str, StoreView] = {}
        self._answers: dict[str, FenceAnswer] = {}
        self._source = ""
        self._last_index = 0
        self._last_crc = 0
        self._matches: dict[str, int] = {}
        self._copied = 0
        self._copied_crc: int | None = None

    @property
    def waiting_for(self) -> list[str]:
        """The stores without which it cannot go on."""
        answered = self._views if self._phase is _Phase.INSPECT else self._answers
        if self._phase in (_Phase.INSPECT, _Phase.FENCE):
            return [s for s in self._stores if s not in answered]
        return [s for s in self._stores if s not in self._up]

    @property
    def phase(self) -> str:
        """What it is doing, for people."""
        return self._phase.value

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        match event:
            case MemberUp(store, identity):
                return self._on_up(store, identity)
            case MemberLost(store):
                self._up.discard(store)
                if self._phase is _Phase.COPY:
                    return [Ended(f"{store} was lost while the stores were made equal")]
                return []
            case Inspected(store, view):
                return self._on_inspected(store, view)
            case Fenced(store, answer):
                return self._on_fenced(store, answer)
            case FenceRefused(store, text):
                return [Ended(f"{store} refuses the fence: {text}")]
            case Fetched(frames):
                return self._on_fetched(frames)
            case Stored():
                return self._on_stored(event)
            case NotStored(store, epoch, _, text):
                if epoch == self.epoch:
                    return [Ended(f"{store} cannot take its part: {text}")]
                return []

    # ------------------------------------------------------------------ asking and fencing

    def _on_up(self, store: str, identity: tuple[str, int]) -> list[Effect]:
        if self._identities.setdefault(store, identity) != identity:
            return [Ended(f"{store} changed its identity during the takeover")]
        self._up.add(store)
        if self._phase is _Phase.INSPECT:
            return [Inspect(store)]
        if self._phase is _Phase.FENCE:
            return [AskFence(store, self.epoch)]
        return []

    def _on_inspected(self, store: str, view: StoreView) -> list[Effect]:
        self._views[store] = view
        if self._phase is not _Phase.INSPECT or len(self._views) < len(self._stores):
            return []
        self.epoch = max(view.epoch for view in self._views.values()) + 1
        self._phase = _Phase.FENCE
        return [AskFence(s, self.epoch) for s in self._stores if s in self._up]

    def _on_fenced(self, store: str, answer: FenceAnswer) -> list[Effect]:
        if self._phase is not _Phase.FENCE:
            return []
        self._answers[store] = answer
        if len(self._answers) < len(self._stores):
            return []
        if lost := self.waiting_for or [s for s in self._stores if s not in self._up]:
            return [Ended(f"{', '.join(lost)} was lost right after the fence")]
        return self._decide()

    # ------------------------------------------------------------------ choosing the tail, once

    def _decide(self) -> list[Effect]:
        self._source = max(self._answers, key=lambda store: _end(self._answers[store]))
        best = self._answers[self._source]
        _, self._last_index, self._last_crc = _end(best)
        known_committed = max(answer.committed_upto for answer in self._answers.values())
        if self._last_index < known_committed:
            return [
                Ended(
                    f"{self._source} ends at frame {self._last_index} but {known_committed} was committed: "
                    "proof of loss; keep all store directories as they are and run `trilogue verify`"
                )
            ]
        self._phase = _Phase.COPY
        crcs = {entry.frame_index: entry.crc for entry in best.tail}
        self._matches = {s: _match(a, crcs, self._last_index) for s, a in self._answers.items()}
        self._copied = min(self._matches.values())
        return self._next_page()

    def _next_page(self) -> list[Effect]:
        if self._copied < self._last_index:
            return [Fetch(self._source, self._copied + 1, self._last_index)]
        return self._finish()

    # ------------------------------------------------------------------ making all equal

    def _on_fetched(self, frames: list[bytes]) -> list[Effect]:
        if self._phase is not _Phase.COPY or not frames:
            return [Ended(f"{self._source} gave no frames from {self._copied + 1} on")]
        first = self._copied + 1
        headers: list[Header] = []
        for frame in frames:
            header = decode_frame(frame, self._limits.frame_bytes_max)
            if header.index != first + len(headers) or (header.log_id, header.partition) != (
                self._log_id,
                self._partition,
            ):
                raise ProtocolError(f"{self._source} gave frame {header.index} where {first + len(headers)} was asked for")
            before = headers[-1].header_crc if headers else self._copied_crc
            if before is not None and header.prev_crc != before:
                raise ProtocolError(f"{self._source} gave frame {header.index}, which does not chain")
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
        if self._phase is not _Phase.COPY or event.epoch != self.epoch:
            return []
        if event.upto == self._copied:
            require(event.crc == self._copied_crc, f"{event.store} confirms another frame at {event.upto}")
        self._matches[event.store] = max(self._matches[event.store], event.upto)
        if any(match < self._copied for match in self._matches.values()):
            return []
        return self._next_page()

    def _finish(self) -> list[Effect]:
        self._phase = _Phase.DONE
        log = LogWriter(
            log_id=self._log_id,
            partition=self._partition,
            epoch=self.epoch,
            members={s: self._identities[s] for s in self._stores},
            last_index=self._last_index,
            last_crc=self._last_crc,
            limits=self._limits,
        )
        return [TakenOver(log)]


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
