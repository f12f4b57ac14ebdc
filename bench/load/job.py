"""What the load generator is told, and what it says: the words between `driver` and `load`.

Owns the shapes that cross between the two processes, as JSON. Invariants: the token travels on standard input only, never in
arguments that every user of the machine can read; each line that the generator writes is one `Saying`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["throughput", "latency", "replay"]


class _Crossing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(_Crossing):
    """One load on one system. `messages` are measured; `warm_up_messages` come before them and are verified all the same."""

    kind: Kind
    address: str
    token: str | None = Field(default=None, repr=False)
    prefix: str
    copies: int
    seed: int
    messages: int = 0
    warm_up_messages: int = 0
    sessions: int = 1
    body_bytes: int = 256
    burst_messages: int = 256
    file: str | None = None
    outbox: str | None = None
    pids: dict[str, list[int]] = {}


class Found(_Crossing):
    """The verdict over all sessions."""

    lost: int
    duplicated: int
    reordered: int
    examples: list[str]


class Report(_Crossing):
    """What was measured. `histogram` is `Histogram.encode`'s; `acked_at_s` are the moments of the sampled acks."""

    messages: int
    sessions: int
    senders: int
    seconds: float
    histogram: str
    sampled_every: int
    acked_at_s: list[float]
    cpu_s: dict[str, float | None]
    messages_by_session: dict[str, int]
    found: Found


class Saying(_Crossing):
    """One line of the generator's output: where it is, or its report, or why there is none."""

    phase: str = ""
    done: int = 0
    total: int = 0
    report: Report | None = None
    error: str = ""
    usage: bool = False
