"""The system that is measured: one of its own on a disk, on one node or on simulated ones, or one that runs already.

Owns the starting and the ending of measured systems, and their directories. It must not know what is measured. Invariants: a
directory that a benchmark made is removed, also when that was killed, and nothing else is; the system and its Ray have ended
when the block is left; a Ray of several simulated nodes listens on loopback and wants a token, like any other one that
trilogue starts.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from trilogue.actors.journal.identity import try_lock
from trilogue.actors.protocol.errors import DataError, DirectoryUnusable, TrilogueError, Unavailable, UsageError
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.redis_journal.place import is_redis, parse_place
from trilogue.bench.nodes import simulated_nodes
from trilogue.bench.report.machine import refuse_memory
from trilogue.bench.report.progress import Progress
from trilogue.cluster.on_ray.remains import clean
from trilogue.cluster.settings.config import read_record
from trilogue.cluster.settings.runfile import data_run_file, read_run_file
from trilogue.cluster.settings.store_urls import redis_credentials, store_name

NODES_MAX = 16
COPIES = 3
LOOPBACK = ("127.", "localhost", "[::1]")
ROLES = ("session", "store")


@dataclass(frozen=True, slots=True)
class Where:
    """What the command line says of the system: one at `address`, or a fresh one with its files under `data`."""

    address: str | None
    data: Path | None
    partitions: int
    nodes: int = 1
    stores: tuple[str, ...] = ()  # those of its copies that are on Redis servers; the others are files

    def __post_init__(self) -> None:
        """Raise `UsageError` unless the system can be had."""
        if self.address is not None and self.data is not None:
            raise UsageError("--data is for a system of the benchmark's own: leave it out, or leave out --address")
        if self.stores and self.address is not None:
            raise UsageError("--store is for a system of the benchmark's own: leave it out, or leave out --address")
        if len(self.stores) > COPIES or not all(map(is_redis, self.stores)):
            raise UsageError(f"--store: give at most {COPIES}, each as redis://HOST:PORT/DB or rediss://…")
        if not 1 <= self.partitions <= PARTITIONS_MAX:
            raise UsageError(f"--partitions {self.partitions}: between 1 and {PARTITIONS_MAX}")
        if not 1 <= self.nodes <= NODES_MAX:
            raise UsageError(f"--nodes {self.nodes}: between 1 and {NODES_MAX}")

    def with_partitions(self, partitions: int) -> Where:
        """The same with another number of partitions."""
        return replace(self, partitions=partitions)


@dataclass(frozen=True, slots=True)
class System:
    """A running system. `fresh` is one that nobody else has written to; `pids` are its processes on this machine by role;
    `scratch` is on its stores' file system, as far as that is known; `status` asks it how it is now."""

    address: str
    token: str | None
    partitions: int
    copies: int
    nodes: int
    fresh: bool
    scratch: Path
    status: Callable[[], Mapping[str, Any]]
    pids: dict[str, list[int]] = field(default_factory=dict)
    on_redis: tuple[str, ...] = ()  # the stores that are there, and must be among a partition's

    def check_members(self) -> None:
        """Raise `Unavailable` if a store on Redis is no member any more: then something else was measured."""
        if not self.on_redis:
            return
        for partition in self.status()["partitions"]:
            if gone := set(self.on_redis) - set(partition["stores"]):
                raise Unavailable(
                    f"{', '.join(sorted(gone))} was replaced by a spare store meanwhile: it was not what was measured"
                )


@contextlib.contextmanager
def ray_nodes(where: Where, progress: Progress) -> Iterator[None]:
    """The simulated Ray nodes that the systems inside the block share, if there is to be more than one.

    They are started once: within one process Ray keeps the first cluster's token, and no second one can be joined.
    """
    if where.nodes == 1:
        yield
        return
    with scratch_directory(where) as directory:
        progress.phase(f"starting {where.nodes} Ray nodes")
        with simulated_nodes(where.nodes, directory):
            yield


@contextlib.contextmanager
def system(where: Where, progress: Progress) -> Iterator[System]:
    """The system to measure, running; it has ended, with its files gone, when the block is left, unless it ran before."""
    if where.address is not None:
        with scratch_directory(where) as directory:
            yield _running(where.address, directory)
        return
    from trilogue.cluster import launch

    with scratch_directory(where) as directory:
        progress.phase("starting the system")
        # Fewer nodes than copies cannot hold a store each: then the placement decides.
        spread = True if where.nodes >= COPIES else None
        data = directory / "data"
        with (
            removed_from_redis(where.stores, data),
            launch(
                partitions=where.partitions, copies=COPIES, stores=_store_urls(where, data), data=data, spread=spread
            ) as cluster,
        ):
            status = cluster.status()
            yield System(
                address=cluster.address,
                token=cluster.token,
                partitions=where.partitions,
                copies=COPIES,
                nodes=where.nodes,
                fresh=True,
                scratch=directory,
                status=cluster.status,
                pids=pids_by_role(status),
                on_redis=tuple(one["name"] for one in status["stores"] if one["url"]),
            )
            progress.phase("ending the system")


