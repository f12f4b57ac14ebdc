"""The frame codec: its layout never drifts, and no damaged byte passes."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import (
    HEADER_BYTES,
    check_payload,
    decode_frame,
    decode_header,
    encode_frame,
    padded,
    payload_of,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ROOMY_BYTES = 1 << 20

# magic, version 1, codec 1, flags 0x0203 · log_id · partition · epoch · index · prev_crc · count · payload_len ·
# committed_upto · payload_crc · header_crc · "hello" padded to 8
VECTOR = bytes.fromhex(
    "7f54524c" "01" "01" "0302" "8877665544332211" "04030201" "0807060504030201" "100f0e0d0c0b0a09"
    "efbeadde" "2a000000" "05000000" "0f0f0e0d0c0b0a09" "86a61036"
)  # fmt: skip


def example(payload: bytes = b"hello") -> bytes:
    frame, _ = encode_frame(
        log_id=0x1122334455667788,
        partition=0x01020304,
        epoch=0x0102030405060708,
        index=0x090A0B0C0D0E0F10,
        prev_crc=0xDEADBEEF,
        count=42,
        committed_upto=0x090A0B0C0D0E0F0F,
        payload=payload,
        flags=0x0203,
    )
    return frame


def test_layout_is_that_of_the_test_vector() -> None:
    assert crc32(b"hello") == 0x3610A686
    head = VECTOR + crc32(VECTOR).to_bytes(4, "little")
    assert len(head) == HEADER_BYTES
    assert example() == head + b"hello\0\0\0"
    assert example()[60:64].hex() == "1c1ad83b"


@given(
    log_id=U64,
    partition=U32,
    epoch=U64,
    index=U64,
    prev_crc=U32,
    count=U32,
    committed_upto=U64,
    payload=st.binary(max_size=200),
    flags=st.integers(0, 2**16 - 1),
)
def test_what_is_encoded_decodes_to_the_same(payload: bytes, **fields: int) -> None:
    frame, crc = encode_frame(payload=payload, **fields)
    header = decode_frame(memoryview(frame), ROOMY_BYTES)
    assert {name: getattr(header, name) for name in fields} == fields
    assert header.header_crc == crc
    assert payload_of(frame, header) == payload
    assert header.frame_bytes == len(frame) == HEADER_BYTES + padded(len(payload))
    assert len(frame) % 8 == 0


def test_every_flipped_bit_is_found() -> None:
    good = example()
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            decode_frame(bytes(bad), ROOMY_BYTES)


def test_every_cut_and_every_addition_is_found() -> None:
    good = example()
    for size in range(len(good)):
        with pytest.raises(ProtocolError):
            decode_frame(good[:size], ROOMY_BYTES)
    with pytest.raises(ProtocolError, match="where a frame of 72 should be"):
        decode_frame(good + bytes(8), ROOMY_BYTES)


def test_frame_beyond_the_bound_is_refused_before_its_payload_is_looked_at() -> None:
    good = example(bytes(100))
    with pytest.raises(ProtocolError, match="168 bytes: 160 at most"):
        decode_header(good[:HEADER_BYTES], 0, 160)
    assert decode_header(good[:HEADER_BYTES], 0, 168).payload_bytes == 100


def resealed(at: int, value: int) -> bytes:
    """The example with one byte of its header changed and a header CRC that fits."""
    frame = bytearray(example())
    frame[at] = value
    frame[60:64] = crc32(frame[:60]).to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize(
    ("at", "value", "what"), [(0, 0x7E, "wrong magic"), (4, 2, "format version 2.*upgrade"), (5, 9, "unknown codec 9")]
)
def test_unknown_magic_version_and_codec_are_refused_with_a_reason(at: int, value: int, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        decode_frame(resealed(at, value), ROOMY_BYTES)


def test_frame_is_found_at_an_offset_of_a_larger_buffer() -> None:
    buffer = memoryview(bytes(24) + example() + b"\xff" * 16)
    header = decode_header(buffer, 24, ROOMY_BYTES)
    check_payload(header, buffer, 24)
    with pytest.raises(ProtocolError, match="wrong magic"):
        decode_header(buffer, 16, ROOMY_BYTES)
