"""What a benchmark says for programs: one object whose keys stay stable (design §15).

Owns the keys and their units. It must not know how a figure was come by. Invariants: `Result` has exactly the keys of
design §15, in its order; a row has the same keys (but `rows`) and `partitions` and `nodes`; a figure that could not be
measured (the processor time of a role on another machine) is null, never 0.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatencyMs(_Strict):
    """Milliseconds from hand-over to ack: the percentiles 50, 99 and 99.9, and the longest."""

    p50: float
    p99: float
    p999: float
    max: float


class CpuUs(_Strict):
    """Microseconds of processor time a message, user and system, summed over all processes of the role."""

    client: float | None
    session: float | None
    store: float | None

    @property
    def total(self) -> float | None:
        """All roles together; None if one of them could not be measured."""
        parts = (self.client, self.session, self.store)
        return None if None in parts else sum(part for part in parts if part is not None)


class FloorFigures(_Strict):
    """What no system on this machine can beat, measured in the same run."""

    latency_ms_p50: float
    messages_per_s: float


class Figures(_Strict):
    """One measurement. `seconds` runs from the first hand-over to the last ack."""

    command: str
    commit: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    messages: int
    seconds: float
    messages_per_s: float
    latency_ms: LatencyMs
    lost: int
    duplicated: int
    reordered: int
    cpu_us_per_message: CpuUs
    floor: FloorFigures


class Row(Figures):
    """One measurement of several."""

    partitions: int
    nodes: int


class Result(Figures):
    """What `--json` writes."""

    rows: list[Row]
