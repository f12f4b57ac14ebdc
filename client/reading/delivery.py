"""What a SessionActor delivers: unpacked once, whoever gets it.

Owns the check of runs that come over the wire, and a delivery's messages. It must not know subscriptions. Invariant: the
messages of a delivery are shared by all who got it, so nobody changes the list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trilogue.actors.protocol.messages import RUN, Message, Run, messages_of
from trilogue.actors.protocol.subscriptions import cost_bytes


class Delivery(NamedTuple):
    """Runs of one session, and all that their readers need of them."""

    session: str
    first_seq: int
    last_seq: int
    dense: bool  # no run leaves a hole before it
    runs: list[Run]
    messages: list[Message]
    size_bytes: int  # as credit counts it


def runs_of(session: str, raw: Any) -> list[Run]:
    """The runs of an answer. Raises `ValueError` or `TypeError` when they are not runs of this session."""
    runs = [Run._make(item) for item in raw]
    for run in runs:
        shape = run.kind == RUN and run.session == session and type(run.first_seq) is int and run.first_seq > 0
        if not shape or not run.bodies or len(run.bodies) != len(run.sent_at_us):
            raise ValueError("a run of unknown shape, or of another session")
    return runs


def delivery_of(raw: Any) -> Delivery:
    """A delivery out of the runs on the wire. Raises `ValueError`, `TypeError` or `IndexError` for an unknown shape."""
    session = raw[0][1]
    runs = runs_of(session, raw)
    messages: list[Message] = []
    first_seq = next_seq = runs[0].first_seq
    dense = True
    size = 0
    for run in runs:
        dense = dense and run.first_seq == next_seq
        next_seq = run.first_seq + len(run.bodies)
        messages += messages_of(run)
        size += cost_bytes(run)
    return Delivery(session, first_seq, next_seq - 1, dense, runs, messages, size)
