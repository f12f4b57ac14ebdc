"""A store over real connections in one process: joined, filled, asked whom it hears; damaged and moved away (G2, G9, G11)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.config import StoreConfig
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.messages import RUN, Run, pack_records
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.store import actor as store_actor
from trilogue.actors.store import reader as store_reader
from trilogue.actors.store.actor import StoreActor
from trilogue.actors.wire import Connection, Refused, connect

TOKEN, LOG_ID, SENDER = "the token", 7, "a/" + "0" * 32
DEADLINE_S = 30
Scenario = Callable[["World"], Coroutine[Any, Any, None]]


def log_of(length: int) -> list[bytes]:
    """Frames 1 … length of partition 0 in epoch 1: a message each, in session "s"."""
    frames: list[bytes] = []
    for index in range(1, length + 1):
        run = Run(RUN, "s", SENDER, index, index, 5, [5], [b"message %d" % index])
        frames.append(
            encode_frame(
                log_id=LOG_ID, partition=0, epoch=1, index=index, prev_crc=crc(frames[-1]) if frames else 0, count=1,
                committed_upto=index - 1, payload=pack_records([run]),
            )[0]
        )  # fmt: skip
    return frames


def crc(frame: bytes) -> int:
    return int.from_bytes(frame[60:64], "little")


LOG = log_of(20)


class World:
    """A directory, the store in it, and writers that are connected to it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.ended: list[str] = []
        self.said: list[list[Any]] = []
        monkeypatch.setattr(store_actor, "settle_process", lambda: None)
        monkeypatch.setattr(store_actor, "end_process", self.ended.append)
        monkeypatch.setattr(store_actor, "CHECK_S", 0.02)
        monkeypatch.setattr(store_reader, "LOOK_AGAIN_S", 0.01)

    async def start(self) -> StoreActor:
        config = StoreConfig("store-1", str(self.directory), "c", LOG_ID, 2, TOKEN, "127.0.0.1:0", allow_tmpfs=True)
        self.store = StoreActor(config)
        await self.store.ready()
        return self.store

    async def crash(self) -> None:
        """Nothing is said any more, and the directory is free: the nearest to `kill -9` that one process can do."""
        await self.store._server.close()
        self.store._lock.release()
        if self.store._acceptor is not None:
            self.store._acceptor.close()

    async def writer(self) -> Connection:
        return await connect(
            self.store._server.address, TOKEN, on_message=lambda _, said: self.said.append(said), on_closed=lambda *_: None
        )

    async def heard(self, message: list[Any]) -> None:
        await self.until(lambda: message in self.said)

    @staticmethod
    async def until(condition: Callable[[], Any]) -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    def run_now(scenario: Scenario) -> None:
        asyncio.run(asyncio.wait_for(scenario(World(tmp_path / "store", monkeypatch)), DEADLINE_S))

    return run_now


async def join(writer: Connection, epoch: int, number: int, first: int, *kept: list[int], name: str = "w") -> list[Any]:
    prev_crc = crc(LOG[first - 2]) if first > 1 else 0
    answer: list[Any] = await writer.request(Say.JOIN, 0, epoch, name, "h:1", number, first, prev_crc, list(kept))
    return answer


# ---------------------------------------------------------------------- joining and filling


