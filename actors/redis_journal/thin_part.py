"""Writing a part of a log on a server anew, without the bodies of messages that are gone: so the server's memory and disk get
their space back (issue 4).

Owns the part's entries, from the first that is read until all that are changed have taken their places. It must not know which
messages are gone, nor when there is time. Rules:

1. A part is the entries that begin in a stretch of offsets; nothing is appended to it any more.
2. A thin frame takes the place of the frame's own entry, at the same offset. What follows stays where it is: the header in it
   tells how far the next entry is, and is the one that the chain of headers goes over (``replay``).
3. What was filled in below a partition's base stays as it came: a FILL has no such header inside. If it went bad, what a peer
   sent takes its place, in whatever size (`refilled`).
4. All that is changed goes out at once, and is on the server's disk before any place changes. Whoever is interrupted leaves
   each entry whole or thin, and every CRC in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from trilogue.actors.journal import Position
from trilogue.actors.journal.thin_file import Moves, Thin
from trilogue.actors.protocol.errors import Corrupt, ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES
from trilogue.actors.protocol.thinning import FLAG_THIN, header_of, is_thin, placed
from trilogue.actors.redis_journal.layout import WALK, Keys, call, rewrite
from trilogue.actors.redis_journal.link import Command
from trilogue.actors.redis_journal.replay import holds_fill, refilled, step_of

_ANY_BYTES: Final = 1 << 33
PAGE_BYTES: Final = 256 * 1024

Ask = Callable[[bytes, Command], Any]
"""Asks the node of a key. Raises `Unavailable`."""
Change = Callable[[bytes, list[Command]], None]
"""The same for changes: all are on its disk when this returns, or none was made (`Unavailable`)."""


class ThinPart:
    """One part that is being written anew. `write` does it a little at a time; then `freed_bytes` says what `take_place` is
    worth, or `give_up`."""

    def __init__(
        self, keys: Keys, partition: int, start: int, end: int, owner: str, ask: Ask, change: Change, thin: Thin,
        instead: Mapping[int, tuple[int, bytes]],
    ) -> None:  # fmt: skip
        """The entries from offset `start` to before `end`. `instead`: offset -> the old size of an entry that cannot be read,
        and the frame that is to stand there."""
        self.file = partition
        self.moves = Moves()
        self.freed_bytes = 0
        self._keys, self._start, self._end, self._owner = keys, start, end, owner
        self._ask, self._change, self._thin, self._instead = ask, change, thin, instead
        self._changed: list[tuple[int, bytes, bytes]] = []  # (offset, what lies there, what is to lie there)

    def write(self) -> Iterator[None]:
        """Find out what is to be left of each entry. Raises `Corrupt` (what cannot be read) or `Unavailable`."""
        at = self._start
        while at < self._end:
            entries = self._ask(self._keys.log, call(WALK, (self._keys.log,), at, self._end, PAGE_BYTES))
            if not entries:
                raise Corrupt(f"no entry lies at byte {at} of the log of partition {self.file}")
            for entry in entries:
                was, at = at, at + self._take(at, entry)
                if was in self._instead or was + HEADER_BYTES in self._instead:
                    break  # the server may not know how far the next one is
            yield

    def take_place(self) -> None:
        """Let what is left take the places. Raises `Unavailable` (nothing was changed) or `JournalBroken` (some may be)."""
        self._change(self._keys.log, [rewrite(self._keys, self._owner, *change) for change in self._changed])

    def give_up(self) -> None:
        """Leave everything as it is."""
        self._changed.clear()

    def _take(self, offset: int, entry: bytes) -> int:
        """Decide on one entry; how far the next one is."""
        try:
            if offset + HEADER_BYTES in self._instead:  # no record is so short that another one could begin there
                return self._refill(offset, entry)
            if offset in self._instead:
                size, left = self._instead[offset]
                header = header_of(left, _ANY_BYTES)
            elif entry[6] not in (0, FLAG_THIN) or holds_fill(entry):
                return step_of(entry)
            else:
                size = len(entry)
                header = header_of(entry, _ANY_BYTES)
                left = self._thin(header.partition, header.index, Position(self.file, offset, size), entry)
        except ProtocolError as error:
            raise Corrupt(f"the log of partition {self.file} is damaged at byte {offset}: {error}") from None
        if left is not entry:
            left = placed(left, self.file, offset) if is_thin(left) else left
            self._changed.append((offset, entry, left))
            self.freed_bytes += size - len(left)
            self.moves.add(header.partition, header.index, offset, offset, len(left))
        return header.frame_bytes

    def _refill(self, offset: int, entry: bytes) -> int:
        place = offset + HEADER_BYTES
        _, frame = self._instead[place]
        header = header_of(frame, _ANY_BYTES)
        left = refilled(entry, frame, self.file, offset)
        self._changed.append((offset, entry, left))
        self.freed_bytes += len(entry) - len(left)
        self.moves.add(header.partition, header.index, place, place, len(frame))
        return step_of(left)
