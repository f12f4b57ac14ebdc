"""The wire: every malformed byte ends its own connection and nothing else, and nobody gets in without the token."""

from __future__ import annotations

import asyncio
import re
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, KIB, Limits
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.server import Server
from trilogue.actors.wire import MAGIC, VERSION, Connection, Refused, connect, join_address, pack, split_address

TOKEN = "the token"
DEADLINE_S = 20
SMALL = Limits(
    body_bytes_max=100, submit_bytes_max=200, frame_bytes_target=100, frame_bytes_max=80 * KIB, wire_bytes_max=160 * KIB,
    states_names_max=8, records_sessions_max=8,
    journal_file_bytes=160 * KIB, history_bytes_max=8 * KIB, page_bytes_max=4 * KIB,
    credit_bytes_max=8 * KIB,
)  # fmt: skip
IMPATIENT = Limits(handshake_timeout_ms=30, request_timeout_ms=30)


def raw_frame(payload: bytes, magic: int = MAGIC, version: int = VERSION, zero: int = 0, crc: int | None = None) -> bytes:
    return struct.pack("<HBBII", magic, version, zero, len(payload), crc32(payload) if crc is None else crc) + payload


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine with a deadline: a test that hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(bounded())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  # the test's deadline bounds it
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- two ends without a socket


