"""Trimmed messages give their disk space back, and nothing else goes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from trilogue.actors.journal import JournalBroken, thin_file
from trilogue.actors.protocol.messages import FLOOR, KEYED, RUN, TRIM
from trilogue.actors.protocol.thinning import header_of, is_thin, items_of, placed
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.store.reader import StoreReader
from trilogue.actors.store.scrubber import Held, Scrubber
from trimmed_store import ANN, BODY, FOR_EVER, SMALL, Store, filled, run, seqs


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = filled(tmp_path / "store")
    yield made
    made.journal.close()
    made.indexes.close()


def damage(store: Store, index: int) -> None:
    """Change one bit of a frame on the disk."""
    position = store.places.at(index)
    assert position is not None
    path = store.directory / f"journal-{position.file:08d}.trl"
    data = bytearray(path.read_bytes())
    data[position.offset + 100] ^= 1
    path.write_bytes(data)


def test_a_trimmed_session_gives_its_disk_space_back_and_the_other_one_is_read_as_before(store: Store) -> None:
    before, other = store.disk_bytes(), store.runs("t", 0)
    store.append((TRIM, "s", 301, 9))
    store.thin()
    assert store.thinner.files_thinned >= 2
    assert store.disk_bytes() < before - 250_000
    assert store.runs("t", 0) == other
    assert store.runs("s", 0) == 301
    assert store.runs("s", 299) == 301
    assert seqs(store.runs("s", 300)) == [*range(301, 401)]


def test_a_floor_gives_back_all_that_lies_below_it(store: Store) -> None:
    before = store.disk_bytes()
    store.append((FLOOR, 150, 9))
    store.thin()
    assert store.disk_bytes() < before - 450_000
    for session in "st":
        assert store.runs(session, 0) == 301
        assert seqs(store.runs(session, 300)) == [*range(301, 401)]


def test_a_session_that_is_gone_as_a_whole_goes_on_behind_its_last_seq(store: Store) -> None:
    store.append((FLOOR, 200, 9))
    store.thin()
    assert store.runs("s", 0) == 401
    store.append(run("s", 401))
    store.catch_up()
    assert store.runs("s", 0) == 401
    assert seqs(store.runs("s", 400)) == [401, 402, 403, 404]


def test_retry_of_a_trimmed_message_gets_the_original_seq(store: Store) -> None:
    """G5."""
    store.append((TRIM, "s", 401, 9))
    store.thin()
    assert is_thin(store.frame(1))
    assert store.originals("s", 1, 400) == {n: n for n in range(1, 401)}


@pytest.mark.parametrize("summaries", [True, False])
def test_a_journal_with_thin_frames_opens_where_the_running_store_was(store: Store, summaries: bool) -> None:
    store.append((TRIM, "s", 301, 9))
    store.append((FLOOR, 100, 9))
    store.thin()
    state, places = store.held.state.partition(0), [store.places.at(index) for index in range(1, store.places.last_index + 1)]
    again = store.reopen(summaries=summaries)
    reopened = again.held.state.partition(0)
    assert (reopened.last_index, reopened.last_crc, reopened.committed_upto) == (
        state.last_index, state.last_crc, state.committed_upto,
    )  # fmt: skip
    assert [reopened.crc_at(index) for index in range(1, 201)] == [state.crc_at(index) for index in range(1, 201)]
    assert [again.places.at(index) for index in range(1, again.places.last_index + 1)] == places
    assert again.runs("s", 0) == 301
    again.journal.close()


def test_an_index_that_is_made_anew_from_thin_frames_answers_as_before(store: Store, tmp_path: Path) -> None:
    store.append((TRIM, "s", 301, 9))
    store.append((FLOOR, 40, 9))
    store.thin()
    was = [store.runs(session, after) for session in "st" for after in (0, 100, 300, 399)]
    numbers = [store.originals(session, 1, 400) for session in "st"]
    store.indexes.discard("as a test wants it")
    store.thinner.start_again()
    store.catch_up()
    assert [store.runs(session, after) for session in "st" for after in (0, 100, 300, 399)] == was
    assert [store.originals(session, 1, 400) for session in "st"] == numbers


def test_what_was_trimmed_before_a_restart_is_given_back_after_it(store: Store) -> None:
    store.append((TRIM, "s", 401, 9))
    store.catch_up()
    store.indexes.tidy(FOR_EVER, rest=True)  # the trim is in the catalogue
    before = store.disk_bytes()
    again = store.reopen()
    again.thin()
    assert again.disk_bytes() < before - 300_000
    again.journal.close()


@pytest.fixture
def written_anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The journal files that are written anew from now on, whatever becomes of that."""
    numbers, write = list[int](), thin_file.ThinFile.write

    def noted(self: thin_file.ThinFile) -> Iterator[None]:
        numbers.append(self.file)
        return write(self)

    monkeypatch.setattr(thin_file.ThinFile, "write", noted)
    return numbers


