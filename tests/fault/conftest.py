"""What the fault campaigns share: the seed, and a table of how long each fault was felt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from local_system.campaign import Campaign, seed_of_this_run
from local_system.system import LocalSystem

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


@pytest.fixture(scope="module")
def campaign(new_campaign: Callable[[LocalSystem, int], Campaign]) -> Iterator[Campaign]:
    """One running system under load for all tests of a file."""
    with LocalSystem(PARTITIONS) as system, new_campaign(system, 3) as campaign:
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
