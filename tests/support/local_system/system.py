"""One system, started with `trilogue up` in a process of its own, on a disk, and seen by nobody else.

Owns its directories, its processes' ids and its end. Invariants: signals go only to processes of this system's own
POSIX session; whatever was stopped is let go on, and everything is gone when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from history_checker import StoreContents, read_store
from local_system.waiting import eventually
from trilogue.actors.protocol.errors import TrilogueError
from trilogue.actors.protocol.ids import partition_of
from trilogue.cluster.commands.find import locate
from trilogue.cluster.commands.status import gather, healthy

UP_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


def directory_on_disk(prefix: str) -> Path:
    """A new directory where `fdatasync` means something: the usual place for temporary files may be tmpfs."""
    named = os.environ.get("TRILOGUE_FAULT_DIR")
    for base in [named] if named else [tempfile.gettempdir(), "/var/tmp", str(Path.home())]:
        kind = subprocess.run(["stat", "--file-system", "--format=%T", base], capture_output=True, text=True).stdout.strip()
        if os.access(base, os.W_OK) and kind not in MEMORY_FILESYSTEMS:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    raise AssertionError("no directory on a disk was found: set TRILOGUE_FAULT_DIR")


class LocalSystem:
    """A running system. `root` is its own: data, state and what was recorded lie in it, and end with it."""

    def __init__(self, partitions: int, up_options: tuple[str, ...] = ()) -> None:
        self.partitions = partitions
        self.copies = 3
        self._up_options = up_options
        self.root = directory_on_disk("trilogue-fault-")
        self.data = self.root / "data"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TRILOGUE_", "RAY_"))},
            "XDG_STATE_HOME": str(self.root / "state"),
            "XDG_DATA_HOME": str(self.root / "share"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        }
        self._stopped: set[int] = set()
        self._sessions: set[int] = set()

    def __enter__(self) -> LocalSystem:
        try:
            self.up()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    # ------------------------------------------------------------------ the command line

    def run(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """One command of `trilogue` on this system's data, whatever its exit code is."""
        command = [sys.executable, "-m", "trilogue.cluster", *arguments, "--data", str(self.data)]
        return subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )

    def up(self, *options: str) -> None:
        """`trilogue up`, on the same data every time."""
        done = self.run("up", "--partitions", str(self.partitions), *self._up_options, *options, timeout_s=UP_TIMEOUT_S)
        assert done.returncode == 0, f"trilogue up: {done.stdout}{done.stderr}"
        self._sessions.add(self.run_file()["ray"]["session_id"])

    def verify(self) -> dict[str, Any]:
        """What `trilogue verify` says. Fails if it finds anything."""
        done = self.run("verify", "--json")
        assert done.returncode == 0, f"trilogue verify: {done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout))

    def down(self) -> None:
        """`trilogue down`: nothing of the system runs afterwards, and nothing points at it."""
        temporary = Path(self.run_file()["ray"]["temp_dir"])
        done = self.run("down")
        assert done.returncode == 0, f"trilogue down: {done.stdout}{done.stderr}"
        left = [process.name() for process in self.processes()]
        assert not left, f"`trilogue down` left {left}"
        assert not (self.data / "run.json").exists(), "`trilogue down` left the run file"
        assert not temporary.exists(), f"`trilogue down` left {temporary}"

    # ------------------------------------------------------------------ looking

    def run_file(self) -> dict[str, Any]:
        """What `up` wrote."""
        return dict(json.loads((self.data / "run.json").read_bytes()))

    @property
    def token(self) -> str:
        """What clients prove that they know."""
        return (self.data / "token").read_text().strip()

    @property
    def stores(self) -> list[Path]:
        """The stores' directories."""
        return sorted(self.data.glob("store-*"))

    def contents_of(self, store: Path) -> StoreContents:
        """What stands on the store of this directory."""
        return read_store(store)

    def status(self) -> dict[str, Any]:
        """What the actors say of themselves now; empty while none answers."""
        try:
            return asyncio.run(gather(locate(None, self.data)))
        except TrilogueError:
            return {}

    def pid_of(self, actor: str) -> int:
        """The id of the actor's process, as the actor itself says it."""
        return eventually(lambda: self._pid(actor), COMMAND_TIMEOUT_S, f"{actor} answers")

    def until_replaced(self, actor: str, former_pid: int, deadline_s: float) -> None:
        """Wait until the actor answers from another process."""
        eventually(lambda: self._pid(actor) not in (0, former_pid), deadline_s, f"{actor} has a new process")

    def _pid(self, actor: str) -> int:
        return int(self.status().get("actors", {}).get(actor, {}).get("pid", 0))

    def is_well(self) -> bool:
        """Whether every actor answers and every partition is open."""
        status = self.status()
        return bool(status) and healthy(status)

    def lacks(self) -> str:
        """What keeps each partition from having all of its log on all of its copies, in words; empty when nothing does."""
        for partition in range(self.partitions):
            owner = self.owner_of(partition)
            if owner is None:
                return f"partition {partition} is not served"
            if len(owner["members"]) < self.copies:
                return f"partition {partition} is on {owner['members']} only"
            if len(owner["ranges"]) > 1:
                return f"partition {partition} has not been filled up: its ranges are {owner['ranges']}"
        return ""

    def owner_of(self, partition: int) -> dict[str, Any] | None:
        """What the SessionActor says of itself that serves the partition now; None if there is none."""
        actors = self.status().get("actors", {}).values()
        serving = [one for one in actors if one.get("partition") == partition and one.get("state") == "open"]
        return max(serving, key=lambda one: int(one["epoch"]), default=None)

    def acceptors(self) -> dict[str, str]:
        """The acceptor of the register that each store that answers has now, by the store's name."""
        actors = self.status().get("actors", {})
        registers = {name: one["register"] for name, one in actors.items() if one.get("role") == "store"}
        return {name: one["acceptor"] for name, one in registers.items() if isinstance(one, dict)}

    def committed(self) -> list[int]:
        """Up to which frame each partition is committed, as its owner says."""
        return [int(one["committed"] or 0) for one in self.status().get("partitions", [])]

    def sessions_of(self, partition: int, count: int) -> list[str]:
        """The names of `count` sessions that this partition owns."""
        names = (f"room-{k}" for k in range(1_000_000))
        return [name for name in names if partition_of(name, self.partitions) == partition][:count] if count else []

    def processes(self) -> list[psutil.Process]:
        """All that lives in the POSIX sessions that `up` has started for this system."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # ------------------------------------------------------------------ hurting

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of this system."""
        assert os.getsid(pid) in self._sessions, f"process {pid} is none of ours"
        os.kill(pid, number)
        (self._stopped.add if number == signal.SIGSTOP else self._stopped.discard)(pid)

    def kill_everything(self) -> int:
        """`kill -9` of all actors, the raylet, the GCS and the rest of that Ray; how many processes there were."""
        count = 0
        while found := self.processes():
            count += len(found)
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, COMMAND_TIMEOUT_S)
        return count

    def delete_directory(self, store: str) -> None:
        """A store's directory is there no more, in one instant."""
        gone = self.root / f"deleted-{secrets.token_hex(4)}"
        (self.data / store).rename(gone)
        shutil.rmtree(gone)

    def end(self) -> None:
        """Everything is gone afterwards, whatever state it was in."""
        for pid in list(self._stopped):
            with contextlib.suppress(OSError, AssertionError):
                self.signal(pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("down")
        self.kill_everything()
        for store in self.stores:
            if store.is_mount():
                subprocess.run(["umount", str(store)], check=True, timeout=COMMAND_TIMEOUT_S)
        if not os.environ.get("TRILOGUE_FAULT_KEEP"):
            shutil.rmtree(self.root, ignore_errors=True)
