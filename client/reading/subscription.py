"""One reader of one session: what is delivered, in order, without a hole, as fast as the reader takes it.

Owns the subscription at the SessionActor and the messages that wait for the reader. The order is the inbox's. It must not
know lanes or routes. Rules:

1. The reader gets each seq once, in order (G7), across lost connections and moved partitions: the next SUBSCRIBE starts after
   the last seq that was received in order.
2. What the SessionActor may still send and what waits here are together at most `CREDIT_MESSAGES`.
3. A subscription that nobody holds any more ends: its background work does not keep it alive.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from trilogue.actors.protocol.errors import ClientClosed, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.messages import Message, Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.backoff import reconnect_after_s
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.link import Link
from trilogue.client.reading.inbox import Inbox
from trilogue.client.reading.pages import Reading, runs_of
from trilogue.client.sending.refusals import error_of, has_moved, is_final

CREDIT_MESSAGES = 1024
_numbers = itertools.count(1)


class Feed:
    """The work behind a `Subscription`: keeps it alive at whichever SessionActor has the session."""

    def __init__(
        self, session: str, after: int | None, connections: Connections, reading: Reading, jitter: Callable[[], float]
    ) -> None:
        self.session = session
        self.buffer: deque[Message] = deque()
        self.error: TrilogueError | None = None
        self.changed = asyncio.Event()  # for the reader: a message, or the end
        self.started = asyncio.Event()
        self._connections = connections
        self._reading = reading
        self._jitter = jitter
        self._inbox = Inbox(after, CREDIT_MESSAGES) if after is not None else None
        self._before: list[Run] = []  # came before it was known after which seq
        self._outstanding = 0  # the credit that the SessionActor has left
        self._link: Link | None = None
        self._connection: Connection | None = None
        self._number = 0
        self._over = False  # this subscription's number has ended: subscribe anew
        self._work = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=f"trilogue-subscription-{session}")

    # ------------------------------------------------------------------ the reader's side

    def top_up(self) -> None:
        """Give the SessionActor as much credit as there is room, if that is much."""
        room = CREDIT_MESSAGES - self._outstanding - len(self.buffer)
        if room >= CREDIT_MESSAGES // 2 and not self._over and self._connection is not None:
            self._outstanding += room
            self._connection.send([Say.CREDIT, self._number, room])

    def close(self, error: TrilogueError | None = None) -> None:
        """End it. With an error, the reader gets that after what still waits."""
        self.error = self.error or error
        self._task.cancel()
        self._leave()
        self.started.set()
        self.changed.set()

    # ------------------------------------------------------------------ the link's side

    def delivered(self, raw: list[Any]) -> None:
        """Committed runs came."""
        runs = runs_of(self.session, raw)
        self._outstanding -= sum(len(run.bodies) for run in runs)
        if self._inbox is None:
            self._before += runs
        else:
            self._take(runs)

    def ended(self, code: int, text: str) -> None:
        """Nothing more comes under this number: for good, or until it is asked for anew."""
        if is_final(code):
            self._fail(error_of(code, text))
        elif self._link is not None and has_moved(code):
            self._link.move(self._connection, text)
        self.lost()

    def lost(self) -> None:
        """The connection is gone."""
        self._over = True
        self._connection = None
        self._work.set()

    # ------------------------------------------------------------------ the work

    def _take(self, runs: list[Run]) -> None:
        assert self._inbox is not None
        messages = self._inbox.add(runs)
        if messages:
            self.buffer.extend(messages)
            self._connections.heads.note(self.session, messages[-1].seq)
            self.changed.set()
        if self._inbox.missing is not None:
            self._work.set()
        self.top_up()

    def _fail(self, error: TrilogueError) -> None:
        self.error = error
        self.started.set()
        self.changed.set()

    async def _run(self) -> None:
        attempt = 0
        while self.error is None:
            try:
                if await self._subscribe():
                    attempt = 0
                    await self._follow()
            except Unavailable:
                pass  # it is tried again for ever: a reader has no deadline
            except ProtocolError as error:
                self._fail(error)
            self._leave()
            await asyncio.sleep(reconnect_after_s(attempt, self._jitter()))
            attempt += 1

    async def _subscribe(self) -> bool:
        """Ask for what follows the last seq that was received in order. False: refused for now."""
        self._link = link = await self._connections.link_of(self.session, math.inf)
        self._connection = connection = await link.readable(math.inf)
        self._number = number = next(_numbers)
        self._over = False
        self._outstanding = max(CREDIT_MESSAGES - len(self.buffer), 1)
        self._before = []
        link.readers[number] = self
        after = self._inbox.at if self._inbox is not None else None
        try:
            started_after = await link.request(connection, Say.SUBSCRIBE, number, self.session, after, self._outstanding)
        except Refused as refused:
            if is_final(refused.code):
                self._fail(error_of(refused.code, refused.text))
            elif has_moved(refused.code):
                link.move(connection, refused.text)
            return False
        if self._inbox is None:
            if type(started_after) is not int or started_after < 0:
                raise ProtocolError(f"SUBSCRIBE was answered with {started_after!r} instead of a seq")
            self._inbox = Inbox(started_after, CREDIT_MESSAGES)
        self.started.set()
        self._take(self._before)
        return True

    async def _follow(self) -> None:
        """Until the connection or the subscription's number has ended: ask for what is missing."""
        assert self._inbox is not None
        while not self._over:
            missing = self._inbox.missing
            if missing is None:
                await self._work.wait()
                self._work.clear()
                continue
            after, upto = missing
            runs, _ = await self._reading.page(self.session, after, upto - after)
            self._take(runs)

    def _leave(self) -> None:
        link, connection, number = self._link, self._connection, self._number
        if link is not None:
            link.readers.pop(number, None)
        if connection is not None and not self._over:
            connection.send([Say.UNSUBSCRIBE, number])
        self._over = True
        self._connection = None


