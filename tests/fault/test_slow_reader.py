"""A reader that stops reading under full load costs at most 64 MB on either side, and loses nothing (G7).

Two of them: a program that takes no messages while its client goes on, and a process that is stopped: its socket fills up.
What they cost is reached within seconds; `TRILOGUE_PAUSE_S=60` lets them stop for a minute.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

import slow_reader
from local_system.system import LocalSystem
from trilogue.client import Client, Overloaded

pytestmark = pytest.mark.long

PAUSE_S = float(os.environ.get("TRILOGUE_PAUSE_S") or 20)
MESSAGES_PER_S = 5_000
BODY_BYTES = 4_096
LAST_SEQ = int(MESSAGES_PER_S * (PAUSE_S + 10))
COST_BYTES_MAX = 64 * 1024 * 1024
CATCH_UP_S = 120.0


class Reader:
    """One `slow_reader` process."""

    def __init__(self, system: LocalSystem) -> None:
        self.process = subprocess.Popen(
            [sys.executable, slow_reader.__file__, system.run_file()["addresses"][0], "room", str(LAST_SEQ)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.at = 0
        self.done = False
        self.tell(system.token)
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "done":
                self.done = True
            else:
                self.at = int(line)


async def pour(system: LocalSystem) -> None:
    """Full load: so many a second, and none left out."""
    padding = bytes(BODY_BYTES)
    async with Client(sender="ann", address=system.run_file()["addresses"][0], token=system.token) as client:
        began, sent = time.monotonic(), 0
        while sent < LAST_SEQ:
            due = min(int((time.monotonic() - began) * MESSAGES_PER_S), LAST_SEQ)
            try:
                while sent < due:
                    client.post("room", (b"%d:" % (sent + 1) + padding)[:BODY_BYTES])
                    sent += 1
            except Overloaded:
                await client.drain()
            await asyncio.sleep(0.002)
        await client.flush()


@pytest.mark.timeout(400)
def test_a_reader_that_stops_costs_little_and_loses_nothing_g7() -> None:
    with LocalSystem(1) as system:
        writer = psutil.Process(system.pid_of("session-0"))
        idle, stopped = Reader(system), Reader(system)
        load = threading.Thread(target=lambda: asyncio.run(pour(system)))
        load.start()
        try:
            while min(idle.at, stopped.at) < 3 * MESSAGES_PER_S:
                time.sleep(0.1)
                assert idle.process.poll() is None
                assert stopped.process.poll() is None
            before = {"session": writer.memory_info().rss, "idle": idle.memory, "stopped": stopped.memory}
            idle.tell()
            stopped.process.send_signal(signal.SIGSTOP)
            most = dict(before)
            until = time.monotonic() + PAUSE_S
            while time.monotonic() < until:
                time.sleep(0.5)
                now = {"session": writer.memory_info().rss, "idle": idle.memory, "stopped": stopped.memory}
                most = {name: max(most[name], now[name]) for name in now}
            cost = {name: most[name] - before[name] for name in most}
            print({name: f"{size / 2**20:.1f} MiB more" for name, size in cost.items()}, "at", idle.at, stopped.at)
            assert max(idle.at, stopped.at) < LAST_SEQ // 2, "they did not stop"
            assert max(cost.values()) <= COST_BYTES_MAX, cost
            idle.tell()
            stopped.process.send_signal(signal.SIGCONT)
            load.join()
            began, deadline = time.monotonic(), time.monotonic() + CATCH_UP_S
            while not (idle.done and stopped.done):
                assert time.monotonic() < deadline, f"they are at {idle.at} and {stopped.at} of {LAST_SEQ}"
                assert idle.process.poll() in (None, 0)
                assert stopped.process.poll() in (None, 0)
                time.sleep(0.1)
            print(f"both had caught up {time.monotonic() - began:.1f} s after the last message")
        finally:
            for reader in (idle, stopped):
                reader.process.kill()
                reader.process.wait()
            load.join()
