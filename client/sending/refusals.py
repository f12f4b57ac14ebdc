"""From the codes of the wire to the errors that users meet.

Owns the table. It must not know who was refused, or why. Invariant: every code that ends a call has an error.
"""

from __future__ import annotations

from trilogue.actors.protocol.errors import (
    ConflictingKey,
    ConflictingRetry,
    Corrupt,
    InvalidRange,
    InvalidSender,
    InvalidSession,
    MessageTooLarge,
    Overloaded,
    ProofOfLoss,
    ProtocolError,
    TrilogueError,
    Unavailable,
)
from trilogue.actors.protocol.vocabulary import Code

_ERRORS: dict[int, type[TrilogueError]] = {
    Code.OVERLOADED: Overloaded,
    Code.CONFLICTING_RETRY: ConflictingRetry,
    Code.CONFLICTING_KEY: ConflictingKey,
    Code.INVALID_SESSION: InvalidSession,
    Code.INVALID_SENDER: InvalidSender,
    Code.INVALID_RANGE: InvalidRange,
    Code.MESSAGE_TOO_LARGE: MessageTooLarge,
    Code.MALFORMED: ProtocolError,
    Code.CORRUPT: Corrupt,
    Code.PROOF_OF_LOSS: ProofOfLoss,
}


def error_of(code: int, text: str) -> TrilogueError:
    """The error that a caller meets for a refusal."""
    return _ERRORS.get(code, Unavailable)(text)


def is_final(code: int) -> bool:
    """Whether the same request can never succeed; of codes that this version does not know, those from 20 on."""
    return code >= Code.CONFLICTING_RETRY


def has_moved(code: int) -> bool:
    """Whether another SessionActor owns the partition now."""
    return code in (Code.NOT_HERE, Code.DEPOSED)
