"""Replays a story of the simulation with its whole trace, or plays many and says which break a promise.

.venv/bin/python tests/simulation/replay.py 1234
.venv/bin/python tests/simulation/replay.py 0-5000
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from simulated.story import play


def replay(seed: int) -> bool:
    """One story, line by line; whether a promise was broken."""
    outcome = play(seed, keep_trace=True)
    for line in outcome.story.trace:
        print(line)
    print(f"seed {seed}: trace {outcome.fingerprint}")
    for anomaly in outcome.anomalies:
        print("ANOMALY", anomaly)
    return bool(outcome.anomalies)


def play_many(first: int, last: int) -> bool:
    """Many stories; a line for each that broke a promise."""
    broken = 0
    for seed in range(first, last):
        if found := play(seed).anomalies:
            broken += 1
            print(f"seed {seed}: {found[0]}", flush=True)
    print(f"{last - first} stories, {broken} broke a promise")
    return broken > 0


def main() -> int:
    """0: every promise held; 1: one was broken."""
    first, _, last = sys.argv[1].partition("-")
    return int(play_many(int(first), int(last)) if last else replay(int(first)))


if __name__ == "__main__":
    sys.exit(main())
