"""The readers of one partition: subscriptions, the pages that they need, and what is sent to them (design §9).

Owns the carrying out of what ``protocol.subscriptions`` decides. It must not know the log or how sessions are numbered: it is
given `load` (how far a session may be read, in the turn in which that is known) and `page` (a page of a session out of a
store). Rules:

1. A page is asked again while no store answers, for as long as somebody waits for it. Where the session ends is asked after the
   page was read: what is committed meanwhile is not missed.
2. Whoever subscribes hears the answer before the first delivery.
3. Runs that go to many readers are packed once.
4. What waits in a connection for its peer is bounded: when the socket is full, the connection's readers fall back to history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from trilogue.actors.protocol.errors import HistoryTrimmed, InvalidRange, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Run, unpack_record
from trilogue.actors.protocol.subscriptions import (
    Blocked,
    Committed,
    Credited,
    Deliver,
    Effect,
    End,
    Freed,
    PageGone,
    PageRead,
    ReadPage,
    Subscribed,
    Subscriptions,
)
from trilogue.actors.protocol.vocabulary import DELIVER, Code, Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection, Refused, pack_item, pack_items

READ_AGAIN_S = 0.2

Page = Callable[[str, int, int, int], Awaitable[list[Any] | int]]
"""(session, after, messages, bytes) -> records, as a store sends them; the first seq that is left, if these were trimmed."""

Load = Callable[[list[str], Callable[[list[int]], None]], Awaitable[None]]
"""(sessions, what to do with the last readable seq of each, as soon as all are known)"""


class Readers:
    """All readers of one partition."""

    def __init__(self, limits: Limits, load: Load, page: Page) -> None:
        self._limits, self._load, self._page = limits, load, page
        self._subscriptions = Subscriptions(limits.page_messages_max, limits.page_bytes_max, limits.credit_bytes_max)
        self._draining: set[Connection] = set()

    @property
    def count(self) -> int:
        """How many sessions are followed; one that two readers follow counts twice."""
        return self._subscriptions.count()

    def open(self, connection: Connection, number: int, messages: int, size_bytes: int) -> None:
        """A subscription, or a further part of it, is asked for: it takes credit while what it is to follow is looked up.

        Raises `InvalidRange`.
        """
        limits, subscriptions = self._limits, self._subscriptions
        low = 0 if subscriptions.has(connection, number) else 1
        if not low <= messages <= limits.credit_messages_max or not low <= size_bytes <= limits.credit_bytes_max:
            most = f"{limits.credit_messages_max} messages and {limits.credit_bytes_max} bytes"
            raise InvalidRange(f"a credit of {messages} messages and {size_bytes} bytes: {low} to {most}")
        self._run(subscriptions.handle(Subscribed(connection, number, [], messages, size_bytes)))

    def follow(self, connection: Connection, request: int, number: int, places: list[tuple[str, int, int]]) -> None:
        """Answer SUBSCRIBE: (session, after, its last readable seq) each. Raises `InvalidRange`."""
        limits, subscriptions = self._limits, self._subscriptions
        if subscriptions.count(connection) + len(places) > limits.subscriptions_per_connection_max:
            raise InvalidRange(f"{limits.subscriptions_per_connection_max} sessions are followed at most on one connection")
        for session, _, _ in places:
            if subscriptions.is_in(connection, number, session):
                raise InvalidRange(f"subscription {number} has session {session!r} already")
        connection.reply(request, [after for _, after, _ in places])
        self._run(subscriptions.handle(Subscribed(connection, number, places, 0, 0)))

    def refuse(self, connection: Connection, request: int, number: int, code: Code, text: str) -> None:
        """Answer SUBSCRIBE with a refusal."""
        self._subscriptions.refused(connection, number)
        connection.refuse(request, code, text)

    def credit(self, connection: Connection, number: int, messages: int, size_bytes: int) -> None:
        """The reader takes that much more."""
        self._run(self._subscriptions.handle(Credited(connection, number, messages, size_bytes)))

    def forget(self, connection: Connection, number: int | None = None) -> None:
        """One subscription of the connection, or all of them, is over."""
        self._subscriptions.forget(connection, number)

    def tell(self, runs: list[Run]) -> None:
        """These runs may be read now."""
        subscriptions = self._subscriptions
        if subscriptions.empty:
            return
        followed: dict[str, list[Run]] = {}
        for run in runs:
            session = run[1]  # a plain tuple comes here
            if subscriptions.follows(session):
                followed.setdefault(session, []).append(Run._make(run))
        for of_session in followed.values():
            self._run(subscriptions.handle(Committed(of_session)))

    def _run(self, effects: Iterable[Effect]) -> None:
        packed_runs, packed = None, b""
        for effect in effects:
            if isinstance(effect, Deliver):
                connection = effect.source
                assert isinstance(connection, Connection)
                if effect.runs is not packed_runs:
                    packed_runs, packed = effect.runs, pack_item(effect.runs)
                connection.send_packed(pack_items(_DELIVER, pack_item(effect.subscriptions), packed))
                if not connection.writable and connection not in self._draining:
                    self._draining.add(connection)
                    self._subscriptions.handle(Blocked(connection))
                    spawn(self._free(connection), "a full connection")
            elif isinstance(effect, End):
                self._end(effect)
            else:
                spawn(self._read_page(effect), "page for subscriptions")

    @staticmethod
    def _end(end: End) -> None:
        connection, number, session, first_available = end
        assert isinstance(connection, Connection)
        text = str(HistoryTrimmed(session, first_available))
        connection.send([Say.ENDED, number, Code.TRIMMED, text, session, first_available])

    async def _free(self, connection: Connection) -> None:
        await connection.drained()
        self._draining.discard(connection)
        self._run(self._subscriptions.handle(Freed(connection)))

    async def _read_page(self, page: ReadPage) -> None:
        session, after = page.session, page.after
        while self._subscriptions.awaits(session, after):
            try:
                raw = await self._page(session, after, page.messages, page.size_bytes)
                if isinstance(raw, int):
                    self._run(self._subscriptions.handle(PageGone(session, after, raw)))
                    return
                runs = [run for run in map(unpack_record, raw) if isinstance(run, Run)]
                await self._load([session], partial(self._page_read, session, after, runs))
                return
            except (Unavailable, Refused):
                await asyncio.sleep(READ_AGAIN_S)
        self._subscriptions.handle(PageRead(session, after, [], after))  # nobody waits for it any more

    def _page_read(self, session: str, after: int, runs: list[Run], heads: list[int]) -> None:
        self._run(self._subscriptions.handle(PageRead(session, after, runs, heads[0])))


_DELIVER = pack_item(DELIVER)
