"""A SessionActor: the product's `Takeover`, `LogWriter` and `Sequencer`, and the little glue that the shells are in production.

Owns no rule of its own: what `replicated_log` and `session_actor` do with events and effects is done here without sockets.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Link, Process
from simulated.store import LOG_ID, PARTITION, StoreProcess
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import (
    Committed,
    Ended,
    Idle,
    LogWriter,
    MemberBack,
    MemberLost,
    NotStored,
    Proposed,
    SendFrames,
    Stored,
)
from trilogue.actors.protocol.messages import pack_records, unpack_record
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import (
    Answered,
    FrameCommitted,
    GivenUp,
    Recall,
    Recalled,
    Refused,
    Retry,
    Submitted,
    check_runs,
)
from trilogue.actors.protocol.takeover import (
    AskFence,
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    Inspect,
    Inspected,
    MemberUp,
    TakenOver,
    Takeover,
)
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry

RECONNECT_MS = 20
AGAIN_MS = 60
IDLE_MS = 40
PING_MS = 200


class WriterProcess(Process):
    """One process that wants the partition."""

    def __init__(self, world: Any, name: str, stores: tuple[str, ...], limits: Limits) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.stores, self.limits = stores, limits
        self.connections: dict[str, Link] = {}
        self._fenced: dict[str, Link] = {}
        self.takeover: Takeover | None = None
        self.log: LogWriter | None = None
        self.sequencer = Sequencer(PARTITION, 1, limits)
        self.open = False
        self._attempts = 0
        self._cut_is_due = self._idle_is_due = False
        self.clients: list[Link] = []
        self._begin()
        for store in stores:
            self._connect(store)

    # ------------------------------------------------------------------ connections to stores

    def _connect(self, name: str) -> None:
        store: StoreProcess | None = self.world.reachable_store(self, name)
        if store is None:
            self.world.at(RECONNECT_MS, self, self._connect, name)
            return
        link = Link(self.world, self, store)
        link.info = (name, store.identity)
        self.world.at(self.world.delay(), self, self._connected, name, link)

    def _connected(self, name: str, link: Link) -> None:
        if link.is_closed(self):
            return  # `on_closed` has planned the next attempt
        self.connections[name] = link
        if self.takeover is not None:
            self._feed_takeover(MemberUp(name, link.info[1]))
        elif self.log is not None:
            self._fence_again(name, link)

    def on_closed(self, link: Link) -> None:
        if link.ends[0] is not self:
            if link in self.clients:
                self.clients.remove(link)
            return
        name = link.info[0]
        self.world.at(self.world.rng.randrange(1, RECONNECT_MS), self, self._connect, name)
        if self.connections.get(name) is link:
            del self.connections[name]
            if self.takeover is not None:
                self._feed_takeover(MemberLost(name))
            elif self.log is not None:
                self._feed_log(MemberLost(name))

    def _ask_fence(self, link: Link, epoch: int, then: Any) -> None:
        link.request(self, Say.FENCE, PARTITION, epoch, self.writer, self.name, then=then)

    def _fence_again(self, name: str, link: Link) -> None:
        assert self.log is not None
        log = self.log

        def then(answer: Any) -> None:
            if answer is None:
                link.close(self)
            elif answer[0] == Code.DEPOSED:
                self._end(f"{name} obeys another writer")
            elif self.connections.get(name) is link and self._fenced.get(name) is not link:
                self._fenced[name] = link
                self._feed_log(MemberBack(name, link.info[1], _fence_answer(answer[1])))

        self._ask_fence(link, log.epoch, then)

    def _end(self, why: str) -> None:
        self.world.note(self.name, "ends:", why)
        self.kill()

    # ------------------------------------------------------------------ taking over

    def _begin(self) -> None:
        self._attempts += 1
        self.writer = f"{self.name}.{self._attempts}"
        self.takeover = Takeover(log_id=LOG_ID, partition=PARTITION, stores=self.stores, limits=self.limits)
        for name, link in list(self.connections.items()):
            self._feed_takeover(MemberUp(name, link.info[1]))

    def _feed_takeover(self, event: Any) -> None:
        takeover = self.takeover
        if takeover is None or not self.alive:
            return
        for effect in takeover.handle(event):
            match effect:
                case Inspect(store):
                    self._inspect(takeover, store)
                case AskFence(store, epoch):
                    self._fence(takeover, store, epoch)
                case Fetch(store, first, last):
                    self._fetch(takeover, store, first, last)
                case SendFrames(stores, frames):
                    self._send(takeover.epoch, stores, frames)
                case TakenOver():
                    self.takeover = None
                    self.world.taken_over(self, takeover.epoch, effect.log)
                    self._restore(effect, Sequencer(PARTITION, 1, self.limits))
                case Ended(text):
                    self.world.note(self.name, "tries again:", text)
                    self.takeover = None
                    self.world.at(self.world.rng.randrange(1, AGAIN_MS), self, self._begin)
                    return

    def _inspect(self, takeover: Takeover, name: str) -> None:
        link = self.connections[name]

        def then(answer: Any) -> None:
            if answer is not None and takeover is self.takeover:
                self._feed_takeover(Inspected(name, StoreView(*answer[1])))

        link.request(self, Say.INSPECT, PARTITION, then=then)

    def _fence(self, takeover: Takeover, name: str, epoch: int) -> None:
        def then(answer: Any) -> None:
            if answer is None or takeover is not self.takeover:
                return
            if answer[0]:
                self._feed_takeover(FenceRefused(name, answer[1]))
            else:
                self._feed_takeover(Fenced(name, _fence_answer(answer[1])))

        self._ask_fence(self.connections[name], epoch, then)

    def _fetch(self, takeover: Takeover, name: str, first: int, last: int) -> None:
        def then(answer: Any) -> None:
            if takeover is self.takeover:
                self._feed_takeover(Fetched(answer[1] if answer is not None and answer[0] == 0 else []))

        if name in self.connections:
            self.connections[name].request(self, Say.FRAMES, PARTITION, first, last, then=then)
        else:
            self.world.at(0, self, then, None)

    def _restore(self, taken: TakenOver, sequencer: Sequencer, session_at: int = 0, sender_at: int = 0) -> None:
        def then(answer: Any) -> None:
            if answer is None:
                self.world.at(AGAIN_MS, self, self._restore, taken, sequencer, session_at, sender_at)
                return
            page, next_session, next_sender, last_stored_at_us, covered = answer
            if covered != taken.log.last_index:
                self._end("another writer took the partition over")
                return
            sequencer.restore_clock(last_stored_at_us)
            for name, last_seq, last_n in page:
                sequencer.restore_session(name, last_seq, last_n)
            if page:
                self._restore(taken, sequencer, next_session, next_sender)
                return
            self._open(taken, sequencer)

        self._ask(then, Say.SESSIONS, PARTITION, taken.log.last_index, session_at, sender_at)

    def _open(self, taken: TakenOver, sequencer: Sequencer) -> None:
        self.sequencer, self.log, self.open = sequencer, taken.log, True
        self.world.note(self.name, "opens epoch", taken.log.epoch, "at", taken.log.last_index)
        for name, link in list(self.connections.items()):
            self._fence_again(name, link)
        for link in list(self.clients):
            self._greet(link)
        self._plan_idle()
        self.world.at(PING_MS, self, self._ping)

    def _ping(self) -> None:
        """An idle writer asks its stores whether another one has come: nobody else would tell it."""
        self.world.at(PING_MS, self, self._ping)

        def then(answer: Any) -> None:
            if answer is not None and self.log is not None and answer[1][0] > self.log.epoch:
                self._end("a store has seen a higher epoch")

        for link in list(self.connections.values()):
            link.request(self, Say.INSPECT, PARTITION, then=then)

    # ------------------------------------------------------------------ the log

    def _feed_log(self, event: Any) -> None:
        log = self.log
        assert log is not None
        for effect in log.handle(event):
            match effect:
                case SendFrames(stores, frames):
                    self._send(log.epoch, stores, frames)
                case Committed(upto):
                    self._run(self.sequencer.handle(FrameCommitted(upto)))
                    self._plan_cut()
                    self._plan_idle()
                case Ended(text):
                    self._end(text)
                    return

    def _send(self, epoch: int, stores: tuple[str, ...], frames: list[bytes]) -> None:
        for frame in frames:
            for name in stores:
                if name in self.connections:
                    self.connections[name].send(self, [Say.APPEND, PARTITION, epoch, self.writer, [frame]])

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
            self._feed_log(Proposed(pack_records(records), len(records)))

    def _plan_idle(self) -> None:
        if not self._idle_is_due:
            self._idle_is_due = True
            self.world.at(IDLE_MS, self, self._idle)

    def _idle(self) -> None:
        self._idle_is_due = False
        if self.log is not None and not self.sequencer.waiting and self.log.has_room:
            self._feed_log(Idle())

    def _ask(self, then: Any, say: int, *items: Any) -> None:
        """Ask the stores one after the other; `then` gets the first value, or None."""
        names = [name for name in self.stores if name in self.connections]

        def ask_next(answer: Any = None) -> None:
            if answer is not None and answer[0] == 0:
                then(answer[1])
            elif not names:
                then(None)
            else:
                name = names.pop(0)
                if name in self.connections:
                    self.connections[name].request(self, say, *items, then=ask_next)
                else:
                    ask_next()

        self.world.at(0, self, ask_next)

    # ------------------------------------------------------------------ clients

    def accept(self, link: Link) -> None:
        self.clients.append(link)
        if self.open:
            self._greet(link)

    def _greet(self, link: Link) -> None:
        assert self.log is not None
        link.send(self, [Say.OPEN, PARTITION, self.log.epoch])

    def on_message(self, link: Link, message: list[Any]) -> None:
        match message:
            case [Say.STORED, _, epoch, index, crc]:
                self._from_store(Stored(link.info[0], epoch, index, crc))
            case [Say.NOT_STORED, _, epoch, code, text]:
                self._from_store(NotStored(link.info[0], epoch, Code(code), text))
            case [Say.SUBMIT, runs]:
                check_runs(runs, self.limits.run_messages_max)
                self._run(self.sequencer.handle(Submitted(link, runs, self.world.now)))
                self._plan_cut()
            case [Say.GIVE_UP, numbers]:
                self._run(self.sequencer.handle(GivenUp(link, numbers, self.world.now)))
                self._plan_cut()
            case [Say.HISTORY, request, session, after, limit]:
                self._history(link, request, session, after, limit)

    def _from_store(self, event: Stored | NotStored) -> None:
        if self.log is not None:
            self._feed_log(event)
        elif self.takeover is not None:
            self._feed_takeover(event)

    def _history(self, link: Link, request: int, session: str, after: int, limit: int) -> None:
        head = self.sequencer.head(session)
        if not self.open or after >= head:
            link.send(self, [Say.REPLY, request, 0, []])
            return

        def then(page: Any) -> None:
            link.send(self, [Say.REPLY, request, 0, page or []])

        self._ask(then, Say.RUNS, PARTITION, self.readable_upto(), session, after, min(limit, head - after))

    def readable_upto(self) -> int:
        """Up to which frame stores may be asked for a reader."""
        assert self.log is not None
        return self.log.committed

    def _run(self, effects: list[Any]) -> None:
        assert self.log is not None
        for effect in effects:
            match effect:
                case Answered(source, acks):
                    source.send(self, [Say.ACKED, self.log.epoch, acks])
                case Refused(source, refusals):
                    source.send(self, [Say.REFUSED, self.log.epoch, refusals])
                case Recall(retry):
                    self._recall(retry)

    def _recall(self, retry: Retry) -> None:
        assert self.log is not None

        def then(page: Any) -> None:
            records = None if page is None else [unpack_record(item) for item in page]
            self._run(self.sequencer.handle(Recalled(retry, records)))

        self._ask(then, Say.RECALL, PARTITION, self.log.committed, retry.session, retry.sender_id, retry.first_n, retry.last_n)


def _fence_answer(value: list[Any]) -> FenceAnswer:
    return FenceAnswer(value[0], value[1], [TailEntry(*entry) for entry in value[2]])
