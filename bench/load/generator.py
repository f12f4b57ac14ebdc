"""The load generator: a process of its own, so that nothing else runs on its interpreter.

Owns one `Job` from its first hand-over to its verdict. It imports no Ray and knows no more of the system than any client
does. Invariants: the collector is frozen and off while the clock runs; the processor time is counted over exactly the span
of `seconds`; all that was handed over, warm-up included, is read back and judged after the clock has stopped.

Run as ``python -m trilogue.bench.load.generator`` with a `Job`, one line, on standard input (and, for `failover`, an `Ending`
later); it writes `Saying`s to standard output.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import uvloop

from trilogue.actors.protocol.errors import TrilogueError, Unavailable, UsageError
from trilogue.bench.load.conversation import Line, compare_with_file, read_conversation
from trilogue.bench.load.fanout import catch_up, fan_out, judge_acks
from trilogue.bench.load.job import Ending, Found, Job, Report, Saying
from trilogue.bench.load.many import LOADS
from trilogue.bench.load.metrics import CpuMeter
from trilogue.bench.load.pouring import Acks, Item, Pulse, drip, pour
from trilogue.bench.load.readback import read_all_back
from trilogue.bench.load.stalls import outages
from trilogue.bench.load.steady import Steady
from trilogue.bench.load.verification import HandedOver, Verdict, judge_session
from trilogue.bench.load.workload import Workload
from trilogue.client import Ack, Client, Message
from trilogue.cluster.commands.output import silence

TICK_S = 0.25
STALL_S = 60.0
ENDING_BYTES_MAX = 1 << 20
SAMPLE_ALL_UPTO_MESSAGES = 20_000
SAMPLED_EVERY = 16
SENDER = "bench"


class Script:
    """What a job sends: its items by number, in order, as often as they are asked for."""

    def __init__(self, job: Job) -> None:
        """Raises `UsageError` if the job's file or numbers cannot be used."""
        self.job = job
        self.lines = read_conversation(Path(job.file)) if job.file else []
        if self.lines:
            self.messages = len(self.lines)
            self._sessions = [job.prefix + line.session for line in self.lines]
            self._body: Callable[[int], bytes] = lambda number: self.lines[number].text.encode()
            self._senders: Sequence[str | None] = [line.sender for line in self.lines]
        else:
            self.messages = job.warm_up_messages + job.messages
            workload = Workload(self.messages, job.sessions, job.body_bytes, job.seed)
            names = [f"{job.prefix}session-{k}" for k in range(job.sessions)]
            self._sessions = [names[session] for session in workload.order()]
            self._body = workload.bodies()
            self._senders = [None] * self.messages

    def item(self, number: int) -> Item:
        """One item."""
        return self._sessions[number], self._body(number), self._senders[number]

    def items(self, first: int, last: int) -> Iterator[Item]:
        """The items from number `first` up to, and without, `last`; made one by one, at little cost."""
        return zip(self._sessions[first:last], map(self._body, range(first, last)), self._senders[first:last], strict=True)

    def by_session(self) -> dict[str, list[int]]:
        """For each session the numbers of its items, in the order in which they are sent."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for number in range(self.messages):
            numbers[self._sessions[number]].append(number)
        return numbers


async def carry_out(job: Job, pulse: Pulse) -> Report:
    """Send, measure, read back, judge."""
    script = Script(job)
    acks = Acks(pulse)
    first = job.warm_up_messages
    sampled_every = 1 if job.kind == "latency" or script.messages <= SAMPLE_ALL_UPTO_MESSAGES else SAMPLED_EVERY
    async with Client(sender=SENDER, outbox=job.outbox, address=job.address, token=job.token) as client:
        pulse.enter("warming up", first)
        pace = {"sampled_every": sampled_every, "burst_messages": job.burst_messages}
        futures = await pour(client, script.items(0, first), Acks(pulse), **pace)
        items = script.items(first, script.messages)
        meter = CpuMeter(job.pids)
        pulse.enter("sending", script.messages - first)
        gc.collect()
        gc.freeze()
        gc.disable()
        meter.start()
        began = time.perf_counter_ns()
        if job.kind == "latency":
            futures += await drip(client, items, acks)
        else:
            futures += await pour(client, items, acks, **pace)
        ended = time.perf_counter_ns()
        cpu_s = meter.stop()
        gc.enable()
        # The callbacks of the last acks run in the loop's next turn.
        await asyncio.sleep(0)
    numbers = script.by_session()
    verdict = await _verify(job, script.item, numbers, _all_acked(futures), pulse, script.lines)
    return Report(
        messages=script.messages - first,
        sessions=len(numbers),
        senders=len({line.sender for line in script.lines}) or 1,
        seconds=(ended - began) / 1e9,
        histogram=acks.histogram().encode(),
        sampled_every=sampled_every,
        acked_at_s=[round((moment - began) / 1e9, 4) for moment in acks.moments_ns],
        cpu_s=cpu_s,
        messages_by_session={session[len(job.prefix) :]: len(of_it) for session, of_it in numbers.items()},
        found=_found(verdict),
    )


async def carry_on(job: Job, pulse: Pulse, steady: Steady, ending: asyncio.Future[Ending]) -> Report:
    """Send while the driver hurts the system, until it says that this is over; read back, judge."""
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
        meter = CpuMeter(job.pids)
        pulse.enter("sending", 0)
        gc.collect()
        gc.freeze()
        gc.disable()
        meter.start()
        await steady.send(client, ending.done)
        await client.flush()
        cpu_s = meter.stop()
        gc.enable()
        await asyncio.sleep(0)
    moments, numbers = steady.moments, steady.by_session()
    acks = steady.all_acks()
    try:
        felt = outages(ending.result().faults, moments, steady.watch)
    except ValueError as error:
        raise Unavailable(str(error)) from None
    verdict = await _verify(job, steady.item, numbers, acks, pulse)
    return Report(
        messages=steady.messages,
        sessions=len(numbers),
        senders=1,
        seconds=(max(moments.acked_ns) - moments.handed_ns[0]) / 1e9,
        histogram=steady.histogram().encode(),
        sampled_every=1,
        acked_at_s=[],
        cpu_s=cpu_s,
        messages_by_session={session[len(job.prefix) :]: len(of_it) for session, of_it in numbers.items()},
        found=_found(verdict),
        outages=felt,
    )


async def deliver(job: Job, pulse: Pulse) -> Report:
    """Send to one session that others read."""
    session = f"{job.prefix}session-0"
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
        measured = await (fan_out if job.kind == "fanout" else catch_up)(job, pulse, client, session)
        await asyncio.sleep(0)
    fan, cpu_s, acks = measured.fan, dict(measured.cpu_s), measured.acks
    verdict = judge_acks(_all_acked(measured.writer.futures), session, job.copies)
    verdict.add(Verdict(fan.found.lost, fan.found.duplicated, fan.found.reordered, fan.found.examples))
    if cpu_s["client"] is not None:
        cpu_s["client"] += fan.readers_cpu_s
    return Report(
        messages=job.messages,
        sessions=1,
        senders=1,
        seconds=measured.seconds,
        histogram=acks.histogram().encode(),
        sampled_every=1,
        acked_at_s=[],
        cpu_s=cpu_s,
        messages_by_session={"session-0": len(measured.writer.futures)},
        found=_found(verdict),
        fan=fan,
    )


async def _ending_to_come() -> asyncio.Future[Ending]:
    """What the driver will say on standard input when it is over."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=ENDING_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def read() -> Ending:
        try:
            return Ending.model_validate_json(await lines.readuntil())
        except asyncio.IncompleteReadError:
            raise Unavailable("the driver of this load has gone") from None

    return asyncio.ensure_future(read())


