"""Where messages are handed over: checked, numbered, counted; and who waits for room.

Owns whether anything is taken at all, the checks, and the one turn of the event loop after which what was handed over is on
its way. It must not know connections beyond three calls: `route`, `pump`, and `send_alone` of a lane's flow. Rules:

1. A message that was refused here was not handed over: it has no number and takes no room.
2. What is handed over in one turn of the loop is saved and submitted together, at the turn's end. There is no timer.
3. Except a `send` into an outbox in memory that is empty: nothing goes with that message, so it leaves at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time_ns

from trilogue.actors.protocol.errors import ClientClosed, MessageTooLarge, Overloaded, UsageError
from trilogue.actors.protocol.ids import KEY_BYTES_MAX, check_sender, check_session
from trilogue.actors.protocol.limits import Limits
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES, Lane, Waiter

NOT_OPEN = "this client is not open yet: use `async with Client(...) as client:`"
CLOSED = "this client was closed: open a new one"


class Desk:
    """One client's. `route` gives a new lane its way, `pump` sends what may be sent."""

    def __init__(self, sender: str | None, limits: Limits) -> None:
        self.is_open = False
        self.is_shut = False
        self.route: Callable[[Lane], None] = _nowhere
        self.pump: Callable[[], None] = _nothing
        self._sender = check_sender(sender) if sender is not None else None
        self._limits = limits
        self._size_bytes_max = limits.body_bytes_max + MESSAGE_OVERHEAD_BYTES
        self._messages_max, self._bytes_max = limits.outbox_messages_max, limits.outbox_bytes_max
        self._woken = False
        self._drainers: list[asyncio.Future[None]] = []

    def use(self, outbox: Outbox) -> None:
        """Hand over to this one. Call it in the client's loop."""
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._cache = outbox.cache

    def shut(self) -> None:
        """From now on nothing is taken."""
        self.is_open, self.is_shut = False, True
        self._cache.clear()
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_exception(ClientClosed(CLOSED))

    def check_open(self) -> None:
        """Raise unless messages are taken."""
        if self.is_shut:
            raise ClientClosed(CLOSED)
        if not self.is_open:
            raise UsageError(NOT_OPEN)

    # ------------------------------------------------------------------ handing over

    def hand_over(
        self, session: str, body: bytes, sender: str | None, future: Waiter, key: str | None = None, awaited: bool = False
    ) -> Lane:
        """The hot path of `post`, for any kind of future; `awaited`: the caller does nothing before its answer.

        `key` was checked. Returns the lane that has the message now. Raises what is wrong; then nothing was handed over.
        """
        try:
            lane = self._cache.get((session, sender))
        except TypeError:  # a session that cannot be hashed is no str
            lane = None
        if lane is None:
            lane = self._lane(session, sender)
        if type(body) is not bytes:
            body = _as_bytes(body)
        size = len(body) + MESSAGE_OVERHEAD_BYTES
        taken = size if key is None else size + len(key.encode())
        outbox = self._outbox
        if size > self._size_bytes_max or outbox.messages >= self._messages_max or outbox.bytes + taken > self._bytes_max:
            self.check_room(0, 0, len(body), taken - size)
        outbox.messages += 1
        outbox.bytes += taken
        lane.bodies.append(body)
        lane.times.append(time_ns() // 1000)
        lane.futures.append(future)
        lane.size_bytes += size
        if key is not None:
            lane.put_key(key)
        # for a message alone, 3.2 µs of the client's own work instead of 5.5: no turn of the loop, no `save` and no `pump`
        if awaited and outbox.messages == 1 and not outbox.durable and lane.flow is not None and lane.flow.send_alone(lane):
            return lane
        if not lane.dirty:
            lane.dirty = True
            outbox.dirty.append(lane)
            if not self._woken:
                self._woken = True
                self._loop.call_soon(self._send_off)
        return lane

    def check(self, session: str, body: bytes, sender: str | None) -> bytes:
        """The body as bytes. Raises what is wrong with names and types; may be called in any thread."""
        try:
            known = (session, sender) in self._cache
        except TypeError:
            known = False
        if not known:
            check_session(session)
            self._name(sender)
        return body if type(body) is bytes else _as_bytes(body)

    def check_room(self, more_messages: int, more_bytes: int, body_bytes: int, key_bytes: int) -> None:
        """Raise `MessageTooLarge`, or `Overloaded` if the outbox and `more` leave no room for the body and its key."""
        if body_bytes > self._limits.body_bytes_max:
            text = f"a body of {body_bytes} bytes: {self._limits.body_bytes_max} at most"
            raise MessageTooLarge(f"{text}; send it in parts or keep it elsewhere")
        messages = self._outbox.messages + more_messages
        size = self._outbox.bytes + more_bytes + more_messages * MESSAGE_OVERHEAD_BYTES
        if messages >= self._messages_max or size + body_bytes + key_bytes + MESSAGE_OVERHEAD_BYTES > self._bytes_max:
            text = f"the outbox is full: {messages} messages, {size} bytes"
            raise Overloaded(f"{text}; await client.drain(), then hand it over again")

    def wake(self) -> None:
        """Something is dirty: save and send at the end of this turn of the loop."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._send_off)

    # ------------------------------------------------------------------ room

    async def drain(self) -> None:
        """As `Client.drain`."""
        outbox = self._outbox
        if outbox.messages < self._messages_max and outbox.bytes + self._size_bytes_max + KEY_BYTES_MAX <= self._bytes_max:
            return
        while not outbox.roomy:
            future = self._loop.create_future()
            self._drainers.append(future)
            await future

    def on_settled(self) -> None:
        """Answers came: whoever waits for room may go on."""
        if self._drainers and self._outbox.roomy:
            drainers, self._drainers = self._drainers, []
            for drainer in drainers:
                if not drainer.done():
                    drainer.set_result(None)

    # ------------------------------------------------------------------ inside

    def _send_off(self) -> None:
        self._woken = False
        self._outbox.save()
        self.pump()

    def _lane(self, session: str, sender: str | None) -> Lane:
        """The lane that a call names, for the first time; the next call finds it in the cache."""
        self.check_open()
        outbox = self._outbox
        if outbox.failed is not None:
            raise type(outbox.failed)(*outbox.failed.args)
        check_session(session)
        name = self._name(sender)
        new = (session, name) not in outbox.lanes
        lane = outbox.lane(session, name)
        if lane.stopped is not None:
            raise type(lane.stopped)(*lane.stopped.args)
        if new:
            self.route(lane)
        self._cache[(session, sender)] = lane
        return lane

    def _name(self, sender: str | None) -> str:
        """Under which name a call speaks."""
        if sender is not None:
            return check_sender(sender)
        if self._sender is None:
            raise UsageError("nobody is named as the sender: give Client(sender=NAME), or sender=NAME in the call")
        return self._sender


def _as_bytes(body: object) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    if isinstance(body, str):
        raise TypeError("a body is bytes, not str: call body.encode()")
    raise TypeError(f"a body is bytes, not {type(body).__name__}: encode it first")


def _nowhere(lane: Lane) -> None:
    """Before there are connections: what is handed over waits."""


def _nothing() -> None:
    """Before there are connections."""
