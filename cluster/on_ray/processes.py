"""The processes that we started, told apart from everybody else's.

Owns how a Ray head of our own is recognised and ended. A head is started in a POSIX session of its own, which its
raylet and its actors inherit: that session's id names all of them and nobody else. It must not know what they run.
Invariants: `ray stop` is never called; a process outside the session never gets a signal; the raylet ends first, so
that nothing is restarted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

RAYLET_WAIT_S = 6.0
TERMINATE_WAIT_S = 0.5
KILL_WAIT_S = 10.0


def boot_mark() -> str:
    """Names this boot and pid namespace: ids of processes mean nothing in another one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{psutil.boot_time():.0f}"


def members(session_id: int, boot: str) -> list[psutil.Process]:
    """The living processes of the POSIX session `session_id`, which was started under `boot`.

    Its leader (`ray start`) has ended long ago, and the kernel gives its id to no process while the session lives: a
    leader that is alive belongs to a later session of the same id, and so does everything in it. One that nobody has reaped
    is no such leader.
    """
    if session_id <= 1 or boot != boot_mark() or alive(session_id):
        return []
    return _in_session(session_id)


def end_session(session_id: int, boot: str) -> int:
    """End every process of the session and wait until they are gone; return how many there were."""
    found = members(session_id, boot)
    raylets = [process for process in found if name_of(process) == "raylet"]
    _signal(raylets, "terminate")
    psutil.wait_procs(raylets, RAYLET_WAIT_S)
    rest = members(session_id, boot)
    _signal(rest, "terminate")
    psutil.wait_procs(rest, TERMINATE_WAIT_S)
    deadline = time.monotonic() + KILL_WAIT_S
    while (left := members(session_id, boot)) and time.monotonic() < deadline:
        _signal(left, "kill")
        psutil.wait_procs(left, 0.2)
    return len(found)


def kill_session_of(leader: int) -> None:
    """Kill what a leader that we have just reaped left behind: for a start that failed half-way."""
    for process in _in_session(leader):
        with contextlib.suppress(psutil.Error):
            process.kill()


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_for_actors(pids: Iterable[int], seconds: float) -> None:
    """Wait until these Ray actors' processes of this machine have ended, `seconds` at most. Ids of other things are not
    waited for.
    """
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                found.append(process)
    deadline = time.monotonic() + seconds
    while any(alive(process.pid) for process in found) and time.monotonic() < deadline:
        psutil.wait_procs(found, 0.05)


def is_dead(pid: int, boot: str) -> bool:
    """Whether the process `pid` of `boot` has ended for certain: an id of another boot or namespace says nothing."""
    return boot == boot_mark() and not alive(pid)


def _in_session(session_id: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def name_of(process: psutil.Process) -> str:
    """Its name; empty when it has just ended."""
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _signal(processes: list[psutil.Process], how: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            getattr(process, how)()
