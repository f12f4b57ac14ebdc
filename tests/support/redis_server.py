"""Real Redis servers for tests: which are there, and a fixture that starts them with given settings.

Owns the choice of the binaries and the loud word when there is none; the process itself is `trilogue.bench.recipe.server`. The
fixtures are there for every test::

    def test_a_server_that_is_killed_has_what_it_acked(new_server: NewServer) -> None:
        server = new_server(appendonly="yes", appendfsync="always", maxmemory_policy="noeviction")
        server.kill()
        server.restart()

A test that uses `new_server` runs for each server of `SERVERS` that is on this machine: for the first in `make test`, for the
others in `make fault`. One that needs a certain server is parametrised over `redis_binary` with `indirect=True`. The set-up
fetches both (`tests/support/fetch_redis.sh`, `make redis`); REDIS_SERVER and VALKEY_SERVER name others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trilogue.bench.recipe.server import RedisServer, find_server

SERVERS = ("redis-server", "valkey-server")
"""A Redis of 7.0, which has no WAITAOF, and a Valkey of 7.2 or newer, which has."""

NewServer = Callable[..., RedisServer]
"""Starts a server with these settings, `_` for `-` in their names, and ends it with the test. A setting of None is left out."""


def missing(name: str) -> None:
    """Skip the test with a loud word; in CI it fails, because there the set-up should have fetched the server."""
    word = f"NOT TESTED: no {name} on this machine. `make redis` fetches it, or name one in {name.upper().replace('-', '_')}"
    if os.environ.get("CI"):
        pytest.fail(word, pytrace=False)
    pytest.skip(word)


def binaries() -> list[str]:
    """The servers to test with: those that are there; when none is, the first, so that its tests say that they are skipped."""
    return [name for name in SERVERS if find_server(name)] or [SERVERS[0]]


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.long] * (k > 0)) for k, name in enumerate(binaries())])
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """The path of a server's binary."""
    binary = find_server(request.param)
    if binary is None:
        missing(request.param)
    assert binary is not None
    return binary


@pytest.fixture
def new_server(redis_binary: Path, tmp_path: Path) -> Iterator[NewServer]:
    """Servers with directories of their own; all that a test started ends with it."""
    servers: list[RedisServer] = []

    def start(**settings: str | None) -> RedisServer:
        lines = {name.replace("_", "-"): value for name, value in settings.items() if value is not None}
        servers.append(RedisServer(redis_binary, tmp_path / f"redis-{len(servers) + 1}", lines))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
