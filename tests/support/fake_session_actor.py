"""A SessionActor made of one dictionary: what a client's tests talk to.

It keeps messages in memory, honours numbers and credit, and does on request what goes wrong in the world: it waits, holds acks
back, refuses, hangs up, moves, forgets. One instance is one process with one partition; several share a `Cluster`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack

from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.subscriptions import MESSAGE_COST_BYTES
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.server import Server
from trilogue.actors.wire import Connection

TOKEN = "a token for tests"
DEADLINE_S = 20.0
Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run an async test in an event loop of its own, with a deadline."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), DEADLINE_S))

    return run


async def until(condition: Callable[[], object], what: str) -> None:
    """Go on when `condition` holds; fail, saying `what`, if it does not within the deadline."""
    deadline = time.monotonic() + DEADLINE_S / 2
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.001)


class Cluster:
    """What all actors know: who writes which partition, and what was stored."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.writers: dict[int, tuple[int, str]] = {}
        self.sessions: dict[str, list[tuple[str, int, bytes]]] = {}  # session -> (sender_id, n, body), seq - 1 is the index
        self.skips: set[tuple[str, str, int]] = set()
        self.keys: dict[tuple[str, str], int] = {}  # (session, key) -> seq
        self.aliases: dict[tuple[str, str, int], int] = {}  # -> seq
        self.trimmed: dict[str, int] = {}  # session -> the first seq that is there

    def numbers(self, session: str, sender_id: str) -> dict[int, int]:
        """n -> seq (0: a skip)."""
        found = {n: seq for seq, (i, n, _) in enumerate(self.sessions.get(session, []), 1) if i == sender_id}
        aliases = {n: seq for (s, i, n), seq in self.aliases.items() if (s, i) == (session, sender_id)}
        return found | aliases | {n: 0 for s, i, n in self.skips if (s, i) == (session, sender_id)}

    def first(self, session: str) -> int:
        """The first seq that can be read."""
        return self.trimmed.get(session, 1)

    def bodies(self, session: str) -> list[bytes]:
        """The session's bodies in seq order."""
        return [body for _, _, body in self.sessions.get(session, [])]


