"""A journal file that was written anew without what is gone: damage in it, crashes around it, repairs from it (G2, G8)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trilogue.actors.journal import FenceRecord, FillRecord, JoinRecord, Journal, Position, open_identity
from trilogue.actors.journal.files import summary_path
from trilogue.actors.journal.mend import plan
from trilogue.actors.journal.rebuild import frames_of, rebuild
from trilogue.actors.journal.records import ThinFrame
from trilogue.actors.journal.salvage import StoreSalvage, salvage_store
from trilogue.actors.journal.summary import summarise
from trilogue.actors.journal.thin_file import ThinFile
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.frames import HEADER_BYTES, encode_frame
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.messages import RUN, pack_records
from trilogue.actors.protocol.store import FillAsked, JoinAsked, StoreState, WriteFill
from trilogue.actors.protocol.thinning import header_of, is_thin, items_of, thinned
from trilogue.actors.store.contents import StoreContents

LOG_ID, CLUSTER = 0x1122334455667788, "cluster-a"
ANN = "ann/" + "0" * 32
FILE_BYTES = 1536
FRAMES = 24
Replayed = dict[int, tuple[Any, ...]]


def log(frames: int = FRAMES) -> list[bytes]:
    """A log of one partition: the sessions s and t by turns, two messages a frame, each frame vouching for the one before."""
    made: list[bytes] = []
    prev_crc = 0
    for k in range(frames):
        n = k // 2 * 2 + 1
        payload = pack_records([(RUN, "st"[k % 2], ANN, n, n, 5, [1, 1], [bytes([k]) * 60] * 2)])
        frame, prev_crc = encode_frame(
            log_id=LOG_ID, partition=0, epoch=1, index=k + 1, prev_crc=prev_crc, count=1, committed_upto=k, payload=payload
        )
        made.append(frame)
    return made


def without_s(partition: int, index: int, place: Position, frame: bytes) -> bytes:
    """What is left of a frame when the session s is gone."""
    return thinned(frame, lambda item: item[1] == "s", 0)


class Store:
    """A store's journal in a directory."""

    def __init__(self, directory: Path, uuid: str = "ab" * 16) -> None:
        self.directory, self._uuid = directory, uuid
        self.journal: Journal | None = None
        self.contents = StoreContents(LOG_ID, DEFAULT_LIMITS)

    def open(self, *, summaries: bool = False) -> Journal:
        self.close()
        identity = open_identity(self.directory, cluster=CLUSTER, log_id=LOG_ID, fresh_store=self._uuid)
        self.contents = StoreContents(LOG_ID, DEFAULT_LIMITS)
        self.journal = Journal.open(
            self.directory, identity, DEFAULT_LIMITS, self.contents.replay, file_bytes=FILE_BYTES, summaries=summaries
        )
        return self.journal

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def replayed(self, *, summaries: bool = False) -> Replayed:
        """What an opening finds: where each partition ends, and each frame with its place."""
        self.open(summaries=summaries)
        found: Replayed = {}
        for partition, places in self.contents.places.items():
            state = self.contents.state.partition(partition)
            frames = [(i, state.crc_at(i), places.at(i)) for i in range(1, state.last_index + 1)]
            found[partition] = (state.base, state.last_index, state.last_crc, state.committed_upto, frames)
        return found

    def write(self, *entries: Any) -> Store:
        journal = self.open()
        for entry in entries:
            journal.append([entry])
        return self

    def write_anew(self, number: int, thin: Any = without_s, *, up_to: str = "the end") -> ThinFile:
        """Write a closed file anew: as far as `up_to` says."""
        assert self.journal is not None
        file = self.journal.written_anew((number, 0), thin, {})
        for _ in file.write():
            pass
        if up_to != "before the rename":
            file.take_place()
        return file

    def summarise(self) -> None:
        assert self.journal is not None
        for number in self.journal.closed_files():
            for _ in summarise(self.directory, number, self.journal.identity):
                pass

    def frames(self) -> dict[int, bytes]:
        """Every frame of partition 0 that can be read."""
        assert self.journal is not None
        found = {}
        for index in range(1, self.contents.state.partition(0).last_index + 1):
            position = self.contents.places[0].at(index)
            if position is not None:
                with contextlib.suppress(Corrupt):
                    found[index] = self.journal.read(position)
        return found

    def path(self, number: int) -> Path:
        return self.directory / f"journal-{number:08d}.trl"

    def snapshot(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.is_file()}