def _found(verdict: Verdict) -> Found:
    return Found(lost=verdict.lost, duplicated=verdict.duplicated, reordered=verdict.reordered, examples=verdict.examples)


async def _verify(
    job: Job,
    item: Callable[[int], Item],
    numbers: Mapping[str, Sequence[int]],
    acks: Sequence[Ack],
    pulse: Pulse,
    lines: Sequence[Line] = (),
) -> Verdict:
    """The verdict over all sessions, read back by another client than the one that sent; compared with the file's `lines`."""

    def judge(session: str, history: Sequence[Message]) -> Verdict:
        handed = []
        for number in numbers[session]:
            _, body, sender = item(number)
            handed.append(HandedOver(sender or SENDER, body, acks[number]))
        found = judge_session(session, handed, history, job.copies)
        if lines:
            read = [(message.sender, message.body) for message in history]
            found.at_least(compare_with_file(session, [lines[number] for number in numbers[session]], read))
        return found

    pulse.enter("reading back", len(acks))
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as reader:
        return await read_all_back(reader, list(numbers), pulse, judge)


def _all_acked(futures: Sequence[asyncio.Future[Ack]]) -> list[Ack]:
    """The acks of all messages; raises `Unavailable` if one of them has none."""
    errors = [future.exception() if future.done() else "flush returned before its ack" for future in futures]
    failed = [error for error in errors if error is not None]
    if failed:
        raise Unavailable(f"{len(failed)} of {len(futures)} messages were not acked: {failed[0]}")
    return [future.result() for future in futures]


