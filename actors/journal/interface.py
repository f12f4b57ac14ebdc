"""What a store needs of its journal, whether that lies in files or on a server.

Owns the list of it, and nothing that does it: ``journal.Journal`` and ``redis_journal.RedisJournal`` do. Whoever appends is
told only when all of it is durable; positions are the journal's own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trilogue.actors.journal.files import Buffer
from trilogue.actors.journal.identity import Identity
from trilogue.actors.journal.records import FenceRecord, FillRecord, JoinRecord, Position
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.journal.thin_file import Moves, Thin

Record = FenceRecord | JoinRecord | FillRecord
"""What is appended beside frames."""

Part = tuple[int, int]
"""A part of a journal, which is written anew as a whole: (the `file` of its positions, which of that file's parts)."""


class Anew(Protocol):
    """A part that is being written anew: `write` a little at a time, then `take_place` or `give_up`."""

    file: int
    """Of its positions."""
    moves: Moves
    """Where its frames lie, once it has taken its place."""
    freed_bytes: int

    def write(self) -> Iterator[None]:
        """Do all but the last step. Raises `Corrupt`, `OSError` or `Unavailable`; then `give_up`."""
        ...

    def take_place(self) -> None:
        """The last step. Raises as `write` does, when nothing happened, or `JournalBroken`, when that is not known."""
        ...

    def give_up(self) -> None:
        """Leave everything as it is."""
        ...


class InPlace(Protocol):
    """One stored frame, read again and written again where it lies. Any thread may call these."""

    def check_in_place(self, position: Position, key: FrameKey) -> None:
        """Raise `Corrupt` unless the frame `key` lies at `position`."""
        ...

    def rewrite_in_place(self, position: Position, key: FrameKey, frame: bytes) -> None:
        """Write `frame` where it was stored before.

        Raises `ProtocolError` (it is not that frame), `Corrupt` (not written), or `JournalBroken`.
        """
        ...


class StoreJournal(InPlace, Protocol):
    """An open journal. One thread appends; any thread reads."""

    directory: Path
    """Where the store keeps what is derived from it."""
    identity: Identity
    full: bool
    fdatasyncs: int
    freed_bytes: int
    """By parts that were written anew; of files: since it was opened."""

    @property
    def incarnation(self) -> int:
        """How often this store began, or lost what it may have promised."""
        ...

    def append(self, entries: Sequence[Buffer | Record]) -> list[Position]:
        """Make all of it durable, in this order; where each lies. Raises `JournalFull` or `JournalBroken`."""
        ...

    def read(self, position: Position) -> bytes:
        """The frame at `position`, checked again. Raises `Corrupt`, or `Unavailable` when it cannot be asked for now."""
        ...

    def read_row(self, positions: Sequence[Position]) -> list[bytes]:
        """As `read`, for frames that lie one behind the other."""
        ...

    def read_part(self, position: Position, offset: int, size: int, crc: int) -> bytes:
        """A part of the frame at `position`, checked against the CRC that it had in the verified frame."""
        ...

    def closed_files(self) -> range:
        """The numbers of files that do not grow any more, and may be summarised."""
        ...

    @property
    def part_bytes(self) -> int:
        """About how large a part is."""
        ...

    def part_of(self, position: Position) -> Part:
        """In which part a frame lies."""
        ...

    def is_closed(self, part: Part) -> bool:
        """Whether nothing is appended to it any more: only then it may be written anew."""
        ...

    def size_of(self, part: Part) -> int:
        """How large a closed part is, or was."""
        ...

    def is_far_behind(self, position: Position) -> bool:
        """Whether a whole part was written since then."""
        ...

    def written_anew(self, part: Part, thin: Thin, instead: Mapping[int, tuple[int, bytes]]) -> Anew:
        """A closed part, to be written anew without what is gone. `instead`: offset -> how many bytes there are a frame that
        cannot be read, and the frame."""
        ...

    def bytes_free(self) -> int | None:
        """How much more there is room for; None where nothing bounds it."""
        ...

    def reason_to_end(self) -> str:
        """Why the journal must be opened anew by another process; empty for most of the time. Any thread may ask; may block."""
        ...

    def status(self) -> dict[str, Any]:
        """What people may want to know of it."""
        ...
