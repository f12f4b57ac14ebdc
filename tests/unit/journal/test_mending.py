"""Stores that are damaged in different places are made equal from what they have together (G2, G8, design §5)."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trilogue.actors.journal import (
    Entry,
    FenceRecord,
    FillRecord,
    FrameFound,
    Identity,
    JoinRecord,
    Journal,
    Position,
    open_identity,
)
from trilogue.actors.journal import swap as swap_module
from trilogue.actors.journal.mend import Plan, plan
from trilogue.actors.journal.rebuild import frames_of, rebuild
from trilogue.actors.journal.salvage import StoreSalvage, salvage_store
from trilogue.actors.protocol.errors import Corrupt, NewerFormat
from trilogue.actors.protocol.frames import HEADER_BYTES, decode_frame, encode_frame
from trilogue.actors.protocol.limits import DEFAULT_LIMITS

LOG_ID, CLUSTER = 0x1122334455667788, "cluster-a"
NAMES = ("store-1", "store-2", "store-3")
FILE_BYTES = 8192
Files = dict[str, bytes]


class Chain:
    """Makes the frames of one partition."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.frames: list[bytes] = []
        self.crcs: list[int] = []

    def next(self, body: bytes, *, epoch: int = 1, committed: int | None = None, index: int = 0) -> bytes:
        index = index or len(self.frames) + 1
        del self.frames[index - 1 :], self.crcs[index - 1 :]
        frame, crc = encode_frame(
            log_id=LOG_ID,
            partition=self.partition,
            epoch=epoch,
            index=index,
            prev_crc=self.crcs[-1] if self.crcs else 0,
            count=1,
            committed_upto=index - 1 if committed is None else committed,
            payload=body,
        )
        self.frames.append(frame)
        self.crcs.append(crc)
        return frame


class Three:
    """Three stores, what was written to them, and where."""

    def __init__(self, root: Path, entries: Mapping[str, list[bytes | FenceRecord]]) -> None:
        self.root = root
        self.directories = {name: root / name for name in entries}
        self.places: dict[str, list[tuple[bytes, Position]]] = {}
        for k, (name, own) in enumerate(entries.items()):
            self.places[name] = self._write(self.directories[name], f"{k:032x}", own)
        self.whole = {name: snapshot(directory) for name, directory in self.directories.items()}

    @staticmethod
    def _write(directory: Path, uuid: str, entries: list[bytes | FenceRecord]) -> list[tuple[bytes, Position]]:
        directory.mkdir(parents=True)
        identity = open_identity(directory, cluster=CLUSTER, log_id=LOG_ID, fresh_store=uuid)
        journal = Journal.open(directory, identity, DEFAULT_LIMITS, lambda _: None, file_bytes=FILE_BYTES)
        places = []
        for entry in entries:
            (position,) = journal.append([entry])
            if isinstance(entry, bytes):
                places.append((entry, position))
        journal.close()
        return places

    def identity(self, name: str) -> Identity:
        return open_identity(self.directories[name], cluster=CLUSTER, log_id=LOG_ID, fresh_store="new")

    def hit(self, name: str, position: Position, offset: int, value: bytes) -> None:
        """Write `value` over bytes of a record."""
        path = self.directories[name] / f"journal-{position.file:08d}.trl"
        data = bytearray(path.read_bytes())
        at = position.offset + offset
        data[at : at + len(value)] = value
        path.write_bytes(data)

    def salvage(self) -> dict[str, StoreSalvage]:
        return {
            name: salvage_store(directory, self.identity(name), LOG_ID, CLUSTER) for name, directory in self.directories.items()
        }

    def plan(self) -> tuple[dict[str, StoreSalvage], Plan]:
        salvages = self.salvage()
        return salvages, plan(salvages, 3)

    def repair(self) -> Plan:
        salvages, decided = self.plan()
        assert not decided.loses, decided
        directories = dict(self.directories)
        for name in decided.contents:
            identity = salvages[name].identity
            assert identity is not None
            frames = frames_of(decided, name, directories, lambda *_: None)
            directories[name] = rebuild(
                self.directories[name],
                identity,
                frames,
                decided.fences[name],
                DEFAULT_LIMITS,
                "20260101",
                file_bytes=FILE_BYTES,
            )
        return decided

    def contents(self, name: str) -> dict[int, list[bytes]]:
        """What the store replays when it is opened, as it would be by its actor. Leaves the directory as it is."""
        copy = Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(self.directories[name], copy, dirs_exist_ok=True)
        chains: dict[int, list[bytes]] = {}

        def replay(entry: Entry) -> None:
            if isinstance(entry, FrameFound):
                chain = chains.setdefault(entry.header.partition, [])
                del chain[entry.header.index - 1 :]
                chain.append(bytes(entry.payload))

        identity = open_identity(copy, cluster=CLUSTER, log_id=LOG_ID, fresh_store="new")
        Journal.open(copy, identity, DEFAULT_LIMITS, replay, file_bytes=FILE_BYTES).close()
        shutil.rmtree(copy)
        return chains