class FakeSessionActor:
    """One listening actor. Set its attributes to make trouble."""

    def __init__(self, cluster: Cluster, partition: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        self.cluster = cluster
        self.partition = partition
        self.epoch = 1
        self.is_spare = False  # it owns nothing, and says so
        self.waiting_text: str | None = None  # set: it says WAITING instead of OPEN
        self.holding = False  # acks are kept back until `release`
        self.silent = False  # nothing is answered at all
        self.refuse: Callable[[str, str, int], tuple[int, str, int] | None] = lambda session, sender_id, n: None
        self.refuse_requests: list[tuple[int, str]] = []  # the next requests are refused so
        self.page_messages = 1000
        self.answer_head: Callable[[str, int], int] = lambda session, head: head
        self.heard: list[list[Any]] = []
        self.submitter: Connection | None = None  # the last connection that submitted something
        self.subscriptions: dict[tuple[int, str], tuple[Connection, int]] = {}  # id, session -> connection, at
        self.credit: dict[int, list[int]] = {}  # of each subscription, in messages and in bytes
        self._held: list[tuple[Connection, list[Any]]] = []
        info = {"role": "session", "name": f"session-{partition}", "cluster": "test"}
        self.server = Server(TOKEN, info, self._on_message, self._on_opened, lambda connection, reason: None, limits)
        self.limits = limits

    async def start(self, address: str = "127.0.0.1:0", writes: bool = True) -> str:
        """Listen; with `writes`, be known as the partition's writer."""
        await self.server.listen(address)
        if writes:
            self.take_over()
        return self.server.address

    async def kill(self) -> None:
        """End as a process that is killed: nothing more is said, all connections end, nobody listens any more."""
        for connection in list(self.server.connections):
            assert connection._transport is not None
            connection._transport.abort()
        await self.server.close()

    def take_over(self) -> None:
        """Be the writer, in an epoch above the last one."""
        self.is_spare = False
        self.epoch = max(self.epoch, self.cluster.writers.get(self.partition, (0, ""))[0] + 1)
        self.cluster.writers[self.partition] = (self.epoch, self.server.address)

    def open(self) -> None:
        """Say OPEN to everybody."""
        self.waiting_text = None
        for connection in self.server.connections:
            self._on_opened(connection)

    def hang_up(self) -> None:
        """Drop all connections."""
        self._held.clear()
        self.subscriptions.clear()
        self.credit.clear()
        for connection in list(self.server.connections):
            connection.close("a test hangs up")

    def release(self) -> None:
        """Send what was held back."""
        self.holding = False
        held, self._held = self._held, []
        for connection, message in held:
            connection.send(message)

    def runs(self, session: str, after: int, limit: int) -> list[list[Any]]:
        """The session's messages as runs of one."""
        entries = self.cluster.sessions.get(session, [])[after : after + limit]
        return [[1, session, i, n, seq, 7, [5], [body]] for seq, (i, n, body) in enumerate(entries, after + 1)]

    def said(self, what: Say) -> list[list[Any]]:
        """All messages of that kind that were heard."""
        return [message for message in self.heard if message[0] == what]

    # ------------------------------------------------------------------ inside

    def _on_opened(self, connection: Connection) -> None:
        if self.is_spare:
            connection.send([Say.WAITING, -1, "it is a spare: it owns no partition", False])
        elif self.waiting_text is not None:
            connection.send([Say.WAITING, self.partition, self.waiting_text, False])
        else:
            connection.send([Say.OPEN, self.partition, self.epoch, 3, self.limits.body_bytes_max])

    def _on_message(self, connection: Connection, message: list[Any]) -> None:
        self.heard.append(message)
        if self.silent:
            return
        match message:
            case [Say.SUBMIT, runs]:
                self.submitter = connection
                self._submit(connection, runs)
            case [Say.GIVE_UP, numbers]:
                known = {(s, i, n): self.cluster.numbers(s, i).get(n) for s, i, n in numbers}
                self.cluster.skips |= {number for number, seq in known.items() if seq is None}
                acks = [[*number, 1, seq or 0, seq is not None] for number, seq in known.items()]
                self._answer(connection, [Say.ACKED, self.epoch, 3, acks])
            case [Say.CREDIT, number, messages, size]:
                if number in self.credit:
                    self._give(number, messages, size)
                    self._feed()
            case [Say.UNSUBSCRIBE, number]:
                self.credit.pop(number, None)
                self.subscriptions = {key: value for key, value in self.subscriptions.items() if key[0] != number}
            case [Say.TRIM, int(request), session, before] if not 0 < before <= self._head(session) + 1:
                connection.refuse(request, Code.INVALID_RANGE, f"before={before}: 1 to {self._head(session) + 1}")
            case [_, int(request), *items]:
                if message[0] not in (Say.WHERE, Say.PING) and self.refuse_requests:
                    code, text = self.refuse_requests.pop(0)
                    connection.refuse(request, Code(code), text)
                else:
                    connection.reply(request, self._request(connection, message[0], items))

    def _request(self, connection: Connection, say: int, items: list[Any]) -> Any:
        cluster = self.cluster
        match say, items:
            case Say.WHERE, _:
                writers = {partition: list(writer) for partition, writer in cluster.writers.items()}
                return {"cluster": "test", "partitions": cluster.partitions, "writers": writers, "addresses": []}
            case Say.HISTORY, [session, after, limit] if after + 1 < cluster.first(session) and after < self._head(session):
                return [cluster.first(session), self._head(session)]
            case Say.HISTORY, [session, after, limit]:
                return [self.runs(session, after, min(limit, self.page_messages)), self._head(session)]
            case Say.NEWEST, [session, last]:
                head = self._head(session)
                start = max(head - min(last, self.page_messages), cluster.first(session) - 1)
                return [self.runs(session, start, last), head]
            case Say.TRIM, [session, before]:
                cluster.trimmed[session] = max(before, cluster.first(session))
                return cluster.first(session)
            case Say.HEADS, [sessions]:
                return [self._head(session) for session in sessions]
            case Say.HOLDERS, [_]:
                return [1, [self.server.address]]  # it is its own store
            case Say.RECORDS, [_, _, pieces]:
                records = [run for session, after, last, _ in pieces for run in self.runs(session, after, last - after)]
                return [b"".join(map(msgpack.packb, records[: self.page_messages])), None]
            case Say.SESSIONS, [_, _, above]:
                named = sorted(name for name in cluster.sessions if name > above)
                page = [[name, 1, len(cluster.sessions[name])] for name in named[: self.page_messages]]
                return [page, named[self.page_messages - 1] if len(named) > self.page_messages else ""]
            case Say.SUBSCRIBE, [number, sessions, messages, size]:
                self._give(number, messages, size)
                begun = []
                for session, after in sessions:
                    begun.append(self._head(session) if after is None else after)
                    self.subscriptions[number, session] = (connection, begun[-1])
                self._feed()  # before the answer: a client must cope
                return begun
        if self.is_spare:
            return ["session", f"session-{self.partition}", -1, 0, "spare"]
        return ["session", f"session-{self.partition}", self.partition, self.epoch, "open"]

    def _head(self, session: str) -> int:
        return self.answer_head(session, len(self.cluster.sessions.get(session, [])))

    def _submit(self, connection: Connection, runs: list[list[Any]]) -> None:
        acks: list[list[Any]] = []
        refusals: list[list[Any]] = []
        for session, sender_id, first_n, _, bodies, *keys in runs:
            for n, body in enumerate(bodies, first_n):
                key = keys[0][n - first_n] if keys else None
                original = self.cluster.keys.get((session, key), 0) if key is not None else 0
                numbers = self.cluster.numbers(session, sender_id)
                next_n = len(numbers) + 1
                refused = self.refuse(session, sender_id, n)
                if n in numbers and refused is None:
                    acks.append([session, sender_id, n, 1, numbers[n], True])
                elif refused is None and n > next_n:
                    refused = (Code.OUT_OF_ORDER, f"number {next_n} is next", next_n)
                elif refused is None and original and self.cluster.bodies(session)[original - 1] != body:
                    refused = (Code.CONFLICTING_KEY, "this key was used for another message", n)
                elif refused is None and original:
                    self.cluster.aliases[session, sender_id, n] = original
                    acks.append([session, sender_id, n, 1, original, True])
                elif refused is None:
                    entries = self.cluster.sessions.setdefault(session, [])
                    entries.append((sender_id, n, body))
                    acks.append([session, sender_id, n, 1, len(entries), False])
                    if key is not None:
                        self.cluster.keys[session, key] = len(entries)
                if refused is not None:
                    refusals.append([session, sender_id, n, 1, *refused])
        if acks:
            self._answer(connection, [Say.ACKED, self.epoch, 3, acks])
        if refusals:
            connection.send([Say.REFUSED, self.epoch, refusals])
        self._feed()

    def _answer(self, connection: Connection, message: list[Any]) -> None:
        if self.holding:
            self._held.append((connection, message))
        else:
            connection.send(message)

    def _give(self, number: int, messages: int, size: int) -> None:
        before = self.credit.setdefault(number, [0, 0])
        self.credit[number] = [before[0] + messages, before[1] + size]

    def _feed(self) -> None:
        for (number, session), (connection, at) in list(self.subscriptions.items()):
            if number not in self.credit:
                continue  # it has ended
            credit, due = self.credit[number], []
            first = self.cluster.first(session)
            if at + 1 < first and at < len(self.cluster.sessions[session]) and min(credit) > 0:
                connection.send([Say.ENDED, number, Code.TRIMMED, f"begins with {first}", session, first])
                del self.credit[number]
                self.subscriptions = {key: value for key, value in self.subscriptions.items() if key[0] != number}
                continue
            for run in self.runs(session, at, max(credit[0], 0)):
                if credit[1] <= 0:
                    break
                due.append(run)
                credit[0] -= 1
                credit[1] -= len(run[7][0]) + MESSAGE_COST_BYTES
            if due:
                self.subscriptions[number, session] = (connection, at + len(due))
                connection.send([Say.DELIVER, [number], due])
