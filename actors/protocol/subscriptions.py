"""Who is told of which committed runs, and how fast (design §9).

Owns where each subscription stands and how much its reader still takes. It must not know connections or stores: pages of
history are asked for with `ReadPage` and come back with `PageRead`. Rules:

1. A subscription is fed committed runs in seq order, without a hole: each seq once (G7).
2. It is sent no more messages than its reader gave credit for. Nothing is dropped and nothing is queued: what cannot be sent
   now is read from history when there is credit again.
3. At most one page is being read for a subscription.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.messages import Run, part_of

Source = Hashable


class Subscribed(NamedTuple):
    """A reader wants the session's messages after `after`. `head` is the session's last readable seq."""

    source: Source
    subscription: int
    session: str
    after: int
    credit: int
    head: int


class Credited(NamedTuple):
    """The reader takes that many more."""

    source: Source
    subscription: int
    messages: int
    head: int


class Committed(NamedTuple):
    """A run became readable."""

    run: Run


class PageRead(NamedTuple):
    """What `ReadPage` asked for, in seq order; `head` is the session's last readable seq now."""

    source: Source
    subscription: int
    session: str
    after: int
    runs: list[Run]
    head: int


class Deliver(NamedTuple):
    """Send the runs to the reader."""

    source: Source
    subscription: int
    runs: list[Run]


class ReadPage(NamedTuple):
    """Read at most `limit` messages of the session after `after`."""

    source: Source
    subscription: int
    session: str
    after: int
    limit: int


Event = Subscribed | Credited | Committed | PageRead
Effect = Deliver | ReadPage


class _Subscription:
    __slots__ = ("at", "credit", "id", "reading", "session", "source")

    def __init__(self, source: Source, number: int, session: str, after: int, credit: int) -> None:
        self.source, self.id, self.session = source, number, session
        self.at = after  # the last seq that was sent
        self.credit = credit
        self.reading = False


class Subscriptions:
    """All subscriptions of one partition."""

    def __init__(self, page_messages_max: int) -> None:
        self._page_messages_max = page_messages_max
        self._all: dict[Source, dict[int, _Subscription]] = {}
        self._by_session: dict[str, dict[tuple[Source, int], _Subscription]] = {}
        self.empty = True  # nobody wants anything

    def count(self, source: Source | None = None) -> int:
        """How many subscriptions there are, of one source or in all."""
        if source is not None:
            return len(self._all.get(source, ()))
        return sum(map(len, self._all.values()))

    def session_of(self, source: Source, number: int) -> str:
        """The session of a subscription; an empty one when it is over."""
        subscription = self._all.get(source, {}).get(number)
        return subscription.session if subscription is not None else ""

    def follows(self, session: str) -> bool:
        """Whether anybody wants this session's runs."""
        return session in self._by_session

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        match event:
            case Committed(run):
                return self._on_committed(run)
            case PageRead():
                return self._on_page(event)
            case Credited(source, number, messages, head):
                subscription = self._all.get(source, {}).get(number)
                if subscription is None:
                    return []
                subscription.credit += messages
                return self._catch_up(subscription, head)
            case Subscribed():
                subscription = _Subscription(event.source, event.subscription, event.session, event.after, event.credit)
                self._all.setdefault(event.source, {})[event.subscription] = subscription
                self.empty = False
                key = (event.source, event.subscription)
                self._by_session.setdefault(event.session, {})[key] = subscription
                return self._catch_up(subscription, event.head)

    def forget(self, source: Source, number: int | None = None) -> None:
        """One subscription of `source`, or all of them, is over."""
        own = self._all.get(source, {})
        numbers = list(own) if number is None else [number] if number in own else []
        for subscription in [own.pop(number) for number in numbers]:
            of_session = self._by_session[subscription.session]
            del of_session[(source, subscription.id)]
            if not of_session:
                del self._by_session[subscription.session]
        if not own:
            self._all.pop(source, None)
        self.empty = not self._all

    def _on_committed(self, run: Run) -> list[Effect]:
        effects: list[Effect] = []
        count = len(run.bodies)
        for subscription in self._by_session.get(run.session, {}).values():
            live = subscription.at == run.first_seq - 1 and not subscription.reading
            if live and subscription.credit >= count:
                subscription.at += count
                subscription.credit -= count
                effects.append(Deliver(subscription.source, subscription.id, [run]))
            else:
                effects += self._catch_up(subscription, run.first_seq + count - 1)
        return effects

    def _catch_up(self, subscription: _Subscription, head: int) -> list[Effect]:
        if subscription.reading or subscription.credit <= 0 or subscription.at >= head:
            return []
        subscription.reading = True
        limit = min(subscription.credit, self._page_messages_max)
        return [ReadPage(subscription.source, subscription.id, subscription.session, subscription.at, limit)]

    def _on_page(self, event: PageRead) -> list[Effect]:
        subscription = self._all.get(event.source, {}).get(event.subscription)
        if subscription is None or (event.session, event.after) != (subscription.session, subscription.at):
            return []  # it was asked for by an earlier subscription of this number
        subscription.reading = False
        runs: list[Run] = []
        for run in event.runs:
            count = min(len(run.bodies), subscription.credit)
            require(run.first_seq == subscription.at + 1, "a page of history leaves a hole")
            if count == 0:
                break
            runs.append(part_of(run, run.first_seq, count))
            subscription.at += count
            subscription.credit -= count
        effects: list[Effect] = [Deliver(subscription.source, subscription.id, runs)] if runs else []
        return effects + self._catch_up(subscription, event.head)
