"""Old frames are read again at a bounded rate, and those that went bad are taken back from a peer, and only as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.journal import Journal, JournalBroken, Position, open_identity
from trilogue.actors.journal import inplace as inplace_module
from trilogue.actors.journal.inplace import check_in_place, rewrite_in_place
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.protocol.errors import Corrupt, ProtocolError, Unavailable
from trilogue.actors.protocol.frames import Header, decode_frame, encode_frame
from trilogue.actors.protocol.holdings import Fence, PartitionState
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, KIB, Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.replication.mender import mend
from trilogue.actors.store.scrubber import BATCH_BYTES, FRAME_COST_BYTES, Held, Round, Scrubber, Target

LOG_ID = 7
LIMITS = replace(DEFAULT_LIMITS, scrub_bytes_per_s=100 * KIB, scrub_round_ms=1)


class Stored:
    """A catalogue of made-up frames, or of those of a real journal."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = {(target.key.partition, target.key.frame_index): target for target in targets}

    def partitions(self) -> Sequence[int]:
        return list({partition for partition, _ in self.targets})

    def following(self, partition: int, frame_index: int) -> Target | None:
        after = sorted(index for p, index in self.targets if p == partition and index > frame_index)
        return self.targets[partition, after[0]] if after else None

    def stored(self, partition: int, frame_index: int) -> Target | None:
        return self.targets.get((partition, frame_index))

    def place_of(self, key: FrameKey) -> Position | None:
        return self.targets[key.partition, key.frame_index].position


def made_up(*frames: tuple[int, int, int]) -> Stored:
    """(partition, index, size) …"""
    return Stored([Target(FrameKey(p, index, 1), Position(1, 0, size)) for p, index, size in frames])


def keys(targets: Sequence[Target]) -> list[tuple[int, int]]:
    return [target.key[:2] for target in targets]


# ---------------------------------------------------------------------- what is read when


def test_every_frame_is_read_once_in_a_round_and_new_ones_too() -> None:
    stored = made_up((0, 1, 100), (0, 2, 100), (3, 5, 100), (3, 9, 100))
    scrub = Round(stored, LIMITS)
    assert keys(scrub.take(0.0)) == [(0, 1), (0, 2), (3, 5), (3, 9)]
    assert scrub.finished == 1
    assert scrub.take(0.0) == []
    stored.targets |= made_up((1, 1, 100)).targets
    assert keys(scrub.take(100.0)) == [(0, 1), (0, 2), (1, 1), (3, 5), (3, 9)]


def test_reading_never_exceeds_its_rate_and_nothing_is_caught_up() -> None:
    size = 50_000
    scrub = Round(made_up(*((0, index, size) for index in range(1, 101))), LIMITS)
    now, read = 1000.0, 0
    for _ in range(12):
        taken = scrub.take(now)
        read += len(taken) * (size + FRAME_COST_BYTES)
        assert sum(target.position.size for target in taken) < BATCH_BYTES + size
        assert scrub.take(now) == []
        now += scrub.wait_s(now)
        assert read <= LIMITS.scrub_bytes_per_s * (now - 1000.0) + 1
    now += 3600  # a long sleep
    assert len(scrub.take(now)) * size < BATCH_BYTES + size


def test_a_small_store_is_read_once_in_a_while_and_an_empty_one_costs_nothing() -> None:
    limits = replace(LIMITS, scrub_round_ms=60_000)
    scrub = Round(made_up((0, 1, 100)), limits)
    assert keys(scrub.take(5.0)) == [(0, 1)]
    assert scrub.wait_s(5.0) == 60.0
    empty = Round(made_up(), limits)
    assert empty.take(5.0) == []
    assert empty.wait_s(5.0) == 60.0
    assert empty.finished == 0


class FixedPlaces:
    """Places of frames that nobody reads."""

    def at(self, index: int) -> Position | None:
        return Position(1, index * 100, 100)


