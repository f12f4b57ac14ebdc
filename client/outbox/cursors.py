"""What readers have confirmed, on its way to the outbox's file.

Owns the seqs that the next commit writes, and who waits for which commit. It must not know SQLite, threads or subscriptions.
Rules:

1. A cursor never goes back: of two confirmations of one session under one name, the higher one is written.
2. Whoever waits is told when the commit that holds its confirmation, or a higher one, has returned; one that failed fails all.
"""

from __future__ import annotations

from collections.abc import Callable

from trilogue.actors.protocol.errors import TrilogueError

CursorRow = tuple[str, str, int]  # name, session, the last confirmed seq
Tell = Callable[[TrilogueError | None], None]


class Cursors:
    """Confirmations of one outbox."""

    def __init__(self) -> None:
        self._seqs: dict[tuple[str, str], int] = {}
        self._waiting: list[Tell] = []
        self._under_way: list[Tell] = []

    @property
    def due(self) -> bool:
        """Whether there is something to write."""
        return bool(self._seqs)

    def confirm(self, name: str, session: str, seq: int, tell: Tell) -> None:
        """Everything up to `seq` was handled; `tell` is called when that is on disk, or cannot be."""
        key = (name, session)
        self._seqs[key] = max(seq, self._seqs.get(key, 0))
        self._waiting.append(tell)

    def take(self) -> tuple[CursorRow, ...]:
        """What the commit that begins now writes."""
        seqs, self._seqs = self._seqs, {}
        self._under_way, self._waiting = self._waiting, []
        return tuple((name, session, seq) for (name, session), seq in seqs.items())

    def committed(self) -> None:
        """The commit that was begun last returned."""
        told, self._under_way = self._under_way, []
        for tell in told:
            tell(None)

    def failed(self, error: TrilogueError) -> None:
        """The disk failed: nothing more is written."""
        told, self._under_way, self._waiting = [*self._under_way, *self._waiting], [], []
        self._seqs.clear()
        for tell in told:
            tell(error)
