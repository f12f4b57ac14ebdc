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

PARTITIONS = 2
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
    """A running system of three stores. Tests use sessions of their own, and leave it healthy."""
    from trilogue.cluster import launch

    data = tmp_path_factory.mktemp("system") / "data"
    with launch(partitions=PARTITIONS, copies=3, data=data, allow_tmpfs=True) as cluster:
        yield cluster


@pytest.fixture
def kill(system: Any) -> Callable[[str], int]:
    """`kill -9` of the process of an actor, by its name; returns the process id that it had."""

    def kill_now(name: str) -> int:
        pid = int(system.status()["actors"][name]["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    return kill_now


def eventually(condition: Callable[[], Any], what: str, seconds: float = COME_BACK_S) -> Any:
    """The first true value of `condition`, which is asked until a deadline; fails with `what` after it."""
    return waiting.eventually(condition, seconds, what)


def back(system: Any, name: str, former_pid: int) -> Callable[[], bool]:
    """A condition: the actor runs in another process than before, and everything is healthy again."""
    from trilogue.actors.protocol.errors import TrilogueError
    from trilogue.cluster.commands.status import healthy

    def is_back() -> bool:
        try:
            status = system.status()
        except TrilogueError:
            return False
        actor = status["actors"].get(name)
        return actor is not None and actor["pid"] != former_pid and healthy(status)

    return is_back


def run(work: Awaitable[Any], seconds: float = COME_BACK_S) -> Any:
    """Run a coroutine to its end, within a deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(bounded())
