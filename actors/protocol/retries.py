"""What a retry is answered with, out of what the log holds of its numbers (design §8; G5).

Owns the comparison. It must not know how the records were found, or when: everything numbered before the retry is committed.
Rules:

1. The same body gets the original's seq; a number that was given up gets seq 0, whatever comes under it now. An alias gets the
   seq that it stands for. Of a run that was trimmed nothing is left to compare a body with: any gets the original's seq.
2. Another body under a number is refused for good, that message alone.
3. When no store could be read, the retry is refused for now. Nothing of it was stored anew.
"""

from __future__ import annotations

from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.keys import digest_of
from trilogue.actors.protocol.messages import Alias, Gone, Numbered, Run
from trilogue.actors.protocol.submissions import Answered, Effect, Refusal, Refused, Retry
from trilogue.actors.protocol.vocabulary import Code


def answers_of(retry: Retry, records: list[Numbered] | None) -> list[Effect]:
    """The answers to `retry`; `records` is None when no store could be read."""
    session, sender_id = retry.session, retry.sender_id
    if records is None:
        text = "no store could be read to answer a retry: it will be asked again"
        count = len(retry.bodies)
        refusal = Refusal(session, sender_id, retry.first_n, count, Code.UNAVAILABLE, text, retry.first_n)
        return [Refused(retry.source, [refusal])]
    originals: dict[int, tuple[int, bytes | None]] = {}
    aliases: set[int] = set()
    for record in records:
        if isinstance(record, Run):
            for k, original in enumerate(record.bodies):
                originals[record.first_n + k] = (record.first_seq + k, original)
        elif isinstance(record, Gone):
            originals.update((record.first_n + k, (record.first_seq + k, None)) for k in range(record.messages))
        elif isinstance(record, Alias):
            originals[record.n] = (record.seq, record.digest)
            aliases.add(record.n)
        else:
            originals[record.n] = (0, None)
    acks: list[tuple[str, str, int, int, int, bool]] = []
    refusals: list[Refusal] = []
    for n, body in enumerate(retry.bodies, retry.first_n):
        require(n in originals, f"number {n} of {sender_id!r} in {session!r} was given out but is not in the log")
        seq, stored = originals[n]
        said = digest_of(body) if n in aliases and body is not None else body
        if stored is not None and said is not None and said != stored:
            text = f"number {n} of this outbox was used for another message, for the outbox was copied or restored: "
            text += "this message was not stored; send it again, and it goes under a new id"
            refusals.append(Refusal(session, sender_id, n, 1, Code.CONFLICTING_RETRY, text, n))
        elif acks and seq and acks[-1][4] and acks[-1][2] + acks[-1][3] == n and acks[-1][4] + acks[-1][3] == seq:
            acks[-1] = (*acks[-1][:3], acks[-1][3] + 1, acks[-1][4], True)
        else:
            acks.append((session, sender_id, n, 1, seq, True))
    effects: list[Effect] = [Answered(retry.source, acks)] if acks else []
    return effects + ([Refused(retry.source, refusals)] if refusals else [])
