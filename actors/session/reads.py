"""What readers ask a SessionActor for: pages of a history, newest seqs, subscriptions, trims, stores to read from (design §9).

Owns the checks of these requests and their answers. It must not know how sessions are numbered: how far one may be read it is
told (`Wanted`), whether the session was in memory or not. Rules:

1. Nothing is shown above what is committed; what lies below comes out of a store. Who reads much is told which stores hold all
   of it, and how far it is committed, and asks them: writers are not held up by it.
2. A subscription begins in the turn in which its sessions' last seqs are known, right after its answer: no run slips between.
   It takes credit from the moment on at which it is asked for: a client gives more before it has the answer.
3. At most `loads_at_once_max` requests wait for cold sessions at any time, each for at most `subscribe_sessions_max`; others
   queue behind them, but for those whose sessions are in memory.
4. A page that begins with a trimmed message is answered with where the session begins now. The newest messages are those that
   are there. A trim is answered when it is committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from trilogue.actors.protocol.errors import InvalidRange, InvalidSession, ProtocolError, Unavailable, UsageError
from trilogue.actors.protocol.ids import check_session
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import TRIM, Floor, Trim
from trilogue.actors.protocol.submissions import Wanted
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.pump import spawn
from trilogue.actors.server import answer_later
from trilogue.actors.session.readers import Page, Readers
from trilogue.actors.wire import Connection

T = TypeVar("T")

Note = Callable[[Trim | Floor], Awaitable[None]]
"""Put it into the log; done when it is committed."""


class Reads:
    """The readers' half of a SessionActor. `want` passes a wish on to the sequencer; its waiter is called with the heads."""

    def __init__(
        self,
        limits: Limits,
        readers: Readers,
        owns: Callable[[str], bool],
        is_hot: Callable[[str], bool],
        want: Callable[[Wanted], None],
        page: Page,
        note: Note,
        holders: Callable[[int], list[Any] | None],
    ) -> None:
        self._limits, self._readers, self._want, self._page, self._note = limits, readers, want, page, note
        self._holders = holders
        self._owns, self._is_hot = owns, is_hot
        self._loading = asyncio.Semaphore(limits.loads_at_once_max)
        self._beginning: set[tuple[Connection, int, int]] = set()  # subscriptions whose sessions are being looked up

    def on_request(self, connection: Connection, say: int, request: int, arguments: list[Any]) -> None:
        """Answer a request. Raises `ProtocolError` for one of unknown shape."""
        try:
            match say, arguments:
                case Say.HISTORY, [session, after, limit]:
                    self._check_read(session, after, limit)
                    answer_later(connection, request, lambda: self._history(session, after, limit))
                case Say.NEWEST, [session, last]:
                    self._check_read(session, 0, last)
                    answer_later(connection, request, lambda: self._history(session, None, last))
                case Say.TRIM, [session, before]:
                    self._check_read(session, before, 1)
                    answer_later(connection, request, lambda: self._trim(session, before))
                case Say.HEADS, [list(sessions)]:
                    self._check_heads(sessions)
                    answer_later(connection, request, lambda: self._heads(sessions))
                case Say.HOLDERS, [int(partition)]:
                    if (holders := self._holders(partition)) is None:
                        raise _NotHere(f"partition {partition} is not here: look it up again")
                    connection.reply(request, holders)
                case Say.SUBSCRIBE, [int(number), list(sessions), int(messages), int(size)]:
                    places = self._places(sessions)
                    self._readers.open(connection, number, messages, size)
                    self._beginning.add((connection, number, request))
                    spawn(self._subscribe(connection, request, number, places), "a subscription")
                case _:
                    raise ProtocolError(f"a SessionActor knows no request {say} of this shape")
        except InvalidSession as error:
            connection.refuse(request, Code.INVALID_SESSION, str(error))
        except UsageError as error:
            connection.refuse(request, Code.INVALID_RANGE, str(error))
        except _NotHere as error:
            connection.refuse(request, Code.NOT_HERE, str(error))

    def forget(self, connection: Connection, number: int | None = None) -> None:
        """One subscription of the connection, or all of them, is over, or never begins."""
        self._beginning = {one for one in self._beginning if one[0] is not connection or number not in (None, one[1])}
        self._readers.forget(connection, number)

    async def load(self, sessions: list[str], then: Callable[[list[int]], T]) -> T:
        """`then` with the last readable seq of each session, in the very turn in which the last one is known, and what it
        returns or raises. Raises `Unavailable` when no store answers."""
        if all(map(self._is_hot, sessions)):
            return await self._wish(sessions, then)
        async with self._loading:
            return await self._wish(sessions, then)

    def _wish(self, sessions: list[str], then: Callable[[list[int]], T]) -> asyncio.Future[T]:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def loaded(heads: list[int] | None) -> None:
            if done.done():
                return
            if heads is None:
                done.set_exception(Unavailable("no store could be asked how far a session is: ask again"))
                return
            try:
                done.set_result(then(heads))
            except UsageError as error:
                done.set_exception(error)

        self._want(Wanted(loaded, sessions))
        return done

    # ------------------------------------------------------------------ answers

    async def _history(self, session: str, after: int | None, limit: int) -> list[Any]:
        """A page after that seq; None: the newest."""
        [head] = await self.load([session], lambda heads: heads)
        start = max(0, head - limit) if after is None else after
        if start >= head:
            return [[], head]
        size = self._limits.history_bytes_max
        page = await self._page(session, start, min(limit, head - start), size)
        if isinstance(page, int) and after is None:
            page = await self._page(session, page - 1, limit, size) if page <= head else []
        return [page, head]

    async def _trim(self, session: str, before: int) -> int:
        """Let the messages below `before` be gone; where the session begins then."""
        [head] = await self.load([session], lambda heads: heads)
        if not 0 < before <= head + 1:
            raise InvalidRange(f"before={before}: session {session!r} has {head} messages, so 1 to {head + 1}")
        await self._note(Trim(TRIM, session, before, time.time_ns() // 1000))
        page = await self._page(session, 0, 1, 1) if head else []
        return page if isinstance(page, int) else 1

    async def _heads(self, sessions: list[str]) -> list[int]:
        heads: list[int] = []
        step = self._limits.subscribe_sessions_max
        for at in range(0, len(sessions), step):
            heads += await self.load(sessions[at : at + step], lambda loaded: loaded)
        return heads

    async def _subscribe(self, connection: Connection, request: int, number: int, places: dict[str, int | None]) -> None:
        this = connection, number, request

        def begin(heads: list[int]) -> None:
            if this not in self._beginning:
                raise InvalidRange(f"subscription {number} ended before it began")
            begins = zip(places.items(), heads, strict=True)
            at = [(session, head if after is None else after, head) for (session, after), head in begins]
            self._readers.follow(connection, request, number, at)

        try:
            await self.load([*places], begin)
        except UsageError as error:
            self._readers.refuse(connection, request, number, Code.INVALID_RANGE, str(error))
        except Unavailable as error:
            self._readers.refuse(connection, request, number, Code.UNAVAILABLE, str(error))
        self._beginning.discard(this)

    # ------------------------------------------------------------------ checks

    def _check_session(self, session: Any) -> None:
        if not self._owns(check_session(session)):
            raise _NotHere(f"session {session!r} is not in this partition: look it up again")

    def _check_read(self, session: Any, after: Any, limit: Any) -> None:
        self._check_session(session)
        if type(after) is not int or after < 0:
            raise InvalidRange(f"after={after!r}: a seq is 0 or more")
        if type(limit) is not int or not 0 < limit <= self._limits.history_messages_max:
            raise InvalidRange(f"a page of {limit!r} messages: 1 to {self._limits.history_messages_max}")

    def _check_heads(self, sessions: list[Any]) -> None:
        if len(sessions) > self._limits.heads_sessions_max:
            raise InvalidRange(f"heads of {len(sessions)} sessions: {self._limits.heads_sessions_max} at most")
        for session in sessions:
            self._check_session(session)

    def _places(self, sessions: list[Any]) -> dict[str, int | None]:
        """What SUBSCRIBE asks for, checked: where to begin in each session; None: from now on."""
        if not 0 < len(sessions) <= self._limits.subscribe_sessions_max:
            raise InvalidRange(f"{len(sessions)} sessions at once: 1 to {self._limits.subscribe_sessions_max}")
        places: dict[str, int | None] = {}
        for item in sessions:
            if type(item) is not list or len(item) != 2:
                raise ProtocolError("a session to follow has an unknown shape")
            self._check_read(item[0], 0 if item[1] is None else item[1], 1)
            if item[0] in places:
                raise InvalidRange(f"a subscription names session {item[0]!r} twice")
            places[item[0]] = item[1]
        return places


class _NotHere(Exception):
    """The session belongs to another partition."""
