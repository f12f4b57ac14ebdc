"""`trilogue send`, `trilogue tail` and `trilogue trim`: one message in, a session's messages out, or its older ones gone.

Owns what the three commands do, and how a message looks on a terminal. It must not know how a client works.
Invariants: one line a message, whatever is in its body; a time-out says that the message may have been stored, and
why it took so long.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import getpass
import sys
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilogue.actors.protocol.errors import TrilogueError, Unavailable, Unsent, UsageError
from trilogue.actors.protocol.ids import check_session, partition_of
from trilogue.actors.protocol.messages import Ack, Message
from trilogue.cluster.commands.find import Known, check_answers
from trilogue.cluster.commands.output import json_text

if TYPE_CHECKING:
    from trilogue.client import Client

LAST_DEFAULT = 10
CLOSE_TIMEOUT_S = 0.2
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 0.001, 86_400
PAGE_MESSAGES = 1_000


async def send(known: Known, session: str, text: str, sender: str | None, outbox: Path | None, timeout_s: float) -> Ack:
    """Send `text` and wait for the ack. Raises `Unavailable` after `timeout_s`: it may have been stored."""
    from trilogue.client import Client

    check_session(session)
    if not TIMEOUT_S_MIN <= timeout_s <= TIMEOUT_S_MAX:
        raise UsageError(f"--timeout {timeout_s:g}: between {TIMEOUT_S_MIN:g} and {TIMEOUT_S_MAX:,} seconds")
    if outbox is None:
        await check_answers(known)
    client = Client(
        sender=sender if sender is not None else default_sender(),
        outbox=outbox,
        address=",".join(known.addresses),
        token=known.token,
        connect_timeout_s=timeout_s,
        close_timeout_s=CLOSE_TIMEOUT_S,
    )
    ack: Ack | None = None
    late = ""
    with contextlib.suppress(Unsent):  # what it means for the message is said below
        async with client:
            try:
                async with asyncio.timeout(timeout_s):
                    ack = await client.send(session, text.encode("utf-8", "surrogateescape"))
            except TimeoutError:
                late = await _late(known, session, outbox, timeout_s)
    if ack is None:
        raise Unavailable(late)
    return ack


async def _late(known: Known, session: str, outbox: Path | None, timeout_s: float) -> str:
    kept = (
        f"it is kept in {outbox}: the next `trilogue send --outbox {outbox}` sends it once"
        if outbox is not None
        else "look with `trilogue tail` before you send it again"
    )
    return f"no ack within {timeout_s:g} s, the message may have been stored ({await _why(known, session)}); {kept}"


async def _why(known: Known, session: str) -> str:
    """Why the session's partition does not answer, as far as the system itself says."""
    from trilogue.cluster.commands.status import gather

    try:
        status = await gather(known)
    except TrilogueError as error:
        return str(error)
    if not status["partitions"]:
        return "no SessionActor answers"
    partition = partition_of(session, len(status["partitions"]))
    about = status["partitions"][partition]
    silent = [store for store in about["stores"] if store in status["missing"]]
    why = f"{', '.join(silent)} does not answer" if silent else about["state"]
    return f"partition {partition}: {why}"


async def tail(known: Known, session: str, after: int | None, limit: int | None, *, follow: bool, as_json: bool) -> None:
    """Print the session's messages after `after` (the newest ones without it), `limit` at most; `follow` goes on for
    ever.
    """
    from trilogue.client import Client
    from trilogue.client.reading.pages import LIMIT_MAX, SEQ_MAX

    check_session(session)
    if after is None and limit is not None and limit > LIMIT_MAX:
        raise UsageError(f"--limit {limit}: at most {LIMIT_MAX:,} of the newest; with --after there is no such bound")
    if after is not None and not 0 <= after <= SEQ_MAX:
        raise UsageError(f"--after {after}: a seq, or 0 for the beginning")
    await check_answers(known)
    show = print_json if as_json else print_line
    async with Client(address=",".join(known.addresses), token=known.token) as client:
        left = limit
        if after is None:
            # With `follow` the limit counts what is shown: the newest that are there already come first.
            page, reached = await _newest(client, session, limit if limit is not None else LAST_DEFAULT)
        else:
            page = await client.history(session, after=after, limit=min(left or PAGE_MESSAGES, PAGE_MESSAGES))
            reached = after
        while page:
            for message in page:
                show(message)
            reached = page[-1].seq
            left = left - len(page) if left is not None else None
            if left == 0 or after is None:
                break
            page = await client.history(session, after=reached, limit=min(left or PAGE_MESSAGES, PAGE_MESSAGES))
        sys.stdout.flush()
        if not follow or left == 0:
            return
        async with client.subscribe(session, after=reached) as messages:
            async for message in messages:
                show(message)
                sys.stdout.flush()
                left = left - 1 if left is not None else None
                if left == 0:
                    return


async def _newest(client: Client, session: str, last: int) -> tuple[list[Message], int]:
    """The newest messages, and the seq that the next one follows. Says on standard error if fewer are left than asked for."""
    head = (await client.heads([session]))[session]
    page = await client.history(session, last=last)
    head = page[-1].seq if page else head
    if len(page) < min(last, head):
        first = page[0].seq if page else head + 1
        print(f"trilogue: {trimmed(session, first)}", file=sys.stderr)
    return page, head


async def trim(known: Known, session: str, before: int) -> int:
    """Let the session's messages below `before` go; the first seq that is there then. Raises as `Client.trim`."""
    from trilogue.client import Client
    from trilogue.client.reading.pages import SEQ_MAX

    check_session(session)
    if not 0 < before <= SEQ_MAX:
        raise UsageError(f"--before {before}: a seq, from 1 to the last one + 1")
    await check_answers(known)
    async with Client(address=",".join(known.addresses), token=known.token) as client:
        try:
            return await client.trim(session, before=before)
        except Unavailable as error:
            raise Unavailable(f"{error} (it may have been done; doing it again is harmless)") from None


def trimmed(session: str, first: int) -> str:
    """What is gone, and where the session begins now."""
    name = printable(session.encode())
    if first == 1:
        return f"{name} begins with message 1: nothing is gone"
    gone = "message 1 is" if first == 2 else f"messages 1 to {first - 1} are"
    return f"{name} begins with message {first} now: {gone} gone"


def default_sender() -> str:
    """The name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "cli"


def print_line(message: Message) -> None:
    """seq, when it was stored, sender, text."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(message.stored_at_us / 1_000_000))
    print(f"{message.seq:>6}  {when}  {printable(message.sender.encode())}  {printable(message.body)}")


def print_json(message: Message) -> None:
    """One object a line; a body that is not UTF-8 comes as `body_base64` instead of `text`."""
    value: dict[str, Any] = message._asdict()
    body = value.pop("body")
    try:
        value["text"] = body.decode()
    except UnicodeDecodeError:
        value["body_base64"] = base64.b64encode(body).decode()
    print(json_text(value))


def printable(body: bytes) -> str:
    """The body on one line: bytes that are no UTF-8, and whatever steers a terminal, are shown escaped."""
    text = body.decode("utf-8", "backslashreplace")
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
