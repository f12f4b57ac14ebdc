"""Who waits until all that was handed over has its outcome.

Owns those who wait in `flush`. It must not know why a message was refused. Rules:

1. A flush waits for what was handed over before it, and for nothing after: it marks the last message of each lane.
2. If something that a flush waits for is refused for good, the flush raises such an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.client.sending.lanes import Lane, Waiter


class Mark:
    """Stands for a message of a lane: passes its outcome on, and tells the flushes for which it is the last one."""

    def __init__(self, lane: Lane, waiter: Waiter | None) -> None:
        self.flushes: list[tuple[Flush, int]] = []  # and how many messages of the lane had failed by then
        self._lane = lane
        self.waiter = waiter

    def done(self) -> bool:
        """It always wants to hear."""
        return False

    def set_result(self, result: Any, /) -> None:
        """This message is stored; an earlier one may have been refused."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(result)
        for flush, failures in self.flushes:
            flush.marked(self._lane.error if self._lane.failures != failures else None)

    def set_exception(self, exception: Any, /) -> None:
        """This message was refused, or the client was closed."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(exception)
        for flush, _ in self.flushes:
            flush.marked(exception)

    def exception(self) -> None:
        """As of a future: whoever waits has seen its error."""
        if isinstance(self.waiter, asyncio.Future) and not self.waiter.cancelled():
            self.waiter.exception()


class Flush:
    """Waits for all that `lanes` hold now."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._left = 0
        self._error: TrilogueError | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for lane in lanes:
            if lane.futures:
                mark = lane.futures[-1]
                if not isinstance(mark, Mark):
                    mark = lane.futures[-1] = Mark(lane, mark)
                mark.flushes.append((self, lane.failures))
                self._left += 1

    def marked(self, error: TrilogueError | None) -> None:
        """One lane is through."""
        self._error = self._error or error
        self._left -= 1
        if self._left == 0 and not self._done.done():
            self._done.set_result(None)

    async def wait(self) -> None:
        """Until all lanes are through. Raises an error, if there was one."""
        if self._left:
            await self._done
        if self._error is not None:
            raise self._error
