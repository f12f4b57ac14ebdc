"""The recipe's message path: SET NX EX for "was it here before", INCR for a number, XADD for the message, WAIT for copies.

Owns the keys and the order of the steps, as a careful user of redis-py writes them. It must not know what is measured. Rules:

1. A message is claimed first (`SET dedupe:… NX EX 86400`), then numbered (`INCR seq:…`), then added (`XADD stream:…`). Whoever
   finds it claimed takes it for stored: that is all that the recipe knows of a duplicate.
2. It is stored when the XADD was answered and, with replicas, when `WAIT` has counted all of them. With `appendfsync always`
   Redis answers after its own fsync; `WAIT` counts replicas that have received the message, synced or not.
3. A batch takes each step for all of its messages in one pipeline; the messages of a session are in one batch at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from redis.asyncio import Redis

from trilogue.actors.protocol.errors import Unavailable

DEDUPE_S = 86_400
WAIT_TIMEOUT_MS = 10_000
PAGE_ENTRIES = 1_000
CLAIMED, NUMBERED = "claimed", "numbered"
Step = Callable[[str], None]


class Parcel(NamedTuple):
    """One message: the n-th of its sender in its session."""

    session: str
    n: int
    body: bytes


class Stored(NamedTuple):
    """The answer. Of a duplicate the recipe knows no seq: it is 0."""

    seq: int
    copies: int
    duplicate: bool


class Entry(NamedTuple):
    """What a stream holds."""

    seq: int
    n: int
    body: bytes


class Recipe:
    """The path over one connection."""

    def __init__(self, client: Redis, replicas: int) -> None:
        # redis-py declares most of its commands as "an answer, or an awaitable of it": what is awaited here is known.
        self._client: Any = client
        self._replicas = replicas

    async def store(self, parcel: Parcel, reached: Step | None = None) -> Stored:
        """Store one message; `reached` hears of each step that was answered. Raises `Unavailable` when a replica is missing."""
        client, session = self._client, parcel.session
        if not await client.set(dedupe_key(parcel), 1, nx=True, ex=DEDUPE_S):
            return Stored(0, 0, duplicate=True)
        if reached is not None:
            reached(CLAIMED)
        seq = await client.incr(counter_key(session))
        if reached is not None:
            reached(NUMBERED)
        if not self._replicas:
            await client.xadd(stream_key(session), _fields(parcel, seq))
            return Stored(seq, 1, duplicate=False)
        pipeline = client.pipeline(transaction=False)
        pipeline.xadd(stream_key(session), _fields(parcel, seq))
        pipeline.execute_command("WAIT", self._replicas, WAIT_TIMEOUT_MS)
        return Stored(seq, self._copies(await pipeline.execute()), duplicate=False)

    async def store_all(self, parcels: Sequence[Parcel]) -> list[Stored]:
        """Store a batch, a pipeline for each step. Raises `Unavailable` when a replica is missing."""
        pipeline = self._client.pipeline(transaction=False)
        for parcel in parcels:
            pipeline.set(dedupe_key(parcel), 1, nx=True, ex=DEDUPE_S)
        is_new = await pipeline.execute()
        new = [parcel for parcel, claimed in zip(parcels, is_new, strict=True) if claimed]
        seqs: list[int] = []
        copies = 1
        if new:
            for parcel in new:
                pipeline.incr(counter_key(parcel.session))
            seqs = await pipeline.execute()
            for parcel, seq in zip(new, seqs, strict=True):
                pipeline.xadd(stream_key(parcel.session), _fields(parcel, seq))
            if self._replicas:
                pipeline.execute_command("WAIT", self._replicas, WAIT_TIMEOUT_MS)
            copies = self._copies(await pipeline.execute())
        numbered = iter(seqs)
        return [Stored(next(numbered), copies, False) if claimed else Stored(0, 0, True) for claimed in is_new]

    async def read_all(self, session: str) -> list[Entry]:
        """Everything in a session's stream, page by page."""
        entries: list[Entry] = []
        after = "-"
        while page := await self._client.xrange(stream_key(session), after, "+", PAGE_ENTRIES):
            entries += [Entry(int(fields[b"seq"]), int(fields[b"n"]), fields[b"body"]) for _, fields in page]
            after = f"({page[-1][0].decode()}"
        return entries

    async def numbered_upto(self, session: str) -> int:
        """The last number that was given in a session."""
        return int(await self._client.get(counter_key(session)) or 0)

    async def claimed(self, session: str, numbers: Sequence[int]) -> set[int]:
        """Which of these messages a retry would be told are duplicates."""
        pipeline = self._client.pipeline(transaction=False)
        for n in numbers:
            pipeline.exists(dedupe_key(Parcel(session, n, b"")))
        return {n for n, there in zip(numbers, await pipeline.execute(), strict=True) if there}

    def _copies(self, answers: Sequence[Any]) -> int:
        if not self._replicas:
            return 1
        if answers[-1] < self._replicas:
            raise Unavailable(f"WAIT: {answers[-1]} of {self._replicas} replicas have it after {WAIT_TIMEOUT_MS / 1000:g} s")
        return 1 + int(answers[-1])


@asynccontextmanager
async def connected(url: str, replicas: int) -> AsyncIterator[Recipe]:
    """The path over a connection of its own."""
    client = Redis.from_url(url)
    try:
        yield Recipe(client, replicas)
    finally:
        await client.aclose()


def dedupe_key(parcel: Parcel) -> str:
    """Says for a day that the message was here."""
    return f"dedupe:{parcel.session}:{parcel.n}"


def counter_key(session: str) -> str:
    """Counts a session's messages."""
    return f"seq:{session}"


def stream_key(session: str) -> str:
    """Holds a session's messages."""
    return f"stream:{session}"


def _fields(parcel: Parcel, seq: int) -> dict[str, Any]:
    return {"seq": seq, "n": parcel.n, "body": parcel.body}
