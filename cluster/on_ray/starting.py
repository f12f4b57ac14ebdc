"""The start of a system on the Ray that this process is connected to, and its end.

Owns the order: checks, actors, waiting, the run files. It must not know who asked (``launcher``, ``up_down``).
Invariants: nothing is started before the settings, the data directory and the ports have been checked; what a failed
start created is ended again, unless `up` started it and only `trilogue rescue` can help, which needs it running; data is never
removed.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trilogue.actors.config import NOBODY
from trilogue.actors.journal.identity import DirectoryLock, try_lock
from trilogue.actors.protocol.errors import (
    DirectoryInUse,
    DirectoryUnusable,
    LaunchError,
    SettingsDiffer,
    TrilogueError,
    counted,
)
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.redis_journal.place import is_redis, parse_place
from trilogue.actors.redis_journal.witness import FILE as WITNESS
from trilogue.cluster.on_ray.placement import Places, check_listen, own_directory, plan, read_places, write_places
from trilogue.cluster.on_ray.processes import wait_for_actors
from trilogue.cluster.on_ray.remains import clean, runs
from trilogue.cluster.settings.asked import Settings, as_asked, keep_record, open_data
from trilogue.cluster.settings.config import (
    NAMESPACE,
    SUPERVISOR,
    ClusterRecord,
    Desired,
    actor_names,
    read_record,
    session_names,
    split_listen,
    store_names,
)
from trilogue.cluster.settings.ports import check_host, choose_ports
from trilogue.cluster.settings.runfile import RayRun, RunFile, data_run_file, read_run_file, remove_run_files
from trilogue.cluster.settings.store_urls import redis_credentials

LISTEN_DEFAULT = "127.0.0.1:0"
POLL_S = 0.05
END_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
START_LOCK_WAIT_S = 30.0
Progress = Callable[[str], None]


class NeedsRescue(LaunchError):
    """The stores are up, and so many of those that kept the register have lost their memory that it stands still."""


class Started(NamedTuple):
    """A system that has just come up: `actors` maps names to addresses."""

    desired: Desired
    ray_run: RayRun
    actors: dict[str, str]


@contextlib.contextmanager
def start_lock(settings: Settings) -> Iterator[None]:
    """One start at a time on a data directory: a second one waits, and then finds what the first one did.

    Raises `DirectoryInUse` if that takes too long, `DirectoryUnusable` for a directory on tmpfs or one that takes
    no files.
    """
    lock = _lock_when_free(settings.data, True, START_LOCK_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def check_free(settings: Settings) -> None:
    """Raise now rather than later: when a running system holds the data, or an address, a directory or a server cannot be used.

    Cleans up after a system that died. Only this machine can be looked at; a store elsewhere that finds its
    directory unusable says so itself.
    """
    known = read_run_file(data_run_file(settings.data))
    if known is not None:
        if address := runs(known):
            raise DirectoryInUse(
                f"{settings.data} is in use by the running system at {address}: use it as it is, or end it first "
                f"(`trilogue down --data {settings.data}` if `up` started it)"
            )
        clean(known)
    record, _ = open_data(settings)
    host, first = split_listen(settings.listen or LISTEN_DEFAULT)
    check_host(host)
    if first:
        choose_ports(actor_names(record), host, first, {})
    places, _ = read_places(settings.data)
    _check_servers(settings, record, places)
    if places is None:
        _check_disk(settings)
    elif places.machines == 1:
        wait_s = DEFAULT_LIMITS.directory_lock_wait_ms / 1000
        for name in places.hosts:
            directory = Path(own_directory(record, name, settings.data))
            _lock_when_free(directory, settings.allow_tmpfs, wait_s).release()


def _check_servers(settings: Settings, record: ClusterRecord, places: Places | None) -> None:
    """Raise `ServerUnusable` if a new store's Redis server does not answer, or cannot promise what a store must.

    One that has data waits for its server by itself, and says so: the others can do without it.
    """
    new = []
    for name in (name for name in store_names(record) if is_redis(record.url_of(name))):
        here = places is None or places.machines == 1
        began = (Path(own_directory(record, name, settings.data)) / WITNESS).exists() if here else True
        if places is None or name not in places.hosts or not began:
            new.append(parse_place(record.url_of(name)))
    credentials = redis_credentials() if any(map(is_redis, record.urls)) else NOBODY
    if new:
        from trilogue.actors.redis_journal.nodes import Nodes

        for place in new:
            Nodes.reach(place, credentials, DEFAULT_LIMITS.redis_timeout_ms).close()


def _check_disk(settings: Settings) -> None:
    """Raise `DirectoryUnusable` if stores cannot be put under the data directory: it lies on tmpfs, say."""
    probe = settings.data / "probe"
    try:
        try_lock(probe, allow_tmpfs=settings.allow_tmpfs).release()
    except DirectoryUnusable as error:
        raise DirectoryUnusable(str(error).replace(str(probe), str(settings.data))) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def note_start(settings: Settings, ray_run: RayRun, started_by: str) -> RunFile:
    """Write into the data directory what is being started, so that the remains of a start that is killed can be found."""
    record, _ = open_data(settings)
    data = settings.data
    known = RunFile(record.cluster, str(data), str(data / "token"), started_by, ray_run, "")
    known.write(data_run_file(data))
    return known


def _lock_when_free(directory: Path, allow_tmpfs: bool, wait_s: float) -> DirectoryLock:
    """The directory's lock; a holder that is about to end is waited for. Raises `DirectoryInUse` after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return try_lock(directory, allow_tmpfs=allow_tmpfs)
        except DirectoryInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def start_system(
    settings: Settings,
    ray_run: RayRun,
    started_by: str,
    *,
    timeout_s: float,
    run_files: tuple[Path, ...] = (),
    progress: Progress = lambda _: None,
) -> Started:
    """Create every actor on the Ray that this process is connected to, and wait until all partitions are open.

    Raises `SettingsDiffer` if somebody else has started another system on this Ray meanwhile (which is left alone), the
    `DataError` of a store that cannot serve, or `LaunchError` when something does not come up within `timeout_s`.
    """
    import ray

    from trilogue.cluster.on_ray.actor_classes import create_actor

    deadline = time.monotonic() + timeout_s
    paths = (data_run_file(settings.data), *run_files)
    desired = _desired(settings, tuple(map(str, paths)))
    context = ray.get_runtime_context()
    here = context.get_node_id()
    ray_run = ray_run if ray_run.address else RayRun(str(context.gcs_address))
    names = actor_names(desired.record)
    noted: RunFile | None = note_start(settings, ray_run, started_by)
    try:
        stores, sessions = len(store_names(desired.record)), len(session_names(desired.record))
        progress(f"creating {counted(stores, 'store')} and {counted(sessions, 'SessionActor')}")
        handles = {name: create_actor(desired, name, here) for name in names}
        places = _wait_for_places(handles, deadline, progress)
        _check_ours(desired, ray.get(handles[SUPERVISOR].desired.remote()))
        try:
            _wait_for_partitions(desired, handles[SUPERVISOR], deadline, progress)
        except NeedsRescue:
            if started_by == "up":
                _note_running(desired, ray_run, places, started_by, paths)
                noted = None
            raise
    except SettingsDiffer:
        assert noted is not None
        remove_run_files(noted)
        raise
    except BaseException as error:
        if noted is None:
            raise
        end_actors(desired)
        remove_run_files(noted)
        if isinstance(error, ray.exceptions.RayError):
            raise LaunchError(f"the actors did not start: {' '.join(str(error).split())[:300]}") from None
        raise
    _note_running(desired, ray_run, places, started_by, paths)
    return Started(desired, ray_run, {name: place.address for name, place in places.items()})


