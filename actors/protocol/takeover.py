"""How a new writer takes a partition (design §6, rules 1, 2 and 8).

Owns the way from an order to a `LogWriter`. It must not know connections or clocks. Rules:

1. Each attempt is a new writer UUID and takes a new epoch, above all that the record and the stores have seen. Nobody
   resumes one.
2. It begins only when no store that it can reach has lately heard the writer in force: a spare never pushes a living one out.
3. First the compare-and-set of the epoch, naming the version that it replaces; then the fences of the last range's members.
4. The tail is that of the certain member with the highest (epoch, index) at its end; one certain answer is enough. Certain is
   who answers under the incarnation that the record names. One that has raised it since cannot tell what it held: it is
   believed only when all have answered and none can. The tail is chosen once, and never again within the epoch.
5. From there it is an ordinary writer whose uncommitted frames are that tail, which it sends as they are.
6. A lost compare-and-set or a refused fence ends the attempt.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import LogWriter
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range
from trilogue.actors.protocol.replication import (
    AskFence,
    CompareAndSet,
    Ended,
    Fenced,
    Frame,
    Settled,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.vocabulary import FenceAnswer


class RecordRead(NamedTuple):
    """The register's record of the partition; None: there is none yet."""

    version: int
    record: PartitionRecord | None


class Heard(NamedTuple):
    """A store has seen `epoch`, and has not heard its writer for `silent_ms` (-1: its connection is gone)."""

    store: str
    epoch: int
    silent_ms: int


class FenceRefused(NamedTuple):
    """A store has seen a higher epoch."""

    store: str
    text: str


class Fetched(NamedTuple):
    """The frames that `Fetch` asked for: the first of them at least, without a hole. None of them: they cannot be read."""

    frames: list[bytes]


class ReadRecord(NamedTuple):
    """Read the partition's record; answered by `RecordRead`, however long it takes."""


class AskHeard(NamedTuple):
    """Ask the store when it last heard the writer in force; answered by `Heard`."""

    store: str


class Fetch(NamedTuple):
    """Read the frames from `first` to `last`, or as many from the start as fit an answer, from the store."""

    store: str
    first: int
    last: int


class TookOver(NamedTuple):
    """The tail is known: `log` is the writer from now on. `answers` are the fences that were answered, to be fed to it."""

    log: LogWriter
    answers: dict[str, FenceAnswer]


class NoRecord(NamedTuple):
    """There is no record yet: the partition has to be founded (``founding``)."""


Event = StoreUp | StoreLost | RecordRead | Heard | Settled | Fenced | FenceRefused | Fetched | Tick
Effect = ReadRecord | AskHeard | CompareAndSet | AskFence | Fetch | TookOver | NoRecord | Ended


class _Phase(Enum):
    READ = "reading its record"
    LISTEN = "asking the stores whether its writer is gone"
    CLAIM = "claiming it in the register"
    FENCE = "fencing its stores"
    FETCH = "reading the newest frames"
    DONE = "done"


