"""`trilogue up` and `trilogue down`: a system that outlives the command that started it.

Owns the order in which remains are cleaned, Ray is started, and all of it is ended. It must not know how anything
is shown. Invariants: a running system is left as it is; remains of a dead one are ended before anything is started
on its data; data is never removed; only processes that `up` started are ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trilogue.actors.protocol.errors import LaunchError, NotAuthorized, SettingsDiffer, TrilogueError, Unavailable
from trilogue.cluster.commands.find import Known, locate, run_file_behind
from trilogue.cluster.commands.streams import run
from trilogue.cluster.on_ray.ray_head import end_head, head_environment, join, start_head
from trilogue.cluster.on_ray.remains import answers, clean, runs
from trilogue.cluster.settings.asked import Settings, check_running, open_data
from trilogue.cluster.settings.config import ANY_HOST, LOOPBACK, read_record, split_listen
from trilogue.cluster.settings.runfile import (
    RayRun,
    RunFile,
    data_run_file,
    find_run_file,
    read_run_file,
    remove_run_files,
    user_run_file,
)

Progress = Callable[[str], None]


class Outcome(NamedTuple):
    """What `up` did: the system that runs now, and whether it ran before."""

    run: RunFile
    was_running: bool
    overshadowed: str  # the data of another system of this user that keeps running; empty if there is none


def up(settings: Settings, ray_address: str | None, timeout_s: float, progress: Progress) -> Outcome:
    """Start the system of `settings.data`, or find it running. Raises `DataError`, `LaunchError` or `UsageError`."""
    from trilogue.cluster.on_ray.starting import start_lock

    open_data(settings)
    with start_lock(settings):
        return _up(settings, ray_address, timeout_s, progress)


def _up(settings: Settings, ray_address: str | None, timeout_s: float, progress: Progress) -> Outcome:
    from trilogue.cluster.launcher import find_running
    from trilogue.cluster.on_ray.starting import NeedsRescue, check_free, note_start, start_system

    known = read_run_file(data_run_file(settings.data))
    if known is not None:
        if runs(known, progress):
            check_same(settings, known, ray_address)
            overshadowed = _other_system(settings.data)
            if known.started_by == "up":
                known.write(user_run_file())  # the last `up` is the one that commands without --data mean
            return Outcome(known, True, overshadowed)
        progress("cleaning up after a system that died")
        clean(known)
    check_free(settings)
    overshadowed = _other_system(settings.data)
    if ray_address is not None:
        progress(f"joining Ray at {ray_address}")
        join(ray_address)
        if find_running(settings, data_is_given=True) is not None:
            found = read_run_file(data_run_file(settings.data))
            if found is not None:
                return Outcome(found, True, "")
        ray_run = RayRun(ray_address)
    else:
        progress("starting Ray")
        ray_run = started_head(settings)
    noted = note_start(settings, ray_run, "up")
    try:
        if ray_address is None:
            join(ray_run.address, head_environment(Path(ray_run.token_file)))
        start_system(settings, ray_run, "up", timeout_s=timeout_s, run_files=(user_run_file(),), progress=progress)
    except NeedsRescue:
        raise  # it is left running: a rescue asks the stores
    except BaseException:
        end_head(ray_run, settings.data)
        remove_run_files(noted)
        raise
    written = read_run_file(data_run_file(settings.data))
    assert written is not None
    return Outcome(written, False, overshadowed)


def started_head(settings: Settings) -> RayRun:
    """A new Ray head. While it starts, the run file of the data directory already says how to find its remains."""
    from trilogue.cluster.on_ray.starting import note_start

    noted: list[RunFile] = []
    try:
        return start_head(settings.data, lambda begun: noted.append(note_start(settings, begun, "up")))
    except BaseException:
        for known in noted:
            remove_run_files(known)
        raise


def down(address: str | None, data: Path | None, progress: Progress) -> RunFile | None:
    """End what `up` started, and wait until it is gone; None when nothing was running. The data stays.

    Raises `LaunchError` for a system that a program launched and still runs, or that is not on this machine.
    """
    known = _known(address, data)
    if known is None:
        return None
    if known.started_by == "launch":
        if runs(known):
            raise LaunchError(
                f"a program launched the system of {known.data}: end that program, or call its cluster.shutdown()"
            )
        clean(known)
        return None
    if known.ray.session_id:
        progress("ending the actors and Ray")
        ended = end_head(known.ray, Path(known.data))
    else:
        progress(f"ending the actors on Ray at {known.ray.address}")
        ended = _end_on_joined(known)
    remove_run_files(known)
    return known if ended else None


def _known(address: str | None, data: Path | None) -> RunFile | None:
    if address is None and not os.environ.get("TRILOGUE_ADDRESS"):
        try:
            return locate(None, data).run
        except Unavailable:
            return find_run_file(data)
    found: Known = locate(address, data)
    known = run(run_file_behind(found))
    if known is not None and found.token != known.token():
        # Its run file was found by the address alone: nothing has asked an actor yet whether the token is the right one.
        raise NotAuthorized(
            f"TRILOGUE_TOKEN_FILE holds another token than the system at {found.addresses[0]} has: nothing was ended; "
            "leave TRILOGUE_TOKEN_FILE out, or set it to that system's token file"
        )
    if known is None:
        raise LaunchError(f"the system at {found.addresses[0]} was not started on this machine: run `trilogue down` there")
    return known


def check_same(settings: Settings, known: RunFile, ray_address: str | None) -> None:
    """Raise `SettingsDiffer` when the running system is not the one that is asked for."""
    record = read_record(settings.data)
    if record is not None:
        check_running(settings, record)
    if ray_address is not None and ray_address != known.ray.address:
        raise SettingsDiffer(
            f"the system runs already, on the Ray at {known.ray.address}: leave --ray-address out, or `trilogue down` first"
        )
    if settings.listen is None:
        return
    host, port = split_listen(settings.listen)
    first = next(iter(known.actors.values()), "")
    at, _, its_port = first.rpartition(":")
    is_there = at.strip("[]") == host or (host in ANY_HOST and at.strip("[]") not in LOOPBACK)
    if not is_there or (port and its_port != str(port)):
        raise SettingsDiffer(f"the system runs already and listens at {first}, not at {settings.listen}: `trilogue down` first")


def _other_system(data: Path) -> str:
    try:
        other = read_run_file(user_run_file())
    except TrilogueError:
        return ""
    return other.data if other is not None and Path(other.data) != data and answers(other) else ""


def _end_on_joined(known: RunFile) -> int:
    try:
        join(known.ray.address)
    except LaunchError:
        if answers(known):
            raise
        return 0
    from trilogue.cluster.launcher import find_running
    from trilogue.cluster.settings.asked import settings_of

    cluster = find_running(settings_of(data=known.data), data_is_given=True)
    if cluster is None:
        return 0
    cluster.shutdown()
    return len(known.actors)
