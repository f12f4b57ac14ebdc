"""The stores on Redis servers, for a command that reads the stores of a system that is down.

Owns the copies, which are gone when the command is done, and the locks of these stores' directories meanwhile. It must not
know what is judged. Invariant: nothing is changed on a server; one that cannot be read is named, never left out.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trilogue.actors.journal import Identity, try_lock
from trilogue.actors.protocol.errors import DataError
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.redis_journal.place import is_redis, parse_place
from trilogue.cluster.settings.config import ClusterRecord, store_names
from trilogue.cluster.settings.store_urls import redis_credentials


class Copies(NamedTuple):
    """Of each store on a server: where its copy is, if it could be read, and what is wrong with it."""

    directories: dict[str, Path]
    damage: dict[str, list[str]]
    notes: list[str]


@contextlib.contextmanager
def redis_copies(data: Path, record: ClusterRecord, limits: Limits) -> Iterator[Copies]:
    """The copies, in a directory of their own under `data`."""
    copies = Copies({}, {}, [])
    names = [name for name in store_names(record) if is_redis(record.url_of(name))]
    if not names:
        yield copies
        return
    from trilogue.actors.redis_journal.export import export_store

    credentials = redis_credentials()
    who = Identity("", 0, record.cluster, record.log_id)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-", dir=data)))
        for name in names:
            place, directory = parse_place(record.url_of(name)), base / name
            if (data / name).is_dir():
                stack.callback(try_lock(data / name, allow_tmpfs=True).release)
            directory.mkdir()
            try:
                damage = export_store(place, credentials, who, name, record.partitions, directory, limits, data / name)
            except DataError as error:
                copies.damage[name] = [str(error)]
                continue
            if damage is None:
                copies.notes.append(f"{name} is not on {place.url} yet, or not any more: it is filled when the system is up")
                copies.damage[name] = []
            else:
                copies.directories[name], copies.damage[name] = directory, damage
        yield copies
