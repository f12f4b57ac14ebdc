"""Very many sessions with a few messages each, which then lie idle: the loads `fill`, `first`, `cold` and `look`.

Owns what is sent to which session, and the judgement of acks and of what is read back: nobody else writes to these sessions,
so message k of a session must be acked with seq k, and read back there. It must not know who restarts what. Rules:

1. A session's messages do not come in a row: `WINDOW_SESSIONS` sessions are filled together, each of them once a round.
2. No ack is kept: it is judged when it comes. Sessions are drawn from the seed, so that each load knows what the others did.
3. What is timed in `cold` is the first thing that anybody asks of that session since the load `first`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from array import array
from collections.abc import Iterator, Sequence
from functools import partial

from trilogue.actors.protocol.errors import Overloaded, Unavailable
from trilogue.bench.load.job import Cold, Found, Job, Report
from trilogue.bench.load.metrics import CpuMeter, Histogram
from trilogue.bench.load.pouring import Acks, Pulse
from trilogue.bench.load.readback import read_all_back
from trilogue.bench.load.verification import Verdict
from trilogue.bench.load.workload import Workload
from trilogue.client import Ack, Client, Message

WINDOW_SESSIONS = 10_000
BURST_MESSAGES = 256
SAMPLED_EVERY = 50
TRY_AGAIN_S = 0.01
HEADS_SESSIONS = 10_000
SENDER = "bench"


class Plan:
    """Who gets what: `job.sessions` sessions with as many messages each, and those of them that are asked later."""

    def __init__(self, job: Job) -> None:
        self.sessions, self.each = job.sessions, job.messages // job.sessions
        self._prefix = job.prefix
        self.body = Workload(job.messages + job.sessions, job.sessions, job.body_bytes, job.seed).bodies()
        drawn = random.Random(job.seed).sample(range(job.sessions), min(job.sessions, 2 * job.asked + job.read_back))
        self.read = drawn[: job.asked]
        self.sent = drawn[job.asked : 2 * job.asked]
        self.checked = drawn

    def name(self, session: int) -> str:
        """What the session is called."""
        return f"{self._prefix}session-{session}"

    def number(self, session: int, seq: int) -> int:
        """The number of a session's message in the whole load: its body follows from it."""
        return session * (self.each + 1) + seq - 1

    def in_order(self) -> Iterator[tuple[int, int]]:
        """(session, seq) of each message, in the order of the hand-over."""
        for first in range(0, self.sessions, WINDOW_SESSIONS):
            for seq in range(1, self.each + 1):
                for session in range(first, min(first + WINDOW_SESSIONS, self.sessions)):
                    yield session, seq

    def judge(self, session: int, history: Sequence[Message], messages: int) -> Verdict:
        """What was read back of a session that was given so many messages."""
        verdict = Verdict()
        name = self.name(session)
        seqs = [message.seq for message in history]
        if seqs != sorted(set(seqs)):
            verdict.found("reordered", f"{name} is read back as {seqs[:10]}")
        by_seq = {message.seq: message for message in history}
        for seq in range(1, messages + 1):
            message = by_seq.pop(seq, None)
            if message is None or message.body != self.body(self.number(session, seq)) or message.sender != SENDER:
                verdict.found("lost", f"{name} seq {seq} {'cannot be read back' if message is None else 'is another message'}")
        for seq in by_seq:
            verdict.found("duplicated", f"{name} seq {seq} answers to no hand-over")
        return verdict


class Judge:
    """Hears every ack, and counts what is wrong with it."""

    def __init__(self, plan: Plan, copies: int) -> None:
        self.verdict = Verdict()
        self.came = 0
        self._plan, self._copies = plan, copies

    def heard(self, session: int, seq: int, future: asyncio.Future[Ack]) -> None:
        """The ack of message `seq` of a session is here, or will never come."""
        self.came += 1
        error = future.exception()
        if error is not None:
            self.verdict.found("lost", f"{self._plan.name(session)} seq {seq}: {error}")
        else:
            self.check(session, seq, future.result())

    def check(self, session: int, seq: int, ack: Ack) -> None:
        """Whether the ack is evidence for this message at this place."""
        name = self._plan.name(session)
        if ack.session != name or ack.copies < self._copies:
            self.verdict.found("lost", f"the ack of {name} seq {seq} names {ack.session} and {ack.copies} copies")
        elif ack.seq != seq:
            self.verdict.found("duplicated" if ack.seq > seq else "reordered", f"{name} seq {seq} was acked as {ack.seq}")