def snapshot(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Where a sync costs nothing."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="trilogue-test-", dir=memory if memory.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


def fence(partition: int, epoch: int = 1) -> FenceRecord:
    return FenceRecord(partition, epoch, f"writer-{epoch}", "127.0.0.1:1")


def story(
    seed: int = 1, frames: int = 24, partitions: int = 2
) -> tuple[dict[str, list[bytes | FenceRecord]], dict[int, Chain]]:
    """What three stores are told: the same frames of each partition, mixed differently."""
    rng = random.Random(seed)
    chains = {p: Chain(p) for p in range(partitions)}
    for _ in range(frames):
        chain = chains[rng.randrange(partitions)]
        committed = max(0, len(chain.frames) - rng.randrange(3))
        chain.next(rng.randbytes(rng.randrange(0, 900)), committed=committed)
    entries: dict[str, list[bytes | FenceRecord]] = {}
    for name in NAMES:
        left = {p: list(chain.frames) for p, chain in chains.items()}
        mixed: list[bytes | FenceRecord] = [fence(p) for p in chains]
        while any(left.values()):
            mixed.append(left[rng.choice([p for p in left if left[p]])].pop(0))
        entries[name] = mixed
    return entries, chains


def payloads(chains: Mapping[int, Chain]) -> dict[int, list[bytes]]:
    return {
        p: [frame[HEADER_BYTES : HEADER_BYTES + decode_frame(frame, len(frame)).payload_bytes] for frame in chain.frames]
        for p, chain in chains.items()
        if chain.frames
    }


class Hit(NamedTuple):
    """One damage: which frame (of all), on which stores it may be, how."""

    frame: int
    store: int
    offset: int
    kind: str


hits = st.lists(
    st.builds(
        Hit,
        st.integers(0, 23),
        st.integers(0, 2),
        st.integers(0, 1000),
        st.sampled_from(["flip", "zeros", "noise", "header", "rest"]),
    ),
    max_size=12,
)


def damage(three: Three, hit: Hit, frames: list[bytes], rng: random.Random) -> None:
    """Change bytes of this frame, on this store, and of no other frame."""
    frame = frames[hit.frame]
    name = NAMES[hit.store]
    position = next(position for other, position in three.places[name] if other == frame)
    offset = hit.offset % position.size
    length = position.size - offset
    match hit.kind:
        case "flip":
            value = bytes([frame[offset] ^ 1 << rng.randrange(8)])
        case "zeros":
            value = bytes(length)
        case "noise":
            value = rng.randbytes(length)
        case "header":
            offset, value = 0, rng.randbytes(HEADER_BYTES)
        case _:
            offset, value = min(offset, 60), rng.randbytes(position.size - min(offset, 60))
    three.hit(name, position, offset, value)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1_000), wanted=hits)
