"""One writer of one partition, from the order to its end: founding or takeover, then the log.

Owns which of the three machines has the word, and that each learns which stores are there. It must not know connections,
sessions or clocks. One object is one writer UUID and one attempt (design §6, rule 1): after `Ended` there is nothing to hear
from it.
"""

from __future__ import annotations

from typing import NamedTuple

from trilogue.actors.protocol import founding, replication, takeover
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.founding import Founding, Inspect, Inspected
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.log import LogWriter
from trilogue.actors.protocol.ranges import Member
from trilogue.actors.protocol.replication import AskFence, Ended, Fenced, StoreLost, StoreUp, Tick
from trilogue.actors.protocol.takeover import NoRecord, Takeover, TookOver


class Recovered(NamedTuple):
    """All that an earlier epoch may have committed is committed up to here, and a member holds the whole log: read the
    sessions.
    """

    upto: int


Event = takeover.Event | founding.Event | replication.Event
Effect = takeover.Effect | founding.Effect | replication.Effect | Recovered

__all__ = ["Effect", "Event", "Inspect", "Inspected", "PartitionWriter", "Recovered"]


class PartitionWriter:
    """One attempt of one writer. `begin`, then feed it every event; `log` is there once the tail is known."""

    def __init__(
        self, *, log_id: int, partition: int, writer: str, address: str, stores: tuple[str, ...], wish: Wish, limits: Limits
    ) -> None:
        """`stores` are the names of those that a new partition starts on."""
        self.writer = writer
        self.log: LogWriter | None = None
        self.recovered = False
        self.ended = ""
        self._taking = Takeover(log_id=log_id, partition=partition, writer=writer, address=address, wish=wish, limits=limits)
        self._founding = Founding(
            log_id=log_id, partition=partition, writer=writer, address=address, stores=stores, wish=wish, limits=limits
        )
        self._machine: Takeover | Founding | LogWriter = self._taking
        self._up: dict[str, Member] = {}
        self._now_ms = 0

    @property
    def epoch(self) -> int:
        """The epoch of this writer; 0 before it has one."""
        return self._machine.epoch

    @property
    def why_waiting(self) -> tuple[str, list[str]]:
        """What it is doing before it is open, and the names of the stores that it misses. Both empty: nothing is in the way."""
        machine = self._machine
        if not isinstance(machine, LogWriter):
            return machine.phase, machine.waiting_for
        if machine.missing:
            return "waiting for a store to take a lost one's place", machine.missing
        if machine.holding_up:
            return "waiting for a store that does not answer", machine.holding_up
        if not self.recovered:
            return "copying what its stores lack", []
        return "", []

    def begin(self, members: list[Member]) -> list[Effect]:
        """The first step; `members` are the stores that are connected."""
        effects: list[Effect] = list(self._taking.begin())
        for member in members:
            effects += self.handle(StoreUp(member))
        return effects

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        if self.ended:
            return []
        match event:
            case StoreUp(member):
                self._up[member.key] = member
            case StoreLost(store):
                self._up.pop(store, None)
            case Tick(now_ms):
                self._now_ms = now_ms
        effects: list[Effect] = []
        machine = self._machine
        for effect in machine.handle(event):  # each ignores what was meant for the one before
            match effect:
                case NoRecord():
                    effects += self._go_over_to(self._founding)
                case TookOver(writer, answers):
                    self.log = writer
                    effects += self._go_over_to(writer)
                    for store, answer in answers.items():
                        effects += self.handle(Fenced(store, answer))
                    effects += self.handle(Tick(self._now_ms))
                case Ended(text):
                    self.ended = text
                    return [effect]
                case _:
                    effects.append(effect)
        return effects + self.check_recovered()

    def check_recovered(self) -> list[Effect]:
        """Whether the sessions can be read now, for the first time."""
        writer = self.log
        if self.recovered or writer is None or writer.committed < writer.open_at or not writer.whole or self.ended:
            return []
        self.recovered = True
        return [Recovered(writer.committed)]

    def _go_over_to(self, machine: Founding | LogWriter) -> list[Effect]:
        self._machine = machine
        effects: list[Effect] = []
        for member in self._up.values():
            found = machine.handle(StoreUp(member))
            answered = isinstance(machine, LogWriter) and self._taking.has_fenced(member.key)
            effects += [effect for effect in found if not (answered and isinstance(effect, AskFence))]
        require(not any(isinstance(effect, Ended) for effect in effects), "a machine ended before it began")
        return effects