class Subscription:
    """A session's messages in seq order, each once, without a hole: ``async for message in subscription``.

    Also an async context manager: with ``async with``, `after=None` means "from the moment the block is entered".
    It waits for ever while the system is unreachable; what ends it is an error that can never go away, or `aclose`.
    """

    def __init__(self, make: Callable[[], Feed], forget: Callable[[Feed], None]) -> None:
        self._make = make
        self._forget = forget
        self._feed: Feed | None = None
        self._closed = False

    async def __aenter__(self) -> Subscription:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        feed = await self._filled()
        message = feed.buffer.popleft()
        feed.top_up()
        return message

    async def batch(self, messages_max: int = CREDIT_MESSAGES) -> list[Message]:
        """The next messages, as many as are there: at least one. Raises `StopAsyncIteration` after `aclose`."""
        feed = await self._filled()
        taken = [feed.buffer.popleft() for _ in range(min(len(feed.buffer), messages_max))]
        feed.top_up()
        return taken

    async def _filled(self) -> Feed:
        """The feed, as soon as a message waits in it."""
        feed = self._feed
        if feed is None:
            feed = await self._start()
        while not feed.buffer:
            if self._closed:
                raise StopAsyncIteration
            if feed.error is not None:
                raise feed.error
            feed.changed.clear()
            await feed.changed.wait()
        return feed

    async def aclose(self) -> None:
        """End it: nothing more is delivered. May be called again."""
        self._closed = True
        self._end()

    async def _start(self) -> Feed:
        if self._closed:
            raise ClientClosed("this subscription was closed: call subscribe again")
        if self._feed is None:
            self._feed = self._make()
        await self._feed.started.wait()
        if self._feed.error is not None and not self._feed.buffer:
            raise self._feed.error
        return self._feed

    def _end(self) -> None:
        feed = self._feed
        if feed is not None:
            feed.buffer.clear()
            feed.close()
            self._forget(feed)

    def __del__(self) -> None:
        feed = self._feed
        if feed is not None and not self._closed and not feed.loop.is_closed():
            feed.loop.call_soon_threadsafe(feed.close)
            feed.loop.call_soon_threadsafe(self._forget, feed)
