"""Short conversations with actors, for commands and for `launch`: connect, ask, close.

Owns the asking of many actors at once, with a deadline for each. It must not know Ray, nor what the answers mean.
Invariant: an actor that does not answer costs its time-out once, and is reported, never waited for again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from trilogue.actors.protocol.errors import NotAuthorized, TrilogueError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, Refused, connect

ASK_TIMEOUT_MS = 1_500
_LIMITS = replace(DEFAULT_LIMITS, handshake_timeout_ms=ASK_TIMEOUT_MS)
Result = TypeVar("Result")


@asynccontextmanager
async def connection_to(address: str, token: str) -> AsyncIterator[Connection]:
    """A connection for one conversation. Raises `Unavailable`, `NotAuthorized` or `ProtocolError`."""
    connection = await connect(address, token, on_message=_ignore, on_closed=_ignore, limits=_LIMITS)
    try:
        yield connection
    finally:
        connection.close()


async def ask(address: str, token: str, say: Say, *items: Any) -> Any:
    """One question, one answer. Raises `Unavailable`, also for a refusal; `NotAuthorized`; `ProtocolError`."""
    async with connection_to(address, token) as connection:
        try:
            return await connection.request(say, *items, timeout_ms=ASK_TIMEOUT_MS)
        except Refused as refusal:
            raise Unavailable(refusal.text) from None


async def ask_all(addresses: Iterable[str], token: str, say: Say) -> dict[str, Any]:
    """The same question to all at once: {address: the answer, or the `TrilogueError` that came instead}."""

    async def one(address: str) -> Any:
        try:
            return await ask(address, token, say)
        except TrilogueError as error:
            return error

    known = list(dict.fromkeys(addresses))
    return dict(zip(known, await asyncio.gather(*map(one, known)), strict=True))


async def first_that_answers(addresses: Iterable[str], token: str) -> str:
    """An address where an actor of ours answers now. Raises `Unavailable` when none does, or `NotAuthorized`."""
    answers = await ask_all(addresses, token, Say.PING)
    for address, answer in answers.items():
        if not isinstance(answer, TrilogueError):
            return address
    for answer in answers.values():
        if isinstance(answer, NotAuthorized):
            raise answer
    raise Unavailable(str(next(iter(answers.values()), "no address is known")))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end from plain code, also where an event loop is already running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[Result | BaseException] = []

    def in_thread() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=in_thread, name="trilogue-ask")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _ignore(*_: Any) -> None:
    """What an actor says on its own, and how a short conversation ends, matter to nobody here."""
