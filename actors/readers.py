"""The readers of one partition: subscriptions, the pages that they need, and what is sent to them (design §9).

Owns the carrying out of what ``protocol.subscriptions`` decides. It must not know the log or how sessions are numbered: it is
given `head` (a session's last readable seq) and `page` (a page of a session out of a store). Rules:

1. A page is asked again while no store answers, for as long as its reader is there.
2. Whoever subscribes hears the answer before the first delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from trilogue.actors.protocol.errors import InvalidRange, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Run, unpack_record
from trilogue.actors.protocol.subscriptions import (
    Committed,
    Credited,
    Deliver,
    Effect,
    PageRead,
    ReadPage,
    Subscribed,
    Subscriptions,
)
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection

READ_AGAIN_S = 0.2


class Readers:
    """All readers of one partition."""

    def __init__(
        self, limits: Limits, head: Callable[[str], int], page: Callable[[str, int, int], Awaitable[list[Any]]]
    ) -> None:
        self._limits, self._head, self._page = limits, head, page
        self._subscriptions = Subscriptions(limits.history_messages_max)

    @property
    def count(self) -> int:
        """How many subscriptions there are."""
        return self._subscriptions.count()

    def subscribe(self, connection: Connection, request: int, number: int, session: str, after: int, credit: int) -> None:
        """Answer SUBSCRIBE. Raises `InvalidRange`."""
        if not 0 < credit <= self._limits.credit_messages_max:
            raise InvalidRange(f"a credit of {credit} messages: 1 to {self._limits.credit_messages_max}")
        if self._subscriptions.session_of(connection, number):
            raise InvalidRange(f"subscription {number} exists on this connection: take another number")
        if self._subscriptions.count(connection) >= self._limits.subscriptions_per_connection_max:
            raise InvalidRange(f"{self._limits.subscriptions_per_connection_max} subscriptions on one connection")
        connection.reply(request, after)
        event = Subscribed(connection, number, session, after, credit, self._head(session))
        self._run(self._subscriptions.handle(event))

    def credit(self, connection: Connection, number: int, messages: int) -> None:
        """The reader takes that many more."""
        head = self._head(self._subscriptions.session_of(connection, number))
        self._run(self._subscriptions.handle(Credited(connection, number, messages, head)))

    def forget(self, connection: Connection, number: int | None = None) -> None:
        """One subscription of the connection, or all of them, is over."""
        self._subscriptions.forget(connection, number)

    def tell(self, runs: list[Run]) -> None:
        """These runs may be read now."""
        if self._subscriptions.empty:
            return
        for run in runs:
            if self._subscriptions.follows(run[1]):
                self._run(self._subscriptions.handle(Committed(Run._make(run))))

    def _run(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                assert isinstance(effect.source, Connection)
                effect.source.send([Say.DELIVER, effect.subscription, effect.runs])
            else:
                spawn(self._read_page(effect), "page for a subscription")

    async def _read_page(self, effect: ReadPage) -> None:
        connection = effect.source
        assert isinstance(connection, Connection)
        while not connection.closed:
            await connection.drained()
            try:
                head = self._head(effect.session)
                raw = await self._page(effect.session, effect.after, min(effect.limit, head - effect.after))
            except Unavailable:
                await asyncio.sleep(READ_AGAIN_S)
                continue
            runs = [run for run in map(unpack_record, raw) if isinstance(run, Run)]
            head = self._head(effect.session)
            page = PageRead(effect.source, effect.subscription, effect.session, effect.after, runs, head)
            self._run(self._subscriptions.handle(page))
            return
