"""Stores whose directories are gone for good (design §7): one, which heals by itself, and a majority of those that keep the
register, which `trilogue rescue` brings back (G2, G8, G11)."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from local_system.system import LocalSystem
from local_system.waiting import eventually

pytestmark = pytest.mark.long

BACK_S = 40.0
TEXTS = [f"message {k}" for k in range(1, 6)]


@pytest.fixture
def system() -> Iterator[LocalSystem]:
    with LocalSystem(2) as one:
        yield one


def send(system: LocalSystem, *texts: str) -> None:
    for text in texts:
        done = system.run("send", "room", text, "--sender", "ann", "--timeout", "40")
        assert done.returncode == 0, done.stderr


def read(system: LocalSystem) -> list[str]:
    return [line.split("  ")[-1] for line in system.run("tail", "room", "--limit", "100").stdout.splitlines()]


def lose(system: LocalSystem, *stores: str) -> None:
    """Their processes are killed and their directories removed, before Ray can start them again."""
    pids = [system.pid_of(store) for store in stores]
    for pid in pids:
        system.signal(pid, signal.SIGKILL)
    for store in stores:
        shutil.rmtree(system.data / store)
    for store, pid in zip(stores, pids, strict=True):
        system.until_replaced(store, pid, BACK_S)


def register(system: LocalSystem) -> dict[str, Any]:
    return dict(system.status().get("register", {}))


def is_whole(system: LocalSystem) -> bool:
    """Whether everything is open, and the register is kept by three that have their memory."""
    return system.is_well() and len(register(system)["answering"]) == 3


def test_the_register_moves_by_itself_from_lost_stores_one_after_another_g2_g11(system: LocalSystem) -> None:
    send(system, *TEXTS)
    assert system.status()["may_lose"] == {"acks": {"at_once": 1, "in_turn": 1}, "register": {"at_once": 1, "in_turn": 2}}
    for store in ("store-2", "store-3", "store-1"):
        charter = register(system)["charter"]
        lose(system, store)
        eventually(lambda before=charter: register(system).get("charter", 0) > before, BACK_S, "the charter moves")
        eventually(lambda: is_whole(system), BACK_S, "all is whole again")
        eventually(
            lambda: all(
                len(one["ranges"]) == 1 for one in system.status()["actors"].values() if one.get("partition") is not None
            ),
            BACK_S,
            "every member holds the whole log again",
        )
    assert read(system) == TEXTS
    send(system, "and on")
    assert system.verify()["ok"]


def test_a_lost_majority_is_rescued_while_it_runs_g2_g8_g11(system: LocalSystem) -> None:
    send(system, *TEXTS)
    refused = system.run("rescue", "--lost", "store-2", "--yes")
    assert refused.returncode == 1
    assert "it is not lost" in refused.stderr

    lose(system, "store-2", "store-3")
    eventually(lambda: register(system).get("may_lose", 0) == -1, BACK_S, "the register stands still")
    shown = system.run("status")
    assert shown.returncode == 1
    assert "IT STANDS STILL" in shown.stdout

    asked = system.run("rescue", "--lost", "store-2", "--lost", "store-3")
    assert asked.returncode == 2
    assert "say --yes" in asked.stderr
    done = system.run("rescue", "--lost", "store-2", "--lost", "store-3", "--yes")
    assert done.returncode == 0, done.stderr
    assert "no acked message is lost" in done.stderr
    eventually(lambda: is_whole(system), BACK_S, "all is whole again")
    assert read(system) == TEXTS
    send(system, "and on")
    assert read(system) == [*TEXTS, "and on"]
    assert system.verify()["ok"]
    assert "nothing to rescue" in system.run("rescue", "--yes").stderr


def test_a_majority_that_was_lost_while_it_was_down_is_named_by_up_and_rescued_g2_g8_g11(system: LocalSystem) -> None:
    send(system, *TEXTS)
    system.down()
    for store in ("store-1", "store-2"):
        shutil.rmtree(system.data / store)
    up = system.run("up", timeout_s=120)
    assert up.returncode == 1
    assert "trilogue rescue" in up.stderr
    system._sessions.add(system.run_file()["ray"]["session_id"])

    done = system.run("rescue", "--lost", "store-1", "--lost", "store-2", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["whole"]
    eventually(lambda: is_whole(system), BACK_S, "all is whole again")
    assert read(system) == TEXTS
    send(system, "and on")
    assert system.verify()["ok"]
    system.down()
