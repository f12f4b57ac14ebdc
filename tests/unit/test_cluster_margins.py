"""How many more stores may be lost, before acks stop and before the register does (G11)."""

from __future__ import annotations

from typing import Any

import pytest

from trilogue.cluster.commands.margins import in_words, margins, register_of

KEEPERS = ["store-1", "store-2", "store-3"]


def store(charter: int = 1, *, member: bool = True) -> dict[str, Any]:
    return {"register": {"acceptor": "x", "charter": charter, "acceptors": KEEPERS, "member": member}}


def partition(members: int = 3, spares: int = 1, state: str = "open") -> dict[str, Any]:
    return {"state": state, "stores": ["s"] * members, "spares": ["s"] * spares}


def register(answering: int) -> dict[str, Any]:
    return {"charter": 1, "stores": KEEPERS, "answering": KEEPERS[:answering], "may_lose": answering - 2}


def test_who_has_lost_its_memory_or_does_not_answer_is_no_vote() -> None:
    stores = {"store-1": store(), "store-2": store(member=False), "store-4": store(member=False)}
    assert register_of(stores) == {"charter": 1, "stores": KEEPERS, "answering": ["store-1"], "may_lose": -1}
    assert register_of({"store-1": {"register": "not open"}})["may_lose"] is None
    assert register_of({"store-1": store(charter=0, member=False)})["may_lose"] is None


def test_the_newest_charter_counts() -> None:
    old = {"register": {"charter": 1, "acceptors": ["store-9"], "member": True}}
    found = register_of({"store-1": store(2), "store-2": store(2), "store-9": old})
    assert (found["charter"], found["answering"]) == (2, ["store-1", "store-2"])


@pytest.mark.parametrize(
    ("members", "spares", "min_copies", "answering", "there", "acks", "of_register"),
    [
        (3, 1, 3, 3, 4, (1, 1), (1, 2)),  # the default
        (3, 0, 3, 3, 3, (0, 0), (1, 1)),  # no spare store
        (3, 0, 2, 3, 3, (1, 1), (1, 1)),  # min_copies=2
        (3, 2, 2, 3, 5, (1, 3), (1, 3)),  # two at once change nothing
        (3, 1, 3, 2, 3, (0, 1), (0, 1)),  # one keeper is away: the charter moves, if there is time
        (1, 3, 1, 3, 4, (0, 0), (1, 2)),  # one copy
        (2, 0, 3, 3, 3, (0, 0), (1, 1)),  # fewer than there should be
    ],
)
def test_margins(
    members: int, spares: int, min_copies: int, answering: int, there: int, acks: tuple[int, int], of_register: tuple[int, int]
) -> None:
    found = margins([partition(members, spares), partition(3, 3)], register(answering), there, min_copies)
    assert (found["acks"]["at_once"], found["acks"]["in_turn"]) == acks
    assert (found["register"]["at_once"], found["register"]["in_turn"]) == of_register


def test_what_stands_still_has_no_margin() -> None:
    found = margins([partition(state="waiting: …")], register(1), 4, 3)
    assert found == {"acks": {"at_once": None, "in_turn": None}, "register": {"at_once": None, "in_turn": None}}
    assert "it stands still" in in_words(found)
    assert margins([partition()], register(1), 4, 3)["acks"] == {"at_once": 0, "in_turn": 0}
    assert margins([], register(3), 4, None)["acks"]["at_once"] is None


def test_the_words() -> None:
    found = margins([partition()], register(3), 4, 3)
    assert (
        in_words(found)
        == "before acks stop: 1 one after another, 1 at once; before the register stops: 2 one after another, 1 at once"
    )
    assert "before acks stop: none" in in_words(margins([partition(3, 0)], register(3), 3, 3))
