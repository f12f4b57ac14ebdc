"""The one thread that waits for the outbox's disk.

Owns that thread and the open file in it. It must not know what is committed, or why. Invariants: jobs run one after another,
in the order in which they were given; every job's end is told in the event loop; the thread ends when the file is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from trilogue.actors.protocol.errors import OutboxUnusable, TrilogueError
from trilogue.client.outbox.sqlite import Commit, OutboxFile, Stored

Job = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]


class OutboxThread:
    """Runs the file's jobs. `on_committed(error)` is called in the loop after each commit."""

    def __init__(self, fresh_id: Callable[[], str], on_committed: Callable[[TrilogueError | None], None]) -> None:
        self.path = ""
        self._fresh_id = fresh_id
        self._on_committed = on_committed
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._file: OutboxFile | None = None
        self._thread = threading.Thread(target=self._run, name="trilogue-outbox", daemon=True)

    async def open(self, path: str) -> Stored:
        """Open the file and read all of it. Raises `OutboxInUse` or `OutboxUnusable`."""
        self._thread.start()
        try:
            stored: Stored = await self._call(lambda: self._open(path))
        except BaseException:
            self._jobs.put(None)
            raise
        return stored

    def commit(self, commit: Commit) -> None:
        """Commit in the thread; `on_committed` is called when it returned."""
        assert self._file is not None
        file = self._file
        self._jobs.put((lambda: file.commit(commit), self._committed))

    async def cursors(self, name: str) -> dict[str, int]:
        """What the reader of that name has confirmed, by session. Raises `OutboxUnusable`."""
        file = self._file
        assert file is not None
        found: dict[str, int] = await self._call(lambda: file.cursors(name))
        return found

    async def close(self) -> None:
        """Close the file and end the thread. Raises `OutboxUnusable` when the disk fails at the last moment."""
        file = self._file
        if file is not None:
            self._file = None
            try:
                await self._call(file.close)
            finally:
                self._jobs.put(None)

    def _open(self, path: str) -> Stored:
        file = OutboxFile(path, self._fresh_id)
        try:
            stored = file.load()
        except BaseException:
            with contextlib.suppress(OutboxUnusable):
                file.close()
            raise
        self._file = file
        self.path = file.path
        return stored

    def _committed(self, _: Any, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, TrilogueError):
            error = OutboxUnusable(f"the outbox {self.path} failed: {type(error).__name__}: {error}; look at its disk")
        self._on_committed(error)

    async def _call(self, work: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def finished(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put((work, finished))
        return await asyncio.shield(future)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, tell = job
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(tell, result, error)
            except RuntimeError:
                return  # the loop was closed without closing the client: the lock ends with the process
