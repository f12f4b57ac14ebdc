"""Reading all back: every session from its first message to its last, by a client that knows nothing of the sending.

Owns the reading, outside of any clock, and hands each session to the judge. It must not know how messages were sent.
Invariant: a session is read to its very end, page by page, whatever a page's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from trilogue.bench.load.pouring import Pulse
from trilogue.bench.load.verification import Verdict
from trilogue.client import Client, Message

PAGE_MESSAGES = 2000
READERS = 16

Judge = Callable[[str, Sequence[Message]], Verdict]


async def read_all_back(client: Client, sessions: Sequence[str], pulse: Pulse, judge: Judge) -> Verdict:
    """Read the sessions and let `judge` compare each with what was sent."""
    verdict = Verdict()
    left = iter(sessions)
    async with asyncio.TaskGroup() as readers:
        for _ in range(min(READERS, len(sessions))):
            readers.create_task(_read_some(client, left, pulse, judge, verdict))
    return verdict


async def _read_some(client: Client, left: Iterator[str], pulse: Pulse, judge: Judge, verdict: Verdict) -> None:
    for session in left:
        history = await _read_session(client, session, pulse)
        verdict.add(judge(session, history))


async def _read_session(client: Client, session: str, pulse: Pulse) -> list[Message]:
    history: list[Message] = []
    after = 0
    while page := await client.history(session, after=after, limit=PAGE_MESSAGES):
        history += page
        pulse.done += len(page)
        if page[-1].seq <= after:
            # The server goes backwards: the judge will say so, and reading on would never end.
            break
        after = page[-1].seq
    return history