def test_a_running_store_offers_what_is_committed_and_what_lies_below_its_base_and_nothing_else() -> None:
    state = PartitionState(certain=True)
    crcs = {}

    def take(index: int, committed: int, prev_crc: int) -> Header:
        frame, crcs[index] = encode_frame(
            log_id=LOG_ID, partition=0, epoch=1, index=index, prev_crc=prev_crc, count=1, committed_upto=committed, payload=b""
        )
        return decode_frame(frame, len(frame))

    state.obey(Fence(1, "w", "a"))
    state.join(1, 11, 42, [])
    state.take(take(11, 0, 42))
    held = Held({0: state}, {0: FixedPlaces()})
    assert held.following(0, 0) is None, "nothing is known to be committed"
    state.take(take(12, 11, crcs[11]))
    state.take(take(13, 11, crcs[12]))
    for index in (3, 4, 8):
        state.fill(take(index, 0, crcs.get(index - 1, 0)))
    found, after = [], 0
    while (target := held.following(0, after)) is not None:
        after = target.key.frame_index
        found.append(after)
        assert target.key.crc == crcs[after]
    assert found == [3, 4, 8, 11]
    assert held.stored(0, 5) is None
    assert held.stored(0, 12) is None
    assert held.stored(1, 1) is None
    assert list(held.partitions()) == [0]


def test_the_rate_is_a_limit() -> None:
    assert Limits().scrub_bytes_per_s > 0


# ---------------------------------------------------------------------- on a real journal


class Store:
    """A journal with frames of partition 0."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        identity = open_identity(directory, cluster="c", log_id=LOG_ID, fresh_store="s" * 32)
        self.journal = Journal.open(directory, identity, DEFAULT_LIMITS, lambda _: None, file_bytes=65536)
        self.frames: list[bytes] = []
        self.targets: list[Target] = []
        crc = 0
        for index in range(1, 6):
            frame, crc = encode_frame(
                log_id=LOG_ID, partition=0, epoch=1, index=index, prev_crc=crc, count=1, committed_upto=index - 1,
                payload=bytes([index]) * 3000,
            )  # fmt: skip
            (position,) = self.journal.append([frame])
            self.frames.append(frame)
            self.targets.append(Target(FrameKey(0, index, crc), position))
        self.mended: list[int] = []
        self.scrubber = Scrubber(self.journal, Stored(self.targets), self.mended.append, LIMITS)

    def hit(self, index: int) -> None:
        position = self.targets[index - 1].position
        with (self.directory / "journal-00000001.trl").open("r+b") as file:
            file.seek(position.offset + 1000)
            file.write(b"bad")

    def whole(self, index: int) -> bool:
        try:
            return self.journal.read(self.targets[index - 1].position) == self.frames[index - 1]
        except Corrupt:
            return False


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_bad_frame_is_found_told_and_taken_back_where_it_was(store: Store) -> None:
    async def run() -> None:
        await store.scrubber.scrub(store.targets)
        assert store.scrubber.damaged(0) == []
        store.hit(3)
        await store.scrubber.scrub(store.targets)
        assert store.scrubber.damaged(0) == [3]
        assert store.scrubber.damaged(1) == []
        status = store.scrubber.status()
        assert status["frames_bad"] == 1
        assert "CRC" in status["bad"][0]["problem"]
        assert await store.scrubber.repair(0, [store.frames[2]]) == 1
        assert store.whole(3)
        assert store.mended == [0]
        assert store.scrubber.damaged(0) == []
        assert await store.scrubber.repair(0, [store.frames[2]]) == 0, "it is whole already"
        await store.scrubber.scrub(store.targets)
        assert store.scrubber.status()["frames_bad"] == 0

    asyncio.run(run())


def test_nothing_but_the_very_frame_that_was_stored_is_written(store: Store) -> None:
    """A minority's damage never spreads: whoever sends."""
    store.hit(3)
    store.scrubber.found_bad(0, 3, "a read failed")
    before = (store.directory / "journal-00000001.trl").read_bytes()
    header = decode_frame(store.frames[2], len(store.frames[2]))
    other, _ = encode_frame(
        log_id=LOG_ID, partition=0, epoch=9, index=3, prev_crc=header.prev_crc, count=1, committed_upto=2, payload=bytes(3000)
    )
    damaged = bytearray(store.frames[2])
    damaged[100] ^= 1

    async def send(frame: bytes) -> int:
        return await store.scrubber.repair(0, [frame])

    elsewhere, _ = encode_frame(
        log_id=LOG_ID, partition=1, epoch=1, index=3, prev_crc=0, count=1, committed_upto=2, payload=bytes(3000)
    )
    assert asyncio.run(send(other)) == asyncio.run(send(elsewhere)) == asyncio.run(send(store.frames[3])) == 0
    for frame in (bytes(damaged), store.frames[2][:-8]):
        with pytest.raises(ProtocolError):
            asyncio.run(send(frame))
    with pytest.raises(ProtocolError):
        rewrite_in_place(store.directory, store.targets[3].position, store.targets[3].key, store.frames[2])
    assert (store.directory / "journal-00000001.trl").read_bytes() == before
    assert store.scrubber.damaged(0) == [3]


