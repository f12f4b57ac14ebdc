"""Numbers that were given up, on their way to the outbox's file, and out of it.

Owns which numbers the next commit writes, who waits for which commit, and what the file holds of them. It must not know SQLite,
threads, deadlines or why a message was given up. Rules:

1. A number is written in the commit that holds its message, or in a later one: a number that the file does not hold may be
   given to another message by the next process.
2. Whoever waits is told when that commit has returned; one that failed fails all.
3. When the file says that a lane's numbers are settled, those below leave it in the same commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.client.outbox.sqlite import LaneRow, NumberRow
from trilogue.client.sending.lanes import Lane

Tell = Callable[[TrilogueError | None], None]


class GivenUpNumbers:
    """Those of one outbox. A place is a number plus its lane's `shift`: it stays when the lane is numbered anew."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Lane, int, Tell]] = []
        self._under_way: list[Tell] = []
        self._in_file: dict[tuple[str, str, str], int] = {}  # the highest of each lane

    @property
    def due(self) -> bool:
        """Whether there is something to write."""
        return bool(self._waiting)

    def add(self, lane: Lane, n: int, tell: Tell) -> None:
        """Write this number with one of the next commits, and say so."""
        self._waiting.append((lane, n + lane.shift, tell))

    def found(self, rows: Iterable[NumberRow]) -> None:
        """The file holds these."""
        for session, sender, outbox_id, n in rows:
            key = (session, sender, outbox_id)
            self._in_file[key] = max(n, self._in_file.get(key, 0))

    def take(self, saving: Mapping[Lane, int]) -> tuple[NumberRow, ...]:
        """What the commit that begins now writes; it saves so many messages of each lane."""
        rows: list[NumberRow] = []
        waiting, self._waiting = self._waiting, []
        for lane, place, tell in waiting:
            n = place - lane.shift
            if n < lane.first_n:
                continue  # it has its outcome, which was told
            if n < lane.first_n + lane.saved + saving.get(lane, 0):
                rows.append((lane.session, lane.sender, lane.outbox_id, n))
                self._under_way.append(tell)
            else:
                self._waiting.append((lane, place, tell))
        self.found(rows)
        return tuple(rows)

    def settled(self, lanes: Iterable[LaneRow]) -> tuple[NumberRow, ...]:
        """What leaves the file with these rows."""
        rows: list[NumberRow] = []
        for session, sender, outbox_id, next_n, _ in lanes if self._in_file else ():
            key = (session, sender, outbox_id)
            if key in self._in_file:
                rows.append((*key, next_n))
                if self._in_file[key] < next_n:
                    del self._in_file[key]
        return tuple(rows)

    def committed(self, error: TrilogueError | None) -> None:
        """The commit that was begun last returned; or nothing is written any more."""
        told, self._under_way = self._under_way, []
        if error is not None:
            told += [tell for _, _, tell in self._waiting]
            self._waiting = []
        for tell in told:
            tell(error)
