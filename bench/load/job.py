"""What the load generator is told, and what it says: the words between `driver` and `load`.

Owns the shapes that cross between the two processes, as JSON. Invariants: the token travels on standard input only, never in
arguments that every user of the machine can read; each line that the generator writes is one `Saying`. The first line that it
reads is its `Job`; a `failover` job ends with a second one, an `Ending`. Moments in nanoseconds are those of the machine's
monotonic clock, which is the same in every process.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal[
    "throughput", "latency", "replay", "failover", "fanout", "catchup", "fill", "first", "cold", "look", "table", "export"
]


class _Crossing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(_Crossing):
    """One load on one system. `messages` are measured; `warm_up_messages` come before them and are verified all the same.

    A `failover` sends `messages_per_s` until it is told to end, with no more than `in_flight_max` in flight. A `fanout` has
    `readers` in `processes`, and sends at `messages_per_s` or (0) as fast as the slowest reader takes it. A `catchup` has one
    reader that is `messages` behind, and a writer that sends `messages_per_s`, `alone_s` seconds of it without the reader.
    A `fill` gives each session its share of the messages; of the same sessions a `cold` asks `asked` twice, and a `look` reads
    those and `read_back` more. A `table` fills one session, and reads it; an `export` writes what a `fill` has sent to `file`.
    """

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
    messages_per_s: int = 0
    in_flight_max: int = 0
    readers: int = 1
    processes: int = 1
    alone_s: float = 0.0
    asked: int = 0
    read_back: int = 0
    partitions: int = 1
    file: str | None = None
    outbox: str | None = None
    pids: dict[str, list[int]] = {}


class Fault(_Crossing):
    """One process that was killed, or paused, between the moments `before_ns` and `after_ns`, and the partitions it served.

    `epoch` is the writer's that it was, 0 if it was none.
    """

    before_ns: int
    after_ns: int
    partitions: list[int]
    epoch: int = 0
    paused: bool = False


class Ending(_Crossing):
    """The end of a `failover`, and all that was done to the system meanwhile."""

    faults: list[Fault]


class Found(_Crossing):
    """The verdict over all sessions."""

    lost: int
    duplicated: int
    reordered: int
    examples: list[str]


class Felt(_Crossing):
    """How one fault was felt: nanoseconds until its stall was over, the epoch of the ack that ended it, and how many acks came
    in each step of `Strips` around it (fewer steps where the next fault, or the end of the run, came earlier)."""

    stall_ns: int
    epoch: int
    acks: list[int]


class Strips(_Crossing):
    """The common axis of the acks around each fault: steps of `step_ms` from `before_ms` before it."""

    step_ms: float
    before_ms: float
    steps: int


class Outages(_Crossing):
    """How a system that was hurt was felt: fault by fault, and over the whole run.

    `epochs` are those of the acks of each partition. `stale` counts acks by a writer that could not have been one any more.
    """

    felt: list[Felt]
    strips: Strips
    longest_gap_ms: float
    epochs: list[list[int]]
    stale: int
    stale_examples: list[str]


class FanOut(_Crossing):
    """What readers got: how many deliveries in how many seconds, how late (`Histogram.encode`'s), and what their tallies found.

    `behind_messages_max` is how far the slowest of them was behind what had been acked. `writer_alone` are the writer's
    latencies before there was a reader that has to catch up.
    """

    deliveries: int
    seconds: float
    lags: str
    behind_messages_max: int
    readers_cpu_s: float
    found: Found
    writer_alone: str = ""


class Cold(_Crossing):
    """How long the first page, and the first ack, of sessions took that nobody had asked for (`Histogram.encode`'s)."""

    history: str
    send: str


class Bulk(_Crossing):
    """How long each table took, or the export, by how much its process grew, and what it wrote."""

    seconds: list[float]
    grew_mib: float = 0.0
    files: int = 0
    file_bytes: int = 0


class Report(_Crossing):
    """What was measured. `histogram` is `Histogram.encode`'s; `acked_at_s` are the moments of the sampled acks; `ended_ns` is
    when the one ack of a `first` came."""

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
    outages: Outages | None = None
    fan: FanOut | None = None
    cold: Cold | None = None
    bulk: Bulk | None = None
    ended_ns: int = 0


class Saying(_Crossing):
    """One line of the generator's output: where it is, or its report, or why there is none.

    `acked_upto_ns` says of each partition when the newest of its acked messages was handed over (0: none was).
    """

    phase: str = ""
    done: int = 0
    total: int = 0
    acked_upto_ns: list[int] = []
    report: Report | None = None
    error: str = ""
    usage: bool = False
