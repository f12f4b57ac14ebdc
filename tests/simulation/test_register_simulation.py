"""The register under lost, late and repeated messages, crashes, an emptied directory and moves of its charter, from one seed.

Every planted bug must be noticed within its seeds: a net that no bug was ever caught in proves nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from simulated.register_bugs import REGISTER_BUGS, first_register_anomaly, plant_in_register
from simulated.register_judge import Judge
from simulated.register_world import World

CHUNKS, CHUNK_SEEDS = 4, 500


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_the_register_G2_G11(chunk: int) -> None:
    seeds = range(chunk * CHUNK_SEEDS, (chunk + 1) * CHUNK_SEEDS)
    assert [f"seed {seed}: {anomaly}" for seed in seeds for anomaly in World(seed).play()[:1]] == []


def test_schedules_are_as_bad_as_they_claim() -> None:
    done = refused = reads = moves = charters_seen = 0
    for seed in range(80):
        world = World(seed)
        world.play()
        judge = world.judge
        done, refused, reads, moves = done + judge.done, refused + judge.refused, reads + judge.reads, moves + judge.moves
        charters_seen += len(judge.charters)
    assert min(done, refused, reads) > 100
    assert moves > 50
    assert charters_seen > 100


def test_same_seed_makes_the_same_schedule() -> None:
    first, second = World(5), World(5)
    first.play()
    second.play()
    assert first.judge.votes == second.judge.votes
    assert first.judge.votes


@pytest.mark.parametrize("name", REGISTER_BUGS)
def test_planted_bug_is_caught_by_the_judge_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_in_register(name, monkeypatch.setattr)
    seeds, _ = first_register_anomaly(name)
    assert seeds, f"{name!r} was not noticed in {REGISTER_BUGS[name].seeds} seeds"


# ---------------------------------------------------------------------- the judge itself

B1, B2 = (1, "p"), (2, "q")


def judged(*facts: tuple[Any, ...]) -> str:
    judge = Judge({"a", "b", "c"})
    for kind, *parts in facts:
        getattr(judge, kind)(*parts)
    return judge.anomalies[0] if judge.anomalies else ""


def in_force(key: str, version: int, data: bytes, ballot: Any = B1, number: int = 1) -> list[tuple[Any, ...]]:
    return [("accepted", acceptor, number, key, ballot, (version, data, False)) for acceptor in "ab"]


def test_judge_finds_nothing_in_a_good_history() -> None:
    told = [("found", "x", 1, b"d", 1), ("set", "x", 0, b"d", 1), ("not_in_force", "x", 0, b"e", 1, b"d", False, 0)]
    assert judged(*in_force("x", 1, b"d"), *told) == ""


@pytest.mark.parametrize(
    ("what", "facts"),
    [
        ("two values", [("accepted", "a", 1, "x", B1, (1, b"d", False)), ("accepted", "b", 1, "x", B1, (1, b"e", False))]),
        ("is both", [*in_force("x", 1, b"d"), *in_force("x", 1, b"e", B2)]),
        ("without a majority", [("accepted", "a", 1, "x", B1, (1, b"d", False)), ("set", "x", 0, b"d", 1)]),
        ("without a majority", [*in_force("x", 1, b"d", number=2), ("set", "x", 0, b"d", 1)]),
        ("never in force", [("found", "x", 1, b"d", 0)]),
        ("had been in force before", [*in_force("x", 1, b"d"), ("found", "x", 0, None, 1)]),
        ("never done, and is there", [("said_never", b"d"), *in_force("x", 1, b"d")]),
        ("never done, and had been", [*in_force("x", 1, b"d"), ("said_never", b"d")]),
        ("which is in force", [*in_force("x", 1, b"d"), ("not_in_force", "x", 1, b"e", 1, b"d", True, 1)]),
    ],
)
def test_judge_finds_each_kind_of_anomaly(what: str, facts: list[tuple[Any, ...]]) -> None:
    assert what in judged(*facts)
