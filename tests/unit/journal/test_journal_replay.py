"""A store that is opened again holds what it held: frames, fences, joins, fills, in any order (G2, G9)."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilogue.actors.journal import IncarnationRaised, Journal, open_identity
from trilogue.actors.journal.summary import summarise
from trilogue.actors.protocol.frames import Header, decode_frame, encode_frame
from trilogue.actors.protocol.holdings import PartitionState
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.store import (
    AppendAsked,
    FenceAsked,
    FillAsked,
    JoinAsked,
    SyncFirst,
    Tell,
    WriteFrame,
)
from trilogue.actors.store.actor import record_of
from trilogue.actors.store.contents import StoreContents
from trilogue.actors.store.places import FramePlaces

LOG_ID, LENGTH, PARTITIONS = 7, 16, 2


def _log(partition: int, epoch: int, common: list[bytes]) -> list[bytes]:
    frames = list(common)
    for index in range(len(common) + 1, LENGTH + 1):
        prev_crc = int.from_bytes(frames[-1][60:64], "little") if frames else 0
        frames.append(
            encode_frame(
                log_id=LOG_ID, partition=partition, epoch=epoch, index=index, prev_crc=prev_crc, count=0,
                committed_upto=max(0, index - 8), payload=bytes([epoch]) * index,
            )[0]
        )  # fmt: skip
    return frames


COMMON = [_log(partition, 1, []) for partition in range(PARTITIONS)]
LOGS = [[COMMON[p], _log(p, 2, COMMON[p][:3]), _log(p, 3, COMMON[p][:3])] for p in range(PARTITIONS)]
"""Each partition's log, and what two later epochs made of its end."""

INDEXES = st.integers(1, LENGTH)
INTERVALS = st.lists(st.tuples(INDEXES, INDEXES).map(lambda pair: (min(pair), max(pair))), max_size=2)
PLACES = (st.integers(0, PARTITIONS - 1), st.sampled_from([0, 0, 1, 2]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), *PLACES, st.sampled_from([0, 0, 0, 1, 2, 4]), st.integers(1, 6)),
        st.tuples(st.just("fill"), *PLACES, INDEXES, st.sampled_from([-1, 1]), st.integers(1, 6)),
        st.tuples(st.just("fill below"), *PLACES, st.integers(1, 12)),
        st.tuples(st.just("join"), *PLACES, INDEXES, INTERVALS),
        st.tuples(st.just("take over"), *PLACES),
        st.tuples(st.just("reopen")),
    ),
    min_size=8,
    max_size=40,
)


def crc_before(frames: list[bytes], index: int) -> int:
    return int.from_bytes(frames[index - 2][60:64], "little") if index > 1 else 0


def contents(state: PartitionState) -> Any:
    pieces = [(piece.first, piece.prev_crc, list(piece.crcs.plain()), list(piece.epochs.plain())) for piece in state.older]
    chain = state.chain
    return (
        (chain.first, chain.prev_crc, list(chain.crcs.plain()), list(chain.epochs.plain()), pieces),
        (state.last_index, state.last_crc, state.last_epoch),
        (state.fence, state.joins, state.committed_upto, state.own_from, state.certain),
    )


