"""Bugs to plant: each takes one rule out of the product, and the simulation must notice.

Owns, for each bug, what is replaced, and within how many seeds of which profile an anomaly must show. A net that no bug was
ever caught in proves nothing. The first twenty are those of the model of design §6 (`log_model.py`), under their names there;
`ABSENT` says why one of them cannot be planted. Where the rule stands in a shell, which does not run here, the replaced part is
the simulation's own glue (`glue`): it does in a few lines what the shell does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from simulated.client import ClientProcess
from simulated.serving import Serving
from simulated.store import StoreProcess
from trilogue.actors.index import recent
from trilogue.actors.index.catalogue import Segment
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.index.partition import PartitionIndex
from trilogue.actors.index.segments import Segments
from trilogue.actors.protocol import (
    founding,
    holdings,
    log,
    retries,
    sequencer,
    session_states,
    store,
    subscriptions,
    takeover,
    thinning,
    writer,
)
from trilogue.actors.protocol.frames import HEADER_BYTES, decode_frame, encode_frame
from trilogue.actors.protocol.holdings import Fence, PartitionState
from trilogue.actors.protocol.log import UNKNOWN, LogWriter
from trilogue.actors.protocol.messages import ALIAS, GONE, pack_records
from trilogue.actors.protocol.replication import AskFence, AskJoin, CompareAndSet, Filled, Frame, StoreLost, Tick
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.session_states import SessionState, SessionStates
from trilogue.actors.protocol.store import StoreState, Tell, WriteFence
from trilogue.actors.protocol.submissions import Answered, Readable, Recall, Refusal, Refused
from trilogue.actors.protocol.subscriptions import Deliver, Subscriptions
from trilogue.actors.protocol.takeover import Takeover, _Phase
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.protocol.writer import PartitionWriter
from trilogue.client.connecting.backoff import Pace
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.reading.inbox import Inbox
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.giving_up import GivingUp

Patch = tuple[Any, str, Any]


class Bug(NamedTuple):
    """`patches` are put in place; an anomaly must show within the first `seeds` seeds of the profile."""

    what: str
    patches: list[Patch]
    profile: str
    seeds: int
    glue: bool = False


# ---------------------------------------------------------------------- the log: changes of the ensemble


def _fresh_do_not_count(self: Any, go_on: Any = LogWriter.go_on) -> list[Any]:
    before = set(self._votes)
    effects: list[Any] = go_on(self)
    for key in self._votes.keys() - before:
        self._joining[key] = self._votes.pop(key)
    return effects


def _fresh_count_now(self: Any, event: Any, settled: Any = LogWriter._on_settled) -> list[Any]:
    if self._change is not None and not event.text:
        for key in self._change.fresh:
            self._votes[key] = self._joining.pop(key, UNKNOWN)
    effects: list[Any] = settled(self, event)
    return effects


def _with_open_at(value: int) -> Callable[[Any], list[Any]]:
    go_on = LogWriter.go_on

    def declare(self: Any) -> list[Any]:
        real, self.open_at = self.open_at, value
        try:
            return go_on(self)
        finally:
            self.open_at = real

    return declare


def _declare_behind(self: Any, go_on: Any = LogWriter.go_on) -> list[Any]:
    change = self._change
    held = {key: self._joining[key] for key in change.fresh if key in self._joining} if change is not None else {}
    if change is None or len(held) < len(change.fresh) or min(held.values(), default=self.open_at) < self.open_at:
        return go_on(self)  # type: ignore[no-any-return]
    for key in held:
        self._joining[key] = max(held[key], self.committed)
    effects: list[Any] = go_on(self)
    self._votes.update(held)
    return effects


def _any_fill(self: Any, event: Any, handle: Any = LogWriter.handle) -> list[Any]:
    if isinstance(event, Filled):
        event, self._filling = event._replace(number=self._fills), event.store
    effects: list[Any] = handle(self, event)
    return effects


def _one_must_remember(wish: Any, members: Any, *rest: Any, replacement: Any = log.replacement) -> Any:
    wanted = replacement(wish, members, *rest)
    return wanted if wanted is not None and set(wanted) & set(members) else None


def _declare_first(self: Any, consider: Any = LogWriter._consider) -> list[Any]:
    effects: list[Any] = consider(self)
    if self._change is not None and self._change.record is None:
        self._joins_due = [effect for effect in effects if isinstance(effect, AskJoin)]
        self._joining.update(dict.fromkeys(self._change.fresh, max(self.open_at, self.committed)))
        effects = [effect for effect in effects if not isinstance(effect, AskJoin)] + self.go_on()
        self._votes.update(dict.fromkeys(self._change.fresh, UNKNOWN))
    return effects


def _join_afterwards(self: Any, event: Any, settled: Any = LogWriter._on_settled) -> list[Any]:
    due, self._joins_due = getattr(self, "_joins_due", []), []
    return [*due, *settled(self, event)] if not event.text else settled(self, event)


def _joined_late(self: Any, event: Any, joined: Any = LogWriter._on_joined) -> list[Any]:
    effects: list[Any] = joined(self, event)
    return effects if self._change is not None else self._on_fenced(event.store, event.answer)


def _range_after_tail(self: Any, go_on: Any = LogWriter.go_on) -> list[Any]:
    real, self.committed = self.committed, max(self.committed, self.open_at)
    try:
        effects: list[Any] = go_on(self)
        return effects
    finally:
        self.committed = real


def _no_answer_is_no(self: Any, now_ms: int, tick: Any = LogWriter._on_tick) -> list[Any]:
    change = self._change
    if change is not None and change.record is not None and now_ms - change.began_ms >= 40:
        self._change, self.changing = None, False
        for key in change.fresh:
            self._votes.pop(key, None)
            self._disconnect(key)
    effects: list[Any] = tick(self, now_ms)
    return effects


def _settled_too_late(self: Any, event: Any, settled: Any = LogWriter._on_settled) -> list[Any]:
    if not event.text and self._merge is None and (self._change is None or self._change.record is None):
        return []
    effects: list[Any] = settled(self, event)
    return effects


def _merge_early(self: Any, merge: Any = LogWriter._fill_or_merge) -> list[Any]:
    for member in self.members:
        self._bases[member.key] = 1
    effects: list[Any] = merge(self)
    return effects


def _two_of_three(self: Any, store: str, epoch: int, upto: int, crc: int, stored: Any = LogWriter.stored) -> int:
    done: int = stored(self, store, epoch, upto, crc)
    if len(self._votes) == 3 and (two := sorted(self._votes.values())[1]) > self.committed:
        return self._commit(two)  # type: ignore[no-any-return]
    return done


def _whatever_it_holds(self: Any, match: int, held: dict[int, int]) -> int:
    return max(match, min(max(held, default=match), int(self.last_index)))


def _nothing_again(self: Any, store: str, _match: int) -> list[Any]:
    self.connected = (*(key for key in self.connected if key != store), store)
    return []


def _no_fence_on_return(self: Any, member: Any, up: Any = LogWriter._on_up) -> list[Any]:
    effects: list[Any] = up(self, member)
    if member.key not in self._votes:
        return effects
    self._votes[member.key] = max(self.committed, self._votes[member.key])
    self._met.add(member.key)
    rest = [effect for effect in effects if not isinstance(effect, AskFence)]
    return [*rest, *self._send_from(member.key, self._votes[member.key])]


# ---------------------------------------------------------------------- takeover


def _restamp(self: Any, finish: Any = Takeover._fetch_or_finish) -> list[Any]:
    if self._frames and self._frames[-1].frame_index == self._last_index:
        crc, stamped = self._committed_crc, []
        for frame in self._frames:
            header = decode_frame(frame.data, self._limits.frame_bytes_max)
            data, crc = encode_frame(
                log_id=self._log_id, partition=self._partition, epoch=self.epoch, index=header.index, prev_crc=crc,
                count=header.count, committed_upto=header.committed_upto,
                payload=frame.data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes],
            )  # fmt: skip
            stamped.append(Frame(header.index, crc, data))
        self._frames = stamped
    effects: list[Any] = finish(self)
    return effects


def _choose_again(self: Any, event: Any, handle: Any = PartitionWriter.handle) -> list[Any]:
    taking, log = self._taking, self.log
    chosen_is_lost = isinstance(event, StoreLost) and event.store == taking._source
    if chosen_is_lost and log is not None and not self.recovered and len(taking._answers) > 1 and log._change is None:
        del taking._answers[event.store]
        taking._record, taking._version, taking._frames = log.record, log.version, []
        taking._phase = _Phase.FENCE
        self._machine, self.log = taking, None
        return [*handle(self, event), *handle(self, Tick(self._now_ms))]
    effects: list[Any] = handle(self, event)
    return effects


def _believe_anybody(self: Any, decide: Any = Takeover._decide_if_enough) -> list[Any]:
    if self._phase is _Phase.FENCE and self._answers and self._now_ms - self._since_ms >= self._limits.fence_wait_ms:
        return self._decide(self._answers)  # type: ignore[no-any-return]
    effects: list[Any] = decide(self)
    return effects


def _same_writer(self: Any, *, writer: str, init: Any = PartitionWriter.__init__, **rest: Any) -> None:
    init(self, writer="writer-of-partition-0", **rest)


def _resume_epoch(self: Any, claim: Any = Takeover._claim_if_silent) -> list[Any]:
    effects: list[Any] = claim(self)
    if self._record is not None and any(isinstance(effect, CompareAndSet) for effect in effects):
        read = self._read_record
        if read.writer == self._writer:
            self._record, self.epoch = read, read.epoch
            self._enter(_Phase.FENCE)
            return [AskFence(member.key, self.epoch) for member in self._reachable()]
    return effects


def _keep_record(self: Any, version: int, record: Any, on_record: Any = Takeover._on_record) -> list[Any]:
    self._read_record = record
    effects: list[Any] = on_record(self, version, record)
    return effects


# ---------------------------------------------------------------------- stores


def _same_incarnation(self: Any) -> tuple[str, int]:
    return (self.disk.uuid, 1)


def _remember_synced(self: Any, synced: Any = StoreState.synced) -> None:
    synced(self)
    self._durable = {partition: state.answer() for partition, state in self.partitions.items()}


def _fence_overtakes(self: Any, event: Any, fence: Any = StoreState._fence) -> list[Any]:
    durable = getattr(self, "_durable", {}).get(event.partition)
    effects: list[Any] = fence(self, event)
    if durable is None:
        return effects
    early = [Say.REPLY, event.request_id, 0, list(durable)]
    return [Tell(e.source, early, False) if isinstance(e, Tell) and e.after_sync else e for e in effects]


def _fence_volatile(self: Any, event: Any, fence: Any = StoreState._fence) -> list[Any]:
    return [effect._replace(after_sync=False) if isinstance(effect, Tell) else effect for effect in fence(self, event)]


def _fence_unwritten(self: Any, event: Any, fence: Any = StoreState._fence) -> list[Any]:
    return [effect for effect in fence(self, event) if not isinstance(effect, WriteFence)]


def _yes_volatile(self: Any, event: Any, append: Any = StoreState._append) -> list[Any]:
    return [effect._replace(after_sync=False) if isinstance(effect, Tell) else effect for effect in append(self, event)]


def _fence_at_a_tie(self: Any, event: Any) -> list[Any]:
    state = self.partition(event.partition)
    if event.epoch < state.fence.epoch:
        return [self._deposed(event, state)]
    state.fence = Fence(event.epoch, event.writer, event.address)
    return [WriteFence(event.partition, state.fence), self._answer(event, list(state.answer()))]


def _obey(lowest: Callable[[Any], int]) -> Callable[[Any, Any], list[Any]]:
    append = StoreState._append

    def obey(self: Any, event: Any) -> list[Any]:
        state = self.partition(event.partition)
        known = state.fence
        if event.epoch < lowest(known):
            return append(self, event)
        state.fence = Fence(event.epoch, event.writer, "")
        try:
            return append(self, event)
        finally:
            state.fence = known

    return obey


def _any_join(self: Any, event: Any, join: Any = StoreState._join) -> list[Any]:
    state = self.partition(event.partition)
    if state.obeys(event.epoch, event.writer):
        event = event._replace(number=state.joins + 1)
    effects: list[Any] = join(self, event)
    return effects


def _nothing_vouched(self: Any, event: Any, join: Any = StoreState._join) -> list[Any]:
    effects: list[Any] = join(self, event._replace(intervals=[]))
    return effects


def _index_what_is_there(self: Any, upto: int, read_frame: Any) -> None:
    recent = self.recent
    while recent.upto < upto:
        try:
            recent.take(read_frame(recent.upto + 1), self._last_seq, self._trimmed)
        except KeyError:
            recent.upto += 1


def _counts_before_it_is_written(self: Any, partition: int, recent: Any, flush: Any = Segments.flush) -> Any:
    segment = Segment(self._next_id, partition, 0, recent.upto, recent.frame_crc, recent.last_stored_at_us, recent.floor)
    self._register(segment, [])
    self._register = lambda *_: None
    yield from flush(self, partition, recent)
    del self._register


def _nothing_leaves(self: Any, session: str) -> list[Any]:
    entry = self.recent.sessions.get(session)
    return [entry] if entry is not None else []


def _merges_all_but_the_oldest(self: Any, old: list[Any], merge: Any = Segments._merge) -> Any:
    yield from merge(self, old[1:])
    self._take_out(old[:1])


def _index_ahead(self: Any, partition: int, upto: int, *rest: Any, advance: Any = IndexKeeper.advance) -> Any:
    read_frame = rest[0]
    try:
        read_frame(upto + 1)
    except KeyError:
        return advance(self, partition, upto, *rest)
    return advance(self, partition, upto + 1, *rest)


# ---------------------------------------------------------------------- the sequencer


def _no_senders(self: Any, asked: Any, told: Any, believe: Any = SessionStates.told) -> Any:
    return believe(self, asked, [one._replace(last_n={}) for one in told])


def _seq_starts_again(self: Any, asked: Any, told: Any, believe: Any = SessionStates.told) -> Any:
    return believe(self, asked, [one._replace(last_seq=0) for one in told])


def _retry_as_new(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    for session, sender_id, first_n, _, _ in runs:
        state = self._states.hot.get(session)
        if state is not None and first_n <= state.last_n.get(sender_id, 0):
            state.last_n[sender_id] = first_n - 1
    effects: list[Any] = submit(self, source, runs, now_us)
    return effects


def _refuse_first(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    effects: list[Any] = []
    for run in runs:
        session, sender_id, first_n, _, bodies = run
        state = self._states.hot.get(session)
        last_n = state.last_n.get(sender_id) if state is not None else None
        expected = (last_n or 0) + 1
        if last_n is None or first_n == expected:
            effects += submit(self, source, [run], now_us)
        else:
            refusal = Refusal(session, sender_id, first_n, len(bodies), Code.OUT_OF_ORDER, "", expected)
            effects.append(Refused(source, [refusal]))
    return effects


def _holes_in_n(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    for session, sender_id, first_n, _, _ in runs:
        state = self._states.hot.get(session)
        if state is not None and sender_id in state.last_n and first_n > state.last_n.get(sender_id, 0) + 1:
            state.last_n[sender_id] = first_n - 1
    effects: list[Any] = submit(self, source, runs, now_us)
    return effects


def _ack_at_once(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    before = len(self._waiting)
    effects: list[Any] = submit(self, source, runs, now_us)
    acks = [(r[1], r[2], r[3], len(r[7]), r[4], False) for r in self._waiting[before:]]
    return effects + ([Answered(source, acks)] if acks else [])


def _read_at_once(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    before = len(self._waiting)
    effects: list[Any] = submit(self, source, runs, now_us)
    return [*effects, Readable([run for run in self._waiting[before:] if run[0] == 1])]


def _retry_answered_early(self: Any, retry: Any) -> list[Any]:
    return [Recall(retry)]


# ---------------------------------------------------------------------- sessions that are not in memory


def _evict_uncommitted(self: Any, _records: int, upto: int, evict: Any = SessionStates.evict) -> None:
    evict(self, 1 << 60, upto)


def _committed_of_nobody(self: Any, upto: int, committed: Any = Sequencer.committed) -> list[Any]:
    """What was evicted is not there when its frame is committed: let that pass."""
    hot = self._states.hot
    gone = {record[1] for _, records, _ in self._in_frames for record in records} - hot.keys()
    hot.update({session: SessionState(0, {}, False) for session in sorted(gone)})
    effects: list[Any] = committed(self, upto)
    for session in gone:
        hot.pop(session, None)
    return effects


def _evict_and_ask_for_less(self: Any, records: int, upto: int, evict: Any = SessionStates.evict) -> None:
    before = self.covers_upto
    evict(self, records, upto)
    self.covers_upto = before


def _all_told(self: Any, asked: Any, told: Any, believe: Any = SessionStates.told) -> Any:
    return believe(self, asked, [one._replace(whole=True) for one in told])


def _answer_overrules(self: Any, asked: Any, told: Any, believe: Any = SessionStates.told) -> Any:
    for (session, *_), one in zip(asked, told, strict=True):
        if (state := self.hot.get(session)) is not None:
            state.last_seq = one.last_seq
            state.last_n.update({sender_id: n for sender_id, n in one.last_n.items() if sender_id in state.last_n})
    return believe(self, asked, told)


def _head_forgotten(self: Any, asked: Any, told: Any, believe: Any = SessionStates.told) -> Any:
    cold = [session for session, *_ in asked if session not in self.hot]
    result = believe(self, asked, told)
    for session in cold:
        self.hot[session].committed_seq = 0
    return result


def _drop_busy_senders(self: Any, _busy: Any, upto: int, drop: Any = SessionStates.drop_senders) -> None:
    drop(self, set(), upto)


# ---------------------------------------------------------------------- readers and clients


def _drop_without_credit(self: Any, runs: Any) -> list[Any]:
    last_seq = runs[-1].first_seq + len(runs[-1].bodies) - 1
    for place in self._by_session.get(runs[0].session, {}).values():
        live = place.at == runs[0].first_seq - 1 and not place.waits
        if live and place.subscription.messages < last_seq - place.at:
            place.at = last_seq
    return _on_committed(self, runs)


def _skip_one_of_a_group(self: Any, runs: Any) -> list[Any]:
    return [
        effect._replace(subscriptions=effect.subscriptions[:-1])
        if isinstance(effect, Deliver) and len(effect.subscriptions) > 1
        else effect
        for effect in _on_committed(self, runs)
    ]


def _deaf_before_it_begins(self: Any, event: Any, subscribed: Any = Subscriptions._on_subscribed) -> list[Any]:
    asked: dict[Any, Any] = self.__dict__.setdefault("asked", {})
    place = event.source, event.subscription
    if not event.sessions:
        asked[place] = event
        return []
    credit = asked.pop(place, event)
    effects: list[Any] = subscribed(self, event._replace(messages=credit.messages, size_bytes=credit.size_bytes))
    return effects


def _has_or_will(self: Any, source: Any, number: int, has: Any = Subscriptions.has) -> bool:
    return (source, number) in self.__dict__.get("asked", {}) or has(self, source, number)


def _one_gets_the_page(self: Any, event: Any) -> list[Any]:
    for place in self._pages.get((event.session, event.after), [])[1:]:
        place.at = event.after + sum(len(run.bodies) for run in event.runs)
    return _on_page(self, event)


def _live_while_a_page_is_read(self: Any, runs: Any) -> list[Any]:
    for place in self._by_session.get(runs[0].session, {}).values():
        place.waits = False
        place.at = max(place.at, runs[0].first_seq - 1)
    return _on_committed(self, runs)


_on_committed, _on_page = Subscriptions._on_committed, Subscriptions._on_page


def _arrival_order(self: Any, runs: Any) -> list[Any]:
    ready: list[Any] = []
    for run in runs:
        self._seen_upto = self.at = max(run.first_seq + len(run.bodies) - 1, self.at)
        ready += _messages_of(run)
    return ready


def _messages_of(run: Any) -> list[Any]:
    from trilogue.actors.protocol.messages import messages_of

    return list(messages_of(run))


def _early_is_next(self: Any, run: Any) -> None:
    self.at = run.first_seq - 1


def _cursor_first(self: Any, reader: Any, runs: Any, arrived: Any = ClientProcess._arrived) -> None:
    arrived(self, reader, runs)
    self.file.cursors[reader.cursor] = reader.inbox.at


def _submit_unsaved(self: Any, save: Any = FileOutbox.save) -> None:
    for lane in self.dirty:
        if lane.flow is not None and lane.saved < len(lane.bodies):
            lane.saved, lane.saved_bytes = len(lane.bodies), lane.size_bytes
            lane.flow.ready(lane)
    save(self)


def _oldest_is_meant(self: Any, now: float, epoch: int, copies: int, runs: Any, acked: Any = Answers.acked) -> None:
    meant = []
    for session, sender_id, first_n, count, first_seq, duplicate in runs:
        lane = self.flow.lanes.get((session, sender_id))
        n = lane.first_n if lane is not None and lane.sent >= count else first_n
        meant.append([session, sender_id, n, count, first_seq, duplicate])
    acked(self, now, epoch, copies, meant)


def _settled_when_saved(self: Any, error: Any, committed: Any = FileOutbox.committed) -> None:
    committed(self, error)
    for lane in self.lanes.values():
        self._rows.append((lane.session, lane.sender, lane.outbox_id, lane.first_n + lane.saved, 0))


def _never_submitted(self: Any, given: Any, give_up: Any = GivingUp._give_up) -> None:
    lane, submitted_n = given.lane, given.lane.submitted_n
    lane.submitted_n = min(submitted_n, given.n - 1)
    give_up(self, given)
    lane.submitted_n = submitted_n


def _skip_whatever_it_is(self: Any, source: Any, numbers: Any, now_us: int, give_up: Any = Sequencer._give_up) -> list[Any]:
    before = {}
    for session, sender_id, n in numbers:
        state = self._states.hot.get(session)
        if state is not None and state.last_n.get(sender_id, 0) >= n > 1:
            before.setdefault((session, sender_id), state.last_n[sender_id])
            state.last_n[sender_id] = n - 1
    effects: list[Any] = give_up(self, source, numbers, now_us)
    for (session, sender_id), last_n in before.items():
        self._states.hot[session].last_n[sender_id] = last_n
    return effects


def _nothing_is_lacking(state: Any, keys: Any) -> bool:
    return False


def _alias_without_a_record(self: Any, source: Any, state: Any, record: Any, number: Any = Sequencer._number) -> None:
    if record[0] == ALIAS:
        state.last_n[record[2]] = record[3]
    else:
        number(self, source, state, record)


def _time_from_being_told(
    self: Any, session: str, state: Any, key: str, known: Any, note: Any = SessionStates.note_key
) -> None:
    is_told = known.seq and not known.record
    note(self, session, state, key, known._replace(stored_at_us=known.stored_at_us + 400_000) if is_told else known)


def _without_keys(self: Any, tidying: bool = False, begin: Any = FileOutbox._begin) -> None:
    start = self._start
    self._start = lambda commit: start(commit._replace(runs=[run[:6] for run in commit.runs]))
    begin(self, tidying)
    self._start = start


def _each_key_alone(keys: Any, at: int, known: Any, now_us: int, honoured_us: int, new_upto: Any = sequencer.new_upto) -> int:
    repeats = (k for k in range(at, len(keys)) if not new_upto(keys[k : k + 1], 0, known, now_us, honoured_us))
    return next(repeats, len(keys))


def _given_up_in_memory(self: Any, lane: Any, n: int, tell: Any) -> None:
    tell(None)


# ---------------------------------------------------------------------- what is trimmed


def _one_too_many(self: Any, gone: Any = PartitionIndex.gone) -> Any:
    is_gone = gone(self)
    return lambda index, item: is_gone(index, [*item[:7], item[7][:-1], *item[8:]])


def _without_numbers(frame: bytes, is_gone: Any, keys_from_us: int, real: Any = thinning.thinned) -> bytes:
    left: bytes = real(frame, is_gone, keys_from_us)
    return real(frame, is_gone, keys_from_us) if left is frame else _only(left, lambda item: item[0] != GONE)


def _only(thin: bytes, keep: Callable[[Any], bool]) -> bytes:
    """A thin frame with some of its records."""
    items = [item for item, _, _ in thinning.items_of(thin) if keep(item)]
    return thinning._encode(
        thin[HEADER_BYTES : 2 * HEADER_BYTES], thin[HEADER_BYTES : 2 * HEADER_BYTES] + pack_records(items), 0, 0
    )


def _without_keys_of_gone(frame: bytes, is_gone: Any, keys_from_us: int, real: Any = thinning.thinned) -> bytes:
    left: bytes = real(frame, is_gone, 1 << 62)
    return left


def _flush_without_trims(self: Any, partition: int, recent: Any, flush: Any = Segments.flush) -> Any:
    recent.trims = {}
    return flush(self, partition, recent)


def _floor_left(self: Any, leave: Any = PartitionIndex.leave) -> Any:
    leaving = leave(self)
    self.recent.floor = 0
    return leaving


def _from_what_is_left(self: Any, session: str, after: int, *rest: Any, runs: Any = PartitionIndex.runs) -> Any:
    found = runs(self, session, after, *rest)
    return runs(self, session, found - 1, *rest) if isinstance(found, int) else found


def _told_at_once(self: Any, record: Any, then: Callable[[], None] = lambda: None, note: Any = Serving.note) -> None:
    note(self, record)
    then()


def _leap_over_what_is_gone(self: Any, session: str, after: int, first_available: int) -> list[Any]:
    for place in self._pages.get((session, after), []):
        place.at = first_available - 1
    effects: list[Any] = self.handle(subscriptions.PageRead(session, after, [], first_available))
    return effects


LOG_MODEL: dict[str, Bug] = {
    "commit_during_cas": Bug(
        "commits on the old ensemble while the ensemble's compare-and-set is in flight",
        [(LogWriter, "go_on", _fresh_do_not_count), (LogWriter, "_on_settled", _fresh_count_now)],
        "changes",
        400,
    ),
    "cas_before_copy": Bug(
        "declares the new range before the tail is on its new members",
        [(LogWriter, "go_on", _with_open_at(0))],
        "changes",
        400,
    ),
    "unjoined_member": Bug(
        "declares a store a member before it has joined",
        [
            (LogWriter, "_consider", _declare_first),
            (LogWriter, "_on_settled", _join_afterwards),
            (LogWriter, "_on_joined", _joined_late),
        ],
        "changes",
        100,
    ),
    "restamp": Bug(
        "rewrites the recovered tail frame by frame under the new epoch",
        [(Takeover, "_fetch_or_finish", _restamp)],
        "mixed",
        200,
    ),
    "redecide": Bug(
        "a taker changes its mind about the tail within one epoch",
        [(PartitionWriter, "handle", _choose_again)],
        "takeovers",
        500,
    ),
    "torn_certain": Bug(
        "a store that cut a damaged tail comes back under its old incarnation",
        [(StoreProcess, "identity", property(_same_incarnation)), (PartitionState, "doubt", lambda self: None)],
        "disks",
        200,
        glue=True,
    ),
    "fence_overtakes": Bug(
        "answers a fence from the durable tail while older appends are queued",
        [(StoreState, "synced", _remember_synced), (StoreState, "_fence", _fence_overtakes)],
        "takeovers",
        1000,
    ),
    "fence_volatile": Bug("answers a fence before it is durable", [(StoreState, "_fence", _fence_volatile)], "zombies", 1000),
    "lax_epoch": Bug(
        "appends need an epoch at or above the fence, and the writer does not fence a member that comes back",
        [(StoreState, "_append", _obey(lambda fence: fence.epoch)), (LogWriter, "_on_up", _no_fence_on_return)],
        "mixed",
        200,
    ),
    "ack_unbound": Bug(
        "counts what a member holds whatever frames these are",
        [(LogWriter, "_matching", _whatever_it_holds)],
        "takeovers",
        400,
    ),
    "resume_epoch": Bug(
        "a process that is started again goes on in the epoch that the record names",
        [
            (PartitionWriter, "__init__", _same_writer),
            (Takeover, "_on_record", _keep_record),
            (Takeover, "_claim_if_silent", _resume_epoch),
        ],
        "mixed",
        200,
    ),
    "cas_unknown_is_no": Bug(
        "takes a compare-and-set without an answer to have failed",
        [(LogWriter, "_on_tick", _no_answer_is_no), (LogWriter, "_on_settled", _settled_too_late)],
        "changes",
        400,
    ),
    "range_after_tail": Bug(
        "the new range starts after the tail, not at the first frame not known to be committed",
        [(LogWriter, "go_on", _range_after_tail)],
        "changes",
        400,
    ),
    "junk_kept": Bug(
        "a joining store keeps frames for which nobody vouches",
        [(holdings, "_united", lambda intervals, last: [(1, last)] if last else [])],
        "takeovers",
        1500,
    ),
    "index_blind": Bug(
        "reads the sessions' state from a member that does not hold the whole log",
        [
            (LogWriter, "whole", property(lambda self: list(self.connected))),
            (StoreProcess, "is_whole", lambda self, upto: True),
            (PartitionIndex, "catch_up", _index_what_is_there),
        ],
        "changes",
        100,
        glue=True,
    ),
    "join_unnumbered": Bug("obeys joins in any order", [(StoreState, "_join", _any_join)], "joins", 500),
    "no_absorb": Bug(
        "older frames that connect to the chain do not become part of it",
        [(PartitionState, "absorb", lambda self: None)],
        "changes",
        50,
    ),
    "merge_early": Bug(
        "merges ranges before the copy is complete", [(LogWriter, "_fill_or_merge", _merge_early)], "changes", 50
    ),
    "cut_vouched": Bug(
        "a joining store drops what the record vouches for",
        [(StoreState, "_join", _nothing_vouched)],
        "changes",
        500,
    ),
}

ABSENT = {"explicit_cut": "there is no message that truncates: a frame supersedes, or a numbered join cuts"}

OWN: dict[str, Bug] = {
    "index_counts_early": Bug(
        "a segment of the index counts before its rows are written",
        [(Segments, "flush", _counts_before_it_is_written)],
        "takeovers",
        50,
    ),
    "index_in_between": Bug(
        "what an index is writing is in neither of its halves",
        [(PartitionIndex, "_in_memory", _nothing_leaves)],
        "takeovers",
        100,
    ),
    "index_merge_loses": Bug(
        "a merge of an index's segments leaves out the oldest of them",
        [(Segments, "_merge", _merges_all_but_the_oldest)],
        "takeovers",
        100,
    ),
    "index_uncommitted": Bug(
        "the index takes in a frame that is not known to be committed",
        [(IndexKeeper, "advance", _index_ahead)],
        "mixed",
        1000,
    ),
    "two_of_three": Bug("acks before the last store has it", [(LogWriter, "stored", _two_of_three)], "mixed", 50),
    "declare_behind": Bug(
        "declares a store that lacks what was committed while it joined",
        [(LogWriter, "go_on", _declare_behind)],
        "joins",
        1500,
    ),
    "any_fill": Bug(
        "believes the end of a copy that was ordered before the store was cut and joined anew",
        [(LogWriter, "handle", _any_fill)],
        "joins",
        2500,
    ),
    "one_must_remember": Bug(
        "a writer with a tail in hand waits for a member that has not lost its memory, when all have",
        [(log, "replacement", _one_must_remember)],
        "disks",
        400,
    ),
    "fill_unchained": Bug(
        "fills in whatever a store holds below the base, though it may have lost the end that superseded it",
        [(PartitionState, "connects", lambda self, header: header.index < self.base)],
        "refills",
        600,
    ),
    "nothing_again": Bug(
        "a member that comes back is not given what it lacks", [(LogWriter, "_send_from", _nothing_again)], "storms", 50
    ),
    "believe_anybody": Bug(
        "believes a store that cannot tell what it held",
        [(Takeover, "_decide_if_enough", _believe_anybody)],
        "takeovers",
        600,
    ),
    "fence_at_a_tie": Bug("accepts a fence of an equal epoch", [(StoreState, "_fence", _fence_at_a_tie)], "zombies", 200),
    "fence_unwritten": Bug("never writes a fence down", [(StoreState, "_fence", _fence_unwritten)], "zombies", 600),
    "yes_volatile": Bug("says yes before its sync", [(StoreState, "_append", _yes_volatile)], "storms", 100),
    "any_writer": Bug("a store obeys any writer", [(StoreState, "_append", _obey(lambda _: 0))], "zombies", 200),
    "dedupe_in_memory": Bug("dedupe knows only what came since the start", [(SessionStates, "told", _no_senders)], "mixed", 50),
    "seq_starts_again": Bug("seqs start again after a takeover", [(SessionStates, "told", _seq_starts_again)], "mixed", 50),
    "retry_as_new": Bug("a retry is given a new number", [(Sequencer, "submit", _retry_as_new)], "mixed", 50),
    "refuse_first": Bug("a refusal comes before dedupe", [(Sequencer, "submit", _refuse_first)], "mixed", 50),
    "holes_in_n": Bug("a sender's numbers may have holes", [(Sequencer, "submit", _holes_in_n)], "storms", 200),
    "ack_at_once": Bug("acks when it has given the number", [(Sequencer, "submit", _ack_at_once)], "mixed", 50),
    "retry_answered_early": Bug(
        "answers a retry before its original is committed",
        [(Sequencer, "_retry", _retry_answered_early)],
        "mixed",
        200,
    ),
    "evict_uncommitted": Bug(
        "a session goes from memory while a frame of its is in flight",
        [(SessionStates, "evict", _evict_uncommitted), (Sequencer, "committed", _committed_of_nobody)],
        "mixed",
        50,
    ),
    "ask_for_less": Bug(
        "asks for a session's state without the frames that it wrote itself",
        [(SessionStates, "evict", _evict_and_ask_for_less)],
        "mixed",
        50,
    ),
    "unknown_is_new": Bug(
        "takes a sender for new in a session of which not all senders are known",
        [(SessionStates, "told", _all_told)],
        "mixed",
        50,
    ),
    "answer_overrules": Bug(
        "a store's answer overrules what is known of a session that is in memory",
        [(SessionStates, "told", _answer_overrules)],
        "mixed",
        200,
    ),
    "head_forgotten": Bug(
        "a session that comes back has nothing that may be read", [(SessionStates, "told", _head_forgotten)], "readers", 50
    ),
    "drop_busy_senders": Bug(
        "a sender goes from memory while a frame of its is in flight",
        [(SessionStates, "drop_senders", _drop_busy_senders)],
        "mixed",
        200,
    ),
    "read_at_once": Bug("shows readers what is not committed", [(Sequencer, "submit", _read_at_once)], "takeovers", 200),
    "credit_drops": Bug(
        "a subscription without credit leaves out what it cannot send",
        [(Subscriptions, "_on_committed", _drop_without_credit)],
        "readers",
        50,
    ),
    "group_skips_one": Bug(
        "a delivery to several subscriptions leaves one of them out",
        [(Subscriptions, "_on_committed", _skip_one_of_a_group)],
        "readers",
        50,
    ),
    "deaf_before_it_begins": Bug(
        "does not hear the credit that comes while it is looked up what a subscription is to follow",
        [(Subscriptions, "_on_subscribed", _deaf_before_it_begins), (Subscriptions, "has", _has_or_will)],
        "readers",
        800,
    ),
    "page_for_one": Bug(
        "of those that share a page only the first one gets it",
        [(Subscriptions, "_on_page", _one_gets_the_page)],
        "readers",
        200,
    ),
    "leaps_to_live": Bug(
        "a slow reader is fed live again before its pages have come",
        [(Subscriptions, "_on_committed", _live_while_a_page_is_read)],
        "readers",
        50,
    ),
    "arrival_order": Bug("the inbox trusts the order of arrival", [(Inbox, "add", _arrival_order)], "readers", 50),
    "early_is_next": Bug("the inbox leaps over a hole", [(Inbox, "_keep", _early_is_next)], "readers", 50),
    "cursor_first": Bug(
        "moves the cursor before the message was handed on",
        [(ClientProcess, "_arrived", _cursor_first)],
        "readers",
        50,
        glue=True,
    ),
    "submit_unsaved": Bug(
        "submits what is not in the outbox's file yet", [(FileOutbox, "save", _submit_unsaved)], "readers", 200
    ),
    "never_submitted": Bug(
        "tells the sender of a message that was on its way that it is not stored",
        [(GivingUp, "_give_up", _never_submitted)],
        "weather",
        50,
    ),
    "skip_what_is_stored": Bug(
        "a number that was stored becomes a skip", [(Sequencer, "_give_up", _skip_whatever_it_is)], "weather", 50
    ),
    "given_up_in_memory": Bug(
        "what was given up is sent by the next process", [(FileOutbox, "give_up", _given_up_in_memory)], "weather", 50
    ),
    "keys_forgotten": Bug(
        "a writer knows only the keys that came since it has the partition",
        [(SessionStates, "lacks", staticmethod(_nothing_is_lacking))],
        "keys",
        50,
    ),
    "alias_unlogged": Bug(
        "a repeated key's number is given out, and nothing is logged for it",
        [(Sequencer, "_number", _alias_without_a_record)],
        "keys",
        50,
    ),
    "key_by_local_clock": Bug(
        "a key's time begins when its writer hears of it",
        [(SessionStates, "note_key", _time_from_being_told)],
        "keys",
        50,
    ),
    "key_twice_in_a_run": Bug(
        "two messages of one run may have the same new key", [(sequencer, "new_upto", _each_key_alone)], "keys", 50
    ),
    "any_body_under_a_key": Bug(
        "a repeated key with another body is answered with the first one's seq",
        [(sequencer, "digest_of", lambda body: b"")],
        "keys",
        50,
    ),
    "key_left_behind": Bug(
        "the outbox's file keeps messages without their keys", [(FileOutbox, "_begin", _without_keys)], "keys", 50
    ),
    "thin_without_asking": Bug(
        "a store lets the bodies of all committed messages go",
        [(PartitionIndex, "gone", lambda self: lambda frame_index, item: True)],
        "trims",
        20,
    ),
    "thin_one_too_many": Bug(
        "the last message that is left is gone, too", [(PartitionIndex, "gone", _one_too_many)], "trims", 20
    ),
    "numbers_go_too": Bug(
        "of what is gone a store does not even keep the numbers", [(thinning, "thinned", _without_numbers)], "trims", 50
    ),
    "keys_go_too": Bug(
        "keys go with their messages, though they are honoured", [(thinning, "thinned", _without_keys_of_gone)], "trims", 200
    ),
    "trims_in_memory": Bug("trims are not written to the catalogue", [(Segments, "flush", _flush_without_trims)], "trims", 50),
    "floor_in_memory": Bug(
        "a floor is forgotten when the index is written", [(PartitionIndex, "leave", _floor_left)], "trims", 50
    ),
    "silent_hole": Bug(
        "a page that was trimmed begins with what is left", [(PartitionIndex, "runs", _from_what_is_left)], "trims", 20
    ),
    "trimmed_when_numbered": Bug(
        "a trim is answered before it is committed", [(Serving, "note", _told_at_once)], "trims", 100, glue=True
    ),
    "subscription_leaps": Bug(
        "a subscription goes on behind what was trimmed, without a word",
        [(Subscriptions, "_on_gone", _leap_over_what_is_gone)],
        "trims",
        20,
    ),
    "no_pace": Bug("connects again at once, for ever", [(Pace, "wait_s", lambda self, now: 0.0)], "weather", 50),
    "oldest_is_meant": Bug("takes any ack for the oldest message's", [(Answers, "acked", _oldest_is_meant)], "mixed", 200),
    "settled_when_saved": Bug(
        "the outbox's file takes what it has saved to be settled",
        [(FileOutbox, "committed", _settled_when_saved)],
        "readers",
        50,
    ),
}

BUGS = {**LOG_MODEL, **OWN}

CAUGHT_BY_THE_JUDGE_ALONE = ["merge_early", "fence_unwritten", "seq_starts_again", "two_of_three"]
"""Bugs that the product's own invariants may meet first, and that the judge finds without them, too."""


def plant(bug: Bug, put: Callable[[Any, str, Any], None]) -> None:
    """Put the bug's patches in place with `put`: `setattr`, or a test's own, which takes them out again."""
    for owner, attribute, replacement in bug.patches:
        put(owner, attribute, replacement)


def take_out_invariants(put: Callable[[Any, str, Any], None]) -> None:
    """From now on no invariant of the product is checked."""
    for module in (
        founding,
        holdings,
        log,
        retries,
        sequencer,
        session_states,
        store,
        recent,
        subscriptions,
        takeover,
        writer,
    ):
        for check in {"require", "violated"} & vars(module).keys():
            put(module, check, lambda *_: None)