async def fill(job: Job, pulse: Pulse) -> Report:
    """Send all messages as fast as they are taken."""
    plan = Plan(job)
    judge, acks, meter = Judge(plan, job.copies), Acks(pulse), CpuMeter(job.pids)
    names = [plan.name(session) for session in range(plan.sessions)]
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
        pulse.enter("filling the sessions", job.messages)
        gc.collect()
        gc.freeze()
        meter.start()
        began = time.perf_counter()
        for handed, (session, seq) in enumerate(plan.in_order()):
            body = plan.body(plan.number(session, seq))
            while True:
                moment = time.perf_counter_ns()
                try:
                    future = client.post(names[session], body)
                    break
                except Overloaded:
                    await client.drain()
            future.add_done_callback(partial(judge.heard, session, seq))
            if handed % SAMPLED_EVERY == 0:
                future.add_done_callback(partial(acks.came, moment))
            if handed % BURST_MESSAGES == 0:
                pulse.done = handed
                await asyncio.sleep(0)
        await client.flush()
        seconds = time.perf_counter() - began
        cpu_s = meter.stop()
        await asyncio.sleep(0)
    if judge.came < job.messages:
        raise Unavailable(f"{job.messages - judge.came} of {job.messages} messages were not acked")
    return report_of(job.messages, plan.sessions, seconds, acks.histogram(), cpu_s, judge.verdict)


async def first(job: Job, pulse: Pulse) -> Report:
    """One message as soon as the system takes it: `ended_ns` is the moment of its ack on the machine's clock."""
    pulse.enter("waiting for the first ack", 1)
    while True:
        try:
            async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
                ack = await client.send(f"{job.prefix}first", b"x" * job.body_bytes)
                ended_ns = time.monotonic_ns()
                break
        except Unavailable:
            pulse.acks += 1  # it is not stuck: there is nobody yet
            await asyncio.sleep(TRY_AGAIN_S)
    verdict = Verdict()
    if ack.copies < job.copies:
        verdict.found("lost", f"the first ack names {ack.copies} of {job.copies} copies")
    cpu_s: dict[str, float | None] = dict.fromkeys(("client", "session", "store"))
    report = report_of(1, 1, 1.0, Histogram(), cpu_s, verdict)
    return report.model_copy(update={"ended_ns": ended_ns})


async def cold(job: Job, pulse: Pulse) -> Report:
    """The first page of some sessions, and the first message to some others, one at a time."""
    plan = Plan(job)
    judge, acks = Judge(plan, job.copies), Acks(pulse)
    reads = Histogram()
    meter = CpuMeter(job.pids)
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
        await client.send(f"{job.prefix}first", b"warm")
        meter.start()
        began = time.perf_counter()
        pulse.enter("reading cold sessions", len(plan.read))
        for session in plan.read:
            moment = time.perf_counter_ns()
            page = await client.history(plan.name(session))
            reads.record_ns(time.perf_counter_ns() - moment)
            judge.verdict.add(plan.judge(session, page, plan.each))
            pulse.done += 1
        pulse.enter("sending to cold sessions", len(plan.sent))
        seq = plan.each + 1
        for session in plan.sent:
            body = plan.body(plan.number(session, seq))
            moment = time.perf_counter_ns()
            ack = await client.send(plan.name(session), body)
            acks.came(moment)
            judge.check(session, seq, ack)
            pulse.done += 1
        seconds = time.perf_counter() - began
        cpu_s = meter.stop()
    report = report_of(len(plan.sent), len(plan.sent), seconds, acks.histogram(), cpu_s, judge.verdict)
    return report.model_copy(update={"cold": Cold(history=reads.encode(), send=acks.histogram().encode())})


async def look(job: Job, pulse: Pulse) -> Report:
    """How far all sessions are, and what the drawn ones hold, as another client reads it."""
    plan = Plan(job)
    verdict = Verdict()
    sent = set(plan.sent)
    began = time.perf_counter()
    async with Client(sender=SENDER, outbox=None, address=job.address, token=job.token) as client:
        pulse.enter("asking how far all sessions are", plan.sessions)
        for start in range(0, plan.sessions, HEADS_SESSIONS):
            part = range(start, min(start + HEADS_SESSIONS, plan.sessions))
            heads = await client.heads([plan.name(session) for session in part])
            for session in part:
                head, expected = heads[plan.name(session)], plan.each + (session in sent)
                if head != expected:
                    verdict.found("lost" if head < expected else "duplicated", f"{plan.name(session)} is at {head}")
            pulse.done = part.stop
        pulse.enter("reading back", len(plan.checked) * plan.each)
        numbers = {plan.name(session): session for session in plan.checked}

        def judge(name: str, history: Sequence[Message]) -> Verdict:
            return plan.judge(numbers[name], history, plan.each + (numbers[name] in sent))

        verdict.add(await read_all_back(client, list(numbers), pulse, judge))
    seconds = time.perf_counter() - began
    cpu_s: dict[str, float | None] = dict.fromkeys(("client", "session", "store"))
    return report_of(pulse.done, len(plan.checked), seconds, Histogram(), cpu_s, verdict)


def report_of(
    messages: int, sessions: int, seconds: float, histogram: Histogram, cpu_s: dict[str, float | None], verdict: Verdict
) -> Report:
    """The report of a load that keeps no acks."""
    found = Found(lost=verdict.lost, duplicated=verdict.duplicated, reordered=verdict.reordered, examples=verdict.examples)
    return Report(
        messages=messages, sessions=sessions, senders=1, seconds=seconds, histogram=histogram.encode(), sampled_every=1,
        acked_at_s=list(array("d")), cpu_s=cpu_s, messages_by_session={}, found=found,
    )  # fmt: skip


LOADS = {"fill": fill, "first": first, "cold": cold, "look": look}
