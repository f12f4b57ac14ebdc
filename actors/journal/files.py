"""A journal's files: their names, how they are made, written, synced and read.

Owns the durable steps (temporary → head → fsync → rename → fsync of the directory) and what an error of the disk means.
It must not know records. Invariants: a file that has its final name is whole; a failed sync is never retried.

A new file is preallocated, not filled with zeros: preallocating 64 MiB takes 0.4 ms and is done when rolling. Filling
it takes 230 ms or more, stalls other syncs on that disk by 20-35 ms and doubles what is written, for 0.07 ms less on a
64 KiB append and nothing on a small one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.invariants import InvariantBroken

Buffer = bytes | memoryview

BLOCK_BYTES = 1024 * 1024
ZEROS = bytes(BLOCK_BYTES)
IOVECS_MAX = 1024  # Linux's IOV_MAX
_ENDS = "the store ends, and reads its disk again when it starts"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNREADABLE = frozenset({errno.EIO, errno.ENOENT, errno.ENXIO, errno.EUCLEAN, errno.EBADMSG})
_NAME = re.compile(r"journal-([0-9]{8,})\.trl")


class JournalBroken(InvariantBroken):
    """The disk failed a write or a sync: what it holds is unknown until it is read again. The process must end."""


class JournalFull(Exception):
    """The disk is full. Nothing of the append counts; what was stored before can be read."""


def disk_error(error: OSError, what: str) -> JournalFull | JournalBroken:
    """What an `OSError` of a write or sync means: only "no space" leaves the process something to serve."""
    if error.errno in _FULL:
        return JournalFull(f"{what}: {error.strerror}; free some space, then start the store again")
    return JournalBroken(f"{what}: {error.strerror}; {_ENDS}")


def corrupt(path: Path, offset: int, what: str) -> Corrupt:
    """The error for damage, in one line that says what to do."""
    return Corrupt(
        f"{path} is damaged at byte {offset}: {what}; do not use this store, and keep its directory: "
        "once the system is down, `trilogue verify --repair` mends it from its peers"
    )


@lru_cache(maxsize=1024)  # it is asked for with each record that is read, and a path takes twice as long to make as to open
def file_path(directory: Path, number: int) -> Path:
    """Where journal file `number` lies."""
    return directory / f"journal-{number:08d}.trl"


def summary_path(directory: Path, number: int) -> Path:
    """Where the summary of journal file `number` lies."""
    return directory / f"journal-{number:08d}.sum"


def remove_summaries(directory: Path) -> None:
    """Remove all of them: the files will be other ones."""
    for path in directory.glob("journal-*.sum*"):
        path.unlink(missing_ok=True)


def journal_numbers(directory: Path) -> list[int]:
    """The numbers of the journal files that are there, in order."""
    found = (_NAME.fullmatch(name) for name in os.listdir(directory))
    return sorted(int(match[1]) for match in found if match)


def remove_leftovers(directory: Path) -> None:
    """Remove journal files that never got their name: a process ended while it made them."""
    for path in directory.glob("journal-*.trl.tmp"):
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the directory's names durable. Raises `OSError`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, buffers: Sequence[Buffer], left: int, offset: int) -> None:
    """Write all the buffers, which hold `left` bytes, at `offset`: one `pwritev` unless it is cut short. Raises `OSError`."""
    while left:
        done = os.pwritev(fd, buffers if len(buffers) <= IOVECS_MAX else buffers[:IOVECS_MAX], offset)
        if done == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= done
        offset += done
        buffers = _without_first(buffers, done) if left else ()


def _without_first(buffers: Sequence[Buffer], done: int) -> list[Buffer]:
    """The buffers that a write of `done` bytes left over."""
    for k, buffer in enumerate(buffers):
        if done < len(buffer):
            return [memoryview(buffer)[done:], *buffers[k + 1 :]]
        done -= len(buffer)
    return []


def create_file(directory: Path, number: int, head: bytes, file_bytes: int) -> int:
    """Make journal file `number`, preallocated, beginning with `head`, durable; returns its descriptor.

    Raises `JournalFull` (then the directory is as it was) or `JournalBroken`.
    """
    path = file_path(directory, number)
    temporary = path.with_name(path.name + ".tmp")
    what = f"cannot make {path}"
    fd = -1
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.posix_fallocate(fd, 0, file_bytes)
        write_all(fd, [head], len(head), 0)
        os.fsync(fd)
        os.rename(temporary, path)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise disk_error(error, what) from error
    try:
        sync_directory(directory)
    except OSError as error:
        # The name may or may not survive, and the file before must not grow beyond what this one says of it.
        os.close(fd)
        raise JournalBroken(f"{what}: {error.strerror}; {_ENDS}") from error
    return fd


class FileReader:
    """Reads one journal file in big blocks, from the disk rather than from cached pages. Damage is `Corrupt`."""

    __slots__ = ("_block", "_fd", "_start", "number", "path", "size")

    def __init__(self, directory: Path, number: int, path: Path | None = None) -> None:
        """`path`: where it lies as long as it has not got its name."""
        self.path = path or file_path(directory, number)
        self.number = number
        self._block = memoryview(b"")
        self._start = 0
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(error, self.path, 0) from error
        try:
            os.fsync(self._fd)
            self.size = os.fstat(self._fd).st_size
            # After a failed sync the cached pages look clean and differ from the disk.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            os.close(self._fd)
            raise JournalBroken(f"cannot sync {self.path}: {error.strerror}; start the store again") from error

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._block = memoryview(b"")
        os.close(self._fd)

    def view(self, offset: int, size: int) -> memoryview:
        """The `size` bytes at `offset`, or fewer at the end of the file."""
        at = offset - self._start
        if at < 0 or at + size > len(self._block):
            self._block = memoryview(self.read(offset, max(size, BLOCK_BYTES)))
            self._start = offset
            at = 0
        return self._block[at : at + size]

    def read(self, offset: int, size: int) -> bytes:
        """As `view`, past the block that is kept."""
        return read_all(self._fd, self.path, offset, min(size, max(0, self.size - offset)))

    def first_nonzero(self, offset: int) -> int | None:
        """The offset of the first byte from `offset` on that is not zero."""
        while offset < self.size:
            block = self.read(offset, BLOCK_BYTES)
            if block != ZEROS[: len(block)]:
                return offset + len(block) - len(block.lstrip(b"\0"))
            offset += len(block)
        return None


def read_all(fd: int, path: Path, offset: int, size: int) -> bytes:
    """Exactly `size` bytes at `offset`. Raises `Corrupt` if the disk cannot give them."""
    try:
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise corrupt(path, offset + len(data), "the file ends here")
            data += more
    except OSError as error:
        raise unreadable(error, path, offset) from error
    return data


def unreadable(error: OSError, path: Path, offset: int) -> Exception:
    """What an error of opening or reading means: the disk's fault is `Corrupt`, any other error stays what it is."""
    if error.errno in _UNREADABLE:
        return corrupt(path, offset, f"it cannot be read: {error.strerror}")
    return error
