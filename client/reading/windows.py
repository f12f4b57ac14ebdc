"""Which parts of which sessions are asked for together, and whether the answers leave a hole.

Owns the cutting of what is wanted into requests of about a page each, and the check of what came. It must not know connections,
Arrow or who waits. Pure. Rules:

1. What is handed on is exactly what was wanted: each message once, in the order of the wishes, and of seqs within each (G7).
2. Several requests may be on their way: a long span is cut into windows, each answered with the runs that *begin* in it, so a
   run comes once, though nobody knows beforehand where runs begin.
3. What was trimmed meanwhile is an error, or passed over, as the reader wishes: nothing is left out in silence.
4. A page that ends early, or with a hole, is asked for again from there; what came behind the hole is not believed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgpack

from trilogue.actors.protocol.errors import HistoryTrimmed, ProtocolError
from trilogue.actors.protocol.messages import Run, part_of, unpack_record
from trilogue.actors.protocol.vocabulary import Piece

BYTES_EACH_FIRST = 128
"""What a message is thought to take before one was seen."""


class Span(NamedTuple):
    """What is wanted of a session: its messages behind `after`, up to `upto`."""

    session: str
    after: int
    upto: int


class Window(NamedTuple):
    """A piece of a span, and where the whole span ends."""

    piece: Piece
    upto: int


class Page(NamedTuple):
    """An answer to a request."""

    runs: list[Run]
    size_bytes: int
    gone: tuple[str, int] | None  # behind these runs: of which session the next one was trimmed, and its first available seq


class Windows:
    """The plan of one reading. `page_bytes` is what a request should be answered with."""

    def __init__(self, page_bytes: int, sessions_max: int, *, passes_over_gone: bool = False) -> None:
        self._page_bytes, self._sessions_max, self._passes_over_gone = page_bytes, sessions_max, passes_over_gone
        self._spans: deque[Span] = deque()
        self._wanted = 0  # messages of the spans
        self._begun = False  # a window of the first span was given before
        self._bytes_each = float(BYTES_EACH_FIRST)
        self._next_seq = 0  # of the span that answers have come to

    @property
    def wants_more(self) -> bool:
        """Whether the spans that it has are less than a request."""
        return self._wanted < self._page_messages and len(self._spans) < self._sessions_max

    @property
    def _page_messages(self) -> int:
        return max(1, int(self._page_bytes / self._bytes_each))

    def add(self, span: Span) -> None:
        """Want this, too, behind what was added before. An empty span is none."""
        if span.upto > span.after:
            self._spans.append(span)
            self._wanted += span.upto - span.after

    def next(self) -> list[Window]:
        """What to ask for next; nothing when all was given."""
        room, asked = self._page_messages, list[Window]()
        while self._spans and len(asked) < self._sessions_max:
            session, after, upto = self._spans[0]
            count = upto - after
            if count > room and asked:
                break
            last = min(upto, after + room)
            asked.append(Window(Piece(session, after, last, not self._begun), upto))
            room -= last - after
            self._wanted -= last - after
            self._begun = last < upto
            if self._begun:
                self._spans[0] = Span(session, last, upto)
                break
            self._spans.popleft()
        return asked

    def match(self, asked: list[Window], page: Page) -> tuple[list[Run], list[Window]]:
        """What of an answer is handed on, and what of the question is to be asked again, before all else.

        Answers are given to it in the order of the questions. Raises `HistoryTrimmed`, unless it passes over what is gone.
        """
        runs = page.runs
        if messages := sum(len(run.bodies) for run in runs):
            self._bytes_each = (self._bytes_each + 3 * page.size_bytes / messages) / 4
        taken: list[Run] = []
        at = 0
        for k, (piece, upto) in enumerate(asked):
            if piece.inside:
                self._next_seq = piece.after + 1
            while at < len(runs) and runs[at].session == piece.session and runs[at].first_seq <= self._next_seq:
                run = runs[at]
                last = min(run.first_seq + len(run.bodies) - 1, upto)
                if last >= self._next_seq:
                    taken.append(part_of(run, self._next_seq, last - self._next_seq + 1))
                    self._next_seq = last + 1
                at += 1
            if self._next_seq <= piece.last:
                if at == len(runs) and page.gone is not None and page.gone[0] == piece.session:
                    self._pass_over(*page.gone)
                again = Piece(piece.session, self._next_seq - 1, piece.last, True)
                rest = [Window(again, upto)] if again.after < again.last else []
                return taken, [*rest, *asked[k + 1 :]]
        return taken, []

    def _pass_over(self, session: str, first_available: int) -> None:
        if not self._passes_over_gone:
            raise HistoryTrimmed(session, first_available)
        self._next_seq = max(self._next_seq, first_available)


def page_in(answer: object) -> Page:
    """An answer to RECORDS. Raises `ProtocolError` for anything else."""
    match answer:
        case [bytes(records), None]:
            return Page(runs_in(records), len(records), None)
        case [bytes(records), [str(session), int(first_available)]]:
            return Page(runs_in(records), len(records), (session, first_available))
    raise ProtocolError("RECORDS was answered in an unknown shape")


def runs_in(records: bytes) -> list[Run]:
    """The runs that lie one behind the other. Raises `ProtocolError` for anything else."""
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=max(len(records), 1), strict_map_key=True)
    unpacker.feed(records)
    try:
        runs = [unpack_record(item) for item in unpacker]
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a record is not msgpack: {error}") from None
    for run in runs:
        if not isinstance(run, Run):
            raise ProtocolError("RECORDS was answered with what is no run")
    return runs  # type: ignore[return-value]


def against(asked: list[Window], page: Page) -> str | None:
    """What is wrong with an answer, so that somebody else should be asked: it does not begin with what was asked for."""
    piece = asked[0].piece
    if not piece.inside:
        return None  # no run may begin in it
    first = page.runs[0] if page.runs else None
    if first is None and page.gone is not None and page.gone[0] == piece.session and page.gone[1] > piece.after + 1:
        return None
    if first is None or first.session != piece.session or not 0 <= piece.after + 1 - first.first_seq < len(first.bodies):
        return f"no record of session {piece.session!r} after {piece.after} came, though there are some up to {piece.last}"
    return None
