"""The checker's own reader of journals, held against journals that trilogue's own code wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from history_checker import Holding, Kind, read_register, read_store, truth_of
from trilogue.actors.index.partition import PartitionIndex
from trilogue.actors.journal import FenceRecord, FillRecord, JoinRecord, Journal, open_identity, try_lock
from trilogue.actors.journal.records import encode_control
from trilogue.actors.protocol.frames import HEADER_BYTES, encode_frame
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import TRIM, pack_records
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range, encode_record
from trilogue.actors.protocol.thinning import placed, thinned
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.store.acceptor import Acceptor
from trimmed_store import Store, filled

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
    assert {partition: len(holding.chain) for partition, holding in contents.partitions.items()} == {0: 2, 3: 1}
    assert (contents.partitions[0].committed_upto, contents.partitions[0].fence) == (1, 1)
    assert contents.identity == ("f" * 32, 1)
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
    assert (len(contents.partitions[0].chain), contents.damage, contents.torn) == (100, [], "")


def test_a_frame_of_a_higher_epoch_replaces_what_stood_there(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    journal.append([writer.frame(0, run_of(1, 1, b"kept")), writer.frame(0, run_of(2, 2, b"gone")), writer.frame(0)])
    journal.append([FenceRecord(0, 2, "v" * 32, "127.0.0.1:1"), writer.frame(0, run_of(2, 2, b"new"), epoch=2, at=2)])
    contents = read_store(tmp_path)
    assert contents.damage == []
    bodies = [record[7] for frame in contents.partitions[0].chain for record in frame.records]
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
    assert len(contents.partitions[0].chain) == 1
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


# ---------------------------------------------------------------------- stores that joined later


WRITER, WHERE = "w" * 32, "127.0.0.1:1"


def frames_of(count: int) -> list[bytes]:
    """Frames 1 … `count`, each of which says that all before it are committed."""
    writer = Writer()
    return [writer.frame(0, run_of(k, k, b"m%d" % k), upto=k - 1) for k in range(1, count + 1)]


def crc_of(frame: bytes) -> int:
    return int.from_bytes(frame[HEADER_BYTES - 4 : HEADER_BYTES], "little")


def join(epoch: int, first: int, prev_crc: int, *intervals: tuple[int, int]) -> JoinRecord:
    return JoinRecord(0, epoch, WRITER, WHERE, 1, first, prev_crc, intervals)


def held(tmp_path: Path) -> Holding:
    contents = read_store(tmp_path)
    assert (contents.damage, contents.torn) == ([], "")
    return contents.partitions[0]


def test_a_store_that_joined_has_the_frames_from_its_base_on(journal: Journal, tmp_path: Path) -> None:
    frames = frames_of(6)
    journal.append([join(3, 4, crc_of(frames[2])), *frames[3:]])
    holding = held(tmp_path)
    assert (holding.base, holding.last, holding.older, holding.fence, holding.committed_upto) == (4, 6, {}, 3, 5)
    assert holding.at(3) is None
    assert holding.at(5) is not None


def test_what_is_filled_in_below_the_base_is_part_of_the_chain_as_soon_as_it_connects(journal: Journal, tmp_path: Path) -> None:
    frames = frames_of(6)
    journal.append([join(1, 4, crc_of(frames[2])), *frames[3:], FillRecord(0, frames[0]), FillRecord(0, frames[1])])
    holding = held(tmp_path)
    assert (holding.base, sorted(holding.older)) == (4, [1, 2])
    journal.append([FillRecord(0, frames[2])])
    holding = held(tmp_path)
    assert (holding.base, holding.last, holding.older) == (1, 6, {})
    assert [frame.crc for frame in holding.chain] == [crc_of(frame) for frame in frames]


def test_a_join_in_the_chain_cuts_nothing_and_another_one_all_but_what_is_vouched_for(journal: Journal, tmp_path: Path) -> None:
    frames = frames_of(6)
    journal.append([FenceRecord(0, 1, WRITER, WHERE), *frames[:5]])
    journal.append([join(2, 3, crc_of(frames[1]))])
    assert held(tmp_path).last == 5
    journal.append([join(3, 8, 77)])
    holding = held(tmp_path)
    assert (holding.base, holding.last, sorted(holding.older)) == (8, 7, [1, 2, 3, 4]), "frame 5 is not known to be committed"


def test_a_join_keeps_the_intervals_that_the_record_vouches_for(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    journal.append([writer.frame(0, run_of(k, k, b"m"), upto=0) for k in range(1, 7)])
    journal.append([join(3, 8, 77, (2, 3))])
    assert sorted(held(tmp_path).older) == [2, 3]


def test_a_fill_over_a_committed_frame_and_a_frame_above_its_fence_are_damage(tmp_path: Path) -> None:
    frames = frames_of(6)
    other = Writer().frame(0, run_of(1, 1, b"another"), epoch=9)
    lie_down(tmp_path, frames[:5], join(3, 8, 77), FillRecord(0, other))
    assert any("filled in over another" in damage for damage in read_store(tmp_path).damage)
    lie_down(tmp_path, [], FenceRecord(0, 3, WRITER, WHERE), other)
    assert any("under the fence of epoch 3" in damage for damage in read_store(tmp_path).damage)
    lie_down(tmp_path, [], FenceRecord(0, 3, WRITER, WHERE), FenceRecord(0, 2, WRITER, WHERE))
    assert any("after that of epoch 3" in damage for damage in read_store(tmp_path).damage)


def lie_down(directory: Path, frames: list[bytes], *records: Any) -> None:
    """A journal by hand: trilogue's own refuses to write what must not be."""
    data = b"".join(frames)
    for record in records:
        data += record if isinstance(record, bytes) else encode_control(record, log_id=LOG_ID, file=1, offset=len(data))
    (directory / "store.json").write_text(f'{{"log_id": {LOG_ID}}}')
    (directory / "journal-00000001.trl").write_bytes(data + bytes(640))


