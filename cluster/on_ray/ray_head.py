"""Ray itself: a head of our own for `up`, a private one for `launch`, or somebody's that we join.

Owns how Ray is started, joined and ended. It must not know what runs on it. Invariants: Ray's address is always
explicit; a head of our own listens on loopback alone, wants a token that lies in our data directory, sends no usage
statistics, and has a temporary directory of its own; nobody else's Ray is ever touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilogue.actors.protocol.errors import LaunchError
from trilogue.cluster.on_ray.processes import boot_mark, end_session, kill_session_of, members, name_of
from trilogue.cluster.settings.config import NAMESPACE
from trilogue.cluster.settings.files import make_directory, write_whole
from trilogue.cluster.settings.ports import free_port
from trilogue.cluster.settings.runfile import PROGRAM, RayRun

# Below 8265, which Ray keeps for its dashboard, also where there is none; outside 10002-19999, where its workers listen; and
# outside the ephemeral ports.
HEAD_PORTS = range(6400, 8200)
HEAD_START_TIMEOUT_S = 60.0
HEAD_CPUS = 2
OBJECT_STORE_BYTES = 78_643_200  # the least that Ray accepts: messages never travel through it
JOIN_TIMEOUT_S = 15.0

# Ray binds to loopback only when it takes the machine for one that cannot form clusters, and this switch says so (the
# default on macOS). Without it every one of its ports is open to the network, guarded by the token alone.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def head_environment(token_file: Path) -> dict[str, str]:
    """What a process needs in its environment to start our head, or to speak with it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), **LOOPBACK_ONLY, **QUIET}


def ensure_ray_token(data: Path) -> Path:
    """The file with the token of our Ray heads, in the data directory: ~/.ray is not touched."""
    path = data / "ray_token"
    if not path.exists():
        write_whole(path, secrets.token_hex(32).encode(), mode=0o600)
    return path


def short_temp_dir() -> Path:
    """A new directory with a short name: Ray's sockets must fit the 107 bytes of a UNIX address."""
    base = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    path = Path(base) / f"trilogue-{secrets.token_hex(4)}"
    path.mkdir(mode=0o700)
    return path


def start_head(data: Path, begun: Callable[[RayRun], object]) -> RayRun:
    """Start a Ray head that outlives this process; `begun` gets what its remains can be found by, if this process is killed
    meanwhile. Raises `LaunchError` with the end of Ray's own output when it fails.
    """
    token_file = ensure_ray_token(data)
    temp_dir = short_temp_dir()
    port = free_port(random.sample(HEAD_PORTS, 64))
    logs = data / "logs"
    make_directory(logs)
    output = logs / "ray-start.log"
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--temp-dir={temp_dir}", f"--num-cpus={HEAD_CPUS}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-dashboard=false", "--include-log-monitor=false",
        "--disable-usage-stats", "--log-style=record",
    ]  # fmt: skip
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env={**environment, **head_environment(token_file)},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd="/",
        )
        ray_run = RayRun(f"127.0.0.1:{port}", str(temp_dir), process.pid, boot_mark(), str(token_file))
        try:
            begun(ray_run)
            code = process.wait(HEAD_START_TIMEOUT_S)
        except BaseException as error:
            process.kill()
            process.wait()
            kill_session_of(process.pid)
            shutil.rmtree(temp_dir, ignore_errors=True)
            if isinstance(error, subprocess.TimeoutExpired):
                raise LaunchError(f"Ray did not start within {HEAD_START_TIMEOUT_S:.0f} s: see {output}") from None
            raise
    if code != 0:
        kill_session_of(process.pid)
        shutil.rmtree(temp_dir, ignore_errors=True)
        raise LaunchError(f"Ray did not start: {_last_line(output)}; see {output}")
    found = members(ray_run.session_id, ray_run.boot)
    return replace(ray_run, pids={f"{name_of(one)}-{one.pid}": one.pid for one in found})


def end_head(ray_run: RayRun, data: Path) -> int:
    """End a head of ours and all that runs on it, keep its logs in DATA/logs; return how many processes there were.

    Safe to call for a head that is long gone: its remains are cleaned away.
    """
    if not ray_run.session_id:
        return 0
    ended = end_session(ray_run.session_id, ray_run.boot)
    keep_logs(ray_run.temp_dir, data)
    return ended


def keep_logs(temp_dir: str, data: Path) -> None:
    """Move Ray's last logs to DATA/logs/ray, and remove the temporary directory (ours by its name)."""
    directory = Path(temp_dir)
    if not temp_dir or not directory.name.startswith("trilogue-") or not directory.is_dir():
        return
    kept = data / "logs" / "ray"
    with contextlib.suppress(OSError, shutil.Error):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(directory / "session_latest" / "logs", kept, ignore_dangling_symlinks=True)
    shutil.rmtree(directory, ignore_errors=True)


def join(address: str, environment: dict[str, str] | None = None) -> None:
    """Connect this process to the Ray at `address`. Raises `LaunchError` at once when it does not answer or wants a
    token.
    """
    check_reachable(address)
    if environment:
        os.environ.update(environment)
    else:
        check_welcome(address)
    import ray

    try:
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
        )
    except Exception as error:
        raise LaunchError(f"cannot join Ray at {address}: {_one_line(error)}") from None


def start_private() -> RayRun:
    """Start a Ray that ends with this process, and connect to it."""
    temp_dir = short_temp_dir()
    if "ray" not in sys.modules:
        # Ray reads it once, on import; where it has been imported already, it asks for a token by itself (from 2.60 on).
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with environment_of({**LOOPBACK_ONLY, **QUIET}):
        import ray

        options: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "_temp_dir": str(temp_dir)}
        try:
            context: Any = ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )
        except BaseException as error:
            ray.shutdown()
            shutil.rmtree(temp_dir, ignore_errors=True)
            if isinstance(error, Exception):
                raise LaunchError(f"Ray did not start: {_one_line(error)}") from None
            raise
    return RayRun(
        address=str(context.address_info["gcs_address"]),
        temp_dir=str(temp_dir),
        boot=boot_mark(),
        pids={PROGRAM: os.getpid()},
    )


def check_reachable(address: str) -> None:
    """Raise `LaunchError` unless something listens at `address`: Ray itself would try for 80 seconds."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise LaunchError(f"--ray-address {address!r} is no address: write HOST:PORT of the head's GCS")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError as error:
        raise LaunchError(f"no Ray at {address}: {error.strerror or error}; is its head up?") from None


def check_welcome(address: str) -> None:
    """Raise `LaunchError` at once if the Ray at `address` wants a token that this process does not have.

    Asked in a process of its own, which is ended at the first refusal: Ray repeats it for 20 seconds, in this one.
    """
    ask = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print('WELCOME', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", ask, address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **QUIET},
    )
    watchdog = _kill_after(process, JOIN_TIMEOUT_S)
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "WELCOME" in line:
                return
            if "InvalidAuthToken" in line or "Unauthenticated" in line or "AuthenticationError" in line:
                raise LaunchError(
                    f"the Ray at {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file "
                    "with its token"
                )
            last = line.strip() or last
        raise LaunchError(f"the Ray at {address} does not let us in: {last or 'no answer'}")
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Any:
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


@contextlib.contextmanager
def environment_of(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while, as the processes started meanwhile inherit them. Meanwhile no RAY_ADDRESS of the
    user's names another Ray.
    """
    before = {key: os.environ.get(key) for key in (*values, "RAY_ADDRESS")}
    os.environ.update(values)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "it said nothing"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
