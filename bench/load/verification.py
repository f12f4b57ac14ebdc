"""The judge: was anything that had been acked lost, stored twice, or put out of order?

Owns the comparison of what was handed over and acked with what was read back. It is pure, and shares no code with what it
judges: it knows the shapes of `Ack` and `Message` and nothing else. Invariants: in a fresh session, every message that is
read back answers to exactly one hand-over; each anomaly is counted at least once, whatever else is wrong.

    lost         acked, and not read back at its seq, or with another body, sender or number; or the ack is no evidence
                 for this message: another session or sender, or fewer copies than were asked for (G1, G2)
    duplicated   one seq for two messages, one number twice, or a message that nobody handed over (G3, G5)
    reordered    a sender's numbers do not follow its hand-overs or fall behind seq, or seqs are not 1, 2, 3, … (G3, G4)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trilogue.client import Ack, Message

EXAMPLES_MAX = 10


class HandedOver(NamedTuple):
    """One message as it was handed to the client, and the ack that came for it."""

    sender: str
    body: bytes
    ack: Ack


@dataclass(slots=True)
class Verdict:
    """What was found, with a few examples in words."""

    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing at all was found."""
        return not (self.lost or self.duplicated or self.reordered)

    def add(self, other: Verdict) -> None:
        """Count what `other` found, too."""
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.reordered += other.reordered
        self.examples += other.examples[: EXAMPLES_MAX - len(self.examples)]

    def at_least(self, other: Verdict) -> None:
        """Take in what another judge of the same messages found: the higher count of each kind."""
        if (other.lost, other.duplicated, other.reordered) > (0, 0, 0):
            self.examples += other.examples[: EXAMPLES_MAX - len(self.examples)]
        self.lost = max(self.lost, other.lost)
        self.duplicated = max(self.duplicated, other.duplicated)
        self.reordered = max(self.reordered, other.reordered)

    def found(self, kind: str, what: str) -> None:
        """Count one anomaly."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{kind}: {what}")


def judge_session(session: str, handed: Sequence[HandedOver], history: Sequence[Message], copies: int) -> Verdict:
    """Judge one session that nobody else writes to.

    `handed` is in the order in which the messages were handed over, by a client whose outbox was new; `history` is all of the
    session in the order in which it was read; each ack must state `copies` copies or more.
    """
    verdict = Verdict()
    claimed = _judge_acks(verdict, session, handed, copies)
    by_seq = _judge_order(verdict, session, history)
    for message in handed:
        ack = message.ack
        there = by_seq.get(ack.seq)
        if there is None:
            verdict.found("lost", f"{session} seq {ack.seq} was acked and cannot be read back")
        elif (there.sender_id, there.n, there.sender) != (ack.sender_id, ack.n, message.sender):
            verdict.found("lost", f"{session} seq {ack.seq} holds {there.sender_id} n {there.n}, not the acked {ack.n}")
        elif there.body != message.body:
            verdict.found("lost", f"{session} seq {ack.seq} is read back with another body")
    for there in by_seq.values():
        if (there.sender_id, there.n) in claimed:
            continue
        verdict.found("duplicated", f"{session} seq {there.seq} answers to no hand-over ({there.sender_id} n {there.n})")
    return verdict


def _judge_acks(verdict: Verdict, session: str, handed: Sequence[HandedOver], copies: int) -> set[tuple[str, int]]:
    """Judge what the acks say, and return the (sender_id, n) that they claim."""
    claimed: set[tuple[str, int]] = set()
    seqs: set[int] = set()
    numbered: Counter[str] = Counter()  # by sender_id: a client may go on under a new one, and numbers from 1 again
    newest: Counter[str] = Counter()  # by sender: its order must hold whatever id it goes under
    for message in handed:
        ack = message.ack
        numbered[ack.sender_id] += 1
        if ack.session != session or ack.sender != message.sender:
            verdict.found("lost", f"{session}: the ack names session {ack.session} and sender {ack.sender}")
        if ack.copies < copies:
            verdict.found("lost", f"{session} seq {ack.seq} was acked with {ack.copies} of {copies} copies")
        if ack.seq in seqs:
            verdict.found("duplicated", f"{session} seq {ack.seq} was acked for two messages")
        elif ack.seq < newest[message.sender]:
            verdict.found("reordered", f"{session} {message.sender}: seq {ack.seq} for a message after the higher one's")
        if (ack.sender_id, ack.n) in claimed:
            verdict.found("duplicated", f"{session} {ack.sender_id} n {ack.n} was acked for two messages")
        elif ack.n != numbered[ack.sender_id]:
            verdict.found("reordered", f"{session} {ack.sender_id}: n {ack.n} for hand-over {numbered[ack.sender_id]}")
        seqs.add(ack.seq)
        claimed.add((ack.sender_id, ack.n))
        newest[message.sender] = max(ack.seq, newest[message.sender])
    return claimed


def _judge_order(verdict: Verdict, session: str, history: Iterable[Message]) -> dict[int, Message]:
    """Judge what was read back by itself, and return it by seq: the first of each."""
    by_seq: dict[int, Message] = {}
    numbers: set[tuple[str, int]] = set()
    newest: dict[str, int] = {}
    last_seq = 0
    for message in history:
        number = (message.sender_id, message.n)
        if message.seq in by_seq:
            verdict.found("duplicated", f"{session} seq {message.seq} is read back twice")
            continue
        if number in numbers:
            verdict.found("duplicated", f"{session} {message.sender_id} n {message.n} is stored twice")
        elif message.n <= newest.get(message.sender_id, 0):
            verdict.found("reordered", f"{session} {message.sender_id} n {message.n} comes after a higher one")
        if message.seq != last_seq + 1:
            verdict.found("reordered", f"{session} seq {message.seq} follows seq {last_seq}")
        by_seq[message.seq] = message
        numbers.add(number)
        newest[message.sender_id] = max(message.n, newest.get(message.sender_id, 0))
        last_seq = max(last_seq, message.seq)
    return by_seq
