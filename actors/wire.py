"""Framed, authenticated connections between processes (design §12).

Owns the bytes between two processes: framing, requests and their replies, back-pressure. It must not know what is said
(``protocol.vocabulary``), how a peer proves itself (``handshake``), nor anything of Ray. Rules:

1. A frame is ``magic u16 · version u8 · 0 u8 · length u32 · crc u32``, then a msgpack array. No length is believed
   beyond its bound, and none beyond `handshake_bytes_max` before the peer has proved that it knows the token.
2. Nothing that a peer says is handed on before it has proved that it knows the token.
3. A malformed frame ends its connection with a reason (`GOODBYE`) and touches nothing else.
4. Nothing is ever pickled.
5. Whoever waits for an answer gets one: a lost connection fails its requests with `Unavailable`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, cast
from zlib import crc32

import msgpack

from trilogue.actors.handshake import VERSION, Handshake
from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.vocabulary import GOODBYE, REPLY, Code, Say

logger = logging.getLogger(__name__)

MAGIC: Final = 0x4C54  # b"TL"
WRITE_BUFFER_BYTES_HIGH: Final = 4 * 1024 * 1024
_MARK: Final = MAGIC | VERSION << 16  # magic, version and 0 as one number
_PREFIX_BYTES: Final = 12
_pack_prefix = struct.Struct("<III").pack
_unpack_prefix = struct.Struct("<III").unpack_from
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_unpack = msgpack.unpackb
_ARRAYS = [bytes([0x90 | length]) for length in range(16)]  # msgpack's head of a short array

OnMessage = Callable[["Connection", list[Any]], None]
OnClosed = Callable[["Connection", str], None]


class Refused(Exception):
    """The peer refused a request: nothing was done. `code` says whether it may succeed later."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = Code(code)
        self.text = text

    def __str__(self) -> str:
        return self.text


def pack(message: list[Any]) -> bytes:
    """The bytes of one frame: for `Connection.send_packed`, when the same goes to many."""
    payload = _pack(message)
    packed: bytes = _pack_prefix(_MARK, len(payload), crc32(payload)) + payload
    return packed


def pack_item(item: Any) -> bytes:
    """One item of a message, for `pack_items`: packed once, sent in several messages."""
    packed: bytes = _pack(item)
    return packed


