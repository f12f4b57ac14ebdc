"""Who gets which seq (design §8): order, dedupe and the answers, for all sessions of one partition.

Owns `last_seq` of each session and `last_n` of each sender in it, both derived from the log alone. It must not know
frames' bytes, stores, connections or clocks: `now_us` is told. Rules, in the order in which they are applied:

1. A run that starts at or below `last_n` is a retry. Dedupe comes before every other refusal. It is answered from the stored
   messages, once everything numbered before it is committed: the original's seq for the same body, `CONFLICTING_RETRY` for
   another one. What of the run lies above `last_n` is new.
2. A sender that is not known in the session has its names and the session's partition checked: elsewhere its number may be
   right. A run that starts above `last_n + 1` is refused with the number that is expected. Nothing of it is stored.
3. A run that starts at `last_n + 1` is checked against the limits *before* it gets seqs; these follow the session's last.
4. A number that was given up becomes a *skip*: it takes its n and no seq.
5. An ack leaves when the frame that holds the run is committed, never before (G1).
6. What readers may see of a session ends at its last committed seq (G7).

What happens to every frame has a method of its own, `submit` and `committed`, with plain arguments: with events, as `handle`
has them, a lonely message takes 4.4 µs here instead of 2.7.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate
from typing import Any

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.ids import check_sender_id, check_session, partition_of
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import RUN, SKIP, Record, Run
from trilogue.actors.protocol.submissions import (
    Answered,
    Effect,
    Event,
    FrameCommitted,
    GivenUp,
    Readable,
    Recall,
    Recalled,
    Refusal,
    Refused,
    Retry,
    Source,
    Submitted,
)
from trilogue.actors.protocol.vocabulary import Code

RECORD_OVERHEAD_BYTES = 640
MESSAGE_OVERHEAD_BYTES = 16
"""What a record and each of its messages take in a frame beside the bodies, at most: two names of 255 bytes, numbers, times."""

_new = tuple.__new__


class SessionState:
    """One session's counters: `last_seq` was given out, `committed_seq` may be read."""

    __slots__ = ("committed_seq", "last_n", "last_seq")

    def __init__(self, last_seq: int = 0, last_n: dict[str, int] | None = None) -> None:
        self.last_seq = last_seq
        self.committed_seq = last_seq
        self.last_n: dict[str, int] = last_n if last_n is not None else {}


