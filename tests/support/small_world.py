"""A partition's writers, five small stores and a register, all on one desk: for unit tests that need more than one machine.

Owns what travels: one queue each way between a writer and a store, and compare-and-sets under way. Nothing happens by itself: a
test picks the next step, or says `calm` and all goes well from then on. The judge looks at disks and the register only:

1. A frame that a writer commits is on every store that the register's record names for it, and on every one that a
   compare-and-set under way would name (G1).
2. No index is ever committed with two contents (G2, G9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from small_log import LIMITS, LOG_ID, PARTITION, Desk
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.founding import Inspect, Inspected
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.ranges import Member, PartitionRecord
from trilogue.actors.protocol.replication import (
    AskFence,
    AskJoin,
    Backfill,
    Committed,
    CompareAndSet,
    Ended,
    Filled,
    Idle,
    Proposed,
    SendFrames,
    Settled,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.takeover import AskHeard, Fetch, Fetched, Heard, ReadRecord, RecordRead
from trilogue.actors.protocol.writer import PartitionWriter, Recovered

PAGE = 2
TICK_MS = 50


class Link(NamedTuple):
    """A connection of a writer to a store, and what is on its way."""

    desk: Desk
    key: str
    out: deque[Any]
    back: deque[Any]


class Seat:
    """One writer's process."""

    def __init__(self, world: World, name: str, wish: Wish, limits: Limits, now_ms: int) -> None:
        self.world, self.name = world, name
        self.links: dict[str, Link] = {}  # by the store's name
        self.asked: list[CompareAndSet] = []  # compare-and-sets that the register has not seen
        self.outcomes: deque[Settled] = deque()
        self.fills: list[Backfill] = []
        self.recovered: list[int] = []
        self.effects: list[Any] = []
        self.now_ms = now_ms
        self.paused = False  # its process is stopped, and its connections stay
        stores = tuple(list(world.desks)[: wish.copies])
        self.machine = PartitionWriter(
            log_id=LOG_ID, partition=PARTITION, writer=name, address="h:1", stores=stores, wish=wish, limits=limits
        )

    @property
    def ended(self) -> str:
        return self.machine.ended

    @property
    def committed(self) -> int:
        return self.machine.log.committed if self.machine.log is not None else 0

    def feed(self, event: Any) -> None:
        if not self.ended:
            self.run(self.machine.handle(event))

    def run(self, effects: list[Any]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case SendFrames(stores, frames):
                    for link in self.links.values():
                        if link.key in stores:
                            link.out.extend(frames)
                case ReadRecord():
                    self.feed(RecordRead(*self.world.register))
                case CompareAndSet():
                    self.asked.append(effect)
                case Backfill():
                    self.fills.append(effect)
                case Committed(upto):
                    self.world.judge(self, upto)
                case Recovered(upto):
                    self.recovered.append(upto)
                case Ended():
                    self.leave()
                case AskFence(key) | AskJoin(key) | Inspect(key) | AskHeard(key) | Fetch(key):
                    asked = [link for link in self.links.values() if link.key == key]
                    for link in asked:
                        link.out.append(effect)
                    if not asked and isinstance(effect, Fetch):
                        self.feed(Fetched([]))
                case _:
                    raise AssertionError(f"nobody knows how to do {effect}")

    def leave(self) -> None:
        """Its process is gone, with all that was under way."""
        self.links.clear()
        self.fills.clear()
        self.machine.ended = self.machine.ended or "killed"

    # ------------------------------------------------------------------ what may happen to it

    def connect(self, name: str) -> None:
        desk = self.world.desks[name]
        self.links[name] = Link(desk, desk.key, deque(), deque())
        self.feed(StoreUp(desk.member))

    def disconnect(self, name: str) -> None:
        link = self.links.pop(name)
        self.feed(StoreLost(link.key))

    def deliver(self, name: str) -> None:
        """The store does the next thing that it was asked for."""
        link = self.links[name]
        link.back.append(self._done_by(link.desk, link.out.popleft()))

    def hear(self, name: str) -> None:
        self.feed(self.links[name].back.popleft())

    def decide(self) -> None:
        """The register decides the next compare-and-set."""
        self.outcomes.append(self.world.compare_and_set(self.asked.pop(0)))

    def settle(self) -> None:
        self.feed(self.outcomes.popleft())

    def copy(self) -> None:
        """One order to copy older frames is carried out, as far as that goes."""
        order = self.fills.pop(0)
        by_key = {link.key: link.desk for link in self.links.values()}
        base = order.last + 1
        for index in range(order.last, order.first - 1, -1):
            frames = [f for key in order.sources if key in by_key for f in by_key[key].read(index, index)][:1]
            if frames and order.store in by_key and by_key[order.store].epoch == self.machine.epoch:
                base = by_key[order.store].fill(self.machine.epoch, self.name, frames)
        self.feed(Filled(order.number, order.store, base))

    def tick(self) -> None:
        self.now_ms += TICK_MS
        self.feed(Tick(self.now_ms))

    def propose(self, salt: bytes = b"") -> None:
        self.feed(Proposed(pack_records([]) + salt, 0))

    @property
    def may_propose(self) -> bool:
        return bool(self.recovered) and self.machine.log is not None and self.machine.log.has_room and not self.ended

    def _done_by(self, desk: Desk, what: Any) -> Any:
        match what:
            case bytes():
                return desk.append(self.machine.epoch, self.name, what)
            case AskFence(_, epoch):
                return desk.fence(epoch, self.name)
            case AskJoin():
                return desk.join(self.machine.epoch, self.name, what)
            case Inspect(key):
                return Inspected(key, desk.view())
            case AskHeard(key):
                return Heard(key, desk.epoch, self.world.silent_ms(desk))
            case Fetch(_, first, last):
                return Fetched(desk.read(first, min(last, first + PAGE - 1)))
        raise AssertionError(what)


class World:
    """Stores by name, writers in the order in which they came, and the register's one record."""

    def __init__(self, desks: Iterable[Desk], *, wish: Wish, limits: Limits = LIMITS) -> None:
        self.desks = {desk.member.name: desk for desk in desks}
        self.wish, self.limits = wish, limits
        self.register: tuple[int, PartitionRecord | None] = (0, None)
        self.seats: list[Seat] = []
        self.acked: dict[int, int] = {}

    def writer(self, *, now_ms: int = 10_000) -> Seat:
        """A new writer, connected to every store, that has the order to take the partition."""
        seat = Seat(self, f"writer-{len(self.seats) + 1}", self.wish, self.limits, now_ms)
        self.seats.append(seat)
        seat.feed(Tick(now_ms))
        seat.run(seat.machine.begin([]))
        for name in self.desks:
            seat.connect(name)
        return seat

    def restarted(self, name: str, desk: Desk) -> None:
        """The store's process was started again; `desk` is what it has on its disk."""
        self.desks[name] = desk
        for seat in self.seats:
            if name in seat.links:
                seat.disconnect(name)
                seat.connect(name)

    def silent_ms(self, desk: Desk) -> int:
        seats = [
            seat for seat in self.seats if seat.machine.log is not None and desk in (link.desk for link in seat.links.values())
        ]
        return min((self.limits.writer_silent_ms if seat.paused else 0 for seat in seats), default=-1)

    def compare_and_set(self, asked: CompareAndSet) -> Settled:
        if self.register[0] != asked.version:
            return Settled(self.register[0], "the record is another writer's by now")
        self.register = (asked.version + 1, asked.record)
        return Settled(asked.version + 1)

    def holders(self, record: PartitionRecord, index: int) -> tuple[Member, ...]:
        return [one for one in record.ranges if one.first <= index][-1].members

    def judge(self, seat: Seat, upto: int) -> None:
        _, record = self.register
        assert record is not None
        records = [record, *(asked.record for asked in seat.asked)]
        for index in range(1, upto + 1):
            named = [member for one in records for member in self.holders(one, index)]
            crcs = {desk.crc(index) for desk in self.desks.values() if desk.member in named}
            if not crcs:  # all of them cut the ends of their journals since; what lies below is still there
                stores = {member.store for member in named}
                crcs = {desk.crc(index) for desk in self.desks.values() if desk.member.store in stores} - {None}
            assert len(crcs) == 1, f"frame {index} was committed, and is not on every store that is named for it"
            (crc,) = crcs
            assert crc is not None, f"frame {index} was committed, and is on no disk"
            assert self.acked.setdefault(index, crc) == crc, f"two frames were committed at {index}"

    def steps(self) -> list[Callable[[], None]]:
        """All that may happen next, but faults."""
        found: list[Callable[[], None]] = []
        for seat in self.seats:
            if seat.paused:
                continue
            if seat.asked:
                found.append(seat.decide)
            if seat.outcomes:
                found.append(seat.settle)
            if seat.fills:
                found.append(seat.copy)
            for name, link in seat.links.items():
                found += [partial(seat.deliver, name)] if link.out else []
                found += [partial(seat.hear, name)] if link.back else []
        return found

    def calm(self, ticks: int = 200) -> None:
        """From now on all goes well: every store is connected, and all that travels arrives."""
        for _ in range(ticks):
            for seat in self.seats:
                if not seat.ended and not seat.paused:
                    for name in self.desks.keys() - seat.links.keys():
                        seat.connect(name)
                    seat.tick()
                    seat.feed(Idle())
            while steps := self.steps():
                for step in steps[:1]:
                    step()
