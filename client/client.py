"""The client: one outbox, one set of connections, one event loop.

Owns the public calls and how the parts are put together. What is decided stands elsewhere: numbers in ``lanes`` and
``outbox``, submissions in ``flow``, answers in ``answers``, readers in ``reading`` and ``subscription``. It must not know the
wire's shapes.
Invariant: between `post` and its outcome a message is in its lane, and counted in the outbox, exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Iterable
from time import time_ns
from types import TracebackType
from typing import Any

from trilogue.actors.protocol.errors import (
    ClientClosed,
    MessageTooLarge,
    Overloaded,
    TrilogueError,
    Unavailable,
    Unsent,
    UsageError,
)
from trilogue.actors.protocol.ids import check_sender, check_session
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import Ack, Message
from trilogue.client.connections import Connections
from trilogue.client.discovery import find
from trilogue.client.flushing import Flush, Mark
from trilogue.client.lanes import MESSAGE_OVERHEAD_BYTES, Lane, Waiter
from trilogue.client.outbox_shell import FileShell, MemoryShell
from trilogue.client.reading import SEQ_MAX, Reading, check_count
from trilogue.client.routes import Routes
from trilogue.client.subscription import Feed, Subscription

_NOT_OPEN = "this client is not open yet: use `async with Client(...) as client:`"
_CLOSED = "this client was closed: open a new one"
REACH_AGAIN_AFTER_S = 0.1


class Client:
    """Sends to sessions and reads them: ``async with Client(sender="alice", outbox="alice.db") as client: …``.

    `sender` is the name under which `send` and `post` speak unless a call says otherwise. `outbox` is a file that holds what
    is not acked yet, across crashes of this process (G10); without one it is held in memory. `address` ("host:port", several
    separated by commas) and `token` say where the system is; without them it is found as design §10 says.

    Entering raises `OutboxInUse`, `OutboxUnusable`, `NotAuthorized`, and `Unavailable` when no system was found; with an
    outbox file the system need only be *named*: messages wait in the file until it answers. A client is used in the event loop
    in which it was entered.
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
        if sender is not None:
            check_sender(sender)
        self._sender = sender
        self._path = os.fspath(outbox) if outbox is not None else None
        self._address, self._token = address, token
        self._limits = limits
        self._close_timeout_s, self._connect_timeout_s = close_timeout_s, connect_timeout_s
        self._size_bytes_max = limits.body_bytes_max + MESSAGE_OVERHEAD_BYTES
        self._messages_max, self._bytes_max = limits.outbox_messages_max, limits.outbox_bytes_max
        self._open = False
        self._shut = False
        self._woken = False
        self._use(MemoryShell(limits, self._wake))
        self._connections: Connections | None = None
        self._feeds: set[Feed] = set()
        self._drainers: list[asyncio.Future[None]] = []

    # ------------------------------------------------------------------ sending

    def post(self, session: str, body: bytes, *, sender: str | None = None) -> asyncio.Future[Ack]:
        """Hand `body` over for `session`, at once; the future is the Ack.

        The message has its number when this returns: one sender's messages in one session are stored in the order of the
        calls (G4), each once (G5). Cancelling the future only stops the waiting. `body` is bytes; a bytearray or memoryview
        is copied. The future fails with `ConflictingRetry` or `ProofOfLoss` if the system finds such a thing, with
        `ClientClosed` or `Unsent` when the client ends first; it never times out.

        Raises `InvalidSession`, `InvalidSender`, `MessageTooLarge`, `TypeError` (a str: call ``.encode()``) and `Overloaded`
        (the outbox is full: await `drain`); then nothing was handed over.
        """
        future: asyncio.Future[Ack] = self._loop.create_future() if self._open else self._refuse_use()
        self.hand_over(session, body, sender, future)
        return future

    async def send(self, session: str, body: bytes, *, sender: str | None = None) -> Ack:
        """As `post`, and wait for the Ack. Cancelling this only stops the waiting: the message is sent all the same."""
        return await self.post(session, body, sender=sender)

    async def drain(self) -> None:
        """Wait until there is room for a message of any size; after having been full, until the outbox is half empty."""
        self._check_open()
        outbox = self._outbox
        if outbox.messages < self._messages_max and outbox.bytes + self._size_bytes_max <= self._bytes_max:
            return
        while not outbox.roomy:
            future = self._loop.create_future()
            self._drainers.append(future)
            await future

    async def saved(self) -> None:
        """Wait until all that was handed over so far is in the outbox's file, on disk (G10). Raises `OutboxUnusable`."""
        self._check_open()
        await self._shell.saved()

    async def flush(self) -> None:
        """Wait until all that was handed over so far is acked, what a former process left in the file included.

        Raises the error of a message that was refused for good (its own future has it, too), when all others are acked.
        """
        self._check_open()
        if self._outbox.messages:
            await Flush(self._outbox.lanes.values()).wait()

    @property
    def waiting(self) -> int:
        """How many messages were handed over and not acked yet, those of a former process included."""
        return self._outbox.messages

    @property
    def conflicts(self) -> list[str]:
        """What became of messages of a former process that were refused for good: one line each, the newest 1000."""
        return list(self._outbox.conflicts)

    @property
    def trouble(self) -> str:
        """One line that says why messages do not go out now; empty when nothing is known to be wrong."""
        return self._connections.trouble if self._connections is not None else _NOT_OPEN

    # ------------------------------------------------------------------ reading

    async def history(self, session: str, after: int = 0, limit: int = 100, last: int | None = None) -> list[Message]:
        """The session's messages after seq `after`, at most `limit`, in order and without a hole; `last=50`: the newest 50.

        Fewer than asked for means that there are no more. Never behind what this client's acks have shown. Raises
        `InvalidSession`, `InvalidRange`, and `Unavailable` when the system does not answer for a while.
        """
        return await self._reader().history(session, after, limit, last)

    async def heads(self, sessions: Iterable[str]) -> dict[str, int]:
        """The last seq of each session, 0 where there is none. Raises as `history` does."""
        return await self._reader().heads(sessions)

    def subscribe(self, session: str, after: int | None = 0) -> Subscription:
        """The session's messages after seq `after`, then those to come; `after=None`: only those to come.

        ``async for message in client.subscribe(…)``; in an ``async with`` it ends with the block.
        Raises `InvalidSession` and `InvalidRange`.
        """
        check_session(session)
        if after is not None:
            check_count("after", after, 0, SEQ_MAX)
        self._check_open()
        return Subscription(lambda: self._feed(session, after), self._feeds.discard)

    # ------------------------------------------------------------------ opening and closing

    async def __aenter__(self) -> Client:
        if self._shut:
            raise ClientClosed(_CLOSED)
        if self._open:
            raise UsageError("this client is open already: share it, or make another one")
        self._loop = asyncio.get_running_loop()
        try:
            await self._start()
        except BaseException:
            self._shut = True
            await self._end()
            raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except TrilogueError as unsent:
            if error is None:
                raise
            error.add_note(f"and when the client closed: {unsent}")

    async def close(self) -> None:
        """Wait for at most `close_timeout_s` until everything is acked, then end. May be called again.

        What is still not acked stays in the outbox's file; with an outbox in memory, `Unsent` is raised.
        """
        if not self._open:
            return
        self._open, self._shut = False, True
        self._outbox.cache.clear()
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_exception(ClientClosed(_CLOSED))
        left = 0
        try:
            if self._outbox.messages:
                with contextlib.suppress(TimeoutError, TrilogueError):
                    async with asyncio.timeout(self._close_timeout_s):
                        await Flush(self._outbox.lanes.values()).wait()
        finally:
            left = await self._end()
        if left and not self._outbox.durable:
            raise Unsent(left)

    async def _start(self) -> None:
        if self._path is not None:
            shell = FileShell(self._limits, self._wake, self._pump)
            await shell.open(self._path)
            self._use(shell)
        found = await find(self._address, self._token)
        routes = Routes(found, lambda: find(self._address, self._token), self._limits)
        self._connections = Connections(routes, self._outbox, self._limits, random.random, self._on_settled)
        self._reading = Reading(self._connections, self._limits)
        await self._reach(routes)
        for lane in self._outbox.lanes.values():
            self._connections.route(lane)
        self._connections.learn()

    async def _reach(self, routes: Routes) -> None:
        """See that the system answers. With a file one round is enough: what is handed over waits there."""
        deadline = self._loop.time() + self._connect_timeout_s
        why = "no answer"
        while (left := deadline - self._loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await routes.refresh()
                return
            except (Unavailable, TimeoutError) as error:
                why = str(error) or why
            if self._outbox.durable:
                return
            await asyncio.sleep(REACH_AGAIN_AFTER_S)
        text = f"the system that {routes.source} names did not answer within {self._connect_timeout_s:g} s: {why}"
        raise Unavailable(f"{text} See `trilogue status`, or give outbox=FILE to have messages sent later")

    async def _end(self) -> int:
        """End everything that runs; return how many messages had no outcome."""
        for feed in list(self._feeds):
            feed.close(ClientClosed(_CLOSED))
        self._feeds.clear()
        if self._connections is not None:
            await self._connections.close()
        try:
            await self._shell.close()
        finally:
            left = self._outbox.messages
            for waiter in self._outbox.fail_rest():
                if isinstance(waiter, asyncio.Future | Mark):
                    waiter.exception()  # `close` raises it, or the file holds the message: nobody needs to be reminded
        return left

    # ------------------------------------------------------------------ inside

    def _use(self, shell: MemoryShell | FileShell) -> None:
        self._shell = shell
        self._outbox = shell.outbox
        self._cache = shell.outbox.cache

    def hand_over(self, session: str, body: bytes, sender: str | None, future: Waiter) -> None:
        """The hot path of `post`, for any kind of future: check, number, count, and see that this turn of the loop sends it."""
        try:
            lane = self._cache.get((session, sender))
        except TypeError:  # a session that cannot be hashed is no str
            lane = None
        if lane is None:
            lane = self._lane(session, sender)
        if type(body) is not bytes:
            body = _as_bytes(body)
        size = len(body) + MESSAGE_OVERHEAD_BYTES
        outbox = self._outbox
        if size > self._size_bytes_max or outbox.messages >= self._messages_max or outbox.bytes + size > self._bytes_max:
            self.check_room(0, 0, len(body))
        outbox.messages += 1
        outbox.bytes += size
        lane.bodies.append(body)
        lane.times.append(time_ns() // 1000)
        lane.futures.append(future)
        lane.size_bytes += size
        if not lane.dirty:
            lane.dirty = True
            outbox.dirty.append(lane)
            if not self._woken:
                self._woken = True
                self._loop.call_soon(self._flush_once)

    def check_room(self, more_messages: int, more_bytes: int, body_bytes: int) -> None:
        """Raise `MessageTooLarge`, or `Overloaded` if the outbox and `more` beside it leave no room for the body."""
        if body_bytes > self._limits.body_bytes_max:
            text = f"a body of {body_bytes} bytes: {self._limits.body_bytes_max} at most"
            raise MessageTooLarge(f"{text}; send it in parts or keep it elsewhere")
        messages = self._outbox.messages + more_messages
        size = self._outbox.bytes + more_bytes + more_messages * MESSAGE_OVERHEAD_BYTES
        if messages >= self._messages_max or size + body_bytes + MESSAGE_OVERHEAD_BYTES > self._bytes_max:
            text = f"the outbox is full: {messages} messages, {size} bytes"
            raise Overloaded(f"{text}; await client.drain(), then hand it over again")

    def check(self, session: str, body: bytes, sender: str | None) -> bytes:
        """The body as bytes. Raises what is wrong with names and types; may be called in any thread."""
        try:
            known = (session, sender) in self._cache
        except TypeError:
            known = False
        if not known:
            check_session(session)
            self._name(sender)
        return body if type(body) is bytes else _as_bytes(body)

    def _lane(self, session: str, sender: str | None) -> Lane:
        """The lane that a call names, for the first time; the next call finds it in the cache."""
        self._check_open()
        outbox = self._outbox
        if outbox.failed is not None:
            raise type(outbox.failed)(*outbox.failed.args)
        check_session(session)
        name = self._name(sender)
        new = (session, name) not in outbox.lanes
        lane = outbox.lane(session, name)
        if lane.stopped is not None:
            raise type(lane.stopped)(*lane.stopped.args)
        if new and self._connections is not None:
            self._connections.route(lane)
        self._cache[(session, sender)] = lane
        return lane

    def _name(self, sender: str | None) -> str:
        """Under which name a call speaks."""
        if sender is not None:
            return check_sender(sender)
        if self._sender is None:
            raise UsageError("nobody is named as the sender: give Client(sender=NAME), or sender=NAME in the call")
        return self._sender

    def _feed(self, session: str, after: int | None) -> Feed:
        self._check_open()
        assert self._connections is not None
        feed = Feed(session, after, self._connections, self._reading, random.random)
        self._feeds.add(feed)
        return feed

    def _reader(self) -> Reading:
        self._check_open()
        return self._reading

    def _check_open(self) -> None:
        if not self._open:
            self._refuse_use()

    def _refuse_use(self) -> Any:
        if self._shut:
            raise ClientClosed(_CLOSED)
        raise UsageError(_NOT_OPEN)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._flush_once)

    def _flush_once(self) -> None:
        """Once in a turn of the event loop: what was handed over in it goes to the outbox, and on to the connections."""
        self._woken = False
        self._outbox.save()
        self._pump()

    def _pump(self) -> None:
        if self._connections is not None:
            self._connections.pump()

    def _on_settled(self) -> None:
        """Answers came: whoever waits for room may go on."""
        if self._drainers and self._outbox.roomy:
            drainers, self._drainers = self._drainers, []
            for drainer in drainers:
                if not drainer.done():
                    drainer.set_result(None)


def _as_bytes(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    if isinstance(body, str):
        raise TypeError("a body is bytes, not str: call body.encode()")
    raise TypeError(f"a body is bytes, not {type(body).__name__}: encode it first")