def test_a_frame_that_the_store_does_not_hold_any_more_is_no_longer_bad(store: Store) -> None:
    catalogue = Stored(store.targets)
    scrubber = Scrubber(store.journal, catalogue, store.mended.append, LIMITS)
    store.hit(5)
    asyncio.run(scrubber.scrub(store.targets))
    assert scrubber.damaged(0) == [5]
    del catalogue.targets[0, 5]
    assert scrubber.damaged(0) == []


def test_a_sync_that_fails_ends_the_store_and_a_disk_that_refuses_leaves_the_frame_bad(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.hit(2)
    store.scrubber.found_bad(0, 2, "a read failed")

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(inplace_module, "write_all", fails)
        assert asyncio.run(store.scrubber.repair(0, [store.frames[1]])) == 0
        assert store.scrubber.damaged(0) == [2]
    with monkeypatch.context() as patch:
        patch.setattr(inplace_module.os, "fdatasync", fails)
        with pytest.raises(JournalBroken):
            asyncio.run(store.scrubber.repair(0, [store.frames[1]]))
    rewrite_in_place(store.directory, store.targets[1].position, store.targets[1].key, store.frames[1])
    check_in_place(store.directory, store.targets[1].position, store.targets[1].key)


def test_a_frame_that_lies_elsewhere_is_not_taken_for_the_one_that_was_stored(store: Store) -> None:
    """A misdirected write: the frame is whole, and another one."""
    position = store.targets[1].position
    with (store.directory / "journal-00000001.trl").open("r+b") as file:
        file.seek(position.offset)
        file.write(store.frames[3])
    with pytest.raises(Corrupt, match="frame 4 of partition 0 where frame 2"):
        check_in_place(store.directory, position, store.targets[1].key)


# ---------------------------------------------------------------------- the writer's part


class Peer:
    """A store, as its writer sees it."""

    def __init__(self, store: Store, *, down: bool = False) -> None:
        self.store = store
        self.down = down

    async def request(self, say: Say, *items: Any) -> Any:
        if self.down:
            raise Unavailable("the connection is lost")
        match say:
            case Say.DAMAGED:
                return self.store.scrubber.damaged(items[0])
            case Say.REPAIR:
                assert items[:3] == (0, 4, "writer")
                return await self.store.scrubber.repair(items[0], items[3])
        assert say == Say.FRAMES
        return [self.store.journal.read(self.store.targets[items[1] - 1].position)]


def test_the_writer_gives_each_store_back_what_went_bad_from_another_one(tmp_path: Path) -> None:
    stores = {name: Store(tmp_path / name) for name in ("a", "b", "c")}
    for name, index in (("a", 1), ("b", 2), ("c", 3)):
        stores[name].hit(index)

    async def run() -> None:
        for store in stores.values():
            await store.scrubber.scrub(store.targets)
        assert await mend(0, 4, "writer", {name: Peer(store) for name, store in stores.items()}) == 3
        assert all(store.whole(index) for store in stores.values() for index in range(1, 6))
        stores["a"].hit(4)
        await stores["a"].scrubber.scrub(stores["a"].targets)
        nobody = {name: Peer(store, down=name != "a") for name, store in stores.items()}
        assert await mend(0, 4, "writer", nobody) == 0
        one_left = {name: Peer(store, down=name == "b") for name, store in stores.items()}
        assert await mend(0, 4, "writer", one_left) == 1

    asyncio.run(run())
