"""An outbox and what it needs from the world: randomness, its thread, its timer, its end.

Owns opening and closing an outbox of either kind. It must not know connections, nor how the outbox decides. Invariant: after
`close`, the file is unlocked, and nothing in it has its outcome already.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

from trilogue.actors.protocol.errors import TrilogueError, UsageError
from trilogue.actors.protocol.limits import Limits
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.outbox.thread import OutboxThread

TIDY_AFTER_S = 1.0


def fresh_id() -> str:
    """A random 128-bit outbox id, in hex digits."""
    return secrets.token_hex(16)


class MemoryShell:
    """An outbox in memory needs nothing."""

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        self.outbox = Outbox(limits, fresh_id, wake)

    async def saved(self) -> None:
        """There is no file."""
        raise UsageError("this client's outbox is in memory, so nothing is ever saved: give Client(outbox=FILE)")

    async def close(self) -> None:
        """Nothing to end."""


class FileShell:
    """An outbox in a file. `on_saved` is called when messages may be submitted."""

    def __init__(self, limits: Limits, wake: Callable[[], None], on_saved: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_saved = on_saved
        self._thread = OutboxThread(fresh_id, self._committed)
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self.outbox = FileOutbox(limits, fresh_id, wake, self._thread.commit, self._tidy_soon)

    async def open(self, path: str) -> None:
        """Open the file and take over what is in it. Raises `OutboxInUse` or `OutboxUnusable`."""
        stored = await self._thread.open(path)
        try:
            self.outbox.restore(self._thread.path, stored)
        except BaseException:
            await self._thread.close()
            raise

    async def saved(self) -> None:
        """Until all that was handed over so far is in the file. Raises `OutboxUnusable`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.outbox.when_saved(partial(_settle, future))
        await future

    async def cursors(self, name: str) -> dict[str, int]:
        """What the reader of that name has confirmed, by session. Raises `OutboxUnusable`."""
        return await self._thread.cursors(name)

    def confirm(self, name: str, session: str, seq: int) -> asyncio.Future[None]:
        """The reader of that name has handled everything up to `seq`: the future is done when the file says so, too."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.outbox.confirm(name, session, seq, partial(_settle, future))
        return future

    async def close(self) -> None:
        """Commit what is due and close the file. Raises `OutboxUnusable` when the disk failed."""
        outbox = self.outbox
        try:
            while not outbox.idle:
                self._quiet = self._loop.create_future()
                outbox.save()
                outbox.tidy()
                await self._quiet
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._thread.close()

    def _committed(self, error: TrilogueError | None) -> None:
        self.outbox.committed(error)
        self._on_saved()
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _tidy_soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TIDY_AFTER_S, self._tidy)

    def _tidy(self) -> None:
        self._timer = None
        self.outbox.tidy()


def _settle(future: asyncio.Future[None], error: TrilogueError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(type(error)(*error.args))
        future.exception()  # nobody has to wait for it
