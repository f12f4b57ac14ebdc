"""A damaged journal opens to a correct prefix or says that it is corrupt: cuts, flips, and what disks do (G2, G8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilogue.actors.journal import FenceRecord, scan
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.frames import Header, encode_frame

FILE = "journal-00000001.trl"
Store = Any  # the class of conftest.py, which cannot be imported here
Files = dict[str, bytes]


def with_bytes(files: Files, at: int, data: bytes) -> Files:
    old = files[FILE]
    return {**files, FILE: old[:at] + data + old[at + len(data) :]}


def end_of(store: Store) -> int:
    last = store.book[-1].position
    return int(last.offset + last.size)


def reopens_cleanly(store: Store, replayed: list[Any]) -> None:
    """What was cut stays cut: the next opening finds the same, and nothing to cut."""
    incarnation = store.open_journal.incarnation
    again = store.open()
    assert [key for key in again if key[0] != "incarnation"] == [key for key in replayed if key[0] != "incarnation"]
    assert store.open_journal.incarnation == incarnation


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_g2_flip_in_every_byte_of_the_written_part_gives_a_correct_prefix_or_corrupt(small: Store, mask: int) -> None:
    files = small.snapshot()
    outcomes = {"corrupt": 0, "cut": 0}
    for at in range(end_of(small)):
        damaged = with_bytes(files, at, bytes([files[FILE][at] ^ mask]))
        altered = small.lines_at(at, at)
        replayed = small.open_damaged(damaged, altered)
        outcomes["corrupt" if replayed is None else "cut"] += 1
        if replayed is not None:
            assert replayed == [*small.keys[: min(altered, default=0)], ("incarnation", 2)], "all before the flip"
            reopens_cleanly(small, replayed)
    assert min(outcomes.values()) > 64, "both outcomes were met"


@pytest.mark.parametrize("mask", [0xFF, 0x01])
def test_flip_in_every_byte_of_the_4_kib_behind_is_a_torn_tail_that_costs_nothing(small: Store, mask: int) -> None:
    files = small.snapshot()
    end = end_of(small)
    assert end + 4096 <= small.file_bytes
    for at in range(end, end + 4096):
        replayed = small.open_damaged(with_bytes(files, at, bytes([mask])), ())
        assert replayed == [*small.keys, ("incarnation", 2)]


@pytest.mark.parametrize("rest", ["gone", "zeros"])
def test_cut_at_every_byte_of_the_last_two_frames_keeps_all_whole_ones(small: Store, rest: str) -> None:
    files = small.snapshot()
    whole = files[FILE]
    for at in range(small.book[-2].position.offset, end_of(small) + 1):
        cut = whole[:at] if rest == "gone" else whole[:at] + bytes(len(whole) - at)
        altered = {
            line
            for line, (_, (_, offset, size)) in enumerate(small.book)
            if cut[offset : offset + size] != whole[offset : offset + size]
        }
        kept = small.keys[: min(altered, default=len(small.keys))]
        boundary = at in {position.offset for _, position in small.book} or not altered
        replayed = small.open_damaged({**files, FILE: cut}, altered)
        assert replayed == (kept if boundary else [*kept, ("incarnation", 2)])
        assert small.path().stat().st_size == small.file_bytes, "the file is preallocated again"
        reopens_cleanly(small, replayed)


def test_store_goes_on_after_a_cut_and_keeps_what_it_appends_then(small: Store) -> None:
    files = small.snapshot()
    last = small.book[-1].position
    replayed = small.open_damaged(with_bytes(files, last.offset + 70, b"\xff"), {len(small.book) - 1})
    assert replayed == [*small.keys[:-1], ("incarnation", 2)]
    small.book.pop()
    small.chains[0].pop()
    small.append(small.frame(0, epoch=2, committed=4, body=b"five, again"))
    assert [key for key in small.open() if key[0] != "incarnation"] == small.keys
    assert small.open_journal.incarnation == 2


def test_every_zeroed_sector_gives_a_correct_prefix_or_corrupt(store: Store) -> None:
    store.fill_small()
    for k in range(5, 12):
        store.append(store.frame(0, epoch=2, committed=k, body=bytes([k]) * 300))
    files = store.snapshot()
    for sector in range(0, end_of(store), 512):
        altered = store.lines_at(sector, sector + 511)
        replayed = store.open_damaged(with_bytes(files, sector, bytes(512)), altered)
        last = max(altered) == len(store.book) - 1
        assert (replayed is None) is not last, "only the last sector holds nothing that is known to be committed"


def test_misdirected_write_of_any_record_over_any_other_is_found(small: Store) -> None:
    files = small.snapshot()
    whole = files[FILE]
    for source, (_, (_, start, size)) in enumerate(small.book):
        for target, (_, (_, at, _)) in enumerate(small.book):
            if source != target:
                damaged = with_bytes(files, at, whole[start : start + size])
                small.open_damaged(damaged, small.lines_at(at, at + size - 1))
        replayed = small.open_damaged(with_bytes(files, end_of(small), whole[start : start + size]), ())
        assert replayed == [*small.keys, ("incarnation", 2)], "a copy behind the end is no record"


def test_g2_any_mix_of_damage_gives_correct_prefixes_or_corrupt(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=2048)
    store.open()
    store.fill_small()
    files = store.snapshot()
    end = end_of(store)
    places = st.integers(0, end - 1)
    damages = st.lists(st.tuples(st.sampled_from(["flip", "zero", "copy"]), places, places, st.integers(1, 200)))

    @settings(max_examples=300, deadline=None)
    @given(damages)
    def check(mix: list[tuple[str, int, int, int]]) -> None:
        whole = files[FILE]
        data = bytearray(whole)
        for kind, at, source, size in mix:
            size = min(size, end - at, end - source)
            if kind == "flip":
                data[at] ^= 0x10
            else:
                data[at : at + size] = bytes(size) if kind == "zero" else whole[source : source + size]
        altered = {
            line
            for line, (_, (_, offset, size)) in enumerate(store.book)
            if data[offset : offset + size] != whole[offset : offset + size]
        }
        replayed = store.open_damaged({**files, FILE: bytes(data)}, altered)
        intact = min(altered, default=len(store.book))
        assert replayed is None or replayed[:intact] == store.keys[:intact]

    check()


def test_stale_content_of_another_log_or_another_place_is_never_replayed(small: Store) -> None:
    files = small.snapshot()
    end = end_of(small)
    stale, _ = encode_frame(
        log_id=0x99, partition=0, epoch=2, index=6, prev_crc=small.chains[0][-1], count=1, committed_upto=5, payload=b"?"
    )
    assert small.open_damaged(with_bytes(files, end, stale), ()) == [*small.keys, ("incarnation", 2)]
    unchained, _ = encode_frame(
        log_id=0x1122334455667788, partition=0, epoch=2, index=6, prev_crc=1, count=1, committed_upto=4, payload=b"?"
    )
    assert small.open_damaged(with_bytes(files, end, unchained), ()) == [*small.keys, ("incarnation", 2)]
    small.restore(files)
    small.open()
    ahead = small.frame(0, epoch=2, committed=6)
    small.open_journal.append([ahead])
    assert small.open_damaged(small.snapshot(), ()) is None, "no frame can know of its own commit"


def test_lost_unsynced_write_leaves_a_clean_end(small: Store) -> None:
    files = small.snapshot()
    _, offset, size = small.book[-1].position
    replayed = small.open_damaged(with_bytes(files, offset, bytes(size)), {len(small.book) - 1})
    assert replayed == small.keys[:-1]
    assert small.open_journal.incarnation == 1


def test_reordered_write_of_one_group_is_cut_where_the_hole_is(store: Store) -> None:
    store.append(store.frame(body=b"one"))
    store.append(store.frame(committed=1, body=b"two"), store.frame(committed=1, body=b"three"), store.frame(1))
    files = store.snapshot()
    _, offset, size = store.book[1].position
    replayed = store.open_damaged(with_bytes(files, offset, bytes(size)), {1})
    assert replayed == [store.keys[0], ("incarnation", 2)]


def test_g2_hole_below_a_committed_frame_is_corrupt_even_if_only_headers_survive(store: Store) -> None:
    store.append(store.frame(body=b"one"))
    store.append(store.frame(body=b"two"))
    store.append(store.frame(committed=2, body=b"three"))
    files = store.snapshot()
    _, second, size = store.book[1].position
    third = store.book[2].position.offset
    damaged = with_bytes(with_bytes(files, second, bytes(size)), third + 64, b"\xff")
    assert store.open_damaged(damaged, {1}) is None


def test_g2_lost_superseding_frame_is_corrupt_when_its_commit_is_known(store: Store) -> None:
    # The superseded frame is still there, with the same index: it must not pass for the committed one.
    store.append(store.frame(body=b"one"), store.frame(committed=1, body=b"old"))
    store.append(FenceRecord(0, 2, "writer-b", "127.0.0.1:2"))
    store.append(store.frame(epoch=2, index=2, committed=1, body=b"new"))
    store.append(store.frame(epoch=2, committed=2, body=b"three"))
    files = store.snapshot()
    _, offset, size = store.book[3].position
    for damaged in (with_bytes(files, offset, bytes(size)), with_bytes(files, offset + 64, b"\xff")):
        assert store.open_damaged(damaged, {3}) is None


def test_torn_first_write_after_a_takeover_is_cut_when_its_header_survives(store: Store) -> None:
    store.append(store.frame(body=b"one"), store.frame(committed=1, body=b"two"))
    store.append(FenceRecord(0, 2, "writer-b", "127.0.0.1:2"))
    store.append(store.frame(epoch=2, committed=2, body=b"three"), store.frame(epoch=2, committed=2, body=b"four"))
    files = store.snapshot()
    replayed = store.open_damaged(with_bytes(files, store.book[3].position.offset + 64, b"\xff"), {3})
    assert replayed == [*store.keys[:3], ("incarnation", 2)]


def claim(upto: int) -> bytes:
    """A frame of this log that was never appended, and claims that much of partition 0."""
    data, _ = encode_frame(
        log_id=0x1122334455667788, partition=0, epoch=1, index=99, prev_crc=0, count=1, committed_upto=upto, payload=b""
    )
    return data


def test_frames_inside_the_body_of_a_torn_frame_prove_nothing(store: Store) -> None:
    store.append(store.frame(body=b"one"))
    store.append(store.frame(committed=1, body=claim(98) + b"tail"))
    files = store.snapshot()
    behind_the_copy = store.book[1].position.offset + 64 + 64
    replayed = store.open_damaged(with_bytes(files, behind_the_copy, b"\xff"), {1})
    assert replayed == [store.keys[0], ("incarnation", 2)]


def test_frames_inside_the_body_of_a_whole_frame_behind_the_damage_prove_nothing(store: Store) -> None:
    store.append(store.frame(body=b"one"))
    store.append(store.frame(committed=1, body=b"two"), store.frame(committed=1, body=claim(98)))
    files = store.snapshot()
    _, offset, size = store.book[1].position
    replayed = store.open_damaged(with_bytes(files, offset, bytes(size)), {1})
    assert replayed == [store.keys[0], ("incarnation", 2)]


def test_copy_of_a_real_frame_in_a_torn_body_does_not_make_the_store_corrupt(small: Store) -> None:
    real = small.open_journal.read(small.book[-1].position)
    torn = small.frame(0, epoch=2, committed=4, body=real)
    files = small.snapshot()
    replayed = small.open_damaged(with_bytes(files, end_of(small) + 64, torn[64:]), ())
    assert replayed == [*small.keys, ("incarnation", 2)], "the header is gone, the copy in the body is whole"


def test_damage_in_any_file_but_the_newest_is_corrupt(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=1024)
    store.open()
    store.append(FenceRecord(1, 3, "writer-b", "127.0.0.1:2"))
    while not store.path(3).exists():
        store.append(store.frame(body=bytes(100)))
    files = store.snapshot()
    end = max(p.offset + p.size for _, p in store.book if p.file == 1)
    for at in range(end + 64):
        assert store.open_damaged(with_bytes(files, at, bytes([files[FILE][at] ^ 0xFF])), ()) is None
    last = max(p.offset for _, p in store.book if p.file == 1)
    for at in range(end):
        assert store.open_damaged({**files, FILE: files[FILE][:at]}, ()) is None
    zeros_at_the_end = with_bytes(files, last, bytes(end - last))
    assert store.open_damaged(zeros_at_the_end, ()) is None


def test_g2_last_record_of_an_older_file_does_not_vanish_when_nothing_chains_to_it(
    make_store: Callable[..., Store],
) -> None:
    store = make_store(file_bytes=512)
    store.open()
    store.append(store.frame(0, body=bytes(100)))
    store.append(store.frame(1, body=b"the only one of its partition"))
    store.append(store.frame(0, body=bytes(300)))
    files = store.snapshot()
    (_, (file, offset, size)), (_, following) = store.book[1:]
    assert (file, following.file) == (1, 2)
    assert store.open_damaged(with_bytes(files, offset, bytes(size)), ()) is None
    assert store.open_damaged({**files, FILE: files[FILE][:offset]}, ()) is None


def test_damage_in_the_head_of_the_newest_file_is_corrupt(make_store: Callable[..., Store]) -> None:
    store = make_store(file_bytes=1024)
    store.open()
    store.append(FenceRecord(1, 3, "writer-b", "127.0.0.1:2"), FenceRecord(2, 1, "writer-c", "127.0.0.1:3"))
    while not store.path(2).exists():
        store.append(store.frame(body=bytes(100)))
    name = store.path(2).name
    files = store.snapshot()
    head = min(p.offset for _, p in store.book if p.file == 2)
    assert head > 3 * 64, "the fences in force are repeated"
    for at in range(head):
        damaged = files[name][:at] + bytes([files[name][at] ^ 0xFF]) + files[name][at + 1 :]
        assert store.open_damaged({**files, name: damaged}, ()) is None
        assert store.open_damaged({**files, name: files[name][:at]}, ()) is None


@pytest.mark.parametrize("missing", [1, 2])
def test_gap_in_the_files_is_corrupt(make_store: Callable[..., Store], missing: int) -> None:
    store = make_store(file_bytes=1024)
    store.open()
    while not store.path(3).exists():
        store.append(store.frame(body=bytes(100)))
    files = store.snapshot()
    del files[store.path(missing).name]
    assert store.open_damaged(files, ()) is None
    assert f"{store.path(missing).name} is damaged at byte 0: the file is missing" in store.error


def test_journal_without_any_file_is_corrupt_and_no_new_store(small: Store) -> None:
    files = small.snapshot()
    del files[FILE]
    assert small.open_damaged(files, ()) is None


def test_judge_catches_a_scan_that_does_not_check_payloads(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small.snapshot()
    monkeypatch.setattr(scan, "check_payload", lambda header, data, offset: None)
    at = small.book[2].position.offset + 64
    with pytest.raises(AssertionError, match="what is replayed was appended"):
        small.open_damaged(with_bytes(files, at, b"\xff"), {2})


def test_judge_catches_a_scan_that_cuts_what_was_committed(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small.snapshot()
    monkeypatch.setattr(scan.Scanner, "_refuse_if_committed", lambda self, file, damage: None)
    at = small.book[2].position.offset + 64
    with pytest.raises(AssertionError, match="vanished in silence"):
        small.open_damaged(with_bytes(files, at, b"\xff"), {2})


def test_judge_catches_a_scan_that_does_not_follow_the_chain(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def any_frame(self: Any, header: Header) -> str:
        return ""

    files = small.snapshot()
    monkeypatch.setattr("trilogue.actors.protocol.holdings.PartitionState.problem", any_frame)
    monkeypatch.setattr("trilogue.actors.protocol.holdings.PartitionState.take", lambda self, header: None)
    _, start, size = small.book[2].position
    copy = files[FILE][start : start + size]
    with pytest.raises(AssertionError, match="what is replayed was appended"):
        small.open_damaged(with_bytes(files, end_of(small), copy), ())


def test_read_of_a_damaged_frame_is_corrupt_and_names_the_place(small: Store) -> None:
    position = small.book[2].position
    with open(small.path(), "r+b") as file:
        file.seek(position.offset + 65)
        file.write(b"\xff")
    with pytest.raises(Corrupt, match=rf"journal-00000001\.trl is damaged at byte {position.offset}: .*CRC.*keep"):
        small.open_journal.read(position)
