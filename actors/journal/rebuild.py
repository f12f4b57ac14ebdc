"""Writing a damaged store's journal anew, from what all stores together have.

Owns the building of the new files, and the reading of frames for it. It must not know what is right (``mend`` says that) or how
files change places (``swap``). Invariants: nothing of the old journal is written to; what was built is read back whole before
it takes the old one's place; the incarnation rises, in `store.json`, with the journal: what the store had promised and has
forgotten, it "cannot tell".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from trilogue.actors.journal.files import JournalFull, file_path, read_all, unreadable
from trilogue.actors.journal.identity import Identity, write_identity
from trilogue.actors.journal.journal import Journal
from trilogue.actors.journal.mend import Home, Node, Plan
from trilogue.actors.journal.records import FenceRecord, ThinFrame
from trilogue.actors.journal.salvage import FrameKey, salvage_store
from trilogue.actors.journal.swap import BUILDING, building_directory, swap_in
from trilogue.actors.protocol.errors import Corrupt, DirectoryUnusable, ProtocolError
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import header_of, is_thin

APPEND_BYTES = 4 * 1024 * 1024
Progress = Callable[[int, int], None]


def read_frame(directories: Mapping[str, Path], node: Node) -> bytes:
    """The frame's bytes from the first of its homes that still gives them. Raises `Corrupt`."""
    problem = "no store has it"
    for home in node.homes:
        try:
            return _read(directories[home.store], home, node.key)
        except Corrupt as error:
            problem = str(error)
    raise Corrupt(f"frame {node.key.frame_index} of partition {node.key.partition} cannot be read any more: {problem}")


def rebuild(
    directory: Path,
    identity: Identity,
    frames: Iterable[bytes],
    fences: list[FenceRecord],
    limits: Limits,
    stamp: str,
    *,
    file_bytes: int | None = None,
) -> Path:
    """Replace the journal in `directory`, whose lock the caller holds, by one with these frames and fences, under the next
    incarnation. Returns where the old one is kept. Raises `DirectoryUnusable` (no space: nothing changed) or `Corrupt`."""
    temporary = building_directory(directory)
    try:
        expected = _build(temporary, identity, frames, fences, limits, file_bytes)
        raised = replace(identity, incarnation=identity.incarnation + 1)
        write_identity(temporary, raised)
        _read_back(temporary, raised, expected, fences)
    except JournalFull as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DirectoryUnusable(f"{directory} has no room for its journal beside the damaged one: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return swap_in(directory, stamp)


def frames_of(plan: Plan, store: str, directories: Mapping[str, Path], progress: Progress) -> Iterator[bytes]:
    """All frames that the store is given, partition by partition."""
    total = sum(len(plan.partitions[partition].chain) for partition in plan.contents[store])
    done = 0
    for partition in plan.contents[store]:
        for node in plan.partitions[partition].chain:
            yield read_frame(directories, node)
            done += 1
            progress(done, total)


def _build(
    temporary: Path,
    identity: Identity,
    frames: Iterable[bytes],
    fences: list[FenceRecord],
    limits: Limits,
    file_bytes: int | None,
) -> list[FrameKey]:
    """A new journal with these records; which frames it has."""
    journal = Journal.open(temporary, replace(identity, incarnation=0), limits, lambda _: None, file_bytes=file_bytes)
    written: list[FrameKey] = []
    try:
        waiting: list[bytes | ThinFrame | FenceRecord] = []
        size = 0
        for frame in frames:
            header = header_of(frame, len(frame))
            written.append(FrameKey(header.partition, header.index, header.header_crc))
            if size + len(frame) > APPEND_BYTES:
                journal.append(waiting)
                waiting, size = [], 0
            waiting.append(ThinFrame(header.partition, frame) if is_thin(frame) else frame)
            size += len(frame)
        if waiting or fences:
            journal.append([*waiting, *fences])
    finally:
        journal.close()
    return written


def _read_back(temporary: Path, identity: Identity, expected: list[FrameKey], fences: list[FenceRecord]) -> None:
    built = salvage_store(temporary, identity, identity.log_id, identity.cluster)
    require(built.intact, "{} is not whole right after it was written", temporary / BUILDING)
    require([found.key for found in built.frames] == expected, "the new journal holds other frames than were written")
    require(built.fences == {fence.partition: fence for fence in fences}, "the new journal holds other fences")


def _read(directory: Path, home: Home, key: FrameKey) -> bytes:
    number, offset, size = home.position
    path = file_path(directory, number)
    try:
        with path.open("rb") as file:
            data = read_all(file.fileno(), path, offset, size)
    except OSError as error:
        raise unreadable(error, path, offset) from error
    try:
        header = header_of(data, size)
    except ProtocolError as error:
        raise Corrupt(f"{path} at byte {offset}: {error}") from None
    if (header.partition, header.index, header.header_crc) != key:
        raise Corrupt(f"{path} at byte {offset}: another frame lies here now")
    return data
