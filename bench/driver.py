"""One measured run: the floor, the load in a process of its own, the floor again, and the result made of them.

Owns the order of a run and the load generator's process. It must not know how the load works, what is done to the system
meanwhile, or how a result looks.
Invariants: the generator has ended when `measure` returns or raises; the floor is measured before and after the load, where
the stores write; a result is made only from a report that says what was verified.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from trilogue.actors.protocol.errors import Unavailable, UsageError
from trilogue.bench.floor.floor import Floor, measure_floor
from trilogue.bench.load.job import Job, Kind, Report, Saying
from trilogue.bench.load.metrics import Histogram
from trilogue.bench.report.machine import commit, machine_facts
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import CpuUs, Figures
from trilogue.bench.systems import System

FLOOR_PART_S = 0.5
END_TIMEOUT_S = 20
BURST_MESSAGES = 256


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, before it is known to which system."""

    kind: Kind
    seed: int
    messages: int = 0
    warm_up_messages: int = 0
    sessions: int = 1
    body_bytes: int = 256
    burst_messages: int = BURST_MESSAGES
    messages_per_s: int = 0
    in_flight_max: int = 0
    readers: int = 1
    processes: int = 1
    alone_s: float = 0.0
    asked: int = 0
    read_back: int = 0
    file: str | None = None
    prefix: str | None = None  # of the sessions' names; None: as the system wants it
    outbox: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured and verified run; `examples` are the first anomalies in words, if there were any."""

    figures: Figures
    report: Report
    histogram: Histogram
    floor: Floor

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, duplicated or reordered."""
        found = self.report.found
        return not (found.lost or found.duplicated or found.reordered)


class LoadProcess:
    """The load generator while it runs: what it says, and what it is told."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def sayings(self) -> Iterator[Saying]:
        """What it says, until its report. Raises `UsageError` or `Unavailable` with what it says of its failure."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                saying = Saying.model_validate_json(line)
            except ValidationError:
                continue
            if saying.error:
                raise (UsageError if saying.usage else Unavailable)(saying.error)
            yield saying
            if saying.report is not None:
                return
        raise Unavailable(f"the load generator ended without a report ({self._how_it_ended()}): what it wrote stands above")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its output, and runs"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def tell(self, words: BaseModel) -> None:
        """Say one line to it. Whether it was still there, its sayings tell."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(words.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()


# What goes on while the load runs, until its report.
Conduct = Callable[[LoadProcess, Progress], Report]


def measure(command: str, load: Load, system: System, progress: Progress, conduct: Conduct | None = None) -> Run:
    """Run `load` on `system`, between two halves of the floor. Raises `Unavailable` when the load cannot be carried out."""
    progress.phase("measuring the floor")
    before = measure_floor(system.scratch, latency_s=FLOOR_PART_S, rate_s=FLOOR_PART_S)
    report = run_load(job_of(load, system), progress, conduct or wait_for_report)
    system.check_members()
    progress.phase("measuring the floor")
    floor = before.and_also(measure_floor(system.scratch, latency_s=FLOOR_PART_S, rate_s=FLOOR_PART_S))
    histogram = Histogram(report.histogram)
    settings = load.settings | {
        "partitions": system.partitions,
        "copies": system.copies,
        "nodes": system.nodes,
        "seed": load.seed,
    }
    if system.on_redis:
        settings["stores_on_redis"] = len(system.on_redis)
    figures = Figures(
        command=command,
        commit=commit(),
        machine=machine_facts(system.scratch),
        settings=settings,
        messages=report.messages,
        seconds=round(report.seconds, 4),
        messages_per_s=round(report.messages / report.seconds, 1),
        latency_ms=histogram.latency_ms(),
        lost=report.found.lost,
        duplicated=report.found.duplicated,
        reordered=report.found.reordered,
        cpu_us_per_message=cpu_us(report),
        floor=floor.figures(),
    )
    return Run(figures, report, histogram, floor)


def job_of(load: Load, system: System) -> Job:
    """The load, now that it is known to which system."""
    return Job(
        kind=load.kind,
        address=system.address,
        token=system.token,
        # In a fresh system the sessions, and with them their partitions, follow from the seed; one that is used by others or
        # was measured before gets sessions that nobody else has.
        prefix=load.prefix if load.prefix is not None else "" if system.fresh else f"bench-{secrets.token_hex(4)}/",
        copies=system.copies,
        seed=load.seed,
        messages=load.messages,
        warm_up_messages=load.warm_up_messages,
        sessions=load.sessions,
        body_bytes=load.body_bytes,
        burst_messages=load.burst_messages,
        messages_per_s=load.messages_per_s,
        in_flight_max=load.in_flight_max,
        readers=load.readers,
        processes=load.processes,
        alone_s=load.alone_s,
        asked=load.asked,
        read_back=load.read_back,
        partitions=system.partitions,
        file=load.file,
        outbox=load.outbox,
        pids=system.pids,
    )


def cpu_us(report: Report) -> CpuUs:
    """Each role's processor time, shared out over the measured messages."""

    def each(role: str) -> float | None:
        used = report.cpu_s.get(role)
        return None if used is None else round(used / report.messages * 1e6, 3)

    return CpuUs(client=each("client"), session=each("session"), store=each("store"))


def run_load(job: Job, progress: Progress, conduct: Conduct) -> Report:
    """Run the load generator to its end."""
    with _generator() as load:
        load.tell(job)
        return conduct(load, progress)


def wait_for_report(load: LoadProcess, progress: Progress) -> Report:
    """Show where the load is until it is done."""
    for saying in load.sayings():
        if saying.report is not None:
            return saying.report
        progress.phase(saying.phase, saying.done, saying.total)
    raise AssertionError("the sayings end with a report")


@contextmanager
def _generator() -> Iterator[LoadProcess]:
    """The generator; its process has ended when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trilogue.bench.load.generator"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield LoadProcess(process)
        process.wait(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
