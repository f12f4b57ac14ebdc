"""A reader of sessions, as a program holds it.

Owns the public calls on a subscription. What is behind it stands in ``feed``. Rule: a subscription that nobody holds any more
ends; its background work does not keep it alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from trilogue.actors.protocol.errors import ClientClosed, HistoryTrimmed, UsageError
from trilogue.actors.protocol.messages import Message
from trilogue.client.reading.feed import WINDOW_MESSAGES, Feed


class Subscription:
    """Messages in seq order, each once, without a hole in any session: ``async for message in subscription``.

    Also an async context manager: with ``async with``, `after=None` means "from the moment the block is entered".
    It waits for ever while the system is unreachable; what ends it is an error that can never go away, or `aclose`.

    One such error is `HistoryTrimmed(session, first_available)`: what comes next in that session is gone. The iteration
    raises it after all that had come before, in any session, was handed on; entering a block never does. Nothing is left out
    in silence: subscribe again, with ``after=error.first_available - 1`` for that session, to go on with what is there.
    """

    def __init__(
        self,
        make: Callable[[], Feed],
        forget: Callable[[Feed], None],
        confirm: Callable[[str, int], asyncio.Future[None]] | None = None,
    ) -> None:
        self._make = make
        self._forget = forget
        self._confirm = confirm
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
        return (await self._filled()).take_one()

    async def batch(self, messages_max: int = WINDOW_MESSAGES) -> list[Message]:
        """The next messages, as many as are there: at least one. Raises `StopAsyncIteration` after `aclose`.

        For readers that are in a hurry: a batch costs what a single message does.
        """
        return (await self._filled()).take(messages_max)

    def confirm(self, message: Message | HistoryTrimmed) -> asyncio.Future[None]:
        """This message was handled, and all before it in its session: whoever subscribes with this cursor next begins after it.
        Given a `HistoryTrimmed`, all that is gone counts as handled: who subscribes next begins with what is there.

        It is written at once; confirmations that come meanwhile share the next write. Await the future to know that it is on
        disk: from then on the message is never delivered again under this cursor, crash or not. What was not confirmed is
        delivered again, so handle a message first. The future fails with `OutboxUnusable`. Raises `UsageError` for a
        subscription without a cursor.
        """
        if self._confirm is None:
            raise UsageError('there is nothing to confirm without a cursor: give subscribe(..., cursor="a name")')
        seq = message.first_available - 1 if isinstance(message, HistoryTrimmed) else message.seq
        return self._confirm(message.session, seq)

    async def _filled(self) -> Feed:
        """The feed, as soon as a message waits in it."""
        feed = self._feed
        if feed is None:
            feed = await self._start()
        while not feed.waiting:
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
        error = self._feed.error
        if error is not None and not self._feed.waiting and not isinstance(error, HistoryTrimmed):
            raise error
        return self._feed

    def _end(self) -> None:
        feed = self._feed
        if feed is not None:
            feed.drop()
            feed.close()
            self._forget(feed)

    def __del__(self) -> None:
        feed = self._feed
        if feed is not None and not self._closed and not feed.loop.is_closed():
            feed.loop.call_soon_threadsafe(feed.close)
            feed.loop.call_soon_threadsafe(self._forget, feed)
