"""Very many idle sessions: what they cost in memory, at a restart, and when somebody comes back to one of them.

Owns the order of `bench sessions`. It must not know how a load works, or how a system is started. Rules:

1. Memory is what a process has for itself (USS), when it is idle. What it grew by is against the same process before the load;
   after a restart, against the restarted empty system.
2. A restart begins with `trilogue up` after everything was killed, and ends with the first ack: with an empty log, and with all
   of the sessions in it. A client tries from the beginning on.
3. Cold sessions are asked after the full restart, each for the first time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trilogue.bench.driver import Load, LoadProcess, Run, job_of, measure, run_load, wait_for_report
from trilogue.bench.load.job import Report
from trilogue.bench.load.metrics import Histogram
from trilogue.bench.report.progress import Progress
from trilogue.bench.report.schema import Memory, Restart, SessionsResult
from trilogue.bench.standing import Standing, standing, until_idle, uss_mib
from trilogue.bench.systems import ROLES, System, Where

Curve = Sequence[tuple[float, float]]

QUIET_S = 3.0
IDLE_TIMEOUT_S = 600.0
ASKED_MAX = 1_000
READ_BACK_SESSIONS_MAX = 20_000
MESSAGES_EACH = 3


def measure_sessions(
    where: Where, progress: Progress, *, sessions: int, body_bytes: int, seed: int
) -> tuple[SessionsResult, Run, dict[str, Curve]]:
    """Fill so many sessions, kill everything, come back; the curves are those of the cold sessions. Raises `Unavailable` when
    the system cannot be had."""
    asked = min(ASKED_MAX, sessions // 4)
    load = Load(
        kind="fill", seed=seed, messages=MESSAGES_EACH * sessions, sessions=sessions, body_bytes=body_bytes, asked=asked,
        read_back=min(READ_BACK_SESSIONS_MAX, sessions - 2 * asked),
        settings={"sessions": sessions, "messages_each": MESSAGES_EACH, "body_bytes": body_bytes, "outbox": "memory"},
    )  # fmt: skip
    with standing(where, progress) as place:
        progress.phase("starting the system")
        system = place.up()
        _run(replace(load, kind="first"), system, progress)
        system, empty_s = _restart(place, system, load, progress, "an empty log")
        pids = _pids(system)
        _idle(pids, progress)
        empty = uss_mib(pids)
        run = measure("sessions", load, system, progress)
        idle_after_s = _idle(pids, progress)
        full = uss_mib(_pids(system))  # by name: an actor may have been replaced
        system, full_s = _restart(place, system, load, progress, f"{sessions:,} sessions")
        pids = _pids(system)
        _idle(pids, progress)
        restarted = uss_mib(pids)
        cold = _run(replace(load, kind="cold"), system, progress)
        seen = _run(replace(load, kind="look"), system, progress)
        memory = _memory(system, empty, full, restarted, uss_mib(pids))
    assert cold.cold is not None
    found = [report.found for report in (run.report, cold, seen)]
    figures: dict[str, Any] = dict(run.figures) | {
        "lost": sum(one.lost for one in found),
        "duplicated": sum(one.duplicated for one in found),
        "reordered": sum(one.reordered for one in found),
        "rows": [],
        "sessions": sessions,
        "memory": memory,
        "session_grew_mib": max(one.grew_mib for one in memory if one.role == "session"),
        "store_grew_mib": max(one.grew_mib for one in memory if one.role == "store"),
        "idle_after_s": round(idle_after_s, 1),
        "restart_s": Restart(empty=round(empty_s, 2), full=round(full_s, 2)),
        "cold_history_ms": Histogram(cold.cold.history).latency_ms(),
        "cold_send_ms": Histogram(cold.cold.send).latency_ms(),
        "asked_sessions": asked,
        "read_back_sessions": seen.sessions,
        "read_back_messages": seen.messages,
    }
    run.report.found.examples.extend(example for one in found[1:] for example in one.examples)
    curves: dict[str, Curve] = {
        "first history": Histogram(cold.cold.history).curve_ms(),
        "first send": Histogram(cold.cold.send).curve_ms(),
    }
    return SessionsResult(**figures), run, curves


def _run(load: Load, system: System, progress: Progress) -> Report:
    return run_load(job_of(load, system), progress, wait_for_report)


def _restart(place: Standing, system: System, load: Load, progress: Progress, what: str) -> tuple[System, float]:
    """Kill everything and start it; how many seconds passed until the first ack."""
    began_ns = 0
    up: list[System] = []

    def conduct(process: LoadProcess, progress: Progress) -> Report:
        nonlocal began_ns
        starting = None
        try:
            for saying in process.sayings():
                progress.phase(f"restarting with {what}")
                if starting is None:
                    began_ns = time.monotonic_ns()
                    starting = place.starting()
                if saying.report is not None:
                    up.append(place.up(starting))
                    return saying.report
        finally:
            if starting is not None and not up:
                starting.kill()
                starting.communicate()
        raise AssertionError("the sayings end with a report")

    progress.phase(f"killing everything: {what}")
    place.kill_everything()
    report = run_load(job_of(replace(load, kind="first"), system), progress, conduct)
    return up[0], (report.ended_ns - began_ns) / 1e9


def _pids(system: System) -> dict[str, int]:
    actors = system.status()["actors"]
    return {name: int(one["pid"]) for name, one in actors.items() if one.get("role") in ROLES and one.get("pid")}


def _memory(system: System, *moments: dict[str, float]) -> list[Memory]:
    """What each process had at the four moments."""
    roles = {name: one["role"] for name, one in system.status()["actors"].items()}
    found = []
    for name in sorted(set.intersection(*map(set, moments))):
        empty, full, restarted, read = (round(moment[name], 1) for moment in moments)
        found.append(
            Memory(name=name, role=roles[name], empty_mib=empty, full_mib=full, restarted_mib=restarted, read_mib=read)
        )
    return found


def _idle(pids: dict[str, int], progress: Progress) -> float:
    return until_idle(pids, QUIET_S, IDLE_TIMEOUT_S, lambda seconds: progress.phase("waiting until all are idle", int(seconds)))
