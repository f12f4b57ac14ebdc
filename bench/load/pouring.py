"""Handing messages to a client: as fast as it takes them, or one by one; and the moments of their acks.

Owns the clocks of a measurement: it starts with the first hand-over and ends with the last ack. It must not know what the
messages mean. Invariants: every message has a future of its own that is kept to the end; nothing but the hand-over and the
sampling of acks happens while the clock runs.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from trilogue.actors.protocol.errors import Overloaded
from trilogue.bench.load.metrics import Histogram
from trilogue.client import Ack, Client

# One message to hand over: its session, its body, and who speaks (None: the client's own sender). A plain tuple, because
# one is made for each message while the clock runs.
Item = tuple[str, bytes, str | None]


@dataclass(slots=True)
class Pulse:
    """Where the work is, for those who watch it."""

    phase: str = "connecting"
    done: int = 0
    total: int = 0
    acks: int = 0

    def enter(self, phase: str, total: int) -> None:
        """A new phase of `total` steps begins."""
        self.phase, self.done, self.total = phase, 0, total


@dataclass(slots=True)
class Acks:
    """The sampled acks of one measurement: how long each took, and when it came."""

    pulse: Pulse
    waits_ns: array[int] = field(default_factory=lambda: array("Q"))
    moments_ns: array[int] = field(default_factory=lambda: array("Q"))

    def came(self, handed_over_ns: int, _: object = None) -> None:
        """The ack of a message that was handed over then is here."""
        now = time.perf_counter_ns()
        self.waits_ns.append(now - handed_over_ns)
        self.moments_ns.append(now)
        self.pulse.acks += 1

    def histogram(self) -> Histogram:
        """How long the sampled acks took."""
        histogram = Histogram()
        for wait in self.waits_ns:
            histogram.record_ns(wait)
        return histogram


async def pour(
    client: Client, items: Iterable[Item], acks: Acks, *, sampled_every: int, burst_messages: int
) -> list[asyncio.Future[Ack]]:
    """Hand over all items as fast as the client takes them, and wait until all are acked.

    The loop gets a turn after each burst, so that acks are read while messages are made, and whenever the outbox is full.
    """
    futures: list[asyncio.Future[Ack]] = []
    post, keep, clock, pulse = client.post, futures.append, time.perf_counter_ns, acks.pulse
    for number, (session, body, sender) in enumerate(items):
        while True:
            try:
                future = post(session, body, sender=sender)
                break
            except Overloaded:
                await client.drain()
        keep(future)
        if number % sampled_every == 0:
            future.add_done_callback(partial(acks.came, clock()))
        if number % burst_messages == 0:
            pulse.done = number
            await asyncio.sleep(0)
    await client.flush()
    pulse.done = len(futures)
    return futures


async def drip(client: Client, items: Iterable[Item], acks: Acks) -> list[asyncio.Future[Ack]]:
    """Hand over one item at a time, and wait for its ack before the next one."""
    futures: list[asyncio.Future[Ack]] = []
    loop, clock, pulse = asyncio.get_running_loop(), time.perf_counter_ns, acks.pulse
    for session, body, sender in items:
        handed_over = clock()
        ack = await client.send(session, body, sender=sender)
        acks.came(handed_over)
        future: asyncio.Future[Ack] = loop.create_future()
        future.set_result(ack)
        futures.append(future)
        pulse.done += 1
    return futures
