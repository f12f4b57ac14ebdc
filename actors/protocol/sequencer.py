"""Who gets which seq (design §8): order, dedupe and the answers, for all sessions of one partition.

Owns what gets which number, and when it is told. The counters that this needs are derived from the log alone; of which sessions
they are in memory, ``session_states`` decides. It must not know frames' bytes, stores, connections or clocks: `now_us` is told.
Rules, in the order in which they are applied:

0. Where a session's or a sender's counters are not in memory, what is asked waits until a store has told them (`LookUp`), and
   whatever is asked of that session after it waits behind it. Then it is handled as if it came now. When no store answers, it
   is refused for now: nothing of it was numbered.
1. A run that starts at or below `last_n` is a retry. Dedupe comes before every other refusal. It is answered from the stored
   messages, once everything numbered before it is committed: the original's seq for the same body, `CONFLICTING_RETRY` for
   another one. What of the run lies above `last_n` is new.
2. A sender that is not known in the session has its names and the session's partition checked before a store is asked:
   elsewhere its number may be right. A run that starts above `last_n + 1` is refused with the number that is expected. Nothing
   of it is stored.
3. A run that starts at `last_n + 1` is checked against the limits *before* it gets seqs; these follow the session's last.
4. A number that was given up becomes a *skip*: it takes its n and no seq. One whose message repeats an idempotency key
   becomes an *alias* of the seq that has it, or is refused for good, as ``keys`` says; where a key is not known, rule 0
   holds.
5. An ack leaves when the frame that holds the run is committed, never before (G1).
6. What readers may see of a session ends at its last committed seq (G7).
7. A trim takes no number. It stands in the log among the records that do, and whoever wants it hears when it is committed.

What happens to every frame has a method of its own, `submit` and `committed`, with plain arguments: with events, as `handle`
has them, a lonely message takes 4.4 µs here instead of 2.7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.invariants import violated
from trilogue.actors.protocol.keys import KnownKey, digest_of, new_upto
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import ALIAS, FLOOR, KEYED, RUN, SKIP, TRIM, Floor, Run, Trim
from trilogue.actors.protocol.refusals import stranger, too_large, unavailable
from trilogue.actors.protocol.retries import answers_of
from trilogue.actors.protocol.session_states import SessionState, SessionStates
from trilogue.actors.protocol.submissions import (
    Answered,
    Done,
    Effect,
    Event,
    FrameCommitted,
    GivenUp,
    LookedUp,
    Noted,
    Readable,
    Recall,
    Recalled,
    Refusal,
    Refused,
    Retry,
    Source,
    Submitted,
    Wanted,
)
from trilogue.actors.protocol.vocabulary import Code

RECORD_OVERHEAD_BYTES = 640
MESSAGE_OVERHEAD_BYTES = 16
"""What a record and each of its messages take in a frame beside the bodies, at most: two names of 255 bytes, numbers, times."""

RUN_ITEMS = 5
"""What a submitted run consists of, but for its keys; a number that is given up has fewer items."""

_new = tuple.__new__


class Sequencer:
    """All sessions of one partition. Records that were numbered wait here until `cut_frame` takes them.

    All frames up to `committed` were written by others, in whose log the clock stood at `last_stored_at_us`, and are committed.
    """

    def __init__(self, partition: int, partitions: int, limits: Limits, committed: int = 0, last_stored_at_us: int = 0) -> None:
        self._states = SessionStates(limits, committed)
        self._partition, self._partitions, self._limits = partition, partitions, limits
        self._key_honoured_us = limits.key_honoured_ms * 1000
        self._run_bytes_max = limits.submit_bytes_max + limits.body_bytes_max + 64 * KIB
        self._waiting: list[tuple[Any, ...]] = []
        self._waiting_from: list[Source] = []
        self._waiting_sizes: list[int] = []  # what each takes in a frame, rounded up
        self.waiting_bytes = 0
        self._in_frames: deque[tuple[int, list[tuple[Any, ...]], list[Source]]] = deque()
        self._last_cut = self._committed = committed
        self._cut_records = self._committed_records = 0  # running counts: in the order in which records were numbered
        self._last_stored_at_us = last_stored_at_us  # never goes back within a log, whatever this writer's clock says
        self._retries: dict[tuple[Source, str, str, int], tuple[int, Retry]] = {}

    @property
    def waiting(self) -> int:
        """How many records wait for a frame."""
        return len(self._waiting)

    @property
    def parked_bytes(self) -> int:
        """What waits for sessions that are being looked up."""
        return self._states.parked_bytes

    @property
    def hot_sessions(self) -> int:
        """Of how many sessions the counters are in memory."""
        return len(self._states.hot)

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one event."""
        match event:
            case Submitted(source, runs, now_us):
                return self.submit_any(source, runs, now_us)
            case FrameCommitted(upto):
                return self.committed(upto)
            case Recalled(retry, records):
                return answers_of(retry, records)
            case GivenUp(source, numbers, now_us):
                return self._give_up(source, numbers, now_us)
            case Wanted(waiter, sessions):
                return [*self._states.want(waiter, sessions), *self._states.ask()]
            case LookedUp():
                return self._on_looked_up(event)
            case Noted(waiter, record):
                self._note(waiter, record)
                return []

    def is_hot(self, session: str) -> bool:
        """Whether the session's counters are in memory."""
        return session in self._states.hot

    def owns(self, session: str) -> bool:
        """Whether the session belongs to this partition."""
        return session in self._states.hot or partition_of(session, self._partitions) == self._partition

    # ------------------------------------------------------------------ numbering

    def submit(self, source: Source, runs: list[list[Any]], now_us: int) -> list[Effect]:
        """What `Submitted` asks. The hot path: for each run, not for each message."""
        refusals: list[Refusal] = []
        effects: list[Effect] = []
        hot, awaited = self._states.hot, self._states.awaited
        waiting, waiting_from, sizes = self._waiting, self._waiting_from, self._waiting_sizes
        number = self._cut_records + len(waiting)
        body_bytes_max = self._limits.body_bytes_max
        stored_at_us = self._last_stored_at_us
        if now_us > stored_at_us:
            stored_at_us = self._last_stored_at_us = now_us
        total = 0
        for session, sender_id, first_n, sent_at_us, bodies in runs:
            count = len(bodies)
            state = hot.get(session)
            last_n = state.last_n.get(sender_id) if state is not None else None
            if state is None or last_n is None or (awaited and session in awaited):
                item = [session, sender_id, first_n, sent_at_us, bodies]
                state = self._unknown(source, item, count, refusals)
                if state is None:
                    continue
                last_n = 0
            if first_n <= last_n:
                known = min(count, last_n - first_n + 1)
                effects += self._retry(Retry(source, session, sender_id, first_n, bodies[:known]))
                if known == count:
                    continue
                first_n, count = last_n + 1, count - known
                sent_at_us, bodies = sent_at_us[known:], bodies[known:]
            if first_n > last_n + 1:
                text = f"number {first_n} came where {last_n + 1} is next"
                refusals.append(Refusal(session, sender_id, first_n, count, Code.OUT_OF_ORDER, text, last_n + 1))
                continue
            size = sum(map(len, bodies))
            if size > body_bytes_max and max(map(len, bodies)) > body_bytes_max:
                count, refused = too_large(session, sender_id, first_n, bodies, body_bytes_max)
                refusals += refused
                if count == 0:
                    continue
                sent_at_us, bodies = sent_at_us[:count], bodies[:count]
                size = sum(map(len, bodies))
            size += MESSAGE_OVERHEAD_BYTES * count + RECORD_OVERHEAD_BYTES
            if size > self._run_bytes_max:
                text = f"a run of {size} bytes: {self._run_bytes_max} at most; submit it in parts"
                refusals.append(Refusal(session, sender_id, first_n, count, Code.MALFORMED, text, first_n))
                continue
            waiting.append((RUN, session, sender_id, first_n, state.last_seq + 1, stored_at_us, sent_at_us, bodies))
            waiting_from.append(source)
            number += 1
            state.last_record = number
            state.last_seq += count
            state.last_n[sender_id] = first_n + count - 1
            hot.move_to_end(session)
            sizes.append(size)
            total += size
        self.waiting_bytes += total
        if self._states.to_ask:
            effects += self._states.ask()
        if refusals:
            effects.append(Refused(source, refusals))
        return effects

    def submit_any(self, source: Source, runs: list[list[Any]], now_us: int) -> list[Effect]:
        """As `submit`, for runs of which some have keys."""
        effects: list[Effect] = []
        for keyed, row in groupby(runs, lambda run: len(run) > RUN_ITEMS):
            if not keyed:
                effects += self.submit(source, [*row], now_us)
                continue
            for run in row:
                effects += self._submit_keyed(source, run, now_us)
        return effects

    def _submit_keyed(self, source: Source, run: list[Any], now_us: int) -> list[Effect]:
        session, sender_id, first_n, sent_at_us, bodies, keys = run
        now_us = self._last_stored_at_us = max(now_us, self._last_stored_at_us)
        states, refusals = self._states, list[Refusal]()
        state = states.hot.get(session)
        unknown = state is None or sender_id not in state.last_n or session in states.awaited
        if state is None or unknown or states.lacks(state, keys):
            state = self._unknown(source, run, len(bodies), refusals, keys)
            if state is None:
                return [*states.ask(), *([Refused(source, refusals)] if refusals else [])]
        effects: list[Effect] = []
        last_n = state.last_n[sender_id]
        if (known := min(len(bodies), last_n - first_n + 1)) > 0:
            effects += self._retry(Retry(source, session, sender_id, first_n, bodies[:known]))
            first_n, sent_at_us, bodies, keys = first_n + known, sent_at_us[known:], bodies[known:], keys[known:]
        expected, at, end = last_n + 1, 0, 0
        while at < len(bodies) and first_n + at == expected:
            known_keys = state.keys or {}
            end = new_upto(keys, at, known_keys, now_us, self._key_honoured_us)
            if end > at:
                before = len(self._waiting)
                new = [session, sender_id, expected, sent_at_us[at:end], bodies[at:end]]
                effects += self.submit(source, [new], now_us)
                numbered = self._put_keys(state, keys[at:]) if len(self._waiting) > before else 0
                at, expected = (at + numbered if numbered == end - at else end), expected + numbered
                continue
            original = known_keys[keys[at]]
            if digest_of(bodies[at]) != original.digest:
                text = f"key {keys[at]!r} was used in session {session!r} for another message: give a new key"
                refusals.append(Refusal(session, sender_id, expected, 1, Code.CONFLICTING_KEY, text, expected))
                at += 1
                break
            self._number(source, state, (ALIAS, session, sender_id, expected, original.seq, now_us, original.digest))
            at, expected = at + 1, expected + 1
        if at < len(bodies):
            text = f"number {first_n + at} came where {expected} is next"
            rest = len(bodies) - at
            refusals.append(Refusal(session, sender_id, first_n + at, rest, Code.OUT_OF_ORDER, text, expected))
        return [*effects, Refused(source, refusals)] if refusals else effects

    def _put_keys(self, state: SessionState, keys: list[str | None]) -> int:
        """Give the run that was numbered last its keys; return how many messages it has."""
        record = self._waiting[-1]
        _, session, _, _, first_seq, stored_at_us, _, bodies = record
        keys = keys[: len(bodies)]
        if any(key is not None for key in keys):
            self._waiting[-1] = (KEYED, *record[1:], keys)
            size = sum(len(key.encode()) + 3 for key in keys if key is not None)
            self._waiting_sizes[-1] += size
            self.waiting_bytes += size
            for k, (key, body) in enumerate(zip(keys, bodies, strict=True)):
                if key is not None:
                    known = KnownKey(first_seq + k, stored_at_us, digest_of(body), state.last_record)
                    self._states.note_key(session, state, key, known)
        return len(bodies)

    def _number(self, source: Source, state: SessionState, record: tuple[Any, ...]) -> None:
        """A record that takes one number, and no seq."""
        _, session, sender_id, n, *_ = record
        state.last_n[sender_id] = n
        self._waiting.append(record)
        state.last_record = self._cut_records + len(self._waiting)
        self._states.hot.move_to_end(session)
        self._waiting_from.append(source)
        self._waiting_sizes.append(RECORD_OVERHEAD_BYTES)
        self.waiting_bytes += RECORD_OVERHEAD_BYTES

    def _note(self, waiter: Any, record: Trim | Floor) -> None:
        self._last_stored_at_us = max(record.stored_at_us, self._last_stored_at_us)
        self._waiting.append(record._replace(stored_at_us=self._last_stored_at_us))
        self._waiting_from.append(waiter)
        self._waiting_sizes.append(RECORD_OVERHEAD_BYTES)
        self.waiting_bytes += RECORD_OVERHEAD_BYTES

    def _unknown(
        self, source: Source, item: list[Any], count: int, refusals: list[Refusal], keys: Sequence[str | None] = ()
    ) -> SessionState | None:
        """What to do with a run, or a number that is given up, whose session, sender or keys are not in memory, or are being
        looked up: it is refused for its names, or it is a new sender's, or it waits."""
        session, sender_id = item[0], item[1]
        if (refusal := stranger(session, sender_id, item[2], count, self.owns, self._partitions)) is not None:
            refusals.append(refusal)
            return None
        states = self._states
        state = states.hot.get(session)
        if state is not None and session not in states.awaited and not states.lacks(state, keys):
            if sender_id in state.last_n:
                return state
            if state.whole:
                states.add_sender(session, sender_id)
                return state
        size = sum(map(len, item[4])) if len(item) >= RUN_ITEMS else 0
        size += sum(len(key) for key in keys if key is not None)
        states.park(session, sender_id, source, item, size + MESSAGE_OVERHEAD_BYTES * count + RECORD_OVERHEAD_BYTES, keys)
        return None

    def _give_up(self, source: Source, numbers: list[list[Any]], now_us: int) -> list[Effect]:
        effects: list[Effect] = []
        refusals: list[Refusal] = []
        self._last_stored_at_us = max(now_us, self._last_stored_at_us)
        states = self._states
        for session, sender_id, n in numbers:
            state = states.hot.get(session)
            if state is None or sender_id not in state.last_n or session in states.awaited:
                state = self._unknown(source, [session, sender_id, n], 1, refusals)
                if state is None:
                    continue
            last_n = state.last_n[sender_id]
            if n <= last_n:
                effects += self._retry(Retry(source, session, sender_id, n, [None]))
                continue
            if n > last_n + 1:
                text = f"number {n} came where {last_n + 1} is next"
                refusals.append(Refusal(session, sender_id, n, 1, Code.OUT_OF_ORDER, text, last_n + 1))
                continue
            self._number(source, state, (SKIP, session, sender_id, n, self._last_stored_at_us))
        if refusals:
            effects.append(Refused(source, refusals))
        return [*effects, *states.ask()]

    # ------------------------------------------------------------------ sessions that are not in memory

    def _on_looked_up(self, event: LookedUp) -> list[Effect]:
        """What waited is handled as if it came now, in its order."""
        states = self._states
        effects: list[Effect] = []
        if event.told is None:
            parked, failed = states.not_told(event.asked)
            effects += failed
            for source, are_runs, items in _in_rows(parked):
                refused = [unavailable(item[0], item[1], item[2], len(item[4]) if are_runs else 1) for item in items]
                effects.append(Refused(source, refused))
            return [*effects, *states.ask()]
        parked, ready = states.told(event.asked, event.told)
        for source, are_runs, items in _in_rows(parked):
            effects += (self.submit_any if are_runs else self._give_up)(source, items, event.now_us)
        effects += states.loaded(ready)
        self._let_go()
        return [*effects, *states.ask()]

    def _let_go(self) -> None:
        """Keep the states within their bounds."""
        states = self._states
        if crowded := states.crowded:
            uncommitted = [self._waiting, *(records for _, records, _ in self._in_frames)]
            busy = {(record[1], record[2]) for records in uncommitted for record in records if record[1] in crowded}
            states.drop_senders(busy, self._committed)
        if states.full_of_keys:
            over_before_us = self._last_stored_at_us - self._key_honoured_us
            states.drop_keys(self._committed_records, self._committed, over_before_us)
        if states.too_many:
            states.evict(self._committed_records, self._committed)

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
        sessions, in_frames = self._states.hot, self._in_frames
        self._committed = max(upto, self._committed)
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
                elif record[0] == KEYED:
                    run = Run(RUN, *record[1:8])
                    last_seq = run.first_seq + len(run.bodies) - 1
                    sessions[run.session].committed_seq = last_seq
                    ack = (run.session, run.sender_id, run.first_n, len(run.bodies), run.first_seq, False)
                    readable.append(run)
                elif record[0] == ALIAS:
                    ack = (record[1], record[2], record[3], 1, record[4], True)
                elif record[0] in (TRIM, FLOOR):
                    effects.append(Done(source))
                    continue
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
        if self._states.too_many or self._states.crowded or self._states.full_of_keys:
            self._let_go()
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


def _in_rows(parked: list[tuple[Source, list[Any]]]) -> Iterator[tuple[Source, bool, list[list[Any]]]]:
    """What waited, in its order: runs in a row, or numbers to give up, that one source has submitted."""
    for (source, are_runs), row in groupby(parked, key=lambda one: (one[0], len(one[1]) >= RUN_ITEMS)):
        yield source, are_runs, [item for _, item in row]