def pack_items(*items: bytes) -> bytes:
    """The bytes of one frame, of a message of at most 15 items that were packed by `pack_item`."""
    payload = b"".join((_ARRAYS[len(items)], *items))
    return _pack_prefix(_MARK, len(payload), crc32(payload)) + payload


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port"; IPv6 hosts stand in brackets. Raises `Unavailable` when it is no address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise Unavailable(f"{address!r} is not an address: write it as HOST:PORT")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connection(asyncio.Protocol):
    """One framed connection. Made by `connect` and `Server`; everything happens in one event loop."""

    def __init__(
        self, token: str, on_message: OnMessage, on_closed: OnClosed, limits: Limits, info: dict[str, Any] | None = None
    ) -> None:
        self.peer = "?"
        self.peer_info: dict[str, Any] = {}
        self.closed = False
        self.writable = True
        self.heard = 0  # how often something came: who waits for an answer sees by it whether the peer is alive
        self.authenticated: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshake: Handshake | None = Handshake(token, info)  # until the peer has proved that it knows the token
        self._on_message = on_message
        self._on_closed = on_closed
        self._limits = limits
        self._bytes_max = limits.handshake_bytes_max
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._drained: asyncio.Future[None] | None = None
        self._reason = ""
        self._timer = asyncio.get_running_loop().call_later(limits.handshake_timeout_ms / 1000, self._handshake_is_late)

    # ------------------------------------------------------------------ saying things

    def send(self, message: list[Any]) -> None:
        """Pack `message` and hand it to the socket. Never blocks; does nothing once the connection is closed."""
        if not self.closed and self._transport is not None:
            self._transport.write(pack(message))

    def send_packed(self, packed: bytes) -> None:
        """Hand bytes made by `pack` to the socket."""
        if not self.closed and self._transport is not None:
            self._transport.write(packed)

    def reply(self, request_id: int, value: Any) -> None:
        """Answer a request."""
        self.send([REPLY, request_id, 0, value])

    def refuse(self, request_id: int, code: Code, text: str) -> None:
        """Answer a request with a refusal."""
        self.send([Say.REPLY, request_id, int(code), text])

    async def request(self, say: Say, *items: Any, timeout_ms: int | None = None) -> Any:
        """Ask, and wait for the answer. Raises `Refused`, or `Unavailable` when no answer came (it may have been done)."""
        if self.closed:
            raise Unavailable(f"the connection to {self.peer} is closed: {self._reason or 'try again'}")
        request_id = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = future
        self.send([say, request_id, *items])
        try:
            async with asyncio.timeout((timeout_ms or self._limits.request_timeout_ms) / 1000):
                return await future
        except TimeoutError:
            raise Unavailable(f"{self.peer} did not answer {say.name} in time: is it overloaded? try again") from None
        finally:
            self._requests.pop(request_id, None)

    async def drained(self) -> None:
        """Wait until the socket takes more (or the connection is closed)."""
        while not self.writable and not self.closed:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def pause_reading(self) -> None:
        """Take nothing more from the peer, until `resume_reading`: its socket fills up, and it waits."""
        if self._transport is not None and not self.closed and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""
        if self._transport is not None and not self.closed and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self, reason: str = "") -> None:
        """End the connection, telling the peer why. What was sent before still leaves."""
        if not self.closed and self._transport is not None:
            if reason:
                self.send([Say.GOODBYE, reason])
            self._transport.close()
        self._end(reason or "closed here")

    # ------------------------------------------------------------------ asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own transports are not subclasses
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        if name:
            self.peer = join_address(name[0], name[1])
        if self.closed:  # refused before it was made
            transport.write(pack([Say.GOODBYE, self._reason]))
            transport.close()
        elif self._handshake is not None and self._handshake.accepting:
            self.send(self._handshake.challenge())

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self.heard += 1
        if self._buffer:
            self._buffer += data
            with memoryview(self._buffer) as view:
                used = self._take(view)
            if self.closed:
                self._buffer = bytearray()  # not resized: the error that closed it may still refer to these bytes
            elif used:
                del self._buffer[:used]
        else:
            used = self._take(memoryview(data))
            if used < len(data) and not self.closed:
                self._buffer += data[used:]

    def connection_lost(self, error: Exception | None) -> None:
        self._end(self._reason or (f"lost: {error}" if error else "the peer closed it"))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._wake_writers()

    # ------------------------------------------------------------------ taking frames

    def _take(self, view: memoryview) -> int:
        """Handle every whole frame in `view`; return how many bytes they took."""
        offset, size = 0, len(view)
        try:
            while size - offset >= _PREFIX_BYTES and not self.closed:
                mark, length, crc = _unpack_prefix(view, offset)
                if mark != _MARK:
                    raise _wrong_mark(mark)
                if length > self._bytes_max:
                    raise ProtocolError(f"a frame of {length} bytes: {self._bytes_max} at most")
                start = offset + _PREFIX_BYTES
                end = start + length
                if size < end:
                    break
                payload = view[start:end]
                if crc32(payload) != crc:
                    raise ProtocolError("a frame fails its CRC")
                offset = end
                try:
                    message = _unpack(payload, strict_map_key=False)
                except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
                    raise ProtocolError(f"a frame is not msgpack: {type(error).__name__}: {error}") from None
                if type(message) is not list or not message or (type(message[0]) is not int and message[0] != b"TRLG"):
                    raise ProtocolError("a frame is not an array that starts with what it says")
                if self._handshake is not None:
                    self._shake_hands(self._handshake, message)
                elif message[0] == REPLY:
                    self._on_reply(message)
                elif message[0] == GOODBYE:
                    self._reason = f"{self.peer} said: {' '.join(map(str, message[1:2]))}"
                else:
                    self._on_message(self, message)
        except ProtocolError as error:
            logger.warning("connection with %s ended: %s", self.peer, error)
            self._fail_authentication(error)
            self.close(str(error))
        return offset

    def _on_reply(self, message: list[Any]) -> None:
        if len(message) != 4 or type(message[1]) is not int or type(message[2]) is not int:
            raise ProtocolError("a reply of unknown shape")
        future = self._requests.pop(message[1], None)
        if future is None or future.done():
            return
        if message[2] == 0:
            future.set_result(message[3])
        elif message[2] in Code._value2member_map_:
            future.set_exception(Refused(message[2], str(message[3])))
        else:
            raise ProtocolError(f"a refusal of unknown code {message[2]}")

    # ------------------------------------------------------------------ the handshake

    def _shake_hands(self, handshake: Handshake, message: list[Any]) -> None:
        try:
            proven = handshake.take(message, self.send, self.peer)
        except (NotAuthorized, Unavailable) as error:
            self._fail_authentication(error)
            self.close()
            return
        if proven:
            self._handshake = None
            self._timer.cancel()
            self._bytes_max = self._limits.wire_bytes_max
            self.peer_info = handshake.peer_info
            self.authenticated.set_result(None)

    def _handshake_is_late(self) -> None:
        self._fail_authentication(Unavailable(f"{self.peer} did not finish the handshake: is it a trilogue actor?"))
        self.close("the handshake took too long")

    def _fail_authentication(self, error: Exception) -> None:
        if not self.authenticated.done():
            self.authenticated.set_exception(error)
            self.authenticated.exception()  # the acceptor awaits it nowhere: mark it as seen

    # ------------------------------------------------------------------ the end

    def _wake_writers(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._reason = reason
        self._timer.cancel()
        self._wake_writers()
        self._fail_authentication(Unavailable(f"the connection to {self.peer} ended in the handshake: {reason}"))
        for future in self._requests.values():
            if not future.done():
                future.set_exception(Unavailable(f"the connection to {self.peer} was lost: {reason}"))
        self._requests.clear()
        self._on_closed(self, reason)


def _wrong_mark(mark: int) -> ProtocolError:
    magic, version, zero = mark & 0xFFFF, mark >> 16 & 0xFF, mark >> 24
    if magic != MAGIC or zero:
        return ProtocolError(f"wrong magic {magic:#06x}: this is not the trilogue protocol")
    return ProtocolError(f"wire version {version} where {VERSION} is spoken: upgrade the older side")


async def connect(
    address: str,
    token: str,
    *,
    on_message: OnMessage,
    on_closed: OnClosed,
    limits: Limits = DEFAULT_LIMITS,
) -> Connection:
    """An authenticated connection to `address`. Raises `Unavailable`, `NotAuthorized` or `ProtocolError`.

    `on_closed` is called once for each connection that this function returned, and for none that it did not.
    """
    host, port = split_address(address)
    silent: list[bool] = [True]

    def closed(connection: Connection, reason: str) -> None:
        if not silent[0]:
            on_closed(connection, reason)

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.handshake_timeout_ms / 1000):
            _, connection = await loop.create_connection(lambda: Connection(token, on_message, closed, limits), host, port)
    except TimeoutError:
        raise Unavailable(f"{address} does not answer: is the system up? `trilogue status` tells") from None
    except OSError as error:
        raise Unavailable(f"cannot reach {address}: {error.strerror or error}; is the system up?") from None
    connection.peer = address
    try:
        await connection.authenticated
    except BaseException:
        connection.close()
        raise
    silent[0] = False
    if connection.closed:
        raise Unavailable(f"the connection to {address} ended at once: try again")
    return connection
