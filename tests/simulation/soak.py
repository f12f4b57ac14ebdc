"""Plays stories until it is stopped, on all cores, and says what happened in them.

.venv/bin/python tests/simulation/soak.py                    until Ctrl-C; the first seed follows from the clock
.venv/bin/python tests/simulation/soak.py --seeds 20000      so many, from seed 0
.venv/bin/python tests/simulation/soak.py --minutes 30 --first 1000000
Exit code 1: a story broke a promise. Each that did is printed with the command that replays it, and that one which shrinks it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from simulated.shrink import anomalies_of
from simulated.story import Story

CHUNK = 20
SAY_EVERY_S = 30.0
REPLAY = ".venv/bin/python tests/simulation/replay.py"


class Played(NamedTuple):
    """What some stories came to."""

    seeds: int
    covered: Counter[str]
    failed: list[tuple[int, str]]


def play_chunk(first: int, count: int) -> Played:
    """Stories one after the other."""
    covered: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    for seed in range(first, first + count):
        story = Story(seed)
        try:
            anomalies = story.play().anomalies
        except Exception:
            anomalies = anomalies_of(seed)  # again, for its words
        covered.update(story.covered)
        covered["simulated ms in all"] += story.now
        covered.update(f"history: {fact[0]}" for fact in story.history)
        if anomalies:
            failed.append((seed, anomalies[0]))
    return Played(count, covered, failed)


def report(seeds: int, covered: Counter[str], failed: int, took_s: float) -> str:
    """The whole account, for people."""
    hours = covered["simulated ms in all"] / 3_600_000
    lines = [f"{seeds} stories, {hours:.2f} simulated hours, in {took_s:.0f} s; {failed} broke a promise"]
    for prefix, title in (("fault: ", "faults injected"), ("history: ", "the history"), ("", "transitions covered")):
        names = [name for name in sorted(covered) if name.startswith(prefix) and "simulated ms" not in name]
        if not prefix:
            names = [name for name in names if not name.startswith(("fault: ", "history: "))]
        lines.append(f"\n{title}:")
        lines += [f"  {covered[name]:>9}  {name.removeprefix(prefix)}" for name in names]
    return "\n".join(lines)


def soak(first: int, seeds: int | None, minutes: float | None, processes: int) -> bool:
    """Play until the seeds or the time are over, or Ctrl-C; whether a promise was broken."""
    began = said = time.monotonic()
    end = began + 60 * minutes if minutes is not None else None
    last = first + seeds if seeds is not None else None
    covered: Counter[str] = Counter()
    played = failed = 0
    chunks = itertools.count(first, CHUNK) if last is None else iter(range(first, last, CHUNK))
    running: set[Future[Played]] = set()
    with ProcessPoolExecutor(processes) as pool:
        try:
            while True:
                while len(running) < 2 * processes and (end is None or time.monotonic() < end):
                    if (at := next(chunks, None)) is None:
                        break
                    running.add(pool.submit(play_chunk, at, CHUNK if last is None else min(CHUNK, last - at)))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in (future.result() for future in done):
                    played += one.seeds
                    covered.update(one.covered)
                    failed += len(one.failed)
                    for seed, anomaly in one.failed:
                        print(f"seed {seed}: {anomaly}\n    {REPLAY} {seed}\n    {REPLAY} {seed} --shrink", flush=True)
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    print(f"{played} stories, {failed} broke a promise, {said - began:.0f} s", flush=True)
        except (KeyboardInterrupt, BrokenProcessPool) as stopped:
            print(f"stopped: {type(stopped).__name__}", flush=True)
            for future in running:
                future.cancel()
    print(report(played, covered, failed, time.monotonic() - began))
    return failed > 0


def main() -> int:
    """0: every promise held; 1: one was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="so many stories (default: until Ctrl-C)")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--first", type=int, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    fresh = 0 if asked.seeds is not None else int(time.time()) % 1_000_000 * 1_000
    first = asked.first if asked.first is not None else fresh
    return int(soak(first, asked.seeds, asked.minutes, asked.processes))


if __name__ == "__main__":
    sys.exit(main())
