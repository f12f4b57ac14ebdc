"""All subscriptions of one client.

Owns which feeds run, the check of what a program asks for, and where a reader with a cursor begins. It must not know how a feed
works, nor how cursors are kept.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from itertools import chain
from typing import Protocol

from trilogue.actors.protocol.errors import HistoryTrimmed, InvalidRange, TrilogueError, UsageError
from trilogue.actors.protocol.ids import check_session
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Message, messages_of
from trilogue.client.connecting.connections import Connections
from trilogue.client.reading.feed import Feed
from trilogue.client.reading.pages import SEQ_MAX, Reading, check_count
from trilogue.client.reading.subscription import Subscription

CURSOR_NAME_BYTES_MAX = 255
SYNC_BATCH_MESSAGES = 256
SYNC_PAGES_AT_ONCE = 16

Sessions = str | Mapping[str, int | None]


class Keeper(Protocol):
    """Where cursors are kept: the shell of the outbox's file."""

    async def cursors(self, name: str) -> dict[str, int]:
        """What the reader of that name has confirmed, by session."""

    def confirm(self, name: str, session: str, seq: int) -> asyncio.Future[None]:
        """It has handled everything up to `seq`."""


class Following:
    """Subscriptions: made here, and ended with their client."""

    def __init__(
        self, connections: Connections, reading: Reading, limits: Limits, check_open: Callable[[], None], keeper: Keeper | None
    ) -> None:
        """`keeper`: None without an outbox file."""
        self._connections, self._reading, self._limits = connections, reading, limits
        self._check_open = check_open
        self._keeper = keeper
        self._feeds: set[Feed] = set()

    def subscribe(self, sessions: Sessions, after: int | None, cursor: str | None) -> Subscription:
        """As `Client.subscribe`."""
        wanted = _checked(sessions, after)
        if cursor is None:
            return Subscription(lambda: self._feed(wanted), self._feeds.discard)
        if type(cursor) is not str or not 0 < len(cursor.encode()) <= CURSOR_NAME_BYTES_MAX:
            raise UsageError(f"cursor={cursor!r}: a name of 1 to {CURSOR_NAME_BYTES_MAX} bytes")
        keeper = self._keeper
        if keeper is None:
            raise UsageError(f"cursor={cursor!r} is kept in the outbox's file, and there is none: give Client(outbox=FILE)")
        confirm = partial(keeper.confirm, cursor)
        return Subscription(
            lambda: self._feed(wanted, partial(self._places, keeper, cursor, wanted)), self._feeds.discard, confirm
        )

    async def sync(self, cursors: Mapping[str, int]) -> AsyncGenerator[Message, None]:
        """As `Client.sync`."""
        if not isinstance(cursors, Mapping):
            raise UsageError("sync takes a mapping of sessions to the seqs after which to begin: write sync({'room-42': 17})")
        wanted = _checked(cursors, 0)
        begin = {session: after for session, after in wanted.items() if after is not None}
        if len(begin) < len(wanted):
            raise InvalidRange("sync needs for each session the seq after which to begin: 0 for all of it")
        heads = await self._reading.heads(begin)
        left = {session: head for session, head in heads.items() if head > begin[session]}
        if not left:
            return
        at = {session: begin[session] for session in left}
        gone: dict[str, int] = {}
        try:
            async with Subscription(lambda: self._feed(dict(at)), self._feeds.discard) as messages:
                while left:
                    for message in await messages.batch(SYNC_BATCH_MESSAGES):
                        head = left.get(message.session)
                        if head is None or message.seq > head:
                            continue  # it is newer than this call
                        at[message.session] = message.seq
                        if message.seq == head:
                            del left[message.session]
                        yield message
        except HistoryTrimmed as trimmed:
            if left.pop(trimmed.session, None) is not None:  # otherwise all that was missed of it has come
                gone[trimmed.session] = trimmed.first_available
        async for message in self._rest(at, left, gone):
            yield message
        for session, first_available in gone.items():
            raise HistoryTrimmed(session, first_available, gone)

    async def _rest(self, at: dict[str, int], heads: dict[str, int], gone: dict[str, int]) -> AsyncGenerator[Message, None]:
        """What lies between in each session, page by page: where it is gone, `gone` is told. A subscription would end at each
        session that was trimmed, and follow all others anew."""
        left = deque(heads)
        while left:
            some = [left.popleft() for _ in range(min(len(left), SYNC_PAGES_AT_ONCE))]
            pages = (self._reading.page(session, at[session], heads[session] - at[session]) for session in some)
            for session, page in zip(some, await asyncio.gather(*pages, return_exceptions=True), strict=True):
                if isinstance(page, HistoryTrimmed):
                    gone[session] = page.first_available
                    continue
                if isinstance(page, BaseException):
                    raise page
                for message in chain.from_iterable(map(messages_of, page[0])):
                    if message.seq <= heads[session]:
                        at[session] = message.seq
                        yield message
                if at[session] < heads[session]:
                    left.append(session)

    def close(self, error: TrilogueError) -> None:
        """End all of them: their readers get the error."""
        for feed in list(self._feeds):
            feed.close(error)
        self._feeds.clear()

    def _feed(
        self, sessions: Mapping[str, int | None], places: Callable[[], Awaitable[Mapping[str, int | None]]] | None = None
    ) -> Feed:
        self._check_open()
        feed = Feed(sessions, self._connections, self._reading, self._limits, random.random, places)
        self._feeds.add(feed)
        return feed

    async def _places(self, keeper: Keeper, cursor: str, wanted: Mapping[str, int | None]) -> Mapping[str, int | None]:
        """Where a reader with a cursor begins: after what it has confirmed. "From now on" is written down before it begins:
        otherwise a crash would leave out what comes before its first confirmation."""
        known = await keeper.cursors(cursor)
        places = {session: known.get(session, after) for session, after in wanted.items()}
        new = [session for session, after in places.items() if after is None]
        if new:
            heads = await self._reading.heads(new)
            await asyncio.gather(*(keeper.confirm(cursor, session, head) for session, head in heads.items()))
            places |= heads
        return places


async def some(messages: AsyncGenerator[Message, None], count: int) -> tuple[list[Message], TrilogueError | None]:
    """The next messages, `count` at most, and the error that comes after them; fewer only before an error or at the end."""
    found: list[Message] = []
    try:
        async for message in messages:
            found.append(message)
            if len(found) >= count:
                break
    except TrilogueError as error:
        return found, error
    return found, None


def _checked(sessions: Sessions, after: int | None) -> dict[str, int | None]:
    """What a program wants to follow. Raises `InvalidSession` or `InvalidRange`."""
    if isinstance(sessions, Mapping):
        if after != 0:
            raise InvalidRange("a mapping says for each session after which seq to begin: leave after= out")
        wanted = dict(sessions)
    else:
        check_session(sessions)
        wanted = {sessions: after}
    for session, begin in wanted.items():
        check_session(session)
        if begin is not None:
            check_count("after", begin, 0, SEQ_MAX)
    return wanted
