"""A user's program, in a process of its own: it sends and reads through trilogue.client, and writes down what happened.

Run as ``python -m local_system.load CONFIG`` (JSON, see `Config`). It takes numbered commands as lines on standard input
and answers each with one JSON line, under its number: `pour` (go on sending), `hold` (stop), `probe` (one message to each
session, acked), `flush`, `counts`, `read to {session: seq}`, `read back {session: seq}`, `trouble`, `stop`. What happened goes
to a history file (see ``history_checker.history``), each line before it matters to anybody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any
from zlib import crc32

from trilogue.client import Ack, Client, ConflictingRetry, Message, ProofOfLoss

BURSTS = (1, 1, 1, 2, 3, 5, 8, 13, 30, 120)
PAGE = 500
KEYED = 0.05
"""So many of the messages have an idempotency key, each its own: they must fare as all others do."""


@dataclass(slots=True)
class Config:
    """What one life of one program does. `reads` maps a session to the seq after which it is read (null: from now on)."""

    name: str
    life: int
    history: str
    sessions: list[str]
    senders: list[str]
    seed: int
    outbox: str | None = None
    address: str | None = None
    token: str | None = None
    gap_ms: float = 200.0
    body_bytes: int = 100
    waiting_max: int = 20_000
    reads: dict[str, int | None] = field(default_factory=dict)
    pours: bool = True


class Recorder:
    """The history file: what is written is in the kernel's hands when `write` returns, so `kill -9` does not lose it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._lines: list[str] = []
        self._loop = asyncio.get_running_loop()

    def write(self, *events: dict[str, Any]) -> None:
        """Write down now what must be known before anything else happens."""
        self._lines += map(json.dumps, events)
        self.flush()

    def note(self, event: dict[str, Any]) -> None:
        """Write down, at the end of this turn of the loop, what has happened already."""
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines.append(json.dumps(event))

    def flush(self) -> None:
        """Write down what was noted."""
        if self._lines:
            data = ("\n".join(self._lines) + "\n").encode()
            self._lines.clear()
            assert os.write(self._fd, data) == len(data), "the history's disk is full"


