"""A system whose messages are trimmed while its processes are killed: load, trims, a floor, kills, and the judgement.

Owns the order of things and the recording. Stores and SessionActors are plain processes (`BareSystem`) with small journal
files, and this process is the Supervisor, the users and the reader. Nothing here waits for a duration, but between two trims.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any

from history_checker import (
    Acked,
    Anomaly,
    HandedOver,
    History,
    Read,
    Reading,
    StoreContents,
    judge,
    mark_of,
    read_register,
    read_store,
)
from local_system.bare import NEW, TOKEN, BareSystem
from local_system.waiting import eventually
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import connect
from trilogue.client import Ack, Client, HistoryTrimmed, Unavailable
from trilogue.cluster.settings.config import write_record

SMALL = Limits(
    body_bytes_max=16 * KIB, submit_bytes_max=32 * KIB, frame_bytes_target=64 * KIB, frame_bytes_max=192 * KIB,
    journal_file_bytes=256 * KIB, retention_look_ms=300, index_recent_bytes_max=64 * KIB, index_resting_bytes_max=16 * KIB,
)  # fmt: skip
KEEP_BYTES = 768 * KIB
SENDERS = ("alice", "bob", "carol")
SESSIONS = tuple(f"room-{k}" for k in range(6))
TRIMMED = SESSIONS[:4]
"""The others go by the floor alone."""
LEFT = 10
BODY_BYTES = 2000
WAITING_MAX = 400
POUR_EVERY_S = 0.04
TRIM_EVERY_S = 0.02
PATIENCE_S = 60.0


class TrimmedSystem:
    """Use as an async context manager. `written_bytes` of bodies were acked so far: each store was given all of them."""

    def __init__(self, root: Path, seed: int) -> None:
        record = NEW._replace(stores=4, first_stores=4, spare_sessions=1, keep_bytes=KEEP_BYTES)
        self.root = root
        self.system = BareSystem(root, stores=4, sessions=2, limits=SMALL, record=record)
        self.history = History()
        self.written_bytes = 0
        self.trims = 0
        self.random = random.Random(seed)
        self.owner = "session-0"
        self._sizes: dict[str, int] = {}
        self._acks: dict[str, list[tuple[Ack, bytes]]] = {session: [] for session in SESSIONS}
        self._pouring = asyncio.Event()
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0

    async def __aenter__(self) -> TrimmedSystem:
        write_record(self.root, self.system.record)
        self.system.start(*self.system.stores, *self.system.sessions)
        try:
            await self._in_thread(partial(self.system.take, self.owner))
            for sender in (*SENDERS, "trimmer"):
                client = Client(sender, address=",".join(self.system.addresses), token=TOKEN, limits=SMALL)
                self._clients.append(await client.__aenter__())
        except BaseException:
            self.system.kill(*list(self.system._processes))
            raise
        self._pouring.set()
        self._tasks = [
            asyncio.create_task(self._pour(client, sender)) for client, sender in zip(self._clients, SENDERS, strict=False)
        ]
        self._tasks += [asyncio.create_task(self._trim_on()), asyncio.create_task(self._read_on())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.system.kill(*list(self.system._processes))

    # ------------------------------------------------------------------ load

    async def _pour(self, client: Client, sender: str) -> None:
        while True:
            await self._pouring.wait()
            if client.waiting < WAITING_MAX:
                for _ in range(self.random.choice((1, 1, 2, 5, 20, 60))):
                    self._hand_over(client, sender, self.random.choice(SESSIONS))
            await asyncio.sleep(POUR_EVERY_S)

    def _hand_over(self, client: Client, sender: str, session: str) -> None:
        self._count += 1
        body = b"%s.%d " % (sender.encode(), self._count) + bytes(self.random.randrange(BODY_BYTES))
        self.history.handed.append(HandedOver(mark_of(body), sender, session, sender, monotonic_ns()))
        client.post(session, body).add_done_callback(partial(self._answered, body))

    def _answered(self, body: bytes, future: asyncio.Future[Ack]) -> None:
        if future.cancelled():
            return
        if error := future.exception():
            self.history.failed[mark_of(body)] = str(error)
            return
        ack = future.result()
        self._acks[ack.session].append((ack, body))
        self.written_bytes += len(body)
        numbers = ack.seq, ack.sender_id, ack.n, ack.copies, ack.duplicate, ack.epoch
        self.history.acked.append(Acked(mark_of(body), monotonic_ns(), *numbers, by=ack.sender))

    async def until_written(self, count: int) -> None:
        """Let the load go on until so many more bytes were acked."""
        wanted = self.written_bytes + count
        await self._in_thread(lambda: eventually(
            lambda: self.written_bytes >= wanted, PATIENCE_S, lambda: f"{wanted} bytes are acked: {self.written_bytes}"
        ))  # fmt: skip

    # ------------------------------------------------------------------ trimming and reading

    async def _trim_on(self) -> None:
        while True:
            await self._trim(self.random.choice(TRIMMED), self.random.choice((LEFT, 100)))
            await asyncio.sleep(TRIM_EVERY_S)

    async def _trim(self, session: str, left: int) -> None:
        acked = max((ack.seq for ack, _ in self._acks[session]), default=0)
        if acked > left:
            try:
                first = await self._clients[-1].trim(session, before=acked - left)
            except Unavailable:
                return  # it may have been done: the log says which trims were
            assert first >= acked - left
            self.trims += 1

    async def _read_on(self) -> None:
        """Read every session again and again, each reading from where the one before ended."""
        readings = {session: Reading("reader", session, 0, monotonic_ns()) for session in SESSIONS}
        self.history.readings += readings.values()
        cursors = dict.fromkeys(SESSIONS, 0)
        while True:
            for reading in readings.values():
                with contextlib.suppress(Unavailable):
                    await self._read_page(reading, cursors)
            await asyncio.sleep(0.05)

    async def _read_page(self, reading: Reading, cursors: dict[str, int]) -> int:
        """How many messages came."""
        session = reading.session
        try:
            page = await self._clients[-1].history(session, after=cursors[session], limit=200)
        except HistoryTrimmed as trimmed:
            reading.begins.add(trimmed.first_available)
            cursors[session] = trimmed.first_available - 1
            return 1
        for message in page:
            mark = mark_of(message.body)
            reading.reads.append(Read(message.seq, message.sender_id, message.n, mark, monotonic_ns()))
            cursors[session] = message.seq
        return len(page)

    async def _read_all(self) -> None:
        """Read each session from its beginning to its end, when nothing is under way any more."""
        heads = await self._clients[-1].heads(SESSIONS)
        cursors = dict.fromkeys(SESSIONS, 0)
        for session in SESSIONS:
            reading = Reading("in the end", session, 0, monotonic_ns())
            self.history.readings.append(reading)
            while cursors[session] < heads[session] and await self._read_page(reading, cursors):
                pass
            reading.read_upto = heads[session]

    # ------------------------------------------------------------------ faults

    async def kill_owner(self) -> None:
        """`kill -9` of the SessionActor; the other one takes the partition, and it comes back as a spare."""
        status = await self.status()
        was, self.owner = self.owner, "session-1" if self.owner == "session-0" else "session-0"
        self.system.kill(was)
        await self._in_thread(partial(self.system.take, self.owner, 0, int(status["epoch"])))
        self.system.start(was)
        await self.until(state="open")

    async def kill_store(self, store: str = "") -> str:
        """`kill -9` of a member, if none is named: any; it comes back. Which it was."""
        store = store or self.random.choice((await self.status())["members"])
        self.system.kill(store)
        self.system.start(store)
        await self.until(state="open")
        return store

    async def lose_directory(self) -> None:
        """The directory of store-4, which keeps no part of the register, is gone; then it is taken in again, and filled."""
        if "store-4" not in (await self.until_whole())["members"]:
            [down] = self.random.sample((await self.status())["members"], 1)
            self.system.kill(down)
            await self.until(members=lambda members: "store-4" in members)
            self.system.start(down)
            await self.until_whole()
        self.system.kill("store-4")
        shutil.rmtree(self.root / "store-4")
        self.system.start("store-4")
        status = await self.until(members=lambda members: len(members) == 3, spares=["store-4"])
        down = self.random.choice(status["members"])
        self.system.kill(down)
        await self.until(members=lambda members: "store-4" in members)
        await self.until_whole()
        self.system.start(down)

    async def status(self) -> dict[str, Any]:
        """What the owner says of itself."""
        return await self.until(state="open")

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """The owner's status, once it shows all that is wanted."""
        return dict(await self._in_thread(partial(self.system.until, self.owner, **wanted)))

    async def until_whole(self) -> dict[str, Any]:
        """All of the log is on all of its stores."""
        return await self.until(members=lambda members: len(members) == 3, ranges=lambda ranges: len(ranges) == 1)

    # ------------------------------------------------------------------ the end

    async def rest(self) -> None:
        """Everything that was handed over is acked, trims come to their end, and all that is left is read back."""
        self._pouring.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_S):
            for client, sender in zip(self._clients, SENDERS, strict=False):
                await client.flush()
                self.history.flushed.add(sender)
            for session in TRIMMED:
                await self._trim(session, LEFT)
            await self._read_all()
        await self.until_whole()

    def disk_bytes(self) -> dict[str, int]:
        """What each store's journal takes of the disk."""
        stores = [self.root / store for store in self.system.stores]
        return {store.name: sum(path.stat().st_blocks * 512 for path in store.glob("journal-*.trl")) for store in stores}

    async def until_on_disk(self, bytes_max: int) -> dict[str, int]:
        """Wait until no member's journal takes more than that; what each takes. A spare store keeps what it had: it is told
        nothing any more."""
        members = (await self.status())["members"]

        def small() -> dict[str, int]:
            sizes = {store: size for store, size in self.disk_bytes().items() if store in members}
            return sizes if max(sizes.values()) <= bytes_max else {}

        what = f"no store of {members} takes more than {bytes_max} bytes"
        return dict(await self._in_thread(lambda: eventually(small, PATIENCE_S, lambda: f"{what}: {self.disk_bytes()}")))

    async def retried(self, count: int) -> int:
        """Hand trimmed messages over again, as their senders did; how many were. Each gets its original seq."""
        gone = []
        for session in SESSIONS:
            first = 1
            try:
                await self._clients[-1].history(session, limit=1)
            except HistoryTrimmed as trimmed:
                first = trimmed.first_available
            gone += [(ack, body) for ack, body in self._acks[session] if ack.seq < first]
        asked = self.random.sample(gone, min(count, len(gone)))
        wanted = {(ack.session, ack.sender_id, ack.n): (ack.seq, True) for ack, _ in asked}
        found: dict[tuple[str, str, int], tuple[int, bool]] = {}
        opened, done = asyncio.Event(), asyncio.Event()

        def heard(_: Any, message: list[Any]) -> None:
            if message[0] == Say.OPEN:
                opened.set()
            elif message[0] == Say.ACKED:
                for session, sender_id, first_n, messages, first_seq, duplicate in message[3]:
                    found.update({(session, sender_id, first_n + k): (first_seq + k, duplicate) for k in range(messages)})
                if len(found) == len(wanted):
                    done.set()

        async with asyncio.timeout(PATIENCE_S):
            address = self.system._addresses[self.owner]
            connection = await connect(address, TOKEN, on_message=heard, on_closed=lambda *_: None)
            await opened.wait()
            for ack, body in asked:
                connection.send([Say.SUBMIT, [[ack.session, ack.sender_id, ack.n, [0], [body]]]])
            await done.wait()
            connection.close()
        assert found == wanted
        return len(asked)

    async def end(self) -> None:
        """The clients close, and every process is killed."""
        for client in self._clients:
            await client.close()
        self.system.kill(*list(self.system._processes))

    def contents(self) -> list[StoreContents]:
        """What the stores hold."""
        return [read_store(self.root / store) for store in self.system.stores]

    def anomalies(self, contents: list[StoreContents] | None = None) -> list[Anomaly]:
        """What the checker finds."""
        directories = [self.root / store for store in self.system.stores]
        return judge(self.history, contents or self.contents(), copies=3, register=read_register(directories))

    def verify(self) -> dict[str, Any]:
        """What `trilogue verify` says of the directories."""
        command = [sys.executable, "-m", "trilogue.cluster", "verify", "--json", "--data", str(self.root)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, f"trilogue verify: {done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout))

    @staticmethod
    async def _in_thread(work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)