class Takeover:
    """One attempt of one writer. `begin` first."""

    def __init__(self, *, log_id: int, partition: int, writer: str, address: str, wish: Wish, limits: Limits) -> None:
        self.epoch = 0
        self._log_id, self._partition, self._writer, self._address = log_id, partition, writer, address
        self._wish, self._limits = wish, limits
        self._phase = _Phase.READ
        self._up: dict[str, Member] = {}
        self._version = 0
        self._record: PartitionRecord | None = None
        self._heard: dict[str, Heard] = {}
        self._answers: dict[str, FenceAnswer] = {}
        self._now_ms = self._since_ms = 0
        self._source = ""
        self._committed = self._committed_crc = self._last_index = 0
        self._chosen: dict[int, int] = {}  # the CRCs of the tail
        self._frames: list[Frame] = []

    @property
    def phase(self) -> str:
        """What it is doing, for people."""
        return self._phase.value

    @property
    def waiting_for(self) -> list[str]:
        """The names of the stores without which it cannot go on."""
        if self._phase not in (_Phase.LISTEN, _Phase.FENCE):
            return []
        return [member.name for member in self._members if member.key not in self._up]

    @property
    def _members(self) -> tuple[Member, ...]:
        return self._last.members

    @property
    def _last(self) -> Range:
        assert self._record is not None
        return self._record.ranges[-1]

    def has_fenced(self, store: str) -> bool:
        """Whether the store has answered the fence."""
        return store in self._answers

    def begin(self) -> list[Effect]:
        """The first step."""
        return [ReadRecord()]

    def handle(self, event: object) -> list[Effect]:
        """Decide on one event."""
        match event:
            case StoreUp(member):
                self._up[member.key] = member
                return self._on_up(member)
            case StoreLost(store):
                self._up.pop(store, None)
                self._heard.pop(store, None)
                if self._phase is _Phase.FETCH and store == self._source:
                    return self._end("the store whose tail was chosen is lost")
                return self._decide_if_enough()
            case RecordRead(version, record):
                return self._on_record(version, record)
            case Heard(store):
                self._heard[store] = event
                return self._claim_if_silent()
            case Settled(version, text):
                return self._on_settled(version, text)
            case Fenced(store, answer):
                if self._phase is _Phase.FENCE:
                    self._answers[store] = answer
                return self._decide_if_enough()
            case FenceRefused(store, text):
                return self._end(f"{store} refuses the fence: {text}")
            case Fetched(frames):
                return self._on_fetched(frames)
            case Tick(now_ms):
                return self._on_tick(now_ms)
            case _:
                return []  # meant for a later phase, or an earlier one

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._since_ms = phase, self._now_ms

    def _end(self, text: str) -> list[Effect]:
        self._phase = _Phase.DONE
        return [Ended(text)]

    def _on_up(self, member: Member) -> list[Effect]:
        if self._phase is _Phase.LISTEN and self._is_last_member(member):
            return [AskHeard(member.key)]
        if self._phase is _Phase.FENCE and self._is_last_member(member):
            return [AskFence(member.key, self.epoch)]
        return []

    def _is_last_member(self, member: Member) -> bool:
        """Whether it is one, or was one before it cut a damaged tail and raised its incarnation."""
        return any(member.store == one.store for one in self._members)

    def _reachable(self) -> list[Member]:
        return [member for member in self._up.values() if self._is_last_member(member)]

    # ------------------------------------------------------------------ may it begin?

    def _on_record(self, version: int, record: PartitionRecord | None) -> list[Effect]:
        if self._phase is not _Phase.READ:
            return []
        if record is None:
            self._phase = _Phase.DONE
            return [NoRecord()]
        self._version, self._record = version, record
        self._enter(_Phase.LISTEN)
        return [AskHeard(member.key) for member in self._reachable()]

    def _on_tick(self, now_ms: int) -> list[Effect]:
        self._now_ms = now_ms
        if self._phase is _Phase.LISTEN:
            if now_ms - self._since_ms > 2 * self._limits.writer_silent_ms and any(map(self._hears, self._heard.values())):
                return self._end("its writer is alive")
            return [*self._claim_if_silent(), *self._ask_again()]
        return self._decide_if_enough()

    def _ask_again(self) -> list[Effect]:
        if self._phase is not _Phase.LISTEN:
            return []
        return [AskHeard(member.key) for member in self._reachable()]

    def _hears(self, heard: Heard) -> bool:
        return 0 <= heard.silent_ms < self._limits.writer_silent_ms and heard.epoch > 0

    def _claim_if_silent(self) -> list[Effect]:
        """Rule 2: all that can be reached have lost the writer in force; most members can be, or it has waited for them."""
        if self._phase is not _Phase.LISTEN or self._record is None:
            return []
        reachable = self._reachable()
        enough = 2 * len(reachable) > len(self._members) or self._now_ms - self._since_ms >= self._limits.writer_silent_ms
        if not reachable or not enough or any(m.key not in self._heard or self._hears(self._heard[m.key]) for m in reachable):
            return []
        self.epoch = max(self._record.epoch, *(heard.epoch for heard in self._heard.values())) + 1
        self._enter(_Phase.CLAIM)
        claim = PartitionRecord(self.epoch, self._writer, self._address, self._record.ranges)
        self._record = claim
        return [CompareAndSet(self._version, claim)]

    def _on_settled(self, version: int, text: str) -> list[Effect]:
        if self._phase is not _Phase.CLAIM:
            return []
        if text:
            return self._end(text)
        self._version = version
        self._enter(_Phase.FENCE)
        return [AskFence(member.key, self.epoch) for member in self._reachable()]

    # ------------------------------------------------------------------ choosing the tail, once

    def _decide_if_enough(self) -> list[Effect]:
        """Decide as soon as all that can be reached have answered; without the slow ones after `fence_wait_ms`."""
        if self._phase is not _Phase.FENCE or not self._answers:
            return []
        keys = {member.key for member in self._members}
        sure = {store: answer for store, answer in self._answers.items() if store in keys}
        if not sure:
            answered = {self._up[store].store for store in self._answers if store in self._up}
            if any(member.store not in answered for member in self._members):
                return []
            sure = self._answers
        waited = self._now_ms - self._since_ms >= self._limits.fence_wait_ms
        if not waited and any(member.key not in self._answers for member in self._reachable()):
            return []
        return self._decide(sure)

    def _decide(self, sure: dict[str, FenceAnswer]) -> list[Effect]:
        self._source = max(sure, key=lambda store: _end_of(sure[store]))
        best = sure[self._source]
        before = self._last.first - 1
        self._committed = max(before, *(answer.committed_upto for answer in sure.values()))
        _, self._last_index, _ = _end_of(best)
        if self._last_index < self._committed:
            return self._end(
                f"the log ends at frame {self._last_index} but {self._committed} was committed: proof of loss; "
                "keep all store directories as they are and run `trilogue verify`"
            )
        crcs = {entry.frame_index: entry.crc for entry in best.tail}
        self._committed_crc = crcs.get(self._committed, 0)
        self._chosen = crcs
        self._enter(_Phase.FETCH)
        return self._fetch_or_finish()

    def _fetch_or_finish(self) -> list[Effect]:
        after = self._frames[-1].frame_index if self._frames else self._committed
        if after < self._last_index:
            return [Fetch(self._source, after + 1, self._last_index)]
        self._phase = _Phase.DONE
        assert self._record is not None
        log = LogWriter(
            log_id=self._log_id,
            partition=self._partition,
            version=self._version,
            record=self._record,
            committed=self._committed,
            committed_crc=self._committed_crc,
            tail=self._frames,
            wish=self._wish,
            limits=self._limits,
        )
        return [TookOver(log, self._answers)]

    def _on_fetched(self, frames: list[bytes]) -> list[Effect]:
        if self._phase is not _Phase.FETCH:
            return []
        if not frames:
            return self._end("the newest frames cannot be read from the store whose tail was chosen")
        for data in frames:
            header = decode_frame(data, self._limits.frame_bytes_max)
            index, crc = (self._frames[-1][:2]) if self._frames else (self._committed, self._committed_crc)
            here = (header.log_id, header.partition) == (self._log_id, self._partition)
            if not here or header.index != index + 1 or header.prev_crc != crc or self._chosen[index + 1] != header.header_crc:
                raise ProtocolError(f"frame {header.index} was given where {index + 1} of the chosen tail was asked for")
            self._frames.append(Frame(header.index, header.header_crc, data))
        return self._fetch_or_finish()


def _end_of(answer: FenceAnswer) -> tuple[int, int, int]:
    """(epoch, index, CRC) of the last frame: the order in which tails are compared."""
    if not answer.tail:
        return (0, 0, 0)
    last = answer.tail[-1]
    return (last.epoch, last.frame_index, last.crc)
