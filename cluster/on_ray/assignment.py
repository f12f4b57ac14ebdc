"""Who is to serve which partition: the Supervisor's decisions, pure (design §6 rule 8, §11).

Owns what is known of the SessionActors and of the partitions' epochs, and the choice of whom to order. It must not know how
actors are asked (``orders``), nor any truth about messages: what is decided here wrongly is refused by the stores. Rules:

1. Nobody is ordered before every SessionActor and every store has been heard, or `GRACE_MS` after the first actor was: a
   Supervisor that has just started learns who owns what, and does not wait long for who is missing.
2. The owner of a partition is who claims it in the highest epoch. A claim below an epoch that was heard of is void: that
   actor has been replaced, and ends by itself.
3. An owner that is lost, or silent for `supervisor_silent_ms`, is replaced at once. Time that the Supervisor itself slept
   through is nobody's silence.
4. One order at a time for a partition, to a spare that owns nothing and was ordered nothing else. It ends when the spare owns
   the partition, refuses, is lost or silent, gives up, or has not become the owner within `TAKE_MS`: then another is ordered.
5. Of several spares: first those that did not fail this partition before, then the one of the partition's own number, then the
   actors that no partition is the number of. Who has failed it is not ordered again for `AGAIN_MS`.
6. An order names the highest epoch that was heard of for the partition: that is whom the spare replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from trilogue.actors.protocol.limits import Limits

GRACE_MS: Final = 1_000
TAKE_MS: Final = 5_000
AGAIN_MS: Final = 200
NO_PARTITION: Final = -1


class Answered(NamedTuple):
    """A SessionActor says what it is: its partition or `NO_PARTITION`, the epoch that it writes in (0: none yet), its state."""

    name: str
    partition: int
    epoch: int
    state: str
    now_ms: int


class Lost(NamedTuple):
    """The stream to a SessionActor was lost."""

    name: str
    now_ms: int


class Heard(NamedTuple):
    """A store says in which epochs its partitions are."""

    store: str
    epochs: dict[int, int]
    now_ms: int


class Begun(NamedTuple):
    """A SessionActor has begun to take the partition over. If it says later that it owns nothing, it has given up."""

    name: str
    partition: int
    now_ms: int


class Refused(NamedTuple):
    """A SessionActor will not take the partition over, or does not answer the order."""

    name: str
    partition: int
    text: str
    now_ms: int


class Tick(NamedTuple):
    """Time has passed."""

    now_ms: int


class Order(NamedTuple):
    """Tell a SessionActor to take a partition over from the writer of `epoch` (0: nobody)."""

    name: str
    partition: int
    epoch: int


class AskStores(NamedTuple):
    """Find out from the stores in which epochs the partitions are: what was known was not enough."""


Event: TypeAlias = Answered | Lost | Heard | Begun | Refused | Tick
Effect: TypeAlias = Order | AskStores


class Serving(NamedTuple):
    """What is known of a partition, for people. `since_ms`: since when `owner` is known to serve it, or, while `owner` is
    empty, since when nobody is.
    """

    owner: str
    epoch: int
    state: str
    since_ms: int
    failovers: int


class _Actor:
    """A SessionActor, as far as it is known."""

    __slots__ = ("epoch", "heard_ms", "is_there", "name", "number", "ordered", "partition", "state")

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.is_there = False
        self.partition = NO_PARTITION
        self.epoch = 0
        self.state = ""
        self.heard_ms = 0
        self.ordered = NO_PARTITION


class _Partition:
    """A partition: the highest epoch heard of, who owns it, who was ordered to, and who has failed it when."""

    __slots__ = (
        "begun", "epoch", "failed", "failovers", "ordered", "ordered_ms", "orphan_ms", "owner", "problem", "served",
        "served_ms",
    )  # fmt: skip

    def __init__(self, now_ms: int) -> None:
        self.epoch = 0
        self.owner = ""
        self.orphan_ms = now_ms
        self.served = ("", 0)
        self.served_ms = 0
        self.failovers = 0
        self.ordered = ""
        self.ordered_ms = 0
        self.begun = False
        self.failed: dict[str, int] = {}
        self.problem = ""


class Assignment:
    """Give every event to `handle`, and carry out what it returns."""

    def __init__(self, sessions: Sequence[str], stores: Sequence[str], partitions: int, limits: Limits, now_ms: int) -> None:
        self._actors = {name: _Actor(name, number) for number, name in enumerate(sessions)}
        self._partitions = [_Partition(now_ms) for _ in range(partitions)]
        self._silent_ms, self._asleep_ms = limits.supervisor_silent_ms, 2 * limits.supervisor_ping_ms
        self._unheard = {*sessions, *stores}
        self._first_heard_ms: int | None = None
        self._now_ms = now_ms

    def handle(self, event: Event) -> list[Effect]:
        """Take one event in; what has to be done now."""
        effects: list[Effect] = []
        self._pass_time(event.now_ms)
        match event:
            case Answered():
                if not self._on_answered(event):
                    return []
            case Lost(name, _):
                self._on_lost(name)
            case Heard(store, epochs, _):
                self._unheard.discard(store)
                for number, epoch in epochs.items():
                    self._learn(number, epoch)
            case Begun(name, number, _):
                if name in self._actors and self._actors[name].ordered == number:
                    self._partitions[number].begun = True
            case Refused(name, number, text, _):
                if self._failed(number, name, f"{name} cannot take it over: {text}"):
                    effects.append(AskStores())
            case Tick():
                self._on_tick()
        self._find_owners()
        return effects + self._orders()

    # ------------------------------------------------------------------ for people

    def serving(self) -> list[Serving]:
        """Who serves which partition, in the partitions' order."""
        return [
            Serving(one.owner, one.epoch, self._state_of(one), one.served_ms if one.owner else one.orphan_ms, one.failovers)
            for one in self._partitions
        ]

    def spares(self) -> list[str]:
        """The SessionActors that could take a partition over now."""
        return [name for name, actor in self._actors.items() if self._is_spare(actor)]

    def _state_of(self, partition: _Partition) -> str:
        if partition.owner:
            return self._actors[partition.owner].state
        if partition.ordered:
            actor = self._actors[partition.ordered]
            return actor.state if actor.partition != NO_PARTITION else f"waiting: {actor.name} is taking it over"
        if not self._may_order():
            return "waiting: the Supervisor has just started, and learns who serves what"
        if not any(map(self._is_spare, self._actors.values())):
            return "waiting: no spare SessionActor is there (Ray restarts a killed one within a few seconds)"
        return f"waiting: {partition.problem or 'it is given to a spare SessionActor at once'}"

    # ------------------------------------------------------------------ events

    def _pass_time(self, now_ms: int) -> None:
        passed = now_ms - self._now_ms
        self._now_ms = now_ms
        if passed > self._asleep_ms:
            for actor in self._actors.values():
                actor.heard_ms += passed
            for partition in self._partitions:
                partition.ordered_ms += passed

    def _on_answered(self, event: Answered) -> bool:
        """Take in what an actor says; whether that is news."""
        actor = self._actors.get(event.name)
        if actor is None or not NO_PARTITION <= event.partition < len(self._partitions):
            return False
        known = self._is_heard(actor)
        actor.heard_ms = event.now_ms
        said = (event.partition, event.epoch, event.state)
        before = actor.partition
        if known and (before, actor.epoch, actor.state) == said and actor.ordered == NO_PARTITION:
            return False
        self._unheard.discard(event.name)
        if self._first_heard_ms is None:
            self._first_heard_ms = event.now_ms
        actor.is_there = True
        actor.partition, actor.epoch, actor.state = said
        if event.partition != NO_PARTITION:
            partition = self._partitions[event.partition]
            self._learn(event.partition, event.epoch)
            if not (event.epoch or partition.ordered or event.name in partition.failed):
                self._give(event.partition, actor)  # a former Supervisor ordered it
            if partition.ordered == event.name:
                partition.begun = True
        elif actor.ordered != NO_PARTITION and self._partitions[actor.ordered].begun:
            self._failed(actor.ordered, event.name, f"{event.name} has tried to take it over, and has given up")
        return True

    def _on_lost(self, name: str) -> None:
        actor = self._actors.get(name)
        if actor is None:
            return
        actor.is_there, actor.partition, actor.epoch = False, NO_PARTITION, 0
        self._failed(actor.ordered, name, f"{name} was lost while it took it over")

    def _on_tick(self) -> None:
        for number, partition in enumerate(self._partitions):
            if not partition.ordered:
                continue
            if not self._is_heard(self._actors[partition.ordered]):
                self._failed(number, partition.ordered, f"{partition.ordered} fell silent while it took it over")
            elif self._now_ms - partition.ordered_ms >= TAKE_MS:
                self._failed(number, partition.ordered, f"{partition.ordered} did not get it within {TAKE_MS // 1000} s")

    def _learn(self, number: int, epoch: int) -> None:
        if 0 <= number < len(self._partitions):
            partition = self._partitions[number]
            partition.epoch = max(partition.epoch, epoch)

    def _failed(self, number: int, name: str, why: str) -> bool:
        """End the order of `name` to take the partition `number`; whether there was one."""
        if number == NO_PARTITION or name not in self._actors or self._actors[name].ordered != number:
            return False
        partition = self._partitions[number]
        self._end_order(partition)
        partition.failed[name] = self._now_ms
        partition.problem = why
        return True

    def _end_order(self, partition: _Partition) -> None:
        self._actors[partition.ordered].ordered = NO_PARTITION
        partition.ordered = ""

    # ------------------------------------------------------------------ decisions

    def _find_owners(self) -> None:
        """Who claims a partition in its highest epoch, is there and is not silent, owns it."""
        claims: dict[int, str] = {}
        for name, actor in self._actors.items():
            number = actor.partition
            if number != NO_PARTITION and 0 < actor.epoch == self._partitions[number].epoch and self._is_heard(actor):
                claims[number] = name
        for number, partition in enumerate(self._partitions):
            owner = claims.get(number, "")
            if partition.owner and not owner:
                partition.orphan_ms = self._now_ms
            partition.owner = owner
            if owner and (owner, partition.epoch) != partition.served:
                partition.failovers += partition.served != ("", 0)
                partition.served, partition.served_ms = (owner, partition.epoch), self._now_ms
                partition.failed.clear()
                partition.problem = ""
            if owner and partition.ordered == owner:
                self._end_order(partition)

    def _orders(self) -> list[Effect]:
        if not self._may_order():
            return []
        orphans = [number for number, one in enumerate(self._partitions) if not one.owner and not one.ordered]
        if not orphans:
            return []
        spares = {spare.number: spare for spare in map(self._actors.__getitem__, self.spares())}
        # First everybody's own number, so that after a cold start session-3 serves partition 3 where it can.
        at_home = [number for number in orphans if number in spares and not self._partitions[number].failed]
        effects: list[Effect] = [self._order(number, spares.pop(number)) for number in at_home]
        for number in orphans:
            willing = [spare for spare in spares.values() if self._may_try(number, spare)]
            if willing and not self._partitions[number].ordered:
                best = min(willing, key=lambda spare: self._rank(number, spare))
                effects.append(self._order(number, spares.pop(best.number)))
        return effects

    def _order(self, number: int, spare: _Actor) -> Order:
        self._give(number, spare)
        return Order(spare.name, number, self._partitions[number].epoch)

    def _give(self, number: int, actor: _Actor) -> None:
        partition = self._partitions[number]
        partition.ordered, partition.ordered_ms, partition.begun = actor.name, self._now_ms, False
        actor.ordered = number

    def _may_order(self) -> bool:
        if not self._unheard:
            return True
        first = self._first_heard_ms
        if first is None or self._now_ms - first < GRACE_MS:
            return False
        self._unheard.clear()
        return True

    def _may_try(self, number: int, spare: _Actor) -> bool:
        failed_ms = self._partitions[number].failed.get(spare.name)
        return failed_ms is None or self._now_ms - failed_ms >= AGAIN_MS

    def _rank(self, number: int, spare: _Actor) -> tuple[int, int, int]:
        failed_ms = self._partitions[number].failed.get(spare.name, -1)
        place = 0 if spare.number == number else 1 if spare.number >= len(self._partitions) else 2
        return failed_ms, place, spare.number

    def _is_heard(self, actor: _Actor) -> bool:
        return actor.is_there and self._now_ms - actor.heard_ms < self._silent_ms

    def _is_spare(self, actor: _Actor) -> bool:
        return self._is_heard(actor) and actor.partition == actor.ordered == NO_PARTITION