class Pipe(asyncio.Transport):
    """A transport whose bytes are kept until `flow` carries them to the other end, in pieces of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False
        self.reading = True

    def write(self, data: Any) -> None:
        assert not self.closing, "written after the close"
        self.written += data

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


class End:
    """One end of a connection: what it heard, and why it ended."""

    def __init__(self, info: dict[str, Any] | None, token: str = TOKEN, limits: Limits = SMALL) -> None:
        self.heard: list[Any] = []
        self.reason: str | None = None
        self.pipe = Pipe()
        self.connection = Connection(token, lambda _, message: self.heard.append(message), self._closed, limits, info)
        self.connection.connection_made(self.pipe)

    def _closed(self, _: Connection, reason: str) -> None:
        assert self.reason is None, "on_closed was called twice"
        self.reason = reason

    def feed(self, data: bytes, piece: int = 1 << 30) -> None:
        for at in range(0, len(data), piece):
            if not self.pipe.closing:
                self.connection.data_received(bytes(data[at : at + piece]))

    @property
    def error(self) -> BaseException | None:
        return self.connection.authenticated.exception() if self.connection.authenticated.done() else None


def flow(one: End, other: End, piece: int = 1 << 30) -> None:
    """Carry bytes between two ends until both are silent."""
    while one.pipe.written or other.pipe.written:
        for source, target in ((one, other), (other, one)):
            data, source.pipe.written = bytes(source.pipe.written), bytearray()
            target.feed(data, piece)


def pair(piece: int = 1 << 30, token: str = TOKEN) -> tuple[End, End]:
    """(acceptor, connector), after their handshake."""
    acceptor, connector = End({"name": "store-1"}), End(None, token)
    flow(acceptor, connector, piece)
    return acceptor, connector


def in_loop(function: Callable[..., None]) -> Callable[..., None]:
    """Connections need a running loop for their timers."""

    async def work(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    return lambda *args, **kwargs: run(work(*args, **kwargs))


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 11, 12, 13, 64, 1 << 20])
def test_handshake_and_messages_survive_any_split_of_the_bytes(piece: int) -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = pair(piece)
        assert connector.connection.peer_info == {"name": "store-1"}
        connector.connection.send([Say.PING, 1])
        connector.connection.send([Say.SUBMIT, [["s", b"x" * 300]]])
        acceptor.connection.send([Say.OPEN, 0, 1])
        flow(acceptor, connector, piece)
        assert acceptor.heard == [[Say.PING, 1], [Say.SUBMIT, [["s", b"x" * 300]]]]
        assert connector.heard == [[Say.OPEN, 0, 1]]
        assert acceptor.reason is None

    check()


def test_frames_split_at_every_byte_boundary_arrive_whole() -> None:
    @in_loop
    def check() -> None:
        data = pack([Say.PING, 1]) + pack([Say.WAITING, 0, "why"]) + pack([Say.PING, 2])
        for at in range(len(data) + 1):
            acceptor, _ = pair()
            acceptor.feed(data[:at])
            acceptor.feed(data[at:])
            assert acceptor.heard == [[Say.PING, 1], [Say.WAITING, 0, "why"], [Say.PING, 2]]

    check()


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_wrong_token_is_refused_with_what_to_do_and_the_token_never_travels(piece: int) -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = End({}), End(None, "another token")
        sent = bytearray()
        while acceptor.pipe.written or connector.pipe.written:
            sent += acceptor.pipe.written + connector.pipe.written
            flow(acceptor, connector, piece)
        assert isinstance(connector.error, NotAuthorized)
        assert "token file" in str(connector.error)
        assert acceptor.connection.closed
        assert isinstance(acceptor.error, ProtocolError)
        assert acceptor.heard == connector.heard == []
        assert TOKEN.encode() not in sent
        assert b"another token" not in sent

    check()


def test_acceptor_that_does_not_know_the_token_is_found_out() -> None:
    @in_loop
    def check() -> None:
        connector = End(None)
        connector.feed(pack([b"TRLG", VERSION, bytes(32)]))
        connector.feed(pack([0, bytes(32), {}]))
        assert isinstance(connector.error, ProtocolError)
        assert "does not know the token" in str(connector.error)

    check()


def test_proof_of_another_connection_is_worth_nothing() -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = End({}), End(None)
        connector.feed(bytes(acceptor.pipe.written))
        recorded = bytes(connector.pipe.written)
        replayed = End({})
        replayed.feed(recorded)
        assert isinstance(replayed.error, ProtocolError)
        assert replayed.connection.closed

    check()


BAD_FRAMES = {
    "magic": (raw_frame(b"\x91\x02", magic=0x4142), "wrong magic 0x4142"),
    "http": (b"GET / HTTP/1.1\r\n\r\n", "wrong magic"),
    "zero": (raw_frame(b"\x91\x02", zero=1), "wrong magic"),
    "version": (raw_frame(b"\x91\x02", version=9), "wire version 9.*upgrade"),
    "crc": (raw_frame(b"\x91\x02", crc=1), "fails its CRC"),
    "length": (struct.pack("<HBBII", MAGIC, VERSION, 0, 0xFFFFFFFF, 0), "4294967295 bytes"),
    "cut msgpack": (raw_frame(b"\x93\x02"), "not msgpack"),
    "more msgpack": (raw_frame(b"\x91\x02\x00"), "not msgpack"),
    "bad utf-8": (raw_frame(b"\x92\x05\xa1\xff"), "not msgpack"),
    "a list as a key": (raw_frame(b"\x92\x05\x81\x90\x01"), "not msgpack"),
    "no array": (raw_frame(b"\x02"), "not an array"),
    "a map": (raw_frame(b"\x80"), "not an array"),
    "an empty array": (raw_frame(b"\x90"), "not an array"),
    "a string first": (raw_frame(b"\x91\xa1x"), "not an array"),
    "no payload": (raw_frame(b""), "not msgpack"),
    "a huge array": (raw_frame(b"\xdd\xff\xff\xff\xff"), "not msgpack"),
    "a huge body": (raw_frame(b"\x92\x05\xc6\xff\xff\xff\xff"), "not msgpack"),
    "a huge map": (raw_frame(b"\x92\x05\xdf\xff\xff\xff\xff"), "not msgpack"),
    "deep": (raw_frame(b"\x91" * 3000 + b"\x00"), "not msgpack"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("authenticated", [True, False])
def test_malformed_frame_ends_its_connection_with_a_reason_and_touches_no_other(name: str, authenticated: bool) -> None:
    @in_loop
    def check() -> None:
        data, reason = BAD_FRAMES[name]
        acceptor, connector = pair() if authenticated else (End({}), End(None))
        other, other_side = pair()
        tracemalloc.start()
        acceptor.feed(data, piece=5)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20, "a length was believed"
        assert acceptor.pipe.closing
        assert acceptor.connection.closed
        assert acceptor.reason is not None
        assert re.search(reason, acceptor.reason)
        said = msgpack.unpackb(bytes(acceptor.pipe.written).rpartition(struct.pack("<HBB", MAGIC, VERSION, 0))[2][8:])
        assert said == [Say.GOODBYE, acceptor.reason]
        other_side.connection.send([Say.PING, 3])
        flow(other, other_side)
        assert other.heard == [[Say.PING, 3]]
        assert connector.heard == acceptor.heard == []

    check()


def test_reason_of_the_peer_reaches_the_other_end() -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = pair()
        acceptor.feed(BAD_FRAMES["crc"][0])
        flow(acceptor, connector)
        connector.connection.connection_lost(None)
        assert connector.reason is not None
        assert "a frame fails its CRC" in connector.reason

    check()


@pytest.mark.parametrize(
    "answer",
    [
        [b"TRLG", VERSION, bytes(31), bytes(32)],
        [b"TRLG", VERSION, bytes(32), bytes(32)],
        [b"TRLG", VERSION, bytes(32)],
        [b"TRLG", VERSION, bytes(32), "proof"],
        [Say.PING, 1],
        [Say.REPLY, 1, 0, None],
    ],
)
def test_nothing_is_heard_from_a_peer_that_has_not_proved_itself(answer: list[Any]) -> None:
    @in_loop
    def check() -> None:
        acceptor = End({})
        acceptor.feed(pack(answer))
        acceptor.feed(pack([Say.PING, 1]))
        assert acceptor.connection.closed
        assert acceptor.heard == []

    check()


def test_length_bound_is_small_before_the_handshake_and_that_of_the_wire_after_it() -> None:
    @in_loop
    def check() -> None:
        stranger = End({})
        stranger.feed(struct.pack("<HBBII", MAGIC, VERSION, 0, SMALL.handshake_bytes_max + 1, 0))
        assert stranger.reason == "a frame of 4097 bytes: 4096 at most"
        acceptor, connector = pair()
        connector.connection.send([Say.WAITING, b"x" * (SMALL.wire_bytes_max - 10)])
        flow(acceptor, connector)
        assert len(acceptor.heard) == 1
        connector.connection.send([Say.WAITING, b"x" * SMALL.wire_bytes_max])
        flow(acceptor, connector)
        assert acceptor.reason is not None
        assert "at most" in acceptor.reason

    check()


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_random_bytes_are_heard_or_end_the_connection_and_never_escape(pieces: list[bytes]) -> None:
    @in_loop
    def check() -> None:
        acceptor, _ = pair()
        for data in pieces:
            acceptor.feed(raw_frame(data) if len(data) % 2 else data)
        assert acceptor.connection.closed == acceptor.pipe.closing

    check()


@pytest.mark.parametrize("reply", [[Say.REPLY], [Say.REPLY, 1, 0], [Say.REPLY, "1", 0, None], [Say.REPLY, 1, None, None]])
def test_malformed_reply_ends_the_connection(reply: list[Any]) -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = pair()
        acceptor.connection.send(reply)
        flow(acceptor, connector)
        assert connector.reason == "a reply of unknown shape"

    check()


def test_nothing_is_written_or_heard_after_the_close() -> None:
    @in_loop
    def check() -> None:
        acceptor, connector = pair()
        acceptor.connection.close("enough")
        acceptor.connection.close("again")
        acceptor.connection.send([Say.PING, 1])
        acceptor.feed(pack([Say.PING, 1]))
        assert (acceptor.reason, acceptor.heard) == ("enough", [])
        flow(acceptor, connector)
        assert connector.heard == []

    check()


# ---------------------------------------------------------------------- back-pressure and requests


def test_writer_waits_while_the_buffer_is_full_and_every_waiter_wakes() -> None:
    async def check() -> None:
        acceptor, _ = pair()
        connection = acceptor.connection
        await connection.drained()
        connection.pause_writing()
        waiters = [asyncio.ensure_future(connection.drained()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not connection.writable
        assert not any(waiter.done() for waiter in waiters)
        waiters[0].cancel()
        connection.resume_writing()
        await asyncio.gather(*waiters[1:])
        connection.pause_writing()
        last = asyncio.ensure_future(connection.drained())
        await asyncio.sleep(0)
        connection.connection_lost(None)
        await last

    run(check())


def test_reading_can_be_paused_and_resumed() -> None:
    @in_loop
    def check() -> None:
        acceptor, _ = pair()
        acceptor.connection.pause_reading()
        acceptor.connection.pause_reading()
        assert not acceptor.pipe.reading
        acceptor.connection.resume_reading()
        assert acceptor.pipe.reading

    check()


def test_requests_are_answered_whatever_the_order_of_the_replies() -> None:
    async def check() -> None:
        acceptor, connector = pair()
        first = asyncio.ensure_future(connector.connection.request(Say.HEADS, ["s"]))
        second = asyncio.ensure_future(connector.connection.request(Say.PING))
        await asyncio.sleep(0)
        flow(acceptor, connector)
        assert acceptor.heard == [[Say.HEADS, 1, ["s"]], [Say.PING, 2]]
        acceptor.connection.reply(2, "pong")
        acceptor.connection.refuse(1, Code.NOT_HERE, "ask WHERE")
        acceptor.connection.reply(77, "nobody asked")
        flow(acceptor, connector)
        assert await second == "pong"
        with pytest.raises(Refused) as refused:
            await first
        assert (refused.value.code, refused.value.text) == (Code.NOT_HERE, "ask WHERE")
        assert connector.reason is None

    run(check())


def test_lost_connection_fails_its_requests_G8() -> None:
    async def check() -> None:
        _, connector = pair()
        waiting = asyncio.ensure_future(connector.connection.request(Say.PING))
        await asyncio.sleep(0)
        connector.connection.connection_lost(OSError("reset"))
        with pytest.raises(Unavailable, match="lost: reset"):
            await waiting
        with pytest.raises(Unavailable, match="is closed"):
            await connector.connection.request(Say.PING)

    run(check())


def test_request_without_an_answer_times_out_and_a_late_answer_is_ignored_G8() -> None:
    async def check() -> None:
        acceptor, connector = End({}, limits=IMPATIENT), End(None, limits=IMPATIENT)
        flow(acceptor, connector)
        with pytest.raises(Unavailable, match="did not answer PING in time"):
            await connector.connection.request(Say.PING)
        flow(acceptor, connector)
        acceptor.connection.reply(1, "late")
        flow(acceptor, connector)
        assert connector.reason is None

    run(check())


# ---------------------------------------------------------------------- over sockets


@asynccontextmanager
async def server(limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[tuple[Server, list[Any], list[str]]]:
    """A listening server, what it heard, and why its connections ended."""
    heard: list[Any] = []
    ended: list[str] = []
    one = Server(
        TOKEN, {"name": "x"}, lambda c, m: heard.append((c, m)), lambda _: None, lambda _, reason: ended.append(reason), limits
    )
    await one.listen("127.0.0.1:0")
    try:
        yield one, heard, ended
    finally:
        await one.close()


async def dial(address: str, token: str = TOKEN, limits: Limits = DEFAULT_LIMITS, ended: list[str] | None = None) -> Connection:
    lost = ended if ended is not None else []
    return await connect(
        address, token, on_message=lambda *_: None, on_closed=lambda _, reason: lost.append(reason), limits=limits
    )


def test_client_and_server_meet_over_a_socket() -> None:
    async def check() -> None:
        async with server() as (one, heard, ended):
            connection = await dial(one.address)
            assert connection.peer_info == {"name": "x"}
            assert connection.peer == one.address
            connection.send([Say.PING, 5])
            await until(lambda: heard)
            assert heard[0][1] == [Say.PING, 5]
            assert heard[0][0] in one.connections
            connection.close("bye")
            await until(lambda: ended)
            assert "bye" in ended[0]
            assert not one.connections

    run(check())


def test_wrong_token_over_a_socket_is_not_authorized_and_the_server_goes_on() -> None:
    async def check() -> None:
        async with server() as (one, _, ended):
            with pytest.raises(NotAuthorized, match="token"):
                await dial(one.address, "wrong")
            connection = await dial(one.address)
            assert not connection.closed
            assert ended == []
            connection.close()

    run(check())


def test_nobody_at_the_address_is_unavailable() -> None:
    async def check() -> None:
        async with server() as (one, _, _ended):
            address = one.address
        with pytest.raises(Unavailable, match="cannot reach"):
            await dial(address)

    run(check())


def test_handshake_that_is_never_finished_ends_on_both_sides() -> None:
    async def check() -> None:
        async with server(IMPATIENT) as (one, heard, _):
            reader, writer = await asyncio.open_connection(*split_address(one.address))
            received = await reader.read()
            assert b"the handshake took too long" in received
            writer.close()
            assert heard == []
        silent = await asyncio.start_server(lambda *_: asyncio.sleep(DEADLINE_S), "127.0.0.1", 0)
        with pytest.raises(Unavailable, match="did not finish the handshake"):
            await dial(join_address("127.0.0.1", silent.sockets[0].getsockname()[1]), limits=IMPATIENT)
        silent.close()

    run(check())


def test_connection_beyond_the_bound_is_turned_away_and_told_why() -> None:
    async def check() -> None:
        async with server(Limits(connections_max=1)) as (one, _, _ended):
            first = await dial(one.address)
            with pytest.raises(Unavailable, match="over 1 connections here"):
                await dial(one.address)
            reader, writer = await asyncio.open_connection(*split_address(one.address))
            assert b"over 1 connections" in await reader.read(), "and its socket is closed"
            writer.close()
            assert not first.closed
            first.close()

    run(check())


def test_reader_that_stops_reading_holds_its_writer_back() -> None:
    async def check() -> None:
        async with server() as (one, heard, _):
            connection = await dial(one.address)
            connection.send([Say.PING, 0])
            await until(lambda: heard)
            peer = heard[0][0]
            peer.pause_reading()
            block = pack([Say.WAITING, 0, b"x" * (1 << 20)])
            sent = 0
            while connection.writable:
                connection.send_packed(block)
                sent += 1
                await asyncio.sleep(0)
            assert sent < 64
            peer.resume_reading()
            await connection.drained()
            await until(lambda: len(heard) == sent + 1)
            connection.close()

    run(check())


def test_malformed_frame_over_a_socket_ends_that_connection_only() -> None:
    async def check() -> None:
        async with server() as (one, heard, ended):
            good, lost = await dial(one.address), []
            bad = await dial(one.address, ended=lost)
            bad.send_packed(raw_frame(b"\x91\x02", crc=1))
            await until(lambda: lost)
            assert "fails its CRC" in lost[0]
            assert ended == ["a frame fails its CRC"]
            good.send([Say.PING, 1])
            await until(lambda: heard)
            good.close()

    run(check())


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:port", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused_with_its_form(address: str) -> None:
    with pytest.raises(Unavailable, match="HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:65535", "name.example:1"])
def test_address_splits_and_joins_to_the_same(address: str) -> None:
    assert join_address(*split_address(address)) == address
