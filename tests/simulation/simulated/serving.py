"""What a SessionActor does for its clients: the product's `Sequencer` and `Subscriptions`, and the glue of their shells.

Owns no rule of its own: what `session.actor`, `lookups`, `reads` and `readers` do with events and effects is done here without
sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simulated.clockwork import Link, Process
from simulated.store import PARTITION
from trilogue.actors.protocol import subscriptions
from trilogue.actors.protocol.keys import KnownKey
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import TRIM, Floor, Run, Trim, unpack_record
from trilogue.actors.protocol.replication import NotStored, Stored
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.submissions import (
    Answered,
    Done,
    GivenUp,
    Loaded,
    LookedUp,
    LookUp,
    Noted,
    Readable,
    Recall,
    Recalled,
    Refused,
    Retry,
    Submitted,
    Told,
    Wanted,
    check_runs,
)
from trilogue.actors.protocol.subscriptions import Credited, Deliver, End, ReadPage, Subscribed, Subscriptions
from trilogue.actors.protocol.vocabulary import Code, Say

AGAIN_MS = 20
TRIES = 3
HISTORY_MESSAGES_MAX = 4
PAGE_BYTES_MAX = 400
CREDIT_BYTES_MAX = 1_000
FULL_SOCKETS = 0.05


class Serving(Process):
    """The half of a SessionActor's process that clients see. The other half has `machine`, `log`, `connections` and `take`."""

    machine: Any
    log: Any
    connections: dict[str, Link]
    session: str
    clock_ms: int
    _waiting_text: str

    def __init__(self, world: Any, name: str, limits: Limits) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.limits = limits
        self.sequencer = Sequencer(PARTITION, 1, limits)
        self.subscriptions = Subscriptions(HISTORY_MESSAGES_MAX, PAGE_BYTES_MAX, CREDIT_BYTES_MAX)
        self.open = False
        self.clients: list[Link] = []

    def take(self) -> None:
        raise NotImplementedError

    def _plan_cut(self) -> None:
        raise NotImplementedError

    def _feed(self, event: Any) -> None:
        raise NotImplementedError

    def _end(self, why: str) -> None:
        raise NotImplementedError

    def _ask(self, then: Any, say: int, *items: Any) -> None:
        """Ask the stores one after the other; `then` gets the first value, or None."""
        names = [key for key in (self.log.whole if self.log is not None else []) if key in self.connections]

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
        """A client has connected."""
        if not link.is_closed(self):
            self.clients.append(link)
            self._greet(link)

    def _greet(self, link: Link) -> None:
        if self.open and not self._waiting_text:
            assert self.log is not None
            link.send(self, [Say.OPEN, PARTITION, self.log.epoch, self.log.copies, self.limits.body_bytes_max])
        else:
            link.send(self, [Say.WAITING, PARTITION if self.machine is not None else -1, self._waiting_text, self.open])

    def on_message(self, link: Link, message: list[Any]) -> None:
        match message:
            case [Say.STORED, _, epoch, index, crc]:
                self._feed(Stored(link.info.key, epoch, index, crc))
            case [Say.NOT_STORED, _, epoch, code, text]:
                self._feed(NotStored(link.info.key, epoch, Code(code), text))
            case [Say.SUBMIT, runs]:
                check_runs(runs, self.limits)
                if self.open:
                    self._decide(Submitted(link, runs, self._wall_clock_us()))
                    self._plan_cut()
                else:
                    link.close(self)
            case [Say.GIVE_UP, numbers]:
                if self.open:
                    self._decide(GivenUp(link, numbers, self._wall_clock_us()))
                    self._plan_cut()
                else:
                    link.close(self)
            case [Say.CREDIT, number, messages, size]:
                self._tell(self.subscriptions.handle(Credited(link, number, messages, size)))
            case [Say.UNSUBSCRIBE, number]:
                self.subscriptions.forget(link, number)
            case [say, request, *arguments]:
                self._on_request(link, say, request, arguments)

    def _wall_clock_us(self) -> int:
        return int(1000 * max(0, 100_000 + self.world.now + self.clock_ms))

    def _on_request(self, link: Link, say: int, request: int, arguments: list[Any]) -> None:
        def reply(value: Any, code: int = 0) -> None:
            link.send(self, [Say.REPLY, request, code, value])

        match say, arguments:
            case Say.PING, _:
                machine = self.machine
                waiting = self._waiting_text or ("" if self.open else "opening")
                state = "spare" if machine is None else f"waiting: {waiting}" if waiting else "open"
                log = self.log
                reply(["session", self.session, PARTITION if machine is not None else -1, log.epoch if log else 0, state])
            case Say.TAKE, _:
                self.take()
                reply(None)
            case _ if not self.open:
                reply("not open", Code.UNAVAILABLE)
            case Say.HISTORY, [session, after, limit]:
                self._want([session], lambda heads: self._history(reply, session, after, limit, heads))
            case Say.TRIM, [session, before]:
                self._want([session], lambda heads: self._trim(reply, session, before, heads))
            case Say.HEADS, [sessions]:
                self._want(
                    sessions, lambda heads: reply(heads, 0) if heads is not None else reply("no store", Code.UNAVAILABLE)
                )
            case Say.SUBSCRIBE, [number, sessions, messages, size]:
                self._tell(self.subscriptions.handle(Subscribed(link, number, [], messages, size)))
                self._want(
                    [session for session, _ in sessions],
                    lambda heads: self._subscribe(link, reply, Subscribed(link, number, sessions, 0, 0), heads),
                )

    # ------------------------------------------------------------------ reading

    def _want(self, sessions: list[str], then: Callable[[list[int] | None], None]) -> None:
        """`then` with the last readable seq of each session, at once or when a store has told it; None: no store does."""
        self._decide(Wanted(then, sessions))

    def _history(self, reply: Callable[..., None], session: str, after: int, limit: int, heads: list[int] | None) -> None:
        if heads is None or after >= heads[0]:
            reply(*(([[], heads[0]],) if heads is not None else ("no store answers", Code.UNAVAILABLE)))
            return
        [head] = heads

        def then(page: Any) -> None:
            reply(*(([page, head],) if page is not None else ("no store answers", Code.UNAVAILABLE)))

        self._ask(then, Say.RUNS, PARTITION, self.readable_upto(), session, after, min(limit, head - after))

    def _trim(self, reply: Callable[..., None], session: str, before: int, heads: list[int] | None) -> None:
        if heads is None:
            reply("no store answers", Code.UNAVAILABLE)
        elif not 0 < before <= heads[0] + 1:
            reply(f"it has {heads[0]} messages", Code.INVALID_RANGE)
        else:
            self.note(Trim(TRIM, session, before, self._wall_clock_us()), lambda: reply(before))

    def note(self, record: Trim | Floor, then: Callable[[], None] = lambda: None) -> None:
        """Put it into the log."""
        self._decide(Noted(then, record))
        self._plan_cut()

    def _subscribe(self, link: Link, reply: Callable[..., None], wish: Subscribed, heads: list[int] | None) -> None:
        if heads is None or not self.subscriptions.has(link, wish.subscription):
            self.subscriptions.refused(link, wish.subscription)
            reply("no store answers", Code.UNAVAILABLE)
            return
        places = [(session, after, head) for (session, after, *_), head in zip(wish.sessions, heads, strict=True)]
        reply([after for _, after, _ in places])
        self._tell(self.subscriptions.handle(wish._replace(sessions=places)))

    def _tell(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, End):
                self.world.count("serving: a subscription ended at a trim")
                over: Any = effect.source
                ended = effect.subscription, Code.TRIMMED, "it was trimmed", effect.session, effect.first_available
                over.send(self, [Say.ENDED, *ended])
            elif isinstance(effect, Deliver):
                link: Any = effect.source
                link.send(self, [Say.DELIVER, effect.subscriptions, effect.runs])
                if self.world.rng.random() < FULL_SOCKETS:
                    self.subscriptions.handle(subscriptions.Blocked(link))
                    self.world.at(self.world.rng.randrange(1, 50), self, self._free, link)
            else:
                self._read_page(effect)

    def _free(self, link: Any) -> None:
        if not link.is_closed(self):
            self._tell(self.subscriptions.handle(subscriptions.Freed(link)))

    def _read_page(self, order: ReadPage) -> None:
        """A page for subscriptions; asked again while no store answers, as long as somebody waits for it."""
        session, after = order.session, order.after
        if not self.open:
            return
        if not self.subscriptions.awaits(session, after):
            self.subscriptions.handle(subscriptions.PageRead(session, after, [], after))
            return

        def then(page: Any) -> None:
            if page is None:
                self.world.at(AGAIN_MS, self, self._read_page, order)
                return
            if isinstance(page, int):
                self._tell(self.subscriptions.handle(subscriptions.PageGone(session, after, page)))
                return
            runs = [run for run in map(unpack_record, page) if isinstance(run, Run)]
            self._want([session], partial(ended, runs))

        def ended(runs: list[Run], heads: list[int] | None) -> None:
            if heads is None:
                self.world.at(AGAIN_MS, self, self._read_page, order)
            else:
                self._tell(self.subscriptions.handle(subscriptions.PageRead(session, after, runs, heads[0])))

        self._ask(then, Say.RUNS, PARTITION, self.readable_upto(), session, after, order.messages, order.size_bytes)

    def readable_upto(self) -> int:
        """Up to which frame stores may be asked for a reader."""
        assert self.log is not None
        return int(self.log.committed)

    def _decide(self, event: Any) -> None:
        """Let the sequencer decide, and see what becomes of the states that it has in memory."""
        states = self.sequencer._states
        hot, senders, parked = set(states.hot), states._senders, states.parked_bytes
        effects = self.sequencer.handle(event)
        gone = hot - set(states.hot)
        self.world.count("states: a session went", len(gone))
        if not gone and states._senders < senders:
            self.world.count("states: some senders of a session went")
        if states.parked_bytes > parked:
            self.world.count("states: a run waits for a look-up")
        self._run(effects)

    def _look_up(self, order: LookUp, tries: int = 1) -> None:
        """Ask a store for the states that are missed; after some tries it is told that there is none."""

        def then(answer: Any) -> None:
            if answer is None and tries == TRIES:
                self.world.count("states: no store told them")
                self._decide(LookedUp(order.asked, None, self._wall_clock_us()))
            elif answer is None:
                self.world.at(AGAIN_MS, self, self._look_up, order, tries + 1)
            else:
                self._told(order, answer)

        self._ask(then, Say.STATES, PARTITION, order.upto, order.asked)

    def _told(self, order: LookUp, answer: Any) -> None:
        _, covered, states = answer
        if covered > self.log.committed:
            self._end("a store has committed more: another writer took this partition over")
            return
        told = [Told(*state[:3], {key: KnownKey(*known) for key, known in state[3].items()}, state[4]) for state in states]
        self.world.count("states: told" if all(one.whole for one in told) else "states: told of the senders asked for")
        asked, rest = order.asked[: len(told)], order.asked[len(told) :]
        self._decide(LookedUp(asked, told, self._wall_clock_us()))
        if rest and self.alive:
            self.world.count("states: told in parts")
            self._look_up(LookUp(order.upto, rest))
        self._plan_cut()

    def _run(self, effects: list[Any]) -> None:
        assert self.log is not None
        for effect in effects:
            match effect:
                case Answered(source, acks):
                    self._answer(source, [Say.ACKED, self.log.epoch, self.log.copies, acks])
                case Readable(runs):
                    followed: dict[str, list[Run]] = {}
                    for run in runs:
                        if self.subscriptions.follows(run[1]):
                            followed.setdefault(run[1], []).append(Run._make(run))
                    for of_session in followed.values():
                        self._tell(self.subscriptions.handle(subscriptions.Committed(of_session)))
                case Refused(source, refusals):
                    self._answer(source, [Say.REFUSED, self.log.epoch, refusals])
                case Recall(retry):
                    self._recall(retry)
                case LookUp():
                    self._look_up(effect)
                case Loaded(waiter, heads):
                    waiter(heads)
                case Done(waiter):
                    waiter()

    def _answer(self, source: Any, message: list[Any]) -> None:
        source.send(self, message)

    def _recall(self, retry: Retry) -> None:
        assert self.log is not None

        def then(page: Any) -> None:
            records = None if page is None else [unpack_record(item) for item in page]
            self._decide(Recalled(retry, records))

        self._ask(then, Say.RECALL, PARTITION, self.log.committed, retry.session, retry.sender_id, retry.first_n, retry.last_n)
