"""Start a system on Ray, or find the one that runs: `launch` and `Cluster`.

Owns whose Ray it is and how long the system lives. It must not know the command line, nor how actors are started
(``starting``). Invariants: a Ray that was not started here is never ended here; a system that was found running is not
ended by leaving a `with` block.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trilogue.actors.protocol.errors import LaunchError, SettingsDiffer, TrilogueError
from trilogue.cluster.commands.streams import run
from trilogue.cluster.on_ray.ray_head import join, keep_logs, start_private
from trilogue.cluster.on_ray.starting import Started, check_free, end_actors, run_file_of, start_lock, start_system
from trilogue.cluster.settings.asked import Settings, check_running, open_data, settings_of
from trilogue.cluster.settings.config import NAMESPACE, SUPERVISOR, Desired, split_listen, store_names
from trilogue.cluster.settings.keeping import KeepBytes, KeepFor
from trilogue.cluster.settings.runfile import RayRun, RunFile, data_run_file, read_run_file, remove_run_files

ANSWER_TIMEOUT_S = 10.0
POLL_S = 0.05


class Cluster:
    """A running system. As a context manager it ends the system on exit if `launch` started it, and only leaves it
    otherwise.
    """

    def __init__(self, started: Started, *, created: bool, owns_ray: bool) -> None:
        self._desired, self._ray_run, self._actors = started
        self._created, self._owns_ray, self._ended = created, owns_ray, False

    @property
    def address(self) -> str:
        """The "host:port" of one actor: any of them leads a client to all."""
        return next(iter(self._actors.values()))

    @property
    def addresses(self) -> list[str]:
        """The addresses of all actors, as they were at the start."""
        return list(self._actors.values())

    @property
    def token(self) -> str:
        """The shared secret of this system: `Client(address=…, token=…)`."""
        return self._desired.token

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self._desired.data)

    def status(self) -> dict[str, Any]:
        """How the system is now, as `trilogue status --json` shows it. Raises `Unavailable` when nothing answers."""
        from trilogue.cluster.commands.find import Known
        from trilogue.cluster.commands.status import gather

        run_file = self._run_file()
        return run(gather(Known(run_file.addresses, self.token, run_file)))

    def shutdown(self) -> None:
        """End the system's actors, and the Ray that `launch` started for them. The data stays. Harmless when called twice."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self.shutdown)
        import ray

        if ray.is_initialized():
            end_actors(self._desired)
            if self._owns_ray:
                ray.shutdown()
        if self._owns_ray:
            keep_logs(self._ray_run.temp_dir, self.data)
        with contextlib.suppress(TrilogueError):
            remove_run_files(self._run_file())

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._created:
            self.shutdown()

    def __repr__(self) -> str:
        record = self._desired.record
        return f"<Cluster {record.cluster[:8]} at {self.address}, {record.partitions} partitions, data {self._desired.data}>"

    def _run_file(self) -> RunFile:
        known = read_run_file(data_run_file(self.data))
        if known is not None and known.cluster == self._desired.record.cluster:
            return known
        return run_file_of(self._desired, self._ray_run, self._actors, {}, "launch", "")


