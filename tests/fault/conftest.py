"""What the fault campaigns share: the seed, and a table of how long each fault was felt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local_system.campaign import Campaign, seed_of_this_run
from local_system.redis_system import RedisSystem
from local_system.system import LocalSystem
from redis_server import binaries, missing
from trilogue.bench.recipe.server import find_server

PARTITIONS = 2
_seed = seed_of_this_run()
_campaigns: list[Campaign] = []


@pytest.fixture(scope="session")
def new_campaign() -> Callable[[LocalSystem, int], Campaign]:
    """Makes a campaign with this run's seed (and so many sessions in each partition); it will stand in the table in the end."""

    def make(system: LocalSystem, sessions_each: int) -> Campaign:
        _campaigns.append(Campaign(system, _seed, sessions_each))
        return _campaigns[-1]

    return make


def kinds_of_stores() -> list[Any]:
    """Files; one Redis store of three; all on Redis. Each with a spare store. The two others take long."""
    server = binaries()[0]
    return [
        pytest.param((None, ()), id="files"),
        pytest.param((server, ("files", "files", "redis", "files")), id="one-on-redis", marks=pytest.mark.long),
        pytest.param((binaries()[-1], ("redis",) * 4), id="all-on-redis", marks=pytest.mark.long),
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long campaigns with stores on Redis take half an hour: `make campaigns` runs them, not `make fault`."""
    for item in items:
        if item.path.name == "test_long_campaigns.py" and "on-redis" in item.name:
            item.add_marker(pytest.mark.longer)


def system_of(server: str | None, kinds: tuple[str, ...]) -> LocalSystem:
    """A system of this kind, not started yet."""
    if server is None:
        return LocalSystem(PARTITIONS)
    binary = find_server(server)
    if binary is None:
        missing(server)
    assert binary is not None
    return RedisSystem(PARTITIONS, binary, kinds)


@pytest.fixture(scope="module", params=kinds_of_stores())
def campaign(request: pytest.FixtureRequest, new_campaign: Callable[[LocalSystem, int], Campaign]) -> Iterator[Campaign]:
    """One running system under load for all tests of a file: one for each kind of stores."""
    with system_of(*request.param) as system, new_campaign(system, 3) as campaign:
        campaign.start_programs()
        yield campaign


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seed with which the same faults come again, and how long each kind was felt."""
    if not _campaigns:
        return
    seconds = defaultdict(list)
    for one in (recovery for campaign in _campaigns for recovery in campaign.recoveries):
        seconds[one.what].append(one.seconds)
    terminalreporter.section(f"faults (TRILOGUE_FAULT_SEED={_seed})")
    terminalreporter.line("seconds from the fault, or its end, until every session had acked a later message")
    for what, found in seconds.items():
        found.sort()
        middle = found[(len(found) - 1) // 2]
        terminalreporter.line(f"{what:48} {len(found):3} times: p50 {middle:6.2f}  max {found[-1]:6.2f}")
