"""The recipe's first run: as many messages as one client gets in, then one at a time; all of it read back and judged.

Owns the sending, its clocks and the reading back. It must not know how the servers were started or how a result looks.
Invariants: a session's messages go over one connection, one batch after the other, so that their order holds; a message's
latency runs from the hand-over of its batch to the answer that it is stored; what is judged comes over a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from trilogue.bench.load.metrics import CpuMeter, Histogram
from trilogue.bench.load.verification import HandedOver, Verdict, judge_session
from trilogue.bench.load.workload import Workload
from trilogue.bench.recipe.path import Entry, Parcel, Recipe, Stored, connected
from trilogue.bench.report.progress import Progress
from trilogue.client import Ack, Message

CONNECTIONS = 4
BATCH_MESSAGES = 256
LONELY = "lonely"
SENDER = "recipe"
SHOWN_EVERY_S = 0.5


@dataclass(slots=True)
class Sent:
    """What was handed over and answered, by session and in order."""

    by_session: dict[str, list[tuple[Parcel, Stored]]] = field(default_factory=lambda: defaultdict(list))
    count: int = 0

    def add(self, parcels: Sequence[Parcel], answers: Sequence[Stored]) -> None:
        """These were answered."""
        for parcel, stored in zip(parcels, answers, strict=True):
            self.by_session[parcel.session].append((parcel, stored))
        self.count += len(parcels)


@dataclass(frozen=True, slots=True)
class Measured:
    """The first run. `cpu_s` is the processor time of this process and of the servers while the clock ran."""

    seconds: float
    loaded: Histogram
    lonely: Histogram
    cpu_s: dict[str, float | None]
    found: Verdict


class Load:
    """Messages to one Redis."""

    def __init__(self, url: str, replicas: int, pids: Sequence[int], progress: Progress) -> None:
        self._url, self._replicas, self._pids = url, replicas, pids
        self._progress = progress
        self._sent = Sent()

    async def run(self, workload: Workload, warm_up: int, lonely: int, lonely_warm_up: int) -> Measured:
        """Send the workload (`warm_up` of its messages before the clock starts), then `lonely` ones, and judge all of them."""
        parcels = parcels_of(workload)
        async with contextlib.AsyncExitStack() as stack:
            recipes = [await stack.enter_async_context(connected(self._url, self._replicas)) for _ in range(CONNECTIONS)]
            await self._pour(recipes, parcels[:warm_up], Histogram(), "warming up")
            loaded, meter = Histogram(), CpuMeter({"store": self._pids})
            gc.collect()
            gc.freeze()
            gc.disable()
            meter.start()
            began = time.perf_counter()
            await self._pour(recipes, parcels[warm_up:], loaded, "sending")
            seconds = time.perf_counter() - began
            cpu_s = meter.stop()
            gc.enable()
            alone = Histogram()
            body = workload.bodies()
            await self._drip(recipes[0], [Parcel(LONELY, n, body(n)) for n in range(1, lonely_warm_up + 1)], Histogram())
            rest = range(lonely_warm_up + 1, lonely_warm_up + lonely + 1)
            await self._drip(recipes[0], [Parcel(LONELY, n, body(n)) for n in rest], alone)
        return Measured(seconds, loaded, alone, cpu_s, await self._verdict())

    async def _pour(self, recipes: Sequence[Recipe], parcels: Sequence[Parcel], histogram: Histogram, phase: str) -> None:
        shares = shared_out(parcels, len(recipes))
        before = self._sent.count
        shown = asyncio.create_task(self._show(phase, before, len(parcels)))
        try:
            async with asyncio.TaskGroup() as senders:
                for recipe, share in zip(recipes, shares, strict=True):
                    senders.create_task(self._send(recipe, share, histogram))
        finally:
            shown.cancel()

    async def _send(self, recipe: Recipe, share: Sequence[Parcel], histogram: Histogram) -> None:
        for first in range(0, len(share), BATCH_MESSAGES):
            batch = share[first : first + BATCH_MESSAGES]
            handed_over = time.perf_counter_ns()
            answers = await recipe.store_all(batch)
            took = time.perf_counter_ns() - handed_over
            histogram.record_ns(took, len(batch))
            self._sent.add(batch, answers)

    async def _drip(self, recipe: Recipe, parcels: Sequence[Parcel], histogram: Histogram) -> None:
        self._progress.phase("sending one at a time")
        for parcel in parcels:
            handed_over = time.perf_counter_ns()
            stored = await recipe.store(parcel)
            histogram.record_ns(time.perf_counter_ns() - handed_over)
            self._sent.add([parcel], [stored])

    async def _show(self, phase: str, before: int, total: int) -> None:
        while True:
            self._progress.phase(phase, self._sent.count - before, total)
            await asyncio.sleep(SHOWN_EVERY_S)

    async def _verdict(self) -> Verdict:
        verdict = Verdict()
        async with connected(self._url, 0) as reader:
            for done, (session, sent) in enumerate(self._sent.by_session.items()):
                self._progress.phase("reading back", done, len(self._sent.by_session))
                verdict.add(judge_stream(session, sent, await reader.read_all(session), 1 + self._replicas))
        return verdict


def parcels_of(workload: Workload) -> list[Parcel]:
    """The workload's messages in order, each with its number in its session."""
    body, last = workload.bodies(), [0] * workload.sessions
    names = [f"session-{k}" for k in range(workload.sessions)]
    parcels: list[Parcel] = []
    for number, session in enumerate(workload.order()):
        last[session] += 1
        parcels.append(Parcel(names[session], last[session], body(number)))
    return parcels


def shared_out(parcels: Sequence[Parcel], connections: int) -> list[list[Parcel]]:
    """For each connection its messages in order: a session belongs to one."""
    shares: list[list[Parcel]] = [[] for _ in range(connections)]
    owner: dict[str, int] = {}
    for parcel in parcels:
        shares[owner.setdefault(parcel.session, len(owner) % connections)].append(parcel)
    return shares


def judge_stream(session: str, sent: Sequence[tuple[Parcel, Stored]], entries: Sequence[Entry], copies: int) -> Verdict:
    """The judge of trilogue's own benchmarks, on what the recipe answered and on what its stream holds."""
    handed = [
        HandedOver(SENDER, parcel.body, Ack(session, seq, SENDER, SENDER, parcel.n, of_it, 0, duplicate))
        for parcel, (seq, of_it, duplicate) in sent
    ]
    history = [Message(session, seq, SENDER, SENDER, n, body, 0, 0) for seq, n, body in entries]
    return judge_session(session, handed, history, copies)