@pytest.fixture
def new_store(fast_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Makes stores where a sync costs nothing."""
    root = fast_directory / tmp_path_factory.mktemp("thin").name
    stores: list[Store] = []

    def make(name: str) -> Store:
        directory = root / name
        directory.mkdir(parents=True)
        stores.append(Store(directory, f"{len(stores):032x}"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def anew(new_store: Callable[[str], Store]) -> Store:
    """A store of which all closed files were written anew, with summaries of the first ones."""
    store = new_store("anew").write(FenceRecord(0, 1, "w", "127.0.0.1:1"), *log())
    assert store.journal is not None
    assert len(store.journal.closed_files()) >= 4
    for number in store.journal.closed_files():
        store.write_anew(number)
    store.summarise()
    store.replayed()
    assert sum(is_thin(frame) for frame in store.frames().values()) >= 8
    return store


@pytest.mark.parametrize(("number", "mask"), [(1, 0xFF), (2, 0x01)])
def test_g2_flip_in_every_byte_of_a_file_that_was_written_anew_is_corrupt_and_never_read_as_something_else(
    anew: Store, number: int, mask: int
) -> None:
    whole, frames = anew.replayed(), anew.frames()
    data = anew.path(number).read_bytes()
    for at in range(len(data)):
        anew.path(number).write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        with pytest.raises(Corrupt):
            anew.replayed()
        if at % 7 == 0:  # with summaries, too: then it opens, or is corrupt, and who reads the frame notices
            with contextlib.suppress(Corrupt):
                assert anew.replayed(summaries=True) == whole
                assert anew.frames().items() <= frames.items()
    anew.path(number).write_bytes(data)
    assert anew.replayed() == whole


def test_flip_in_every_byte_of_its_summary_costs_the_summary_alone(anew: Store) -> None:
    whole = anew.replayed()
    path = summary_path(anew.directory, 1)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        assert anew.replayed(summaries=True) == whole


@pytest.mark.parametrize("summaries", [False, True])
def test_cut_at_every_byte_of_a_file_that_was_written_anew_is_corrupt(anew: Store, summaries: bool) -> None:
    data = anew.path(2).read_bytes()
    for at in range(len(data)):
        anew.path(2).write_bytes(data[:at])
        with pytest.raises(Corrupt):
            anew.replayed(summaries=summaries)


def test_bytes_behind_the_end_of_a_file_that_was_written_anew_are_corrupt(anew: Store) -> None:
    with anew.path(1).open("ab") as file:
        file.write(b"\0" * 15 + b"x")
    with pytest.raises(Corrupt):
        anew.replayed()


@pytest.mark.parametrize("summaries", [False, True])
def test_g2_a_crash_before_the_rename_leaves_the_old_file_and_one_after_it_the_new_one(
    new_store: Callable[[str], Store], summaries: bool
) -> None:
    store = new_store("s").write(*log())
    store.summarise()
    was = store.replayed()
    store.write_anew(1, up_to="before the rename")
    temporary = store.path(1).with_name(store.path(1).name + ".tmp")
    assert temporary.exists()
    assert store.replayed(summaries=summaries) == was
    assert not temporary.exists(), "it is removed at the next opening"

    store.write_anew(1, up_to="before the rename")
    temporary.rename(store.path(1))  # and the end comes before the old summary is removed
    now = store.replayed(summaries=summaries)
    assert now[0][:4] == was[0][:4]
    assert [frame[:2] for frame in now[0][4]] == [frame[:2] for frame in was[0][4]]
    assert len(store.frames()) == FRAMES


def test_a_file_can_be_written_anew_again_and_again(new_store: Callable[[str], Store]) -> None:
    store = new_store("s").write(*log())
    was = store.replayed()
    for session in ("s", "t"):
        store.write_anew(1, lambda p, i, place, frame, name=session: thinned(frame, lambda item: item[1] == name, 0))
        now = store.replayed()
        assert now[0][:4] == was[0][:4]
    [sizes] = [{position.size for _, _, position in now[0][4] if position.file == 1}]
    assert max(sizes) < min(len(frame) for frame in log())


# ---------------------------------------------------------------------- filled in


def thin_log() -> list[bytes]:
    """The log, without the session s."""
    return [thinned(frame, lambda item: item[1] == "s", 0) for frame in log()]


def filled_in(store: Store) -> StoreState:
    """A store that joins at frame 13 and is given the older ones, thin ones among them, as a writer does it."""
    whole, thin = log(), thin_log()
    state, journal = StoreState(LOG_ID, DEFAULT_LIMITS), store.open()
    before = header_of(whole[11], len(whole[11])).header_crc
    state.handle(JoinAsked("source", 1, 0, 1, "w", "127.0.0.1:1", 1, 13, before, ()))
    journal.append([JoinRecord(0, 1, "w", "127.0.0.1:1", 1, 13, before, ()), *whole[12:]])
    for k in reversed(range(12)):
        effects = state.handle(FillAsked("source", 2 + k, 0, 1, "w", [thin[k]]))
        fills = [effect for effect in effects if isinstance(effect, WriteFill)]
        assert [fill.frame for fill in fills] == [thin[k]]
        journal.append([FillRecord(0, fill.frame) for fill in fills])
    return state


@pytest.mark.parametrize("summaries", [False, True])
def test_a_thin_frame_that_is_filled_in_is_held_in_its_place_and_found_again(
    new_store: Callable[[str], Store], summaries: bool
) -> None:
    store = new_store("s")
    state = filled_in(store)
    if summaries:
        store.summarise()
    found = store.replayed(summaries=summaries)[0]
    assert found[:3] == (1, FRAMES, header_of(log()[-1], 10_000).header_crc)
    assert [crc for _, crc, _ in found[4]] == [header_of(frame, 10_000).header_crc for frame in log()]
    assert state.partition(0).base == 13 - 12
    for index, frame in store.frames().items():
        assert [item for item, _, _ in items_of(frame)] == [
            item for item, _, _ in items_of((thin_log() if index < 13 else log())[index - 1])
        ]


def test_what_was_filled_in_is_thinned_further_and_a_bad_one_put_back_in_another_size(
    new_store: Callable[[str], Store],
) -> None:
    store = new_store("s")
    filled_in(store)
    was = store.replayed()
    assert store.journal is not None
    place = store.contents.places[0].at(6)
    assert place is not None
    assert place.file in store.journal.closed_files()
    data = bytearray(store.path(place.file).read_bytes())
    data[place.offset + place.size - 9] ^= 1
    store.path(place.file).write_bytes(data)
    thinner = thinned(thin_log()[5], lambda item: True, 0)
    assert len(thinner) != place.size
    file = store.journal.written_anew((place.file, 0), lambda p, i, place, frame: frame, {place.offset: (place.size, thinner)})
    for _ in file.write():
        pass
    file.take_place()
    now = store.replayed()
    assert now[0][:4] == was[0][:4]
    assert len(store.frames()) == FRAMES
    assert [item[0][0] for item in items_of(store.frames()[6])] == [7]


# ---------------------------------------------------------------------- damage in the file that grows


def rebuilt(store: Store, frames: list[bytes]) -> Store:
    """A journal as `verify --repair` writes it: thin frames in the file that grows."""
    entries = [ThinFrame(0, frame) if is_thin(frame) else frame for frame in frames]
    return store.write(*entries)


@pytest.mark.parametrize("behind", ["whole frames", "thin frames", "nothing"])
def test_g2_a_thin_frame_that_is_damaged_in_the_newest_file_is_no_torn_tail(
    new_store: Callable[[str], Store], behind: str
) -> None:
    frames = [thinned(frame, lambda item: True, 0) for frame in log(4)]
    if behind == "nothing":
        frames = frames[:2]
    if behind == "whole frames":
        frames[2:] = log(4)[2:]
    store = rebuilt(new_store("s"), frames)
    store.replayed()
    place = store.contents.places[0].at(2)
    assert place is not None
    data = store.path(place.file).read_bytes()
    for at in range(place.offset, place.offset + place.size):
        store.path(place.file).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if behind == "nothing" and at < place.offset + HEADER_BYTES:
            with contextlib.suppress(Corrupt):  # without its header nobody knows what it was
                assert store.replayed()[0][1] == 1
            continue
        with pytest.raises(Corrupt):
            store.replayed()


# ---------------------------------------------------------------------- repairs


class Case(NamedTuple):
    """Three stores with one log: some of them thin."""

    stores: dict[str, Store]

    def salvage(self) -> dict[str, StoreSalvage]:
        found = {}
        for name, store in self.stores.items():
            store.close()
            identity = open_identity(store.directory, cluster=CLUSTER, log_id=LOG_ID, fresh_store="new")
            found[name] = salvage_store(store.directory, identity, LOG_ID, CLUSTER)
        return found

    def repair(self, salvages: dict[str, StoreSalvage]) -> list[str]:
        """As `verify --repair` does it; the stores that were given anything."""
        decided = plan(salvages, 3)
        assert not decided.loses
        directories = {name: store.directory for name, store in self.stores.items()}
        for name in decided.contents:
            identity = salvages[name].identity
            assert identity is not None
            frames = frames_of(decided, name, directories, lambda *_: None)
            kept = rebuild(
                self.stores[name].directory, identity, frames, decided.fences[name], DEFAULT_LIMITS, "20260101",
                file_bytes=FILE_BYTES,
            )  # fmt: skip
            directories[name] = kept
        return sorted(decided.contents)


@pytest.mark.parametrize("damaged", ["thin", "whole", "thin too"])
def test_a_damaged_store_is_repaired_from_thin_and_whole_ones_and_takes_whole_frames_where_there_are_any(
    new_store: Callable[[str], Store], damaged: str
) -> None:
    case = Case(
        {name: new_store(name).write(FenceRecord(0, 1, "w", "127.0.0.1:1"), *log()) for name in ("thin", "whole", "thin too")}
    )
    for name in ("thin", "thin too"):
        case.stores[name].write_anew(1)
        case.stores[name].write_anew(2)
    before = {name: store.snapshot() for name, store in case.stores.items()}
    path = case.stores[damaged].path(2)
    data = bytearray(path.read_bytes())
    for at in range(300, len(data), 400):
        data[at] ^= 0x10
    path.write_bytes(data)

    assert case.repair(case.salvage()) == [damaged]

    for name, store in case.stores.items():
        found = store.replayed()[0]
        assert found[:2] == (1, FRAMES)
        frames = store.frames()
        assert len(frames) == FRAMES
        if name == damaged:
            whole_somewhere = log() if damaged != "whole" else None
            for index, frame in frames.items():
                assert whole_somewhere is None or frame == whole_somewhere[index - 1]
        else:
            store.close()
            after = store.snapshot()
            assert all(after[key] == data for key, data in before[name].items()), "an intact store was changed"
    assert not plan(case.salvage(), 3).contents, "nothing is left to mend"


def test_a_store_is_repaired_where_only_thin_copies_are_left(new_store: Callable[[str], Store]) -> None:
    case = Case({name: new_store(name).write(*log()) for name in ("a", "b", "c")})
    for store in case.stores.values():
        assert store.journal is not None
        for number in store.journal.closed_files():
            store.write_anew(number)
    path = case.stores["b"].path(1)
    path.write_bytes(path.read_bytes()[:700])
    assert case.repair(case.salvage()) == ["b"]
    other, frames = case.stores["a"], case.stores["b"]
    other.replayed()
    found = frames.replayed()
    assert found[0][:2] == (1, FRAMES)
    for index, frame in frames.frames().items():
        assert [item for item, _, _ in items_of(frame)] == [item for item, _, _ in items_of(other.frames()[index])]
    assert not plan(case.salvage(), 3).contents


# ---------------------------------------------------------------------- put back


def anew_with(store: Store, index: int, offset: int) -> ThinFile:
    """The first file, written anew with frame `index` put back at `offset`."""
    assert store.journal is not None
    file = store.journal.written_anew((1, 0), without_s, {offset: (len(log()[index - 1]), log()[index - 1])})
    try:
        for _ in file.write():
            pass
    finally:
        file.give_up()
    return file


def test_a_frame_that_would_be_put_back_where_it_does_not_lie_leaves_the_file_as_it_is_G2(tmp_path: Path) -> None:
    """A place of before the file was written anew: the frame would be there twice, or others would be missing."""
    store = Store(tmp_path).write(*log())
    store.replayed()
    places = store.contents.places[0]
    first, second = places.at(1), places.at(2)
    assert first is not None
    assert second is not None
    assert anew_with(store, 2, second.offset).moves.of(0)
    size = store.path(1).stat().st_size
    for index, offset, why in (
        (2, size, "no record"),
        (2, size - 64, "no record"),
        (2, second.offset - 8, "no record"),
        (2, first.offset, "another one"),
    ):
        with pytest.raises(Corrupt, match=why):
            anew_with(store, index, offset)


def test_a_new_file_that_holds_a_frame_more_or_less_than_was_copied_does_not_take_the_old_ones_place_G2(tmp_path: Path) -> None:
    store = Store(tmp_path).write(*log())
    assert store.journal is not None
    for change in (lambda rows: rows.pop(), lambda rows: rows.append(rows[-1])):
        file = store.journal.written_anew((1, 0), without_s, {})
        steps = file._read_back
        file._read_back = lambda end: iter(())  # type: ignore[method-assign]
        for _ in file.write():
            pass
        for rows in file.moves._rows[0]:
            change(rows)
        with pytest.raises(Corrupt):
            list(steps(file._temporary.stat().st_size))
        file.give_up()
