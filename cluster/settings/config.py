"""What a system is: what its data was created with, its actors' names, and its desired state.

Owns the file DATA/cluster.json's shape and the names of actors. It must not know what a user asked for (``asked``), nor
how anything is started; actors import it, so it imports little. Invariant: partitions, copies and stores of the data
never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from trilogue.actors.protocol.errors import DirectoryUnusable, InvalidSettings, NewerFormat
from trilogue.cluster.settings.directories import data_home as data_home
from trilogue.cluster.settings.files import read_json

FORMAT: Final = 1
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
    """What DATA/cluster.json holds: fixed when the data is created."""

    cluster: str
    log_id: int
    partitions: int
    copies: int
    stores: int
    created: str


def store_names(record: ClusterRecord) -> tuple[str, ...]:
    """The stores' names, in order."""
    return tuple(f"store-{k}" for k in range(1, record.stores + 1))


def session_names(record: ClusterRecord) -> tuple[str, ...]:
    """The SessionActors' names, by partition."""
    return tuple(f"session-{partition}" for partition in range(record.partitions))


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

    def ensemble(self, partition: int) -> tuple[str, ...]:
        """The stores of a partition: `copies` of them, going round, so that more stores share the load."""
        names = store_names(self.record)
        return tuple(names[(partition + k) % len(names)] for k in range(self.record.copies))


def read_record(data: Path) -> ClusterRecord | None:
    """The record of a data directory; None when it holds no system. Raises `NewerFormat`, `DirectoryUnusable`."""
    path = data / "cluster.json"
    raw = read_json(path)
    if raw is None:
        return None
    version = raw.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerFormat(f"{path} has format {version}, this trilogue reads {FORMAT}: upgrade trilogue")
    try:
        record = ClusterRecord._make(raw[field] for field in ClusterRecord._fields)
    except KeyError as error:
        raise DirectoryUnusable(f"{path} lacks {error}: restore it from a backup") from None
    if version != FORMAT or not all(isinstance(value, int) and value > 0 for value in record[1:5]):
        raise DirectoryUnusable(f"{path} is damaged: restore it from a backup")
    return record
