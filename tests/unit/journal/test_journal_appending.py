"""What is appended is durable, in order, in as few calls as promised, or the append says so (G1, G2)."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.journal import FenceRecord, JournalBroken, JournalFull, Position
from trilogue.actors.protocol.errors import Corrupt, DirectoryUnusable
from trilogue.actors.protocol.invariants import InvariantBroken

Store = Any  # the class of conftest.py, which cannot be imported here


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED on a real full disk: mounting a small tmpfs takes root")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(write: Callable[[], object], until: type[Exception]) -> None:
    """Write again and again, until there is no space."""

    def write_on() -> None:
        for _ in range(10_000):
            write()

    with pytest.raises(until, match="No space"):
        write_on()


def fails_with(number: int, calls: list[int] | None = None) -> Callable[..., int]:
    """A system call that fails, and counts how often it was tried."""

    def call(*_: object) -> int:
        if calls is not None:
            calls.append(number)
        raise OSError(number, os.strerror(number))

    return call


def test_replay_gives_back_what_was_appended_with_fences_in_their_places(small: Store) -> None:
    assert small.open() == small.keys
    assert [found.position for found in small.found] == [w.position for w in small.book if w.key[0] == "frame"]


def test_read_gives_back_each_frames_bytes(store: Store) -> None:
    frames = [store.frame(body=bytes([k]) * k) for k in range(20)]
    positions = store.append(*frames[:7]) + store.append(*(memoryview(f) for f in frames[7:]))
    assert [store.open_journal.read(position) for position in positions] == frames


def test_g1_one_append_is_one_write_and_one_sync(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.pwritev, os.fdatasync

    def counted_write(fd: int, buffers: list[bytes], at: int) -> int:
        calls.append("write")
        return write(fd, buffers, at)

    def counted_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    monkeypatch.setattr(os, "pwritev", counted_write)
    monkeypatch.setattr(os, "fdatasync", counted_sync)
    store.append(store.frame(), FenceRecord(0, 2, "writer-b", "127.0.0.1:2"), store.frame(1), store.frame(2))
    assert calls == ["write", "sync"]


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_short_writes_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: os.pwrite(fd, b"".join(buffers)[:piece], at))
    store.fill_small()
    assert store.open() == store.keys


def test_more_buffers_than_one_system_call_takes_are_appended_at_once(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=1 << 20)
    store.open()
    store.append(*[store.frame() for _ in range(2500)])
    assert store.open() == store.keys
    assert store.open_journal.status()["files"] == 1


def test_rolling_keeps_everything_and_repeats_the_fences_in_force(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=2048)
    store.open()
    store.append(FenceRecord(0, 1, "writer-a", "127.0.0.1:1"))
    store.append(FenceRecord(1, 5, "writer-b", "127.0.0.1:2"), FenceRecord(0, 2, "writer-c", "127.0.0.1:3"))
    for k in range(60):
        store.append(store.frame(k % 2, body=bytes(k * 7)), store.frame(2, committed=k))
    files = store.open_journal.status()["files"]
    assert files > 8
    assert store.open() == store.keys, "a repeated fence is not replayed again"
    newest = store.path(files).read_bytes()
    assert max(newest.index(b"writer-b"), newest.index(b"writer-c")) < 64 * 6
    assert b"writer-a" not in newest
    assert [store.open_journal.read(w.position)[:4] for w in store.book if w.key[0] == "frame"] == [b"\x7fTRL"] * 120


def test_append_larger_than_a_file_gets_a_larger_file(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=1024)
    store.open()
    store.append(FenceRecord(0, 1, "writer-a", "127.0.0.1:1"))
    store.append(store.frame(body=bytes(5000)), store.frame(1, body=bytes(5000)))
    assert store.open() == store.keys
    assert store.open_journal.status()["files"] == 2


def test_fence_that_takes_back_a_higher_one_breaks_an_invariant_and_writes_nothing(store: Store) -> None:
    store.append(FenceRecord(0, 2, "writer-a", "127.0.0.1:1"))
    store.append(FenceRecord(0, 2, "writer-a", "127.0.0.1:9"))
    for lower in (FenceRecord(0, 1, "writer-a", "127.0.0.1:1"), FenceRecord(0, 2, "writer-b", "127.0.0.1:1")):
        with pytest.raises(InvariantBroken):
            store.open_journal.append([lower])
    assert store.open() == store.keys


def test_read_refuses_another_record_and_a_place_outside(small: Store) -> None:
    fence = small.book[0].position
    frame = small.book[2].position
    for wrong in (fence, frame._replace(size=frame.size + 8), frame._replace(file=7), Position(1, 1 << 20, 72)):
        with pytest.raises(Corrupt, match="keep its directory"):
            small.open_journal.read(wrong)


def test_read_error_of_the_disk_is_corrupt(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", fails_with(errno.EIO))
    with pytest.raises(Corrupt, match="cannot be read"):
        small.open_journal.read(small.book[2].position)
    with pytest.raises(Corrupt, match="cannot be read"):
        small.open()


def test_other_threads_read_while_appends_roll_over_files(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=2048)
    store.open()
    known: list[tuple[Position, bytes]] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read_all() -> None:
        try:
            while not done.is_set():
                for position, frame in known[-20:]:
                    assert store.open_journal.read(position) == frame
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(400):
        frame = store.frame(body=k.to_bytes(4, "little") * 30)
        known.append((store.append(frame)[0], frame))
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.open_journal.status()["files"] > 20


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_g1_failed_sync_ends_the_journal_and_is_never_tried_again(
    small: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", fails_with(number, calls))
    frame = small.frame(0, epoch=2, committed=4)
    for _ in range(3):
        with pytest.raises(JournalBroken, match="cannot sync"):
            small.open_journal.append([frame])
    assert len(calls) == 1
    assert issubclass(JournalBroken, InvariantBroken), "whoever runs effects ends the process on it"


def test_failed_write_ends_the_journal(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", fails_with(errno.EIO))
    for _ in range(2):
        with pytest.raises(JournalBroken, match="cannot write"):
            small.open_journal.append([small.frame(0, epoch=2, committed=4)])


def test_failed_sync_while_opening_ends_the_journal(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    with pytest.raises(JournalBroken, match="cannot sync"):
        small.open()


def test_opening_syncs_each_file_and_drops_its_cached_pages_before_it_reads_it(
    small: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.close()
    calls: list[str] = []
    sync, advise, read = os.fsync, os.posix_fadvise, os.pread

    def counted_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    def counted_advise(fd: int, offset: int, size: int, advice: int) -> None:
        assert (offset, size, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        calls.append("drop")
        advise(fd, offset, size, advice)

    def counted_read(fd: int, size: int, offset: int) -> bytes:
        calls.append("read")
        return read(fd, size, offset)

    monkeypatch.setattr(os, "fsync", counted_sync)
    monkeypatch.setattr(os, "posix_fadvise", counted_advise)
    monkeypatch.setattr(os, "pread", counted_read)
    assert small.open() == small.keys
    assert calls[:3] == ["sync", "drop", "read"]


def test_failed_sync_while_rolling_ends_the_journal(make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(file_bytes=512)
    store.open()
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    frame = store.frame(body=bytes(400))
    for _ in range(2):
        with pytest.raises(JournalBroken, match="cannot make"):
            store.open_journal.append([frame])
    monkeypatch.undo()
    assert store.open() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("written", [0, 1, 50, 100])
def test_no_space_for_a_write_leaves_a_clean_end_and_serves_reads(
    small: Store, monkeypatch: pytest.MonkeyPatch, number: int, written: int
) -> None:
    room = [written]

    def some_then_full(fd: int, buffers: list[bytes], at: int) -> int:
        size, room[0] = room[0], 0
        if not size:
            raise OSError(number, os.strerror(number))
        return os.pwrite(fd, b"".join(buffers)[:size], at)

    monkeypatch.setattr(os, "pwritev", some_then_full)
    with pytest.raises(JournalFull, match="free some"):
        small.open_journal.append([bytes([9]) * 64, small.frame(0, epoch=2, committed=4)])
    assert small.open_journal.full
    assert small.open_journal.read(small.book[2].position)
    monkeypatch.undo()
    assert small.open() == small.keys
    assert small.open_journal.incarnation == 1, "nothing was torn"


def test_no_space_when_syncing_writes_nothing_more(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", fails_with(errno.ENOSPC, calls))
    for _ in range(3):
        with pytest.raises(JournalFull, match="cannot sync"):
            small.open_journal.append([small.frame(1, committed=3)])
    assert len(calls) == 1
    assert small.open_journal.read(small.book[2].position)


def test_no_space_for_the_next_file_is_over_when_there_is_space_again(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(file_bytes=512)
    store.open()
    store.append(store.frame(body=bytes(200)))
    frame = store.frame(body=bytes(300))
    monkeypatch.setattr(os, "posix_fallocate", fails_with(errno.ENOSPC))
    before = store.snapshot()
    for _ in range(2):
        with pytest.raises(JournalFull):
            store.open_journal.append([frame])
    assert store.open_journal.full
    assert store.snapshot() == before
    monkeypatch.undo()
    store.append(frame)
    assert not store.open_journal.full
    assert store.open() == store.keys


def test_really_full_disk_keeps_what_it_has_and_opens_for_reading(tiny_disk: Path, make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=32 * 1024)
    store.directory = tiny_disk / "store"
    store.directory.mkdir()
    store.open()
    fill(lambda: store.append(store.frame(body=os.urandom(3000))), JournalFull)
    store.chains[0].pop()
    assert len(store.book) > 50
    hog = tiny_disk / "hog"
    with open(hog, "wb", buffering=0) as file:
        fill(lambda: file.write(bytes(4096)), OSError)
    assert store.open() == store.keys
    with pytest.raises(JournalFull):
        store.open_journal.append([store.frame(body=bytes(30_000))])
    store.chains[0].pop()
    torn = store.book[-1].position
    with open(store.path(torn.file), "r+b") as newest:
        newest.seek(torn.offset + 70)
        newest.write(b"\xff\xff")
    on_disk = store.path(torn.file).read_bytes()
    for _ in range(2):
        assert store.open() == [*store.keys[:-1], ("incarnation", 2)], "what cannot be cut now is read without"
        assert store.open_journal.full
        assert store.path(torn.file).read_bytes() == on_disk
        with pytest.raises(JournalFull, match="damaged tail"):
            store.open_journal.append([store.frame(body=b"small")])
        store.chains[0].pop()
        assert store.open_journal.read(store.book[0].position)
    hog.unlink()
    assert store.open() == [*store.keys[:-1], ("incarnation", 2)]
    store.book.pop()
    store.chains[0].pop()
    store.append(store.frame(body=b"there is space again"))
    assert [key for key in store.open() if key[0] != "incarnation"] == store.keys
    assert store.open_journal.incarnation == 2


def test_new_store_on_a_full_disk_is_refused(make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store()
    monkeypatch.setattr(os, "posix_fallocate", fails_with(errno.ENOSPC))
    with pytest.raises(DirectoryUnusable, match="no space"):
        store.open()
    monkeypatch.undo()
    assert store.open() == []
    assert store.open_journal.incarnation == 1


def test_files_that_never_got_their_name_are_removed(small: Store) -> None:
    leftover = small.directory / "journal-00000002.trl.tmp"
    leftover.write_bytes(b"half")
    assert small.open() == small.keys
    assert not leftover.exists()


def test_file_is_preallocated_and_closing_twice_is_harmless(small: Store) -> None:
    assert small.path().stat().st_size == small.file_bytes
    journal = small.open_journal
    assert journal.status()["bytes_written"] == sum(written.position.size for written in small.book)
    journal.close()
    journal.close()
    with pytest.raises(InvariantBroken):
        journal.append([small.frame(0)])


@pytest.mark.parametrize("step", ["store.json", "cut", "record"])
def test_crash_while_a_tail_is_cut_loses_nothing_more(small: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    last = small.book[-1].position
    with open(small.path(), "r+b") as file:
        file.seek(last.offset + 70)
        file.write(b"\xff")
    call = {"store.json": "ftruncate", "cut": "posix_fallocate", "record": "pwritev"}[step]
    monkeypatch.setattr(os, call, fails_with(errno.EIO))
    with pytest.raises(JournalBroken):
        small.open()
    monkeypatch.undo()
    incarnation = 3 if step == "store.json" else 2
    assert small.open() == [*small.keys[:-1], ("incarnation", incarnation)]
    assert small.open() == [*small.keys[:-1], ("incarnation", incarnation)], "it is written down where it was raised"
