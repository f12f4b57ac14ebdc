"""A program that reads one session, and stops reading for a while: run by tests as a process of its own.

``python slow_reader.py ADDRESS SESSION LAST_SEQ`` with the token as the first line of standard input. It checks that each
message comes once, in order, and holds its own number; with the next line it stops taking messages, and with the one after it
goes on. It writes a line every 10,000 messages, and "done" after LAST_SEQ.
"""

from __future__ import annotations

import asyncio
import sys

from trilogue.client import Client


async def read(address: str, session: str, last_seq: int) -> None:
    """Read up to `last_seq`."""
    loop = asyncio.get_running_loop()
    token = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    paused = asyncio.Event()
    going = asyncio.Event()
    going.set()

    async def obey() -> None:
        await loop.run_in_executor(None, sys.stdin.readline)
        paused.set()
        going.clear()
        await loop.run_in_executor(None, sys.stdin.readline)
        going.set()

    obeying = asyncio.create_task(obey())
    at = 0
    async with Client(address=address, token=token) as client, client.subscribe(session, after=0) as messages:
        async for message in messages:
            at += 1
            assert message.seq == at, f"seq {message.seq} came after {at - 1}"
            assert message.body.startswith(b"%d:" % at), f"seq {at} holds another message"
            if at % 10_000 == 0:
                print(at, flush=True)
            if at >= last_seq:
                break
            await going.wait()
    print("done", flush=True)
    obeying.cancel()


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1], sys.argv[2], int(sys.argv[3])))
