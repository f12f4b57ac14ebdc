"""A reader of sessions, as a program holds it.

Owns the public calls on a subscription. What is behind it stands in ``feed``. Rule: a subscription that nobody holds any more
ends; its background work does not keep it alive.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from trilogue.actors.protocol.errors import ClientClosed
from trilogue.actors.protocol.messages import Message
from trilogue.client.reading.feed import WINDOW_MESSAGES, Feed


class Subscription:
    """Messages in seq order, each once, without a hole in any session: ``async for message in subscription``.

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
        return (await self._filled()).take_one()

    async def batch(self, messages_max: int = WINDOW_MESSAGES) -> list[Message]:
        """The next messages, as many as are there: at least one. Raises `StopAsyncIteration` after `aclose`.

        For readers that are in a hurry: a batch costs what a single message does.
        """
        return (await self._filled()).take(messages_max)

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
        if self._feed.error is not None and not self._feed.waiting:
            raise self._feed.error
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
