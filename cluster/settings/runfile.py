"""Where a running system is: the file that `up` and `launch` write, and everybody else reads.

Owns the run file's format and places: DATA/run.json, and for `up` also the user's state directory. It must not know
how the system was started. Invariants: what it says was true when it was written, and is checked by whoever acts on
it; it holds no secret (the token stays in its own file, which only its owner can read).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trilogue.actors.protocol.errors import DirectoryUnusable, NewerFormat, Unavailable
from trilogue.cluster.settings.directories import state_home, whole_path
from trilogue.cluster.settings.files import make_directory, read_json, remove, write_json

FORMAT = 1
PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class RayRun:
    """The Ray under a system. `session_id` is 0 unless `up` started it in a POSIX session of its own; a private one ends
    with the process `pids[PROGRAM]`.
    """

    address: str
    temp_dir: str = ""
    session_id: int = 0
    boot: str = ""
    token_file: str = ""
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunFile:
    """A running system, as it was last seen. `started_by` is "up" or "launch"."""

    cluster: str
    data: str
    token_file: str
    started_by: str
    ray: RayRun
    logs: str
    actors: dict[str, str] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """Every actor's "host:port": any of them answers "where is this session?"."""
        return list(self.actors.values())

    def write(self, path: Path) -> None:
        """Put it at `path`, for this user alone."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "cluster": self.cluster,
            "addresses": self.addresses,
            "token_file": self.token_file,
            "data": self.data,
            "started_by": self.started_by,
            "ray_address": self.ray.address,
            "actors": self.actors,
            "processes": self.processes,
            "ray": asdict(self.ray),
            "logs": self.logs,
        }
        make_directory(path.parent)
        write_json(path, value, mode=0o600)

    def with_actor(self, name: str, address: str, pid: int) -> RunFile:
        """The same system with one actor somewhere else."""
        return replace(self, actors={**self.actors, name: address}, processes={**self.processes, name: pid})

    def token(self) -> str:
        """The system's token. Raises `Unavailable` when its file is gone."""
        return read_token(Path(self.token_file))


def read_token(path: Path) -> str:
    """The token in `path`. Raises `Unavailable` when it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"cannot read the token file {path}: {error}") from None


def user_run_file() -> Path:
    """`$XDG_STATE_HOME/trilogue/run.json`: the user's own, written by `up` alone."""
    return state_home() / "run.json"


def data_run_file(data: Path) -> Path:
    """The run file inside a data directory."""
    return data / "run.json"


def read_run_file(path: Path) -> RunFile | None:
    """The run file at `path`; None when there is none. Raises `NewerFormat`, or `Unavailable` when it is damaged."""
    damaged = Unavailable(f"{path} is damaged: remove it, then start again with `trilogue up`")
    try:
        raw = read_json(path, FORMAT)
    except DirectoryUnusable:
        raise damaged from None
    if raw is None:
        return None
    try:
        return RunFile(
            cluster=str(raw["cluster"]),
            data=str(raw["data"]),
            token_file=str(raw["token_file"]),
            started_by=str(raw["started_by"]),
            ray=RayRun(**raw["ray"]),
            logs=str(raw["logs"]),
            actors={str(name): str(address) for name, address in raw["actors"].items()},
            processes={str(name): int(pid) for name, pid in raw["processes"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged from None


def find_run_file(data: Path | None) -> RunFile | None:
    """The run file of `data`; without one, the user's. None when nothing was left running there."""
    return read_run_file(user_run_file() if data is None else data_run_file(whole_path(data)))


def remove_run_files(run: RunFile) -> None:
    """Remove what points at this system, and nothing that points at another one."""
    for path in (data_run_file(Path(run.data)), user_run_file()):
        with contextlib.suppress(DirectoryUnusable, NewerFormat):  # it does not point at this system
            other = read_json(path, FORMAT)
            if other is not None and other.get("cluster") == run.cluster:
                remove(path)