class Sequencer:
    """All sessions of one partition. Records that were numbered wait here until `cut_frame` takes them."""

    def __init__(self, partition: int, partitions: int, limits: Limits) -> None:
        self.sessions: dict[str, SessionState] = {}
        self._partition, self._partitions, self._limits = partition, partitions, limits
        self._run_bytes_max = limits.submit_bytes_max + limits.body_bytes_max + 64 * KIB
        self._waiting: list[tuple[Any, ...]] = []
        self._waiting_from: list[Source] = []
        self._waiting_sizes: list[int] = []  # what each takes in a frame, rounded up
        self.waiting_bytes = 0
        self._in_frames: deque[tuple[int, list[tuple[Any, ...]], list[Source]]] = deque()
        self._last_cut = 0
        self._cut_records = self._committed_records = 0  # running counts: in the order in which records were numbered
        self._last_stored_at_us = 0
        self._retries: dict[tuple[Source, str, str, int], tuple[int, Retry]] = {}

    @property
    def waiting(self) -> int:
        """How many records wait for a frame."""
        return len(self._waiting)

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        match event:
            case Submitted(source, runs, now_us):
                return self.submit(source, runs, now_us)
            case FrameCommitted(upto):
                return self.committed(upto)
            case Recalled(retry, records):
                return self._on_recalled(retry, records)
            case GivenUp(source, numbers, now_us):
                return self._give_up(source, numbers, now_us)

    def head(self, session: str) -> int:
        """The last seq of the session that readers may see; 0 when there is none."""
        state = self.sessions.get(session)
        return state.committed_seq if state is not None else 0

    def owns(self, session: str) -> bool:
        """Whether the session belongs to this partition."""
        return session in self.sessions or partition_of(session, self._partitions) == self._partition

    # ------------------------------------------------------------------ numbering

    def submit(self, source: Source, runs: list[list[Any]], now_us: int) -> list[Effect]:
        """What `Submitted` asks. The hot path: for each run, not for each message."""
        refusals: list[Refusal] = []
        effects: list[Effect] = []
        sessions, waiting, waiting_from, sizes = self.sessions, self._waiting, self._waiting_from, self._waiting_sizes
        body_bytes_max = self._limits.body_bytes_max
        stored_at_us = self._last_stored_at_us
        if now_us > stored_at_us:
            stored_at_us = self._last_stored_at_us = now_us
        total = 0
        for session, sender_id, first_n, sent_at_us, bodies in runs:
            count = len(bodies)
            state = sessions.get(session)
            last_n = state.last_n.get(sender_id, 0) if state is not None else 0
            if first_n <= last_n:
                known = min(count, last_n - first_n + 1)
                effects += self._retry(Retry(source, session, sender_id, first_n, bodies[:known]))
                if known == count:
                    continue
                first_n, count = last_n + 1, count - known
                sent_at_us, bodies = sent_at_us[known:], bodies[known:]
            if last_n == 0 and (refusal := self._stranger(session, sender_id, first_n, count)) is not None:
                refusals.append(refusal)
                continue
            if first_n > last_n + 1:
                text = f"number {first_n} came where {last_n + 1} is next"
                refusals.append(Refusal(session, sender_id, first_n, count, Code.OUT_OF_ORDER, text, last_n + 1))
                continue
            size = sum(map(len, bodies))
            if size > body_bytes_max and max(map(len, bodies)) > body_bytes_max:
                count, too_large = self._too_large(session, sender_id, first_n, bodies)
                refusals += too_large
                if count == 0:
                    continue
                sent_at_us, bodies = sent_at_us[:count], bodies[:count]
                size = sum(map(len, bodies))
            size += MESSAGE_OVERHEAD_BYTES * count + RECORD_OVERHEAD_BYTES
            if size > self._run_bytes_max:
                text = f"a run of {size} bytes: {self._run_bytes_max} at most; submit it in parts"
                refusals.append(Refusal(session, sender_id, first_n, count, Code.MALFORMED, text, first_n))
                continue
            if state is None:
                state = sessions[session] = SessionState()
            waiting.append((RUN, session, sender_id, first_n, state.last_seq + 1, stored_at_us, sent_at_us, bodies))
            waiting_from.append(source)
            state.last_seq += count
            state.last_n[sender_id] = first_n + count - 1
            sizes.append(size)
            total += size
        self.waiting_bytes += total
        if refusals:
            effects.append(Refused(source, refusals))
        return effects

    def _stranger(self, session: str, sender_id: str, first_n: int, count: int) -> Refusal | None:
        """The checks of names, made once: for a session or a sender that is not known here yet."""
        try:
            check_session(session)
        except UsageError as error:
            return Refusal(session, sender_id, first_n, count, Code.INVALID_SESSION, str(error), first_n)
        try:
            check_sender_id(sender_id)
        except UsageError as error:
            return Refusal(session, sender_id, first_n, count, Code.INVALID_SENDER, str(error), first_n)
        if not self.owns(session):
            text = f"session {session!r} belongs to partition {partition_of(session, self._partitions)}"
            return Refusal(session, sender_id, first_n, count, Code.NOT_HERE, text, first_n)
        return None

    def _too_large(self, session: str, sender_id: str, first_n: int, bodies: list[bytes]) -> tuple[int, list[Refusal]]:
        """How many messages stand before the first that is too large, and the refusals of that one and of what follows it."""
        bound = self._limits.body_bytes_max
        at = next(k for k, body in enumerate(bodies) if len(body) > bound)
        text = f"a body of {len(bodies[at])} bytes: {bound} at most; send it in parts or keep it elsewhere"
        refusals = [Refusal(session, sender_id, first_n + at, 1, Code.MESSAGE_TOO_LARGE, text, first_n + at)]
        if rest := len(bodies) - at - 1:
            text = f"number {first_n + at} was refused and must be given up first"
            refusals.append(Refusal(session, sender_id, first_n + at + 1, rest, Code.OUT_OF_ORDER, text, first_n + at))
        return at, refusals

    def _give_up(self, source: Source, numbers: list[list[Any]], now_us: int) -> list[Effect]:
        effects: list[Effect] = []
        refusals: list[Refusal] = []
        self._last_stored_at_us = max(now_us, self._last_stored_at_us)
        for session, sender_id, n in numbers:
            state = self.sessions.get(session)
            last_n = state.last_n.get(sender_id, 0) if state is not None else 0
            if n <= last_n:
                effects += self._retry(Retry(source, session, sender_id, n, [None]))
                continue
            if last_n == 0 and (refusal := self._stranger(session, sender_id, n, 1)) is not None:
                refusals.append(refusal)
                continue
            if n > last_n + 1:
                text = f"number {n} came where {last_n + 1} is next"
                refusals.append(Refusal(session, sender_id, n, 1, Code.OUT_OF_ORDER, text, last_n + 1))
                continue
            if state is None:
                state = self.sessions[session] = SessionState()
            state.last_n[sender_id] = n
            self._waiting.append((SKIP, session, sender_id, n, self._last_stored_at_us))
            self._waiting_from.append(source)
            self._waiting_sizes.append(RECORD_OVERHEAD_BYTES)
            self.waiting_bytes += RECORD_OVERHEAD_BYTES
        if refusals:
            effects.append(Refused(source, refusals))
        return effects

    # ------------------------------------------------------------------ frames

    def cut_frame(self, index: int) -> list[tuple[Any, ...]]:
        """Take what waits, in order, up to about `frame_bytes_target`: the records of the frame `index`."""
        records, sources = self._waiting, self._waiting_from
        if not records or index <= self._last_cut:
            violated("a frame is cut in order, and never from nothing")
        target = self._limits.frame_bytes_target
        if self.waiting_bytes <= target:
            self._waiting, self._waiting_from, self._waiting_sizes, self.waiting_bytes = [], [], [], 0
        else:
            at, size = 0, 0
            for size in accumulate(self._waiting_sizes):
                at += 1
                if size >= target:
                    break
            self._waiting, self._waiting_from, self._waiting_sizes = records[at:], sources[at:], self._waiting_sizes[at:]
            self.waiting_bytes -= size
            records, sources = records[:at], sources[:at]
        self._last_cut = index
        self._cut_records += len(records)
        self._in_frames.append((index, records, sources))
        return records

    def committed(self, upto: int) -> list[Effect]:
        """What `FrameCommitted` says: every frame up to `upto` is committed, their acks leave, their runs may be read."""
        effects: list[Effect] = []
        readable: list[Run] = []
        sessions, in_frames = self.sessions, self._in_frames
        while in_frames and in_frames[0][0] <= upto:
            _, records, sources = in_frames.popleft()
            self._committed_records += len(records)
            acks: dict[Source, list[tuple[str, str, int, int, int, bool]]] = {}
            for record, source in zip(records, sources, strict=True):
                if record[0] == RUN:
                    _, session, sender_id, first_n, first_seq, _, _, bodies = record
                    count = len(bodies)
                    sessions[session].committed_seq = first_seq + count - 1
                    ack = (session, sender_id, first_n, count, first_seq, False)
                    readable.append(record)  # type: ignore[arg-type]  # a plain tuple of a Run's shape: 0.3 µs less
                else:
                    ack = (record[1], record[2], record[3], 1, 0, False)
                answers = acks.get(source)
                if answers is None:
                    answers = acks[source] = []
                    effects.append(_new(Answered, (source, answers)))
                answers.append(ack)
        if readable:
            effects.append(_new(Readable, (readable,)))
        if self._retries:
            due = [key for key, (records_due, _) in self._retries.items() if records_due <= self._committed_records]
            effects += [Recall(self._retries.pop(key)[1]) for key in due]
        return effects

    # ------------------------------------------------------------------ retries

    def _retry(self, retry: Retry) -> list[Effect]:
        """Wait until everything numbered so far is committed; the same retry twice waits once."""
        if not self._waiting and not self._in_frames:
            return [Recall(retry)]
        key = (retry.source, retry.session, retry.sender_id, retry.first_n)
        _, before = self._retries.get(key, (0, retry))
        longest = max(before, retry, key=lambda one: len(one.bodies))
        self._retries[key] = (self._cut_records + len(self._waiting), longest)
        return []

    def _on_recalled(self, retry: Retry, records: list[Record] | None) -> list[Effect]:
        session, sender_id = retry.session, retry.sender_id
        if records is None:
            text = "no store could be read to answer a retry: it will be asked again"
            count = len(retry.bodies)
            refusal = Refusal(session, sender_id, retry.first_n, count, Code.UNAVAILABLE, text, retry.first_n)
            return [Refused(retry.source, [refusal])]
        originals: dict[int, tuple[int, bytes | None]] = {}
        for record in records:
            if isinstance(record, Run):
                for k, original in enumerate(record.bodies):
                    originals[record.first_n + k] = (record.first_seq + k, original)
            else:
                originals[record.n] = (0, None)
        acks: list[tuple[str, str, int, int, int, bool]] = []
        refusals: list[Refusal] = []
        for n, body in enumerate(retry.bodies, retry.first_n):
            require(n in originals, f"number {n} of {sender_id!r} in {session!r} was given out but is not in the log")
            seq, stored = originals[n]
            if stored is not None and body is not None and body != stored:
                text = f"number {n} of this outbox was used for another message: was the outbox copied or restored?"
                refusals.append(Refusal(session, sender_id, n, 1, Code.CONFLICTING_RETRY, text, n))
            elif acks and seq and acks[-1][4] and acks[-1][2] + acks[-1][3] == n and acks[-1][4] + acks[-1][3] == seq:
                acks[-1] = (*acks[-1][:3], acks[-1][3] + 1, acks[-1][4], True)
            else:
                acks.append((session, sender_id, n, 1, seq, True))
        effects: list[Effect] = [Answered(retry.source, acks)] if acks else []
        return effects + ([Refused(retry.source, refusals)] if refusals else [])

    # ------------------------------------------------------------------ rebuilding

    def restore_clock(self, last_stored_at_us: int) -> None:
        """`stored_at_us` never goes back within a log, whatever this writer's clock says."""
        self._last_stored_at_us = max(self._last_stored_at_us, last_stored_at_us)

    def restore_session(self, session: str, last_seq: int, last_n: dict[str, int]) -> None:
        """A session as the log's committed part says (design §6, "in-memory state after a takeover"), or a part of it."""
        state = self.sessions.setdefault(session, SessionState(last_seq))
        require(state.last_seq == last_seq, f"two parts of session {session!r} differ")
        require(not state.last_n.keys() & last_n.keys(), f"a sender of session {session!r} is restored twice")
        state.last_n.update(last_n)
