"""What is left of a frame whose messages were trimmed, wholly or in part (design §9; issue 4).

Owns the shape of a *thin* frame, how one is made, and how frames are read that may be thin. It must not know which messages are
gone, or where frames lie. Rules:

1. A thin frame holds the header of the whole one, byte for byte: so the chain of frames, and what stores compare, stay as they
   were. It stands in a record of its own, whose CRCs vouch for what is left.
2. Records that are not gone are left byte for byte, in their order. Of a run that is gone its numbers are left (`Gone`): order,
   dedupe and the answers to retries are derived from the log as before. Only its bodies cannot be read any more.
3. A frame is made thin only where that saves bytes, and only when it is committed. A thin one can be made thinner.
4. A store keeps thin frames, and gives them to another store that lacks these; a writer never sends one as a frame of its log.

A thin frame is a record in the layout of frames with the flag `FLAG_THIN`; like a journal's own records it says where it lies
(``journal.records``). Its payload is the whole frame's header of 64 bytes, then the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, decode_frame, decode_header, encode_frame
from trilogue.actors.protocol.keys import digest_of
from trilogue.actors.protocol.messages import GONE, KEYED, RUN, keys_of, pack_records, unpack_record

FLAG_THIN: Final = 32
_FLAGS_AT: Final = 6
_ANY_BYTES: Final = 1 << 33


def is_thin(frame: bytes | memoryview) -> bool:
    """Whether this intact frame is a thin one."""
    return frame[_FLAGS_AT] == FLAG_THIN


def records_at(frame: bytes | memoryview) -> int:
    """Where in the bytes of a frame, whole or thin, its records begin. The header of the frame ends there."""
    return 2 * HEADER_BYTES if frame[_FLAGS_AT] == FLAG_THIN else HEADER_BYTES


def header_of(frame: bytes | memoryview, frame_bytes_max: int) -> Header:
    """The frame's header, of a whole frame or a thin one, checked as `decode_frame` does. Raises `ProtocolError`."""
    outer = decode_frame(frame, frame_bytes_max)
    if outer.flags != FLAG_THIN:
        return outer
    return inner_of(outer, memoryview(frame)[HEADER_BYTES:])


def inner_of(outer: Header, payload: memoryview) -> Header:
    """The header inside a thin frame's payload. Raises `ProtocolError` if it is not one of the same log and partition."""
    inner = decode_header(payload[:HEADER_BYTES], 0, _ANY_BYTES)
    if inner.flags or (inner.log_id, inner.partition, inner.epoch) != (outer.log_id, outer.partition, outer.epoch):
        raise ProtocolError("a thin frame holds another frame's header")
    return inner


def payload_of_records(frame: bytes | memoryview) -> memoryview:
    """The packed records of an intact frame, whole or thin, not copied."""
    at = records_at(frame)
    size = int.from_bytes(frame[44:48], "little") - (at - HEADER_BYTES)
    return memoryview(frame)[at : at + size]


def items_of(frame: bytes | memoryview) -> Iterator[tuple[list[Any], int, int]]:
    """The records of an intact frame as arrays, each with where its bytes lie in the frame: (record, offset, size)."""
    payload = payload_of_records(frame)
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=max(len(payload), 1), read_size=max(len(payload), 1))
    unpacker.feed(payload)
    at = records_at(frame)
    try:
        count = unpacker.read_array_header()
        end = unpacker.tell()
        for _ in range(count):
            item, start, end = unpacker.unpack(), end, unpacker.tell()
            yield item, at + start, end - start
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a frame's payload is not records: {error}") from None


def last_stored(frame: bytes | memoryview) -> int | None:
    """When the last record of an intact frame was stored, in µs; nothing if it holds none."""
    stored_at_us: int | None = None
    for item, _, _ in items_of(frame):
        stored_at_us = unpack_record(item).stored_at_us
    return stored_at_us


def holds_messages(frame: bytes | memoryview) -> bool:
    """Whether an intact frame has bodies that could be let go."""
    return any(item[0] in (RUN, KEYED) for item, _, _ in items_of(frame))


def thinned(frame: bytes, is_gone: Callable[[list[Any]], bool], keys_from_us: int) -> bytes:
    """The frame without the bodies of runs that are gone, to be placed with `placed`; the frame itself if that saves nothing.

    `is_gone` is asked for each record that holds messages, as an array. Idempotency keys stored since `keys_from_us` are kept.
    """
    parts: list[bytes | memoryview] = []
    saved = 0
    view = memoryview(frame)
    for item, offset, size in items_of(frame):
        if item[0] in (RUN, KEYED) and is_gone(item):
            keys = keys_of(item) if item[5] >= keys_from_us else []
            keyed = [[k, key, digest_of(item[7][k])] for k, key in enumerate(keys) if key is not None]
            part = pack_records([GONE, *item[1:6], len(item[7]), keyed])
            saved += size - len(part)
            parts.append(part)
        else:
            parts.append(view[offset : offset + size])
    if not saved:
        return frame
    at = records_at(frame)
    header = bytes(view[at - HEADER_BYTES : at])
    thin = _encode(header, b"".join((header, msgpack.Packer().pack_array_header(len(parts)), *parts)), 0, 0)
    return thin if len(thin) < len(frame) else frame


def placed(thin: bytes, file: int, offset: int) -> bytes:
    """A thin frame's bytes for exactly this place in a journal."""
    at = records_at(thin)
    return _encode(bytes(thin[HEADER_BYTES:at]), bytes(thin[HEADER_BYTES:at]) + bytes(payload_of_records(thin)), file, offset)


def _encode(header: bytes, payload: bytes, file: int, offset: int) -> bytes:
    inner = decode_header(header, 0, _ANY_BYTES)
    data, _ = encode_frame(
        log_id=inner.log_id, partition=inner.partition, epoch=inner.epoch, index=offset, prev_crc=0, count=file,
        committed_upto=0, payload=payload, flags=FLAG_THIN,
    )  # fmt: skip
    return data


def find_record(frame: bytes, session: str, sender_crc: int, first_n: int, crc_of_id: Callable[[str], int]) -> bytes | None:
    """The bytes of the record in an intact frame that gives this sender's number to a message of this session."""
    for item, offset, size in items_of(frame):
        if len(item) > 3 and item[1] == session and item[3] == first_n and crc_of_id(item[2]) == sender_crc:
            return frame[offset : offset + size]
    return None
