"""Names and where they lead: sessions, senders, slots, partitions.

Owns the rules for the ids that people and programs choose, and the fixed way from a session to its partition.
It must not know what is stored under them. Invariants: `slot_of` never changes (test vectors fix it), and a
`sender_id` always splits back into the name that it was made from.
"""

from __future__ import annotations

import hashlib
import unicodedata

from trilogue.actors.protocol.errors import InvalidKey, InvalidSender, InvalidSession

SLOTS = 4096
SESSION_BYTES_MAX = 255
SENDER_BYTES_MAX = 255
KEY_BYTES_MAX = 255
OUTBOX_ID_HEX_DIGITS = 32
PARTITIONS_MAX = 1024


def check_session(session: object) -> str:
    """Return `session` if it is an id as design §2 wants it; raise `InvalidSession` otherwise."""
    if not isinstance(session, str):
        raise InvalidSession(f"a session's id is a str, not {type(session).__name__}: decode it first")
    if not session:
        raise InvalidSession("a session's id is empty: give it at least one character")
    try:
        size = len(session.encode())
    except UnicodeEncodeError:
        raise InvalidSession(f"session {session!r} is not valid UTF-8: it holds a lone surrogate") from None
    if size > SESSION_BYTES_MAX:
        raise InvalidSession(f"a session's id has {size} bytes in UTF-8: {SESSION_BYTES_MAX} at most")
    return session


def check_sender(sender: object) -> str:
    """Return `sender` if it is a name that people can see and files can hold; raise `InvalidSender` otherwise."""
    if not isinstance(sender, str):
        raise InvalidSender(f"a sender's name is a str, not {type(sender).__name__}: decode it first")
    if not sender:
        raise InvalidSender("a sender's name is empty: give it at least one character")
    try:
        size = len(sender.encode())
    except UnicodeEncodeError:
        raise InvalidSender(f"sender {sender!r} is not valid UTF-8: it holds a lone surrogate") from None
    if size > SENDER_BYTES_MAX:
        raise InvalidSender(f"a sender's name has {size} bytes in UTF-8: {SENDER_BYTES_MAX} at most")
    if any(unicodedata.category(c) == "Cc" for c in sender):
        raise InvalidSender(f"sender {sender!r} holds a control character: leave it out")
    return sender


def check_key(key: object) -> str:
    """Return `key` if it can be an idempotency key; raise `InvalidKey` otherwise."""
    if not isinstance(key, str) or not key:
        raise InvalidKey(f"an idempotency key is a non-empty str, not {key!r}: give your own id of the request")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey(f"the idempotency key {key!r} is not valid UTF-8: it holds a lone surrogate") from None
    if size > KEY_BYTES_MAX:
        raise InvalidKey(f"an idempotency key has {size} bytes in UTF-8: {KEY_BYTES_MAX} at most; give a hash of it")
    return key


def slot_of(session: str) -> int:
    """The session's slot: blake2b of its UTF-8, 8 bytes, little-endian, modulo 4096 (design §2)."""
    return int.from_bytes(hashlib.blake2b(session.encode(), digest_size=8).digest(), "little") % SLOTS


def partition_of(session: str, partitions: int) -> int:
    """The partition that owns the session: the slots are shared out in equal, contiguous ranges."""
    return slot_of(session) * partitions // SLOTS


def sender_id_of(sender: str, outbox_id: str) -> str:
    """The key of n, of dedupe and of `verify`: the name plus the outbox's random 128-bit id (32 hex digits)."""
    return f"{sender}/{outbox_id}"


def sender_of(sender_id: str) -> str:
    """The name inside a `sender_id`."""
    return sender_id[: -OUTBOX_ID_HEX_DIGITS - 1]


def check_sender_id(sender_id: object) -> str:
    """Return `sender_id` if it is a valid name, a slash and 32 lower-case hex digits; raise `InvalidSender` otherwise."""
    if not isinstance(sender_id, str):
        raise InvalidSender(f"a sender_id is a str, not {type(sender_id).__name__}")
    outbox_id = sender_id[-OUTBOX_ID_HEX_DIGITS:]
    if sender_id[-OUTBOX_ID_HEX_DIGITS - 1 : -OUTBOX_ID_HEX_DIGITS] != "/" or set(outbox_id) - set("0123456789abcdef"):
        raise InvalidSender(f"sender_id {sender_id!r} is not NAME/{OUTBOX_ID_HEX_DIGITS} hex digits")
    check_sender(sender_of(sender_id))
    return sender_id
