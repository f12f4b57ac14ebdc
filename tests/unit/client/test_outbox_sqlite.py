"""The outbox's file: what is in it after a crash, and what is said when it cannot be used (G10)."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from trilogue.actors.protocol.errors import OutboxInUse, OutboxUnusable
from trilogue.client.outbox.sqlite import Commit, OutboxFile

ID = "a" * 32


def opened(path: Path) -> OutboxFile:
    return OutboxFile(str(path), lambda: ID)


def commit(batch_id: int, *bodies: bytes, first_n: int = 1, delete: list[int] | None = None, upto: int = 0) -> Commit:
    runs = [["red", "ann", ID, first_n, [1] * len(bodies), list(bodies)]] if bodies else []
    lanes = [("red", "ann", ID, upto + 1, 0)] if upto else []
    return Commit(batch_id if bodies else 0, runs, lanes, delete or [], None, False)


def test_what_was_committed_is_there_when_it_is_opened_again_g10(tmp_path: Path) -> None:
    file = opened(tmp_path / "a.db")
    file.commit(commit(1, b"one", b"two"))
    file.commit(commit(2, b"three", first_n=3))
    file.close()
    assert sorted(os.listdir(tmp_path)) == ["a.db", "a.db.lock"]
    stored = opened(tmp_path / "a.db").load()
    assert stored.outbox_id == ID
    assert [number for number, _ in stored.batches] == [1, 2]
    assert [run[5] for _, runs in stored.batches for run in runs] == [[b"one", b"two"], [b"three"]]


def test_deleting_a_group_keeps_its_lanes_numbers(tmp_path: Path) -> None:
    file = opened(tmp_path / "a.db")
    file.commit(commit(1, b"one"))
    file.commit(commit(2, delete=[1], upto=1))
    file.close()
    stored = opened(tmp_path / "a.db").load()
    assert stored.batches == []
    assert stored.lanes == [("red", "ann", ID, 2, 0)]


def test_many_lanes_are_written_with_few_statements_and_all_of_them(tmp_path: Path) -> None:
    file = opened(tmp_path / "a.db")
    rows = [(f"room\x00{k}", "ann", ID, k + 1, k % 2) for k in range(1, 1234)]
    file.commit(Commit(0, [], rows, [], "b" * 32, False))
    assert sorted(file.load().lanes) == sorted(rows)
    file.commit(Commit(0, [], [], [], None, True))
    stored = file.load()
    assert sorted(stored.lanes) == sorted(row for row in rows if not row[4])
    assert stored.outbox_id == "b" * 32


def test_saved_messages_survive_kill_9_at_any_moment_g10(tmp_path: Path) -> None:
    """A process commits and says so, group after group; it is killed while it works."""
    program = textwrap.dedent("""
        import sys
        from trilogue.client.outbox.sqlite import Commit, OutboxFile
        file = OutboxFile(sys.argv[1], lambda: "a" * 32)
        for number in range(1, 1_000_000):
            first_n = 5 * number - 4
            bodies = [b"%d" % n + b"x" * 500 for n in range(first_n, first_n + 5)]
            delete = [number - 20] if number > 20 else []
            lanes = [("red", "ann", "a" * 32, 5 * (number - 20) + 1, 0)] if delete else []
            file.commit(Commit(number, [["red", "ann", "a" * 32, first_n, [1] * 5, bodies]], lanes, delete, None, False))
            print(number, flush=True)
    """)
    path = tmp_path / "a.db"
    for enough in (1, 25, 60):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(line) for line in itertools.islice(process.stdout, enough)]
            process.send_signal(signal.SIGKILL)
            said += [int(line) for line in process.stdout if line.endswith("\n")]
        file = opened(path)
        stored = file.load()
        file.close()
        for leftover in tmp_path.glob("a.db-*"):
            leftover.unlink()
        settled = stored.lanes[0][3] - 1 if stored.lanes else 0
        found = [body for _, runs in stored.batches for run in runs for body in run[5]]
        numbers = [int(body.rstrip(b"x")) for body in found]
        assert numbers == list(range(settled + 1, settled + 1 + len(numbers))), "no gap, nothing twice"
        assert settled + len(numbers) >= 5 * said[-1], "what was said to be saved is there"


def test_a_second_user_of_the_file_hears_who_has_it(tmp_path: Path) -> None:
    file = opened(tmp_path / "a.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    for name in ("a.db", "link.db"):
        with pytest.raises(OutboxInUse, match=f"process {os.getpid()}"):
            opened(tmp_path / name)
    file.close()
    opened(tmp_path / "a.db").close()


def test_a_process_that_was_killed_does_not_keep_the_file(tmp_path: Path) -> None:
    program = "import sys, time; from trilogue.client.outbox.sqlite import OutboxFile; "
    program += "file = OutboxFile(sys.argv[1], lambda: 'a' * 32); print('open', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", program, str(tmp_path / "a.db")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(OutboxInUse, match=f"process {process.pid}"):
            opened(tmp_path / "a.db")
        process.kill()
    opened(tmp_path / "a.db").close()


def _newer(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def _another_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cats (name)")
    database.close()


def _flipped(path: Path) -> None:
    file = opened(path)
    file.commit(commit(1, b"hello, this is a body"))
    file.close()
    data = path.read_bytes()
    assert b"this is a body" in data
    path.write_bytes(data.replace(b"this is a body", b"this is a b0dy"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_text("Dear diary, today I was not a database."), "is not an outbox"),
        (_another_database, "is a database, but no outbox"),
        (_newer, "has format 99.*upgrade"),
        (_flipped, "is damaged: group 1 fails its CRC"),
        (lambda path: path.mkdir(), "is a directory: name a file"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(4096)), "cannot be used|no outbox"),
    ],
    ids=["text", "another database", "newer", "a flipped bit", "a directory", "a broken header"],
)
def test_a_file_that_is_no_usable_outbox_is_refused_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "a.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OutboxUnusable, match=says):
        opened(path).load()
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutboxUnusable, match=r"create its directory"):
        opened(tmp_path / "nowhere" / "a.db")


def test_a_directory_that_takes_no_files_is_not_said_to_be_missing() -> None:
    with pytest.raises(OutboxUnusable, match=r"make its directory writable"):
        opened(Path("/sys/a.db"))


def test_an_empty_file_becomes_an_outbox(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    assert opened(tmp_path / "a.db").load().batches == []


def test_a_failing_database_is_an_unusable_outbox(tmp_path: Path) -> None:
    file = opened(tmp_path / "a.db")
    file.commit(commit(1, b"one"))
    with pytest.raises(OutboxUnusable, match="IntegrityError"):
        file.commit(commit(1, b"the same group again"))
