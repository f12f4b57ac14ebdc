"""A system that outlives the commands that start it: the one that `trilogue up` starts, killed as a power cut would kill it.

Owns its directory, its start and its end. It must not know what is measured. Invariants: signals go only to processes of the
POSIX session in which this system's Ray was started; nothing of it runs, and its directory is gone, when the block is left.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from trilogue.actors.protocol.errors import Unavailable
from trilogue.bench.report.progress import Progress
from trilogue.bench.systems import COPIES, System, Where, pids_by_role, scratch_directory

UP_TIMEOUT_S = 180.0
DIE_TIMEOUT_S = 30.0
WELL_TIMEOUT_S = 60.0
LOOK_AGAIN_S = 0.1


class Standing:
    """The system of one directory, up or down."""

    def __init__(self, directory: Path, partitions: int) -> None:
        self.data = directory / "data"
        self._directory, self._partitions = directory, partitions
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRILOGUE_", "RAY_"))}
        self._environment |= {"XDG_STATE_HOME": str(directory / "state"), "XDG_DATA_HOME": str(directory / "share")}

    def starting(self) -> subprocess.Popen[str]:
        """`trilogue up`, begun and not waited for: give it to `up` after that."""
        return self._trilogue("up", "--partitions", str(self._partitions), "--copies", str(COPIES))

    def up(self, starting: subprocess.Popen[str] | None = None) -> System:
        """The system, with every actor there. Raises `Unavailable` when it cannot be started."""
        _until_done("up", starting if starting is not None else self.starting())
        deadline = time.monotonic() + WELL_TIMEOUT_S
        while not (status := self._well()) and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_S)
        if not status:
            raise Unavailable(f"the system in {self.data} did not become whole within {WELL_TIMEOUT_S:.0f} s")
        known = self._known()
        return System(
            address=known.addresses[0], token=known.token, partitions=self._partitions, copies=COPIES, nodes=1, fresh=True,
            scratch=self._directory, status=self._status, pids=pids_by_role(status),
        )  # fmt: skip

    def kill_everything(self) -> None:
        """`kill -9` of all actors, the raylet, the GCS and the rest of that Ray, at once."""
        from trilogue.cluster.on_ray.processes import members
        from trilogue.cluster.settings.runfile import data_run_file, read_run_file

        known = read_run_file(data_run_file(self.data))
        if known is None:
            return
        deadline = time.monotonic() + DIE_TIMEOUT_S
        while (found := members(known.ray.session_id, known.ray.boot)) and time.monotonic() < deadline:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, 1.0)

    def down(self) -> None:
        """End it, if it is there."""
        if self.data.exists():
            with contextlib.suppress(Unavailable):
                _until_done("down", self._trilogue("down"))
            self.kill_everything()

    def _trilogue(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trilogue.cluster", *arguments, "--data", str(self.data)],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _known(self) -> Any:
        from trilogue.cluster.commands.find import locate

        return locate(None, self.data)

    def _status(self) -> Mapping[str, Any]:
        from trilogue.cluster.commands.status import gather
        from trilogue.cluster.commands.streams import run

        return run(gather(self._known()))

    def _well(self) -> Mapping[str, Any]:
        """What the system says of itself; empty unless every actor answers and every partition is open."""
        from trilogue.cluster.commands.status import healthy

        try:
            status = self._status()
        except Unavailable:
            return {}
        return status if healthy(dict(status)) else {}


@contextlib.contextmanager
def standing(where: Where, progress: Progress) -> Iterator[Standing]:
    """A system of its own, not started yet."""
    with scratch_directory(where) as directory:
        system = Standing(directory, where.partitions)
        try:
            yield system
        finally:
            progress.phase("ending the system")
            system.down()


def uss_mib(pids: Mapping[str, int]) -> dict[str, float]:
    """The memory that each process has for itself alone (its unique set size), in MiB; shared libraries are not in it."""
    return {name: psutil.Process(pid).memory_full_info().uss / (1 << 20) for name, pid in pids.items()}


def until_idle(pids: Mapping[str, int], quiet_s: float, timeout_s: float, tell: Callable[[float], None]) -> float:
    """Wait until these processes have used less than a twentieth of a core for so long; how long that took. After `timeout_s`
    it is believed that they never will."""
    began = time.monotonic()
    quiet_since, used = began, _cpu_s(pids)
    while (now := time.monotonic()) - began < timeout_s and now - quiet_since < quiet_s:
        time.sleep(1.0)
        used, before = _cpu_s(pids), used
        if used - before > 0.05 * len(pids):
            quiet_since = time.monotonic()
        tell(now - began)
    return max(0.0, quiet_since - began)


def _cpu_s(pids: Mapping[str, int]) -> float:
    """Of those that still run: another actor may have taken one's place."""
    used = 0.0
    for pid in pids.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(psutil.Process(pid).cpu_times()[:2])
    return used


def _until_done(command: str, process: subprocess.Popen[str]) -> None:
    try:
        said, _ = process.communicate(timeout=UP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Unavailable(f"`trilogue {command}` did not end within {UP_TIMEOUT_S:.0f} s") from None
    if process.returncode != 0:
        raise Unavailable(f"`trilogue {command}` failed: {said.strip()}")
