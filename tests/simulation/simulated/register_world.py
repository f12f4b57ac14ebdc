"""A register under faults, from one seed: the product's own votes and proposals, and a network that loses, delays and repeats.

Owns the schedule: acceptors (what they keep is durable at once, a directory may be emptied), processes with one operation each,
moves from charter to charter, and what becomes of every message. After the faults everything must come to an end.
"""

from __future__ import annotations

import random
from typing import Any

from simulated.register_judge import NEXT, Judge
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.register import charter as charters
from trilogue.actors.protocol.register import proposal as proposals
from trilogue.actors.protocol.register import votes

STORES = "abcde"
KEYS = ("x", "y")
STEPS = 800
PATIENCE = 8_000
MOVES_MAX = 3


class Disk:
    """What an acceptor keeps."""

    def __init__(self, acceptor: str) -> None:
        self.id = acceptor
        self.charters = charters.Charters()
        self.cells: dict[tuple[int, str], votes.Cell] = {}


class Process:
    """One start of a process: its ballots, what it knows, and the operation under way."""

    def __init__(self, name: str, founded: charters.Charter) -> None:
        self.charters = charters.Charters()
        self.charters.learn(founded)
        self.ballots = votes.Ballots(name)
        self.known: dict[str, int] = {}
        self.operation = 0
        self.proposal: Any = None
        self.key = ""
        self.name = ""  # as the judge calls the key
        self.wanted = 0
        self.own = b""
        self.floor = 0
        self.idle = True  # between rounds
        self.asked: dict[str, int] = {}  # name -> ask, for what was not answered