def _note_running(desired: Desired, ray_run: RayRun, places: dict[str, Any], started_by: str, paths: tuple[Path, ...]) -> None:
    """Write the run files of a system that runs."""
    actors = {name: place.address for name, place in places.items()}
    pids = {name: place.pid for name, place in places.items()}
    known = run_file_of(desired, ray_run, actors, pids, started_by, places[SUPERVISOR].logs)
    for path in paths:
        known.write(path)


def end_actors(desired: Desired) -> None:
    """End every actor of the system and wait until they are gone: the Supervisor first, so that nothing is created again.

    They are killed: whatever is acked is on disk, and a start after an end is the same as one after a crash.
    """
    import ray

    known = read_run_file(data_run_file(Path(desired.data)))
    processes = list(known.processes.values()) if known is not None else []
    for name in reversed(actor_names(desired.record)):
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    wait_for_actors(processes, END_TIMEOUT_S)


def run_file_of(
    desired: Desired, ray_run: RayRun, actors: dict[str, str], processes: dict[str, int], started_by: str, logs: str
) -> RunFile:
    """What is written for others about a system that has just come up."""
    data = Path(desired.data)
    return RunFile(
        cluster=desired.record.cluster,
        data=str(data),
        token_file=str(data / "token"),
        started_by=started_by,
        ray=ray_run,
        logs=logs,
        actors=actors,
        processes=processes,
    )


