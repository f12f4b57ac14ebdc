"""Histories as tables: pages of records, several on their way, into Arrow.

Owns the asking, a few pages ahead of who takes them. It must not know how requests are cut (``windows``) nor what a column is
(``columns``). Imported when the first table is asked for: Arrow takes a moment to load. Rules:

1. `PAGES_AHEAD` requests are on their way, and what they brought waits to be taken: that is all that is in memory here.
2. What is given ends where the session's head was when it was asked for: readers are never ahead of what is committed.
3. Pages come from a store, not through the partition's SessionActor: who reads a million messages holds no writer up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.ids import check_session, partition_of
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.holders import Holder, Stores
from trilogue.client.reading.columns import SCHEMA, Columns
from trilogue.client.reading.pages import SEQ_MAX, Reading, check_count
from trilogue.client.reading.windows import Page, Span, Window, Windows, against, page_in

if TYPE_CHECKING:
    from trilogue.client.client import Client

PAGES_AHEAD = 4
PAGE_SHARE = 4
"""The part of what a page may hold that is asked for: few pages end before what was asked for does."""


class Stretch(NamedTuple):
    """A session, the first of its messages that can be read, and the last one."""

    session: str
    first_seq: int
    last_seq: int


class _Asked(NamedTuple):
    windows: list[Window]
    answer: asyncio.Task[Page]


class Tables:
    """What one client reads by columns."""

    def __init__(self, connections: Connections, reading: Reading, limits: Limits) -> None:
        self._connections, self._reading, self._limits = connections, reading, limits
        self._stores = Stores(connections.routes, limits)

    def close(self) -> None:
        """End what was opened to read."""
        self._stores.close()

    async def table(self, session: str, after: int, limit: int | None) -> pa.Table:
        """As `Client.table`."""
        check_session(session)
        check_count("after", after, 0, SEQ_MAX)
        if limit is not None:
            check_count("limit", limit, 1, SEQ_MAX)
        head = (await self._reading.heads([session]))[session]
        upto = head if limit is None else min(head, after + limit)
        partition = partition_of(session, await self.partitions())
        columns = Columns()
        parts = []
        async for runs in self.runs(self.holder(partition), _each([Span(session, after, upto)])):
            for run in runs:
                columns.take(run)
            parts.append(columns.cut())
        return pa.Table.from_batches([columns.batch(part) for part in parts], SCHEMA)

    async def partitions(self) -> int:
        """How many partitions there are."""
        return await self._connections.learned(self._connections.deadline())

    @property
    def cluster(self) -> str:
        """The system's id; known when `partitions` is."""
        return self._connections.routes.cluster or ""

    async def heads(self, sessions: list[str]) -> dict[str, int]:
        """As `Client.heads`."""
        return await self._reading.heads(sessions)

    def holder(self, partition: int, host: str | None = None) -> Holder:
        """A store of the partition to read from; what is committed when it is first asked is what can be read."""
        return Holder(self._connections, self._stores, partition, host)

    async def sessions(self, holder: Holder, above: str = "") -> AsyncGenerator[Stretch, None]:
        """The sessions of a partition that have messages, in the order of their names, from behind `above` on.

        A session that begins meanwhile is told of or not; one that was there is told of, with at least what it had.
        """
        behind: str | None = above
        page: list[Stretch] = []

        def accept(answer: Any) -> str | None:
            nonlocal behind
            match answer:
                case [list(items), str(next_above)] if not next_above or next_above > (behind or ""):
                    if all(type(item) is list and [*map(type, item)] == [str, int, int] for item in items):
                        page[:] = [Stretch(*item) for item in items]
                        behind = next_above or None
                        return None
            raise ProtocolError("SESSIONS was answered in an unknown shape")

        while behind is not None:
            await holder.ask(accept, Say.SESSIONS, behind)
            for stretch in page:
                yield stretch

    async def runs(
        self, holder: Holder, spans: AsyncIterator[Span], *, passes_over_gone: bool = False
    ) -> AsyncGenerator[list[Run], None]:
        """The runs of all spans, sessions of the holder's partition, in order: about a page at a time.

        Raises `HistoryTrimmed` when some are gone, unless it passes over them.
        """
        limits = self._limits
        page_bytes = limits.history_bytes_max // PAGE_SHARE
        plan = Windows(page_bytes, limits.records_sessions_max, passes_over_gone=passes_over_gone)
        asked: deque[_Asked] = deque()
        ahead, is_more = 1, True
        try:
            while True:
                while len(asked) < ahead:
                    while is_more and plan.wants_more:
                        span = await anext(spans, None)
                        is_more = span is not None
                        if span is not None:
                            plan.add(span)
                    if not (windows := plan.next()):
                        break
                    asked.append(_ask(holder, windows))
                if not asked:
                    return
                windows, answer = asked.popleft()
                taken, rest = plan.match(windows, await answer)
                if rest:
                    asked.appendleft(_ask(holder, rest))
                ahead = PAGES_AHEAD  # it is known now how large messages are
                if taken:
                    yield taken
        finally:
            for one in asked:
                one.answer.cancel()
            await asyncio.gather(*(one.answer for one in asked), return_exceptions=True)


def _ask(holder: Holder, windows: list[Window]) -> _Asked:
    return _Asked(windows, asyncio.create_task(_page(holder, windows), name="trilogue-records"))


async def _page(holder: Holder, windows: list[Window]) -> Page:
    pages: list[Page] = []

    def accept(answer: Any) -> str | None:
        pages[:] = [page_in(answer)]
        return against(windows, pages[0])

    await holder.ask(accept, Say.RECORDS, [[*window.piece] for window in windows])
    return pages[0]


def tables_of(client: Client) -> Tables:
    """What an open client reads by columns: for who reads whole partitions."""
    return client._by_columns()


async def _each(spans: Iterable[Span]) -> AsyncIterator[Span]:
    for span in spans:
        yield span
