"""Writes ``BUGS.md``: which planted bug is noticed as what, and after how many seeds. `make bugs` runs it.

The first run of a bug is with the product's own invariants, as in production; the second without them, so that the judge alone
has to find it.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import simulated.bugs as planted
from simulated.register_bugs import (
    REGISTER_BUGS,
    REGISTER_MODEL,
    REGISTER_OWN,
    first_register_anomaly,
    plant_in_register,
)
from simulated.shrink import anomalies_of, kind_of

TABLE = Path(__file__).with_name("BUGS.md")

ALONE_SEEDS_MAX = 400

HEAD = """\
# Planted bugs, and what finds them

Each bug takes one rule out of the product; the simulation plays the stories of one profile, from seed 0 on, until something is
wrong. *Seeds* is how many stories that took, *at most* how many the test allows. *By the judge alone*: the same with the
product's own invariants taken out (400 stories at most), so that only what clients, readers and the witness see can find it.
The register's bugs have a simulation of their own (`test_register_simulation.py`), always judged without the invariants.
Made by `make bugs` (`tests/simulation/bug_table.py`); a test compares the names with the code.

"""

COLUMNS = """\
| bug | what it does | profile | seeds (at most) | found as | by the judge alone |
|---|---|---|---|---|---|
"""

REGISTER_COLUMNS = """\
| bug | what it does | seeds (at most) | found as, by the judge alone |
|---|---|---|---|
"""


class Found(NamedTuple):
    """How many stories it took, and what was wrong then; 0: nothing was."""

    seeds: int
    anomaly: str

    def __str__(self) -> str:
        return f"{self.seeds}: {kind_of(self.anomaly)}" if self.seeds else "not found"


def first_anomaly(name: str, without_invariants: bool = False, known: int = 0) -> Found:
    """Plays the bug's stories until one shows it, first the one that is known to. Leaves the bug planted: call it in a process
    of its own.

    An exception is no merit of the net's: a patch may be at odds with what it was put into.
    """
    bug = planted.BUGS[name]
    planted.plant(bug, setattr)
    if without_invariants:
        planted.take_out_invariants(setattr)
    seeds = range(min(bug.seeds, ALONE_SEEDS_MAX) if without_invariants else bug.seeds)
    for seed in (*seeds[known - 1 : known], *seeds):
        if (found := anomalies_of(seed, bug.profile)) and kind_of(found[0]) != "crash":
            return Found(seed + 1, found[0])
    return Found(0, "")


def row(name: str) -> tuple[bool, str]:
    """Whether it was found, and one line of the table. Leaves the bug planted: call it in a process of its own."""
    bug, found, alone = planted.BUGS[name], first_anomaly(name), first_anomaly(name, without_invariants=True)
    what = bug.what + (" (in the glue)" if bug.glue else "")
    seeds = f"{found.seeds or '**none**'} ({bug.seeds})"
    return found.seeds > 0, f"| `{name}` | {what} | {bug.profile} | {seeds} | {kind_of(found.anomaly)} | {alone} |"


def register_row(name: str) -> tuple[bool, str]:
    """As `row`, for the register's table."""
    bug = REGISTER_BUGS[name]
    plant_in_register(name, setattr)
    seeds, anomaly = first_register_anomaly(name)
    return seeds > 0, f"| `{name}` | {bug.what} | {seeds or '**none**'} ({bug.seeds}) | {kind_of(anomaly)} |"


def table(rows: dict[str, str]) -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in (
        ("The log's model's twenty", planted.LOG_MODEL),
        ("Of stores, sequencer, client and readers", planted.OWN),
    ):
        parts.append(f"## {title}\n\n{COLUMNS}" + "\n".join(rows[name] for name in names) + "\n\n")
    for title, names in (("The register's model's six", REGISTER_MODEL), ("Of the register", REGISTER_OWN)):
        parts.append(f"## {title}\n\n{REGISTER_COLUMNS}" + "\n".join(rows[name] for name in names) + "\n\n")
    absent = "\n".join(f"- `{name}`: {why}." for name, why in planted.ABSENT.items())
    return "".join(parts) + f"Not planted:\n\n{absent}\n"


def known_seeds(page: str) -> dict[str, int]:
    """After how many stories each bug was found when the page was made."""
    seeds = {name: line.split(" | ")[3].partition(" ")[0] for name, line in rows_of(page).items() if name in planted.BUGS}
    return {name: int(seed) for name, seed in seeds.items() if seed.isdigit()}


def rows_of(page: str) -> dict[str, str]:
    """The rows of a page that was made before."""
    return {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}


def main() -> int:
    """0: all were found; 1: some were not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BUG", help="these alone; the other rows stay (default: all)")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    names = asked.names or [*planted.BUGS, *REGISTER_BUGS]
    rows = rows_of(TABLE.read_text()) if asked.names and TABLE.exists() else {}
    missing = []
    with ProcessPoolExecutor(asked.processes, max_tasks_per_child=1) as pool:
        runs = [pool.submit(register_row if name in REGISTER_BUGS else row, name) for name in names]
        for name, run in zip(names, runs, strict=True):
            was_found, rows[name] = run.result()
            print(rows[name], flush=True)
            missing += [] if was_found else [name]
    TABLE.write_text(table({**dict.fromkeys([*planted.BUGS, *REGISTER_BUGS], ""), **rows}))
    print(f"{len(names)} bugs, not found: {', '.join(missing) or 'none'}; see {TABLE}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
