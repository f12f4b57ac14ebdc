"""What is asked of a sequencer, and what it answers: its events and effects, and the shape of a submitted run.

Owns shapes only. It must not know the rules by which they are answered (``sequencer``). Invariant: what passed `check_runs` can
be taken apart without a further look at its shape.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import InvalidKey, ProtocolError
from trilogue.actors.protocol.ids import check_key
from trilogue.actors.protocol.keys import KnownKey
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Floor, Numbered, Run, Trim

Source = Hashable
"""Whoever submitted: opaque here, a connection in production."""


class Submitted(NamedTuple):
    """Runs as they came: [session, sender_id, first_n, [sent_at_us …], [body …]], and a sixth item [key or None …] if any has a
    key. Their shape was checked by `check_runs`."""

    source: Source
    runs: list[list[Any]]
    now_us: int


class GivenUp(NamedTuple):
    """Numbers whose messages will never come: [session, sender_id, n]."""

    source: Source
    numbers: list[list[Any]]
    now_us: int


class FrameCommitted(NamedTuple):
    """The frame that `cut_frame` made for this index, and all before it, are on every store."""

    upto: int


class Recalled(NamedTuple):
    """What the log holds of a retry's numbers, in the order of n; None when no store could be asked."""

    retry: Retry
    records: list[Numbered] | None


class Wanted(NamedTuple):
    """Whoever `waiter` is needs to know how far these sessions may be read."""

    waiter: Any
    sessions: list[str]


class Told(NamedTuple):
    """What a store says of a session: the last of its seqs, and its senders' last numbers. `whole`: all senders are named,
    otherwise those that were asked for, as far as the session has them. So with the keys that are honoured."""

    last_seq: int
    last_n: dict[str, int]
    whole: bool
    keys: dict[str, KnownKey] = {}  # noqa: RUF012  # never changed
    keys_whole: bool = False


class Question(NamedTuple):
    """A session whose state is asked for, with the senders and keys that are missed."""

    session: str
    senders: list[str]
    keys: list[str]


class LookedUp(NamedTuple):
    """A store's answer to the beginning of what `LookUp` asked for, one for each session; None: no store answers for any of
    them."""

    asked: list[Question]
    told: list[Told] | None
    now_us: int


class Refusal(NamedTuple):
    """Nothing of this run was stored."""

    session: str
    sender_id: str
    first_n: int
    messages: int
    code: int
    text: str
    expected_n: int


class Answered(NamedTuple):
    """Runs that are stored: [session, sender_id, first_n, count, first_seq, duplicate] (first_seq 0: a skip)."""

    source: Source
    acks: list[tuple[str, str, int, int, int, bool]]


class Refused(NamedTuple):
    """Runs of which nothing was stored."""

    source: Source
    refusals: list[Refusal]


class Recall(NamedTuple):
    """Read what the log holds of the retry's numbers; everything numbered before it is committed."""

    retry: Retry


class Readable(NamedTuple):
    """Runs that readers may see from now on, in seq order within each session."""

    runs: list[Run]


class LookUp(NamedTuple):
    """Ask a store that holds the log up to `upto`, or further, for the states of these sessions, each with senders and keys
    that must be among those it names. What goes on in them waits until `LookedUp` has come for each."""

    upto: int
    asked: list[Question]


class Loaded(NamedTuple):
    """The last readable seq of each session that the waiter wanted, as it is now; None: no store answers."""

    waiter: Any
    heads: list[int] | None


class Retry(NamedTuple):
    """A run that was submitted before."""

    source: Source
    session: str
    sender_id: str
    first_n: int
    bodies: list[bytes] | list[None]  # None: the sender gives the number up

    @property
    def last_n(self) -> int:
        """The last of its numbers."""
        return self.first_n + len(self.bodies) - 1


class Noted(NamedTuple):
    """A trim or a floor is to be logged; `waiter` is told when it is committed."""

    waiter: Any
    record: Trim | Floor


class Done(NamedTuple):
    """What the waiter wanted to be logged is committed."""

    waiter: Any


Event = Noted | Submitted | GivenUp | FrameCommitted | Recalled | Wanted | LookedUp
Effect = Done | Answered | Refused | Recall | Readable | LookUp | Loaded

_BYTES, _INTS = {bytes}, {int}


def check_runs(runs: list[Any], limits: Limits) -> bool:
    """Whether any of them has keys. Raises `ProtocolError` unless each has a submitted run's shape; names are not looked at."""
    run_messages_max, keyed = limits.run_messages_max, False
    for run in runs:
        if type(run) is list and len(run) in (5, 6):
            session, sender_id, first_n, sent_at_us, bodies = run if len(run) == 5 else run[:5]
            if (
                type(session) is str and type(sender_id) is str and type(first_n) is int and first_n > 0
                and type(sent_at_us) is list and type(bodies) is list and 0 < len(bodies) == len(sent_at_us) <= run_messages_max
                and {*map(type, bodies)} == _BYTES and {*map(type, sent_at_us)} == _INTS
            ):  # fmt: skip
                if len(run) == 5:
                    continue
                keyed = True
                if type(run[5]) is list and len(run[5]) == len(bodies) <= limits.keyed_run_messages_max:
                    _check_keys(run[5])
                    continue
        raise ProtocolError("a submitted run has an unknown shape")
    return keyed


def _check_keys(keys: list[Any]) -> None:
    try:
        for key in keys:
            if key is not None:
                check_key(key)
    except InvalidKey as error:
        raise ProtocolError(str(error)) from None