def small_messages(directory: Path) -> Store:
    """Frames of which much is left when their messages are gone: 4,000 of "s", 1,000 of "t"."""
    store = Store(directory)
    for k in range(4000):
        store.append((RUN, "s", ANN, k + 1, k + 1, 5, [1], [BODY[:120]]))
    for k in range(1000):
        store.append((RUN, "t", ANN, k + 1, k + 1, 5, [1], [BODY[:120]]))
    return store


@pytest.mark.parametrize("in_catalogue", [False, True])
@pytest.mark.parametrize("record", [(FLOOR, 4000, 9), (TRIM, "s", 4001, 9)])
def test_a_restart_writes_nothing_anew_that_was(
    tmp_path: Path, written_anew: list[int], record: Any, in_catalogue: bool
) -> None:
    """Seen: each restart wrote all files anew that are thin, only to find out that nothing can be freed."""
    store = small_messages(tmp_path / "store")
    store.append(record)
    store.thin()
    assert len(written_anew) >= 4
    if in_catalogue:
        flushed(store)
        store.thin()
    written_anew.clear()
    again = store.reopen()
    again.thin()
    assert written_anew == []
    again.append((TRIM, "s", 4001, 9) if record[0] == FLOOR else (FLOOR, 5, 9))
    again.append((TRIM, "t", 100, 9))
    again.thin()
    assert written_anew == [], "what is new is too little"
    again.journal.close()


def test_a_session_that_is_trimmed_further_after_a_restart_is_counted_from_where_it_was_trimmed(
    tmp_path: Path, written_anew: list[int]
) -> None:
    store = small_messages(tmp_path / "store")
    store.catch_up()
    flushed(store)  # with the messages' sizes, before they are thin
    store.append((TRIM, "s", 3500, 9))
    store.thin()
    written_anew.clear()
    again = store.reopen()
    again.append((TRIM, "s", 3600, 9))
    again.thin()
    assert written_anew == []
    again.journal.close()


def test_what_could_not_be_written_anew_is_tried_again_after_a_restart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append((TRIM, "s", 401, 9))
    before = store.disk_bytes()
    with monkeypatch.context() as full:
        full.setattr(thin_file.os, "rename", _full)
        store.thin()
    assert store.disk_bytes() == before
    again = store.reopen()
    again.thin()
    assert again.disk_bytes() < before - 300_000
    again.journal.close()


def test_counts_that_end_before_the_catalogue_does_are_not_believed(store: Store) -> None:
    """A crash between: the trims in the catalogue's newest segment would not be told again."""
    store.thin()
    store.append((TRIM, "s", 401, 9))
    store.catch_up()
    flushed(store)
    assert store.indexes.counted()[0] == {}
    before = store.disk_bytes()
    again = store.reopen()
    again.thin()
    assert again.disk_bytes() < before - 300_000
    again.journal.close()


def _full(*_: Path) -> None:
    raise OSError(errno.ENOSPC, "the disk is full")


def flushed(store: Store) -> None:
    """All that its index has in memory is written to the catalogue, as a segment."""
    while store.indexes._write_a_little(FOR_EVER) and store.indexes._flush is not None:
        pass


def test_a_trim_that_is_written_to_the_catalogue_at_once_gives_its_space_back_without_a_restart(store: Store) -> None:
    store.thin()
    before = store.disk_bytes()
    store.append((TRIM, "s", 401, 9))
    store.catch_up()
    flushed(store)
    store.thin()
    assert store.disk_bytes() < before - 300_000


