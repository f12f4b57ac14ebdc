"""All partitions' links, and the way of a session to its own.

Owns one link for each partition that is used, and the lanes whose partition is not known yet. It must not know what is
sent. Rules:

1. A client that has never reached the system takes messages all the same: their lanes wait here until the table is known.
2. A request is repeated, on a fresh route when needed, until its deadline; what is refused for good is raised at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trilogue.actors.protocol.errors import TrilogueError, Unavailable
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Refused
from trilogue.client.connecting.backoff import reconnect_after_s
from trilogue.client.connecting.link import Link
from trilogue.client.connecting.presence import Presence
from trilogue.client.connecting.routes import Routes
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.reading.heads import Heads
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.flow import Flow
from trilogue.client.sending.lanes import Lane
from trilogue.client.sending.refusals import error_of, has_moved, is_final

PATIENCE_REQUESTS = 3


class Connections:
    """The links of one client."""

    def __init__(
        self,
        routes: Routes,
        outbox: Outbox,
        limits: Limits,
        jitter: Callable[[], float],
        on_settled: Callable[[], None],
        presence: Presence,
    ) -> None:
        self.routes = routes
        self.heads = Heads()
        self.links: dict[int, Link] = {}
        self._outbox = outbox
        self._limits = limits
        self._jitter = jitter
        self._on_settled = on_settled
        self._presence = presence
        self._loop = asyncio.get_running_loop()
        self._unrouted: list[Lane] = []
        self._learning: asyncio.Task[None] | None = None
        self._trouble = "not connected yet"
        self._known = asyncio.Event()

    def route(self, lane: Lane) -> None:
        """Give `lane` its partition's flow, now or as soon as the table is known."""
        partitions = self.routes.partitions
        if partitions is None:
            self._unrouted.append(lane)
            self.learn()
        else:
            self._link(partition_of(lane.session, partitions)).flow.add(lane)

    def pump(self) -> None:
        """Submit what is waiting, everywhere."""
        for link in self.links.values():
            if link.flow.waiting:
                link.pump()

    def learn(self) -> None:
        """See that the table becomes known, however long that takes."""
        if self.routes.partitions is not None:
            self._routed()
        elif self._learning is None:
            self._learning = asyncio.create_task(self._learn(), name="trilogue-learn")

    async def link_of(self, session: str, deadline: float) -> Link:
        """The session's link. Raises `Unavailable` at `deadline` if the system was never reached."""
        return self._link(partition_of(session, await self.learned(deadline)))

    async def learned(self, deadline: float) -> int:
        """How many partitions there are. Raises `Unavailable` at `deadline` if the system was never reached."""
        if self.routes.partitions is None:
            self.learn()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._known.wait()
            except TimeoutError:
                raise Unavailable(self.trouble) from None
        assert self.routes.partitions is not None
        return self.routes.partitions

    def deadline(self) -> float:
        """Until when a request that is made now is repeated, in the loop's time."""
        return self._loop.time() + PATIENCE_REQUESTS * self._limits.request_timeout_ms / 1000

    async def ask(self, session: str, accept: Callable[[Any], str | None], say: Say, *items: Any) -> Any:
        """Ask the session's SessionActor until `accept` has nothing against the answer (it says what, otherwise)."""
        deadline = self.deadline()
        link = await self.link_of(session, deadline)
        return await self._ask(link, f"session {session!r}", deadline, accept, say, items)

    async def ask_partition(self, partition: int, accept: Callable[[Any], str | None], say: Say, *items: Any) -> Any:
        """As `ask`, of the SessionActor of a partition."""
        deadline = self.deadline()
        await self.learned(deadline)
        return await self._ask(self._link(partition), f"partition {partition}", deadline, accept, say, items)

    async def _ask(
        self, link: Link, what: str, deadline: float, accept: Callable[[Any], str | None], say: Say, items: tuple[Any, ...]
    ) -> Any:
        attempt = 0
        while True:
            connection = None
            try:
                connection = await link.readable(deadline)
                answer = await link.request(connection, say, *items)
                why = accept(answer)
                if why is None:
                    return answer
                link.move(connection, why)
            except Refused as refused:
                if is_final(refused.code):
                    raise error_of(refused.code, refused.text) from None
                why = refused.text
                if has_moved(refused.code):
                    link.move(connection, why)
            except Unavailable as error:
                why = str(error)
            attempt += 1
            if self._loop.time() >= deadline:
                raise Unavailable(f"{say.name} of {what} failed {attempt} times: {why}; try again later")
            await asyncio.sleep(reconnect_after_s(attempt, self._jitter()))

    @property
    def trouble(self) -> str:
        """Why messages do not go out, for people; empty when nothing is wrong."""
        if self.routes.partitions is None:
            return f"the system was not reached yet: {self._trouble}"
        return "; ".join(link.why() for link in self.links.values() if link.trouble)

    def note(self) -> None:
        """Something has changed: how does the client stand with the system now? A link that is only being made is no news."""
        links = [link for link in self.links.values() if link.tried]
        known = self.routes.partitions is not None
        trouble = "; ".join(link.why() for link in links if link.trouble) if known else self.trouble
        self._presence.update(trouble, any(link.connection is not None for link in links))

    async def close(self) -> None:
        """End all connections."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self.links.values()))
        await self.routes.close()

    def _link(self, partition: int) -> Link:
        link = self.links.get(partition)
        if link is None:
            flow = Flow(partition, self._limits)
            answers = Answers(flow, self._outbox, self.heads)
            link = self.links[partition] = Link(answers, self.routes, self._jitter, self._on_settled, self.note)
        return link

    async def _learn(self) -> None:
        attempt = 0
        while self.routes.partitions is None:
            attempt += 1
            try:
                await self.routes.refresh()
            except TrilogueError as error:
                self._trouble = str(error)
                self.note()
                await asyncio.sleep(reconnect_after_s(attempt, self._jitter()))
        self._routed()

    def _routed(self) -> None:
        self._known.set()
        self.note()
        unrouted, self._unrouted = self._unrouted, []
        for lane in unrouted:
            self.route(lane)
        self.pump()
