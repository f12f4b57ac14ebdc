"""One stored frame, read again from the disk, and written again where it lies.

Owns the two acts on a journal that is open. It must not know when they are due (``store.scrubber``) or where good bytes come
from. A frame's bytes never change and have a fixed size, so writing the right ones where they were is idempotent, and a crash
in the middle leaves what was there before: a damaged frame. Any thread may call these. Rules:

1. What is read comes from the disk, not from cached pages.
2. Nothing is written but the very frame that was stored there: its `header_crc` is what the store has known since then.
3. What was written is synced, and read again from the disk.
4. A sync that fails is `JournalBroken`, as everywhere: the process ends. A disk that refuses the write has kept its damage,
   and nothing else happened.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from trilogue.actors.journal.files import JournalBroken, corrupt, disk_error, file_path, read_all, unreadable, write_all
from trilogue.actors.journal.records import Position
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.thinning import header_of


def check_in_place(directory: Path, position: Position, key: FrameKey) -> None:
    """Raise `Corrupt` unless the frame `key` lies at `position` on the disk."""
    path = file_path(directory, position.file)
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(error, path, position.offset) from error
    try:
        _check(fd, path, position, key)
    finally:
        os.close(fd)


def rewrite_in_place(directory: Path, position: Position, key: FrameKey, frame: bytes) -> None:
    """Write `frame` where it was stored before.

    Raises `ProtocolError` (it is not that frame: nothing was written), `Corrupt` (the disk does not take it), `JournalBroken`.
    """
    problem = _difference(frame, position, key)
    if problem:
        raise ProtocolError(problem)
    path = file_path(directory, position.file)
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        raise unreadable(error, path, position.offset) from error
    try:
        try:
            write_all(fd, [frame], len(frame), position.offset)
        except OSError as error:
            raise corrupt(path, position.offset, f"the disk does not take it back: {error.strerror}") from error
        try:
            os.fdatasync(fd)
        except OSError as error:
            trouble = disk_error(error, f"cannot sync {path}")
            raise JournalBroken(str(trouble)) from error
        _check(fd, path, position, key)
    finally:
        os.close(fd)


def _check(fd: int, path: Path, position: Position, key: FrameKey) -> None:
    _, offset, size = position
    first = offset - offset % mmap.PAGESIZE
    last = offset + size + -(offset + size) % mmap.PAGESIZE
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, first, last - first, os.POSIX_FADV_DONTNEED)
    problem = _difference(read_all(fd, path, offset, size), position, key)
    if problem:
        raise corrupt(path, offset, problem)


def _difference(frame: bytes, position: Position, key: FrameKey) -> str:
    try:
        header = header_of(frame, position.size)
    except ProtocolError as error:
        return str(error)
    found = FrameKey(header.partition, header.index, header.header_crc)
    if found != key or header.flags or len(frame) != position.size:
        return (
            f"frame {header.index} of partition {header.partition} where frame {key.frame_index} of {key.partition} was stored"
        )
    return ""
