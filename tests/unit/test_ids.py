"""Names and where they lead: vectors that never change, and every name that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import InvalidSender, InvalidSession
from trilogue.actors.protocol.ids import (
    SLOTS,
    check_sender,
    check_sender_id,
    check_session,
    partition_of,
    sender_id_of,
    sender_of,
    slot_of,
)

SLOT_VECTORS = {
    "a": 2112,
    "0": 2948,
    "room-42": 1789,
    "session-0": 4022,
    "#ubuntu": 2360,
    "s" * 255: 2172,
    "日本語": 2548,
    "🙂": 185,
}
OUTBOX_ID = "0123456789abcdef" * 2
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


@pytest.mark.parametrize(("session", "slot"), SLOT_VECTORS.items())
def test_slot_is_that_of_the_test_vector(session: str, slot: int) -> None:
    assert slot_of(session) == slot


@pytest.mark.parametrize("partitions", [1, 2, 3, 7, 8, 100, 1024])
def test_partitions_are_contiguous_ranges_of_slots_and_none_is_empty(partitions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilogue.actors.protocol.ids.slot_of", int)
    owners = [partition_of(str(slot), partitions) for slot in range(SLOTS)]
    assert owners == sorted(owners)
    assert set(owners) == set(range(partitions))
    sizes = [owners.count(partition) for partition in range(partitions)]
    assert max(sizes) - min(sizes) <= 1


@given(NAMES)
def test_valid_session_comes_back_as_it_is(session: str) -> None:
    assert check_session(session) is session


@pytest.mark.parametrize(
    ("session", "what"),
    [
        ("", "empty: give it at least one character"),
        ("s" * 256, "256 bytes in UTF-8: 255 at most"),
        ("é" * 128, "256 bytes in UTF-8: 255 at most"),
        ("a\ud800", "lone surrogate"),
        (b"bytes", "a str, not bytes: decode it first"),
        (7, "a str, not int"),
        (None, "a str, not NoneType"),
    ],
)
def test_invalid_session_is_refused_with_what_to_do(session: Any, what: str) -> None:
    with pytest.raises(InvalidSession, match=what):
        check_session(session)


def test_session_of_255_bytes_is_valid() -> None:
    assert check_session("s" * 255)
    assert check_session("é" * 127 + "s")


@pytest.mark.parametrize(
    ("sender", "what"),
    [
        ("", "empty"),
        ("s" * 256, "256 bytes"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
        ("\x85", "control character"),
        ("\udfff", "lone surrogate"),
        (b"alice", "a str, not bytes"),
    ],
)
def test_invalid_sender_is_refused_with_what_to_do(sender: Any, what: str) -> None:
    with pytest.raises(InvalidSender, match=what):
        check_sender(sender)


@given(NAMES)
def test_sender_id_splits_back_into_the_name_it_was_made_from(name: str) -> None:
    sender_id = sender_id_of(name, OUTBOX_ID)
    assert sender_of(sender_id) == name
    assert check_sender_id(sender_id) is sender_id


@pytest.mark.parametrize(
    "sender_id",
    [
        "alice",
        f"/{OUTBOX_ID}",
        OUTBOX_ID,
        f"alice/{OUTBOX_ID[:-1]}",
        f"alice/{OUTBOX_ID[:-1]}G",
        f"alice/{OUTBOX_ID.upper()}",
        f"alice\n/{OUTBOX_ID}",
        f"{'a' * 256}/{OUTBOX_ID}",
        "",
        b"alice",
        None,
    ],
)
def test_invalid_sender_id_is_refused(sender_id: Any) -> None:
    with pytest.raises(InvalidSender):
        check_sender_id(sender_id)
