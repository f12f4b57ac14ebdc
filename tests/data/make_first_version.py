"""How `first-version.tar.xz` was made: data of trilogue 0.1.0 as of commit 6fdf8c0 (no register, no spares), killed under load.

    git archive 6fdf8c0 | tar x -C SOURCE; mkdir PATH; ln -s SOURCE PATH/trilogue
    PYTHONPATH=PATH .venv/bin/python tests/data/make_first_version.py PLACE tests/data/first-version.tar.xz

In the archive: `data` (the directory, less what says where the dead system ran), `retries.db` (the outbox as it was when its
messages had been handed over and not sent; they were sent, and acked, later) and `acked.json` (what senders were told).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import psutil

from trilogue.client import Client

TRILOGUE = [sys.executable, "-m", "trilogue.cluster"]
SESSIONS = [f"room-{k}" for k in range(6)]
ACKED_UNDER_LOAD = 60


def up(data: Path) -> None:
    subprocess.run([*TRILOGUE, "up", "--data", str(data), "--partitions", "2"], check=True)


def kill_everything(data: Path) -> None:
    session = json.loads((data / "run.json").read_text())["ray"]["session_id"]
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


async def fill(place: Path, data: Path) -> list[Any]:
    acked: list[Any] = []
    run = json.loads((data / "run.json").read_text())
    where = {"address": ",".join(run["addresses"]), "token": (data / "token").read_text().strip()}
    async with Client(sender="bob", outbox=place / "bob.db", address="127.0.0.1:1", token=where["token"]) as client:
        for session in SESSIONS:
            for k in range(3):
                client.post(session, f"retried {k} in {session}".encode())
        await client.saved()
        client._close_timeout_s = 0.0
    shutil.copy(place / "bob.db", place / "retries.db")
    async with Client(sender="alice", **where) as alice:
        for session in SESSIONS:
            note(acked, await alice.send(session, b"first"), b"first")
    async with Client(sender="bob", outbox=place / "bob.db", **where) as bob:
        await bob.flush()
    async with Client(sender="carol", **where) as carol:
        enough = asyncio.Event()

        def on_ack(future: asyncio.Future[Any], body: bytes) -> None:
            if not future.cancelled() and future.exception() is None:
                note(acked, future.result(), body)
                if len(acked) > ACKED_UNDER_LOAD:
                    enough.set()

        k = 0
        while not enough.is_set():
            body = b"load %d" % k
            carol.post(SESSIONS[k % len(SESSIONS)], body).add_done_callback(lambda f, b=body: on_ack(f, b))
            k += 1
            await asyncio.sleep(0.0002)
        kill_everything(data)
        await asyncio.sleep(0.5)
        carol._close_timeout_s = 0.0
        try:
            await carol.close()
        except Exception as unsent:
            print(unsent)
    return acked


def note(acked: list[Any], ack: Any, body: bytes) -> None:
    acked.append([ack.session, ack.seq, ack.sender, body.decode()])


def main() -> None:
    place, archive = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    place.mkdir()
    data = place / "data"
    up(data)
    acked = asyncio.run(fill(place, data))
    (place / "acked.json").write_text(json.dumps(sorted(acked)))
    for name in ("run.json", "logs", "ports.json", "lock", ".lock"):
        path = data / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in ("data", "retries.db", "acked.json"):
            tar.add(place / name, arcname=name)


main()
