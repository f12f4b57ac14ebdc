"""How many more stores may be lost before acks stop, and before the register does (design §7): from what the actors say.

Owns the counting, on the shape of `trilogue status`. It must not know how the status is gathered. Both numbers say two things:
`at_once` is for any stores in one instant, `in_turn` for one after another, each when what the one before caused is over
(spare stores have taken its place, and the register has moved). None: it stands still, or cannot be known. Rules:

1. A change of an ensemble needs the register; and a writer that misses two members at once changes nothing. So of two that are
   lost in one instant one must come back.
2. A partition acks as long as `min_copies` stores are there for it.
3. The register needs a majority of its charter. One after another it moves to others, and ends where two of three are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trilogue.actors.protocol.register.charter import FOUNDERS


def register_of(stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The register as the stores that answer tell it: the newest charter, and who votes under it.

    `may_lose`: how many of those may be lost in one instant; below 0, it stands still; None: there is no charter yet.
    """
    told = {name: one["register"] for name, one in stores.items() if isinstance(one.get("register"), dict)}
    number = max((int(one["charter"]) for one in told.values()), default=0)
    keepers = next((sorted(one["acceptors"]) for one in told.values() if one["charter"] == number), [])
    answering = [name for name in keepers if name in told and _votes(told[name], number)]
    majority = len(keepers) // 2 + 1
    return {
        "charter": number,
        "stores": keepers,
        "answering": answering,
        "may_lose": len(answering) - majority if number else None,
    }


def _votes(one: Mapping[str, Any], number: int) -> bool:
    """Whether the store has the memory that the charter names: it knows the charter, and is one of its members."""
    return bool(one["member"]) and one["charter"] == number


def margins(
    partitions: Sequence[Mapping[str, Any]], register: Mapping[str, Any], there: int, min_copies: int | None
) -> dict[str, dict[str, int | None]]:
    """`there`: how many stores answer and are open."""
    of_register = _of_register(register, there)
    return {"acks": _of_acks(partitions, of_register, min_copies), "register": of_register}


def _of_register(register: Mapping[str, Any], there: int) -> dict[str, int | None]:
    at_once = register["may_lose"]
    if at_once is None or at_once < 0:
        return {"at_once": None, "in_turn": None}
    size = max(len(register["stores"]), min(FOUNDERS, there))
    return {"at_once": at_once, "in_turn": max(at_once, there - (size // 2 + 1))}


def _of_acks(
    partitions: Sequence[Mapping[str, Any]], of_register: Mapping[str, int | None], min_copies: int | None
) -> dict[str, int | None]:
    if min_copies is None or not partitions or any(one["state"] != "open" for one in partitions):
        return {"at_once": None, "in_turn": None}
    at_once, in_turn = of_register["at_once"], of_register["in_turn"]
    if at_once is None or in_turn is None or any(len(one["stores"]) < 2 for one in partitions):
        return {"at_once": 0, "in_turn": 0}
    more = max(0, min(len(one["stores"]) + len(one["spares"]) - min_copies for one in partitions))
    return {"at_once": min(1, more, at_once), "in_turn": min(more, in_turn)}


def in_words(found: Mapping[str, Mapping[str, int | None]]) -> str:
    """The margins in one line, for people."""
    return f"before acks stop: {_some(found['acks'])}; before the register stops: {_some(found['register'])}"


def _some(one: Mapping[str, int | None]) -> str:
    if one["in_turn"] is None:
        return "it stands still now"
    if one["in_turn"] == 0:
        return "none"
    return f"{one['in_turn']} one after another, {one['at_once']} at once"
