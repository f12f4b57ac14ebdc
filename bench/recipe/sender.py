"""The process that is killed: it sends one message after another by the recipe, and says what it has handed over and what came.

Owns one sender's life in the second run. It must not know when it will be killed. Invariants: it says that a message is
handed over before its first command leaves, and what the answer was before the next message; each line goes out in one write,
so that a kill leaves whole lines. What it says on standard output, with the number of the message:

    handed N                 its first command comes next
    at N STEP                the step was answered, and it waits there to be killed: only where its job says so
    stored N SEQ             the recipe's answer
    duplicate N              the other one: it is taken for stored
"""

from __future__ import annotations

import os
import sys
import time

import uvloop
from pydantic import BaseModel, ConfigDict

from trilogue.bench.load.workload import Workload
from trilogue.bench.recipe.path import Parcel, connected

# Longer than any run, should nobody come to kill it.
WAITS_FOR_ITS_END_S = 120


class SenderJob(BaseModel):
    """Send the messages from `first` to `last` of a session; wait at `halt_step` of message `halt_at` (0: nowhere)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    replicas: int
    session: str
    body_bytes: int
    seed: int
    first: int
    last: int
    halt_at: int = 0
    halt_step: str = ""


async def send(job: SenderJob) -> None:
    """One at a time, in order."""
    body = Workload(1, 1, job.body_bytes, job.seed).bodies()
    async with connected(job.url, job.replicas) as recipe:
        for n in range(job.first, job.last + 1):

            def reached(step: str, n: int = n) -> None:
                if n == job.halt_at and step == job.halt_step:
                    say(f"at {n} {step}")
                    time.sleep(WAITS_FOR_ITS_END_S)
                    raise SystemExit("nobody came to kill it")

            say(f"handed {n}")
            stored = await recipe.store(Parcel(job.session, n, body(n)), reached)
            say(f"duplicate {n}" if stored.duplicate else f"stored {n} {stored.seq}")


def say(line: str) -> None:
    """One line, in one write."""
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


if __name__ == "__main__":
    uvloop.run(send(SenderJob.model_validate_json(sys.stdin.readline())))
