"""A directory belongs to one store of one cluster, and to one process at a time; what is not fit is refused in one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from trilogue.actors.journal import JournalBroken, identity, open_identity, try_lock
from trilogue.actors.protocol.errors import (
    Corrupt,
    DirectoryInUse,
    DirectoryUnusable,
    NewerFormat,
    WrongCluster,
)
from trilogue.actors.protocol.frames import HEADER_BYTES

Store = Any  # the class of conftest.py, which cannot be imported here
CLUSTER, LOG_ID, STORE = "cluster-a", 0x1122334455667788, "ab" * 16


def reopen(directory: Path, cluster: str = CLUSTER, log_id: int = LOG_ID) -> identity.Identity:
    return open_identity(directory, cluster=cluster, log_id=log_id, fresh_store="cd" * 16)


def test_new_directory_becomes_a_store_and_keeps_its_identity(small: Store) -> None:
    assert reopen(small.directory) == identity.Identity(STORE, 1, CLUSTER, LOG_ID)
    written = json.loads((small.directory / "store.json").read_text())
    assert {key: written[key] for key in ("format", "store", "incarnation", "cluster", "log_id")} == {
        "format": 1,
        "store": STORE,
        "incarnation": 1,
        "cluster": CLUSTER,
        "log_id": LOG_ID,
    }


@pytest.mark.parametrize(("cluster", "log_id"), [("cluster-b", LOG_ID), (CLUSTER, 5)])
def test_directory_of_another_cluster_is_refused(small: Store, cluster: str, log_id: int) -> None:
    with pytest.raises(WrongCluster, match=r"cluster-a.*give this cluster another directory"):
        reopen(small.directory, cluster, log_id)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b'{"format": "1"}'])
def test_damaged_identity_is_corrupt_and_never_a_new_one(small: Store, content: bytes) -> None:
    (small.directory / "store.json").write_bytes(content)
    with pytest.raises(Corrupt, match=r"store\.json is damaged.*keep its directory"):
        reopen(small.directory)
    assert (small.directory / "store.json").read_bytes() == content


def test_flip_in_every_byte_of_the_identity_is_refused_or_means_the_same(small: Store) -> None:
    path = small.directory / "store.json"
    good = path.read_bytes()
    expected = reopen(small.directory)
    for at in range(len(good)):
        for mask in (0x01, 0x08, 0x20, 0xFF):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            try:
                assert reopen(small.directory) == expected
            except (Corrupt, NewerFormat):
                continue


def test_journal_without_identity_is_corrupt(small: Store) -> None:
    (small.directory / "store.json").unlink()
    with pytest.raises(Corrupt, match=r"no store\.json"):
        reopen(small.directory)
    assert not (small.directory / "store.json").exists()


def test_journal_of_another_store_is_corrupt(make_store: Callable[..., Store], small: Store) -> None:
    other = make_store()
    identity.write_identity(other.directory, identity.Identity("ef" * 16, 0, CLUSTER, LOG_ID))
    other.open()
    other.close()
    small.path().write_bytes(other.path().read_bytes())
    with pytest.raises(Corrupt, match="belongs to store efef"):
        small.open()


def test_identity_older_than_the_journal_is_corrupt(small: Store) -> None:
    old = (small.directory / "store.json").read_bytes()
    with open(small.path(), "r+b") as file:
        file.seek(small.book[-1].position.offset + 70)
        file.write(b"\xff")
    small.open()
    assert small.open_journal.incarnation == 2
    (small.directory / "store.json").write_bytes(old)
    with pytest.raises(Corrupt, match="replaced by an older one"):
        small.open()


def test_crash_between_the_first_file_and_its_identity_is_no_loss(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    reopen(store.directory)

    def fails(*_: object) -> None:
        raise JournalBroken("the process ends here")

    monkeypatch.setattr("trilogue.actors.journal.journal.write_identity", fails)
    with pytest.raises(JournalBroken):
        store.open()
    assert store.path().exists()
    monkeypatch.undo()
    assert store.open() == []
    assert store.open_journal.incarnation == 1


def test_newer_identity_is_refused(small: Store) -> None:
    path = small.directory / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "shape": "another"}))
    with pytest.raises(NewerFormat, match=r"format 2.*upgrade"):
        reopen(small.directory)


def test_record_of_a_newer_version_is_refused_and_never_cut(small: Store) -> None:
    files = small.snapshot()
    for at in [0, small.book[2].position.offset, small.book[-1].position.offset]:
        header = bytearray(files[small.path().name][at : at + HEADER_BYTES])
        header[4] = 2
        header[-4:] = crc32(header[:-4]).to_bytes(4, "little")
        small.restore(files)
        with open(small.path(), "r+b") as file:
            file.seek(at)
            file.write(header)
        newer = small.snapshot()
        with pytest.raises(NewerFormat, match=r"version 2.*upgrade"):
            small.open()
        assert small.snapshot() == newer


def test_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from trilogue.actors.journal import try_lock\n"
        "lock = try_lock(Path(sys.argv[1]), allow_tmpfs=True); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(DirectoryInUse, match=f"in use by process {holder.pid}: stop it"):
            try_lock(tmp_path / "store", allow_tmpfs=True)
        holder.kill()
        holder.wait()
    lock = try_lock(tmp_path / "store", allow_tmpfs=True)
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        try_lock(tmp_path / "store", allow_tmpfs=True)
    lock.release()
    lock.release()
    try_lock(tmp_path / "store", allow_tmpfs=True).release()


def test_tmpfs_is_refused_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_filesystem_of", lambda directory: "tmpfs")
    with pytest.raises(DirectoryUnusable, match="lies on tmpfs"):
        try_lock(tmp_path)
    try_lock(tmp_path, allow_tmpfs=True).release()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="NOT TESTED on a real tmpfs: there is no /dev/shm")
def test_real_tmpfs_is_noticed(make_store: Callable[..., Store], tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnusable, match="tmpfs"):
        try_lock(make_store().directory)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_directory_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DirectoryUnusable, match=r"cannot be written.*give another directory"):
        try_lock(tmp_path, allow_tmpfs=True)


def test_read_only_file_system_is_refused(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED on a real read-only file system: mounting one takes root")
    try:
        for directory in (tmp_path, tmp_path / "new"):
            with pytest.raises(DirectoryUnusable, match="Read-only file system"):
                try_lock(directory, allow_tmpfs=True)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_path_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DirectoryUnusable):
        try_lock(tmp_path / "file", allow_tmpfs=True)


def test_full_disk_does_not_keep_a_directory_from_being_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_lock(tmp_path, allow_tmpfs=True).release()
    real = os.open

    def full(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and Path(path).name != "lock":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", full)
    try_lock(tmp_path, allow_tmpfs=True).release()
