"""A SessionActor: the product's `PartitionWriter`, and the glue of its shells; what it does for clients stands in ``serving``.

Owns no rule of its own: what `replicated_log` and `session.actor` do with events and effects is done here without sockets.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Link
from simulated.serving import AGAIN_MS, Serving
from simulated.store import LOG_ID, PARTITION, StoreProcess
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.founding import Inspect, Inspected
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.ranges import Member
from trilogue.actors.protocol.replication import (
    AskFence,
    AskJoin,
    Backfill,
    Committed,
    CompareAndSet,
    Ended,
    Fenced,
    Filled,
    Idle,
    Joined,
    NotStored,
    Proposed,
    SendFrames,
    Settled,
    StoreLost,
    StoreUp,
    Tick,
)
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import FrameCommitted
from trilogue.actors.protocol.takeover import AskHeard, FenceRefused, Fetch, Fetched, Heard, ReadRecord, RecordRead
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry
from trilogue.actors.protocol.writer import PartitionWriter, Recovered

RECONNECT_MS = 20
HURRY_MS = 5
IDLE_MS = 40
FILL_FRAMES = 3
SPARE = "it is a spare"


class SessionProcess(Serving):
    """One process of the SessionActor `session`: a spare, until it is told to take the partition."""

    def __init__(self, world: Any, name: str, session: str, stores: tuple[str, ...], wish: Wish, limits: Limits) -> None:
        super().__init__(world, name, limits)
        self.session = session
        self.stores, self.wish = stores, wish
        self.connections: dict[str, Link] = {}  # by key
        self.born = world.now
        self.clock_ms = 0  # how far its wall clock is off
        self.machine: PartitionWriter | None = None
        self._waiting_text = SPARE
        self._attempts = 0
        self._cut_is_due = self._idle_is_due = False
        for store in stores:
            self._connect(store)

    @property
    def log(self) -> Any:
        return self.machine.log if self.machine is not None else None

    # ------------------------------------------------------------------ connections to stores

    def _connect(self, name: str) -> None:
        store: StoreProcess | None = self.world.reachable_store(self, name)
        if store is None:
            self.world.at(RECONNECT_MS, self, self._connect, name)
            return
        link = Link(self.world, self, store)
        link.info = Member(name, *store.identity)
        self.world.at(self.world.delay(), self, self._connected, link)

    def _connected(self, link: Link) -> None:
        if link.is_closed(self):
            return  # `on_closed` has planned the next attempt
        self.connections[link.info.key] = link
        self._feed(StoreUp(link.info))

    def on_closed(self, link: Link) -> None:
        if link.ends[0] is not self:
            if link in self.clients:
                self.clients.remove(link)
                self.subscriptions.forget(link)
            return
        member = link.info
        self.world.at(self.world.rng.randrange(1, RECONNECT_MS), self, self._connect, member.name)
        if self.connections.get(member.key) is link:
            del self.connections[member.key]
            self._feed(StoreLost(member.key))

    def _end(self, why: str) -> None:
        self.world.note(self.name, "ends:", why)
        self.kill()

    # ------------------------------------------------------------------ the machine

    def take(self) -> None:
        """Take the partition over, as a new writer."""
        if self.machine is not None:
            return
        self._attempts += 1
        self.machine = PartitionWriter(
            log_id=LOG_ID,
            partition=PARTITION,
            writer=f"{self.name}.{self._attempts}",
            address=self.name,
            stores=self.stores[: self.wish.copies],
            wish=self.wish,
            limits=self.limits,
        )
        self.writer = self.machine.writer
        self.world.note(self.name, "begins as", self.writer)
        self._do(self.machine, self.machine.begin([link.info for link in self.connections.values()]))
        self._tick(self.machine)
        self._ping_stores(self.machine)

    def _tick(self, machine: PartitionWriter) -> None:
        if machine is not self.machine:
            return
        self.world.at(self.limits.tick_ms if self.log is not None else HURRY_MS, self, self._tick, machine)
        self._feed(Tick(self.world.now - self.born))
        self._note()

    def _ping_stores(self, machine: PartitionWriter) -> None:
        if machine is not self.machine:
            return
        self.world.at(self.limits.writer_ping_ms, self, self._ping_stores, machine)
        if self.log is not None:
            for link in list(self.connections.values()):
                self._ping(machine, link)

    def _ping(self, machine: PartitionWriter, link: Link) -> None:
        """An idle writer lets its stores know that it is there, and learns whether another one has come."""

        def then(answer: Any) -> None:
            if answer is not None and machine is self.machine and answer[1][0] > machine.epoch:
                self._end("a store has seen a higher epoch")

        link.request(self, Say.INSPECT, PARTITION, machine.epoch, self.writer, then=then)

    def _note(self) -> None:
        """Tell the clients why nothing can be acked now, or that it goes on."""
        machine = self.machine
        reason = SPARE
        if machine is not None:
            doing, missing = machine.why_waiting
            reason = ", ".join(missing) or doing
        if not self.alive or reason == self._waiting_text or (not self.open and not reason):
            return
        self._waiting_text = reason
        for link in list(self.clients):
            self._greet(link)
        if self.open and not reason:
            self._plan_cut()
            self._plan_idle()

    def _feed(self, event: Any) -> None:
        machine = self.machine
        if machine is not None and self.alive:
            self._do(machine, machine.handle(event))
            if isinstance(event, StoreUp | StoreLost):
                self._note()

    def _do(self, machine: PartitionWriter, effects: list[Any]) -> None:
        self.world.witness.look(self)
        for effect in effects:
            if machine is not self.machine or not self.alive:
                return
            match effect:
                case SendFrames(stores, frames):
                    self.world.witness.sent(machine, frames)
                    self._send(machine.epoch, stores, frames)
                case Committed(upto):
                    self.world.witness.committed(machine, upto)
                    self._decide(FrameCommitted(upto))
                    self._plan_cut()
                    self._plan_idle()
                case ReadRecord():
                    self.world.register.read(self, lambda version, record: self._to(machine, RecordRead(version, record)))
                case CompareAndSet(version, record):
                    self.world.register.compare_and_set(
                        self, version, record, lambda version, text: self._to(machine, Settled(version, text))
                    )
                case Recovered(upto):
                    self._find_the_end(machine, upto)
                case Backfill():
                    self._backfill(machine, effect)
                case Ended(text):
                    self._over(machine, text)
                    return
                case _:
                    self._ask_store(machine, effect)

    def _over(self, machine: PartitionWriter, text: str) -> None:
        if machine.log is not None:
            self._end(text)
            return
        self.world.note(self.name, "is a spare again:", text)
        self.world.count(f"gave up: {text.partition(':')[0] if 'refuses' not in text else 'a store refuses the fence'}")
        self.machine = None
        self._note()

    def _to(self, machine: PartitionWriter, event: Any) -> None:
        if machine is self.machine:
            self._feed(event)

    def _ask_store(self, machine: PartitionWriter, effect: Any) -> None:
        """What is asked of one store, and what its answer means."""
        key = effect.store
        link = self.connections.get(key)
        if link is None:
            if isinstance(effect, Fetch):
                self.world.at(0, self, self._to, machine, Fetched([]))
            return

        def then(answer: Any) -> None:
            if answer is None or machine is not self.machine or self.connections.get(key) is not link:
                if isinstance(effect, Fetch):
                    self._to(machine, Fetched([]))
                return
            code, value = answer
            if code and code != Code.DEPOSED and not isinstance(effect, Fetch):
                self.world.at(AGAIN_MS, self, link.close, self)  # it cannot do what was asked: come back later
                return
            match effect:
                case Inspect():
                    self._to(machine, Inspected(key, StoreView(*value)))
                case AskHeard():
                    rude = self.world.rng.random() < self.world.rude
                    self._to(machine, Heard(key, value[0], -1 if rude else value[1]))
                case Fetch():
                    self._to(machine, Fetched(value if code == 0 else []))
                case _ if code:
                    refused = NotStored(key, machine.epoch, Code(code), value)
                    self._to(machine, refused if machine.log is not None else FenceRefused(key, value))
                case AskFence():
                    self._to(machine, Fenced(key, _fence_answer(value)))
                case AskJoin():
                    self._to(machine, Joined(key, effect.number, _fence_answer(value)))

        match effect:
            case Inspect():
                link.request(self, Say.INSPECT, PARTITION, then=then)
            case AskHeard():
                link.request(self, Say.HEARD, PARTITION, then=then)
            case AskFence(_, epoch):
                link.request(self, Say.FENCE, PARTITION, epoch, self.writer, self.name, then=then)
            case AskJoin(_, number, first, prev_crc, intervals):
                asked = (PARTITION, machine.epoch, self.writer, self.name, number, first, prev_crc, intervals)
                link.request(self, Say.JOIN, *asked, then=then)
            case Fetch(_, first, last):
                link.request(self, Say.FRAMES, PARTITION, first, last, then=then)
            case _:
                raise AssertionError(effect)

    def _backfill(self, machine: PartitionWriter, order: Backfill, base: int = 0) -> None:
        """Copy pages of frames, the newest page first, until the target holds all of them or something is lost."""
        base = base or order.last + 1
        sources = [key for key in order.sources if key in self.connections]
        if base <= order.first or not sources or order.store not in self.connections:
            self.world.at(
                0 if base <= order.first else AGAIN_MS, self, self._to, machine, Filled(order.number, order.store, base)
            )
            return
        first = max(order.first, base - FILL_FRAMES)

        def filled(answer: Any) -> None:
            if machine is self.machine:
                done = answer[1] if answer is not None and answer[0] == 0 else base
                self.world.at(AGAIN_MS if done == base else 1, self, self._backfill_again, machine, order, base, done)

        def fetched(answer: Any) -> None:
            frames = answer[1] if answer is not None and answer[0] == 0 else []
            link = self.connections.get(order.store)
            if machine is self.machine and link is not None:
                link.request(self, Say.FILL, PARTITION, machine.epoch, self.writer, frames, then=filled)
            else:
                filled(None)

        source = self.connections[self.world.rng.choice(sources)]
        source.request(self, Say.FRAMES, PARTITION, first, base - 1, then=fetched)

    def _backfill_again(self, machine: PartitionWriter, order: Backfill, before: int, base: int) -> None:
        if base == before:
            self._to(machine, Filled(order.number, order.store, base))  # no progress: let it decide anew
        else:
            self._backfill(machine, order, base)

    def _find_the_end(self, machine: PartitionWriter, upto: int) -> None:
        """The clock of the log that ends at frame `upto`; what its sessions are is asked when it is needed."""

        def then(answer: Any) -> None:
            if machine is not self.machine:
                return
            if answer is None:
                self.world.at(AGAIN_MS, self, self._find_the_end, machine, upto)
                return
            last_stored_at_us, covered, _ = answer
            if covered != upto:
                self._end("a store has committed more: another writer took this partition over")
                return
            self._open(machine, Sequencer(PARTITION, 1, self.limits, upto, last_stored_at_us))

        self._ask(then, Say.STATES, PARTITION, upto, [])

    def _open(self, machine: PartitionWriter, sequencer: Sequencer) -> None:
        assert machine.log is not None
        self.sequencer, self.open = sequencer, True
        self.world.note(self.name, "opens epoch", machine.epoch, "at", machine.log.last_index)
        self._note()
        self._plan_idle()

    # ------------------------------------------------------------------ the log

    def _send(self, epoch: int, stores: tuple[str, ...], frames: list[bytes]) -> None:
        for frame in frames:
            for key in stores:
                if key in self.connections:
                    self.connections[key].send(self, [Say.APPEND, PARTITION, epoch, self.writer, [frame]])

    def _plan_cut(self) -> None:
        if not self._cut_is_due and self.open:
            self._cut_is_due = True
            self.world.at(self.world.rng.randrange(0, 2), self, self._cut)

    def _cut(self) -> None:
        self._cut_is_due = False
        log = self.log
        assert log is not None
        while self.alive and self.sequencer.waiting and log.has_room:
            records = self.sequencer.cut_frame(log.last_index + 1)
            self._feed(Proposed(pack_records(records), len(records)))

    def _plan_idle(self) -> None:
        if not self._idle_is_due:
            self._idle_is_due = True
            self.world.at(IDLE_MS, self, self._idle)

    def _idle(self) -> None:
        self._idle_is_due = False
        if self.log is not None and not self.sequencer.waiting and self.log.has_room:
            self._feed(Idle())


def _fence_answer(value: list[Any]) -> FenceAnswer:
    return FenceAnswer(value[0], value[1], value[2], [TailEntry(*entry) for entry in value[3]])