@example(seed=1, wanted=[Hit(3, 0, 70, "flip"), Hit(9, 1, 3, "header"), Hit(15, 2, 0, "zeros")])
def test_damage_in_different_places_of_three_stores_is_mended_from_what_they_have_together_g2(
    root: Path, seed: int, wanted: list[Hit]
) -> None:
    entries, chains = story(seed)
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    frames = [frame for chain in chains.values() for frame in chain.frames]
    rng = random.Random(seed)
    hit_on: dict[int, set[int]] = {}
    for hit in wanted:
        if len(hit_on.get(hit.frame, set()) | {hit.store}) < 3:  # each frame is whole on one store at least
            hit_on.setdefault(hit.frame, set()).add(hit.store)
            damage(three, hit, frames, rng)
    before = {name: snapshot(directory) for name, directory in three.directories.items()}
    damaged = {name for name, one in three.salvage().items() if not one.intact}

    three.repair()

    for name in NAMES:
        after = three.contents(name)
        if name in damaged:
            assert after == payloads(chains)
            assert three.identity(name).incarnation == 2
        else:
            assert snapshot(three.directories[name]) == before[name], "an intact store was changed"
            for partition, chain in after.items():  # its last frames may have been wiped out without a trace
                assert chain == payloads(chains)[partition][: len(chain)]
    assert not three.plan()[1].contents, "nothing is left to mend"
    shutil.rmtree(three.root)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1_000),
    ranges=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25_000), st.integers(1, 3_000), st.booleans()), max_size=8),
)
@example(seed=5, ranges=[(0, 0, 200, True), (1, 0, 200, False), (2, 0, 200, True)])
def test_any_bytes_may_be_damaged_heads_and_fences_too_as_long_as_each_frame_is_whole_somewhere_g2(
    root: Path, seed: int, ranges: list[tuple[int, int, int, bool]]
) -> None:
    entries, chains = story(seed)
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    rng = random.Random(seed)
    owner = {frame: rng.randrange(3) for chain in chains.values() for frame in chain.frames}
    for k, start, length, zeros in ranges:
        name = NAMES[k]
        paths = sorted(three.directories[name].glob("journal-*.trl"))
        path = paths[start // FILE_BYTES % len(paths)]
        number = int(path.name[8:16])
        spared = [position for frame, position in three.places[name] if owner[frame] == k and position.file == number]
        data = bytearray(path.read_bytes())
        for at in range(start % FILE_BYTES, min(len(data), start % FILE_BYTES + length)):
            if not any(position.offset <= at < position.offset + position.size for position in spared):
                data[at] = 0 if zeros else rng.randrange(256)
        path.write_bytes(data)
    damaged = {name for name, one in three.salvage().items() if not one.intact}
    three.repair()
    for name in NAMES:
        after = three.contents(name)
        if name in damaged:
            assert after == payloads(chains)
        for partition, chain in after.items():
            assert chain == payloads(chains)[partition][: len(chain)]
    shutil.rmtree(three.root)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1_000), which=st.integers(0, 23), where=st.integers(0, 1_000))
def test_a_frame_that_is_damaged_everywhere_is_lost_and_nothing_else_g8(root: Path, seed: int, which: int, where: int) -> None:
    entries, chains = story(seed)
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    frames = [frame for chain in chains.values() for frame in chain.frames]
    header = decode_frame(frames[which], len(frames[which]))
    known = max(decode_frame(frame, len(frame)).committed_upto for frame in chains[header.partition].frames)
    for k in range(3):
        damage(three, Hit(which, k, where + k, "flip"), frames, random.Random(seed))
    _, decided = three.plan()
    for partition, one in decided.partitions.items():
        hit_here = partition == header.partition
        assert not one.contradiction
        assert one.lost == ([(header.index, header.index)] if hit_here and header.index <= known else [])
        if hit_here and header.index < len(chains[partition].frames):
            assert decided.loses
        assert len(one.chain) == (header.index - 1 if hit_here else len(chains[partition].frames))
    shutil.rmtree(three.root)


# ---------------------------------------------------------------------- frames inside bodies


def forged(chain: Chain, *, epoch: int = 99, body: bytes = b"forged") -> bytes:
    """A frame that would fit as the next one of the chain."""
    frame, _ = encode_frame(
        log_id=LOG_ID, partition=chain.partition, epoch=epoch, index=len(chain.frames) + 1, prev_crc=chain.crcs[-1], count=1,
        committed_upto=len(chain.frames), payload=body,
    )  # fmt: skip
    return frame


def build(root: Path, frames: list[bytes], stores: int = 3) -> Three:
    entries: dict[str, list[bytes | FenceRecord]] = {name: [fence(0), *frames] for name in NAMES[:stores]}
    return Three(Path(tempfile.mkdtemp(dir=root)), entries)


