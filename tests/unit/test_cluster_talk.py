"""What a message looks like on a terminal, and how a command line ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.messages import Message
from trilogue.client.reading.pages import LIMIT_MAX, SEQ_MAX
from trilogue.cluster.commands import cli, talk
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.paper import Paper


def message(body: bytes) -> Message:
    return Message("room", 3, "alice", "alice/" + "a" * 32, 1, body, 1_000_000, 2_000_000)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"plain", "plain"),
        ("Grüße 👋".encode(), "Grüße 👋"),
        (b"two\nlines\ttab", r"two\nlines\ttab"),
        (b"\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (b"\xff\x00", r"\xff\x00"),
        ("\u202eright to left".encode(), r"\u202eright to left"),
        ("line\u2028separator".encode(), r"line\u2028separator"),
    ],
)
def test_a_body_is_one_line_and_never_steers_the_terminal(body: bytes, shown: str) -> None:
    assert talk.printable(body) == shown


def test_a_line_holds_seq_time_sender_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    talk.print_line(message(b"hello"))
    words = capsys.readouterr().out.split()
    assert words[0] == "3"
    assert words[-2:] == ["alice", "hello"]


KNOWN = Known(["127.0.0.1:1"], "token", None)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_makes_no_sense_is_refused_by_its_options_name(timeout_s: float) -> None:
    with pytest.raises(UsageError, match=r"^--timeout .*: between 0.001 and 86,400 seconds$"):
        asyncio.run(talk.send(KNOWN, "room", "hello", "alice", None, timeout_s))


@pytest.mark.parametrize(
    ("after", "limit", "named"),
    [(None, LIMIT_MAX + 1, "--limit 1000001: at most 1,000,000"), (-1, None, "--after -1"), (SEQ_MAX + 1, 5, "--after 4611")],
)
def test_a_range_that_cannot_be_shown_is_refused_by_its_options_name(after: int | None, limit: int | None, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        asyncio.run(talk.tail(KNOWN, "room", after, limit, follow=False, as_json=False))
    assert named in str(refused.value)


def test_a_senders_name_does_not_steer_the_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    talk.print_line(message(b"hello")._replace(sender="\u202ealice"))
    assert r"\u202ealice  hello" in capsys.readouterr().out


def test_json_keeps_every_field_and_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    talk.print_json(message("ü".encode()))
    talk.print_json(message(b"\xff\xfe"))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["text"], first["seq"], first["stored_at_us"]) == ("ü", 3, 2_000_000)
    assert second["body_base64"] == "//4="
    assert "text" not in second


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (1, "room begins with message 1: nothing is gone"),
        (2, "room begins with message 2 now: message 1 is gone"),
        (17, "room begins with message 17 now: messages 1 to 16 are gone"),
    ],
)
def test_what_is_gone_is_said_in_one_line(first: int, said: str) -> None:
    assert talk.trimmed("room", first) == said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["send"], "SESSION"),
        (["sned"], "sned"),
        (["tail", "room", "--limit", "0"], "--limit"),
        (["tail", "room", "--after", "x"], "--after"),
        (["up", "--partitions", "0"], "--partitions 0"),
        (["up", "--partitions", "many"], "--partitions"),
        (["up", "--listen", "here:there"], "--listen"),
        (["up", "--keep-for", "0"], "or forever"),
        (["up", "--keep-bytes", "much"], "or all"),
        (["trim", "room"], "--before"),
        (["trim", "room", "--before", "x"], "--before"),
        (["up", "--data", ""], "--data"),
        (["up", "--data", "~nobody-of-that-name/data"], "write the whole path"),
        (["status", "--data", "~nobody-of-that-name/data"], "write the whole path"),
        (["send", "room", "text", "--outbox", ""], "--outbox"),
        (["status", "--address", "here:there"], "'here:there', which is no address"),
        (["status", "--address", ""], "--address is empty"),
        (["up", "--nonsense"], "--nonsense"),
        (["status", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it_and_exit_code_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.err.startswith("trilogue: ")
    assert len(said.err.splitlines()) == 1


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trilogue ")


def test_without_a_command_the_help_is_shown_with_the_commands_of_other_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    said = capsys.readouterr().out
    for command in ("up", "down", "status", "send", "tail", "verify", "bench"):
        assert f"\n  {command} " in said


def test_an_interrupted_command_says_so_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trilogue.cluster.commands.find.locate", interrupted)
    assert cli.run(["status"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "trilogue: interrupted"


def test_a_port_at_which_something_else_listens_is_one_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_greet_and_hang_up, args=(other,), daemon=True).start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "trilogue.cluster", "status", "--address", address],
            env={**os.environ, "TRILOGUE_TOKEN_FILE": str(tmp_path / "token")},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"no trilogue answers at {address}" in line
    assert "not the trilogue protocol" in line


def _greet_and_hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"220 mail.example.org ready\r\n")
        connection.recv(1024)


def test_a_reader_that_has_seen_enough_changes_neither_the_work_nor_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `trilogue bench … | head -1`: what was lost is still told by the exit code."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        paper = Paper()
        paper.print("the first line")
        paper.print("the second line")
        nobody.write("and what Python holds")
        nobody.flush()


def test_json_that_nobody_reads_does_not_hide_that_the_system_is_unwell(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unwell(_: object) -> dict[str, object]:
        return {"missing": ["store-1"], "partitions": [], "stores": []}

    monkeypatch.setattr("trilogue.cluster.commands.find.locate", lambda *_: None)
    monkeypatch.setattr("trilogue.cluster.commands.status.gather", unwell)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert cli.run(["status", "--json"]) == 1


def test_a_terminal_that_lacks_a_character_shows_its_number_and_json_stays_json() -> None:
    program = (
        "from trilogue.actors.protocol.messages import Message; from trilogue.cluster.commands import output, talk\n"
        "output.prepare_streams()\n"
        "said = Message('tea', 1, 'alice', 'alice/a', 1, '\\u2615 \\U0001f44b'.encode(), 1, 1)\n"
        "talk.print_line(said); talk.print_json(said)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line, text = done.stdout.splitlines()
    assert line.endswith(r"alice  \u2615 \U0001f44b")
    assert json.loads(text)["text"] == "\u2615 \U0001f44b"


def test_a_closed_standard_output_is_no_reason_to_fail() -> None:
    command = f"exec {sys.executable} -m trilogue.cluster --version >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_hears_what_to_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "TRILOGUE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cli.run(["status"]) == 2
    assert "set HOME, or XDG_DATA_HOME" in capsys.readouterr().err


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    program = (
        "import time; from trilogue.cluster.commands import cli, find\n"
        "def wait(*_): print('here', flush=True); time.sleep(60)\n"
        "find.locate = wait; cli.main()"
    )
    command = [sys.executable, "-c", program, "status"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "trilogue: interrupted"