def _store_urls(where: Where, data: Path) -> list[str] | None:
    """Three copies, as many of them in files as are not on Redis, and a spare store in files."""
    if not where.stores:
        return None
    in_files = COPIES - len(where.stores)
    urls = [*[""] * in_files, *where.stores, ""]
    return [url or f"file://{data / store_name(number)}" for number, url in enumerate(urls, 1)]


@contextlib.contextmanager
def removed_from_redis(stores: Sequence[str], data: Path) -> Iterator[None]:
    """Whatever the system of `data` has put on these servers is gone when the block is left."""
    try:
        yield
    finally:
        record = read_record(data) if stores else None
        if record is not None:
            from trilogue.actors.redis_journal.removal import remove_keys

            for url in stores:
                remove_keys(parse_place(url), redis_credentials(), record.cluster)


@contextlib.contextmanager
def scratch_directory(where: Where) -> Iterator[Path]:
    """A new directory on a disk, beside the default data directory or under `where.data`; it is removed afterwards, or, when
    this process is killed, by the next benchmark there.

    Raises `DirectoryUnusable` when it cannot be made there, or on tmpfs.
    """
    from trilogue.cluster.settings.directories import data_home, whole_path

    base = whole_path(where.data) if where.data is not None else data_home().absolute()
    made = [path for path in (base, *base.parents) if not path.exists()]
    directory = base / f"bench-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise DirectoryUnusable(f"{directory} cannot be made: {error.strerror}; give --data another directory") from None
    lock = try_lock(directory, allow_tmpfs=True)
    try:
        refuse_memory(directory)
        remove_remains(base)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock.release()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def remove_remains(base: Path) -> None:
    """Remove the directories of benchmarks that were killed, and what is left of their systems. A living one's is locked."""
    for directory in base.glob("bench-*"):
        if not (directory / "lock").exists():
            continue  # it is being made, or is somebody else's
        try:
            lock = try_lock(directory, allow_tmpfs=True)
        except DataError:
            continue
        with contextlib.suppress(TrilogueError):
            if (known := read_run_file(data_run_file(directory / "data"))) is not None:
                clean(known)
        shutil.rmtree(directory, ignore_errors=True)
        lock.release()


def _running(address: str, scratch: Path) -> System:
    """The system at `address`, as a client finds it. Raises `Unavailable` or `NotAuthorized`."""
    from trilogue.cluster.commands.find import locate, run_file_behind
    from trilogue.cluster.commands.status import gather
    from trilogue.cluster.commands.streams import run

    known = locate(address, None)
    behind = run(run_file_behind(known))
    if behind is not None:
        # One address leads to its partitions' writers; the run file leads to every store as well.
        known = known._replace(addresses=[*known.addresses, *behind.addresses], run=behind)
    status = run(gather(known))
    copies = min(partition["copies"] for partition in status["partitions"])
    pids = pids_by_role(status)
    for role, expected in (("session", len(status["partitions"])), ("store", copies)):
        if len(pids.get(role, [])) < expected:
            # A part of a role's processor time would flatter the whole.
            pids[role] = []
    return System(
        address=address,
        token=known.token,
        partitions=len(status["partitions"]),
        copies=copies,
        nodes=len({store["address"].rpartition(":")[0] for store in status["stores"]}),
        fresh=False,
        scratch=scratch,
        status=lambda: run(gather(known)),
        pids=pids,
    )


def pids_by_role(status: Mapping[str, Any]) -> dict[str, list[int]]:
    """The processes of SessionActors and stores that run on this machine."""
    found: dict[str, list[int]] = defaultdict(list)
    for actor in status["actors"].values():
        role, pid = actor.get("role"), actor.get("pid")
        if role in ROLES and is_here(actor):
            found[role].append(pid)
    return dict(found)


def is_here(actor: Mapping[str, Any]) -> bool:
    """Whether the actor's process runs on this machine, as far as can be told."""
    pid, address = actor.get("pid"), str(actor.get("address", ""))
    return isinstance(pid, int) and address.startswith(LOOPBACK) and psutil.pid_exists(pid)
