"""Bugs to plant into the register: each takes one rule out of it, and the simulation must notice.

Owns, for each bug, what is replaced, and within how many schedules the judge alone must notice: the register's own invariants
are taken out. The first six are those of the model of design §7 (`register_model.py`), under their names there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from simulated.register_world import World
from trilogue.actors.protocol.register import charter as charters
from trilogue.actors.protocol.register import proposal as proposals
from trilogue.actors.protocol.register import votes
from trilogue.actors.protocol.register.proposal import CompareAndSet, NotInForce, Proposal, Settled
from trilogue.actors.protocol.register.votes import Ballot, Ballots, Cell, Vote


class RegisterBug(NamedTuple):
    """`patches` are put in place; an anomaly must show within the first `seeds` seeds."""

    what: str
    patches: list[tuple[Any, str, Any]]
    seeds: int


def _tie_is_a_promise(cell: Cell, ballot: Ballot) -> tuple[Cell | None, Vote]:
    if ballot < cell.promised or ballot == votes.NO_BALLOT:
        return None, Vote(False, *cell)
    return cell._replace(promised=ballot), Vote(True, ballot, cell.accepted, cell.value)


def _same_ballots(self: Any) -> Ballot:
    self._n += 1
    return Ballot(self._n, "p")


def _promise_is_not_kept(cell: Cell, ballot: Ballot, prepare: Any = votes.prepare) -> tuple[Cell | None, Vote]:
    return None, prepare(cell, ballot)[1]


def _silence_is_no(self: Any, again: Any = Proposal._again) -> list[Any]:
    self._phase = proposals._Phase.OVER
    if isinstance(self._operation, CompareAndSet):
        return [Settled(NotInForce(-1, None, False))]
    effects: list[Any] = again(self)
    return effects


def _retry_says_no(self: Any, version: int, data: bytes | None) -> NotInForce:
    return NotInForce(version, data, False)


def _one_voice_is_in_force(self: Any, old: Any, new: Any, then: Any, in_force: bool, propose: Any = Proposal._propose) -> Any:
    return propose(self, old, new, then, in_force or self._phase is proposals._Phase.LOOK)


REGISTER_MODEL = {
    "old_charter_ok": RegisterBug(
        "a charter is left without a mark: rounds go on under the old one", [(proposals, "_marked", lambda value: value)], 40
    ),
    "ballot_reuse": RegisterBug(
        "a proposer that is started again begins its ballots anew",
        [(votes, "prepare", _tie_is_a_promise), (Ballots, "draw", _same_ballots)],
        60,
    ),
    "amnesia": RegisterBug("an acceptor that lost its memory takes part", [(charters, "takes_part", lambda *_: True)], 40),
    "promise_unsynced": RegisterBug("answers before the promise is durable", [(votes, "prepare", _promise_is_not_kept)], 60),
    "timeout_is_no": RegisterBug("takes a round without an answer to have failed", [(Proposal, "_again", _silence_is_no)], 20),
    "retry_says_no": RegisterBug(
        "a repeated compare-and-set that finds another version says that it was never done",
        [(Proposal, "_not_in_force", _retry_says_no)],
        150,
    ),
}

REGISTER_OWN = {
    "one_voice_is_in_force": RegisterBug(
        "takes what one acceptor holds to be in force", [(Proposal, "_propose", _one_voice_is_in_force)], 60
    ),
}

REGISTER_BUGS = {**REGISTER_MODEL, **REGISTER_OWN}


def plant_in_register(name: str, put: Callable[[Any, str, Any], None]) -> None:
    """Put the bug in place, and take the register's own invariants out."""
    for module in (votes, charters, proposals):
        put(module, "require", lambda *_: None)
    for owner, attribute, replacement in REGISTER_BUGS[name].patches:
        put(owner, attribute, replacement)


def first_register_anomaly(name: str) -> tuple[int, str]:
    """How many schedules it took until one showed the planted bug, and what was wrong then; (0, "") if none did."""
    for seed in range(REGISTER_BUGS[name].seeds):
        if found := World(seed).play():
            return seed + 1, found[0]
    return 0, ""
