"""Any mix of appends, fences, take-overs, torn writes and openings replays what was appended (G2, G9)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from trilogue.actors.journal import FenceRecord

Store = Any  # the class of conftest.py, which cannot be imported here
PARTITIONS = 3


class JournalMachine(RuleBasedStateMachine):
    """Drives one store; its model is the book, and per partition an epoch, a length and what is committed."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.store.open()
        self.epochs = [1] * PARTITIONS
        self.frame_epochs: list[list[int]] = [[] for _ in range(PARTITIONS)]
        self.committed = [0] * PARTITIONS
        self.incarnation = 1

    def next_frame(self, partition: int, size: int, index: int = 0) -> bytes:
        epochs = self.frame_epochs[partition]
        if index:
            del epochs[index - 1 :]
        epochs.append(self.epochs[partition])
        frame: bytes = self.store.frame(
            partition,
            epoch=self.epochs[partition],
            committed=self.committed[partition],
            body=bytes([size % 251]) * size,
            index=index,
        )
        return frame

    @rule(runs=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 400)), min_size=1, max_size=6))
    def append_frames(self, runs: list[tuple[int, int]]) -> None:
        self.store.append(*[self.next_frame(partition, size) for partition, size in runs])

    @rule(partition=st.integers(0, PARTITIONS - 1), share=st.floats(0, 1))
    def commit(self, partition: int, share: float) -> None:
        last = len(self.frame_epochs[partition])
        self.committed[partition] = max(self.committed[partition], int(last * share))

    @rule(partition=st.integers(0, PARTITIONS - 1), back=st.integers(0, 3), size=st.integers(0, 50))
    def take_over(self, partition: int, back: int, size: int) -> None:
        self.epochs[partition] += 1
        epoch = self.epochs[partition]
        last = len(self.frame_epochs[partition])
        index = max(self.committed[partition], last - back) + 1
        self.store.append(
            FenceRecord(partition, epoch, f"writer-{epoch}", "127.0.0.1:1"),
            self.next_frame(partition, size, index if index <= last else 0),
        )

    @rule()
    def reopen(self) -> None:
        replayed = self.store.open()
        assert [key for key in replayed if key[0] != "incarnation"] == self.expected()
        assert [key for key in replayed if key[0] == "incarnation"] == [
            ("incarnation", k) for k in range(2, self.incarnation + 1)
        ]

    @rule(rest=st.binary(min_size=1, max_size=200))
    def crash_in_a_write(self, rest: bytes) -> None:
        status = self.store.open_journal.status()
        path = self.store.path(status["files"])
        end = max((p.offset + p.size for _, p in self.store.book if p.file == status["files"]), default=0)
        self.store.close()
        raised = bool(end and rest.strip(b"\0") and end + len(rest) <= path.stat().st_size)
        if raised:
            with open(path, "r+b") as file:
                file.seek(end)
                file.write(rest)
            self.incarnation += 1
        replayed = self.store.open()
        assert [key for key in replayed if key[0] != "incarnation"] == self.expected()
        assert self.store.open_journal.incarnation == self.incarnation
        if raised:
            assert replayed[-1] == ("incarnation", self.incarnation)
            # The record of the new incarnation lies behind what the book knows of: begin a new line behind it.
            self.append_frames([(0, 1)])

    def expected(self) -> list[Any]:
        keys: list[Any] = self.store.keys
        return keys

    @invariant()
    def last_frame_can_be_read(self) -> None:
        frames = [written for written in self.store.book if written.key[0] == "frame"]
        if frames:
            assert frames[-1].key[5] in self.store.open_journal.read(frames[-1].position)


def test_any_history_replays_as_it_was_appended(make_store: Callable[..., Store], fast_directory: Path) -> None:
    store_class = type(make_store())
    directories: list[Path] = []

    class Machine(JournalMachine):
        def __init__(self) -> None:
            directories.append(Path(tempfile.mkdtemp(dir=fast_directory)))
            super().__init__(store_class(directories[-1], file_bytes=2048))

        def teardown(self) -> None:
            replayed = self.store.open()
            assert [key for key in replayed if key[0] != "incarnation"] == self.expected()
            self.store.close()
            shutil.rmtree(directories[-1])

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]),
    )
