"""What ARCHITECTURE.md says of tests: each one exists, and each promise is proved where it is said to be, on two floors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PROMISES = dict(re.findall(r"^\| (G\d+) [^|]*\|[^|]*\| ([^|]*) \|$", TEXT, re.MULTILINE))
FAULTS = re.findall(r"^\| ([^|]+) \|[^|]*\|[^|]*\| ([^|]*) \|$", TEXT.partition("## What fails")[2], re.MULTILINE)[2:]
OF_THE_ROW_ABOVE = "the same"


def named(cell: str) -> list[list[Path]]:
    """The files of each test that a table's cell names."""
    found = []
    for name in re.findall(r"`…?([^`]+)`", cell):
        if (TESTS / name).is_dir():
            found.append(sorted((TESTS / name).rglob("*.py")))
        else:
            found.append([path for path in TESTS.rglob("*.py") if path.match(f"*{name}.py") or path.match(f"tests/{name}.py")])
    return found


def test_the_promises_are_eleven_and_each_stands_on_two_floors_at_least() -> None:
    assert list(PROMISES) == [f"G{k}" for k in range(1, 12)]
    for promise, cell in PROMISES.items():
        floors = {path.relative_to(TESTS).parts[0] for files in named(cell) for path in files}
        assert len(floors) >= 2, promise


@pytest.mark.parametrize("promise", PROMISES)
def test_each_test_that_is_said_to_prove_a_promise_names_it(promise: str) -> None:
    for name, files in zip(re.findall(r"`([^`]+)`", PROMISES[promise]), named(PROMISES[promise]), strict=True):
        assert files, f"there is no {name}"
        texts = [path.read_text() for path in files]
        assert any(re.search(rf"(?:_|\b){promise}(?:_|\b)", text, re.IGNORECASE) for text in texts), (
            f"{name} names no {promise}"
        )


def test_each_fault_of_the_failure_table_names_a_test_that_exists() -> None:
    assert len(FAULTS) > 15
    for fault, cell in FAULTS:
        if cell != OF_THE_ROW_ABOVE:
            assert named(cell), f"{fault}: no test"
            assert all(named(cell)), f"{fault}: {cell}"
