"""A load that does not stop while the system is hurt: so many messages a second, on time, whatever has become of the last ones.

Owns the sending at a fixed rate until the driver says that it is over, and what is written down of it. It must not know what
is done to the system meanwhile. Rules:

1. A message is handed over when its time has come, not when another was acked: there is one every millisecond or so, also
   right after a fault, and a wait is never hidden by not sending.
2. No more than `in_flight_max` messages are in flight. What falls due meanwhile is left out, and not made up for.
3. Its moment is taken before a message is handed over, and after its ack has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.ids import partition_of
from trilogue.bench.load.job import Job
from trilogue.bench.load.metrics import Histogram
from trilogue.bench.load.pouring import Item, Pulse
from trilogue.bench.load.stalls import Moments, Watch
from trilogue.bench.load.workload import Workload
from trilogue.client import Ack, Client

TICK_S = 0.001


class Steady:
    """What is sent, by number and without an end, and what became of it."""

    def __init__(self, job: Job, pulse: Pulse) -> None:
        """Raises `UsageError` if the job's numbers cannot be used."""
        workload = Workload(job.sessions, job.sessions, job.body_bytes, job.seed)
        self._job, self._pulse = job, pulse
        self._sessions = sessions_of(job.prefix, job.sessions, job.partitions)
        self._body = workload.bodies()
        self.moments = Moments([partition_of(session, job.partitions) for session in self._sessions])
        self.watch = Watch(job.partitions)
        self.acks: list[Ack | None] = []
        self._failures: list[str] = []

    @property
    def messages(self) -> int:
        """How many were handed over."""
        return len(self.acks)

    def item(self, number: int) -> Item:
        """One item, as often as it is asked for."""
        return self._sessions[number % len(self._sessions)], self._body(number), None

    def by_session(self) -> dict[str, Sequence[int]]:
        """For each session the numbers of its items, in the order in which they were sent."""
        count = len(self._sessions)
        return {session: range(k, self.messages, count) for k, session in enumerate(self._sessions[: self.messages])}

    async def send(self, client: Client, over: Callable[[], bool]) -> None:
        """Hand over at the job's rate until it is over."""
        clock, owed, last_ns = time.monotonic_ns, 1.0, time.monotonic_ns()
        while not over():
            now_ns = clock()
            owed += (now_ns - last_ns) * self._job.messages_per_s / 1e9
            last_ns = now_ns
            due, room = int(owed), max(0, self._job.in_flight_max - client.waiting)
            for _ in range(min(due, room)):
                session, body, _ = self.item(self.messages)
                number = self.moments.hand_over(clock())
                self.acks.append(None)
                client.post(session, body).add_done_callback(partial(self._came, number))
            owed -= due
            self._pulse.done = self.messages
            await asyncio.sleep(TICK_S)

    def all_acks(self) -> list[Ack]:
        """The acks of all messages; raises `Unavailable` if one of them has none."""
        acks = [ack for ack in self.acks if ack is not None]
        if len(acks) < self.messages:
            why = self._failures[0] if self._failures else "flush returned before its ack"
            raise Unavailable(f"{self.messages - len(acks)} of {self.messages} messages were not acked: {why}")
        return acks

    def histogram(self) -> Histogram:
        """How long the acks took, all of them, those that a fault held up included."""
        histogram = Histogram()
        for handed_ns, acked_ns in zip(self.moments.handed_ns, self.moments.acked_ns, strict=True):
            histogram.record_ns(acked_ns - handed_ns)
        return histogram

    def _came(self, number: int, future: asyncio.Future[Ack]) -> None:
        now_ns = time.monotonic_ns()
        if (error := future.exception()) is not None:
            self._failures.append(f"{type(error).__name__}: {error}")
            return
        ack, moments = future.result(), self.moments
        self.acks[number] = ack
        moments.acked_ns[number] = now_ns
        moments.epochs[number] = ack.epoch
        self.watch.came(moments.partition(number), moments.handed_ns[number], now_ns, ack.epoch)
        self._pulse.acks += 1


def sessions_of(prefix: str, count: int, partitions: int) -> list[str]:
    """`count` sessions, or as many more as give each partition the same number, in turn: every partition gets its messages in
    even steps."""
    each = -(-count // partitions)
    found: list[list[str]] = [[] for _ in range(partitions)]
    number, missing = 0, partitions * each
    while missing:
        name = f"{prefix}session-{number}"
        number += 1
        of_it = found[partition_of(name, partitions)]
        if len(of_it) < each:
            of_it.append(name)
            missing -= 1
    return [of_it[k] for k in range(each) for of_it in found]