class Program:
    """One life of a user's program."""

    def __init__(self, config: Config, client: Client) -> None:
        self._config, self._client = config, client
        self._random = random.Random(config.seed)
        self._recorder = Recorder(Path(config.history) / f"{config.name}.{config.life}.jsonl")
        self._count = 0
        self._acked = 0
        self._failures: list[str] = []
        self._pouring = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._cursors: dict[str, int] = {}
        self._moved = asyncio.Event()
        self._backs = 0

    # ------------------------------------------------------------------ sending

    def _hand_over(self, lane: list[tuple[str, str]]) -> list[asyncio.Future[Ack]]:
        """Write the hand-overs down, then do them."""
        bodies: list[bytes] = []
        events: list[dict[str, Any]] = []
        for session, sender in lane:
            self._count += 1
            key = f"{self._config.name}.{self._config.life}.{self._count}"
            size = self._random.randrange(2 * self._config.body_bytes)
            body = key.encode() + b" " + bytes(size)
            bodies.append(body)
            mark = f"{key}#{crc32(body):08x}"
            events.append({"e": "handed", "mark": mark, "session": session, "sender": sender, "t": monotonic_ns()})
        self._recorder.write(*events)
        futures = []
        for event, body in zip(events, bodies, strict=True):
            key = event["mark"] if self._random.random() < KEYED else None
            future = self._client.post(event["session"], body, sender=event["sender"], key=key)
            future.add_done_callback(partial(self._answered, event["mark"]))
            futures.append(future)
        return futures

    def _answered(self, mark: str, future: asyncio.Future[Ack]) -> None:
        now = monotonic_ns()
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            ack = future.result()
            self._acked += 1
            self._recorder.note({
                "e": "acked", "mark": mark, "t": now, "seq": ack.seq, "sender_id": ack.sender_id, "n": ack.n,
                "copies": ack.copies, "epoch": ack.epoch, "duplicate": ack.duplicate,
            })  # fmt: skip
        elif isinstance(error, ConflictingRetry):
            self._recorder.note({"e": "failed", "mark": mark, "t": now, "error": str(error)})
            self._failures.append(str(error))
        elif isinstance(error, ProofOfLoss):
            self._recorder.note({"e": "proof of loss", "mark": mark, "t": now, "error": str(error)})
            self._failures.append(str(error))

    async def pour(self) -> None:
        """Hand over bursts, at random times, until told to hold."""
        config, rng = self._config, self._random
        while True:
            if not self._pouring.is_set():
                self._at_rest.set()
                await self._pouring.wait()
            self._at_rest.clear()
            if self._client.waiting < config.waiting_max:
                lanes = [(rng.choice(config.sessions), rng.choice(config.senders)) for _ in range(rng.choice(BURSTS))]
                self._hand_over(lanes)
            if config.outbox is not None and rng.random() < 0.3:
                count = self._count
                await self._client.saved()
                self._recorder.note({"e": "saved", "upto": count})
            await asyncio.sleep(rng.random() * config.gap_ms / 500)

    async def _probe(self) -> dict[str, Any]:
        """One message to each session: how many ms until the last of them was acked."""
        began = monotonic_ns()
        await asyncio.gather(*self._hand_over([(session, self._config.senders[0]) for session in self._config.sessions]))
        return {"ms": (monotonic_ns() - began) / 1e6}

    async def _flush(self) -> dict[str, Any]:
        await self._client.flush()
        await asyncio.sleep(0)  # the futures' callbacks run first: what was acked is written down before "flushed"
        self._recorder.write({"e": "flushed"})
        return {}

    # ------------------------------------------------------------------ reading

    async def read(self, session: str, after: int | None) -> None:
        """Subscribe, and write down what comes."""
        reader = f"{self._config.name}.{self._config.life}"
        self._recorder.write({"e": "reads", "reader": reader, "session": session, "after": after, "t": monotonic_ns()})
        async with self._client.subscribe(session, after=after) as messages:
            async for message in messages:
                self._note_read(reader, message)
                self._cursors[session] = message.seq
                self._moved.set()

    def _note_read(self, reader: str, message: Message) -> None:
        mark = f"{message.body.split(b' ', 1)[0].decode(errors='replace')}#{crc32(message.body):08x}"
        self._recorder.note({
            "e": "read", "reader": reader, "session": message.session, "t": monotonic_ns(), "seq": message.seq,
            "sender_id": message.sender_id, "n": message.n, "mark": mark,
        })  # fmt: skip

    async def _read_to(self, heads: dict[str, int]) -> dict[str, Any]:
        """Wait until every subscription has been given all messages up to these."""
        while any(self._cursors.get(session, 0) < heads.get(session, 0) for session in self._config.reads):
            self._moved.clear()
            await self._moved.wait()
        return {}

    async def _read_back(self, after: dict[str, int]) -> dict[str, Any]:
        """Read every session to its end, page by page, from where it was read back before."""
        self._backs += 1
        reader = f"{self._config.name}.{self._config.life}-back-{self._backs}"
        began = monotonic_ns()
        heads = await self._client.heads(self._config.sessions)
        for session in self._config.sessions:
            at = after.get(session, 0)
            self._recorder.note({"e": "reads", "reader": reader, "session": session, "after": at, "t": began})
            while page := await self._client.history(session, after=at, limit=PAGE):
                for message in page:
                    self._note_read(reader, message)
                at = page[-1].seq
            assert at >= heads[session], f"history of {session} ends at {at}, heads says {heads[session]}"
            self._recorder.note({"e": "read all", "reader": reader, "session": session, "upto": heads[session]})
        self._recorder.flush()
        return {"heads": heads}

    # ------------------------------------------------------------------ commands

    async def obey(self, command: str, argument: Any) -> dict[str, Any]:
        """Do what was asked; what is to be answered."""
        match command:
            case "pour":
                self._pouring.set()
            case "hold":
                self._pouring.clear()
                await self._at_rest.wait()
            case "probe":
                return await self._probe()
            case "flush":
                return await self._flush()
            case "read to":
                return await self._read_to(argument)
            case "read back":
                return await self._read_back(argument or {})
            case "counts":
                return {"handed": self._count, "acked": self._acked, "waiting": self._client.waiting}
            case "trouble":
                return {"trouble": self._client.trouble, "failures": self._failures, "conflicts": self._client.conflicts}
            case unknown:
                raise ValueError(f"no such command: {unknown}")
        return {}


async def main(config: Config) -> None:
    """Live until told to stop."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    client = Client(outbox=config.outbox, address=config.address, token=config.token)
    async with client, asyncio.TaskGroup() as group:
        program = Program(config, client)
        tasks = [group.create_task(program.read(session, after)) for session, after in config.reads.items()]
        if config.pours:
            tasks.append(group.create_task(program.pour()))
        print(json.dumps([0, {}]), flush=True)
        while line := await lines.readline():
            number, command, argument = json.loads(line)
            if command == "stop":
                break
            answer = await program.obey(command, argument)
            print(json.dumps([number, answer]), flush=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(Config(**json.loads(sys.argv[1]))))
