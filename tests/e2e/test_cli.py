"""The command line as a user meets it: up, send, tail, status, verify, kill -9 of everything, up again, down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from trilogue.actors.protocol.ids import partition_of
from trilogue.cluster.commands.find import locate
from trilogue.cluster.commands.verify import verify
from trilogue.cluster.on_ray.processes import alive

DEADLINE_S = 120.0
QUICK_S = 5.0


@dataclass
class Shell:
    """A user with a home and a data directory of his own."""

    environment: dict[str, str]
    data: Path

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `trilogue …` and expect an exit code; an error is one line, never a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "trilogue.cluster", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        if code and arguments[0] not in ("up", "down"):
            assert len([line for line in done.stderr.splitlines() if line.startswith("trilogue: ")]) <= 1
        return done

    @property
    def run_file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "run.json").read_text())
        return found

    def ray_processes(self) -> list[int]:
        """The processes of the Ray that `up` started, actors included."""
        session = self.run_file["ray"]["session_id"]
        found = []
        for pid in psutil.pids():
            try:
                if os.getsid(pid) == session:
                    found.append(pid)
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A user, and nothing running yet."""
    home = tmp_path_factory.mktemp("home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TRILOGUE_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "XDG_DATA_HOME": str(home / "share")}
    return Shell(environment, home / "data")


@pytest.fixture(scope="module")
def running(shell: Shell) -> Iterator[Shell]:
    """The same user with a system that `up` has started."""
    kept = ("--keep-for", "30d", "--keep-bytes", "50GiB")
    done = shell("up", "--data", str(shell.data), "--partitions", "2", "--allow-tmpfs", *kept)
    assert "trilogue is up: 4 stores, 3 SessionActors" in done.stdout
    assert f"trilogue send --data {shell.data} room-42 'hello'" in done.stdout
    yield shell
    shell("down", "--data", str(shell.data))


def test_what_is_sent_is_read_back_by_every_way_to_the_system(running: Shell) -> None:
    """G1, G3: by the user's run file, by the data directory, by an address with a token."""
    assert running("send", "ways", "hello", "--sender", "alice").stdout == "ways 1: stored on 3 stores\n"
    assert "ways 2" in running("send", "ways", "again", "--data", str(running.data)).stdout
    address = {"TRILOGUE_ADDRESS": running.run_file["addresses"][-1], "TRILOGUE_TOKEN_FILE": str(running.data / "token")}
    assert "ways 3" in running("send", "ways", "a\nb \x1b[31m", **address).stdout
    option = ("--address", running.run_file["addresses"][0])
    lines = running("tail", "ways", *option, TRILOGUE_TOKEN_FILE=str(running.data / "token")).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert lines[0].endswith("alice  hello")
    assert lines[2].endswith(r"a\nb \x1b[31m")


def test_export_is_read_by_others_grows_by_what_is_new_and_is_compared(running: Shell, tmp_path: Path) -> None:
    import duckdb

    place = str(tmp_path / "export")
    running("send", "exported", "first", "--sender", "alice")
    running("export", "--to", place, "--session", "exported")
    running("send", "exported", "second", "--sender", "bob")
    assert "1 message of 1 session in 1 new file" in running("export", "--to", place, "--session", "exported").stdout
    assert "nothing new: 2 messages are there" in running("export", "--to", place, "--session", "exported").stdout
    rows = duckdb.sql(f"select seq, sender, body from read_parquet('{place}/**/*.parquet') order by seq").fetchall()
    assert rows == [(1, "alice", b"first"), (2, "bob", b"second")]
    report = json.loads(running("verify", "--export", place, "--json").stdout)
    assert (report["ok"], report["messages"], report["problems"]) == (True, 2, [])
    next((tmp_path / "export").glob("partition=*/*.parquet")).unlink()
    assert "missing: partition=" in running("verify", "--export", place, code=1).stdout
    running("verify", "--export", place, "--repair", code=2)
    running("export", "--to", place, "--all", "--partition", "0", code=2)
    running("export", "--to", "nothing://there", code=2)
    running("verify", "--export", str(tmp_path / "none"), code=2)


def test_tail_starts_where_it_is_told_and_stops_there(running: Shell) -> None:
    for number in range(1, 5):
        running("send", "tailed", f"text {number}", "--sender", "alice")
    after = running("tail", "tailed", "--after", "1", "--limit", "2", "--json").stdout.splitlines()
    assert [(json.loads(line)["seq"], json.loads(line)["text"]) for line in after] == [(2, "text 2"), (3, "text 3")]
    newest = running("tail", "tailed", "--limit", "1").stdout.splitlines()
    assert [line.split()[0] for line in newest] == ["4"]
    assert running("tail", "nobody-was-here").stdout == ""


def test_tail_follow_shows_what_comes(running: Shell) -> None:
    """G7: what was there, then what is sent while it is watching, each once."""
    running("send", "followed", "first")
    command = [sys.executable, "-m", "trilogue.cluster", "tail", "followed", "--after", "0", "--follow", "--limit", "3"]
    with subprocess.Popen(command, env=running.environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().rstrip().endswith("first")
        running("send", "followed", "second")
        running("send", "followed", "third")
        assert [line.rstrip().rpartition(" ")[2] for line in watching.stdout] == ["second", "third"]
        assert watching.wait(DEADLINE_S) == 0


def test_what_is_trimmed_is_gone_for_every_reader_and_each_says_where_the_session_begins(running: Shell) -> None:
    """G8: never a silent hole."""
    for number in range(1, 6):
        running("send", "trimmed", f"text {number}", "--sender", "alice")
    beyond = running("trim", "trimmed", "--before", "7", code=2).stderr
    assert "before=7: session 'trimmed' has 5 messages, so 1 to 6" in beyond
    assert running("trim", "trimmed", "--before", "1").stdout == "trimmed begins with message 1: nothing is gone\n"
    gone = "trimmed begins with message 4 now: messages 1 to 3 are gone\n"
    assert running("trim", "trimmed", "--before", "4").stdout == gone
    again = json.loads(running("trim", "trimmed", "--before", "2", "--json").stdout)
    assert again == {"session": "trimmed", "before": 2, "first_available": 4}
    shown = running("tail", "trimmed")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["4", "5"]
    assert shown.stderr == f"trilogue: {gone}"
    assert running("tail", "trimmed", "--limit", "2").stderr == "", "all that was asked for is there"
    below = running("tail", "trimmed", "--after", "2", code=1)
    assert "its first message is 4 now; read on with after=3" in below.stderr
    assert running("tail", "trimmed", "--after", "3", "--json").stdout.count("\n") == 2
    running("trim", "trimmed", "--before", "6")
    empty = running("tail", "trimmed")
    assert (empty.stdout, "messages 1 to 5 are gone" in empty.stderr) == ("", True)
    assert running("send", "trimmed", "text 6").stdout == "trimmed 6: stored on 3 stores\n"
    assert json.loads(running("verify", "--json").stdout)["ok"]


def test_tail_follow_of_a_session_of_which_all_is_gone_shows_what_comes(running: Shell) -> None:
    running("send", "emptied", "first")
    running("trim", "emptied", "--before", "2")
    command = [sys.executable, "-m", "trilogue.cluster", "tail", "emptied", "--follow", "--limit", "1"]
    with subprocess.Popen(
        command, env=running.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stderr is not None
        assert "message 1 is gone" in watching.stderr.readline()
        running("send", "emptied", "second")
        assert watching.communicate(timeout=DEADLINE_S)[0].rstrip().endswith("second")
        assert watching.returncode == 0


def test_status_and_verify_answer_in_words_and_in_json_within_a_moment(running: Shell) -> None:
    started = time.monotonic()
    shown = running("status").stdout
    assert time.monotonic() - started < QUICK_S
    assert "a crashed process loses nothing; a lost disk or machine can lose messages" in shown
    assert str(running.data / "store-2") in shown
    status = json.loads(running("status", "--json").stdout)
    assert [one["state"] for one in status["partitions"]] == ["open", "open"]
    assert "lets go messages older than 30d and the oldest of more than 50GiB in a partition" in shown
    assert status["retention"] == {"keep_s": 30 * 86_400, "keep_bytes": 50 << 30}
    assert all(0 <= one["floor"] < one["committed"] for one in status["partitions"])
    assert f"spare SessionActors: {status['spare_sessions'][0]}" in shown
    assert Path(status["logs"]).is_dir()
    report = json.loads(running("verify", "--json").stdout)
    assert report["ok"]
    assert report["problems"] == []
    assert "verified: nothing damaged" in running("verify").stdout


def test_up_again_says_that_it_runs_already_and_refuses_other_settings(running: Shell) -> None:
    before = running.run_file
    assert "runs already" in running("up", "--data", str(running.data)).stdout
    assert running.run_file == before
    refused = running("up", "--data", str(running.data), "--partitions", "3", code=1)
    assert "re-partitioning does not exist yet; use --partitions 2" in refused.stderr
    grown = running("up", "--data", str(running.data), "--stores", "5", code=1)
    assert "the system runs with stores=4, not 5: end it first" in grown.stderr
    assert "`trilogue down` first" in running("up", "--data", str(running.data), "--listen", "127.0.0.1:9", code=1).stderr
    kept = running("up", "--data", str(running.data), "--keep-for", "7d", code=1)
    assert "the system runs with --keep-for 30d, not 7d: end it first, then start it so" in kept.stderr


def test_the_run_file_says_where_everything_is_and_holds_no_secret(running: Shell) -> None:
    found = running.run_file
    names = [*(f"store-{k}" for k in (1, 2, 3, 4)), *(f"session-{k}" for k in (0, 1, 2)), "supervisor"]
    assert list(found["actors"]) == names
    assert list(found["actors"].values()) == found["addresses"]
    assert set(found["processes"]) == set(names)
    assert all(alive(pid) for pid in found["processes"].values())
    assert Path(found["token_file"]).read_text().strip() not in json.dumps(found)
    assert found["ray_address"].startswith("127.0.0.1:")


def test_a_wrong_token_and_a_missing_one_are_told_apart(running: Shell, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    address = running.run_file["addresses"][0]
    refused = running("status", "--address", address, code=1, TRILOGUE_TOKEN_FILE=str(wrong))
    assert "the token is wrong" in refused.stderr
    unknown = running("status", "--address", "127.0.0.1:1", code=1)
    assert "TRILOGUE_TOKEN_FILE" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "named", "code"),
    [
        (("send", "", "text"), "empty", 2),
        (("send", "x" * 256, "text"), "255 at most", 2),
        (("send", "room", "text", "--sender", "a\nb"), "control character", 2),
        (("tail", "room", "--after", "-1"), "after", 2),
        (("trim", "room", "--before", "0"), "--before 0: a seq, from 1", 2),
        (("send", "room", "text", "--outbox", "/proc/nowhere/box.db"), "cannot open", 1),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(running: Shell, arguments: tuple[str, ...], named: str, code: int) -> None:
    said = running(*arguments, code=code).stderr
    assert named in said
    assert len(said.splitlines()) == 1


def test_stopped_stores_make_send_say_that_the_message_may_have_been_stored_and_why(running: Shell, tmp_path: Path) -> None:
    """G8: a time-out is honest; what an outbox holds is sent by the next one (G10), once (G5)."""
    outbox = str(tmp_path / "alice.db")
    pids = [running.run_file["processes"][name] for name in ("store-2", "store-4")]  # one more than there are spare ones
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        late = running("send", "honest", "one", "--sender", "alice", "--outbox", outbox, "--timeout", "1", code=1)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert "may have been stored" in late.stderr
    assert "does not answer" in late.stderr
    assert f"it is kept in {outbox}" in late.stderr
    running("send", "honest", "two", "--sender", "alice", "--outbox", outbox)
    lines = running("tail", "honest", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "two"]


@pytest.mark.long
def test_kill_9_of_everything_then_up_has_all_that_was_acked(running: Shell) -> None:
    """G2, G3, G11: raylet and GCS included."""
    for number in range(1, 4):
        running("send", "survivor", f"text {number}", "--sender", "alice")
    addresses = running.run_file["addresses"]
    victims = running.ray_processes()
    assert len(victims) > len(addresses)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    down = running("status", code=1)
    assert "trilogue up --data" in down.stderr
    assert "trilogue up --data" in running("send", "survivor", "lost?", "--timeout", "1", code=1).stderr

    again = running("up", "--data", str(running.data), "--allow-tmpfs")
    assert "trilogue is up" in again.stdout
    assert "cleaning up after a system that died" in again.stderr
    assert running.run_file["addresses"] == addresses
    kept = json.loads(running("status", "--json").stdout)["retention"]
    assert kept == {"keep_s": 30 * 86_400, "keep_bytes": 50 << 30}, "as the start before had said"
    lines = running("tail", "survivor", "--json").stdout.splitlines()
    assert [(json.loads(line)["seq"], json.loads(line)["text"]) for line in lines] == [(k, f"text {k}") for k in (1, 2, 3)]
    assert "survivor 4" in running("send", "survivor", "text 4").stdout
    assert json.loads(running("verify", "--json").stdout)["ok"]


def test_verify_names_a_frame_that_was_damaged_on_one_store_and_the_store_takes_it_back_from_a_peer(running: Shell) -> None:
    """G2: the others serve it meanwhile; soon the store's file is what it was."""
    body = "a body that is easy to find"
    running("send", "damaged", body)
    partition = partition_of("damaged", 2)
    store = json.loads(running("status", "--json").stdout)["partitions"][partition]["stores"][-1]
    journal = next(path for path in (running.data / store).glob("journal-*") if body.encode() in path.read_bytes())
    whole = journal.read_bytes()
    for _ in range(3):  # the scrubber may have been quicker than `verify`
        with journal.open("r+b") as file:
            file.seek(whole.index(body.encode()))
            file.write(b"A")
        report = asyncio.run(verify(locate(None, running.data), Quiet()))
        if report["problems"]:
            break
    assert [problem["kind"] for problem in report["problems"]] == ["damaged"]
    assert report["problems"][0]["where"].startswith(f"{store} partition ")
    assert json.loads(running("tail", "damaged", "--json").stdout)["text"] == body
    deadline = time.monotonic() + DEADLINE_S
    while body.encode() not in journal.read_bytes():
        assert time.monotonic() < deadline, "it was not mended"
        time.sleep(0.1)
    assert json.loads(running("verify", "--json").stdout)["ok"]
    store_status = next(one for one in json.loads(running("status", "--json").stdout)["stores"] if one["name"] == store)
    assert store_status["state"] == "open"


class Quiet:
    """Progress that nobody sees."""

    def advance(self, part: str, done: int, total: int) -> None:
        pass


def test_down_ends_everything_keeps_the_data_and_is_content_when_nothing_runs(running: Shell) -> None:
    temp_dir = Path(running.run_file["ray"]["temp_dir"])
    processes = running.ray_processes()
    assert processes
    assert f"the data is kept in {running.data}" in running("down").stdout
    assert [pid for pid in processes if alive(pid)] == []
    assert not temp_dir.exists()
    assert not (running.data / "run.json").exists()
    assert (running.data / "store-1" / "store.json").exists()
    assert running("down").stdout == "nothing was running\n"
    assert "start it with `trilogue up" in running("status", "--data", str(running.data), code=1).stderr
    assert "--repair" in running("verify", "--help").stdout
    assert "NOT OK" not in running("verify", "--repair", "--data", str(running.data)).stdout
    assert "verified: nothing damaged" in running("verify", "--data", str(running.data)).stdout
    assert "start it with `trilogue up" in running("verify", "--data", str(running.data.parent / "nothing"), code=1).stderr


def test_a_port_that_is_taken_is_found_out_before_anything_is_started(shell: Shell, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said = shell("up", "--data", str(tmp_path / "data"), "--listen", listen, "--allow-tmpfs", code=1).stderr
    assert "is taken" in said
    assert len(said.splitlines()) == 1


def test_a_data_directory_that_cannot_be_used_is_one_line(shell: Shell, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "cluster.json").write_text('{"format": 99}')
    assert "upgrade trilogue" in shell("up", "--data", str(newer), code=1).stderr
    (tmp_path / "file").write_text("")
    assert "choose another directory" in shell("up", "--data", str(tmp_path / "file" / "data"), code=1).stderr


def test_a_ray_that_is_not_there_is_found_out_at_once(shell: Shell, tmp_path: Path) -> None:
    started = time.monotonic()
    said = shell("up", "--data", str(tmp_path / "d"), "--ray-address", "127.0.0.1:9", "--allow-tmpfs", code=1).stderr
    assert time.monotonic() - started < 4 * QUICK_S
    assert "no Ray at 127.0.0.1:9" in said