# ---------------------------------------------------------------------- files that were written anew


def trimmed(directory: Path) -> Store:
    """A store whose session "s" was trimmed, all but its last hundred messages; "t" was not."""
    store = filled(directory)
    store.append((TRIM, "s", 301, 9))
    store.thin()
    assert store.thinner.files_thinned >= 2
    store.journal.close()
    store.indexes.close()
    return store


def test_thin_frames_are_read_and_what_is_gone_has_its_place(tmp_path: Path) -> None:
    trimmed(tmp_path)
    contents = read_store(tmp_path)
    assert (contents.damage, contents.torn) == ([], "")
    truth, anomalies = truth_of([contents], copies=1)
    assert anomalies == []
    assert truth.trims == {"s": 301}
    for session in "st":
        assert [(one.seq, one.n) for one in truth.sessions[session]] == [(k, k) for k in range(1, 401)]
    given_up = [one.seq for one in truth.sessions["s"] if one.is_gone]
    assert given_up
    assert given_up[-1] <= 300
    assert not [one for one in truth.sessions["t"] if one.is_gone]


def test_what_one_store_gave_up_is_read_from_another_one_that_has_it(tmp_path: Path) -> None:
    trimmed(tmp_path / "thin")
    whole = filled(tmp_path / "whole")
    whole.append((TRIM, "s", 301, 9))
    whole.journal.close()
    whole.indexes.close()
    truth, anomalies = truth_of([read_store(tmp_path / name) for name in ("thin", "whole")], copies=2)
    assert anomalies == []
    assert not [one for one in truth.sessions["s"] if one.is_gone]


