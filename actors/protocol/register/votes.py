"""What one acceptor of the register decides, and how it is said (design §7).

Owns a cell's rules and the wire shapes of ballots and values. It must not know who else votes, nor how a cell gets to disk.
Rules:

1. A ballot belongs to one process start: (n, proposer), where `proposer` is new with every start, and no n is used twice.
2. A promise is given to a ballot above every promise before it, never to an equal one; it says what was accepted so far.
3. A value is accepted under a ballot that no promise is above. Under one ballot there is one value.
4. Whoever runs this keeps the new cell durably *before* the answer leaves: `None` instead of a cell means nothing to keep.
5. A promise asked with `NO_BALLOT` is never given, and so only looks: it writes nothing and disturbs no one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.invariants import require

KEY_BYTES_MAX = 255
NUMBER_MAX = 2**62


class Ballot(NamedTuple):
    """Who may speak: the higher one. Unique for each round of each process start."""

    n: int
    proposer: str


class Value(NamedTuple):
    """What a key holds. Version 0: absent. `moved`: it is the last one under this charter, the next charter goes on from it."""

    version: int
    data: bytes
    moved: bool


class Cell(NamedTuple):
    """What one acceptor keeps for one key under one charter."""

    promised: Ballot
    accepted: Ballot
    value: Value | None


class Vote(NamedTuple):
    """An acceptor's answer. To a refusal `promised` says which ballot is in the way."""

    ok: bool
    promised: Ballot
    accepted: Ballot
    value: Value | None


NO_BALLOT = Ballot(0, "")
ABSENT = Value(0, b"", False)
EMPTY = Cell(NO_BALLOT, NO_BALLOT, None)


def prepare(cell: Cell, ballot: Ballot) -> tuple[Cell | None, Vote]:
    """Promise to accept nothing below `ballot`, or refuse (rule 2)."""
    if ballot <= cell.promised:
        return None, Vote(False, *cell)
    return cell._replace(promised=ballot), Vote(True, ballot, cell.accepted, cell.value)


def accept(cell: Cell, ballot: Ballot, value: Value) -> tuple[Cell | None, Vote]:
    """Take `value`, or refuse (rule 3). The same one again is a yes, and needs no keeping."""
    if ballot < cell.promised or ballot == NO_BALLOT:
        return None, Vote(False, *cell)
    if ballot == cell.accepted:
        require(value == cell.value, "ballot {} of the register has two values", ballot)
        return None, Vote(True, *cell)
    return Cell(ballot, ballot, value), Vote(True, ballot, ballot, value)


class Ballots:
    """The ballots of one process start. All its operations draw from one of these, so none is used twice (rule 1)."""

    def __init__(self, proposer: str) -> None:
        """`proposer` is new for every start of a process: a UUID."""
        require(proposer, "a proposer has a name")
        self._proposer = proposer
        self._n = 0

    def draw(self) -> Ballot:
        """A ballot that was never used, above all that were seen."""
        self._n += 1
        return Ballot(self._n, self._proposer)

    def seen(self, ballot: Ballot) -> None:
        """Another proposer's ballot is in the way: the next one goes above it."""
        self._n = max(self._n, ballot.n)


# ---------------------------------------------------------------------- how it is said


def check_key(key: Any) -> str:
    """Return `key` if it may name a cell; raise `ProtocolError` otherwise."""
    if isinstance(key, str) and 0 < len(key.encode("utf-8", "replace")) <= KEY_BYTES_MAX:
        return key
    raise ProtocolError(f"a key of the register is a str of 1 to {KEY_BYTES_MAX} bytes")


def ballot_from(fields: Any) -> Ballot:
    """A ballot as it came. Raises `ProtocolError`."""
    match fields:
        case [int(n), str(proposer)] if type(n) is int and 0 <= n < NUMBER_MAX and (n == 0) == (proposer == ""):
            return Ballot(n, proposer)
    raise ProtocolError("a ballot of unknown shape")


def value_from(fields: Any, data_bytes_max: int) -> Value:
    """A value as it came. Raises `ProtocolError`."""
    match fields:
        case [int(version), bytes(data), bool(moved)] if type(version) is int and 0 <= version < NUMBER_MAX:
            if len(data) <= data_bytes_max and (version > 0 or not data):
                return Value(version, data, moved)
    raise ProtocolError("a value of the register of unknown shape")


def vote_from_prepare(fields: Any, data_bytes_max: int) -> Vote:
    """The answer to PREPARE as it came. Raises `ProtocolError`."""
    match fields:
        case [bool(ok), promised, accepted, value]:
            ballots = ballot_from(promised), ballot_from(accepted)
            if (ballots[1] == NO_BALLOT) == (value is None):
                return Vote(ok, *ballots, None if value is None else value_from(value, data_bytes_max))
    raise ProtocolError("an answer to PREPARE of unknown shape")


def vote_from_accept(fields: Any) -> Vote:
    """The answer to ACCEPT as it came. Raises `ProtocolError`."""
    match fields:
        case [bool(ok), promised]:
            return Vote(ok, ballot_from(promised), NO_BALLOT, None)
    raise ProtocolError("an answer to ACCEPT of unknown shape")
