"""Replays a story of the simulation with its whole trace, shrinks one that fails, or plays many.

.venv/bin/python tests/simulation/replay.py 1234                    the whole trace
.venv/bin/python tests/simulation/replay.py 1234 --shrink           few steps with which it still fails, and their trace
.venv/bin/python tests/simulation/replay.py 1234 --only 3,17,101    the story with these steps alone
.venv/bin/python tests/simulation/replay.py 0-5000                  a line for each that breaks a promise
With --profile NAME the story is of that profile; with --bug NAME a bug of `simulated/bugs.py` is planted first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from simulated.bugs import BUGS, plant
from simulated.plan import PROFILES
from simulated.shrink import anomalies_of, shrink
from simulated.story import Story


def replay(seed: int, profile: str, only: set[int] | None) -> bool:
    """One story, line by line; whether a promise was broken."""
    story = Story(seed, profile, only)
    story.keep_trace = True
    print(f"seed {seed}, profile {story.profile}, the plan:")
    for step in story.steps:
        print("   ", step)
    outcome = None
    try:
        outcome = story.play()
    finally:
        print("\n".join(story.trace))
    print(f"seed {seed}: trace {outcome.fingerprint}")
    for anomaly in outcome.anomalies:
        print("ANOMALY", anomaly)
    return bool(outcome.anomalies)


def shrink_and_replay(seed: int, profile: str) -> bool:
    """The story with as few steps as may be."""
    if not anomalies_of(seed, profile):
        print(f"seed {seed} breaks no promise: there is nothing to shrink")
        return False
    before = len(Story(seed, profile).steps)
    left, _ = shrink(seed, profile)
    numbers = ",".join(str(step.number) for step in left)
    print(f"{len(left)} of {before} steps are left: --only {numbers}")
    return replay(seed, profile, {step.number for step in left})


def play_many(first: int, last: int, profile: str) -> bool:
    """Many stories; a line for each that broke a promise."""
    broken = 0
    for seed in range(first, last):
        if found := anomalies_of(seed, profile):
            broken += 1
            print(f"seed {seed}: {found[0]}", flush=True)
    print(f"{last - first} stories, {broken} broke a promise")
    return broken > 0


def main() -> int:
    """0: every promise held; 1: one was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", help="a seed, or FIRST-LAST")
    parser.add_argument("--profile", default="", choices=["", *PROFILES])
    parser.add_argument("--bug", choices=sorted(BUGS))
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--only", help="numbers of steps, with commas")
    asked = parser.parse_args()
    if asked.bug:
        plant(BUGS[asked.bug], setattr)
        asked.profile = asked.profile or BUGS[asked.bug].profile
    first, _, last = asked.seed.partition("-")
    if last:
        return int(play_many(int(first), int(last), asked.profile))
    if asked.shrink:
        return int(shrink_and_replay(int(first), asked.profile))
    only = {int(number) for number in asked.only.split(",")} if asked.only is not None else None
    return int(replay(int(first), asked.profile, only))


if __name__ == "__main__":
    sys.exit(main())