@pytest.mark.parametrize("damaged", [(0,), (0, 1)])
@pytest.mark.parametrize("broken", ["header", "payload"])
@pytest.mark.parametrize("last", [True, False])
def test_a_frame_inside_a_body_is_never_taken_for_one(root: Path, damaged: tuple[int, ...], broken: str, last: bool) -> None:
    chain = Chain(0)
    for k in range(3):
        chain.next(b"real %d" % k)
    inside = forged(chain)
    carrier = chain.next(b"\xc4" * 8 + inside)
    if not last:
        chain.next(b"real 5")
        chain.next(b"real 6")
    three = build(root, list(chain.frames))
    for k in damaged:
        position = next(position for frame, position in three.places[NAMES[k]] if frame == carrier)
        three.hit(NAMES[k], position, 10 if broken == "header" else HEADER_BYTES + 1, b"\x55")
    three.repair()
    for name in NAMES:
        assert three.contents(name) == payloads({0: chain})


def test_a_copy_of_a_real_frame_inside_a_body_serves_where_the_chain_names_it(root: Path) -> None:
    """The copy is the frame, byte by byte: it is not lost."""
    chain = Chain(0)
    chain.next(b"one")
    copied = chain.next(b"two")
    chain.next(b"\xc4" * 8 + copied)
    chain.next(b"four")
    three = build(root, list(chain.frames))
    for k, name in enumerate(NAMES):
        places = dict(three.places[name])
        three.hit(name, places[copied], 10, b"\x55")
        if k == 0:
            three.hit(name, places[chain.frames[2]], 10, b"\x55")
    _, decided = three.plan()
    assert [node.key.frame_index for node in decided.partitions[0].chain] == [1, 2, 3, 4]


# ---------------------------------------------------------------------- which chain


def test_of_two_ends_the_later_epoch_is_taken_and_an_intact_store_stays_as_it_is(root: Path) -> None:
    chain = Chain(0)
    shared = [chain.next(b"one"), chain.next(b"two"), chain.next(b"three", committed=1)]
    older = [*shared, chain.next(b"old four", committed=1)]
    chain.next(b"new three", epoch=2, index=3, committed=2)
    newer = [*shared, fence(0, 2), *chain.frames[2:]]
    entries: dict[str, list[bytes | FenceRecord]] = {
        "store-1": [fence(0), *older],
        "store-2": [fence(0), *newer],
        "store-3": [fence(0), *newer],
    }
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    intact = snapshot(three.directories["store-1"])
    three.hit("store-2", dict(three.places["store-2"])[shared[0]], 66, b"\x55")
    three.hit("store-3", dict(three.places["store-3"])[shared[1]], 66, b"\x55")
    decided = three.repair()
    assert sorted(decided.contents) == ["store-2", "store-3"]
    assert three.contents("store-2") == three.contents("store-3") == payloads({0: chain})
    assert snapshot(three.directories["store-1"]) == intact
    assert three.salvage()["store-2"].fences[0].epoch == 2


def test_an_intact_store_with_the_highest_fence_decides_between_branches(root: Path) -> None:
    """A frame that reached few stores may lose against an older one: the store that the last writer fenced says which."""
    chain = Chain(0)
    shared = [chain.next(b"one"), chain.next(b"two")]
    stray = chain.next(b"stray", epoch=5, committed=1)
    del chain.frames[2:], chain.crcs[2:]
    kept = chain.next(b"kept", epoch=4, committed=1)
    entries: dict[str, list[bytes | FenceRecord]] = {
        "store-1": [fence(0, 4), *shared, kept, fence(0, 6)],
        "store-2": [fence(0, 4), *shared, kept, fence(0, 6)],
        "store-3": [fence(0, 4), *shared, fence(0, 5), stray],
    }
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    three.hit("store-2", dict(three.places["store-2"])[shared[1]], 66, b"\x55")
    three.repair()
    assert three.contents("store-2")[0] == [b"one", b"two", b"kept"]


def test_two_histories_that_are_both_known_to_be_committed_are_not_decided(root: Path) -> None:
    one, two = Chain(0), Chain(0)
    for k in range(4):
        one.next(b"one %d" % k)
        two.next(b"two %d" % k, epoch=2)
    entries: dict[str, list[bytes | FenceRecord]] = {
        "store-1": [fence(0), *one.frames],
        "store-2": [fence(0, 2), *two.frames],
        "store-3": [fence(0, 2), *two.frames],
    }
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    three.hit("store-3", three.places["store-3"][1][1], 66, b"\x55")
    _, decided = three.plan()
    assert decided.loses
    assert "knows frame" in decided.partitions[0].contradiction