def _desired(settings: Settings, run_files: tuple[str, ...]) -> Desired:
    """The checked plan of a system on the Ray that this process is connected to; remembered in DATA/places.json."""
    import ray

    from trilogue.cluster.on_ray.actor_classes import living_nodes

    _, token = open_data(settings)
    nodes = living_nodes()
    here_id = ray.get_runtime_context().get_node_id()
    here = next((node for node in nodes if node.node_id == here_id), nodes[0])
    kept = read_record(settings.data)
    assert kept is not None
    record = as_asked(settings, kept, len(nodes))
    remembered, ports = read_places(settings.data)
    places = plan(record, settings.data, nodes, here, settings.spread, remembered)
    host, first = split_listen(settings.listen or LISTEN_DEFAULT)
    check_listen(host, places)
    ports = choose_ports(actor_names(record), host, first, ports)
    keep_record(settings, record)
    write_places(settings.data, places, ports)
    return Desired(
        record=record,
        data=str(settings.data),
        token=token,
        host=host,
        ports=ports,
        run_files=run_files,
        allow_tmpfs=settings.allow_tmpfs,
        spread=places.spread,
        directories=places.directories,
        hosts=places.hosts,
        credentials=redis_credentials() if any(map(is_redis, record.urls)) else NOBODY,
    )


def _check_ours(desired: Desired, running: Desired) -> None:
    """Two starts at the same time share the actors' names: whoever made the Supervisor has won."""
    if running.data != desired.data:
        raise SettingsDiffer(f"somebody has just started the system of {running.data} on this Ray: use another Ray")


def _wait_for_places(handles: dict[str, Any], deadline: float, progress: Progress) -> dict[str, Any]:
    """Where every actor is, as soon as all serve. Raises the error of the first that cannot."""
    import ray

    calls = {handle.place.remote(): name for name, handle in handles.items()}
    places: dict[str, Any] = {}
    while calls:
        done, _ = ray.wait(list(calls), timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise LaunchError(f"not started in time: {', '.join(sorted(calls.values()))}; try again, or look into the logs")
        for call in done:
            name = calls.pop(call)
            try:
                places[name] = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, TrilogueError):
                    raise error.cause from None
                raise
            except ray.exceptions.ActorUnavailableError:
                # It is being restarted by Ray: ask again.
                time.sleep(POLL_S)
                calls[handles[name].place.remote()] = name
        progress(f"{len(places)} of {len(handles)} actors are up")
    return {name: places[name] for name in handles}


def _wait_for_partitions(desired: Desired, supervisor: Any, deadline: float, progress: Progress) -> None:
    """Return when every partition accepts messages, whoever serves it; raise `LaunchError` that says what is missing."""
    while True:
        states, register = _states(supervisor)
        waiting = {number: state for number, state in states.items() if state != "open"}
        progress(f"{len(states) - len(waiting)} of {desired.record.partitions} partitions are open")
        if states and not waiting:
            return
        if register.get("lost"):
            gone = register["gone"]
            what = ", ".join(f"{name} ({why})" for name, why in gone.items())
            options = " ".join(f"--lost {name}" for name in gone)
            raise NeedsRescue(
                f"no partition can open: too few of the stores that keep the register ({', '.join(register['stores'])}) have "
                f"their memory: {what}; `trilogue down` and put their directories back, or, if they are gone for good, "
                f"`trilogue rescue --data {desired.data} {options}`"
            )
        if time.monotonic() > deadline:
            number, state = next(iter(waiting.items()), (0, "the Supervisor does not answer; the logs say why"))
            raise LaunchError(f"partition {number} does not open: {state}")
        time.sleep(POLL_S)


def _states(supervisor: Any) -> tuple[dict[int, str], dict[str, Any]]:
    """What the Supervisor hears of the partitions and of the register; empty while it does not answer, being restarted."""
    import ray

    try:
        status = ray.get(supervisor.status.remote(), timeout=ANSWER_TIMEOUT_S)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
        return {}, {}
    return {int(number): str(one["state"]) for number, one in status["partitions"].items()}, status["register"]
