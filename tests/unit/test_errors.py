"""Every error survives pickling (Ray carries it between processes), says what to do, and stands in the tree that is drawn."""

from __future__ import annotations

import copy
import inspect
import pickle  # noqa: TID251  # what Ray does with an error
import re

import pytest

from trilogue.actors import wire
from trilogue.actors.protocol import errors, invariants
from trilogue.actors.protocol.errors import GivenUp, HistoryTrimmed, TrilogueError, Unsent
from trilogue.actors.protocol.vocabulary import Code

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TrilogueError)]


def example(kind: type[Exception]) -> Exception:
    if kind is Unsent:
        return Unsent(3)
    if kind is GivenUp:
        return GivenUp("it may have been stored", True)
    if kind is HistoryTrimmed:
        return HistoryTrimmed("room", 7)
    return kind("the text says what to do")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_error_survives_pickling_with_its_text_and_its_class(kind: type[Exception]) -> None:
    error = example(kind)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


def test_count_of_unsent_messages_survives_pickling() -> None:
    twin = pickle.loads(pickle.dumps(Unsent(17)))  # noqa: S301
    assert twin.count == 17
    assert str(twin).startswith("17 messages were not acked")
    assert "outbox=FILE" in str(twin)


def test_all_sessions_of_which_something_is_gone_survive_pickling() -> None:
    twin = pickle.loads(pickle.dumps(HistoryTrimmed("room", 7, {"room": 7, "hall": 3})))  # noqa: S301
    assert (twin.session, twin.first_available, twin.gone) == ("room", 7, {"room": 7, "hall": 3})
    assert "after=6; so were 1 other sessions" in str(twin)
    assert HistoryTrimmed("room", 7).gone == {"room": 7}


def test_refusal_of_a_request_and_a_broken_invariant_survive_pickling() -> None:
    refused = pickle.loads(pickle.dumps(wire.Refused(Code.NOT_HERE, "ask WHERE")))  # noqa: S301
    assert (refused.code, refused.text, str(refused)) == (Code.NOT_HERE, "ask WHERE", "ask WHERE")
    assert str(pickle.loads(pickle.dumps(invariants.InvariantBroken("x")))) == "x"  # noqa: S301


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: dict[int, str] = {0: "TrilogueError"}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"^([│ ]*)[├└]── (\w+) ", line):
            depth = len(found[1]) // 4
            path[depth] = found[2]
            drawn[found[2]] = path[depth - 1]
    real = {}
    for kind in CLASSES:
        if kind is not TrilogueError:
            real[kind.__name__] = next(base.__name__ for base in kind.__bases__ if issubclass(base, TrilogueError))
    assert drawn == real


def test_each_class_says_in_its_docstring_what_it_means() -> None:
    assert [kind.__name__ for kind in CLASSES if not (kind.__doc__ or "").strip().endswith(".")] == []


def test_final_codes_are_those_that_can_never_succeed() -> None:
    final = {code.name for code in Code if code.final}
    assert final == {
        "CONFLICTING_RETRY", "INVALID_SESSION", "INVALID_SENDER", "INVALID_RANGE", "MESSAGE_TOO_LARGE", "MALFORMED",
        "CORRUPT", "PROOF_OF_LOSS", "CONFLICTING_KEY", "TRIMMED",
    }  # fmt: skip