def launch(
    *,
    partitions: int | None = None,
    copies: int | None = None,
    stores: int | Sequence[str] | None = None,
    spare_sessions: int | None = None,
    min_copies: int | None = None,
    keep_for: KeepFor | None = None,
    keep_bytes: KeepBytes | None = None,
    data: str | os.PathLike[str] | None = None,
    listen: str | None = None,
    ray_address: str | None = None,
    spread: bool | None = None,
    allow_tmpfs: bool = False,
    timeout_s: float = 60,
) -> Cluster:
    """Start a system on Ray and wait until every partition accepts messages.

    Uses the Ray that this process is connected to; else joins the one at `ray_address`; else starts a private one that ends
    with the system. New data gets 4 partitions and 3 copies by default, existing data keeps its own; `data` is by default
    `$XDG_DATA_HOME/trilogue`. `stores` is how many stores there are in all: by default one more than the copies, or one a
    node on a cluster; more may be added at any later launch. In place of a number it takes the URL of each store
    (`file://DIR`, `redis://HOST:PORT/DB`, `rediss://…`), as `trilogue up --store` does; credentials come from the
    environment (`TRILOGUE_REDIS_PASSWORD` or `TRILOGUE_REDIS_PASSWORD_FILE`, `TRILOGUE_REDIS_USERNAME`). `spare_sessions`
    (1) actors wait to take a partition over. While stores are missing and no spare one is left, a partition waits, or goes
    on with `min_copies` (as many as `copies`). Where the same system runs on this Ray already, it is returned as it is.

    Everything is kept, unless it is said otherwise: messages older than `keep_for` (a `timedelta`, a number of seconds, or a
    text such as "30d", "12h", "90m", "45s") are let go, and the oldest of more than `keep_bytes` in a partition (a number, or
    a text such as "50GiB", "500MB"). With both, whichever lets go first. What was said stays in force at later launches
    that do not say it; "forever" and "all" end it. Who reads what is gone gets `HistoryTrimmed`.

    Raises `InvalidSettings`; `SettingsDiffer` when the data, or the system that runs, has other settings; another
    `DataError` for an unusable directory or server; `LaunchError` when Ray or a partition does not come up within
    `timeout_s`.
    """
    settings = settings_of(
        partitions=partitions, copies=copies, stores=stores, spare_sessions=spare_sessions, min_copies=min_copies,
        keep_for=keep_for, keep_bytes=keep_bytes, data=data, listen=listen, spread=spread, allow_tmpfs=allow_tmpfs,
    )  # fmt: skip
    given = data is not None
    connected = _is_connected()
    if connected:
        _check_same_ray(ray_address)
        if (found := find_running(settings, data_is_given=given)) is not None:
            return found
    open_data(settings)
    with start_lock(settings):
        if connected and (found := find_running(settings, data_is_given=given)) is not None:
            return found  # somebody else was starting it
        return _launch(settings, None if connected else ray_address, connected, given, timeout_s)


def _launch(settings: Settings, join_address: str | None, connected: bool, data_is_given: bool, timeout_s: float) -> Cluster:
    if join_address is not None:
        join(join_address)
        if (found := find_running(settings, data_is_given=data_is_given)) is not None:
            return found
    check_free(settings)
    owns_ray = not connected and join_address is None
    ray_run = start_private() if owns_ray else RayRun("")
    try:
        started = start_system(settings, ray_run, "launch", timeout_s=timeout_s)
    except BaseException:
        if owns_ray:
            import ray

            ray.shutdown()
            keep_logs(ray_run.temp_dir, settings.data)
        raise
    cluster = Cluster(started, created=True, owns_ray=owns_ray)
    if owns_ray:
        atexit.register(cluster.shutdown)
    return cluster


def find_running(settings: Settings, *, data_is_given: bool) -> Cluster | None:
    """The system that runs on this process's Ray, or None. Raises `SettingsDiffer` when it is not the one asked for."""
    import ray

    try:
        supervisor = ray.get_actor(SUPERVISOR, namespace=NAMESPACE)
        desired, where = _ask_supervisor(supervisor)
    except ValueError:
        return None
    except ray.exceptions.RayError as error:
        raise LaunchError(f"this Ray has a trilogue Supervisor that does not answer: {type(error).__name__}") from None
    if data_is_given and Path(desired.data) != settings.data:
        raise SettingsDiffer(
            f"this Ray already runs the system of {desired.data}: use that, end it first, "
            f"or launch {settings.data} on another Ray"
        )
    record = desired.record
    check_running(settings, record)
    if settings.listen is not None:
        host, port = split_listen(settings.listen)
        first = desired.ports.get(store_names(record)[0], 0)
        if host != desired.host or (port and port != first):
            raise SettingsDiffer(f"the system listens on {desired.host}:{first}, not on {settings.listen}: end it first")
    known = read_run_file(data_run_file(Path(desired.data)))
    if known is not None and known.cluster == record.cluster:
        return Cluster(Started(desired, known.ray, known.actors), created=False, owns_ray=False)
    actors = {f"actor-{k}": address for k, address in enumerate(where["addresses"])}
    return Cluster(Started(desired, RayRun(""), actors), created=False, owns_ray=False)


def _ask_supervisor(supervisor: Any) -> tuple[Desired, dict[str, Any]]:
    """What it keeps up, and where. One that Ray is restarting is given the time."""
    import ray

    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            desired, where = ray.get([supervisor.desired.remote(), supervisor.where.remote()], timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return desired, where


def _is_connected() -> bool:
    """Whether this process is connected to a Ray, without importing Ray where nobody else has."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


def _check_same_ray(ray_address: str | None) -> None:
    import ray

    if ray_address is None:
        return
    have = str(ray.get_runtime_context().gcs_address)
    if have.rpartition(":")[2] != ray_address.rpartition(":")[2]:
        raise LaunchError(
            f"this process is connected to the Ray at {have} already, not to {ray_address}: leave ray_address out"
        )
