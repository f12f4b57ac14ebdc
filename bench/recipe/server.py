"""A redis-server of one's own: a loopback port, a directory, and its end.

Owns one process of a Redis or Valkey binary, its configuration file and its port. It must not know what it is used for: the
benchmark of the recipe uses it, and so do the tests. Invariants: it listens on loopback only; directory and port stay the same
through `kill` and `restart`; `stop` ends what was started, and so does the kernel when the thread that started it is gone.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from trilogue.actors.protocol.errors import Unavailable
from trilogue.cluster.settings.ports import PORTS, free_port

HOST = "127.0.0.1"
PORTS_TRIED = 50
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 20.0
POLL_S = 0.01
ANSWER_BYTES_MAX = 4096
LOG_TAIL_BYTES = 300
PR_SET_PDEATHSIG = 1
SETTINGS = {
    "save": '""', "protected-mode": "yes", "daemonize": "no", "logfile": "server.log", "repl-diskless-sync-delay": "0",
}  # fmt: skip
"""What holds unless it is asked for otherwise: no snapshots by time, and a replica is filled without waiting for others."""

_libc = ctypes.CDLL(None)


def find_server(name: str = "redis-server") -> Path | None:
    """The binary `name`: the environment variable of that name (REDIS_SERVER), beside this Python, or on the PATH."""
    asked = os.environ.get(name.upper().replace("-", "_"))
    if asked:
        return Path(asked)
    beside = Path(sys.prefix) / "bin" / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


class RedisServer:
    """One server. `start` it, or use it in `with`; `settings` are lines of redis.conf: {"appendonly": "yes"}."""

    def __init__(self, binary: Path, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        """`directory` is made if it is not there, and stays; nothing is started yet."""
        self.binary = binary
        self.directory = directory
        self.settings = dict(settings or {})
        self.port = free_port(random.sample(PORTS, PORTS_TRIED), HOST)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """What redis-py's `from_url` takes, with the password if there is one."""
        password = self.settings.get("requirepass")
        return f"redis://:{password}@{self.address}/0" if password else f"redis://{self.address}/0"

    @property
    def pid(self) -> int:
        """The process that runs now. Raises `Unavailable` when none does."""
        if self._process is None:
            raise Unavailable(f"no server runs on {self.address}: start it first")
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it has loaded its data and answers. Raises `Unavailable`, with its last words, otherwise."""
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {**SETTINGS, **self.settings, "bind": HOST, "port": str(self.port), "dir": str(self.directory)}
        configuration = self.directory / "server.conf"
        configuration.touch(mode=0o600)  # it may hold a password
        configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        try:
            self._process = subprocess.Popen(
                [self.binary, configuration],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.directory,
                preexec_fn=_end_with_the_parent,
            )
        except OSError as error:
            raise Unavailable(f"{self.binary} cannot be started: {error.strerror or error}") from None
        deadline = time.monotonic() + START_DEADLINE_S
        while not (self.answers() and self.runs):  # who answers may be somebody else, who took the port
            if not self.runs or time.monotonic() > deadline:
                self.kill()
                raise Unavailable(f"{self.binary} on {self.address} did not come up: {self._last_words()}")
            time.sleep(POLL_S)

    def answers(self) -> bool:
        """Whether it answers a PING now, and does not load its data any more."""
        password = self.settings.get("requirepass", "").encode()
        # Without the password it would ask for that first, also while it loads its data.
        login = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n" % (len(password), password) if password else b""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(login + b"PING\r\nQUIT\r\n")
                answer = connection.makefile("rb").read(ANSWER_BYTES_MAX)
        except OSError:
            return False
        return b"+PONG" in answer

    def kill(self) -> None:
        """`kill -9`, and wait for the end; nothing happens when it is gone already."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in peace (it writes what it has to write); with SIGKILL when it does not end."""
        self._end(signal.SIGTERM)

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it again on the same data and port, after killing it if it still runs; `settings` change some of the former."""
        self.kill()
        self.settings.update(settings or {})
        self.start()

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(by)
        process.send_signal(signal.SIGCONT)  # a paused one hears nothing else but SIGKILL
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        log = self.directory / "server.log"
        if not log.exists():
            return "it said nothing (a setting that it does not know?)"
        return " / ".join(log.read_text(errors="replace")[-LOG_TAIL_BYTES:].split("\n")).strip(" /")


def _end_with_the_parent() -> None:
    """Runs in the child: the kernel ends it when the thread that starts it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
