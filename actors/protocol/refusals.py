"""Why a run gets no number: its names, its bodies' sizes, or nobody can say how far its session is.

Owns the checks and their texts. It must not know what is numbered already. Invariant: a refusal says which number is
expected, so that its sender can go on.
"""

from __future__ import annotations

from collections.abc import Callable

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.ids import check_sender_id, check_session, partition_of
from trilogue.actors.protocol.submissions import Refusal
from trilogue.actors.protocol.vocabulary import Code


def stranger(
    session: str, sender_id: str, first_n: int, count: int, owns: Callable[[str], bool], partitions: int
) -> Refusal | None:
    """The checks of names, made once: for a session or a sender that is not known here yet."""
    try:
        check_session(session)
    except UsageError as error:
        return Refusal(session, sender_id, first_n, count, Code.INVALID_SESSION, str(error), first_n)
    try:
        check_sender_id(sender_id)
    except UsageError as error:
        return Refusal(session, sender_id, first_n, count, Code.INVALID_SENDER, str(error), first_n)
    if not owns(session):
        text = f"session {session!r} belongs to partition {partition_of(session, partitions)}"
        return Refusal(session, sender_id, first_n, count, Code.NOT_HERE, text, first_n)
    return None


def too_large(
    session: str, sender_id: str, first_n: int, bodies: list[bytes], body_bytes_max: int
) -> tuple[int, list[Refusal]]:
    """How many messages stand before the first that is too large, and the refusals of that one and of what follows it."""
    at = next(k for k, body in enumerate(bodies) if len(body) > body_bytes_max)
    text = f"a body of {len(bodies[at])} bytes: {body_bytes_max} at most; send it in parts or keep it elsewhere"
    refusals = [Refusal(session, sender_id, first_n + at, 1, Code.MESSAGE_TOO_LARGE, text, first_n + at)]
    if rest := len(bodies) - at - 1:
        text = f"number {first_n + at} was refused and must be given up first"
        refusals.append(Refusal(session, sender_id, first_n + at + 1, rest, Code.OUT_OF_ORDER, text, first_n + at))
    return at, refusals


def unavailable(session: str, sender_id: str, n: int, count: int) -> Refusal:
    """No store says how far the session is."""
    text = "no store could be asked how far the session is: it will be asked again"
    return Refusal(session, sender_id, n, count, Code.UNAVAILABLE, text, n)
