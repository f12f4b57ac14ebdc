"""`launch` in a plain program: it brings its own Ray, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trilogue.cluster.on_ray.processes import alive

from .conftest import eventually

DEADLINE_S = 90.0

PROGRAM = """
import sys
from trilogue.client import SyncClient
from trilogue.cluster import launch

with launch(partitions=1, copies=2, stores=int(sys.argv[2]), data=sys.argv[1], allow_tmpfs=True) as cluster:
    with SyncClient(sender="program") as client:
        for text in sys.argv[3:]:
            client.send("notes", text.encode())
        print(",".join(message.body.decode() for message in client.history("notes")), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own, and nothing of this process's Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TRILOGUE_"))}
    return {**kept, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}


def start(data: Path, environment: dict[str, str], stores: int, *texts: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data), str(stores), *texts],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(data: Path) -> list[int]:
    """Living processes that hold the locks of the stores."""
    holders = []
    for lock in data.glob("store-*/lock"):
        pid = int(lock.read_text() or 0)
        if pid and alive(pid):
            holders.append(pid)
    return holders


@pytest.mark.long
def test_a_killed_program_loses_nothing_and_the_next_one_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    """G2, G3: the program and its whole Ray die at once; the data is launched again, with a spare store that it had not."""
    data = tmp_path / "data"
    first = start(data, environment, 2, "one", "two")
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "one,two"
    assert len(processes_of(data)) == 2
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=DEADLINE_S)

    second = start(data, environment, 3, "three")
    output, errors = second.communicate("", timeout=DEADLINE_S)
    assert second.returncode == 0, errors
    assert output.splitlines()[0] == "one,two,three"
    assert (data / "store-3" / "store.json").exists()
    eventually(lambda: not processes_of(data), "all processes of the program are gone")
    assert not (data / "run.json").exists()
    assert (data / "logs" / "ray").is_dir()
    assert "Traceback" not in errors
