"""The floor: what no system on this machine can beat (design §15).

Owns the measurement that every other one is divided by: one process with blocking sockets sends to three that write and
fdatasync files in the same directory. Latency: one 256-byte frame at a time. Rate: 64 KiB frames in lock-step, counted as
256-byte messages. It must not know of trilogue's client or actors. Invariants: the files are filled with zeros before the
clock starts, Nagle is off, and an answer is counted only when all three have come; the files are gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trilogue.actors.protocol.errors import Unavailable
from trilogue.bench.floor.store import END
from trilogue.bench.load.metrics import Histogram
from trilogue.bench.report.machine import refuse_memory
from trilogue.bench.report.schema import FloorFigures

COPIES = 3
MESSAGE_BYTES = 256
RATE_FRAME_BYTES = 64 * 1024
MESSAGES_A_FRAME = RATE_FRAME_BYTES // MESSAGE_BYTES
FILE_BYTES = 16 * 1024 * 1024
WARM_UP_FRAMES = 50
ANSWER_TIMEOUT_S = 30


class Floor(NamedTuple):
    """What was measured: nanoseconds from each frame's sending to the third answer, for small and for large frames."""

    small_frames_ns: list[int]
    large_frames_ns: list[int]

    def and_also(self, other: Floor) -> Floor:
        """Both measurements as one: a run is put between two, since machines wander."""
        return Floor(self.small_frames_ns + other.small_frames_ns, self.large_frames_ns + other.large_frames_ns)

    @property
    def messages(self) -> int:
        """256-byte messages that the large frames stand for."""
        return len(self.large_frames_ns) * MESSAGES_A_FRAME

    @property
    def seconds(self) -> float:
        """How long the large frames took."""
        return sum(self.large_frames_ns) / 1e9

    def histogram(self) -> Histogram:
        """The latency of one small frame."""
        histogram = Histogram()
        for span in self.small_frames_ns:
            histogram.record_ns(span)
        return histogram

    def figures(self) -> FloorFigures:
        """The two numbers that stand in every result."""
        return FloorFigures(
            latency_ms_p50=self.histogram().latency_ms().p50, messages_per_s=round(self.messages / self.seconds, 1)
        )


def measure_floor(directory: Path, *, latency_s: float = 1.0, rate_s: float = 1.0) -> Floor:
    """Measure for `latency_s` and then `rate_s` seconds in a directory of its own inside `directory`, which must exist.

    Raises `DirectoryUnusable` on tmpfs, and `Unavailable` if it cannot be measured there.
    """
    refuse_memory(directory)
    receivers: list[subprocess.Popen[bytes]] = []
    sockets: list[socket.socket] = []
    try:
        scratch = Path(tempfile.mkdtemp(prefix="floor-", dir=directory))
        try:
            for k in range(COPIES):
                process, connection = _start_receiver(scratch / f"copy-{k + 1}")
                receivers.append(process)
                sockets.append(connection)
            _all_answer(sockets)
            return Floor(
                small_frames_ns=_lock_step(sockets, MESSAGE_BYTES, latency_s),
                large_frames_ns=_lock_step(sockets, RATE_FRAME_BYTES, rate_s),
            )
        finally:
            for connection in sockets:
                connection.close()
            for process in receivers:
                _end(process)
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise Unavailable(f"the floor could not be measured in {directory}: {error}") from None


def _start_receiver(path: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A receiver that writes `path`, and the sender's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=ANSWER_TIMEOUT_S)
        theirs, _ = listener.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Python's own time-out would poll before every read; the kernel's costs nothing.
    ours.settimeout(None)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", ANSWER_TIMEOUT_S, 0))
    arguments = [theirs.fileno(), path, FILE_BYTES, MESSAGE_BYTES, RATE_FRAME_BYTES]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "trilogue.bench.floor.store", *map(str, arguments)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return process, ours


def _all_answer(sockets: Sequence[socket.socket]) -> None:
    for connection in sockets:
        if not connection.recv(1):
            raise ConnectionError("a receiver ended early")


def _lock_step(sockets: Sequence[socket.socket], frame_bytes: int, seconds: float) -> list[int]:
    """Send frames one at a time for `seconds`; the nanoseconds from each one's sending to the third answer."""
    frame = b"\x00" + os.urandom(frame_bytes - 1)
    clock = time.perf_counter_ns
    spans: list[int] = []
    first, second, third = sockets
    for _ in range(WARM_UP_FRAMES):
        for connection in sockets:
            connection.sendall(frame)
        _all_answer(sockets)
    before = clock()
    stop = before + int(seconds * 1e9)
    while before < stop or not spans:
        first.sendall(frame)
        second.sendall(frame)
        third.sendall(frame)
        if not (first.recv(1) and second.recv(1) and third.recv(1)):
            raise ConnectionError("a receiver ended early")
        after = clock()
        spans.append(after - before)
        before = after
    for connection in sockets:
        connection.sendall(bytes((END,)) + bytes(frame_bytes - 1))
    _all_answer(sockets)
    return spans


def _end(process: subprocess.Popen[bytes]) -> None:
    """The receiver ends by itself when its connection does; it is killed if it hangs."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
