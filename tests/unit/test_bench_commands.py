"""`trilogue bench`: wrong usage is refused in one line before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trilogue.actors.journal.identity import try_lock
from trilogue.actors.protocol.errors import DirectoryUnusable, Unavailable, UsageError
from trilogue.bench import systems
from trilogue.bench.cli import app
from trilogue.bench.report import machine, plots
from trilogue.cluster.settings.runfile import PROGRAM, RayRun, RunFile


@pytest.fixture(autouse=True)
def _no_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("wrong usage must be found out before anything is started")

    monkeypatch.setattr(systems, "scratch_directory", started)
    monkeypatch.setattr("trilogue.bench.scenarios.scratch_directory", started)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["throughput", "--messages", "0"], "--messages 0"),
        (["throughput", "--sessions", "0"], "--sessions 0"),
        (["throughput", "--body-bytes", "3"], "--body-bytes 3"),
        (["throughput", "--partitions", "0"], "--partitions 0"),
        (["throughput", "--plot", "picture.gif"], ".png or .svg"),
        (["throughput", "--json", "/nowhere/at/all.json"], "no directory that can be written"),
        (["throughput", "--json", "/"], "is no file"),
        (["throughput", "--address", "127.0.0.1:1", "--data", "here"], "leave out --address"),
        (["throughput", "--address", "127.0.0.1:1", "--partitions", "2"], "leave out --partitions"),
        (["latency", "--messages", "-1"], "--messages -1"),
        (["scale", "--partitions", "1,x"], "like 1,2,4,8"),
        (["scale", "--partitions", "1,0"], "--partitions 0"),
        (["scale", "--nodes", "0"], "--nodes 0"),
        (["fanout", "--readers", "0"], "--readers 0"),
        (["fanout", "--readers", "3", "--processes", "4"], "--processes 4"),
        (["fanout", "--body-bytes", "8"], "--body-bytes 8"),
        (["catchup", "--rate", "0"], "--rate 0"),
        (["sessions", "--sessions", "99"], "--sessions 99"),
        (["sessions", "--sessions", "1000001"], "--sessions 1000001"),
        (["replay", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], named: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_outbox_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "mine.db"
    mine.write_bytes(b"precious")
    result = bench("throughput", "--outbox", str(mine))
    assert result.exit_code == 2
    assert "name a new file" in result.stderr
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["picture.png", "picture.svg", "PICTURE.PNG"])
def test_pictures_are_png_or_svg(name: str) -> None:
    plots.check_suffix(Path(name))
    with pytest.raises(UsageError):
        plots.check_suffix(Path(name).with_suffix(".jpeg"))


def test_only_processes_on_this_machine_are_counted() -> None:
    here, pid = "127.0.0.1:1", os.getpid()
    status = {
        "actors": {
            "session-0": {"role": "session", "pid": pid, "address": here},
            "store-1": {"role": "store", "pid": pid, "address": "10.0.0.7:1"},
            "supervisor": {"role": "supervisor", "pid": pid, "address": here},
            "store-2": {"error": "no answer"},
        }
    }
    assert systems.pids_by_role(status) == {"session": [pid]}


def test_a_directory_for_a_run_is_refused_in_memory_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine, "file_system_of", lambda _: "tmpfs")
    where = systems.Where(address=None, data=tmp_path / "deep" / "down", partitions=1)
    with pytest.raises(DirectoryUnusable), systems.scratch_directory(where):
        raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_for_a_run_is_removed_with_all_that_was_made_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine, "file_system_of", lambda _: "ext4")
    where = systems.Where(address=None, data=tmp_path / "deep" / "down", partitions=1)
    with systems.scratch_directory(where) as directory:
        (directory / "data").mkdir()
        assert directory.parent == tmp_path / "deep" / "down"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_benchmark_left_is_removed_by_the_next_one_and_a_living_ones_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine, "file_system_of", lambda _: "ext4")
    dead, living, foreign = (tmp_path / f"bench-{name}" for name in ("dead", "living", "foreign"))
    temp_dir = tmp_path / "trilogue-12345678"
    for directory in (dead / "data", living, foreign, temp_dir):
        directory.mkdir(parents=True)
    (dead / "lock").write_text("1\n")
    ray = RayRun("127.0.0.1:1", str(temp_dir), pids={PROGRAM: 1})
    RunFile("c", str(dead / "data"), "", "launch", ray, "").write(dead / "data" / "run.json")
    lock = try_lock(living, allow_tmpfs=True)
    with systems.scratch_directory(systems.Where(address=None, data=tmp_path, partitions=1)) as directory:
        assert sorted(tmp_path.iterdir()) == sorted([living, foreign, directory])
    lock.release()


def test_stores_on_redis_take_the_places_of_copies_and_a_spare_one_stays_in_files(tmp_path: Path) -> None:
    one, two = "redis://127.0.0.1:1/0", "rediss://h/0"
    where = systems.Where(address=None, data=tmp_path, partitions=1, stores=(one,))
    files = [f"file://{tmp_path / f'store-{k}'}" for k in (1, 2, 4)]
    assert systems._store_urls(where, tmp_path) == [files[0], files[1], one, files[2]]
    assert systems._store_urls(systems.Where(None, tmp_path, 1, stores=(one, two)), tmp_path) == [files[0], one, two, files[2]]
    assert systems._store_urls(systems.Where(None, tmp_path, 1), tmp_path) is None
    for stores in ((one,) * 4, ("file:///tmp/x",), ("h:1",)):
        with pytest.raises(UsageError, match="--store: give at most 3, each as redis"):
            systems.Where(None, tmp_path, 1, stores=stores)
    with pytest.raises(UsageError, match="--store is for a system of the benchmark's own"):
        systems.Where("127.0.0.1:1", None, 1, stores=(one,))


def test_a_store_on_redis_that_was_replaced_meanwhile_was_not_measured(tmp_path: Path) -> None:
    def system(*members: str) -> systems.System:
        status = {"partitions": [{"stores": list(members)}]}
        return systems.System("a", None, 1, 3, 1, True, tmp_path, lambda: status, on_redis=("store-3",))

    system("store-1", "store-2", "store-3").check_members()
    with pytest.raises(Unavailable, match="store-3 was replaced by a spare store meanwhile"):
        system("store-1", "store-2", "store-4").check_members()