def test_segments_may_be_merged_and_swept_while_what_is_gone_is_counted(tmp_path: Path) -> None:
    """Seen: the count went on in segments that were not there any more, and the whole index was thrown away."""
    store = Store(tmp_path / "store")
    for segment in range(SMALL.index_merge_segments_max):
        for k in range(300):
            store.append(run("s", 300 * segment + k + 1, count=1))
        if segment == SMALL.index_merge_segments_max - 1:
            store.append((TRIM, "s", 300 * segment + 301, 9))
            store.catch_up()
            assert store.thinner._count_a_little()
        store.catch_up()
        flushed(store)
    store.indexes.tidy(FOR_EVER, rest=False)
    assert len(store.indexes.catalogue.segments) == 1
    store.thin()
    assert store.disk_bytes() < 1_000_000
    assert store.indexes.rebuilds == 0
    store.journal.close()


def test_an_index_that_is_thrown_away_ends_the_job_that_asks_it(store: Store) -> None:
    """Seen: the job asked the closed index for a session, so that the new one was thrown away, too."""
    store.append((TRIM, "s", 401, 9))
    store.catch_up()
    while not list(store.directory.glob("*.trl.tmp")):
        assert store.thinner.work(monotonic() + 1e-5)
    store.indexes.discard("as a test wants it")
    store.thinner.start_again()
    assert not list(store.directory.glob("*.trl.tmp"))
    store.thin()
    assert store.thinner.files_thinned >= 2
    assert store.originals("s", 1, 400) == {n: n for n in range(1, 401)}


def test_trimming_further_makes_thin_frames_thinner(store: Store) -> None:
    store.append((TRIM, "s", 401, 9))
    store.thin()
    once = store.disk_bytes()
    store.append((FLOOR, 200, 9))
    store.thin()
    assert store.disk_bytes() < once - 250_000
    assert store.runs("t", 0) == 401
    assert store.originals("t", 1, 400) == {n: n for n in range(1, 401)}


