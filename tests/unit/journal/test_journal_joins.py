"""A journal with joins and frames below a base: replayed as it was written, and never a wrong one after damage (G2, G9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trilogue.actors.journal import FenceRecord, FillRecord, JoinRecord
from trilogue.actors.journal.records import encode_control
from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.invariants import InvariantBroken

FILE = "journal-00000001.trl"
Store = Any  # the class of conftest.py, which cannot be imported here
Files = dict[str, bytes]


def with_bytes(files: Files, at: int, data: bytes) -> Files:
    old = files[FILE]
    return {**files, FILE: old[:at] + data + old[at + len(data) :]}


def test_joins_and_filled_frames_are_replayed_as_they_were_appended(joined: Store) -> None:
    assert joined.open() == joined.keys
    kinds = [key[0] for key in joined.keys]
    assert kinds.count("join") == 2
    assert kinds.count("filled") == 2


def test_place_of_a_filled_frame_is_that_of_the_frame_itself(joined: Store) -> None:
    replayed: list[Any] = []
    places = {written.key: written.position for written in joined.book if written.key[0] == "filled"}
    joined.open()
    for key, position in places.items():
        frame = joined.open_journal.read(position)
        assert decode_frame(frame, 1000).index == key[2]
        replayed.append(frame)
    assert len(replayed) == 2


@pytest.mark.parametrize("mask", [0xFF, 0x01])
def test_g2_flip_in_every_byte_gives_a_correct_prefix_or_corrupt(joined: Store, mask: int) -> None:
    files = joined.snapshot()
    outcomes = {"corrupt": 0, "cut": 0}
    for at in range(joined.extents[-1][1]):
        altered = joined.lines_at(at, at)
        replayed = joined.open_damaged(with_bytes(files, at, bytes([files[FILE][at] ^ mask])), altered)
        outcomes["corrupt" if replayed is None else "cut"] += 1
        if replayed is not None:
            assert replayed == [*joined.keys[: min(altered)], ("incarnation", 2)], "all before the flip"
    assert min(outcomes.values()) > 64, "both outcomes were met"


@pytest.mark.parametrize("rest", ["gone", "zeros"])
def test_g2_cut_at_every_byte_keeps_all_whole_records_before_it(joined: Store, rest: str) -> None:
    files = joined.snapshot()
    whole = files[FILE]
    for at in range(joined.extents[0][0], joined.extents[-1][1] + 1):
        cut = whole[:at] if rest == "gone" else whole[:at] + bytes(len(whole) - at)
        altered = {line for line, (start, end) in enumerate(joined.extents) if cut[start:end] != whole[start:end]}
        kept = joined.keys[: min(altered, default=len(joined.keys))]
        replayed = joined.open_damaged({**files, FILE: cut}, altered)
        clean = not altered or not cut[joined.extents[min(altered)][0] :].strip(b"\0")
        assert replayed == (kept if clean else [*kept, ("incarnation", 2)])


def test_misdirected_write_of_any_record_over_any_other_is_found(joined: Store) -> None:
    files = joined.snapshot()
    whole = files[FILE]
    extents = joined.extents
    for source, (start, end) in enumerate(extents):
        for target, (at, _) in enumerate(extents):
            if source != target:
                size = end - start
                joined.open_damaged(with_bytes(files, at, whole[start:end]), joined.lines_at(at, at + size - 1))
        replayed = joined.open_damaged(with_bytes(files, extents[-1][1], whole[start:end]), ())
        assert replayed == [*joined.keys, ("incarnation", 2)], "a copy behind the end is no record"


def test_copy_of_a_frame_that_a_join_cut_is_never_taken_for_a_filled_one(joined: Store) -> None:
    files = joined.snapshot()
    junk = next(extent for key, extent in zip(joined.keys, joined.extents, strict=True) if key[-1] == b"junk")
    copy = files[FILE][junk[0] : junk[1]]
    assert joined.open_damaged(with_bytes(files, joined.extents[-1][1], copy), ()) == [*joined.keys, ("incarnation", 2)]


def test_damaged_join_is_corrupt_when_a_later_frame_speaks_of_what_it_skipped(store: Store) -> None:
    store.append(FenceRecord(0, 1, "writer-1", "127.0.0.1:1"), store.frame(body=b"one"))
    store.append(store.join(0, 2, 1, 50, 7))
    store.append(store.frame(0, epoch=2, committed=49, body=b"fifty"))
    files = store.snapshot()
    start, _ = store.extents[2]
    assert store.open_damaged(with_bytes(files, start + 70, b"\xff"), {2}) is None


def test_torn_filled_frame_is_cut_whatever_the_frames_in_it_say(store: Store) -> None:
    store.append(store.join(0, 2, 1, 50, 7))
    frame = store.other_frame(0, 40, epoch=9, body=store.other_frame(0, 60, epoch=9))
    store.append(FillRecord(0, frame))
    files = store.snapshot()
    for at in (store.extents[1][1] - 1, store.extents[1][0] + 70, store.extents[1][0] + 10):
        assert store.open_damaged(with_bytes(files, at, b"\xee"), {1}) == [store.keys[0], ("incarnation", 2)]


def test_fence_of_a_join_is_in_force_in_the_next_file_and_its_number_is_not_forgotten_G9(
    make_store: Callable[..., Store],
) -> None:
    store = make_store(file_bytes=1024)
    store.open()
    store.append(store.join(0, 5, 3, 50, 7, (1, 4), (9, 20)))
    while not store.path(3).exists():
        store.append(store.frame(0, epoch=5, committed=49, body=bytes(100)))
    assert store.open() == store.keys
    journal = store.open_journal
    with pytest.raises(InvariantBroken, match="cannot come after"):
        journal.append([FenceRecord(0, 5, "another", "127.0.0.1:1")])
    with pytest.raises(InvariantBroken, match="cannot come after"):
        journal.append([JoinRecord(0, 4, "writer-4", "127.0.0.1:1", 9, 60, 7, ())])
    store.append(store.join(0, 5, 4, 60, 8))
    assert store.open() == store.keys


def test_join_with_a_number_that_was_there_is_read_as_damage(joined: Store) -> None:
    again = joined.join(0, 4, 3, 20, 1)
    with pytest.raises(InvariantBroken, match="join 3 cannot come after join 3"):
        joined.open_journal.append([again])
    offset = joined.extents[-1][1]
    joined.open_journal.append([encode_control(again, log_id=0x1122334455667788, file=1, offset=offset)])
    replayed = joined.open()
    assert replayed == [*joined.keys, ("incarnation", 2)]
