"""Whose directory this is: its lock, its fitness, and `store.json`.

Owns the identity of a store: a member of a log is `(store, incarnation)`, never an address or a name. It must not know
what the journal holds. Invariants: `store.json` is replaced whole and durably or not at all; a directory with data
never gets a new identity; no randomness (the caller passes the UUID of a new store).

    {"format": 1, "store": "…32 hex digits…", "incarnation": 1, "cluster": "…", "log_id": 123, "crc32": 456}

`crc32` covers the other fields. `incarnation` is 0 until the first journal file is durable: from 1 on, a directory
without journal files has lost them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from trilogue.actors.journal.files import JournalFull, corrupt, disk_error, journal_numbers, sync_directory
from trilogue.actors.journal.swap import finish_swap
from trilogue.actors.protocol.errors import (
    Corrupt,
    DirectoryInUse,
    DirectoryUnusable,
    NewerFormat,
    WrongCluster,
)

FORMAT = 1
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a store is. `incarnation` rises when it cut a damaged tail: then its old memberships are void."""

    store: str
    incarnation: int
    cluster: str
    log_id: int


class DirectoryLock:
    """The directory is this process's until `release`, or until the process ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Let another process have the directory. Harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def try_lock(directory: Path, *, allow_tmpfs: bool = False) -> DirectoryLock:
    """Make the directory if there is none, check that it can be written, and take its lock: one attempt, never waiting.

    Raises `DirectoryUnusable`, or `DirectoryInUse` with the holder's process id.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kind = _filesystem_of(directory)
        if kind in _MEMORY_FILESYSTEMS and not allow_tmpfs:
            raise DirectoryUnusable(
                f"{directory} lies on {kind}, which keeps nothing when the machine stops: "
                "give a directory on a disk, or allow tmpfs if that is what you want"
            )
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _try_to_write(directory)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).strip().decode("ascii", "replace")
        os.close(fd)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise DirectoryInUse(f"{directory} is in use by {who}: stop it, or give another directory") from None
    except OSError as error:
        os.close(fd)
        raise _unusable(directory, error) from error
    # The holder's id is for people: a full disk that does not take it is no reason to refuse.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return DirectoryLock(fd)


def directory_mark(path: str) -> tuple[int, ...]:
    """Which directory and which `store.json` are there now."""
    found: list[int] = []
    for name in (path, os.path.join(path, "store.json")):
        try:
            seen = os.stat(name)
        except OSError:
            found += [0, 0]
        else:
            found += [seen.st_dev, seen.st_ino]
    return tuple(found)


def open_identity(directory: Path, *, cluster: str, log_id: int, fresh_store: str) -> Identity:
    """The directory's identity; a directory without data becomes the new store `fresh_store` (a UUID in hex).

    Raises `WrongCluster`, `NewerFormat`, `Corrupt`, or `DirectoryUnusable` (no space for a new store).
    """
    path = directory / "store.json"
    try:
        finish_swap(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        numbers = journal_numbers(directory)
        if numbers:
            raise Corrupt(
                f"{directory} holds {len(numbers)} journal files but no store.json: do not use this store, "
                "and keep its directory: once the system is down, `trilogue verify --repair` mends it from its peers"
            ) from None
        identity = Identity(fresh_store, 0, cluster, log_id)
        try:
            write_identity(directory, identity)
        except JournalFull:
            raise no_space(directory) from None
        return identity
    except OSError as error:
        raise corrupt(path, 0, f"it cannot be read: {error.strerror}") from error
    identity = _decode(path, raw)
    if (identity.cluster, identity.log_id) != (cluster, log_id):
        raise WrongCluster(
            f"{directory} belongs to cluster {identity.cluster} (log {identity.log_id}), "
            f"not to {cluster} (log {log_id}): give this cluster another directory"
        )
    return identity


def write_identity(directory: Path, identity: Identity) -> None:
    """Replace `store.json`, durably. Raises `JournalFull`, `JournalBroken` (a sync failed) or `DirectoryUnusable`."""
    fields: dict[str, Any] = {"format": FORMAT, **asdict(identity)}
    fields["crc32"] = _crc_of(fields)
    temporary = directory / "store.json.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(fields).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, directory / "store.json")
        sync_directory(directory)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise _unusable(directory, error) from error
        raise disk_error(error, f"cannot write {temporary}") from error


def _crc_of(fields: dict[str, Any]) -> int:
    return crc32(json.dumps({key: fields[key] for key in sorted(fields) if key != "crc32"}).encode())


def _decode(path: Path, raw: bytes) -> Identity:
    """The identity in the bytes of `store.json`. Raises `NewerFormat` or `Corrupt`."""
    try:
        fields = json.loads(raw)
    except ValueError:
        raise corrupt(path, 0, "it is not JSON") from None
    match fields:
        case {"format": int(version)} if version > FORMAT:
            raise NewerFormat(f"{path} has format {version}; this program knows formats up to {FORMAT}: upgrade it")
        case {
            "format": 1,
            "store": str(store),
            "incarnation": int(incarnation),
            "cluster": str(cluster),
            "log_id": int(log_id),
            "crc32": int(crc),
        } if crc == _crc_of(fields):
            return Identity(store, incarnation, cluster, log_id)
    raise corrupt(path, 0, "its fields fail their check")


def no_space(directory: Path) -> DirectoryUnusable:
    """The error for a disk that is too full to begin a store on."""
    return DirectoryUnusable(f"{directory} has no space for a new store: free some, or give another directory")


def _unusable(directory: Path, error: OSError) -> DirectoryUnusable:
    if error.errno in _FULL:
        return no_space(directory)
    why = error.strerror
    return DirectoryUnusable(f"{directory} cannot be written ({why}): make it writable, or give another directory")


def _try_to_write(directory: Path) -> None:
    """Make and remove a file: a mode says nothing to root, and a file system may be read-only. A full disk passes."""
    probe = directory / "probe.tmp"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(probe)
    except OSError as error:
        if error.errno not in _FULL:
            raise


def _filesystem_of(directory: Path) -> str:
    """The kind of file system that holds the directory; empty if the kernel does not say."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return ""
