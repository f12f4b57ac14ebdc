"""Ray Data's view of sessions: read tasks.

Owns how Ray is told of them. It must not know how tasks are spread (``reading``), nor what blocks are (``blocks``). Imports Ray
Data, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trilogue.cluster.on_ray.blocks import PLAIN, Part, read

CPUS_EACH = 0.5
"""A task waits for a store about half of the time."""


class SessionsDatasource(Datasource):
    """One read task for each part."""

    def __init__(self, parts: list[Part], columns: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts, self._columns = parts, columns

    def get_name(self) -> str:
        """What Ray calls it in its progress."""
        return "Sessions"

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows before it is read."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """All parts, however many tasks are wished for: a session's order is worth more."""
        unknown = partial(BlockMetadata, num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read, part, self._columns), unknown()) for part in self._parts]


def dataset(assigned: list[tuple[str, list[Part]]], columns: list[str]) -> ray.data.Dataset:
    """All parts; those of a node (its id; "": any) on that node, if it has room."""
    datasets: list[ray.data.Dataset] = [
        ray.data.read_datasource(
            SessionsDatasource(parts, columns), override_num_blocks=len(parts), num_cpus=CPUS_EACH, **_on(node)
        )
        for node, parts in assigned
    ]
    if not datasets:
        nothing: ray.data.Dataset = ray.data.from_arrow(PLAIN.empty_table().select(columns))
        return nothing
    return datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]


def _on(node: str) -> dict[str, Any]:
    """The arguments that let tasks run on a node if that is possible."""
    if not node:
        return {}
    if "label_selector" in signature(ray.data.read_datasource).parameters:
        return {"label_selector": {"ray.io/node-id": node}, "fallback_strategy": [{"label_selector": {}}]}
    return {"ray_remote_args": {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}}


def _read(part: Part, columns: list[str]) -> Iterator[pa.Table]:
    """What a part's task does."""
    return read(part, columns, is_again=_attempt() != 0)


def _attempt() -> int | None:
    """How often Ray has begun the task that runs here before; nobody knows, where this Ray does not say it."""
    core: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
    number: Callable[[], int] | None = getattr(core, "get_current_task_attempt_number", None)
    return number() if number is not None else None
