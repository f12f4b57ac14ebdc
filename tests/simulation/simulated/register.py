"""The register as writers see it: an atomic value whose requests and replies are late, lost or repeated.

Owns the record and its version. The rounds of its acceptors are simulated on their own (``test_register_simulation``); what a
writer must bear is here: a compare-and-set that is applied after its asker has died, or whose reply never comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulated.clockwork import Clockwork, Process

OVERDUE_MS = 60

Then = Callable[[int, Any], None]


class Register:
    """One value. `cut_off` names the processes that cannot reach it now."""

    def __init__(self, world: Clockwork) -> None:
        self.world = world
        self.version = 0
        self.value: Any = None
        self.history: list[Any] = []
        self.asked: list[Any] = []  # what may still be put into force
        self.cut_off: set[str] = set()
        self.stalled_until = 0
        self.when_set: Callable[[Any], None] = lambda _: None

    def may_lose(self, _store: str) -> bool:
        """Whether it survives when this store's directory is emptied."""
        return True

    def read(self, process: Process, then: Then) -> None:
        """`then(version, value)` some time later, however often it has to be asked."""
        self._ask(process, lambda: (self.version, self.value), then)

    def compare_and_set(self, process: Process, version: int, value: Any, then: Callable[[int, str], None]) -> None:
        """`then(new version, "")` when it is in force, `then(version, why)` when another one is; no answer is never "no"."""

        self.asked.append(value)

        def attempt() -> tuple[int, Any]:
            if self.version == version:
                before = self.value
                self.version, self.value = version + 1, value
                self.history.append(value)
                self.asked.clear()  # none of them names this version
                self._count(before, value)
                self.when_set(value)
                self.world.note("register", self.version, process.name, value.epoch, [r.first for r in value.ranges])
            elif self.value != value:
                self.world.count("register: compare-and-set lost")
            return self.version, self.value

        def settled(found: int, present: Any) -> None:
            if present == value:
                then(found, "")
            else:
                then(found, "the record names another writer or version")

        self._ask(process, attempt, settled)

    def _ask(self, process: Process, action: Callable[[], tuple[int, Any]], then: Then) -> None:
        """A request travels, perhaps twice; its reply travels, perhaps not; the asker asks again when it is overdue."""
        world, rng = self.world, self.world.rng
        answered = [False]

        def reply(found: tuple[int, Any]) -> None:
            if not answered[0]:
                answered[0] = True
                then(*found)

        def arrive() -> None:
            if world.now < self.stalled_until:
                world.at(self.stalled_until - world.now, None, arrive)
                return
            found = action()
            if rng.random() > 0.1 and process.name not in self.cut_off:
                world.at(world.delay(), process, reply, found)

        def send() -> None:
            if answered[0]:
                return
            if process.name not in self.cut_off:
                for _ in range(1 + (rng.random() < 0.05)):
                    if rng.random() > 0.05:
                        world.at(world.delay(), None, arrive)
            world.at(OVERDUE_MS, process, send)

        send()

    def _count(self, before: Any, value: Any) -> None:
        world = self.world
        if before is None:
            world.count("register: founded")
        elif value.epoch != before.epoch:
            world.count("register: epoch claimed")
        elif len(value.ranges) < len(before.ranges):
            world.count("register: ranges merged")
        else:
            count, had = len(value.ranges[-1].members), len(before.ranges[-1].members)
            kind = "replaced" if count == had else "reduced" if count < had else "made whole again"
            world.count(f"register: ensemble {kind}")
            if len(value.ranges) > 2:
                world.count("register: three ranges or more")
            if len(value.ranges) == len(before.ranges) > 1:
                world.count("register: a last range replaced in place")
