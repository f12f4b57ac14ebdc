"""`trilogue bench failover` as a user runs it: two kills of the writer in force, everything read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_system.system import directory_on_disk

pytestmark = pytest.mark.long

DEADLINE_S = 120.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, removed afterwards."""
    directory = directory_on_disk("trilogue-failover-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_bench_failover_kills_the_writer_in_force_measures_the_stalls_and_loses_nothing_g2_g3_g4_g5_g11(place: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TRILOGUE_", "XDG_"))}
    environment = {**kept, "XDG_STATE_HOME": str(place / "state"), "XDG_DATA_HOME": str(place / "share")}
    done = subprocess.run(
        [sys.executable, "-m", "trilogue.cluster", "bench", "failover", "--kills", "2", "--data", str(place / "data"),
         "--json", str(place / "stalls.json"), "--plot", str(place / "stalls.png")],
        env=environment, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads((place / "stalls.json").read_text())
    assert (result["lost"], result["duplicated"], result["reordered"], result["stale_acks"]) == (0, 0, 0, 0)
    assert result["kills"] == len(result["stalls"]) == 2
    for one in result["stalls"]:
        assert one["victim"].startswith("session-")
        assert one["epoch"] > one["victim_epoch"], "another writer acked the first later message"
        assert 0 < one["stall_ms"] <= result["stall_ms"]["max"]
    assert len(result["epochs"][0]) >= 3
    assert result["longest_gap_ms"] > 0
    assert "stall (p50)" in done.stdout.splitlines()[0], "Ray's own words about killed workers are not ours"
    assert (place / "stalls.png").stat().st_size > 10_000
    assert not (place / "data").exists(), "the system's files are gone"
