"""Run files, and finding the system by them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trilogue.actors.protocol.errors import (
    DirectoryUnusable,
    LaunchError,
    NewerFormat,
    NotAuthorized,
    SettingsDiffer,
    Unavailable,
)
from trilogue.cluster.commands import up_down
from trilogue.cluster.commands.find import locate
from trilogue.cluster.commands.up_down import check_same
from trilogue.cluster.on_ray import ray_head, remains
from trilogue.cluster.on_ray.processes import boot_mark, members
from trilogue.cluster.settings.asked import open_data, settings_of
from trilogue.cluster.settings.files import write_whole
from trilogue.cluster.settings.runfile import RayRun, RunFile, find_run_file, read_run_file, remove_run_files, user_run_file

ADDRESS = "127.0.0.1:4321"


@pytest.fixture(autouse=True)
def _private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("TRILOGUE_ADDRESS", "TRILOGUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def run_file(data: Path, cluster: str = "c") -> RunFile:
    (data).mkdir(exist_ok=True)
    (data / "token").write_text("secret\n")
    ray = RayRun("127.0.0.1:6400", "/tmp/trilogue-x", 12, "boot", "", {"raylet-13": 13})
    return RunFile(cluster, str(data), str(data / "token"), "up", ray, "/logs", {"store-1": ADDRESS}, {"store-1": 99})


def test_a_run_file_comes_back_as_it_was_written_for_its_owner_alone(tmp_path: Path) -> None:
    run = run_file(tmp_path / "data")
    path = tmp_path / "run.json"
    run.write(path)
    assert read_run_file(path) == run
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in path.read_text()


def test_an_actor_that_moved_is_noted_and_the_others_stay(tmp_path: Path) -> None:
    moved = run_file(tmp_path / "data").with_actor("session-0", "127.0.0.1:5", 100)
    assert moved.actors == {"store-1": ADDRESS, "session-0": "127.0.0.1:5"}
    assert moved.processes == {"store-1": 99, "session-0": 100}


def test_a_run_file_of_a_newer_version_or_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"format": 2}')
    with pytest.raises(NewerFormat):
        read_run_file(path)
    path.write_text('{"format": 1, "cluster": "c"}')
    with pytest.raises(Unavailable, match="damaged"):
        read_run_file(path)
    path.write_text("no json")
    with pytest.raises(Unavailable, match=r"damaged: remove it"):
        read_run_file(path)


def test_a_damaged_run_file_of_the_user_does_not_keep_a_system_from_being_ended(tmp_path: Path) -> None:
    one = run_file(tmp_path / "one", "one")
    one.write(tmp_path / "one" / "run.json")
    one.write(user_run_file())
    user_run_file().write_text("no json")
    remove_run_files(one)
    assert not (tmp_path / "one" / "run.json").exists()


@pytest.mark.parametrize(
    ("listen", "ray_address", "is_it"),
    [
        (None, None, True),
        ("127.0.0.1:0", None, True),
        ("127.0.0.1:4321", None, True),
        ("127.0.0.1", "127.0.0.1:6400", True),
        ("127.0.0.1:4243", None, False),
        ("0.0.0.0:0", None, False),
        ("0.0.0.0", None, False),
        (None, "127.0.0.1:6401", False),
    ],
)
def test_a_running_system_that_is_not_the_one_asked_for_is_not_passed_off_as_it(
    tmp_path: Path, listen: str | None, ray_address: str | None, is_it: bool
) -> None:
    run, asked = run_file(tmp_path / "data"), settings_of(data=tmp_path / "data", listen=listen)
    if is_it:
        check_same(asked, run, ray_address)
        return
    with pytest.raises(SettingsDiffer, match="runs already"):
        check_same(asked, run, ray_address)


def test_a_system_that_is_open_to_the_network_is_found_by_the_option_that_opened_it(tmp_path: Path) -> None:
    run = replace(run_file(tmp_path / "data"), actors={"store-1": "10.1.2.3:4321"})
    check_same(settings_of(data=tmp_path / "data", listen="0.0.0.0:4321"), run, None)
    with pytest.raises(SettingsDiffer):
        check_same(settings_of(data=tmp_path / "data", listen="127.0.0.1:4321"), run, None)


def test_removing_a_systems_run_files_leaves_those_of_another_one(tmp_path: Path) -> None:
    one, other = run_file(tmp_path / "one", "one"), run_file(tmp_path / "other", "other")
    one.write(tmp_path / "one" / "run.json")
    other.write(user_run_file())
    remove_run_files(one)
    assert not (tmp_path / "one" / "run.json").exists()
    assert read_run_file(user_run_file()) == other
    remove_run_files(other)
    assert find_run_file(None) is None


def test_what_is_named_explicitly_is_never_overruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = run_file(tmp_path / "one", "one"), run_file(tmp_path / "other", "other")
    one.write(tmp_path / "one" / "run.json")
    other.write(user_run_file())
    monkeypatch.setenv("TRILOGUE_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", one.token_file)
    assert locate("127.0.0.1:2", None).addresses == ["127.0.0.1:2"]
    assert locate(None, tmp_path / "one").run == one
    assert locate(None, None).addresses == ["127.0.0.1:1"]
    monkeypatch.delenv("TRILOGUE_ADDRESS")
    assert locate(None, None).run == other


def test_a_system_that_a_program_launched_on_the_default_data_is_found(tmp_path: Path) -> None:
    data = tmp_path / "XDG_DATA_HOME" / "trilogue"
    data.parent.mkdir()
    run = run_file(data)
    run.write(data / "run.json")
    assert locate(None, None).run == run


def test_where_nothing_runs_the_error_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start it with `trilogue up`"):
        locate(None, None)
    with pytest.raises(Unavailable, match="trilogue up --data"):
        locate(None, tmp_path)


def test_an_address_needs_a_token_unless_the_run_file_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAuthorized, match="TRILOGUE_TOKEN_FILE"):
        locate(ADDRESS, None)
    run_file(tmp_path / "data").write(user_run_file())
    assert locate(ADDRESS, None).token == "secret"
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(Unavailable, match="cannot read the token file"):
        locate(ADDRESS, None)


def test_a_write_that_fails_leaves_the_old_content_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(DirectoryUnusable):
        write_whole(tmp_path / "absent" / "file", b"new")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_no_process_belongs_to_a_session_of_another_boot_or_of_a_living_leader() -> None:
    import os

    assert members(os.getsid(0), "another boot") == []
    assert members(os.getsid(0), boot_mark()) == [] or not os.path.exists(f"/proc/{os.getsid(0)}")
    assert members(0, boot_mark()) == []
    assert members(1, boot_mark()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_head_that_is_being_started_is_noted_so_that_a_killed_start_leaves_no_unknown_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    data = tmp_path / "data"
    settings = settings_of(data=data)
    open_data(settings)
    seen: list[RunFile | None] = []

    class RayStart:
        pid = 2**22 + 1  # above the highest id of a process

        def __init__(self, *_: object, **__: object) -> None:
            assert not (data / "run.json").exists()

        def wait(self, _: float) -> int:
            seen.append(read_run_file(data / "run.json"))
            return 1 if fails else 0

    monkeypatch.setattr(ray_head.subprocess, "Popen", RayStart)
    if fails:
        with pytest.raises(LaunchError):
            up_down.started_head(settings)
        assert not (data / "run.json").exists()
    else:
        ray = up_down.started_head(settings)
        Path(ray.temp_dir).rmdir()
    [known] = seen
    assert known is not None
    assert (known.ray.session_id, known.started_by, known.actors) == (RayStart.pid, "up", {})
    assert not fails or not Path(known.ray.temp_dir).exists()


def test_down_with_another_systems_token_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(up_down, "end_head", lambda ray, data: ended.append(str(data)) or True)
    known = run_file(tmp_path / "data")
    wrong = tmp_path / "wrong"
    wrong.write_text("another\n")
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", str(wrong))
    known = replace(known, ray=replace(known.ray, session_id=12))
    known.write(user_run_file())
    with pytest.raises(NotAuthorized, match="nothing was ended"):
        up_down.down(ADDRESS, None, lambda _: None)
    assert ended == []
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", known.token_file)
    assert up_down.down(ADDRESS, None, lambda _: None) == known
    assert ended == [known.data]


def test_a_session_whose_leader_has_ended_and_was_not_reaped_is_still_ours(tmp_path: Path) -> None:
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        sleeper = int(leader.stdout.readline())
        try:
            os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
            assert [one.pid for one in members(leader.pid, boot_mark())] == [sleeper]
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_a_process_that_ends_while_it_is_looked_at_is_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def name(self) -> str:
            raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(remains, "members", lambda *_: [Ended()])
    known = RunFile("c", "/d", "/d/token", "up", RayRun("127.0.0.1:1", "", 12, boot_mark()), "", {"store-1": ADDRESS}, {})
    assert remains.runs(known) == ""


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError("full"), LaunchError)])
def test_a_private_ray_that_is_interrupted_while_it_starts_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    ended: list[bool] = []

    def init(**_: object) -> None:
        assert (tmp_path / "trilogue-1").is_dir()
        raise error

    (tmp_path / "trilogue-1").mkdir()
    monkeypatch.setattr(ray_head, "short_temp_dir", lambda: tmp_path / "trilogue-1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: ended.append(True)))
    with pytest.raises(raised):
        ray_head.start_private()
    assert not (tmp_path / "trilogue-1").exists()
    assert ended == [True]
