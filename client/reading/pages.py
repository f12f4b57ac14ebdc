"""History and heads: pages asked for until the answer is whole; and trims.

Owns the check of what is asked for, and the paging. It must not know connections beyond `ask`, nor lanes. Rules:

1. A page may be shorter than asked for; the next one starts where it ended. What is returned has no hole, or nothing is
   returned.
2. A head below what an ack or a read has shown is an old SessionActor's: it is asked again on a fresh route (design §9).
3. Where the first message of a page is gone, `HistoryTrimmed` says so, and what was read before it is not returned. Only who
   asks for the newest messages gets those that are left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from trilogue.actors.protocol.errors import HistoryTrimmed, InvalidRange, UsageError
from trilogue.actors.protocol.ids import check_session, partition_of
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Message, Run, messages_of
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client.connecting.connections import Connections
from trilogue.client.reading.delivery import runs_of

LIMIT_MAX = 1_000_000
SEQ_MAX = 2**62


def check_count(name: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is an int within the bounds; raise `InvalidRange` otherwise."""
    if type(value) is not int:
        raise InvalidRange(f"{name} is an int, not {type(value).__name__}: give {name}={low} or more")
    if not low <= value <= high:
        raise InvalidRange(f"{name}={value} is out of its bounds: give {low} to {high}")
    return value


class Reading:
    """The readers' questions of one client."""

    def __init__(self, connections: Connections, limits: Limits) -> None:
        self._connections = connections
        self._limits = limits

    async def history(self, session: str, after: int, limit: int, last: int | None) -> list[Message]:
        """As `Client.history`."""
        check_session(session)
        check_count("after", after, 0, SEQ_MAX)
        check_count("limit", limit, 1, LIMIT_MAX)
        if last is None:
            return await self._pages(session, after, limit)
        check_count("last", last, 1, LIMIT_MAX)
        if after:
            raise InvalidRange("last= counts from the newest message: leave after= out")
        runs, head = await self._page(Say.NEWEST, session, min(last, self._limits.history_messages_max))
        after = max(head - last, 0)
        newest = None if isinstance(runs, int) else _following(runs, after, head)
        return newest if newest is not None else await self._left(session, after, head)

    async def trim(self, session: str, before: int) -> int:
        """As `Client.trim`."""
        check_session(session)
        check_count("before", before, 1, SEQ_MAX)

        def accept(answer: Any) -> str | None:
            if type(answer) is not int or answer < before:
                return f"TRIM of session {session!r} before {before} was answered with {str(answer)[:80]}"
            return None

        return int(await self._connections.ask(session, accept, Say.TRIM, session, before))

    async def heads(self, sessions: Iterable[str]) -> dict[str, int]:
        """As `Client.heads`."""
        if isinstance(sessions, str):
            raise UsageError(f"heads takes a list of sessions: write heads([{sessions!r}])")
        wanted = list(dict.fromkeys(check_session(session) for session in sessions))
        if not wanted:
            return {}
        connections = self._connections
        await connections.link_of(wanted[0], connections.deadline())
        partitions = connections.routes.partitions
        assert partitions is not None
        groups: dict[int, list[str]] = {}
        for session in wanted:
            groups.setdefault(partition_of(session, partitions), []).append(session)
        size = self._limits.heads_sessions_max
        chunks = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        found: dict[str, int] = {}
        for answer in await asyncio.gather(*(self._heads_chunk(chunk) for chunk in chunks)):
            found.update(answer)
        return {session: found[session] for session in wanted}

    async def page(self, session: str, after: int, limit: int) -> tuple[list[Run], int]:
        """One page of history and the head: runs that follow `after` without a hole, at least one if there is one.

        Raises `HistoryTrimmed` when the message after `after` is gone.
        """

        def accept(runs: list[Run] | int, head: int) -> str | None:
            if isinstance(runs, int):
                whole = runs > after + 1
                return None if whole else f"session {session!r} begins with {runs}, so nothing after {after} was trimmed"
            if runs and _following(runs, after, runs[-1].first_seq + len(runs[-1].bodies) - 1) is None:
                return f"the history of session {session!r} after {after} came with a hole"
            if not runs and head > after:
                return f"the history of session {session!r} after {after} came empty, though it goes up to {head}"
            return None

        runs, head = await self._page(Say.HISTORY, session, after, min(limit, self._limits.history_messages_max), check=accept)
        if isinstance(runs, int):
            raise HistoryTrimmed(session, runs)
        return runs, head

    async def _pages(self, session: str, after: int, limit: int) -> list[Message]:
        messages: list[Message] = []
        while len(messages) < limit:
            at = after + len(messages)
            runs, head = await self.page(session, at, limit - len(messages))
            for run in runs:
                messages += messages_of(run)
            if not runs or after + len(messages) >= head:
                break
        del messages[limit:]
        return messages

    async def _left(self, session: str, after: int, upto: int) -> list[Message]:
        """The messages after `after` up to `upto` that are there: all of them but the first ones, if those were trimmed."""
        while after < upto:
            try:
                return await self._pages(session, after, upto - after)
            except HistoryTrimmed as trimmed:
                after = trimmed.first_available - 1
        return []

    async def _page(
        self, say: Say, session: str, *items: Any, check: Callable[[list[Run] | int, int], str | None] | None = None
    ) -> tuple[list[Run] | int, int]:
        """The answer and the head: runs, or the first seq that is there."""
        heads = self._connections.heads
        page: list[tuple[list[Run] | int, int]] = []

        def accept(answer: Any) -> str | None:
            try:
                raw, head = answer
                runs = raw if type(raw) is int else runs_of(session, raw)
                behind = head < heads.of(session)
            except (TypeError, ValueError) as error:
                return f"{say.name} was answered in an unknown shape: {error}"
            if behind:
                return f"session {session!r} ends at {head} there, but this client has seen {heads.of(session)}"
            if check is not None and (against := check(runs, head)) is not None:
                return against
            page[:] = [(runs, head)]
            return None

        await self._connections.ask(session, accept, say, session, *items)
        heads.note(session, page[0][1])
        return page[0]

    async def _heads_chunk(self, sessions: list[str]) -> dict[str, int]:
        """The heads of sessions of one partition."""
        heads = self._connections.heads

        def accept(answer: Any) -> str | None:
            if type(answer) is not list or len(answer) != len(sessions) or {*map(type, answer)} != {int}:
                return "HEADS was answered in an unknown shape"
            for session, head in zip(sessions, answer, strict=True):
                if head < heads.of(session):
                    return f"session {session!r} ends at {head} there, but this client has seen {heads.of(session)}"
            return None

        answer = await self._connections.ask(sessions[0], accept, Say.HEADS, sessions)
        for session, head in zip(sessions, answer, strict=True):
            heads.note(session, head)
        return dict(zip(sessions, answer, strict=True))


def _following(runs: list[Run], after: int, upto: int) -> list[Message] | None:
    """The messages of `runs` if they are exactly those after `after` up to `upto`."""
    messages: list[Message] = []
    for run in runs:
        messages += messages_of(run)
    if [message.seq for message in messages] == list(range(after + 1, upto + 1)):
        return messages
    return None
