"""Reading much at once: the loads `table` (one session as an Arrow table) and `export` (everything as Parquet files).

Owns what is timed, and the judgement of the columns: which message must stand in which row follows from the seed. It must not
know how either is made. Rules:

1. A `table` is read once before the clock runs: the store is warm, and its index has caught up. Then `READS` times; each is
   judged.
2. An `export` begins when the stores rest: each of them has indexed what was sent. It runs in a process that has done nothing
   else; its memory is the greatest resident size above what it had before. What was written is read with pyarrow alone, and
   each row is judged.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trilogue.bench.load.job import Bulk, Job, Report
from trilogue.bench.load.many import SENDER, Plan, fill, report_of
from trilogue.bench.load.metrics import CpuMeter, Histogram
from trilogue.bench.load.pouring import Pulse
from trilogue.bench.load.verification import Verdict
from trilogue.client import Client
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.status import gather
from trilogue.cluster.export.exporting import Chosen, export

READS = 5
BATCH_ROWS = 64 * 1024
REST_S = 120.0
LOOK_AGAIN_S = 0.5
MIB = 1024 * 1024


class ColumnJudge:
    """Compares rows, in the order in which a session has them, with what was sent."""

    def __init__(self, plan: Plan) -> None:
        self.verdict = Verdict()
        self._plan = plan
        self._numbers = {plan.name(session): session for session in range(plan.sessions)}
        self._next: dict[str, int] = dict.fromkeys(self._numbers, 1)

    def take(self, rows: pa.Table) -> None:
        """Rows that follow: of one session after the other."""
        sessions, seqs = rows["session"].to_pylist(), rows["seq"].to_pylist()
        senders, bodies, ns = rows["sender"].to_pylist(), rows["body"].to_pylist(), rows["n"].to_pylist()
        for session, seq, sender, body, n in zip(sessions, seqs, senders, bodies, ns, strict=True):
            number, expected = self._numbers.get(session), self._next.get(session, 1)
            if number is None:
                self.verdict.found("duplicated", f"{session} seq {seq} answers to no hand-over")
            elif seq < expected:
                self.verdict.found("duplicated", f"{session} seq {seq} comes after {expected - 1}")
            else:
                if seq > expected:
                    self._missing(session, expected, seq)
                self._next[session] = seq + 1
                if seq > self._plan.each:
                    self.verdict.found("duplicated", f"{session} seq {seq} answers to no hand-over")
                elif (body, sender, n) != (self._plan.body(self._plan.number(number, seq)), SENDER, seq):
                    self.verdict.found("lost", f"{session} seq {seq} is another message")

    def end(self) -> Verdict:
        """There are no more."""
        for session, next_seq in self._next.items():
            self._missing(session, next_seq, self._plan.each + 1)
        return self.verdict

    def _missing(self, session: str, first: int, behind: int) -> None:
        if behind > first:
            self.verdict.lost += behind - first - 1
            self.verdict.found("lost", f"{session} has no seqs {first} to {behind - 1}")


async def table(job: Job, pulse: Pulse) -> Report:
    """Fill a session, and read it as a table, again and again."""
    filled = await fill(job, pulse)
    plan, histogram, seconds = Plan(job), Histogram(), list[float]()
    verdict = Verdict(filled.found.lost, filled.found.duplicated, filled.found.reordered, filled.found.examples)
    meter, cpu_s = CpuMeter(job.pids), dict[str, float | None]()
    async with Client(address=job.address, token=job.token) as client:
        for reading in range(READS + 1):
            pulse.enter("reading tables", READS)
            pulse.done = reading
            gc.collect()
            meter.start()
            began = time.perf_counter_ns()
            read = await client.table(plan.name(0))
            took = time.perf_counter_ns() - began
            used = meter.stop()
            if reading:
                seconds.append(took / 1e9)
                histogram.record_ns(took)
                cpu_s = used if not cpu_s else {role: _sum(cpu_s[role], used[role]) for role in used}
            judge = ColumnJudge(plan)
            for at in range(0, read.num_rows, BATCH_ROWS):
                judge.take(read.slice(at, BATCH_ROWS))
            verdict.add(judge.end())
            del read
    report = report_of(READS * job.messages, 1, sum(seconds), histogram, cpu_s, verdict)
    return report.model_copy(update={"bulk": Bulk(seconds=seconds)})


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


async def export_all(job: Job, pulse: Pulse) -> Report:
    """Export what a `fill` of the same numbers has sent, to the directory `job.file`."""
    assert job.file is not None
    plan = Plan(job)
    known = Known(job.address.split(","), job.token or "", None)
    # In a system that others use too, the sessions are named.
    chosen = Chosen([plan.name(session) for session in range(plan.sessions)] if job.prefix else [], None, 0)
    pulse.enter("waiting until the stores rest", 0)
    await _rest(known)
    pulse.enter("exporting", job.messages)
    gc.collect()
    meter = CpuMeter(job.pids)
    before = _reset_peak()
    meter.start()
    began = time.perf_counter()

    def told(_: str) -> None:
        pulse.acks += 1  # it goes on

    report = await export(known, job.file, chosen, told)
    seconds = time.perf_counter() - began
    cpu_s = meter.stop()
    grew = _status_bytes("VmHWM") - before
    files = sorted(Path(job.file).glob("partition=*/*.parquet"))
    verdict = _judge_files(plan, files, pulse, job.messages)
    if report["messages"] != job.messages:
        verdict.found("lost", f"{report['messages']} of {job.messages} messages were exported, as it says itself")
    bulk = Bulk(
        seconds=[seconds], grew_mib=round(grew / MIB, 1), files=len(files), file_bytes=sum(f.stat().st_size for f in files)
    )
    return report_of(job.messages, plan.sessions, seconds, Histogram(), cpu_s, verdict).model_copy(update={"bulk": bulk})


async def _rest(known: Known) -> None:
    """Wait until every store has indexed what it knows to be committed, or for `REST_S` at most."""
    deadline = time.monotonic() + REST_S
    while time.monotonic() < deadline:
        stores = (await gather(known))["stores"]
        if all(store["index"]["percent"] == 100 for store in stores):
            return
        await asyncio.sleep(LOOK_AGAIN_S)


def _judge_files(plan: Plan, files: Sequence[Path], pulse: Pulse, messages: int) -> Verdict:
    judge = ColumnJudge(plan)
    pulse.enter("reading the files back", messages)
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            judge.take(pa.Table.from_batches([batch]))
            pulse.done += batch.num_rows
    return judge.end()


def _reset_peak() -> int:
    """Let the kernel's greatest resident size begin anew; the resident size now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel tells no {name}")


BULK_LOADS = {"table": table, "export": export_all}
