"""What an actor is told when it is made.

Owns the shapes that travel from the launcher to an actor's constructor, and what an actor may ask of the world around it. It
must not know Ray. Invariant: all of it is frozen, and can be pickled by Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One store: where its directory is and where it listens. `listen` is "host:port"; port 0 takes any."""

    name: str
    directory: str
    cluster_id: str
    log_id: int
    partitions: int
    token: str
    listen: str
    allow_tmpfs: bool = False
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """One SessionActor: its partition, and the names of the stores that hold its log."""

    name: str
    partition: int
    partitions: int
    cluster_id: str
    log_id: int
    stores: tuple[str, ...]
    token: str
    listen: str
    limits: Limits = DEFAULT_LIMITS


class AddressBook(Protocol):
    """Finds an actor by its name. Ray's directory in production, a dictionary in tests."""

    async def address_of(self, name: str) -> str:
        """The actor's "host:port". Raises `Unavailable` when it is not known now."""
        ...
