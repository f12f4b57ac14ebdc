"""`trilogue bench sessions` as a user runs it, with some thousand sessions: everything is killed twice, all is read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local_system.system import directory_on_disk

pytestmark = pytest.mark.long

DEADLINE_S = 240.0
SESSIONS = 3_000


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, removed afterwards."""
    directory = directory_on_disk("trilogue-sessions-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_bench_sessions_restarts_everything_measures_and_loses_nothing_g2_g3_g5_g11(place: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TRILOGUE_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "trilogue.cluster", "bench", "sessions", "--sessions", str(SESSIONS),
         "--data", str(place / "data"), "--json", str(place / "all.json"), "--plot", str(place / "all.png")],
        env=kept, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads((place / "all.json").read_text())
    assert (result["lost"], result["duplicated"], result["reordered"]) == (0, 0, 0)
    assert (result["sessions"], result["messages"]) == (SESSIONS, 3 * SESSIONS)
    assert result["read_back_sessions"] == SESSIONS
    assert result["read_back_messages"] == 3 * SESSIONS + result["asked_sessions"]
    assert {one["role"] for one in result["memory"]} == {"session", "store"}
    assert len(result["memory"]) >= 5, "every SessionActor and store, spares included"
    assert all(one["empty_mib"] > 0 for one in result["memory"])
    assert min(result["restart_s"].values()) > 0
    assert 0 < result["cold_history_ms"]["p50"] <= result["cold_history_ms"]["p99"]
    assert 0 < result["cold_send_ms"]["p50"] <= result["cold_send_ms"]["p99"]
    assert (place / "all.png").stat().st_size > 10_000
    assert not (place / "data").exists(), "the system's files are gone"
    here = str(place)
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if here in " ".join(one.info["cmdline"] or [])]
    assert left == [], "nothing of the system runs"
