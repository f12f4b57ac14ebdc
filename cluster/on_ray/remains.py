"""Is the system of a run file alive, or are these its remains?

Owns the judgement, and the cleaning up after a system that died. It must not know how one is started. Invariants: a
system of which one actor answers is alive; what Ray is restarting, or what is still dying, is given its time; only
processes that `up` started are ended, and no data is removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.cluster.commands.streams import first_that_answers, run
from trilogue.cluster.on_ray.processes import boot_mark, is_dead, members, name_of
from trilogue.cluster.on_ray.ray_head import end_head, keep_logs
from trilogue.cluster.settings.runfile import PROGRAM, RayRun, RunFile, data_run_file, read_run_file, remove_run_files

COME_BACK_S = 15.0
DIE_S = 10.0
POLL_S = 0.1
Progress = Callable[[str], None]


def answers(known: RunFile) -> str:
    """An address at which the system answers now; empty when it does not."""
    try:
        return run(first_that_answers(known.addresses, known.token()))
    except TrilogueError:
        return ""


def runs(known: RunFile, progress: Progress = lambda _: None) -> str:
    """An address at which the system answers; empty when it is dead for good.

    Actors that have just been killed are given the time that Ray takes to restart them. A private Ray follows its
    program within seconds: one whose program has been killed is given the time to die.
    """
    if known.ray.session_id:
        return _comes_back(known, progress)
    program = known.ray.pids.get(PROGRAM, 0)
    deadline = time.monotonic() + (DIE_S if program and is_dead(program, known.ray.boot) else 0.0)
    while (address := answers(known)) and time.monotonic() < deadline:
        progress("waiting for the end of a program that was killed")
        time.sleep(POLL_S)
    return address


def clean(known: RunFile) -> None:
    """Remove what a dead system left: its processes, its Ray's temporary directory, its run files."""
    if known.ray.session_id:
        end_head(known.ray, Path(known.data))
    elif known.ray.pids.get(PROGRAM):
        keep_logs(known.ray.temp_dir, Path(known.data))
    remove_run_files(known)


def _comes_back(known: RunFile, progress: Progress) -> str:
    """As `runs`, for a head of ours. One that has no actors was being started by an `up` that was killed."""
    deadline = time.monotonic() + COME_BACK_S
    while known.actors and _head_is_alive(known.ray) and time.monotonic() < deadline:
        if address := answers(known):
            return address
        progress("waiting for actors that are being restarted")
        time.sleep(POLL_S)
        known = read_run_file(data_run_file(Path(known.data))) or known
    return ""


def _head_is_alive(ray_run: RayRun) -> bool:
    """A head without its raylet or its GCS is dying: its actors follow within a minute."""
    if ray_run.boot != boot_mark():
        return False
    return {"raylet", "gcs_server"} <= {name_of(process) for process in members(ray_run.session_id, ray_run.boot)}
