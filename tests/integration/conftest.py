"""One running system for all integration tests: a program that has initialised Ray itself, and launches inside it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from local_system import waiting

PARTITIONS, SPARE_SESSIONS = 2, 1
COPIES, SPARE_STORES = 3, 1
REGISTER_MAY_LOSE = 1
COME_BACK_S = 30.0

# Ray reads these when it is imported: all of its ports on loopback, no statistics.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def users_ray() -> Iterator[None]:
    """Ray, as a user's program has initialised it."""
    import ray

    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=78_643_200,
        num_cpus=2,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def system(users_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running system: three copies, a spare store and a spare SessionActor. Tests use sessions of their own, and leave it
    healthy.
    """
    from trilogue.cluster import launch

    data = tmp_path_factory.mktemp("system") / "data"
    with launch(partitions=PARTITIONS, copies=COPIES, data=data, allow_tmpfs=True) as cluster:
        yield cluster


@pytest.fixture
def kill(system: Any) -> Callable[[str], int]:
    """`kill -9` of the process of an actor, by its name; returns the process id that it had."""

    def kill_now(name: str) -> int:
        pid = pid_of(system, name)
        os.kill(pid, signal.SIGKILL)
        return pid

    return kill_now


def pid_of(system: Any, name: str) -> int:
    """The process of an actor, as it says itself."""
    return int(system.status()["actors"][name]["pid"])


def owner_of(system: Any, partition: int) -> str:
    """The name of the SessionActor that serves the partition now."""
    return str(eventually(lambda: system.status()["partitions"][partition]["actor"], f"partition {partition} is served"))


def eventually(condition: Callable[[], Any], what: str, seconds: float = COME_BACK_S) -> Any:
    """The first true value of `condition`, which is asked until a deadline; fails with `what` after it."""
    return waiting.eventually(condition, seconds, what)


def back(system: Any, name: str, former_pid: int) -> Callable[[], bool]:
    """A condition: the actor runs in another process than before, and everything is as it should be again."""

    def is_back() -> bool:
        status = well(system)
        return bool(status) and status["actors"][name]["pid"] != former_pid

    return is_back


def well(system: Any) -> dict[str, Any]:
    """The status, if every actor answers, every partition is open on all its copies, the Supervisor knows of every spare, and
    the register has all its votes; else nothing.
    """
    from trilogue.actors.protocol.errors import TrilogueError
    from trilogue.cluster.commands.status import healthy

    try:
        status: dict[str, Any] = system.status()
    except TrilogueError:
        return {}
    spares = status["spare_sessions"]
    is_well = (
        healthy(status)
        and len(spares) == SPARE_SESSIONS
        and status["actors"]["supervisor"]["spare_sessions"] == spares
        and status["register"]["may_lose"] == REGISTER_MAY_LOSE
        and all(one["copies"] == COPIES and len(one["spares"]) == SPARE_STORES for one in status["partitions"])
    )
    return status if is_well else {}


def run(work: Awaitable[Any], seconds: float = COME_BACK_S) -> Any:
    """Run a coroutine to its end, within a deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(bounded())
