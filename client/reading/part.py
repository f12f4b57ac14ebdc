"""The part of a subscription that one partition serves.

Owns the subscription at that partition's SessionActor, the order of each of its sessions (their inboxes), and the credit that
the SessionActor has left. It must not know who reads. Rules:

1. Each session's messages are handed on in order, each once (G7), across lost connections and moved partitions: the next
   SUBSCRIBE starts after the last seq that was received in order.
2. Whatever is missing in a session is asked for, before anything after it is handed on. If it was trimmed, the subscription
   fails with `HistoryTrimmed`, after what was handed on before: a hole is never passed over.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from trilogue.actors.protocol.errors import HistoryTrimmed, ProtocolError, TrilogueError, Unavailable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Message, Run
from trilogue.actors.protocol.subscriptions import MESSAGE_COST_BYTES
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.wire import Connection, Refused
from trilogue.client.connecting.backoff import reconnect_after_s
from trilogue.client.connecting.connections import Connections
from trilogue.client.connecting.link import Link
from trilogue.client.reading.delivery import Delivery
from trilogue.client.reading.inbox import Inbox
from trilogue.client.reading.pages import Reading
from trilogue.client.sending.refusals import error_of, has_moved, is_final

EARLY_MESSAGES = 1024
_numbers = itertools.count(1)


class Owner(Protocol):
    """The subscription, as its parts see it."""

    def arrived(self, messages: list[Message], size_bytes: int) -> None:
        """These can be handed on; they are not to be changed."""

    def begun(self) -> None:
        """The part has been subscribed for the first time."""

    def failed(self, error: TrilogueError) -> None:
        """This can never go away."""

    def share(self) -> tuple[int, int]:
        """The credit, in messages and bytes, that a part may ask for now, at most."""


class Part:
    """Some sessions of one subscription, all of one partition. `run` it."""

    def __init__(
        self,
        owner: Owner,
        sessions: Mapping[str, int | None],
        connections: Connections,
        reading: Reading,
        limits: Limits,
        jitter: Callable[[], float],
    ) -> None:
        self.messages = self.size_bytes = 0  # the credit that the SessionActor has left
        self._owner = owner
        self._connections, self._reading, self._limits, self._jitter = connections, reading, limits, jitter
        self._any_session = next(iter(sessions))
        self._early_max = max(EARLY_MESSAGES // len(sessions), 1)
        self._inboxes = {session: Inbox(after, self._early_max) for session, after in sessions.items() if after is not None}
        self._before: dict[str, list[Run]] = {session: [] for session in sessions if session not in self._inboxes}
        self._holes: dict[str, None] = {}  # sessions that lack something
        self._link: Link | None = None
        self._connection: Connection | None = None
        self._number = 0
        self._over = False  # this subscription's number has ended: subscribe anew
        self._work = asyncio.Event()

    def give(self, messages: int, size_bytes: int) -> None:
        """Let the SessionActor send so much more."""
        if self._connection is not None and not self._over and (messages > 0 or size_bytes > 0):
            messages, size_bytes = max(messages, 0), max(size_bytes, 0)
            self.messages += messages
            self.size_bytes += size_bytes
            self._connection.send([Say.CREDIT, self._number, messages, size_bytes])

    # ------------------------------------------------------------------ the link's side

    def delivered(self, delivery: Delivery) -> None:
        """Committed runs came."""
        self.messages -= len(delivery.messages)
        self.size_bytes -= delivery.size_bytes
        inbox = self._inboxes.get(delivery.session)
        if inbox is None:
            self._before[delivery.session] += delivery.runs  # a KeyError is told of as a message of unknown shape
        elif delivery.dense and inbox.follow_on(delivery.first_seq, delivery.last_seq):
            self._connections.heads.note(delivery.session, delivery.last_seq)
            self._owner.arrived(delivery.messages, delivery.size_bytes)
        else:
            self._take(delivery.session, inbox, delivery.runs)

    def ended(self, code: int, text: str, *gone: Any) -> None:
        """Nothing more comes under this number: for good, or until it is asked for anew."""
        connection = self._connection
        self.lost()
        if code == Code.TRIMMED:
            session, first_available = gone
            if session not in self._inboxes or type(first_available) is not int:
                raise ValueError(f"what was trimmed is told as {str(gone)[:80]}")
            self._owner.failed(HistoryTrimmed(session, first_available))
        elif is_final(code):
            self._owner.failed(error_of(code, text))
        elif self._link is not None and has_moved(code):
            self._link.move(connection, text)

    def lost(self) -> None:
        """The connection is gone."""
        self._over = True
        self._connection = None
        self._work.set()

    # ------------------------------------------------------------------ the work

    def _take(self, session: str, inbox: Inbox, runs: list[Run]) -> None:
        messages = inbox.add(runs)
        if messages:
            self._connections.heads.note(session, messages[-1].seq)
            self._owner.arrived(messages, sum(len(message.body) + MESSAGE_COST_BYTES for message in messages))
        if inbox.missing is not None:
            self._holes[session] = None
            self._work.set()

    async def run(self) -> None:
        """Be subscribed, for ever: a reader has no deadline."""
        attempt = 0
        while True:
            try:
                if await self._subscribe():
                    attempt = 0
                    await self._follow()
            except Unavailable:
                pass
            except TrilogueError as error:
                self._owner.failed(error)
            self.leave()
            await asyncio.sleep(reconnect_after_s(attempt, self._jitter()))
            attempt += 1

    async def _subscribe(self) -> bool:
        """Ask for what follows the last seqs that were received in order. False: refused for now."""
        self._link = link = await self._connections.link_of(self._any_session, math.inf)
        self._connection = connection = await link.readable(math.inf)
        self._number = number = next(_numbers)
        self._over = False
        self._holes.clear()
        self.messages = self.size_bytes = 0
        for runs in self._before.values():
            runs.clear()
        link.readers[number] = self
        sessions: list[tuple[str, int | None]] = [(session, inbox.at) for session, inbox in self._inboxes.items()]
        sessions += [(session, None) for session in self._before]
        credit = messages, size_bytes = tuple(max(each, 1) for each in self._owner.share())
        self.messages, self.size_bytes = messages, size_bytes
        size = self._limits.subscribe_sessions_max
        for at in range(0, len(sessions), size):
            chunk = sessions[at : at + size]
            try:
                answer = await link.request(connection, Say.SUBSCRIBE, number, chunk, *credit)
            except Refused as refused:
                if is_final(refused.code):
                    self._owner.failed(error_of(refused.code, refused.text))
                elif has_moved(refused.code):
                    link.move(connection, refused.text)
                return False
            if self._over:
                return False
            self._begin(chunk, answer)
            credit = 0, 0
        self._owner.begun()
        return True

    def _begin(self, chunk: list[tuple[str, int | None]], answer: Any) -> None:
        """Note after which seqs these sessions were begun, and take what came before that was known."""
        if type(answer) is not list or len(answer) != len(chunk) or {*map(type, answer)} != {int} or min(answer) < 0:
            raise ProtocolError(f"SUBSCRIBE was answered with {str(answer)[:80]} instead of seqs")
        for (session, after), started_after in zip(chunk, answer, strict=True):
            if after is None:
                inbox = self._inboxes[session] = Inbox(started_after, self._early_max)
                self._take(session, inbox, self._before.pop(session))

    async def _follow(self) -> None:
        """Until the connection or the subscription's number has ended: ask for what is missing."""
        while not self._over:
            if not self._holes:
                await self._work.wait()
                self._work.clear()
                continue
            session = next(iter(self._holes))
            missing = self._inboxes[session].missing
            if missing is None:
                del self._holes[session]
                continue
            after, upto = missing
            runs, _ = await self._reading.page(session, after, upto - after)
            self._take(session, self._inboxes[session], runs)

    def leave(self) -> None:
        """End the subscription there."""
        link, connection, number = self._link, self._connection, self._number
        if link is not None:
            link.readers.pop(number, None)
        if connection is not None and not self._over:
            connection.send([Say.UNSUBSCRIBE, number])
        self._over = True
        self._connection = None
        self.messages = self.size_bytes = 0