async def _tick(pulse: Pulse, steady: Steady | None, ending: asyncio.Future[Ending] | None) -> None:
    """Say where the work is; raise `Unavailable` when it has stood still for `STALL_S`, or when nobody hears it."""
    clock = time.monotonic
    seen, since = (pulse.phase, pulse.done, pulse.acks), clock()
    while True:
        await asyncio.sleep(TICK_S)
        if ending is not None and ending.done():
            ending.result()
        acked_upto_ns = steady.watch.acked_upto_ns if steady is not None else []
        say(Saying(phase=pulse.phase, done=pulse.done, total=pulse.total, acked_upto_ns=acked_upto_ns))
        now = (pulse.phase, pulse.done, pulse.acks)
        if now != seen:
            seen, since = now, clock()
        elif clock() - since > STALL_S:
            raise Unavailable(
                f"{pulse.phase}: nothing has moved for {STALL_S:.0f} s after {pulse.done} of {pulse.total} messages: "
                "ask `trilogue status` what the system waits for"
            )


async def run(job: Job) -> Report:
    """Carry out the job while somebody watches it."""
    pulse = Pulse()
    steady = Steady(job, pulse) if job.kind == "failover" else None
    ending = await _ending_to_come() if steady is not None else None
    if steady is not None and ending is not None:
        work = asyncio.create_task(carry_on(job, pulse, steady, ending))
    else:
        carry = deliver if job.kind in ("fanout", "catchup") else LOADS.get(job.kind, carry_out)
        if job.kind in ("table", "export"):
            from trilogue.bench.load.bulk import BULK_LOADS  # only they need Arrow

            carry = BULK_LOADS[job.kind]
        work = asyncio.create_task(carry(job, pulse))
    watch = asyncio.create_task(_tick(pulse, steady, ending))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        watch.result()
        raise AssertionError("the watch ends by raising only")
    finally:
        work.cancel()
        watch.cancel()


def say(saying: Saying) -> None:
    """Write one line for the driver. When that was killed, nobody is there to hear how this ends: it ends, without a word."""
    try:
        sys.stdout.write(saying.model_dump_json(exclude_defaults=True) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(1) from None


def main() -> None:
    """Carry out the job on standard input."""
    # Without a buffer: what follows the job's line is for the loop to read.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as unbuffered:
        job = Job.model_validate_json(unbuffered.readline())
    try:
        report = uvloop.run(run(job))
    except (TrilogueError, ExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, TrilogueError):
            raise
        say(Saying(error=f"{type(first).__name__}: {first}", usage=isinstance(first, UsageError)))
        raise SystemExit(1) from None
    say(Saying(report=report))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
