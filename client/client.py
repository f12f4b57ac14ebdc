"""The client: one outbox, one set of connections, one event loop.

Owns the public calls and how the parts are put together. What is decided stands elsewhere: what is taken in ``desk``,
numbers in ``lanes`` and ``outbox``, submissions in ``flow``, answers in ``answers``, readers in ``pages`` and
``following``. It must not know the wire's shapes.
Invariant: between `post` and its outcome a message is in its lane, and counted in the outbox, exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from trilogue.actors.protocol.errors import (
    ClientClosed,
    TrilogueError,
    Unavailable,
    Unsent,
    UsageError,
)
from trilogue.actors.protocol.ids import check_key
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import Ack, Message
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.dialing import Dialer
from trilogue.client.connecting.discovery import find
from trilogue.client.connecting.presence import ClientState, Presence
from trilogue.client.connecting.routes import Routes
from trilogue.client.outbox.shell import FileShell, MemoryShell
from trilogue.client.reading.following import Following, Sessions
from trilogue.client.reading.pages import Reading
from trilogue.client.reading.subscription import Subscription
from trilogue.client.sending.deadlines import Deadlines
from trilogue.client.sending.desk import CLOSED, NOT_OPEN, Desk
from trilogue.client.sending.flushing import Flush, Mark
from trilogue.client.sending.giving_up import check_deadline

if TYPE_CHECKING:
    import pyarrow

    from trilogue.client.reading.tables import Tables

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
        for name, seconds in (("close_timeout_s", close_timeout_s), ("connect_timeout_s", connect_timeout_s)):
            if not seconds >= 0:
                raise UsageError(f"{name}={seconds!r}: give 0 or more seconds")
        self._desk = Desk(sender, limits)
        self._path = os.fspath(outbox) if outbox is not None else None
        self._address, self._token = address, token
        self._limits = limits
        self._close_timeout_s, self._connect_timeout_s = close_timeout_s, connect_timeout_s
        self._shell: MemoryShell | FileShell = MemoryShell(limits, self._desk.wake)
        self._outbox = self._shell.outbox
        self._presence = Presence(lambda: self._outbox.messages, NOT_OPEN)
        self._connections: Connections | None = None
        self._following: Following | None = None
        self._deadlines: Deadlines | None = None
        self._tables: Tables | None = None

    # ------------------------------------------------------------------ sending

    def post(
        self, session: str, body: bytes, *, sender: str | None = None, deadline_s: float | None = None, key: str | None = None
    ) -> asyncio.Future[Ack]:
        """Hand `body` over for `session`, at once; the future is the Ack.

        The message has its number when this returns: one sender's messages in one session are stored in the order of the
        calls (G4), each once (G5). Cancelling the future only stops the waiting. `body` is bytes; a bytearray or memoryview
        is copied. The future fails with `ConflictingRetry` or `ProofOfLoss` if the system finds such a thing, and with
        `ClientClosed` or `Unsent` when the client ends first.

        Without `deadline_s` it never times out. With it, a message that has no answer after so many seconds is given up: it
        is never sent again, by no process. Was it never sent, the future fails with `GivenUp` at once: it is not stored. Was
        it on its way, that is settled first, for at most a second more: the future is the Ack if it had been stored after
        all; it fails with `GivenUp`, whose `may_be_stored` is false if it is certain that it is not stored, and true if
        nobody answered (0 or 1 copies). Later messages of the sender follow in any case. The deadline is this process's: what
        a crash leaves in the outbox's file is sent by the next one, unless it had been given up.

        `key` is the caller's own id of the request, for those that may hand a message over twice: in this session, for 24
        hours of the log's time, the second one is not stored. Its Ack has the original's seq and `duplicate`, whatever client
        or sender it comes from. With another body under the same key the future fails with `ConflictingKey`, and nothing is
        stored.

        Raises `InvalidSession`, `InvalidSender`, `InvalidRange`, `InvalidKey`, `MessageTooLarge`, `TypeError` (a str: call
        ``.encode()``) and `Overloaded` (the outbox is full: await `drain`); then nothing was handed over.
        """
        if not self._desk.is_open:
            self._desk.check_open()
        if deadline_s is not None:
            check_deadline(deadline_s)
        if key is not None:
            check_key(key)
        future: asyncio.Future[Ack] = self._loop.create_future()
        lane = self._desk.hand_over(session, body, sender, future, key)
        if deadline_s is not None and self._deadlines is not None:
            self._deadlines.watch(lane, future, deadline_s)
        return future

    async def send(
        self, session: str, body: bytes, *, sender: str | None = None, deadline_s: float | None = None, key: str | None = None
    ) -> Ack:
        """As `post`, and wait for the Ack. Cancelling this only stops the waiting: the message is sent all the same."""
        if not self._desk.is_open:
            self._desk.check_open()
        if deadline_s is not None:
            check_deadline(deadline_s)
        if key is not None:
            check_key(key)
        future: asyncio.Future[Ack] = self._loop.create_future()
        lane = self._desk.hand_over(session, body, sender, future, key, awaited=True)
        if deadline_s is not None and self._deadlines is not None:
            self._deadlines.watch(lane, future, deadline_s)
        return await future

    def cancel(self, future: asyncio.Future[Ack]) -> bool:
        """Give up the message that `post` gave this future for, if it was never sent.

        True: it is not stored and never will be, and the future fails with `GivenUp`, as soon as the outbox's file says so,
        too. False: it was sent, or has its outcome, and nothing is changed (``future.cancel()`` would only stop the waiting).
        """
        self._desk.check_open()
        return self._deadlines is not None and self._deadlines.cancel(future)

    async def drain(self) -> None:
        """Wait until there is room for a message of any size; after having been full, until the outbox is half empty."""
        self._desk.check_open()
        await self._desk.drain()

    async def saved(self) -> None:
        """Wait until all that was handed over so far is in the outbox's file, on disk (G10). Raises `OutboxUnusable`."""
        self._desk.check_open()
        await self._shell.saved()

    async def flush(self) -> None:
        """Wait until all that was handed over so far is acked, what a former process left in the file included.

        Raises the error of a message that was refused for good (its own future has it, too), when all others are acked.
        """
        self._desk.check_open()
        if self._outbox.messages:
            await Flush(self._outbox.lanes.values()).wait()

    @property
    def waiting(self) -> int:
        """How many messages were handed over and have no outcome yet, those of a former process included. One that was given up
        counts until its number is a skip in the log."""
        return self._outbox.messages

    @property
    def conflicts(self) -> list[str]:
        """What became of messages of a former process that were refused for good: one line each, the newest 1000."""
        return list(self._outbox.conflicts)

    @property
    def state(self) -> ClientState:
        """How this client stands with the system: `standing` ("online", "connecting" or "offline"), `since_s` (Unix time, for
        show), `waiting` (messages without an outcome) and `trouble` (one line).

        Online: nothing is known to be wrong with the partitions that it uses. Connecting: something is, for less than two
        seconds, or somebody of the system is reached. Offline: nobody is. A connection that died without a word is noticed
        within 6 s when something is outstanding on it, and within 14 s when it is idle.
        """
        return self._presence.state

    def states(self) -> AsyncGenerator[ClientState, None]:
        """``async for state in client.states(): …``: the state now, and again whenever its standing or trouble changes.

        Who is slow sees the newest state, not each one. A change of `waiting` alone is none. It ends with the client.
        """
        return self._presence.watch()

    @property
    def trouble(self) -> str:
        """One line that says why messages do not go out now; empty when nothing is known to be wrong."""
        return self._connections.trouble if self._connections is not None else NOT_OPEN

    # ------------------------------------------------------------------ reading

    async def history(self, session: str, after: int = 0, limit: int = 100, last: int | None = None) -> list[Message]:
        """The session's messages after seq `after`, at most `limit`, in order and without a hole; `last=50`: the newest 50.

        Fewer than asked for means that there are no more. Never behind what this client's acks have shown. Raises
        `InvalidSession`, `InvalidRange`, and `Unavailable` when the system does not answer for a while.

        Raises `HistoryTrimmed` when the message after `after` is gone, or one further on goes while this reads; then nothing is
        returned. ``after=error.first_available - 1`` begins with what is there. `last` never raises it: of the newest, those
        that are there are returned.
        """
        return await self._reader().history(session, after, limit, last)

    async def table(self, session: str, after: int = 0, limit: int | None = None) -> pyarrow.Table:
        """The session's messages after seq `after`, in order and without a hole, as a `pyarrow.Table`; at most `limit`.

        Columns: session, seq, sender, sender_id, n, sent_at and stored_at (timestamps, µs, UTC), body (binary); names are
        dictionary-encoded. It is read in pages of about a MiB up to the session's head at the time of the call, and built
        column by column: it takes the memory of what was asked for. Raises as `history` does.
        """
        return await self._by_columns().table(session, after, limit)

    async def heads(self, sessions: Iterable[str]) -> dict[str, int]:
        """The last seq of each session, 0 where there is none. Raises as `history` does."""
        return await self._reader().heads(sessions)

    async def trim(self, session: str, *, before: int) -> int:
        """Let the session's messages below seq `before` go, for good; return the first seq that is there now.

        When this returns, nobody reads them any more, after no fault either: who asks for one of them gets
        `HistoryTrimmed`. Seqs go on where they were, and a retry of a message that is gone is still answered with its seq
        (G5). The stores give their disk space back by and by. ``before=last_seq + 1`` lets all of them go. What was trimmed
        further than that before stays so: then the answer is above `before`.

        Raises `InvalidSession`, `InvalidRange` for a `before` above the last seq + 1 (nothing was changed), and
        `Unavailable` when the system does not answer for a while: then it may have been done, now or a little later. Doing
        it again is harmless.
        """
        return await self._reader().trim(session, before)

    def subscribe(self, sessions: Sessions, after: int | None = 0, *, cursor: str | None = None) -> Subscription:
        """The session's messages after seq `after`, then those to come; `after=None`: only those to come.

        ``async for message in client.subscribe(…)``; in an ``async with`` it ends with the block. A mapping `{session: after}`
        follows many sessions in one subscription, tens of thousands if need be: in order in each session, in no order between
        them. However many they are, 8192 messages or 4 MiB wait here for the reader at most: one that is slow is fed from
        history, and loses nothing. With `cursor="name"`, what the reader has confirmed (`Subscription.confirm`) is kept in
        the outbox's file; once there is such a cursor for a session, it says where to begin, and `after` does not.
        Raises `InvalidSession`, `InvalidRange`, and `UsageError` for a cursor without an outbox file. The iteration raises
        `HistoryTrimmed` where the next message of a session is gone (see `Subscription`).
        """
        return self._readers().subscribe(sessions, after, cursor)

    def sync(self, cursors: Mapping[str, int]) -> AsyncGenerator[Message, None]:
        """What was missed: of each session the messages after the given seq, up to its head at the time of the call.

        ``async for message in client.sync({"room-42": 17, …})``: in order in each session, in no order between them, and then
        it ends. Costs one question for the heads of all sessions, and then only those with news. The mapping is not changed:
        note what you got, and a call that was cut short goes on from there. Raises as `heads` does.

        Raises `HistoryTrimmed` at the end when what was missed of some sessions is gone, wholly or in part: of all others
        everything was handed on. For each of ``error.gone``, session and first available seq, put that seq less one into the
        mapping, and call it again: it goes on with what is there of them.
        """
        return self._readers().sync(cursors)

    # ------------------------------------------------------------------ opening and closing

    async def __aenter__(self) -> Client:
        if self._desk.is_shut:
            raise ClientClosed(CLOSED)
        if self._desk.is_open:
            raise UsageError("this client is open already: share it, or make another one")
        self._loop = asyncio.get_running_loop()
        try:
            await self._start()
        except BaseException:
            self._desk.is_shut = True
            await self._end()
            raise
        self._desk.is_open = True
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
        if not self._desk.is_open:
            return
        self._desk.shut()
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
        desk = self._desk
        if self._path is not None:
            shell = FileShell(self._limits, desk.wake, lambda: desk.pump())
            await shell.open(self._path)
            self._shell, self._outbox = shell, shell.outbox
        desk.use(self._outbox)
        self._deadlines = Deadlines(self._outbox, desk.wake)
        found = await find(self._address, self._token)
        self._presence.begin()
        routes = Routes(found, lambda: find(self._address, self._token), Dialer(self._limits, random.random))
        self._connections = Connections(routes, self._outbox, self._limits, random.random, desk.on_settled, self._presence)
        desk.route, desk.pump = self._connections.route, self._connections.pump
        self._reading = Reading(self._connections, self._limits)
        keeper = self._shell if isinstance(self._shell, FileShell) else None
        self._following = Following(self._connections, self._reading, self._limits, desk.check_open, keeper)
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
        raise Unavailable(f"{text}; see `trilogue status`, or give outbox=FILE to have messages sent later")

    async def _end(self) -> int:
        """End everything that runs; return how many messages had no outcome."""
        if self._deadlines is not None:
            self._deadlines.close()
        if self._following is not None:
            self._following.close(ClientClosed(CLOSED))
        if self._tables is not None:
            self._tables.close()
        if self._connections is not None:
            await self._connections.close()
        self._presence.end(CLOSED)
        try:
            await self._shell.close()
        finally:
            left = self._outbox.messages - self._outbox.given_up
            for waiter in self._outbox.fail_rest():
                if isinstance(waiter, asyncio.Future | Mark):
                    waiter.exception()  # `close` raises it, or the file holds the message: nobody needs to be reminded
        return left

    # ------------------------------------------------------------------ inside

    def _reader(self) -> Reading:
        self._desk.check_open()
        return self._reading

    def _by_columns(self) -> Tables:
        self._desk.check_open()
        if self._tables is None:
            from trilogue.client.reading.tables import Tables  # Arrow takes a moment to load

            assert self._connections is not None
            self._tables = Tables(self._connections, self._reading, self._limits)
        return self._tables

    def _readers(self) -> Following:
        self._desk.check_open()
        assert self._following is not None
        return self._following