def test_a_product_that_thins_without_asking_what_is_gone_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: every run of a file that is written anew is taken for gone."""
    monkeypatch.setattr(PartitionIndex, "gone", lambda _: lambda *_: True)
    trimmed(tmp_path)
    _, anomalies = truth_of([read_store(tmp_path)], copies=1)
    assert anomalies
    assert {one.kind for one in anomalies} == {Kind.NOT_TRIMMED}


def test_a_thin_frame_inside_a_fill_is_read(journal: Journal, tmp_path: Path) -> None:
    writer = Writer()
    frames = [writer.frame(0, run_of(k, k, b"m%d" % k * 100), upto=k - 1) for k in range(1, 7)]
    thin = thinned(frames[2], lambda item: True, 0)
    journal.append([join(1, 4, crc_of(frames[2])), *frames[3:], FillRecord(0, thin), *(FillRecord(0, f) for f in frames[:2])])
    holding = held(tmp_path)
    assert (holding.base, holding.last, holding.older) == (1, 6, {})
    assert [frame.thin for frame in holding.chain] == [False, False, True, False, False, False]
    assert holding.chain[2].records == [[7, "room", SENDER, 3, 3, 5, 1, []]]


def test_a_file_that_was_written_anew_and_ends_too_early_is_damage(tmp_path: Path) -> None:
    trimmed(tmp_path)
    path = tmp_path / "journal-00000001.trl"
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    assert read_store(tmp_path).damage
    at = data.rindex((0x4C52547F).to_bytes(4, "little"), 0, -8)
    while at % 8 or data[at + 6] not in (0, 32):
        at = data.rindex((0x4C52547F).to_bytes(4, "little"), 0, at)
    path.write_bytes(data[:at])
    assert any("should go on to byte" in damage for damage in read_store(tmp_path).damage)


def test_a_thin_frame_elsewhere_than_it_says_is_damage(tmp_path: Path) -> None:
    writer = Writer()
    thin = thinned(writer.frame(0, run_of(1, 1, bytes(500))), lambda item: True, 0)
    lie_down(tmp_path, [placed(thin, 1, 0)])
    assert len(held(tmp_path).chain) == 1
    lie_down(tmp_path, [placed(thin, 1, 8)])
    contents = read_store(tmp_path)
    assert "belongs at byte 8" in contents.torn
    assert contents.partitions[0].chain == []


# ---------------------------------------------------------------------- the register


MEMBERS = tuple(Member(f"store-{k}", f"{k}" * 32, 1) for k in (1, 2, 3))
ACCEPTORS = {f"store-{k}": f"acceptor {k}" for k in (1, 2, 3)}


def found(tmp_path: Path, votes: dict[int, list[tuple[int, str, int, PartitionRecord | None]]]) -> list[Path]:
    """Acceptors 1, 2, 3 of charter 1, each of which has accepted (n, key, version, record)."""
    for k, accepted in votes.items():
        directory = tmp_path / f"store-{k}"
        directory.mkdir()
        acceptor = Acceptor.open(directory, cluster="c" * 32, fresh_acceptor=f"acceptor {k}", limits=LIMITS)

        async def vote(acceptor: Acceptor = acceptor, accepted: Any = accepted) -> None:
            await acceptor.answer(Say.FOUND, [1, ACCEPTORS])
            for n, key, version, record in accepted:
                data = encode_record(record) if record is not None else b""
                await acceptor.answer(Say.PREPARE, [1, key, n, "p"])
                await acceptor.answer(Say.ACCEPT, [1, key, n, "p", [version, data, False]])

        asyncio.run(vote())
        acceptor.close()
    return [tmp_path / f"store-{k}" for k in votes]


def test_the_record_of_the_highest_ballot_is_in_force(tmp_path: Path) -> None:
    old = PartitionRecord(1, WRITER, WHERE, (Range(1, MEMBERS),))
    new = PartitionRecord(2, WRITER, WHERE, (Range(1, MEMBERS), Range(8, MEMBERS[:2])))
    ours, other = "partition/0", "partition/1"
    votes = {1: [(1, ours, 1, old), (2, ours, 2, new)], 2: [(2, ours, 2, new)], 3: [(1, ours, 1, old), (1, other, 0, None)]}
    register = read_register(found(tmp_path, votes))
    assert (register.charter, register.acceptors, register.problems) == (1, ACCEPTORS, [])
    assert list(register.partitions) == [0]
    said = register.partitions[0]
    assert said.epoch == 2
    assert [(one.first, sorted(one.members)) for one in said.ranges] == [
        (1, ["store-1", "store-2", "store-3"]),
        (8, ["store-1", "store-2"]),
    ]
    assert said.ranges[0].members["store-3"] == ("3" * 32, 1)
    assert [said.of(index).first for index in (1, 7, 8, 9)] == [1, 1, 8, 8]


def test_a_register_that_has_lost_its_majority_says_so(tmp_path: Path) -> None:
    record = PartitionRecord(1, WRITER, WHERE, (Range(1, MEMBERS),))
    directories = found(tmp_path, {k: [(1, "partition/0", 1, record)] for k in (1, 2)})
    assert read_register(directories).problems == []
    assert "no majority" in read_register(directories[:1]).problems[0]
