"""Makes a failing story short: steps are left out as long as it still fails in the same way.

Owns the search only. It must not know what a step is. Whatever is left out changes what follows by chance, so a story may need
several rounds, and what remains is a short one that fails, not the shortest.
"""

from __future__ import annotations

from collections.abc import Callable
from traceback import extract_tb

from simulated.plan import Step
from simulated.story import Story, play

PLAYS_MAX = 600


def kind_of(anomaly: str) -> str:
    """What an anomaly begins with."""
    return anomaly.partition(":")[0]


def anomalies_of(seed: int, profile: str = "", only: set[int] | None = None) -> list[str]:
    """What is wrong with a story; an exception anywhere in it is an anomaly, too."""
    try:
        return play(seed, profile, only=only).anomalies
    except Exception as error:
        where = extract_tb(error.__traceback__)[-1]
        return [f"crash: {type(error).__name__}: {error} in {where.name}, line {where.lineno} of {where.filename}"]


def shrunk(steps: list[int], fails: Callable[[set[int]], bool], plays_max: int = PLAYS_MAX) -> list[int]:
    """A small part of `steps` with which it still fails: halves are tried first, then ever smaller pieces."""
    left, size, plays = list(steps), max(1, len(steps) // 2), 0
    while plays < plays_max:
        before = len(left)
        for at in range(len(left) - size, -size, -size):
            rest = left[: max(0, at)] + left[max(0, at) + size :]
            plays += 1
            if len(rest) < len(left) and fails(set(rest)):
                left = rest
        if size == 1 and len(left) == before:
            break
        size = max(1, size // 2)
    return left


def shrink(seed: int, profile: str = "") -> tuple[list[Step], list[str]]:
    """The steps that remain of a failing story, and its anomalies with these alone."""
    kind = kind_of(anomalies_of(seed, profile)[0])
    steps = Story(seed, profile).steps
    faults_last = [step.number for step in steps]

    def fails(only: set[int]) -> bool:
        found = anomalies_of(seed, profile, only)
        return bool(found) and kind_of(found[0]) == kind

    left = set(shrunk(faults_last, fails))
    return [step for step in steps if step.number in left], anomalies_of(seed, profile, left)
