"""A bad network between clients and actors, or a writer and its stores: it cuts connections, swallows acks, delays, is silent.

Owns the sockets in between, in a thread of its own. It knows of the wire what it must to sit in the middle: where a
frame ends, which ones are acks, and the answers that name addresses. These it rewrites, so that whoever comes in
through it meets every actor through it. Nothing is changed inside a frame otherwise, and nothing is reordered:
TCP would not do that either.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any
from zlib import crc32

import msgpack

PREFIX = struct.Struct("<HBBII")
REPLY, ACKED = 1, 12
CHUNK = 65_536


class BadNetwork:
    """Use as a context manager. The switches may be turned at any time, from any thread."""

    def __init__(self, seed: int, *, rewrites: bool = True) -> None:
        """`rewrites`: whoever comes in through it meets every other actor through it, too."""
        self._rewrites = rewrites
        self.down = False  # nobody gets through: a new connection ends at once
        self.swallow_acks = False  # acks vanish; everything else arrives
        self.delay_s_max = 0.0  # each frame to a client arrives up to so much later
        self.acks_swallowed = 0
        self.cuts = 0
        self.begun = 0  # connections that somebody began, whatever became of them
        self._random = random.Random(seed)
        self._heard = asyncio.Event()
        self._heard.set()
        self._fronts: dict[str, str] = {}
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-network", daemon=True)

    def __enter__(self) -> BadNetwork:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def front_of(self, address: str) -> str:
        """The address behind which the actor at `address` is met through this network."""
        return str(self._call(lambda: self._front_of(address)))

    def be_silent(self, silent: bool) -> None:
        """Nothing arrives in either direction, and nobody is told; until it does again, and nothing was lost."""
        self._loop.call_soon_threadsafe(self._heard.clear if silent else self._heard.set)

    def cut(self) -> None:
        """Reset every connection, in the middle of whatever is on its way."""
        self._call(self._cut)

    def _call(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10.0)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            self.cuts += 1
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        await self._cut()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _front_of(self, address: str) -> str:
        if address in self._fronts.values():
            return address
        if address not in self._fronts:
            server = await asyncio.start_server(lambda r, w: self._serve(address, r, w), "127.0.0.1", 0)
            self._servers.append(server)
            self._fronts[address] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self._fronts[address]

    async def _serve(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        self.begun += 1
        if self.down:
            writer.transport.abort()
            return
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(up_writer)
            directions = [
                asyncio.ensure_future(self._to_actor(reader, up_writer)),
                asyncio.ensure_future(self._to_client(up_reader, writer)),
            ]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self._writers.discard(up_writer)
            up_writer.close()
        self._writers.discard(writer)
        writer.close()

    async def _to_actor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self._heard.wait()
            writer.write(data)
            await writer.drain()

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            prefix = await reader.readexactly(PREFIX.size)
            magic, version, zero, length, _ = PREFIX.unpack(prefix)
            payload = await reader.readexactly(length)
            message = msgpack.unpackb(payload, raw=False, strict_map_key=False)
            if message[0] == ACKED and self.swallow_acks:
                self.acks_swallowed += 1
                continue
            if self._rewrites and message[0] == REPLY and isinstance(message[-1], dict) and "writers" in message[-1]:
                await self._rewrite(message[-1])
                payload = msgpack.packb(message)
                prefix = PREFIX.pack(magic, version, zero, len(payload), crc32(payload))
            if self.delay_s_max:
                await asyncio.sleep(self._random.random() * self.delay_s_max)
            await self._heard.wait()
            writer.write(prefix + payload)
            await writer.drain()

    async def _rewrite(self, route: dict[str, Any]) -> None:
        route["addresses"] = [await self._front_of(address) for address in route["addresses"]]
        for partition, (epoch, address) in route["writers"].items():
            route["writers"][partition] = [epoch, await self._front_of(address)]
