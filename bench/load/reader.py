"""A process full of readers: one client, many subscriptions of one session, each judged message by message.

Owns the readers of one process. It imports no Ray and knows no more of the system than any client does. Invariants: the
collector is frozen and off while messages come; every message that a reader gets goes through its `Tally`; the moment of a
delivery is taken when the reader's own code has it.

Run as ``python -m trilogue.bench.load.reader`` with a `ReaderJob`, one line, on standard input. It says `Heard` in lines on
standard output: when all readers are subscribed, how far they have come (every 20 ms), and at last what they found: when all of
them have everything, or when standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from array import array
from contextlib import suppress
from typing import Any

import uvloop
from pydantic import BaseModel, ConfigDict, Field

from trilogue.bench.load.metrics import Histogram
from trilogue.bench.load.tally import Expected, Tally, moment_of
from trilogue.bench.load.workload import Workload
from trilogue.client import Client
from trilogue.client.reading.subscription import Subscription

TELL_S = 0.02
LAGS_MAX = 200_000


class _Crossing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReaderJob(_Crossing):
    """What a process of readers is told. The readers begin after seq 0 and end when each has `messages`."""

    address: str
    token: str | None = Field(default=None, repr=False)
    session: str
    readers: int
    messages: int
    body_bytes: int
    seed: int


class Heard(_Crossing):
    """How far the readers of a process are: the slowest one's seq, and how many deliveries they got together.

    In the last line `ended` is true, and the rest says what was found: the lags (`Histogram.encode`'s, from hand-over to
    delivery, of the oldest message of each batch that a reader took), the processor time since all were subscribed, and the
    moment of the last delivery.
    """

    at: int = 0
    deliveries: int = 0
    ended: bool = False
    missing: int = 0
    repeated: int = 0
    wrong: int = 0
    lags: str = ""
    cpu_s: float = 0.0
    last_ns: int = 0


class Readers:
    """The readers of this process."""

    def __init__(self, job: ReaderJob) -> None:
        expected = Expected(Workload(job.messages, 1, job.body_bytes, job.seed).bodies(), job.messages)
        self.tallies = [Tally(expected) for _ in range(job.readers)]
        self._lags = array("Q")
        self.last_ns = 0

    async def read(self, subscription: Subscription, tally: Tally) -> None:
        """Read to the end."""
        clock = time.monotonic_ns
        while not tally.done:
            batch = await subscription.batch()
            self.last_ns = now = clock()
            if len(self._lags) < LAGS_MAX:
                self._lags.append(max(now - moment_of(batch[0].body), 0))
            tally.take(batch)

    def heard(self, *, cpu_s: float = 0.0, ended: bool = False) -> Heard:
        """What to say now."""
        at, deliveries = min(tally.at for tally in self.tallies), sum(tally.got for tally in self.tallies)
        if not ended:
            return Heard(at=at, deliveries=deliveries)
        lags = Histogram()
        for lag in self._lags:
            lags.record_ns(lag)
        return Heard(
            at=at,
            deliveries=deliveries,
            ended=True,
            missing=sum(tally.missing for tally in self.tallies),
            repeated=sum(tally.repeated for tally in self.tallies),
            wrong=sum(tally.wrong for tally in self.tallies),
            lags=lags.encode(),
            cpu_s=cpu_s,
            last_ns=self.last_ns,
        )


async def run(job: ReaderJob) -> None:
    """Subscribe, say so, read, and say what was found."""
    readers = Readers(job)
    over = _over()
    async with Client(address=job.address, token=job.token) as client:
        subscriptions = [client.subscribe(job.session, after=0) for _ in readers.tallies]
        for subscription in subscriptions:
            await subscription.__aenter__()
        gc.collect()
        gc.freeze()
        gc.disable()
        say(readers.heard())
        cpu_ns = time.process_time_ns()
        work = [asyncio.create_task(readers.read(*each)) for each in zip(subscriptions, readers.tallies, strict=True)]
        all_read: asyncio.Future[list[None]] = asyncio.gather(*work)
        either: list[asyncio.Future[Any]] = [all_read, over]
        while not all_read.done() and not over.done():
            await asyncio.wait(either, timeout=TELL_S, return_when=asyncio.FIRST_COMPLETED)
            say(readers.heard())
        cpu_s = (time.process_time_ns() - cpu_ns) / 1e9
        all_read.cancel()
        with suppress(asyncio.CancelledError):
            await all_read
        say(readers.heard(cpu_s=cpu_s, ended=True))


def _over() -> asyncio.Future[None]:
    """Done when standard input ends: whoever began this process has had enough, or has gone."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            loop.remove_reader(sys.stdin.fileno())
            if not over.done():
                over.set_result(None)

    loop.add_reader(sys.stdin.fileno(), readable)
    return over


def say(heard: Heard) -> None:
    """Write one line for the process that began this one."""
    sys.stdout.write(heard.model_dump_json(exclude_defaults=True) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the job on standard input."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as unbuffered:
        job = ReaderJob.model_validate_json(unbuffered.readline())
    uvloop.run(run(job))


if __name__ == "__main__":
    main()
