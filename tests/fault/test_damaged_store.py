"""Stores whose disks have changed committed bytes (design §5): they are not served. Moved away, one is filled from its peers;
`verify --repair` mends them from each other, all at once too."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from local_system.system import LocalSystem

pytestmark = pytest.mark.long

DAMAGED = "store-2"
TEXTS = [f"message {k}" for k in range(1, 6)]


def test_a_damaged_store_is_not_served_and_is_filled_from_its_peers_when_it_is_moved_away_g2_g8() -> None:
    system = LocalSystem(1)
    try:
        system.up()
        for text in TEXTS:
            assert system.run("send", "room", text, "--sender", "ann").returncode == 0
        system.down()
        journal = system.data / DAMAGED / "journal-00000001.trl"
        whole = journal.read_bytes()
        at = whole.index(TEXTS[1].encode())
        journal.write_bytes(whole[:at] + b"?" + whole[at + 1 :])

        refused = system.run("up", "--partitions", "1")
        assert refused.returncode == 1
        assert f"{journal} is damaged" in refused.stderr
        assert journal.read_bytes()[at : at + 1] == b"?", "nothing was changed on disk"

        (system.data / DAMAGED).rename(system.data / f"{DAMAGED}.damaged")
        system.up()
        read = system.run("tail", "room").stdout
        assert [line.split("  ")[-1] for line in read.splitlines()] == TEXTS
        assert system.verify()["ok"], "all three stores are equal again"
        system.down()
    finally:
        system.end()


def test_all_stores_damaged_in_different_places_are_made_equal_by_verify_repair_g2_g8() -> None:
    system = LocalSystem(1)
    texts = [f"this is message {k}" for k in range(1, 13)]
    try:
        system.up()
        for text in texts:
            assert system.run("send", "room", text, "--sender", "ann").returncode == 0
        refused = system.run("verify", "--repair")
        assert refused.returncode == 1
        assert "trilogue down" in refused.stderr
        system.down()
        rng = random.Random(3)
        holders = [store for store in system.stores if texts[0].encode() in _newest(store).read_bytes()]
        assert len(holders) == 3
        intact = {text: rng.randrange(3) for text in texts}
        assert set(intact.values()) == {0, 1, 2}, "no store could serve it all"
        for k, store in enumerate(holders):
            journal = _newest(store)
            data = bytearray(journal.read_bytes())
            for text in texts:
                if intact[text] != k:  # each message is whole on one store only
                    data[data.index(text.encode()) + rng.randrange(len(text))] ^= 1 << rng.randrange(8)
            data[len(data) - rng.randrange(1, 1000)] = 0x55  # behind the end of the records
            journal.write_bytes(data)

        damaged = system.run("verify", "--json")
        assert damaged.returncode == 1
        report = json.loads(damaged.stdout)
        assert report["mendable"]
        assert {problem["kind"] for problem in report["problems"]} == {"damaged", "missing"}
        assert "verify --repair" in system.run("verify").stdout

        mended = system.run("verify", "--repair")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert [f"repaired {store.name}" in mended.stdout for store in holders] == [True] * 3
        assert system.run("verify").returncode == 0

        system.up()
        read = system.run("tail", "room", "--limit", "100").stdout
        assert [line.split("  ")[-1] for line in read.splitlines()] == texts
        assert system.run("send", "room", "and on it goes", "--sender", "ann").returncode == 0
        assert system.verify()["ok"]
        system.down()
    finally:
        system.end()


def _newest(store: Path) -> Path:
    return max(store.glob("journal-*.trl"))
