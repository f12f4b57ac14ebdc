"""Bad weather between a client and everything else: a link that flaps, and one that takes everything and gives nothing back.

Owns who is cut off until when, and what each client has made of it: the history says when a client began a connection, and
when it was answered, so that the judge can count.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Link, Process


class Weather:
    """Of one story. `bad` says that clients keep the product's pace (``backoff``), and that their attempts are counted."""

    def __init__(self, world: Any, bad: bool) -> None:
        self.world = world
        self.bad = bad
        self._down: set[str] = set()
        self._silent_until: dict[str, int] = {}

    def clear_up(self) -> None:
        """Everybody gets through again."""
        self._down.clear()
        self._silent_until.clear()

    def begun(self, client: Process) -> float:
        """A client begins a connection; the jitter of its next wait."""
        if not self.bad:
            return 0.0
        self.world.history.append(("begun", self.world.now, client.name))
        return float(self.world.rng.random())

    def answered(self, client: Any) -> None:
        """A client has heard something."""
        if self.bad:
            client.pace.answered()
            self.world.history.append(("answered", self.world.now, client.name))

    def lets_through(self, client: Process) -> bool:
        """Whether the client's network is there."""
        return client.name not in self._down

    def connected(self, client: Process, link: Link) -> None:
        """A client has made a connection: into the silence, perhaps."""
        self._silence(link, self._silent_until.get(client.name, 0))

    def down(self, client: Process) -> None:
        """Its connections are lost, and it gets no other ones."""
        self._down.add(client.name)
        for link in list(client.links):
            link.cut()

    def up(self, name: str) -> None:
        """It may connect again."""
        self._down.discard(name)

    def be_silent(self, client: Process, until: int) -> None:
        """What it sends arrives nowhere and nothing arrives there, for so long; connections are made as if nothing was."""
        self._silent_until[client.name] = until
        for link in client.links:
            self._silence(link, until)

    def _silence(self, link: Link, until: int) -> None:
        if until > self.world.now:
            link.stall(0, until)
            link.stall(1, until)
