"""The work behind one subscription: what waits for its reader, and how much more may come.

Owns the messages that wait, the credit, and the parts of the subscription, one for each partition. It must not know the wire,
nor the order inside a session: the parts hand on what is in order. Rules:

1. What the SessionActors may still send and what waits here are together at most `WINDOW_MESSAGES` messages and
   `WINDOW_BYTES` bytes (and one message), however many sessions there are. Each part has an equal share of it, and at least
   `SHARE_MESSAGES_MIN` and `SHARE_BYTES_MIN`.
2. Credit is given back when a quarter of a share is free, not for each message.
3. When one part fails for good, nothing more is asked for in any: the reader gets what had come, and then the error.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from trilogue.actors.protocol.errors import TrilogueError
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.limits import KIB, MIB, Limits
from trilogue.actors.protocol.messages import Message
from trilogue.actors.protocol.subscriptions import MESSAGE_COST_BYTES
from trilogue.client.connecting.connections import Connections
from trilogue.client.reading.pages import Reading
from trilogue.client.reading.part import Part

WINDOW_MESSAGES = 8_192
WINDOW_BYTES = 4 * MIB
SHARE_MESSAGES_MIN = 64
SHARE_BYTES_MIN = 64 * KIB


class Feed:
    """Keeps a subscription alive at whichever SessionActors have its sessions."""

    def __init__(
        self,
        sessions: Mapping[str, int | None],
        connections: Connections,
        reading: Reading,
        limits: Limits,
        jitter: Callable[[], float],
        places: Callable[[], Awaitable[Mapping[str, int | None]]] | None = None,
    ) -> None:
        """`places` says after which seqs to begin, if it is known only now; then `sessions` does not count."""
        self.error: TrilogueError | None = None
        self.changed = asyncio.Event()  # for the reader: a message, or the end
        self.started = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._buffer: deque[Message] = deque()
        self._buffer_bytes = 0
        self._sessions, self._places = sessions, places
        self._context = connections, reading, limits, jitter
        self._window_bytes = min(WINDOW_BYTES, limits.credit_bytes_max)
        self._parts: list[Part] = []
        self._begun = 0
        self._share_messages, self._share_bytes = WINDOW_MESSAGES, self._window_bytes
        self._task = asyncio.create_task(self._run(), name=f"trilogue-subscription-{next(iter(sessions), '')}")

    # ------------------------------------------------------------------ the reader's side

    @property
    def waiting(self) -> int:
        """How many messages wait for the reader."""
        return len(self._buffer)

    def take(self, messages_max: int) -> list[Message]:
        """The next messages, as many as wait; the room that they leave is given away again."""
        buffer = self._buffer
        if messages_max >= len(buffer):
            taken = list(buffer)
            buffer.clear()
            self._buffer_bytes = 0
        else:
            taken = [buffer.popleft() for _ in range(messages_max)]
            self._buffer_bytes -= sum([len(message.body) for message in taken]) + MESSAGE_COST_BYTES * len(taken)
        self._top_up()
        return taken

    def take_one(self) -> Message:
        """As `take(1)`."""
        message = self._buffer.popleft()
        self._buffer_bytes -= len(message.body) + MESSAGE_COST_BYTES
        self._top_up()
        return message

    def close(self, error: TrilogueError | None = None) -> None:
        """End it. With an error, the reader gets that after what still waits."""
        self.error = self.error or error
        self._task.cancel()
        for part in self._parts:
            part.leave()
        self._parts = []
        self.started.set()
        self.changed.set()

    def drop(self) -> None:
        """Forget what waits: nobody will read it."""
        self._buffer.clear()
        self._buffer_bytes = 0

    # ------------------------------------------------------------------ the parts' side

    def arrived(self, messages: list[Message], size_bytes: int) -> None:
        """These can be handed on."""
        self._buffer.extend(messages)
        self._buffer_bytes += size_bytes
        self.changed.set()

    def begun(self) -> None:
        """A part has been subscribed."""
        self._begun += 1
        if self._begun >= len(self._parts):
            self.started.set()

    def failed(self, error: TrilogueError) -> None:
        """This can never go away."""
        self.close(error)

    def share(self) -> tuple[int, int]:
        """The credit, in messages and bytes, that a part may ask for now, at most."""
        free, free_bytes = self._room()
        return min(free, self._share_messages), min(free_bytes, self._share_bytes)

    def _room(self) -> tuple[int, int]:
        messages, size_bytes = len(self._buffer), self._buffer_bytes
        for part in self._parts:
            messages += part.messages
            size_bytes += part.size_bytes
        parts = len(self._parts)
        most = max(WINDOW_MESSAGES, parts * SHARE_MESSAGES_MIN), max(self._window_bytes, parts * SHARE_BYTES_MIN)
        return most[0] - messages, most[1] - size_bytes

    def _top_up(self) -> None:
        free, free_bytes = self._room()
        share, share_bytes = self._share_messages, self._share_bytes
        if free < share // 4 and free_bytes < share_bytes // 4:
            return
        for part in self._parts:
            messages, size_bytes = share - part.messages, share_bytes - part.size_bytes
            if messages >= share // 4 or size_bytes >= share_bytes // 4:
                messages, size_bytes = min(messages, free), min(size_bytes, free_bytes)
                part.give(messages, size_bytes)
                free -= max(messages, 0)
                free_bytes -= max(size_bytes, 0)

    # ------------------------------------------------------------------ the work

    async def _run(self) -> None:
        connections, reading, limits, jitter = self._context
        if self._places is not None:
            try:
                self._sessions = await self._places()
            except TrilogueError as error:
                self.failed(error)
                return
        if not self._sessions:
            self.started.set()
            return
        await connections.link_of(next(iter(self._sessions)), math.inf)
        partitions = connections.routes.partitions
        assert partitions is not None
        groups: dict[int, dict[str, int | None]] = {}
        for session, after in self._sessions.items():
            groups.setdefault(partition_of(session, partitions), {})[session] = after
        self._sessions = {}
        self._share_messages = max(WINDOW_MESSAGES // len(groups), SHARE_MESSAGES_MIN)
        self._share_bytes = max(self._window_bytes // len(groups), SHARE_BYTES_MIN)
        self._parts = [Part(self, group, connections, reading, limits, jitter) for group in groups.values()]
        async with asyncio.TaskGroup() as tasks:
            for part in self._parts:
                tasks.create_task(part.run())
