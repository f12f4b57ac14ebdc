"""Accepting connections (design §12): one address, many peers that know the token.

Owns who is connected, who has not proved yet that it knows the token, and how many may be. It must not know what is said.
Invariant: `on_message` and `on_closed` are called for authenticated peers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trilogue.actors.protocol.errors import Corrupt, TrilogueError, UsageError
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.vocabulary import Code
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection, OnClosed, OnMessage, join_address, split_address


class Server:
    """Accepts connections at one address. `on_message` is only ever called for peers that know the token."""

    def __init__(
        self,
        token: str,
        info: dict[str, Any],
        on_message: OnMessage,
        on_opened: Callable[[Connection], None],
        on_closed: OnClosed,
        limits: Limits,
    ) -> None:
        self.address = ""
        self.connections: set[Connection] = set()
        self._pending: set[Connection] = set()
        self._make = (token, info, limits)
        self._on_message, self._on_opened, self._on_closed = on_message, on_opened, on_closed
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> None:
        """Bind to "host:port" (port 0: any). Raises `OSError` when the port is taken."""
        host, port = split_address(address)
        self._server = await asyncio.get_running_loop().create_server(self._connection, host, port)
        self.address = join_address(host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        if self._server is not None:
            self._server.close()
        for connection in [*self.connections, *self._pending]:
            connection.close("this actor ends")

    def _connection(self) -> Connection:
        token, info, limits = self._make
        connection = Connection(token, self._on_message, self._closed, limits, info)
        self._pending.add(connection)
        if len(self._pending) + len(self.connections) > limits.connections_max:
            asyncio.get_running_loop().call_soon(connection.close, f"over {limits.connections_max} connections here")
        connection.authenticated.add_done_callback(lambda future: self._opened(connection, future))
        return connection

    def _opened(self, connection: Connection, future: asyncio.Future[None]) -> None:
        self._pending.discard(connection)
        if future.exception() is None and not connection.closed:
            self.connections.add(connection)
            self._on_opened(connection)

    def _closed(self, connection: Connection, reason: str) -> None:
        self._pending.discard(connection)
        if connection in self.connections:
            self.connections.discard(connection)
            self._on_closed(connection, reason)


async def listen_preferring(server: Server, address: str) -> None:
    """Listen at `address`, or at any port of its host when that one is taken."""
    try:
        await server.listen(address)
    except OSError:
        await server.listen(address.rpartition(":")[0] + ":0")


def answer_later(connection: Connection, request: int, work: Callable[[], Any]) -> None:
    """Answer a request with what `work` gives; what it raises on purpose becomes a refusal."""

    async def answer() -> None:
        try:
            connection.reply(request, await work())
        except UsageError as error:
            connection.refuse(request, Code.INVALID_RANGE, str(error))
        except Corrupt as error:
            connection.refuse(request, Code.CORRUPT, str(error))
        except TrilogueError as error:
            connection.refuse(request, Code.UNAVAILABLE, str(error))

    spawn(answer(), "answer")