def test_a_torn_last_frame_that_an_intact_store_does_not_have_is_no_loss(root: Path) -> None:
    chain = Chain(0)
    for k in range(3):
        chain.next(b"body %d" % k)
    frames = list(chain.frames)
    torn = chain.next(b"never answered")
    entries: dict[str, list[bytes | FenceRecord]] = {
        "store-1": [fence(0), *frames, torn],
        "store-2": [fence(0), *frames],
        "store-3": [fence(0), *frames],
    }
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    three.hit("store-1", dict(three.places["store-1"])[torn], 66, b"\x55")
    _, decided = three.plan()
    assert not decided.loses
    assert decided.partitions[0].never_stored == [(4, 4)]
    three.repair()
    assert len(three.contents("store-1")[0]) == 3


# ---------------------------------------------------------------------- stores that joined later


def with_a_joined_store(root: Path) -> tuple[Three, Chain]:
    """Two stores have all of 20 frames; the third joined at 11, and was filled with all older ones but 4 and 5."""
    chain = Chain(0)
    for k in range(20):
        chain.next(b"body %d" % k)
    fills = [FillRecord(0, chain.frames[index - 1]) for index in (10, 9, 8, 7, 6, 1, 2, 3)]
    join = JoinRecord(0, 2, "writer-2", "127.0.0.1:1", 1, 11, chain.crcs[9], ())
    entries: dict[str, list[Any]] = {
        "store-1": [fence(0), *chain.frames, fence(0, 2)],
        "store-2": [join, *chain.frames[10:], *fills],
        "store-3": [fence(0), *chain.frames, fence(0, 2)],
    }
    return Three(Path(tempfile.mkdtemp(dir=root)), entries), chain


def place(three: Three, name: str, index: int) -> Position:
    """Where the frame lies on the store, itself inside a record or not."""
    return next(found.position for found in three.salvage()[name].frames if found.key.frame_index == index)


def test_an_intact_store_that_is_still_being_filled_gives_what_it_has_and_stays_as_it_is(root: Path) -> None:
    three, chain = with_a_joined_store(root)
    before = snapshot(three.directories["store-2"])
    for name in ("store-1", "store-3"):
        for index in (7, 15):
            three.hit(name, place(three, name, index), 70, b"\x55")
    decided = three.repair()
    assert sorted(decided.contents) == ["store-1", "store-3"]
    assert decided.lacking["store-2", 0] == [(4, 5)]
    assert three.contents("store-1") == three.contents("store-3") == payloads({0: chain})
    assert snapshot(three.directories["store-2"]) == before


@pytest.mark.parametrize("at", [-60, 3, 70])
def test_a_damaged_store_that_was_being_filled_is_given_everything(root: Path, at: int) -> None:
    """At -60 it is the record around the filled frame that is hit: the frame in it is still a frame."""
    three, chain = with_a_joined_store(root)
    hit = [("store-2", 8, at), ("store-1", 12, 70), ("store-3", 16, 3)]
    for (name, _, offset), position in zip(hit, [place(three, name, index) for name, index, _ in hit], strict=True):
        three.hit(name, position, offset, b"\x55")
    three.repair()
    for name in NAMES:
        assert three.contents(name) == payloads({0: chain})
        assert three.salvage()[name].fences[0].epoch == 2


def test_what_was_not_filled_in_yet_is_lost_when_the_others_lose_it_g8(root: Path) -> None:
    three, _ = with_a_joined_store(root)
    for name in ("store-1", "store-3"):
        three.hit(name, place(three, name, 5), 70, b"\x55")
    _, decided = three.plan()
    assert decided.partitions[0].lost == [(5, 5)]


# ---------------------------------------------------------------------- whole files and identities


