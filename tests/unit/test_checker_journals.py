"""The checker's own reader of journals, held against journals that trilogue's own code wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from history_checker import read_store, truth_of
from trilogue.actors.journal import FenceRecord, Journal, open_identity, try_lock
from trilogue.actors.protocol.frames import HEADER_BYTES, encode_frame
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import pack_records

LOG_ID = 4711
LIMITS = Limits(
    body_bytes_max=4 * KIB,
    submit_bytes_max=8 * KIB,
    frame_bytes_target=8 * KIB,
    frame_bytes_max=96 * KIB,
    journal_file_bytes=160 * KIB,
    wire_bytes_max=8192 * KIB,
)
SENDER = "alice/" + "0" * 32


def run_of(n: int, seq: int, *bodies: bytes) -> list[Any]:
    return [1, "room", SENDER, n, seq, 5, [4] * len(bodies), list(bodies)]


class Writer:
    """Makes frames that chain, as a SessionActor does."""

    def __init__(self) -> None:
        self.crcs: dict[int, list[int]] = {}

    def frame(self, partition: int, *records: Any, epoch: int = 1, upto: int = 0, at: int | None = None) -> bytes:
        crcs = self.crcs.setdefault(partition, [0])
        index = at or len(crcs)
        del crcs[index:]
        data, crc = encode_frame(
            log_id=LOG_ID, partition=partition, epoch=epoch, index=index, prev_crc=crcs[index - 1], count=len(records),
            committed_upto=upto, payload=pack_records(list(records)),
        )  # fmt: skip
        crcs.append(crc)
        return data


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    lock = try_lock(tmp_path, allow_tmpfs=True)
    identity = open_identity(tmp_path, cluster="c" * 32, log_id=LOG_ID, fresh_store="f" * 32)
    try:
        return Journal.open(tmp_path, identity, LIMITS, lambda entry: None)
    finally:
        lock.release()


def test_what_was_appended_is_read_with_its_partitions_and_commits(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    journal.append([FenceRecord(0, 1, "w" * 32, "127.0.0.1:1"), writer.frame(0, run_of(1, 1, b"a", b"b"))])
    journal.append([writer.frame(3, [2, "other", SENDER, 1, 5]), writer.frame(0, run_of(3, 3, b"c"), upto=1)])
    contents = read_store(tmp_path)
    assert (contents.damage, contents.torn) == ([], "")
    assert {partition: len(frames) for partition, frames in contents.partitions.items()} == {0: 2, 3: 1}
    assert contents.committed_upto(0) == 1
    truth, anomalies = truth_of([contents], copies=1)
    assert anomalies == []
    assert [(one.seq, one.n, one.mark.split("#")[0]) for one in truth.sessions["room"]] == [
        (1, 1, "a"),
        (2, 2, "b"),
        (3, 3, "c"),
    ]
    assert truth.skips == [("other", SENDER, 1)]


def test_a_journal_of_several_files_is_read_to_its_end(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    for k in range(100):
        journal.append([writer.frame(0, run_of(k + 1, k + 1, bytes(4 * KIB)), upto=k)])
    assert len(list(tmp_path.glob("journal-*.trl"))) > 2
    contents = read_store(tmp_path)
    assert (len(contents.partitions[0]), contents.damage, contents.torn) == (100, [], "")


def test_a_frame_of_a_higher_epoch_replaces_what_stood_there(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    journal.append([writer.frame(0, run_of(1, 1, b"kept")), writer.frame(0, run_of(2, 2, b"gone")), writer.frame(0)])
    journal.append([FenceRecord(0, 2, "v" * 32, "127.0.0.1:1"), writer.frame(0, run_of(2, 2, b"new"), epoch=2, at=2)])
    contents = read_store(tmp_path)
    assert contents.damage == []
    bodies = [record[7] for frame in contents.partitions[0] for record in frame.records]
    assert bodies == [[b"kept"], [b"new"]]


@pytest.mark.parametrize("what", ["header", "payload", "zeros"])
def test_damage_ends_what_is_believed(journal: Journal, tmp_path: Path, what: str) -> None:
    writer = Writer()
    journal.append([writer.frame(0, run_of(1, 1, b"a"))])
    [position] = journal.append([writer.frame(0, run_of(2, 2, b"b"))])
    [path] = tmp_path.glob("journal-*.trl")
    data = bytearray(path.read_bytes())
    if what == "zeros":
        data[position.offset : position.offset + position.size] = bytes(position.size)
    else:
        data[position.offset + (20 if what == "header" else HEADER_BYTES + 3)] ^= 1
    path.write_bytes(data)
    contents = read_store(tmp_path)
    assert len(contents.partitions[0]) == 1
    assert bool(contents.torn) == (what != "zeros")


def test_damage_in_an_older_file_is_no_torn_write(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    for k in range(60):
        journal.append([writer.frame(0, run_of(k + 1, k + 1, bytes(4 * KIB)))])
    first = tmp_path / "journal-00000001.trl"
    data = bytearray(first.read_bytes())
    data[5000] ^= 1
    first.write_bytes(data)
    contents = read_store(tmp_path)
    assert any("journal-00000001.trl" in damage for damage in contents.damage)


def test_a_missing_file_is_noticed(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    for k in range(60):
        journal.append([writer.frame(0, run_of(k + 1, k + 1, bytes(4 * KIB)))])
    (tmp_path / "journal-00000001.trl").unlink()
    assert read_store(tmp_path).damage


def test_a_frame_that_replaces_a_committed_one_is_damage(tmp_path: Path) -> None:
    """trilogue's own journal refuses to write such a thing, so it is laid down by hand."""
    writer = Writer()
    frames = [writer.frame(0, run_of(1, 1, b"a")), writer.frame(0, upto=1), writer.frame(0, run_of(1, 1, b"z"), epoch=2, at=1)]
    (tmp_path / "store.json").write_text(f'{{"log_id": {LOG_ID}}}')
    (tmp_path / "journal-00000001.trl").write_bytes(b"".join(frames) + bytes(640))
    contents = read_store(tmp_path)
    assert any("said to be committed" in damage for damage in contents.damage)
