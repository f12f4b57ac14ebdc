"""The register as it is: the product's proposals and votes, with acceptors that live in the simulated stores.

Owns how asks and votes travel, and the account of what is in force: a value that a majority of the charter accepted under one
ballot. An acceptor's cells are durable at once (`register.db` is synced by itself), and go with an emptied directory: the new
store has another acceptor. The charter never moves here (``register_world`` moves it), so at most one of its stores is emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulated.clockwork import Process
from simulated.register import Register, Then
from trilogue.actors.protocol.ranges import decode_record, encode_record
from trilogue.actors.protocol.register import charter as charters
from trilogue.actors.protocol.register import proposal as proposals
from trilogue.actors.protocol.register import votes

KEY = "partition/0"
ROUND_MS = 40
BACK_OFF_MS = 25


class RoundsRegister(Register):
    """Asked in the same way as the atomic one."""

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self.world: Any = world
        names = sorted(world.disks)[:3]
        self.charter = charters.Charter(1, {name: world.disks[name].uuid for name in names})
        self._ballots: dict[str, votes.Ballots] = {}
        self._accepted: dict[Any, set[str]] = {}
        self._asks = 0

    def may_lose(self, store: str) -> bool:
        there = [name for name, acceptor in self.charter.acceptors.items() if self.world.disks[name].uuid == acceptor]
        return store not in there or len(there) == 3

    def read(self, process: Process, then: Then) -> None:
        def settled(outcome: Any) -> None:
            then(outcome.version, decode_record(outcome.data) if outcome.data is not None else None)

        Round(self, process, proposals.Read(), settled).begin()

    def compare_and_set(self, process: Process, version: int, value: Any, then: Callable[[int, str], None]) -> None:
        self.asked.append(value)

        def settled(outcome: Any) -> None:
            if isinstance(outcome, proposals.Set):
                then(outcome.version, "")
            else:
                self.world.count("register: compare-and-set lost")
                then(outcome.version, "the record names another writer or version")

        Round(self, process, proposals.CompareAndSet(version, encode_record(value)), settled).begin()

    def ballots_of(self, process: Process) -> votes.Ballots:
        """Unique per process start."""
        return self._ballots.setdefault(process.name, votes.Ballots(process.name))

    def vote(self, name: str, ask: Any) -> votes.Vote | None:
        """What the acceptor in a store says; None: it is not one of the charter's, or does not run."""
        disk, store = self.world.disks[name], self.world.stores[name]
        if not store.alive or not charters.takes_part(self.charter, disk.uuid):
            return None
        cell = disk.cells.get(ask.key, votes.EMPTY)
        if isinstance(ask, proposals.AskPrepare):
            kept, vote = votes.prepare(cell, ask.ballot)
        else:
            kept, vote = votes.accept(cell, ask.ballot, ask.value)
            if vote.ok and ask.key == KEY:
                self._note(name, ask)
        if kept is not None:
            disk.cells[ask.key] = kept
        return vote

    def _note(self, name: str, ask: Any) -> None:
        who = self._accepted.setdefault(tuple(ask.ballot), set())
        who.add(name)
        if len(who) == 2 and ask.value.version > self.version and ask.value.data:
            before, self.value = self.value, decode_record(ask.value.data)
            self.version = ask.value.version
            self.history.append(self.value)
            self.asked.clear()
            self._count(before, self.value)
            self.world.note("register", self.version, self.value.epoch, [one.first for one in self.value.ranges])
            self.when_set(self.value)


class Round:
    """One operation of one process: rounds until it has an outcome, or its process is gone."""

    def __init__(self, register: RoundsRegister, process: Process, operation: Any, then: Callable[[Any], None]) -> None:
        self.register, self.process, self.then = register, process, then
        self.world = register.world
        known = charters.Charters()
        known.learn(register.charter)
        self.proposal: Any = proposals.Proposal(KEY, operation, known, register.ballots_of(process))
        self._open: set[str] = set()
        self._ask = 0

    def begin(self) -> None:
        """A round, and another one if it comes to nothing."""
        self._run(self.proposal.start())

    def _run(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case proposals.Settled(outcome):
                    self._ask = -1
                    self.then(outcome)
                case proposals.TryAgain():
                    self.world.count("register: another round")
                    self._ask = -1
                    self.world.at(self.world.rng.randrange(1, BACK_OFF_MS), self.process, self.begin)
                case proposals.AskPrepare() | proposals.AskAccept():
                    self._send(effect)
                case _:
                    raise AssertionError(effect)

    def _send(self, ask: Any) -> None:
        world, register = self.world, self.register
        self._ask = ask.ask
        self._open = set(ask.charter.acceptors)
        for name in sorted(self._open):
            for _ in range(1 + (world.rng.random() < 0.03)):
                if self.process.name not in register.cut_off and world.rng.random() > 0.03:
                    world.at(world.delay(), None, self._arrive, name, ask)
        world.at(ROUND_MS, self.process, self._overdue, ask)

    def _arrive(self, name: str, ask: Any) -> None:
        world, register = self.world, self.register
        if world.now < register.stalled_until or world.stores[name].paused:
            world.at(max(5, register.stalled_until - world.now), None, self._arrive, name, ask)
            return
        vote = register.vote(name, ask)
        if self.process.name not in register.cut_off and world.rng.random() > 0.05:
            world.at(world.delay(), self.process, self._answered, name, ask, vote)

    def _answered(self, name: str, ask: Any, vote: Any) -> None:
        if self._ask == ask.ask and name in self._open:
            self._open.discard(name)
            event = proposals.Failed(ask.ask, name) if vote is None else proposals.Voted(ask.ask, name, vote)
            self._run(self.proposal.handle(event))

    def _overdue(self, ask: Any) -> None:
        for name in sorted(self._open):
            if self._ask == ask.ask and name in self._open:
                self._open.discard(name)
                self._run(self.proposal.handle(proposals.Failed(ask.ask, name)))