def test_idempotency_keys_that_are_honoured_outlive_their_messages(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for n in range(1, 201):
        store.append((KEYED, "s", ANN, n, n, 5, [1], [BODY * 3], [f"order-{n}"]))
    known = store.indexes.of(0)._state("s", [], ["order-7", "order-8"], 64)
    store.append((FLOOR, 150, 9))
    store.thin()
    assert store.thinner.files_thinned
    store.indexes.discard("as a test wants it")
    store.catch_up()
    assert known[3] == {}  # nothing had been taken in
    found = store.indexes.of(0)._state("s", [], ["order-7", "order-190"], 64)[3]
    assert {key: one[0] for key, one in found.items()} == {"order-7": 7, "order-190": 190}
    store.journal.close()


def test_a_thin_frame_that_went_bad_is_put_back_in_another_size(store: Store) -> None:
    whole = store.frame(1)
    store.append((TRIM, "s", 401, 9))
    store.thin()
    position = store.places.at(1)
    assert position is not None
    assert position.size < len(whole)
    damage(store, 1)
    store.thinner.put_back(position, whole)
    store.thin()
    assert store.back == [(0, 1)]
    assert header_of(store.frame(1), SMALL.frame_bytes_max) == header_of(whole, SMALL.frame_bytes_max)
    assert store.originals("s", 1, 4) == {1: 1, 2: 2, 3: 3, 4: 4}


def test_a_thin_frame_of_a_peer_is_put_back_so_that_the_journal_opens_again(store: Store) -> None:
    """A thin frame says where it lies: one of the same size, from another store's disk, must not be laid down as it came."""
    store.append((TRIM, "s", 401, 9))
    store.thin()
    position = store.places.at(1)
    assert position is not None
    foreign = placed(store.frame(1), 9, 12_344)
    assert len(foreign) == position.size
    damage(store, 1)

    async def at_once(read: Callable[[], Any]) -> Any:
        return read()

    held = Held(store.held.state.partitions, store.held.places)
    scrubber = Scrubber(store.journal, held, lambda _: None, SMALL, at_once, store.thinner.put_back)
    scrubber.found_bad(0, 1, "a test changed it")
    asyncio.run(scrubber.repair(0, [foreign]))
    store.thin()
    assert store.back == [(0, 1)]
    again = store.reopen(summaries=False)
    assert again.originals("s", 1, 4) == {1: 1, 2: 2, 3: 3, 4: 4}
    again.journal.close()


def test_a_frame_that_is_given_back_again_while_its_file_is_written_is_put_back_once_G2(store: Store, tmp_path: Path) -> None:
    """Seen: the second time it was put back where it had lain before, so behind the end; the store did not open any more."""
    peer = filled(tmp_path / "peer")
    for one in (store, peer):
        one.append((FLOOR, 150, 9))
        one.catch_up()
    peer.thin()
    damage(store, 30)

    async def at_once(read: Callable[[], Any]) -> Any:
        return read()

    thinner = store.thinner
    scrubber = Scrubber(
        store.journal, Held(store.held.state.partitions, store.held.places), lambda _: None, SMALL, at_once, thinner.put_back
    )
    scrubber.found_bad(0, 30, "a test changed it")
    asyncio.run(scrubber.repair(0, [peer.frame(30)]))
    while not list(store.directory.glob("*.trl.tmp")):
        assert thinner.work(monotonic() + 1e-5)
    asyncio.run(scrubber.repair(0, [peer.frame(30)]))
    assert not thinner._instead, "the file that is being written holds it"
    store.thin()
    assert store.back == [(0, 30)]
    again = store.reopen(summaries=False)
    assert again.held.state.partition(0).last_index == 201
    assert [header_of(again.frame(k), SMALL.frame_bytes_max).index for k in range(1, 202)] == [*range(1, 202)]
    again.journal.close()
    peer.journal.close()


def test_a_frame_that_waits_for_its_file_is_put_back_where_it_lies_when_that_is_written_anew_G2(store: Store) -> None:
    """Its file may have been written anew between: its place is another one then."""
    last = store.places.last_index
    position = store.places.at(last)
    assert position is not None
    whole = store.frame(last)
    store.thinner.put_back(position, whole)
    store.thin()
    assert store.back == [], "it lies in the newest file"
    for ready in store.places.ready(position.file, [(last, position.offset, position.offset + 8, position.size)]):
        store.places.move(ready)
    assert store.thinner._taken_for((position.file, 0)) == {position.offset + 8: (position.size, whole)}


def test_a_frame_that_the_store_does_not_know_to_be_committed_stays_whole(store: Store) -> None:
    """Its index may be ahead by its writer's word; the next writer asks for such a frame, and sends it on as it was."""
    store.append((TRIM, "s", 401, 9))
    store.catch_up()
    store.held.state.partition(0).committed_upto = 20
    store.thin()
    assert store.thinner.files_thinned
    assert {index for index in range(1, 200) if is_thin(store.frame(index))} <= {*range(1, 21)}


def test_records_that_are_left_are_left_byte_for_byte(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for k in range(100):
        store.append(run("s", 4 * k + 1), run("t", 4 * k + 1))
    store.append((TRIM, "s", 401, 9))
    whole = {item[1]: store.frame(1)[at : at + size] for item, at, size in items_of(store.frame(1))}
    store.thin()
    left = {item[1]: store.frame(1)[at : at + size] for item, at, size in items_of(store.frame(1))}
    assert is_thin(store.frame(1))
    assert left["t"] == whole["t"]
    assert len(left["s"]) < 100
    store.journal.close()


def test_an_idle_partition_gets_no_further_floor(store: Store) -> None:
    """Seen: a floor is a frame that grows old itself, so an idle partition with a policy wrote one every ten seconds."""
    reader = StoreReader(
        store.journal,
        store.held.places,
        store.indexes,
        lambda _: store.places.last_index,
        lambda *_: None,
        lambda *_: None,
        SMALL,
    )

    def old(before_us: int, keep_bytes: int = 1 << 40) -> int:
        found = reader.reading(Say.OLD, [0, store.places.last_index, before_us, keep_bytes])()
        assert isinstance(found, int)
        return found

    last = store.places.last_index
    assert old(5) == 0
    assert old(6) == last
    store.append()
    assert old(6) == last
    store.append((FLOOR, last, 9))
    store.append()
    store.catch_up()
    assert old(1 << 60) == last
    assert old(0, 1) == last
    store.append(run("s", 401, at_us=20))
    assert old(20) == last
    assert old(21) == store.places.last_index


def test_a_name_that_cannot_be_synced_ends_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file has the name is not known then: to go on with the old places would make every frame in it look damaged."""

    def broken(_: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    store.append((TRIM, "s", 401, 9))
    monkeypatch.setattr(thin_file, "sync_directory", broken)
    with pytest.raises(JournalBroken, match="the store ends"):
        store.thin()
