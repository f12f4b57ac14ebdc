"""Who is to keep the register: the Supervisor's decision, pure (design §7).

Owns when a store of the charter counts as gone, and who takes its place. It must not know how stores are asked, nor how a
charter is moved (``register_keeper``). Nothing here is a truth: a charter that is moved without need is as good as before.
Rules:

1. A store of the charter that answers as another acceptor has lost its memory: it is replaced at once, by what is there now
   under its own name. One that has not answered for `GONE_MS` is replaced by another store that answers, the first in their
   order. A store that only restarts is back long before.
2. A charter never shrinks: without a store to take the place, the gone one keeps it. It grows to three when there are stores.
3. Nothing is decided without a majority that answers: no charter could be decided under this one (`trilogue rescue`).
4. Time that the Supervisor itself slept through is nobody's silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from trilogue.actors.protocol.register.charter import FOUNDERS, Charter

GONE_MS: Final = 10_000
ASLEEP_MS: Final = 8_000


class Health(NamedTuple):
    """How the charter is. `gone`: those of its stores that count as gone, and why. `lost`: no majority is left."""

    charter: Charter
    answering: tuple[str, ...]
    gone: dict[str, str]

    @property
    def may_lose(self) -> int:
        """How many of those that answer may be lost at once; below 0: it has no majority now."""
        return len(self.answering) - self.charter.majority

    @property
    def lost(self) -> bool:
        """Whether so many are gone that no majority will come back by itself."""
        return len(self.charter.acceptors) - len(self.gone) < self.charter.majority


class CharterWatch:
    """Tell it by `look` what every look at the stores found."""

    def __init__(self, stores: Sequence[str], now_ms: int) -> None:
        self._stores = tuple(stores)
        self._heard_ms = dict.fromkeys(stores, now_ms)
        self._now_ms = now_ms
        self.health: Health | None = None

    def look(self, charter: Charter, acceptors: Mapping[str, str], now_ms: int) -> tuple[str, ...] | None:
        """The stores that are to keep the register from now on; None: the present ones. `acceptors` are those of the stores
        that answered just now."""
        self._pass_time(now_ms)
        for name in acceptors:
            self._heard_ms[name] = now_ms
        self.health = health = self._health(charter, acceptors)
        if health.may_lose < 0:
            return None
        wanted = list(charter.acceptors)
        spares = [name for name in self._stores if name in acceptors and name not in wanted]
        changed = False
        for name in health.gone:
            if name in acceptors:
                changed = True  # by itself, as the acceptor that it is now
            elif spares:
                wanted[wanted.index(name)] = spares.pop(0)
                changed = True
        while spares and len(wanted) < FOUNDERS:
            wanted.append(spares.pop(0))
            changed = True
        return tuple(wanted) if changed else None

    def _pass_time(self, now_ms: int) -> None:
        passed, self._now_ms = now_ms - self._now_ms, now_ms
        if passed > ASLEEP_MS:
            self._heard_ms = {name: heard_ms + passed for name, heard_ms in self._heard_ms.items()}

    def _health(self, charter: Charter, acceptors: Mapping[str, str]) -> Health:
        gone: dict[str, str] = {}
        for name, acceptor in charter.acceptors.items():
            if acceptors.get(name, acceptor) != acceptor:
                gone[name] = "its directory was emptied"
            elif name not in acceptors and self._now_ms - self._heard_ms.setdefault(name, self._now_ms) >= GONE_MS:
                gone[name] = "it does not answer"
        answering = tuple(name for name, acceptor in charter.acceptors.items() if acceptors.get(name) == acceptor)
        return Health(charter, answering, gone)