class Opened:
    """One opening of the journal: what it replayed, and what is decided and written from then on."""

    def __init__(self, directory: Path) -> None:
        self.contents = StoreContents(LOG_ID, DEFAULT_LIMITS)
        self.state = self.contents.state
        identity = open_identity(directory, cluster="c", log_id=LOG_ID, fresh_store="ab" * 16)
        self.journal = Journal.open(directory, identity, DEFAULT_LIMITS, self._replay, file_bytes=4096, summaries=True)
        self._waiting: list[Any] = []

    @property
    def places(self) -> dict[int, FramePlaces]:
        return {partition: self.contents.places.get(partition) or FramePlaces() for partition in range(PARTITIONS)}

    def summarise(self) -> None:
        """As a store does with its closed files, after a while: every other one is done."""
        for number in self.journal.closed_files()[::2]:
            deque(summarise(self.journal.directory, number, self.journal.identity))

    def _replay(self, entry: Any) -> None:
        assert not isinstance(entry, IncarnationRaised), "nothing was damaged"
        self.contents.replay(entry)

    def decide(self, event: Any) -> None:
        for effect in self.state.handle(event):
            if isinstance(effect, SyncFirst):
                self.flush()
            elif not isinstance(effect, Tell):
                self._waiting.append(effect)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.state.synced()
        records = [write.frame if isinstance(write, WriteFrame) else record_of(write) for write in waiting]
        self.contents.stored(waiting, self.journal.append(records))

    def step(self, step: tuple[Any, ...], epochs: list[int]) -> None:
        kind, partition, branch, *rest = step
        frames, state = LOGS[partition][branch], self.state.partition(partition)
        who = (partition, epochs[partition], f"w{epochs[partition]}")
        if kind == "take over":
            epochs[partition] += 1
            self.decide(FenceAsked(None, 1, partition, epochs[partition], f"w{epochs[partition]}", "a"))
            self.step(("append", partition, branch, state.last_index - max(state.committed_upto, 3), 3), epochs)
        elif kind == "join":
            first, intervals = rest
            self.decide(JoinAsked(None, 1, *who, "a", state.joins + 1, first, crc_before(frames, first), intervals))
        else:
            for index in self._indexes(state, kind, rest):
                if 1 <= index <= LENGTH and self._is_legal(state, kind, decode_frame(frames[index - 1], 1000)):
                    asked = [frames[index - 1]]
                    self.decide(AppendAsked(None, *who, asked) if kind == "append" else FillAsked(None, 1, *who, asked))

    @staticmethod
    def _indexes(state: PartitionState, kind: str, rest: list[int]) -> list[int]:
        if kind == "append":
            back, count = rest
            return [state.last_index + 1 - back + k for k in range(count)]
        if kind == "fill below":
            return [state.base - 1 - k for k in range(rest[0])]
        first, direction, count = rest
        return [first + k * direction for k in range(count)]

    @staticmethod
    def _is_legal(state: PartitionState, kind: str, header: Header) -> bool:
        """Whether a writer that keeps the rules may send this: the others break an invariant."""
        if kind != "append":
            return header.index >= state.base or not state.fill_problem(header)
        fits = state.base <= header.index <= state.last_index and header.prev_crc == state.crc_before(header.index)
        return not fits or state.crc_at(header.index) == header.header_crc or not state.problem(header)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_g2_replay_gives_the_same_holdings_and_places_as_the_running_store_had(
    fast_directory: Path, steps: list[tuple[Any, ...]]
) -> None:
    directory = Path(tempfile.mkdtemp(dir=fast_directory))
    try:
        opened = Opened(directory)
        epochs = [10] * PARTITIONS
        for partition in range(PARTITIONS):
            opened.decide(FenceAsked(None, 1, partition, 10, "w10", "a"))
        for step in [*steps, ("reopen",)]:
            if step[0] != "reopen":
                opened.step(step, epochs)
                continue
            opened.flush()
            opened.summarise()
            before, opened = opened, Opened(directory)
            before.journal.close()
            for partition in range(PARTITIONS):
                state, places = opened.state.partition(partition), opened.places[partition]
                assert contents(state) == contents(before.state.partition(partition))
                assert (places.base, places.last_index) == (state.base, state.last_index)
                for index in range(1, LENGTH + 2):
                    position, crc = places.at(index), state.crc_at(index)
                    assert position == before.places[partition].at(index)
                    assert (position is None) is (crc is None)
                    if position is not None:
                        header = decode_frame(opened.journal.read(position), 1000)
                        assert (header.index, header.header_crc, header.partition) == (index, crc, partition)
        opened.journal.close()
    finally:
        shutil.rmtree(directory)
