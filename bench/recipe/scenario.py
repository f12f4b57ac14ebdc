"""`trilogue bench redis-recipe`: servers, the first run, the second run, and the result made of them.

Owns the defaults, the settings of the servers, and the order of the runs. It must not know how a message is stored or how a
kill is counted. Invariants: every server syncs each command to its disk before it answers (`appendfsync always`); the first run
was read back and judged; all servers have ended when the scenario returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop
from redis import Redis, RedisError

from trilogue.actors.protocol.errors import Unavailable, UsageError
from trilogue.bench import scenarios
from trilogue.bench.floor.floor import measure_floor
from trilogue.bench.load.workload import Workload
from trilogue.bench.recipe.crashes import crash
from trilogue.bench.recipe.load import BATCH_MESSAGES, CONNECTIONS, Load, Measured
from trilogue.bench.recipe.path import DEDUPE_S
from trilogue.bench.recipe.server import HOST, RedisServer, find_server
from trilogue.bench.report.machine import commit, machine_facts
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import Beside, CpuUs, RecipeResult
from trilogue.bench.scenarios import Outcome
from trilogue.bench.systems import Where, scratch_directory

MESSAGES = 100_000
LATENCY_MESSAGES = 2_000
CRASHES = 40
CRASHES_MAX = 500
REPLICAS_MAX = 4
FLOOR_PART_S = 0.5
REPLICAS_DEADLINE_S = 30.0
POLL_S = 0.02
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
NO_SERVER = (
    "no redis-server here: `make redis` fetches one into .venv, `apt-get install redis-server` installs one, "
    "or name one in REDIS_SERVER"
)


def redis_recipe(
    where: Where,
    progress: Progress,
    *,
    messages: int,
    sessions: int,
    body_bytes: int,
    wait: int,
    crashes: int,
    compare: bool,
    seed: int,
) -> Outcome:
    """The recipe on servers of its own, and what it loses. Raises `Unavailable` where there is no Redis."""
    Workload(messages, sessions, body_bytes, seed)
    workload = Workload(messages + scenarios.warm_up_of(messages), sessions, body_bytes, seed)
    for option, value, highest in (("--wait", wait, REPLICAS_MAX), ("--crashes", crashes, CRASHES_MAX)):
        if not 0 <= value <= highest:
            raise UsageError(f"{option} {value}: between 0 and {highest}")
    binary = find_server()
    if binary is None:
        raise Unavailable(NO_SERVER)
    with scratch_directory(where) as directory:
        progress.phase("measuring the floor")
        floor = measure_floor(directory, latency_s=FLOOR_PART_S, rate_s=FLOOR_PART_S)
        try:
            with _servers(binary, directory, wait) as servers:
                url, version = servers[0].url, _version(servers[0])
                load = Load(url, wait, [server.pid for server in servers], progress)
                warm_up = len(workload.order()) - messages
                lonely = min(LATENCY_MESSAGES, messages)
                measured = uvloop.run(load.run(workload, warm_up, lonely, scenarios.warm_up_of(lonely)))
                lost, wrong = crash(url, wait, crashes, body_bytes, seed, progress) if crashes else (None, [])
        except (RedisError, ExceptionGroup) as error:
            raise _as_ours(error) from error
        progress.phase("measuring the floor")
        floor = floor.and_also(measure_floor(directory, latency_s=FLOOR_PART_S, rate_s=FLOOR_PART_S))
        machine = machine_facts(directory)
    beside = _trilogue(where, progress, messages, sessions, body_bytes, seed) if compare else None
    settings: dict[str, Any] = {
        "sessions": sessions, "body_bytes": body_bytes, "connections": CONNECTIONS, "batch_messages": BATCH_MESSAGES,
        "wait": wait, "servers": 1 + wait, "appendfsync": "always", "dedupe_s": DEDUPE_S, "copies": 1 + wait, "seed": seed,
    }  # fmt: skip
    result = RecipeResult(
        command="redis-recipe",
        commit=commit(),
        machine=machine,
        settings=settings,
        messages=messages,
        seconds=round(measured.seconds, 4),
        messages_per_s=round(messages / measured.seconds, 1),
        latency_ms=measured.loaded.latency_ms(),
        lost=measured.found.lost,
        duplicated=measured.found.duplicated,
        reordered=measured.found.reordered,
        cpu_us_per_message=_cpu_us(measured, messages),
        floor=floor.figures(),
        rows=[],
        server=version,
        lonely_ms=measured.lonely.latency_ms(),
        crash=lost,
        unexplained=len(wrong),
        trilogue=beside,
    )
    curves = {"full load": measured.loaded.curve_ms(), "one in flight": measured.lonely.curve_ms()}
    return Outcome(result, [*measured.found.examples, *wrong[:10]], floor=floor, curves=dict(curves))


@contextmanager
def _servers(binary: Path, directory: Path, replicas: int) -> Iterator[list[RedisServer]]:
    """A primary and its replicas, which have caught up."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer(binary, directory / "redis", DURABLE))
        follow = {**DURABLE, "replicaof": f"{HOST} {primary.port}"}
        others = [RedisServer(binary, directory / f"replica-{k + 1}", follow) for k in range(replicas)]
        servers = [primary, *map(stack.enter_context, others)]
        with Redis.from_url(primary.url) as client:
            deadline = time.monotonic() + REPLICAS_DEADLINE_S
            while _online(client) < replicas:
                if time.monotonic() > deadline:
                    raise Unavailable(f"the replicas did not follow within {REPLICAS_DEADLINE_S:g} s: try again")
                time.sleep(POLL_S)
        yield servers


def _online(client: Redis) -> int:
    known: dict[str, Any] = dict(client.info("replication"))
    return sum(isinstance(one, dict) and one.get("state") == "online" for one in known.values())


def _version(server: RedisServer) -> str:
    with Redis.from_url(server.url) as client:
        known: dict[str, Any] = dict(client.info("server"))
    name = "Valkey" if "valkey_version" in known else "Redis"
    return f"{name} {known.get('valkey_version', known['redis_version'])}"


def _cpu_us(measured: Measured, messages: int) -> CpuUs:
    def each(role: str) -> float | None:
        used = measured.cpu_s.get(role)
        return None if used is None else round(used / messages * 1e6, 3)

    return CpuUs(client=each("client"), session=0.0, store=each("store"))


def _trilogue(where: Where, progress: Progress, messages: int, sessions: int, body_bytes: int, seed: int) -> Beside:
    """trilogue's own throughput and latency for the same load. Raises `Unavailable` if they are not clean."""
    progress.about = "trilogue: "
    full = scenarios.throughput(
        where, progress, messages=messages, sessions=sessions, body_bytes=body_bytes, outbox=None, seed=seed
    ).result
    alone = scenarios.latency(where, progress, messages=LATENCY_MESSAGES, seed=seed).result
    progress.about = ""
    if full.failed or alone.failed:
        raise Unavailable("trilogue's own run beside it was not clean: `trilogue bench throughput` says what was found")
    return Beside(
        messages_per_s=full.messages_per_s,
        latency_ms=full.latency_ms,
        lonely_ms=alone.latency_ms,
        cpu_us_per_message=full.cpu_us_per_message,
    )


def _as_ours(error: BaseException) -> Exception:
    """An error of redis-py, or of one of several senders, as one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, RedisError):
        return Unavailable(f"the benchmark's Redis failed: {' '.join(str(error).split())}")
    if isinstance(error, Exception):
        return error
    raise error
