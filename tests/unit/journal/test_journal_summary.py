"""A closed file's summary stands for it, and only for it."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.journal import FenceRecord, Journal, open_identity
from trilogue.actors.journal.files import FileReader, summary_path
from trilogue.actors.journal.summary import summarise
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.store.contents import StoreContents

FRAMES = 60
LOG_ID = 0x1122334455667788
Store = Any  # the conftest's


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """A store of several files, of which all that are closed have a summary."""
    store = make_store(file_bytes=4096)
    store.open()
    for k in range(FRAMES):
        if k % 20 == 7:
            store.append(FenceRecord(0, 1 + k, f"writer-{k}", "127.0.0.1:9"))
        store.append(store.frame(k % 2, epoch=1 + k - k % 20, committed=k // 2, body=b"body %d" % k * 40))
    for number in store.open_journal.closed_files():
        deque(summarise(store.directory, number, store.open_journal.identity))
    store.close()
    return store


def opened(store: Store, monkeypatch: pytest.MonkeyPatch, *, summaries: bool = True) -> tuple[StoreContents, list[int]]:
    """What an opening finds, and the files that it read."""
    read: list[int] = []

    class Noticed(FileReader):
        def view(self, offset: int, size: int) -> memoryview:
            if offset and self.number not in read:
                read.append(self.number)
            return super().view(offset, size)

    monkeypatch.setattr("trilogue.actors.journal.scan.FileReader", Noticed)
    contents = StoreContents(LOG_ID, DEFAULT_LIMITS)
    identity = open_identity(store.directory, cluster="cluster-a", log_id=LOG_ID, fresh_store="x")
    journal = Journal.open(store.directory, identity, DEFAULT_LIMITS, contents.replay, file_bytes=4096, summaries=summaries)
    journal.close()
    return contents, read


def says(contents: StoreContents) -> Any:
    return [
        (state.last_index, state.last_crc, state.last_epoch, state.committed_upto, state.fence, list(state.chain.crcs.plain()),
         list(state.chain.epochs.plain()), [contents.places[p].at(i) for i in range(1, state.last_index + 1)])
        for p, state in contents.state.partitions.items()
    ]  # fmt: skip


def test_closed_files_are_not_read_and_the_newest_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, every = opened(store, monkeypatch, summaries=False)
    short, read = opened(store, monkeypatch)
    assert len(every) >= 4
    assert read == [every[-1]]
    assert says(short) == says(whole)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [torn, flipped, Path.unlink, lambda path: path.write_bytes(b"")])
def test_file_whose_summary_is_damaged_or_missing_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    damage(summary_path(store.directory, 2))
    contents, read = opened(store, monkeypatch)
    assert 2 in read
    assert 3 not in read
    assert says(contents) == says(opened(store, monkeypatch, summaries=False)[0])


def put_elsewhere(store: Store) -> None:
    """The same bytes in a new file: what a repair, or a copy of the directory, may leave."""
    path = store.path(2)
    shutil.copy(path, path.with_suffix(".copy"))
    os.replace(path.with_suffix(".copy"), path)


def lengthened(store: Store) -> None:
    with store.path(2).open("ab") as file:
        file.write(bytes(8))


def of_another_file(store: Store) -> None:
    shutil.copy(summary_path(store.directory, 3), summary_path(store.directory, 2))


@pytest.mark.parametrize("change", [put_elsewhere, lengthened, of_another_file])
def test_file_that_is_not_the_one_that_was_summarised_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[Store], None]
) -> None:
    change(store)
    assert 2 in opened(store, monkeypatch)[1]


def test_damaged_file_is_never_summarised_G8(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=4096)
    store.open()
    for k in range(FRAMES):
        store.append(store.frame(body=b"body %d" % k * 40))
    flipped(store.path(1))
    with pytest.raises(Corrupt):
        deque(summarise(store.directory, 1, store.open_journal.identity))
    assert not summary_path(store.directory, 1).exists()
