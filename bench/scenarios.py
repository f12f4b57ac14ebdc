"""The benchmarks themselves: what each one starts, sends and reports.

Owns the defaults of every `trilogue bench` command but the command line. It must not know how a load works or how a
system is started. Invariant: what a scenario returns was verified, and says what was found.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilogue.actors.protocol.errors import UsageError, counted
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.bench.driver import BURST_MESSAGES, Load, Run, measure
from trilogue.bench.failover import KINDS, PAUSE_S, Faults, Hurt
from trilogue.bench.floor.floor import COPIES, MESSAGE_BYTES, RATE_FRAME_BYTES, Floor, measure_floor
from trilogue.bench.load.conversation import read_conversation
from trilogue.bench.load.metrics import Histogram
from trilogue.bench.load.tally import STAMPED_BYTES_MIN
from trilogue.bench.load.workload import SESSIONS_MAX, Workload
from trilogue.bench.report.machine import commit, machine_facts
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import (
    CatchupResult,
    CpuUs,
    DeliveryCpuUs,
    FailoverResult,
    ReadingResult,
    Result,
    Row,
    Stall,
    spread,
)
from trilogue.bench.sessions import measure_sessions
from trilogue.bench.systems import Where, ray_nodes, scratch_directory, system
from trilogue.cluster.settings.directories import whole_path

THROUGHPUT_MESSAGES = 500_000
THROUGHPUT_SESSIONS = 64
BODY_BYTES = 256
LATENCY_MESSAGES = 5_000
LATENCY_WARM_UP_MESSAGES = 500
SCALE_MESSAGES = 300_000
SCALE_SESSIONS = 256
# A client that fills its outbox before it gives way makes batches of one size for any number of partitions; with small bursts
# more partitions mean smaller batches, and the rows would compare batch sizes.
SCALE_BURST_MESSAGES = DEFAULT_LIMITS.outbox_messages_max
WARM_UP_MESSAGES = 20_000
WARM_UP_SHARE = 10
PARTITIONS = 1
FANOUT_MESSAGES = 20_000
FANOUT_READERS = 1_000
FANOUT_PROCESSES = 10
READERS_MAX = 100_000
PROCESSES_MAX = 256
CATCHUP_MESSAGES = 1_000_000
CATCHUP_MESSAGES_PER_S = 1_000
CATCHUP_ALONE_S = 5.0
RATE_MAX = 1_000_000
MANY_SESSIONS = 1_000_000
MANY_SESSIONS_MIN = 100
FAILOVER_KILLS = 20
FAILOVER_KILLS_MAX = 500
FAILOVER_SESSIONS = 64
FAILOVER_MESSAGES_PER_S = 4_000
# Four seconds' worth: far more than a stall should hold up, and a quarter of the outbox.
FAILOVER_IN_FLIGHT_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result, what drew it up, and what was found in words."""

    result: Result
    examples: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    floor: Floor | None = None
    curves: dict[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def throughput(
    where: Where, progress: Progress, *, messages: int, sessions: int, body_bytes: int, outbox: str | None, seed: int
) -> Outcome:
    """As many messages as one client can send, a future for each."""
    Workload(messages, sessions, body_bytes, seed)
    with _new_outbox(outbox) as file, system(where, progress) as running:
        load = Load(
            kind="throughput",
            seed=seed,
            messages=messages,
            warm_up_messages=warm_up_of(messages),
            sessions=sessions,
            body_bytes=body_bytes,
            outbox=file,
            settings={
                "sessions": sessions,
                "body_bytes": body_bytes,
                "outbox": "file" if file else "memory",
                "burst_messages": BURST_MESSAGES,
            },
        )
        return _single(measure("throughput", load, running, progress))


def latency(where: Where, progress: Progress, *, messages: int, seed: int) -> Outcome:
    """One message in flight: how long from hand-over to ack."""
    Workload(messages, 1, BODY_BYTES, seed)
    with system(where, progress) as running:
        load = Load(
            kind="latency",
            seed=seed,
            messages=messages,
            warm_up_messages=LATENCY_WARM_UP_MESSAGES,
            body_bytes=BODY_BYTES,
            settings={"sessions": 1, "body_bytes": BODY_BYTES, "outbox": "memory", "in_flight": 1},
        )
        return _single(measure("latency", load, running, progress))


def replay(where: Where, progress: Progress, *, file: Path, seed: int) -> Outcome:
    """A real conversation: one gateway client speaks for all of its senders."""
    lines = read_conversation(file)
    sessions, senders = len({line.session for line in lines}), len({line.sender for line in lines})
    with system(where, progress) as running:
        settings = {"file": file.name, "sessions": sessions, "senders": senders, "outbox": "memory"}
        load = Load(kind="replay", seed=seed, file=str(file.absolute()), settings=settings)
        return _single(measure("replay", load, running, progress))


def failover(where: Where, progress: Progress, *, kills: int, kill: str, pause: bool, seed: int) -> Outcome:
    """One client that sends on and on, while one actor after another is killed: how long until messages are acked again."""
    kind = next((one for one in KINDS if one == kill), None)
    if kind is None:
        raise UsageError(f"--kill {kill}: one of {', '.join(KINDS)}")
    if not 1 <= kills <= FAILOVER_KILLS_MAX:
        raise UsageError(f"--kills {kills}: between 1 and {FAILOVER_KILLS_MAX}")
    # Ray tells whoever has started it of each of its workers that dies, at length, on standard output: we know who kills them.
    with contextlib.redirect_stdout(io.StringIO()), system(where, progress) as running:
        load = Load(
            kind="failover",
            seed=seed,
            sessions=FAILOVER_SESSIONS,
            body_bytes=BODY_BYTES,
            messages_per_s=FAILOVER_MESSAGES_PER_S,
            in_flight_max=FAILOVER_IN_FLIGHT_MAX,
            settings={
                "kill": kind,
                "pause_s": PAUSE_S if pause else 0,
                "sessions": FAILOVER_SESSIONS,
                "body_bytes": BODY_BYTES,
                "outbox": "memory",
                "offered_messages_per_s": FAILOVER_MESSAGES_PER_S,
                "in_flight_max": FAILOVER_IN_FLIGHT_MAX,
            },
        )
        faults = Faults(running, kind, kills, pause=pause, seed=seed)
        return _of_failover(measure("failover", load, running, progress, faults), faults.made)


def fanout(
    where: Where, progress: Progress, *, messages: int, readers: int, processes: int, body_bytes: int, rate: int, seed: int
) -> Outcome:
    """One session with many readers, who all follow it live."""
    Workload(messages, 1, body_bytes, seed)
    _within("--readers", readers, 1, READERS_MAX)
    _within("--processes", processes, 1, min(readers, PROCESSES_MAX))
    _within("--rate", rate, 0, RATE_MAX)
    _within("--body-bytes", body_bytes, STAMPED_BYTES_MIN, DEFAULT_LIMITS.body_bytes_max)
    settings = {"readers": readers, "processes": processes, "body_bytes": body_bytes, "offered_messages_per_s": rate or "all"}
    with system(where, progress) as running:
        load = Load(
            kind="fanout", seed=seed, messages=messages, warm_up_messages=min(warm_up_of(messages), 500), body_bytes=body_bytes,
            messages_per_s=rate, readers=readers, processes=processes, settings=settings,
        )  # fmt: skip
        return _of_reading(measure("fanout", load, running, progress), readers, processes)


def catchup(where: Where, progress: Progress, *, messages: int, body_bytes: int, rate: int, seed: int) -> Outcome:
    """One reader that is far behind, and a writer that goes on meanwhile."""
    Workload(messages, 1, body_bytes, seed)
    _within("--rate", rate, 1, RATE_MAX)
    _within("--body-bytes", body_bytes, STAMPED_BYTES_MIN, DEFAULT_LIMITS.body_bytes_max)
    settings = {"behind_messages": messages, "body_bytes": body_bytes, "offered_messages_per_s": rate}
    with system(where, progress) as running:
        load = Load(
            kind="catchup", seed=seed, messages=messages, body_bytes=body_bytes, messages_per_s=rate, alone_s=CATCHUP_ALONE_S,
            settings=settings,
        )  # fmt: skip
        return _of_reading(measure("catchup", load, running, progress), 1, 1)


def _of_reading(run: Run, readers: int, processes: int) -> Outcome:
    fan, cpu_s = run.report.fan, run.report.cpu_s
    assert fan is not None

    def each(used_s: float | None) -> float | None:
        return None if used_s is None else round(used_s / fan.deliveries * 1e6, 3)

    client_s = cpu_s["client"]
    figures: dict[str, Any] = dict(run.figures) | {
        "rows": [],
        "readers": readers,
        "processes": processes,
        "deliveries": fan.deliveries,
        "deliveries_per_s": round(fan.deliveries / fan.seconds, 1),
        "lag_ms": Histogram(fan.lags).latency_ms(),
        "behind_messages_max": fan.behind_messages_max,
        "cpu_us_per_delivery": DeliveryCpuUs(
            writer=each(None if client_s is None else client_s - fan.readers_cpu_s),
            readers=each(fan.readers_cpu_s),
            session=each(cpu_s.get("session")),
            store=each(cpu_s.get("store")),
        ),
    }
    if fan.writer_alone:
        result: Result = CatchupResult(**figures, writer_alone_ms=Histogram(fan.writer_alone).latency_ms())
    else:
        result = ReadingResult(**figures)
    return Outcome(result, list(run.report.found.examples), [run], run.floor)


def many_sessions(where: Where, progress: Progress, *, sessions: int, body_bytes: int, seed: int) -> Outcome:
    """Very many sessions that lie idle, a restart, and somebody who comes back."""
    _within("--sessions", sessions, MANY_SESSIONS_MIN, SESSIONS_MAX)
    Workload(sessions, sessions, body_bytes, seed)
    result, run, cold = measure_sessions(where, progress, sessions=sessions, body_bytes=body_bytes, seed=seed)
    return Outcome(result, list(run.report.found.examples), [run], run.floor, cold)


def _within(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise UsageError(f"{option} {value}: between {lowest} and {highest:,}")


def _of_failover(run: Run, made: Sequence[Hurt]) -> Outcome:
    outages = run.report.outages
    assert outages is not None
    stalls = [
        Stall(
            victim=hurt.victim.name,
            victim_epoch=hurt.victim.epoch or None,
            partitions=hurt.victim.partitions,
            stall_ms=round(felt.stall_ns / 1e6, 3),
            epoch=felt.epoch,
            whole_again_s=round(hurt.whole_again_s, 2),
        )
        for hurt, felt in zip(made, outages.felt, strict=True)
    ]
    result = FailoverResult(
        **dict(run.figures),
        rows=[],
        kills=len(stalls),
        stall_ms=spread([one.stall_ms for one in stalls]),
        stalls=stalls,
        whole_again_s=spread([one.whole_again_s for one in stalls]),
        longest_gap_ms=outages.longest_gap_ms,
        epochs=outages.epochs,
        stale_acks=outages.stale,
    )
    return Outcome(result, [*run.report.found.examples, *outages.stale_examples], [run], run.floor)


def scale(where: Where, progress: Progress, *, partitions: Sequence[int], messages: int, sessions: int, seed: int) -> Outcome:
    """The same load on systems of more and more partitions, each one fresh."""
    Workload(messages, sessions, BODY_BYTES, seed)
    settings = {"sessions": sessions, "body_bytes": BODY_BYTES, "outbox": "memory", "burst_messages": SCALE_BURST_MESSAGES}
    load = Load(
        kind="throughput",
        burst_messages=SCALE_BURST_MESSAGES,
        seed=seed,
        messages=messages,
        warm_up_messages=warm_up_of(messages),
        sessions=sessions,
        body_bytes=BODY_BYTES,
        settings=settings,
    )
    runs: list[Run] = []
    with ray_nodes(where, progress):
        for count in partitions:
            progress.about = f"{counted(count, 'partition')}: "
            with system(where.with_partitions(count), progress) as running:
                runs.append(measure("scale", load, running, progress))
    progress.about = ""
    nodes = where.nodes
    rows = [Row(**dict(run.figures), partitions=count, nodes=nodes) for run, count in zip(runs, partitions, strict=True)]
    overall: dict[str, Any] = {"partitions": ",".join(map(str, partitions)), "messages_each": messages}
    overall |= {"copies": runs[0].figures.settings["copies"], "nodes": nodes, "seed": seed}
    result = _together(runs, settings | overall, rows)
    return Outcome(result, _examples(runs), runs)


def floor_alone(where: Where, progress: Progress, *, seed: int) -> Outcome:
    """The floor by itself."""
    with scratch_directory(where) as directory:
        progress.phase("measuring the floor")
        measured = measure_floor(directory)
        histogram = measured.histogram()
        figures = measured.figures()
        result = Result(
            command="floor",
            commit=commit(),
            machine=machine_facts(directory),
            settings={
                "copies": COPIES,
                "latency_frame_bytes": MESSAGE_BYTES,
                "rate_frame_bytes": RATE_FRAME_BYTES,
                "seed": seed,
            },
            messages=measured.messages,
            seconds=round(measured.seconds, 4),
            messages_per_s=figures.messages_per_s,
            latency_ms=histogram.latency_ms(),
            lost=0,
            duplicated=0,
            reordered=0,
            cpu_us_per_message=CpuUs(client=None, session=None, store=None),
            floor=figures,
            rows=[],
        )
    return Outcome(result, floor=measured)


def _single(run: Run) -> Outcome:
    return Outcome(Result(**dict(run.figures), rows=[]), list(run.report.found.examples), [run], run.floor)


def _together(runs: Sequence[Run], settings: dict[str, Any], rows: list[Row]) -> Result:
    """All runs as one result: sums, means over all messages, and the percentiles of all sampled acks."""
    messages, seconds = sum(run.figures.messages for run in runs), sum(run.figures.seconds for run in runs)
    histogram, floor = Histogram(), Floor([], [])
    for run in runs:
        histogram.add(run.histogram)
        floor = floor.and_also(run.floor)

    def mean_us(role: str) -> float | None:
        sum_us = 0.0
        for run in runs:
            used: float | None = getattr(run.figures.cpu_us_per_message, role)
            if used is None:
                return None
            sum_us += used * run.figures.messages
        return round(sum_us / messages, 3)

    first = runs[0].figures
    return Result(
        command=first.command,
        commit=first.commit,
        machine=first.machine,
        settings=settings,
        messages=messages,
        seconds=round(seconds, 4),
        messages_per_s=round(messages / seconds, 1),
        latency_ms=histogram.latency_ms(),
        lost=sum(run.figures.lost for run in runs),
        duplicated=sum(run.figures.duplicated for run in runs),
        reordered=sum(run.figures.reordered for run in runs),
        cpu_us_per_message=CpuUs(client=mean_us("client"), session=mean_us("session"), store=mean_us("store")),
        floor=floor.figures(),
        rows=rows,
    )


def _examples(runs: Sequence[Run]) -> list[str]:
    return [f"{run.figures.settings['partitions']} partitions: {each}" for run in runs for each in run.report.found.examples]


@contextlib.contextmanager
def _new_outbox(path: str | None) -> Iterator[str | None]:
    """A new outbox file at `path`, removed afterwards; None is memory. Raises `UsageError` if there is one already."""
    if path is None:
        yield None
        return
    file = whole_path(path)
    if file.exists():
        raise UsageError(f"--outbox {path} exists: name a new file, which is removed afterwards")
    if not os.access(file.parent, os.W_OK):
        raise UsageError(f"--outbox {path}: {file.parent} is no directory that can be written")
    try:
        yield str(file)
    finally:
        for beside in ("", "-wal", "-shm", ".lock"):
            Path(f"{file}{beside}").unlink(missing_ok=True)


def warm_up_of(messages: int) -> int:
    """Enough for connections, caches and interpreters to be warm, and never the greater part of a short run."""
    return min(WARM_UP_MESSAGES, max(1, messages // WARM_UP_SHARE))
