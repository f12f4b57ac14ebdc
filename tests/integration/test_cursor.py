"""A reader whose process is killed goes on after what it has confirmed: none is skipped, none confirmed comes again (G7)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from trilogue.client import Client

MESSAGES = 400
KILL_AFTER = (30, 75, 160)
READER = """
import asyncio, sys
from trilogue.client import Client

async def read(address, token, outbox):
    async with Client(outbox=outbox, address=address, token=token) as client:
        async with client.subscribe("cursor/room", after=0, cursor="reader") as messages:
            async for message in messages:
                print("handled", message.seq, message.body.decode(), flush=True)
                await messages.confirm(message)
                print("confirmed", message.seq, flush=True)

asyncio.run(read(sys.argv[1], sys.stdin.readline().strip(), sys.argv[2]))
"""


def read_until_killed(address: str, token: str, outbox: Path, messages: int) -> tuple[list[int], int]:
    """Run a reader and kill it after so many; what it handled, and the last seq of which it knew that it was confirmed."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, address, str(outbox)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(token + "\n")
    process.stdin.flush()
    handled: list[int] = []
    confirmed = 0
    try:
        for line in process.stdout:
            what, seq, *body = line.split()
            if what == "confirmed":
                confirmed = int(seq)
                continue
            assert body == [f"message-{seq}"]
            handled.append(int(seq))
            if len(handled) >= messages:
                break
    finally:
        process.kill()
        rest = process.stdout.read()
        process.wait()
    for line in rest.splitlines():
        if line.startswith("confirmed "):
            confirmed = int(line.split()[1])
        elif line.startswith("handled ") and len(line.split()) == 3:
            handled.append(int(line.split()[1]))
    return handled, confirmed


def test_a_killed_reader_goes_on_after_its_last_confirmed_message_g7(system: Any, tmp_path: Path) -> None:
    async def send() -> None:
        async with Client(sender="ann", address=system.address, token=system.token) as client:
            for n in range(1, MESSAGES + 1):
                client.post("cursor/room", b"message-%d" % n)
            await client.flush()

    asyncio.run(send())
    at = confirmed = 0
    for count in (*KILL_AFTER, MESSAGES - sum(KILL_AFTER)):
        handled, known = read_until_killed(system.address, system.token, tmp_path / "reader.db", count)
        assert handled == list(range(handled[0], handled[0] + len(handled))), "in order, each once in one life"
        assert confirmed < handled[0] <= at + 1, "nothing confirmed comes again, nothing unconfirmed is skipped"
        at, confirmed = handled[-1], known
    assert at >= MESSAGES - len(KILL_AFTER)