def test_g2_store_that_is_taken_in_holds_and_serves_the_whole_log_in_the_end_and_after_a_crash(
    run: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        writer = await world.writer()
        assert await join(writer, 2, 1, 11) == [0, True, 11, [[10, 0, crc(LOG[9])]]]
        writer.send([Say.APPEND, 0, 2, "w", LOG[10:]])
        await world.heard([Say.STORED, 0, 2, 20, crc(LOG[19])])
        assert await writer.request(Say.FRAMES, 0, 11, 12) == LOG[10:12]
        assert await writer.request(Say.FRAMES, 0, 10, 12) == []
        for say, *rest in ((Say.STATES, []), (Say.RUNS, "s", 0, 10), (Say.RECALL, "s", SENDER, 1, 1)):
            with pytest.raises(Refused, match="from frame 11 on only") as refused:
                await writer.request(say, 0, 19, *rest)
            assert refused.value.code == Code.UNAVAILABLE
        assert await writer.request(Say.FILL, 0, 2, "w", LOG[5:10]) == 6
        assert await writer.request(Say.FILL, 0, 2, "w", LOG[:4]) == 6
        assert await writer.request(Say.FRAMES, 0, 1, 9) == [], "what does not lie right below the base was not taken"
        assert (await world.store.status())["partitions"][0]["base"] == 6
        assert await writer.request(Say.FILL, 0, 2, "w", LOG[:5]) == 1
        for _ in range(2):
            assert await writer.request(Say.FRAMES, 0, 1, 20) == LOG
            states = await writer.request(Say.STATES, 0, 20, [["s", [SENDER], []], ["unknown", [], []]])
            assert states[1:] == [20, [[20, {SENDER: 20}, True, {}, False], [0, {}, True, {}, False]]]
            runs = await writer.request(Say.RUNS, 0, 20, "s", 4, 2)
            assert [body for one in runs for body in one[7]] == [b"message 5", b"message 6"]
            assert await writer.request(Say.FENCE, 0, 2, "w", "h:1") == [
                19,
                True,
                1,
                [[i, 1, crc(LOG[i - 1])] for i in (19, 20)],
            ]
            await world.crash()
            await world.start()
            writer = await world.writer()

    run(scenario)


def test_g9_join_and_fill_of_a_deposed_writer_are_refused(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        old, new = await world.writer(), await world.writer()
        await join(old, 2, 1, 11)
        await join(new, 3, 1, 11, name="v")
        for request in (join(old, 2, 2, 11), old.request(Say.FILL, 0, 2, "w", LOG[:1])):
            with pytest.raises(Refused, match="epoch 2 is too low") as refused:
                await request
            assert refused.value.code == Code.DEPOSED
        await join(new, 3, 3, 11, name="v")
        with pytest.raises(Refused) as late:
            await join(new, 3, 2, 11, name="v")
        assert late.value.code == Code.NOT_CHAINED

    run(scenario)


@pytest.mark.parametrize(
    "message",
    [
        [Say.JOIN, 1, 0, 2, "w", "h:1", 0, 11, 5, []],
        [Say.JOIN, 1, 0, 2, "w", "h:1", 1, 0, 5, []],
        [Say.JOIN, 1, 0, 2, "w", "h:1", 1, 1, 5, []],
        [Say.JOIN, 1, 0, 2, "w", "h:1", 1, 11, 1 << 32, []],
        [Say.JOIN, 1, 0, 2, "w", "h:1", 1, 11, 5, [[3, 2]]],
        [Say.JOIN, 1, 0, 2, "w", "h:1", 1, 11, 5, [[3]]],
        [Say.JOIN, 1, 2, 2, "w", "h:1", 1, 11, 5, []],
        [Say.FILL, 1, 0, 2, "w", ["text"]],
        [Say.FILL, 1, 2, 2, "w", []],
        [Say.HEARD, 1, 2],
        [Say.INSPECT, 1, 0, 2],
    ],
)
def test_message_of_unknown_shape_ends_the_connection_and_nothing_else(
    run: Callable[[Scenario], None], message: list[Any]
) -> None:
    async def scenario(world: World) -> None:
        store = await world.start()
        writer = await world.writer()
        writer.send(message)
        await world.until(lambda: writer.closed)
        assert store._held.state.partition(0).fence.epoch == 0
        assert await (await world.writer()).request(Say.PING) == ["store", "store-1"]

    run(scenario)


# ---------------------------------------------------------------------- who is heard


def test_g11_store_says_how_long_it_has_not_heard_the_writer(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        store = await world.start()
        writer, spare = await world.writer(), await world.writer()
        assert await spare.request(Say.HEARD, 0) == [0, -1]
        await writer.request(Say.FENCE, 0, 2, "w", "h:1")
        epoch, silent_ms = await spare.request(Say.HEARD, 0)
        assert (epoch, silent_ms < 1000) == (2, True)
        store._heard[0] = (store._heard[0][0], store._loop.time() - 5)
        await spare.request(Say.INSPECT, 0)
        await spare.request(Say.INSPECT, 0, 2, "another", False)
        with pytest.raises(Refused):
            await spare.request(Say.FENCE, 0, 1, "another", "h:1")
        assert 5000 <= (await spare.request(Say.HEARD, 0))[1] < 20_000, "what others say is not the writer's voice"
        assert await writer.request(Say.INSPECT, 0, 2, "w", True) == [2, 0]
        assert 0 <= (await spare.request(Say.HEARD, 0))[1] < 1000
        store._heard[0] = (store._heard[0][0], store._loop.time() - 5)
        writer.send([Say.APPEND, 0, 2, "w", LOG[:1]])
        await world.heard([Say.STORED, 0, 2, 1, crc(LOG[0])])
        assert 0 <= (await spare.request(Say.HEARD, 0))[1] < 1000
        writer.close()
        await world.until(lambda: store._heard[0][0].closed)
        assert await spare.request(Say.HEARD, 0) == [2, -1]

    run(scenario)


# ---------------------------------------------------------------------- indexes, the register, the directory


def test_index_is_kept_up_in_the_background_up_to_what_is_known_committed(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        store = await world.start()
        writer = await world.writer()
        await writer.request(Say.FENCE, 0, 2, "w", "h:1")
        writer.send([Say.APPEND, 0, 2, "w", LOG])
        await world.heard([Say.STORED, 0, 2, 20, crc(LOG[19])])
        reader = store._reader
        assert reader is not None
        await world.until(lambda: 0 in reader._indexes.indexes and reader._indexes.of(0).upto == 19)
        await asyncio.sleep(0.05)
        assert reader._indexes.of(0).upto == 19, "frame 20 is not known to be committed"

    run(scenario)


def test_new_store_knows_no_session(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        assert await (await world.writer()).request(Say.STATES, 0, 0, [["s", [], []]]) == [0, 0, [[0, {}, True, {}, False]]]

    run(scenario)


def test_register_is_served_while_the_journal_is_damaged_or_full(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        store = await world.start()
        acceptor, number, _ = await (await world.writer()).request(Say.CHARTER)
        assert (len(acceptor), number) == (32, 0)
        store._full = True
        assert (await (await world.writer()).request(Say.CHARTER))[0] == acceptor
        await world.crash()
        (world.directory / "journal-00000001.trl").unlink()
        with pytest.raises(Corrupt):
            await world.start()
        again = await world.writer()
        assert (await again.request(Say.CHARTER))[0] == acceptor
        with pytest.raises(Refused, match="refuses to serve"):
            await again.request(Say.INSPECT, 0)

    run(scenario)


@pytest.mark.parametrize("how", ["gone", "replaced", "store.json replaced"])
def test_store_whose_directory_is_gone_or_another_one_ends(run: Callable[[Scenario], None], how: str) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        await asyncio.sleep(0.1)
        assert world.ended == []
        if how == "store.json replaced":
            shutil.copy(world.directory / "store.json", world.directory / "other")
            (world.directory / "other").rename(world.directory / "store.json")
        else:
            world.directory.rename(world.directory.with_name("moved away"))
        if how == "replaced":
            shutil.copytree(world.directory.with_name("moved away"), world.directory)
        await world.until(lambda: world.ended)
        assert "is gone, or another one" in world.ended[0]

    run(scenario)


def test_damaged_store_whose_directory_is_moved_away_ends_too_and_begins_anew(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        first = (await world.start())._info["store"]
        await world.crash()
        (world.directory / "journal-00000001.trl").unlink()
        with pytest.raises(Corrupt):
            await world.start()
        await asyncio.sleep(0.1)
        ended = list(world.ended)
        world.directory.rename(world.directory.with_name("moved away"))
        await world.until(lambda: len(world.ended) > len(ended))
        await world.store._server.close()
        assert (await world.start())._info["store"] != first

    run(scenario)