class World:
    """The world of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.disks = {name: Disk(f"{name}#1") for name in STORES}
        self.first = charters.Charter(1, {name: self.disks[name].id for name in STORES[:3]})
        for name in self.first.acceptors:
            self.disks[name].charters.learn(self.first)
        self.judge = Judge(set(self.first.acceptors.values()))
        self.net: list[tuple[Any, ...]] = []
        self.emptied = False
        self.calm = False
        self.started = self.operations = self.moves = 0
        self.processes = [self._process() for _ in range(3)]

    def play(self) -> list[str]:
        """Faults, then calm: the anomalies."""
        try:
            for _ in range(STEPS):
                self._step()
                if self.judge.anomalies:
                    return self.judge.anomalies
            self.calm = True
            for _ in range(PATIENCE):
                if not any(process.proposal for process in self.processes):
                    return self.judge.anomalies
                self._step()
            self.judge.anomalies.append("stuck: an operation never came to an end")
        except InvariantBroken as broken:
            self.judge.anomalies.append(f"invariant: {broken}")
        return self.judge.anomalies

    # ------------------------------------------------------------------ the schedule

    def _process(self) -> Process:
        self.started += 1
        return Process(f"p{self.started}", self.first)

    def _step(self) -> None:
        rng = self.rng
        chance = rng.random()
        if chance < 0.78 and self.net:
            self._deliver()
        elif chance < 0.98 or self.calm:
            process = rng.choice(self.processes)
            if process.proposal is None:
                if not self.calm:
                    self._begin(process)
            elif process.idle:
                self._run(process, process.proposal.start())
            elif rng.random() < (0.05 if self.calm else 0.2):
                self._overdue(process)
        elif chance < 0.992:
            self.processes[rng.randrange(3)] = self._process()
        elif not self.emptied and rng.random() < 0.3:
            self.emptied = True
            name = rng.choice(STORES[:3])
            self.disks[name] = Disk(f"{name}#2")

    def _deliver(self) -> None:
        """One message, mostly a young one; in bad weather it may come again, or is lost."""
        rng, net = self.rng, self.net
        at = rng.randrange(len(net)) if rng.random() < 0.5 or self.calm else max(0, len(net) - 1 - rng.randrange(4))
        message = net[at]
        if self.calm or rng.random() < 0.85:
            net[at] = net[-1]
            net.pop()
            if not self.calm and rng.random() < 0.06:
                return
        kind, *parts = message
        if kind == "ask":
            self._ask(*parts)
        elif kind == "found":
            self._found(*parts)
        else:
            self._answer(*parts)

    def _begin(self, process: Process) -> None:
        rng = self.rng
        self.operations += 1
        process.operation = self.operations
        newest = process.charters.newest
        assert newest is not None
        pinned = 0
        if rng.random() < 0.12 and self.moves < MOVES_MAX:
            self.moves += 1
            names = [*rng.sample(sorted(newest.acceptors), len(newest.acceptors) - 1)]
            names.append(rng.choice([name for name in STORES if name not in names]))
            pinned, process.key, process.name = newest.number, NEXT, f"{NEXT}@{newest.number}"
            following = charters.following(newest, {name: self.disks[name].id for name in names})
            operation: Any = proposals.CompareAndSet(0, charters.encode_charter(following))
        else:
            process.key = process.name = rng.choice(KEYS)
            wanted = process.known.get(process.key, 0) + (rng.random() < 0.05)
            operation = proposals.CompareAndSet(wanted, f"d{self.operations}".encode())
            if rng.random() < 0.3:
                operation = proposals.Read()
        process.wanted, process.own = getattr(operation, "version", 0), getattr(operation, "data", b"")
        process.floor = self.judge.top(process.name)
        process.proposal = proposals.Proposal(process.key, operation, process.charters, process.ballots, pinned)
        self._run(process, process.proposal.start())

    def _overdue(self, process: Process) -> None:
        """The process waits no longer: for those who are silent, or for any."""
        if self.rng.random() < 0.3:
            self._run(process, process.proposal.start())
            return
        for name, ask in list(process.asked.items()):
            if process.proposal is not None and not process.idle and process.asked.pop(name, None) is not None:
                self._run(process, process.proposal.handle(proposals.Failed(ask, name)))

    # ------------------------------------------------------------------ a process

    def _run(self, process: Process, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case proposals.Settled(outcome):
                    self._settle(process, outcome)
                case proposals.TryAgain():
                    process.idle = True
                    if self.rng.random() < 0.3:
                        self._learn(process, 0)
                case proposals.Lacking(number):
                    process.idle = True
                    self._learn(process, number)
                case _:
                    process.idle = False
                    process.asked = dict.fromkeys(effect.charter.acceptors, effect.ask)
                    self.net += [("ask", process, process.operation, effect, name) for name in effect.charter.acceptors]

    def _learn(self, process: Process, number: int) -> None:
        disk = self.disks[self.rng.choice(STORES)]
        charter = disk.charters.get(number) if number else disk.charters.newest
        if charter is not None:
            process.charters.learn(charter)

    def _settle(self, process: Process, outcome: Any) -> None:
        judge, key = self.judge, process.key
        process.proposal = None
        match outcome:
            case proposals.Found(version, data):
                judge.found(process.name, version, data, process.floor)
            case proposals.Set(version):
                judge.set(process.name, process.wanted, process.own, version)
                data = process.own
            case proposals.NotInForce(-1):
                judge.said_never(process.own)
                return
            case proposals.NotInForce(version, data, tried):
                judge.not_in_force(process.name, process.wanted, process.own, version, data, tried, process.floor)
        process.known[key] = version
        if key == NEXT and data is not None:
            charter = charters.decode_charter(data)
            process.charters.learn(charter)
            before = process.charters.get(charter.number - 1)
            self.net += [("found", name, known) for name in charter.acceptors for known in (before, charter)]

    def _answer(self, process: Process, operation: int, ask: Any, name: str, vote: votes.Vote | None) -> None:
        if process not in self.processes or process.operation != operation or process.proposal is None:
            return
        if vote is None:  # it does not know this charter, or is not in it
            self.net.append(("found", name, ask.charter))
        elif process.asked.get(name) == ask.ask:
            del process.asked[name]
        if not process.idle:
            event = proposals.Failed(ask.ask, name) if vote is None else proposals.Voted(ask.ask, name, vote)
            self._run(process, process.proposal.handle(event))

    # ------------------------------------------------------------------ an acceptor

    def _found(self, name: str, charter: charters.Charter) -> None:
        self.disks[name].charters.learn(charter)

    def _ask(self, process: Process, operation: int, ask: Any, name: str) -> None:
        disk = self.disks[name]
        number, key = ask.charter.number, ask.key
        vote = None
        if charters.takes_part(disk.charters.get(number), disk.id):
            cell = disk.cells.get((number, key), votes.EMPTY)
            if isinstance(ask, proposals.AskPrepare):
                kept, vote = votes.prepare(cell, ask.ballot)
            else:
                kept, vote = votes.accept(cell, ask.ballot, ask.value)
                if vote.ok:
                    self.judge.accepted(disk.id, number, key, tuple(ask.ballot), tuple(ask.value))
            if kept is not None:
                disk.cells[number, key] = kept
        self.net.append(("answer", process, operation, ask, name, vote))
