"""What a partition's writer asks of stores and of the register, and what it copies from one store to another.

Owns the carrying out of those effects of ``protocol.writer`` that have an answer, for one attempt. It must not know what the
answers lead to. Rules:

1. Each errand ends in one event, or in nothing when the store it was for is lost: then that is told anyway.
2. The register is asked until it has answered: no answer is never "no" (design §6, rule 3).
3. Older frames are copied at `copy_bytes_per_s` at most, the newest page first, so that what is copied connects to what is
   there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple, Protocol

from trilogue.actors.protocol.errors import ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.founding import Inspect, Inspected
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.ranges import decode_record, encode_record, record_key
from trilogue.actors.protocol.register.proposal import Set
from trilogue.actors.protocol.replication import (
    AskFence,
    AskJoin,
    Backfill,
    CompareAndSet,
    Fenced,
    Filled,
    Joined,
    NotStored,
    Settled,
)
from trilogue.actors.protocol.takeover import AskHeard, FenceRefused, Fetch, Fetched, Heard, ReadRecord, RecordRead
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry
from trilogue.actors.protocol.writer import PartitionWriter
from trilogue.actors.pump import spawn
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.actors.replication.store_links import StoreLinks
from trilogue.actors.wire import Connection, Refused

logger = logging.getLogger(__name__)

AGAIN_S = 0.1
FILL_FRAMES = 16


class WriterOrder(NamedTuple):
    """Whose errands these are."""

    machine: PartitionWriter
    partition: int
    writer: str
    address: str


class ErrandOwner(Protocol):
    """Who sends the errands out, and hears what came of them."""

    def is_current(self, machine: PartitionWriter) -> bool:
        """Whether this attempt is not over."""

    def answered(self, machine: PartitionWriter, event: Any) -> None:
        """What an errand found out."""

    def waits(self, reason: str) -> None:
        """An errand is held up."""

    def reached(self, step: str) -> None:
        """A step of the takeover is done."""


class Errands:
    """The errands of one attempt to own a partition."""

    def __init__(
        self, order: WriterOrder, limits: Limits, links: StoreLinks, register: RegisterClient, owner: ErrandOwner
    ) -> None:
        self._order, self._machine = order, order.machine
        self._limits, self._links, self._register, self._owner = limits, links, register, owner

    def run(self, effect: Any) -> None:
        """Carry it out, beside everything else."""
        match effect:
            case ReadRecord():
                work = self._read_record()
            case CompareAndSet():
                work = self._compare_and_set(effect)
            case Backfill():
                work = self._backfill(effect)
            case _:
                work = self._ask_store(effect)
        spawn(work, type(effect).__name__)

    def _goes_on(self) -> bool:
        return self._owner.is_current(self._machine)

    def _tell(self, event: Any) -> None:
        self._owner.answered(self._machine, event)

    # ------------------------------------------------------------------ asking the register

    async def _read_record(self) -> None:
        while self._goes_on():
            try:
                found = await self._register.read(record_key(self._order.partition))
            except Unavailable as error:
                self._owner.waits(str(error))
                continue
            self._owner.reached("record")
            record = decode_record(found.data) if found.data is not None else None
            self._tell(RecordRead(found.version, record))
            return

    async def _compare_and_set(self, wanted: CompareAndSet) -> None:
        """However long it takes: no answer is never "no" (design §6, rule 3)."""
        data = encode_record(wanted.record)
        while self._goes_on():
            try:
                outcome = await self._register.compare_and_set(record_key(self._order.partition), wanted.version, data)
            except Unavailable as error:
                self._owner.waits(str(error))
                continue
            self._owner.reached("claimed")
            if isinstance(outcome, Set):
                self._tell(Settled(outcome.version))
            else:
                self._tell(Settled(outcome.version, "the record in the register is another writer's by now"))
            return

    # ------------------------------------------------------------------ asking one store

    async def _ask_store(self, effect: Any) -> None:
        key = effect.store
        connection = self._links.by_key.get(key)
        event: Any = None
        try:
            if connection is not None:
                event = await self._asked(effect, key, connection)
        except Refused as refusal:
            event = (
                FenceRefused(key, refusal.text)
                if self._machine.log is None
                else NotStored(key, self._machine.epoch, refusal.code, refusal.text)
            )
            if refusal.code != Code.DEPOSED and connection is not None:
                await asyncio.sleep(AGAIN_S)
                connection.close(f"it was refused: {refusal.text}")
                event = None
        except (TrilogueError, TypeError) as error:
            if connection is not None and not isinstance(effect, Fetch):
                connection.close(f"it was not answered: {error}")
        if event is None and isinstance(effect, Fetch):
            event = Fetched([])
        if event is not None:
            self._tell(event)

    async def _asked(self, effect: Any, key: str, connection: Connection) -> Any:
        partition = self._order.partition
        match effect:
            case Inspect():
                return Inspected(key, StoreView(*await connection.request(Say.INSPECT, partition)))
            case AskHeard():
                epoch, silent_ms = await connection.request(Say.HEARD, partition)
                return Heard(key, epoch, silent_ms)
            case Fetch(_, first, last):
                return Fetched(await connection.request(Say.FRAMES, partition, first, last))
            case AskFence(_, epoch):
                return Fenced(
                    key, _answer(await connection.request(Say.FENCE, partition, epoch, self._order.writer, self._order.address))
                )
            case AskJoin(_, number, first, prev_crc, intervals):
                where = (partition, self._machine.epoch, self._order.writer, self._order.address)
                answer = await connection.request(Say.JOIN, *where, number, first, prev_crc, [list(one) for one in intervals])
                return Joined(key, number, _answer(answer))
        raise AssertionError(f"nobody knows how to do {effect}")

    async def _backfill(self, order: Backfill) -> None:
        """Copy the newest missing page, again and again, until the target holds all or something is lost."""
        base = order.last + 1
        sources = list(order.sources)
        problem: Exception | str = "none is connected"
        while base > order.first and self._goes_on() and sources:
            try:
                before, base = base, await self._copy_page(order, sources[0], base)
                if base < before:
                    continue
                problem = "they do not connect to what it holds"
            except (TrilogueError, Refused, KeyError) as error:
                problem = error
            logger.warning(
                "partition %d: frames below %d of %s could not be copied to %s: %s",
                self._order.partition, base, sources.pop(0), order.store, problem,
            )  # fmt: skip
        if base > order.first:
            await asyncio.sleep(AGAIN_S)
        self._tell(Filled(order.number, order.store, base))

    async def _copy_page(self, order: Backfill, source: str, base: int) -> int:
        """Copy the frames right below `base` from one source; returns the target's base after that."""
        first = max(order.first, base - FILL_FRAMES)
        frames: list[bytes] = []
        while first + len(frames) < base:
            asked = self._order.partition, first + len(frames), base - 1
            page = await self._links.by_key[source].request(Say.FRAMES, *asked)
            if not page:
                raise Unavailable("it has a hole")
            frames += page
        for frame in reversed(frames):  # one at a time: together they could be beyond what the wire takes
            target = self._links.by_key[order.store]
            base = await target.request(Say.FILL, self._order.partition, self._machine.epoch, self._order.writer, [frame])
            await asyncio.sleep(len(frame) / self._limits.copy_bytes_per_s)
        return base


def _answer(value: Any) -> FenceAnswer:
    match value:
        case [int(committed_upto), bool(certain), int(base), list(tail)]:
            return FenceAnswer(committed_upto, certain, base, [TailEntry(*entry) for entry in tail])
    raise ProtocolError("a fence's answer has an unknown shape")
