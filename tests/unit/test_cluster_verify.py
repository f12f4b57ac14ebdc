"""`trilogue verify` on a system that runs on while it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.messages import FLOOR, TRIM
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands import verify
from trilogue.cluster.commands.judge import Findings, PartitionJudge
from trimmed_store import LOG_ID, SMALL, Store, filled

PAGE_FRAMES = 10


class Connected:
    """A store that is asked as over its stream; `meanwhile` happens after its first page."""

    def __init__(self, store: Store, meanwhile: Callable[[], Any]) -> None:
        self._store, self._meanwhile = store, [meanwhile]
        self.behind: list[int] = []

    async def request(self, say: Say, partition: int, *arguments: int) -> Any:
        if say == Say.INSPECT:
            return [1, self._store.places.last_index]
        first, last = arguments
        self.behind += range(max(first, 201), min(last, first + PAGE_FRAMES - 1) + 1)
        frames = [self._store.frame(index) for index in range(first, min(last, first + PAGE_FRAMES - 1) + 1)]
        while self._meanwhile:
            self._meanwhile.pop()()
        return frames


class Quiet:
    def advance(self, part: str, done: int, total: int) -> None:
        pass


def problems(tmp_path: Path, meanwhile: Callable[[Store], Any]) -> tuple[list[str], list[int]]:
    """What is found wrong with two copies while this happens to one of them; which frames behind the end were read."""
    stores = {f"store-{k}": filled(tmp_path / f"store-{k}") for k in (1, 2)}
    first = stores["store-1"]
    connections = {name: Connected(store, lambda s=store: s is first and meanwhile(s)) for name, store in stores.items()}
    findings = Findings()
    firsts = dict.fromkeys(stores, 1)
    judge = PartitionJudge(0, 1, firsts, LOG_ID, SMALL.frame_bytes_max, findings)
    asked: Any = connections
    asyncio.run(verify._read_partition(judge, 0, firsts, asked, 200, findings, [], Quiet()))
    for store in stores.values():
        store.journal.close()
    return [problem.kind for problem in findings.problems], [index for one in connections.values() for index in one.behind]


@pytest.mark.parametrize("record", [(FLOOR, 150, 9), (TRIM, "s", 301, 9)])
def test_what_is_trimmed_while_a_system_is_verified_is_not_missed_G8(tmp_path: Path, record: Any) -> None:
    def trim(store: Store) -> None:
        store.append()
        store.append(record)
        store.thin()

    assert problems(tmp_path, trim)[0] == []


def test_frames_behind_the_end_are_not_read_where_nothing_is_gone(tmp_path: Path) -> None:
    assert problems(tmp_path, lambda store: [store.append() for _ in range(20)]) == ([], [])
