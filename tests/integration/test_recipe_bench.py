"""`trilogue bench redis-recipe` with a real server: clean while nothing crashes, and what kills of its sender cost."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis
from typer.testing import CliRunner

from local_system.system import directory_on_disk
from redis_server import NewServer
from trilogue.bench.cli import app
from trilogue.bench.recipe import scenario
from trilogue.bench.recipe.load import judge_stream
from trilogue.bench.recipe.path import Entry, Parcel, Stored, connected

KILLS = 8
EXACT = KILLS // 2
AFTER_INCR = KILLS // 4


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a disk, removed afterwards."""
    directory = directory_on_disk("trilogue-recipe-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("redis_binary", ["redis-server"], indirect=True)
def test_the_recipe_is_clean_until_its_sender_is_killed_between_set_nx_and_xadd(
    redis_binary: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "FLOOR_PART_S", 0.1)
    children_before = set(psutil.Process().children())
    done = CliRunner().invoke(
        app,
        ["redis-recipe", "--messages", "500", "--wait", "1", "--crashes", str(KILLS), "--data", str(place / "data"),
         "--json", str(place / "recipe.json"), "--plot", str(place / "recipe.png")],
    )  # fmt: skip
    assert done.exit_code == 0, (done.stdout, done.stderr)
    result = json.loads((place / "recipe.json").read_text())
    assert (result["lost"], result["duplicated"], result["reordered"], result["unexplained"]) == (0, 0, 0, 0)
    assert result["settings"]["copies"] == 2
    assert 0 < result["lonely_ms"]["p50"] <= result["latency_ms"]["p50"]
    crash = result["crash"]
    assert (crash["kills"], crash["kills_between"]) == (KILLS, EXACT)
    assert crash["lost_between"] == EXACT, "each message that was claimed and not added is lost for good"
    assert EXACT <= crash["lost_for_good"] <= KILLS
    assert AFTER_INCR <= crash["holes"] <= KILLS - EXACT + AFTER_INCR
    assert f"{crash['lost_for_good']} lost for good" in done.stdout
    assert (place / "recipe.png").stat().st_size > 10_000
    assert not (place / "data").exists(), "the servers' files are gone"
    assert set(psutil.Process().children()) <= children_before, "the servers have ended"


def test_the_judge_of_a_stream_sees_an_entry_that_was_deleted_or_added_by_hand(new_server: NewServer) -> None:
    server = new_server(appendonly="yes", appendfsync="always")
    parcels = [Parcel("s", n, b"body %d" % n) for n in range(1, 2001)]

    async def store() -> list[Stored]:
        async with connected(server.url, 0) as recipe:
            return await recipe.store_all(parcels)

    async def read() -> list[Entry]:
        async with connected(server.url, 0) as recipe:
            return await recipe.read_all("s")

    sent = list(zip(parcels, asyncio.run(store()), strict=True))
    assert judge_stream("s", sent, asyncio.run(read()), 1).clean, "over more than one page"
    with Redis.from_url(server.url) as client:
        ((third, _),) = client.xrange("stream:s", count=3)[2:]
        client.xdel("stream:s", third)
        assert judge_stream("s", sent, asyncio.run(read()), 1).lost == 1
        client.xadd("stream:s", {"seq": 2001, "n": 2000, "body": b"body 2000"})
        assert judge_stream("s", sent, asyncio.run(read()), 1).duplicated >= 1
