"""All subscriptions of one client.

Owns which feeds run, and the check of what a program asks for. It must not know how a feed works.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from trilogue.actors.protocol.errors import InvalidRange, TrilogueError
from trilogue.actors.protocol.ids import check_session
from trilogue.actors.protocol.limits import Limits
from trilogue.client.connecting.connections import Connections
from trilogue.client.reading.feed import Feed
from trilogue.client.reading.pages import SEQ_MAX, Reading, check_count
from trilogue.client.reading.subscription import Subscription

Sessions = str | Mapping[str, int | None]


class Following:
    """Subscriptions: made here, and ended with their client."""

    def __init__(self, connections: Connections, reading: Reading, limits: Limits, check_open: Callable[[], None]) -> None:
        self._connections, self._reading, self._limits = connections, reading, limits
        self._check_open = check_open
        self._feeds: set[Feed] = set()

    def subscribe(self, sessions: Sessions, after: int | None) -> Subscription:
        """As `Client.subscribe`."""
        wanted = _checked(sessions, after)
        return Subscription(lambda: self._feed(wanted), self._feeds.discard)

    def close(self, error: TrilogueError) -> None:
        """End all of them: their readers get the error."""
        for feed in list(self._feeds):
            feed.close(error)
        self._feeds.clear()

    def _feed(self, sessions: Mapping[str, int | None]) -> Feed:
        self._check_open()
        feed = Feed(sessions, self._connections, self._reading, self._limits, random.random)
        self._feeds.add(feed)
        return feed


def _checked(sessions: Sessions, after: int | None) -> dict[str, int | None]:
    """What a program wants to follow. Raises `InvalidSession` or `InvalidRange`."""
    if isinstance(sessions, Mapping):
        if after != 0:
            raise InvalidRange("a mapping says for each session after which seq to begin: leave after= out")
        wanted = dict(sessions)
    else:
        wanted = {sessions: after}
    for session, begin in wanted.items():
        check_session(session)
        if begin is not None:
            check_count("after", begin, 0, SEQ_MAX)
    return wanted
