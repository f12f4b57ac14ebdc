"""A store whose disk has changed a committed byte (design §5): it is not served; moved away, it is filled from its peers."""

from __future__ import annotations

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
