"""What a system is: what its data was created with, its actors' names, and its desired state.

Owns the file DATA/cluster.json's shape and the names of actors. It must not know what a user asked for (``asked``), nor
how anything is started; actors import it, so it imports little. Invariants: partitions and copies of the data never change;
its stores only become more.

cluster.json has format 2, or 3 when a store has a place that is not the one by default. Format 1 is read as it is, and
becomes format 2 at the next start, for good: what follows may live on other stores than a version that knows no register
would look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from trilogue.actors.config import NOBODY, Credentials
from trilogue.actors.protocol.errors import DirectoryUnusable, InvalidSettings
from trilogue.cluster.settings.files import read_json, write_json
from trilogue.cluster.settings.store_urls import store_name

FORMAT: Final = 3
WITHOUT_URLS: Final = 2
SPARE_SESSIONS_DEFAULT: Final = 1
SUPERVISOR: Final = "supervisor"
NAMESPACE: Final = "trilogue"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_HOST = ("0.0.0.0", "::")


def split_listen(listen: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or HOST, where port 0 means any. Raises `InvalidSettings`."""
    host, colon, port = listen.rpartition(":") if not listen.endswith("]") else (listen, "", "")
    if not colon:
        host, port = listen, "0"
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise InvalidSettings(f"--listen {listen!r} is no address: write HOST:PORT, with port 0 for any free one")
    return host, int(port)


class ClusterRecord(NamedTuple):
    """What DATA/cluster.json holds. The identity, partitions and copies are fixed when the data is created.

    `first_stores` is how many stores there were at the first start, on which partitions are founded; it is fixed from then on,
    and `stores` only grows. Both are 0 before: nobody has said how many, and how many nodes there are is not known yet.
    `keep_s` and `keep_bytes` are 0 when nothing is let go; a file of before there was a choice lacks them.
    `urls` are the stores' places (``store_urls``), of those that are named in this way; no password is in them.
    """

    cluster: str
    log_id: int
    partitions: int
    copies: int
    stores: int
    created: str
    first_stores: int
    min_copies: int
    spare_sessions: int
    keep_s: int = 0
    keep_bytes: int = 0
    urls: tuple[str, ...] = ()

    def url_of(self, store: str) -> str:
        """Where the store keeps its journal; empty for its place by default."""
        number = store_names(self).index(store)
        return self.urls[number] if number < len(self.urls) else ""

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be those of a system."""
        numbers = (self.log_id, self.partitions, self.copies, self.stores, *self[6:11])
        if not all(type(number) is int and number >= 0 for number in numbers):
            return False
        placed = self.copies <= self.first_stores <= self.stores or self.first_stores == self.stores == 0
        named = all(type(url) is str for url in self.urls) and len(self.urls) <= self.stores
        return placed and named and self.log_id > 0 and self.partitions > 0 and 0 < self.min_copies <= self.copies


def store_names(record: ClusterRecord) -> tuple[str, ...]:
    """The stores' names, in order."""
    return tuple(store_name(k) for k in range(1, record.stores + 1))


def session_names(record: ClusterRecord) -> tuple[str, ...]:
    """The SessionActors' names: one for each partition, and the spares. Any of them may own any partition."""
    return tuple(f"session-{number}" for number in range(record.partitions + record.spare_sessions))


def actor_names(record: ClusterRecord) -> tuple[str, ...]:
    """The names of all actors, in the order in which ports are given out."""
    return (*store_names(record), *session_names(record), SUPERVISOR)


@dataclass(frozen=True, slots=True)
class Desired:
    """The desired state of one system: what the Supervisor keeps up. Holds no truth about messages."""

    record: ClusterRecord
    data: str
    token: str
    host: str
    ports: dict[str, int]
    run_files: tuple[str, ...]
    allow_tmpfs: bool
    spread: bool
    directories: dict[str, str]
    hosts: dict[str, str]
    credentials: Credentials = NOBODY


def read_record(data: Path) -> ClusterRecord | None:
    """The record of a data directory; None when it holds no system. Raises `NewerFormat`, `DirectoryUnusable`."""
    path = data / "cluster.json"
    raw = read_json(path, FORMAT)
    if raw is None:
        return None
    try:
        version = raw.get("format")
        if version == 1:
            later = {"first_stores": raw["stores"], "min_copies": raw["copies"], "spare_sessions": SPARE_SESSIONS_DEFAULT}
            raw = raw | later
        raw = ClusterRecord._field_defaults | raw
        record = ClusterRecord._make(raw[field] for field in ClusterRecord._fields)._replace(urls=tuple(raw["urls"]))
    except KeyError as error:
        raise DirectoryUnusable(f"{path} lacks {error}: restore it from a backup") from None
    except TypeError:
        raise DirectoryUnusable(f"{path} is damaged: restore it from a backup") from None
    if version not in (1, WITHOUT_URLS, FORMAT) or not record.is_sound or (version == 1 and not record.stores):
        raise DirectoryUnusable(f"{path} is damaged: restore it from a backup")
    return record


def write_record(data: Path, record: ClusterRecord) -> None:
    """Put the record into the data directory. Raises `DirectoryUnusable`."""
    fields = record._asdict()
    if any(record.urls):
        write_json(data / "cluster.json", {"format": FORMAT, **fields})
    else:
        del fields["urls"]
        write_json(data / "cluster.json", {"format": WITHOUT_URLS, **fields})
