"""The Supervisor: the product's `Assignment`, and the little glue that ``orders`` is in production.

Owns no rule of its own: it asks the SessionActors how they are and gives the orders that are decided there.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Link, Process
from simulated.store import PARTITION
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.on_ray.assignment import Answered, AskStores, Assignment, Begun, Event, Heard, Lost, Order, Refused, Tick

RECONNECT_MS = 15


class SupervisorProcess(Process):
    """One run of the Supervisor."""

    def __init__(self, world: Any, name: str, sessions: tuple[str, ...], stores: tuple[str, ...], limits: Limits) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.limits = limits
        self.stores = stores
        self.assignment = Assignment(sessions, stores, 1, limits, world.now)
        self.streams: dict[str, Link] = {}
        for actor in (*sessions, *stores):
            self._connect(actor)
        self._tick()

    # ------------------------------------------------------------------ streams

    def _connect(self, name: str) -> None:
        process: Process | None = self.world.actor(name)
        if process is None or not process.alive:
            self.world.at(RECONNECT_MS, self, self._connect, name)
            return
        link = Link(self.world, self, process)
        link.info = name
        self.world.at(self.world.delay(), self, self._connected, link)

    def _connected(self, link: Link) -> None:
        if link.is_closed(self):
            return
        self.streams[link.info] = link
        if link.info in self.stores:
            self._ask_store(link, until_it_answers=True)
        else:
            self._ping(link)

    def on_closed(self, link: Link) -> None:
        name = link.info
        if self.streams.get(name) is link:
            del self.streams[name]
            if name not in self.stores:
                self._handle(Lost(name, self.world.now))
        self.world.at(self.world.rng.randrange(1, RECONNECT_MS), self, self._connect, name)

    def on_message(self, link: Link, message: list[Any]) -> None:
        """Nobody says anything that was not asked for."""

    # ------------------------------------------------------------------ asking

    def _ping(self, link: Link) -> None:
        if link.is_closed(self):
            return

        def then(answer: Any) -> None:
            if answer is not None:
                _, (_, _, partition, epoch, state) = answer
                self._handle(Answered(link.info, partition, epoch, state, self.world.now))
                self.world.at(self.limits.supervisor_ping_ms, self, self._ping, link)

        link.request(self, Say.PING, then=then)

    def _ask_store(self, link: Link, until_it_answers: bool = False) -> None:
        def then(answer: Any) -> None:
            if answer is not None and answer[0] == 0:
                epochs = {partition: epoch for partition, (epoch, _) in answer[1].items()}
                self._handle(Heard(link.info, epochs, self.world.now))
            elif until_it_answers and not link.is_closed(self):
                self.world.at(self.limits.supervisor_ping_ms, self, self._ask_store, link, True)

        link.request(self, Say.WHERE, then=then)

    def _tick(self) -> None:
        self.world.at(self.limits.supervisor_ping_ms // 2, self, self._tick)
        self._handle(Tick(self.world.now))

    # ------------------------------------------------------------------ deciding

    def _handle(self, event: Event) -> None:
        for effect in self.assignment.handle(event):
            if isinstance(effect, Order):
                self._order(effect)
            else:
                assert isinstance(effect, AskStores)
                for name in self.stores:
                    if name in self.streams:
                        self._ask_store(self.streams[name])

    def _order(self, order: Order) -> None:
        name, partition, epoch = order
        assert partition == PARTITION
        self.world.note("order", name, epoch)
        self.world.count("Supervisor: order")
        waiting = [True]

        def said(event: Event) -> None:
            if waiting[0]:
                waiting[0] = False
                self._handle(event)

        def then(answer: Any) -> None:
            if answer is not None and answer[0] == 0:
                said(Begun(name, partition, self.world.now))
            else:
                said(Refused(name, partition, "lost" if answer is None else answer[1], self.world.now))

        def overdue() -> None:
            said(Refused(name, partition, "silent", self.world.now))

        link = self.streams.get(name)
        if link is None:
            self.world.at(0, self, then, None)
        else:
            link.request(self, Say.TAKE, partition, epoch, then=then)
            self.world.at(self.limits.supervisor_silent_ms, self, overdue)