@pytest.mark.parametrize("what", ["journals", "first file", "truncated", "store.json"])
def test_a_store_that_lost_files_gets_everything_back(root: Path, what: str) -> None:
    entries, chains = story(7, frames=60)
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    directory = three.directories["store-2"]
    journals = sorted(directory.glob("journal-*.trl"))
    assert len(journals) > 2
    identity: Identity | None = three.identity("store-2")
    match what:
        case "journals":
            for path in journals:
                path.unlink()
        case "first file":
            journals[0].unlink()
        case "truncated":
            journals[1].write_bytes(journals[1].read_bytes()[:5000])
        case _:
            (directory / "store.json").write_bytes(b"{}")
            identity = None
    salvages = {
        name: salvage_store(path, identity if name == "store-2" else three.identity(name), LOG_ID, CLUSTER)
        for name, path in three.directories.items()
    }
    assert [name for name, one in salvages.items() if not one.intact] == ["store-2"]
    decided = plan(salvages, 3)
    found = salvages["store-2"].identity
    assert found is not None
    assert found.store == f"{1:032x}"
    frames = frames_of(decided, "store-2", three.directories, lambda *_: None)
    rebuild(directory, found, frames, decided.fences["store-2"], DEFAULT_LIMITS, "20260101", file_bytes=FILE_BYTES)
    assert three.contents("store-2") == payloads(chains)
    assert three.identity("store-2").incarnation > 1


def test_a_newer_format_is_no_damage(root: Path) -> None:
    chain = Chain(0)
    chain.next(b"one")
    three = build(root, list(chain.frames))
    newer = bytearray(chain.frames[0])
    newer[4] = 2
    from zlib import crc32

    newer[60:64] = crc32(bytes(newer[:60])).to_bytes(4, "little")
    three.hit("store-1", three.places["store-1"][0][1], 0, bytes(newer))
    with pytest.raises(NewerFormat):
        three.salvage()


# ---------------------------------------------------------------------- the swap


class Crash(Exception):
    """The process ends here."""


def damaged_store(root: Path) -> tuple[Three, dict[int, list[bytes]]]:
    entries, chains = story(3, frames=40)
    three = Three(Path(tempfile.mkdtemp(dir=root)), entries)
    three.hit("store-1", three.places["store-1"][4][1], 66, b"\x55")
    return three, payloads(chains)


def test_a_crash_at_any_step_of_the_swap_leaves_the_old_journal_or_the_new(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = 0, set[str]()
    while True:
        three, whole = damaged_store(root)
        left = step
        real = {name: getattr(swap_module.os, name) for name in ("rename",)}

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                return function(*args, **options)

            return run

        with monkeypatch.context() as patch:
            for name, function in real.items():
                patch.setattr(swap_module.os, name, counted(function))
            patch.setattr(swap_module, "sync_directory", counted(swap_module.sync_directory))
            patch.setattr(swap_module.shutil, "copy2", counted(shutil.copy2))
            patch.setattr(swap_module.shutil, "rmtree", counted(shutil.rmtree))
            try:
                three.repair()
                crashed = False
            except Crash:
                crashed = True
        try:
            assert three.contents("store-1") == whole
            seen.add("new")
        except Corrupt:
            seen.add("old")
            assert crashed
        if crashed:
            three.repair()  # again, from whatever is there
        assert three.contents("store-1") == whole
        assert not [path.name for path in three.directories["store-1"].iterdir() if path.name.startswith("repair")]
        kept = sorted(three.directories["store-1"].glob("damaged-*"))
        assert kept
        assert snapshot(kept[0])["journal-00000001.trl"] != three.whole["store-1"]["journal-00000001.trl"]
        shutil.rmtree(three.root)
        if not crashed:
            break
        step += 1
    assert step > 8
    assert seen == {"old", "new"}


def test_a_program_that_knows_no_swap_refuses_what_it_finds_in_the_middle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three, _ = damaged_store(root)
    directory = three.directories["store-1"]
    real = swap_module._move_new_files_in
    monkeypatch.setattr(swap_module, "_move_new_files_in", lambda *_: None)
    three.repair()
    identity = replace(three.identity("store-2"), store=f"{0:032x}")
    with pytest.raises(Corrupt, match="missing"):
        Journal.open(directory, identity, DEFAULT_LIMITS, lambda _: None)
    monkeypatch.setattr(swap_module, "_move_new_files_in", real)
    three.identity("store-1")
    assert three.salvage()["store-1"].intact
