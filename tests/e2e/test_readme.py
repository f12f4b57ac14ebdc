"""The README, word for word: its quick start is pasted into a shell, and each of its programs is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 150.0
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
WHILE_UP, EMBEDDED = PROGRAMS[0], PROGRAMS[1:]
SAID = {
    "chat-data": ["1. alice: is anybody here?", "2. bob: I am!"],
    "order-data": ["order-7 is done"],
    "news-data": ["the news begin with story 4\n4 story 4\n5 story 5\n"],
    "table-data": ["ann said 2", "bob said 2", "3 pairs, such as", "'reply': 'no, thanks'", "me, please\\nwith milk?"],
    "task-data": ["[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] 10"],
}


@dataclass
class Newcomer:
    """Somebody with an empty home, in an empty folder on a disk."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=DEADLINE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    base = tmp_path_factory.mktemp("newcomer")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TRILOGUE_", "XDG_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return Newcomer(base, {**kept, "HOME": str(base), "XDG_STATE_HOME": str(base / "state"), "PATH": path})


def test_the_quick_start_does_what_it_says(newcomer: Newcomer) -> None:
    block = next(text for language, text in BLOCKS if language == "sh" and "trilogue up" in text)
    lines = [line for line in block.splitlines() if line.startswith("trilogue ")]
    assert lines[0].startswith("trilogue up")
    assert lines[-1].startswith("trilogue down")
    try:
        said = {line.split()[1]: newcomer.run("sh", "-c", line) for line in lines[:-1]}
        program = newcomer.run(sys.executable, "-c", WHILE_UP)
    finally:
        newcomer.run("sh", "-c", lines[-1])
    assert "alice  who wants tea?" in said["tail"]
    assert "bob  me, please" in said["tail"]
    assert "stored as number 3, on 3 disks" in program
    assert "1 alice who wants tea?" in program


def _named(program: str) -> Any:
    """A program by the name of its data; the one that starts Ray Data, too, takes half a minute, and runs in `make fault`."""
    name = re.search(r"[a-z]+-data", program)
    assert name is not None
    return pytest.param(program, id=name[0], marks=[pytest.mark.long] * (name[0] == "table-data"))


@pytest.mark.parametrize("program", [_named(program) for program in EMBEDDED])
def test_a_program_of_the_readme_runs_as_it_stands(newcomer: Newcomer, program: str) -> None:
    said = newcomer.run(sys.executable, "-c", program)
    name = re.search(r"[a-z]+-data", program)
    assert name is not None
    for line in SAID[name[0]]:
        assert line in said
