"""What an actor is told when it is made.

Owns the shapes that travel from the launcher to an actor's constructor, and what an actor may ask of the world around it. It
must not know Ray. Invariant: all of it is frozen, and can be pickled by Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a Redis server is told that we are. Neither of the two is ever shown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


NOBODY: Final = Credentials()


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One store: where its directory is and where it listens. `listen` is "host:port"; port 0 takes any.

    With a `url`, its journal is on that Redis server, and the directory holds what belongs to this machine: the lock, the
    votes, the index, and the witness of what the server has.
    """

    name: str
    directory: str
    cluster_id: str
    log_id: int
    partitions: int
    token: str
    listen: str
    allow_tmpfs: bool = False
    limits: Limits = DEFAULT_LIMITS
    url: str = ""
    credentials: Credentials = NOBODY


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """One SessionActor, which starts as a spare: which partitions there are, and all stores, in the order of their names.

    Which partition it owns, it is told (`TAKE`). A frame is to be on `copies` stores, or at least on `min_copies` while no more
    are there. `first_stores` are those that the data was created with (empty: all of `stores`). Messages older than `keep_s`
    are let go, and the oldest of more than `keep_bytes` in a partition (0: none).
    """

    name: str
    partitions: int
    cluster_id: str
    log_id: int
    stores: tuple[str, ...]
    copies: int
    min_copies: int
    token: str
    listen: str
    limits: Limits = DEFAULT_LIMITS
    first_stores: tuple[str, ...] = ()
    keep_s: int = 0
    keep_bytes: int = 0

    def ensemble(self, partition: int) -> tuple[str, ...]:
        """The stores that a partition is founded on: the same ones for ever, however many are added. Once it has a record in
        the register, that counts and not this.
        """
        return preferred_stores(self.first_stores or self.stores, self.copies, partition)


def preferred_stores(stores: tuple[str, ...], copies: int, partition: int) -> tuple[str, ...]:
    """`copies` of the stores, going round from partition to partition, so that all of them share the load."""
    return tuple(stores[(partition + k) % len(stores)] for k in range(copies))


class AddressBook(Protocol):
    """Finds an actor by its name. Ray's directory in production, a dictionary in tests."""

    async def address_of(self, name: str) -> str:
        """The actor's "host:port". Raises `Unavailable` when it is not known now."""
        ...
