"""The client for plain code: the same client, in an event loop of its own thread.

Owns the thread and the hand-over between threads. It must not know anything of sending or reading: `Client` does all of it.
Invariants: posts of one thread are handed over in their order; a post that returned is in the client's outbox or in the queue
before it, and both together obey the outbox's bounds.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from trilogue.actors.protocol.errors import ClientClosed, HistoryTrimmed, TrilogueError, UsageError
from trilogue.actors.protocol.ids import check_key
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import Ack, Message
from trilogue.client.client import Client
from trilogue.client.connecting.presence import ClientState
from trilogue.client.reading.following import SYNC_BATCH_MESSAGES, Sessions, some
from trilogue.client.reading.subscription import Subscription
from trilogue.client.sending.giving_up import check_deadline

if TYPE_CHECKING:
    import pyarrow

Result = TypeVar("Result")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class SyncClient:
    """As `Client`, for code without an event loop: ``with SyncClient(sender="alice") as client: client.send(…)``.

    May be used from several threads. `post` returns a `concurrent.futures.Future`; it can be cancelled as long as it was not
    taken over by the client's thread.
    """

    def __init__(
        self,
        sender: str | None = None,
        *,
        outbox: str | os.PathLike[str] | None = None,
        address: str | None = None,
        token: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        close_timeout_s: float = 10.0,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._client = Client(
            sender,
            outbox=outbox,
            address=address,
            token=token,
            limits=limits,
            close_timeout_s=close_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._queue: list[tuple[str, bytes, str | None, Future[Ack], str | None, float | None, float]] = []
        self._queued_bytes = 0

    # ------------------------------------------------------------------ sending

    def post(
        self, session: str, body: bytes, *, sender: str | None = None, deadline_s: float | None = None, key: str | None = None
    ) -> Future[Ack]:
        """As `Client.post`: at once, and raising the same."""
        loop = self._running()
        if deadline_s is not None:
            check_deadline(deadline_s)
        if key is not None:
            check_key(key)
        body = self._client._desk.check(session, body, sender)
        future: Future[Ack] = Future()
        key_bytes = len(key.encode()) if key is not None else 0
        with self._lock:
            self._client._desk.check_room(len(self._queue), self._queued_bytes, len(body), key_bytes)
            at = monotonic() if deadline_s is not None else 0.0
            self._queue.append((session, body, sender, future, key, deadline_s, at))
            self._queued_bytes += len(body) + key_bytes
            if len(self._queue) == 1:
                loop.call_soon_threadsafe(self._take)
        return future

    def send(
        self, session: str, body: bytes, *, sender: str | None = None, deadline_s: float | None = None, key: str | None = None
    ) -> Ack:
        """As `Client.send`. An interrupt only stops the waiting."""
        return self.post(session, body, sender=sender, deadline_s=deadline_s, key=key).result()

    def cancel(self, future: Future[Ack]) -> bool:
        """As `Client.cancel`."""

        async def cancel() -> bool:
            deadlines = self._client._deadlines
            return deadlines is not None and deadlines.cancel(future)

        return self._call(cancel)

    def drain(self) -> None:
        """As `Client.drain`."""
        self._call(self._client.drain)

    def saved(self) -> None:
        """As `Client.saved`."""
        self._call(self._client.saved)

    def flush(self) -> None:
        """As `Client.flush`."""
        self._call(self._client.flush)

    @property
    def waiting(self) -> int:
        """As `Client.waiting`."""
        with self._lock:
            return self._client.waiting + len(self._queue)

    @property
    def conflicts(self) -> list[str]:
        """As `Client.conflicts`."""
        return self._client.conflicts

    @property
    def state(self) -> ClientState:
        """As `Client.state`."""
        return self._client.state._replace(waiting=self.waiting)

    def states(self) -> Iterator[ClientState]:
        """As `Client.states`, for ``for state in …``: it waits for the next change."""
        states = self._client.states()

        async def following() -> ClientState | None:
            return await anext(states, None)

        while not self._closed:
            try:
                state = self._call(following)
            except (ClientClosed, CancelledError, RuntimeError):
                if self._client._desk.is_shut:
                    return  # its loop ended meanwhile
                raise
            if state is None:
                return
            yield state

    @property
    def trouble(self) -> str:
        """As `Client.trouble`."""
        return self._client.trouble

    # ------------------------------------------------------------------ reading

    def history(self, session: str, after: int = 0, limit: int = 100, last: int | None = None) -> list[Message]:
        """As `Client.history`."""
        return self._call(lambda: self._client.history(session, after, limit, last))

    def table(self, session: str, after: int = 0, limit: int | None = None) -> pyarrow.Table:
        """As `Client.table`."""
        return self._call(lambda: self._client.table(session, after, limit))

    def heads(self, sessions: Iterable[str]) -> dict[str, int]:
        """As `Client.heads`."""
        return self._call(lambda: self._client.heads(sessions))

    def trim(self, session: str, *, before: int) -> int:
        """As `Client.trim`."""
        return self._call(lambda: self._client.trim(session, before=before))

    def subscribe(self, sessions: Sessions, after: int | None = 0, *, cursor: str | None = None) -> SyncSubscription:
        """As `Client.subscribe`, for ``for message in …`` and ``with …``."""

        async def subscribe() -> Subscription:
            return self._client.subscribe(sessions, after, cursor=cursor)

        return SyncSubscription(self._call(subscribe), self._call)

    def sync(self, cursors: Mapping[str, int]) -> Iterator[Message]:
        """As `Client.sync`, for ``for message in …``."""
        messages = self._client.sync(cursors)
        while True:
            batch, error = self._call(lambda: some(messages, SYNC_BATCH_MESSAGES))
            yield from batch
            if error is not None:
                raise error
            if not batch:
                return

    # ------------------------------------------------------------------ opening and closing

    def __enter__(self) -> SyncClient:
        if self._closed:
            raise ClientClosed("this client was closed: open a new one")
        if self._thread is not None:
            raise UsageError("this client is open already: share it, or make another one")
        opened: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="trilogue-client", daemon=True)
        self._thread.start()
        try:
            self._loop = opened.result()
        except BaseException:
            self._closed = True
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except TrilogueError as unsent:
            if error is None:
                raise
            error.add_note(f"and when the client closed: {unsent}")

    def close(self) -> None:
        """As `Client.close`."""
        if self._closed or self._loop is None or self._thread is None:
            return
        loop, thread = self._loop, self._thread
        try:
            self._call(self._close)
        finally:
            self._closed = True
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    # ------------------------------------------------------------------ inside

    def _run(self, opened: Future[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            try:
                runner.run(self._live(opened))
            except BaseException as error:
                if opened.done():
                    raise
                opened.set_exception(error)

    async def _live(self, opened: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        await self._client.__aenter__()
        opened.set_result(asyncio.get_running_loop())
        await self._stop.wait()

    async def _close(self) -> None:
        self._take()
        await self._client.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise ClientClosed("this client was closed: open a new one")
        if self._loop is None:
            raise UsageError("this client is not open yet: use `with SyncClient(...) as client:`")
        return self._loop

    def _call(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run `work()` in the client's loop, after all that was posted before, and wait for it."""
        loop = self._running()
        if threading.current_thread() is self._thread:
            raise UsageError("this would wait for itself: inside an event loop's callback use Client, not SyncClient")

        async def run() -> Result:
            self._take()
            return await work()

        future = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _take(self) -> None:
        """In the client's loop: hand over what was posted."""
        with self._lock:
            queue, self._queue, self._queued_bytes = self._queue, [], 0
            for session, body, sender, future, key, deadline_s, at in queue:
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    lane = self._client._desk.hand_over(session, body, sender, future, key)
                    if deadline_s is not None and self._client._deadlines is not None:
                        self._client._deadlines.watch(lane, future, deadline_s, monotonic() - at)
                except Exception as error:
                    future.set_exception(error)


class SyncSubscription:
    """As `Subscription`, for plain code: an iterator that waits, and a context manager."""

    def __init__(self, subscription: Subscription, call: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._subscription = subscription
        self._call = call
        self._taken: deque[Message] = deque()

    def __enter__(self) -> SyncSubscription:
        self._call(self._subscription.__aenter__)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if not self._taken:
            self._taken.extend(self._call(self._next))
            if not self._taken:
                raise StopIteration
        return self._taken.popleft()

    def confirm(self, message: Message | HistoryTrimmed) -> None:
        """As `Subscription.confirm`, and wait until it is on disk. One call for the last of many messages will do for all."""

        async def confirm() -> None:
            await self._subscription.confirm(message)

        self._call(confirm)

    def close(self) -> None:
        """End it. May be called again."""
        self._taken.clear()
        try:
            self._call(self._subscription.aclose)
        except ClientClosed:
            return  # it ended with its client

    async def _next(self) -> list[Message]:
        try:
            return await self._subscription.batch()
        except StopAsyncIteration:
            return []
