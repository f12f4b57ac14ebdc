"""What a benchmark says for programs: one object whose keys stay stable (design §15).

Owns the keys and their units. It must not know how a figure was come by. Invariants: `Result` has exactly the keys of
design §15, in its order; a row has the same keys (but `rows`) and `partitions` and `nodes`; `failover` has some more, after
them; a figure that could not be measured (the processor time of a role on another machine) is null, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    @property
    def failed(self) -> bool:
        """Whether something was found that makes all figures of the run worthless."""
        return bool(self.lost or self.duplicated or self.reordered)


class Row(Figures):
    """One measurement of several."""

    partitions: int
    nodes: int


class Result(Figures):
    """What `--json` writes."""

    rows: list[Row]


class Spread(_Strict):
    """The median and the longest."""

    p50: float
    max: float


class Stall(_Strict):
    """One fault: who was hurt, the partitions that it served, and how that was felt.

    `stall_ms` runs from the fault to the first ack of a message that was handed over afterwards; that ack was of `epoch`.
    `victim_epoch` is null for who was no writer. `whole_again_s` runs until a fault could be borne again: all actors and copies
    back (after a pause: since its end).
    """

    victim: str
    victim_epoch: int | None
    partitions: list[int]
    stall_ms: float
    epoch: int
    whole_again_s: float


class FailoverResult(Result):
    """What `--json` writes for `failover`.

    `longest_gap_ms` is between two acks of one partition, over the whole run; `epochs` are those of each partition's acks;
    `stale_acks` came from a writer that could not have been one any more.
    """

    kills: int
    stall_ms: Spread
    stalls: list[Stall]
    whole_again_s: Spread
    longest_gap_ms: float
    epochs: list[list[int]]
    stale_acks: int

    @property
    def failed(self) -> bool:
        """As for every run; a stale ack is as bad as a lost message."""
        return super().failed or self.stale_acks > 0


class DeliveryCpuUs(_Strict):
    """Microseconds of processor time a delivery, summed over all processes of the role."""

    writer: float | None
    readers: float | None
    session: float | None
    store: float | None


class ReadingResult(Result):
    """What `--json` writes for `fanout` and `catchup`, beside the rest.

    `deliveries` are those of the measured span, which ends with the slowest reader's last one. `lag_ms` runs from a message's
    hand-over until a reader's code has it: of the oldest message of each batch that a reader took. `behind_messages_max` is how
    far the slowest reader was behind what had been acked.
    """

    readers: int
    processes: int
    deliveries: int
    deliveries_per_s: float
    lag_ms: LatencyMs
    behind_messages_max: int
    cpu_us_per_delivery: DeliveryCpuUs


class CatchupResult(ReadingResult):
    """`latency_ms` is the writer's while the reader caught up, and `writer_alone_ms` the same writer's before that."""

    writer_alone_ms: LatencyMs


class Memory(_Strict):
    """What one process has for itself alone (USS), in MiB: in the empty system, with all sessions when it is idle again, after
    the restart with all sessions, and after these were read."""

    name: str
    role: str
    empty_mib: float
    full_mib: float
    restarted_mib: float
    read_mib: float

    @property
    def grew_mib(self) -> float:
        """By how much it is larger than in the empty system, at most."""
        return round(max(self.full_mib, self.restarted_mib, self.read_mib) - self.empty_mib, 1)


class Restart(_Strict):
    """Seconds from `trilogue up`, after everything was killed, to the first ack: with an empty log, and with all sessions."""

    empty: float
    full: float


class SessionsResult(Result):
    """What `--json` writes for `sessions`. Its rate and `latency_ms` are those of filling the sessions.

    `session_grew_mib` and `store_grew_mib` are those of the process that grew most, of each role, at any of the moments in
    `memory`. `idle_after_s` is how long the actors were busy after the last ack. `asked_sessions` were read, and as many others
    sent to, for the first time after the restart; of `read_back_sessions` every message was compared, and of all sessions
    the head.
    """

    sessions: int
    memory: list[Memory]
    session_grew_mib: float
    store_grew_mib: float
    idle_after_s: float
    restart_s: Restart
    cold_history_ms: LatencyMs
    cold_send_ms: LatencyMs
    asked_sessions: int
    read_back_sessions: int
    read_back_messages: int


class TableResult(Result):
    """What `--json` writes for `table`. `messages` are those of all `tables` together, and `seconds` too: from each call to its
    table. `latency_ms` is that of whole tables."""

    tables: int
    table_s: Spread


class ExportResult(Result):
    """What `--json` writes for `export`. `grew_mib` is the greatest resident size of the exporting process, above what it had
    when it began; `latency_ms` is 0."""

    grew_mib: float
    files: int
    file_bytes: int


class CrashFigures(_Strict):
    """What kills of the recipe's sender cost: `kills_between` exactly between SET NX and XADD, the others at random.

    `lost_for_good` of the `messages` are in no stream, while their dedupe key says that they are: a retry is answered
    "duplicate" (`told_duplicate` were). `lost_between` are those of the exact kills. `holes` are numbers that no message has.
    """

    kills: int
    kills_between: int
    messages: int
    told_duplicate: int
    lost_for_good: int
    lost_between: int
    holes: int


class Beside(_Strict):
    """trilogue's own figures for the same load, measured right after it, and verified."""

    messages_per_s: float
    latency_ms: LatencyMs
    lonely_ms: LatencyMs
    cpu_us_per_message: CpuUs


class RecipeResult(Result):
    """What `--json` writes for `redis-recipe`. `server` names the Redis. `latency_ms` is that of batches, `lonely_ms` that of
    one message at a time. Of the processor time, `store` is that of all Redis servers; there is no session's: 0.

    `crash` is the second run, null if it was left out; its losses do not make the run a failed one. `unexplained` counts what
    no crash of a sender can have done, which does. `trilogue` is null unless it was asked for.
    """

    server: str
    lonely_ms: LatencyMs
    crash: CrashFigures | None
    unexplained: int
    trilogue: Beside | None

    @property
    def failed(self) -> bool:
        """As for every run; or the second run is not to be believed."""
        return super().failed or self.unexplained > 0


def spread(values: Sequence[float]) -> Spread:
    """Median (of an even number, the higher of the two in the middle: it occurred, and it does not flatter) and longest."""
    ordered = sorted(values)
    return Spread(p50=ordered[len(ordered) // 2], max=ordered[-1])
