"""One session and its many readers, and one reader that is far behind: the loads `fanout` and `catchup`.

Owns the writer and the processes of readers (``reader``). It must not know how a reader judges what it gets. Rules:

1. A `fanout` without a rate is sent as fast as the slowest reader lets it: at most `AHEAD_MESSAGES` more than that one has.
2. A reader that gets nothing more for `PATIENCE_S` after all was acked is asked what it lacks.
3. Message k of a session that nobody else writes to must be acked with seq k, and each reader must get it there: the tallies
   are the reading back of these benchmarks.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from pydantic import ValidationError

from trilogue.actors.protocol.errors import Overloaded, Unavailable
from trilogue.bench.load.job import FanOut, Found, Job
from trilogue.bench.load.metrics import CpuMeter, Histogram
from trilogue.bench.load.pouring import Acks, Pulse
from trilogue.bench.load.reader import Heard, ReaderJob
from trilogue.bench.load.tally import stamped
from trilogue.bench.load.verification import Verdict
from trilogue.bench.load.workload import Workload
from trilogue.client import Ack, Client

AHEAD_MESSAGES = 2_048
BURST_MESSAGES = 32
PATIENCE_S = 20.0
TICK_S = 0.001
PACED_S_MAX = 120


class ReaderProcess:
    """One process of readers while it runs."""

    def __init__(self, process: asyncio.subprocess.Process, changed: asyncio.Event) -> None:
        self.heard = Heard()
        self.ready = False
        self._process = process
        self._changed = changed
        self._task = asyncio.create_task(self._listen())

    @property
    def ended(self) -> bool:
        """Whether it has said what it found, or is gone."""
        return self._task.done()

    def hush(self) -> None:
        """Ask it to end, and to say what its readers lack."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def end(self) -> None:
        """Its process has ended when this returns."""
        self.hush()
        if self._process.returncode is None:
            with suppress(TimeoutError, ProcessLookupError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with suppress(ValidationError):
                self.heard = Heard.model_validate_json(line)
                self.ready = True
                self._changed.set()
            if self.heard.ended:
                break
        self._changed.set()


class Crowd:
    """All processes of readers."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.processes: list[ReaderProcess] = []

    @property
    def at(self) -> int:
        """The slowest reader's seq."""
        return min(process.heard.at for process in self.processes)

    @property
    def deliveries(self) -> int:
        """How many there were."""
        return sum(process.heard.deliveries for process in self.processes)

    async def until(self, condition: Callable[[], bool], pulse: Pulse | None = None) -> None:
        """Wait until it holds, or until all processes have ended. Raises `Unavailable` when one ended without a word."""
        while not condition():
            for process in self.processes:
                if process.ended and not process.heard.ended:
                    raise Unavailable("a process of readers ended before its time: what it wrote stands above")
            self.changed.clear()
            await self.changed.wait()
            if pulse is not None:
                pulse.done = self.deliveries

    async def settle(self, pulse: Pulse) -> None:
        """Until all have said what they found; those that get nothing more are asked."""
        seen, since = -1, time.monotonic()
        while not all(process.heard.ended for process in self.processes):
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.until(lambda: all(process.heard.ended for process in self.processes), pulse)
            if self.deliveries != seen:
                seen, since = self.deliveries, time.monotonic()
            elif time.monotonic() - since > PATIENCE_S:
                for process in self.processes:
                    process.hush()


@asynccontextmanager
async def crowd(job: Job, session: str, messages: int, readers: int, processes: int) -> AsyncIterator[Crowd]:
    """So many readers in so many processes; the processes have ended when the block is left."""
    found = Crowd()
    try:
        for number in range(processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "trilogue.bench.load.reader",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            share = readers // processes + (number < readers % processes)
            told = ReaderJob(
                address=job.address, token=job.token, session=session, readers=share, messages=messages,
                body_bytes=job.body_bytes, seed=job.seed,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(told.model_dump_json().encode() + b"\n")
            found.processes.append(ReaderProcess(process, found.changed))
        yield found
    finally:
        await asyncio.gather(*(process.end() for process in found.processes))


class Writer:
    """What hands the messages over: bodies with their moment inside, in order, to one session."""

    def __init__(self, job: Job, client: Client, session: str, total: int) -> None:
        self.futures: list[asyncio.Future[Ack]] = []
        self.moments = array("Q")
        self._body = Workload(total, 1, job.body_bytes, job.seed).bodies()
        self._client, self._session = client, session

    def body(self, number: int) -> bytes:
        """The body that was handed over as number `number`."""
        return stamped(self._body(number), self.moments[number])

    async def send(self, upto: int, acks: Acks | None, every: int, clear: Callable[[], bool], crowd: Crowd) -> None:
        """Hand over up to number `upto` as fast as it is taken, while `clear` says that the readers are not far behind."""
        while (number := len(self.futures)) < upto:
            if not clear():
                await crowd.until(clear)
            for _ in range(min(BURST_MESSAGES, upto - number)):
                while not self._post(acks if len(self.futures) % every == 0 else None):
                    await self._client.drain()
            await asyncio.sleep(0)

    async def send_paced(self, rate_per_s: int, over: Callable[[], bool], acks: Acks, upto: int) -> None:
        """Hand over so many a second until it is over, or up to number `upto`; each one's ack is timed."""
        began, first = time.monotonic(), len(self.futures)
        while not over() and len(self.futures) < upto:
            due = min(first + int((time.monotonic() - began) * rate_per_s), upto)
            while len(self.futures) < due and self._post(acks):
                pass
            await asyncio.sleep(TICK_S)

    def _post(self, acks: Acks | None) -> bool:
        moment = time.monotonic_ns()
        number = len(self.futures)
        began = time.perf_counter_ns()
        try:
            future = self._client.post(self._session, stamped(self._body(number), moment))
        except Overloaded:
            return False
        self.moments.append(moment)
        self.futures.append(future)
        if acks is not None:
            future.add_done_callback(lambda _: acks.came(began))
        return True


def judge_acks(acks: Sequence[Ack], session: str, copies: int) -> Verdict:
    """Whether each message was acked at its place, in order, with evidence of enough copies."""
    verdict = Verdict()
    for seq, ack in enumerate(acks, 1):
        if ack.session != session or ack.copies < copies:
            verdict.found("lost", f"the ack of message {seq} names {ack.session} and {ack.copies} of {copies} copies")
        elif ack.seq != seq or ack.n != seq:
            verdict.found("reordered", f"message {seq} was acked as n {ack.n} at seq {ack.seq}")
    return verdict


class Measured:
    """What came of a load, before it is read back."""

    def __init__(self, writer: Writer, acks: Acks, seconds: float, cpu_s: dict[str, float | None], fan: FanOut) -> None:
        self.writer, self.acks, self.seconds, self.cpu_s, self.fan = writer, acks, seconds, cpu_s, fan


async def fan_out(job: Job, pulse: Pulse, client: Client, session: str) -> Measured:
    """Send to one session while many follow it live."""
    total = job.warm_up_messages + job.messages
    writer = Writer(job, client, session, total)
    acks = Acks(pulse)
    pulse.enter("starting readers", job.readers)
    async with crowd(job, session, total, job.readers, job.processes) as readers:
        await readers.until(lambda: all(process.ready for process in readers.processes))
        pulse.enter("warming up", job.warm_up_messages * job.readers)

        def clear() -> bool:
            return len(writer.futures) - readers.at < AHEAD_MESSAGES

        await writer.send(job.warm_up_messages, None, 1, clear, readers)
        await readers.until(lambda: readers.at >= job.warm_up_messages, pulse)
        meter = CpuMeter(job.pids)
        behind = _Behind(writer, readers)
        pulse.enter("delivering", total * job.readers)
        gc.collect()
        gc.freeze()
        gc.disable()
        meter.start()
        began, began_ns = time.perf_counter(), time.monotonic_ns()
        watch = asyncio.create_task(behind.watch(pulse))
        if job.messages_per_s:
            await writer.send_paced(job.messages_per_s, lambda: False, acks, total)
        else:
            await writer.send(total, acks, max(job.messages // 20_000, 1), clear, readers)
        await client.flush()
        seconds = time.perf_counter() - began
        await readers.settle(pulse)
        cpu_s = meter.stop()
        watch.cancel()
        gc.enable()
        heard = [process.heard for process in readers.processes]
    last_ns = max((each.last_ns for each in heard), default=began_ns)
    fan = _fan_of(heard, job.messages * job.readers, max((last_ns - began_ns) / 1e9, 1e-9), behind.most)
    return Measured(writer, acks, seconds, cpu_s, fan)


async def catch_up(job: Job, pulse: Pulse, client: Client, session: str) -> Measured:
    """Fill a session; then let one reader catch up with it while the writer goes on at a rate, which it also does without."""
    filled = job.messages
    total = filled + job.messages_per_s * PACED_S_MAX
    writer = Writer(job, client, session, total)
    alone, during = Acks(pulse), Acks(pulse)
    pulse.enter("filling the session", filled)
    nobody = Crowd()
    while len(writer.futures) < filled:
        await writer.send(min(len(writer.futures) + 10_000, filled), None, 1, lambda: True, nobody)
        pulse.done = len(writer.futures)
    await client.flush()
    gc.collect()
    gc.freeze()
    pulse.enter("the writer alone", 0)
    stop_at = time.monotonic() + job.alone_s
    await writer.send_paced(job.messages_per_s, lambda: time.monotonic() > stop_at, alone, total)
    async with crowd(job, session, total, 1, 1) as readers:
        (reader,) = readers.processes
        # The reader's process starts while the writer is busy: its interpreter's start is no part of the catching up.
        behind = len(writer.futures)
        meter = CpuMeter(job.pids)
        pulse.enter("catching up", behind)
        pace = asyncio.create_task(writer.send_paced(job.messages_per_s, lambda: reader.heard.at >= behind, during, total))
        await readers.until(lambda: reader.ready)
        meter.start()
        began = time.perf_counter()
        await readers.until(lambda: reader.heard.at >= behind, pulse)
        seconds = time.perf_counter() - began
        cpu_s = meter.stop()
        await pace
        await client.flush()
        await readers.until(lambda: reader.heard.at >= len(writer.futures), pulse)
        reader.hush()
        await readers.settle(pulse)
        heard = reader.heard
        missing = heard.missing - (total - len(writer.futures))
        heard = heard.model_copy(update={"missing": missing})
    fan = _fan_of([heard], behind, seconds, behind)
    fan = fan.model_copy(update={"writer_alone": alone.histogram().encode()})
    return Measured(writer, during, seconds, cpu_s, fan)


def _fan_of(heard: list[Heard], deliveries: int, seconds: float, behind: int) -> FanOut:
    lags = Histogram()
    for each in heard:
        lags.add(Histogram(each.lags))
    return FanOut(
        deliveries=deliveries,
        seconds=seconds,
        lags=lags.encode(),
        behind_messages_max=behind,
        readers_cpu_s=sum(each.cpu_s for each in heard),
        found=Found(
            lost=sum(each.missing for each in heard),
            duplicated=sum(each.repeated for each in heard),
            reordered=sum(each.wrong for each in heard),
            examples=[
                f"readers of process {number}: {each.missing} missing, {each.repeated} repeated, {each.wrong} wrong"
                for number, each in enumerate(heard)
                if each.missing or each.repeated or each.wrong
            ],
        ),
    )


class _Behind:
    """How far the slowest reader was behind what had been acked, at most, as the processes say it."""

    def __init__(self, writer: Writer, readers: Crowd) -> None:
        self.most = 0
        self._writer, self._readers, self._acked = writer, readers, 0

    async def watch(self, pulse: Pulse) -> None:
        """Look, for ever."""
        futures = self._writer.futures
        while True:
            while self._acked < len(futures) and futures[self._acked].done():
                self._acked += 1
            self.most = max(self.most, self._acked - self._readers.at)
            pulse.done = self._readers.deliveries
            await asyncio.sleep(0.01)
