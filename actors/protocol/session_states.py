"""Which sessions' states are in memory, and how the others come back (design §8, §9): a bounded cache, refilled from a store.

Owns the counters of each *hot* session, who waits for a *cold* one, and which goes first. It must not know how runs are
numbered or what a frame holds: it is told how far records are committed. Rules:

1. What is not here is not known: that a session is new, or a sender in it, is a store's word. Only of a `whole` state all
   senders are here, so another one is new.
2. A state goes only when all records of its session are committed, and nobody waits for it: the longest unused first. Of a
   session's senders the longest known go first, and the state is not whole from then on.
3. A store is asked for frames up to `covers_upto`: all of those of any session or sender that is not here.
4. Whatever is asked of a session that is being looked up waits behind what was asked before.
5. Of a session that is here an answer is believed for the senders and keys that were asked for, which are not here: of the
   others this state knows more.
6. Keys are as senders: what is not here is not known, unless `keys_whole`. Of a session's keys the longest known go first;
   one whose time is over is not missed.
7. At most `states_names_max` names are being asked for at any time. What is missed meanwhile is asked for together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.keys import NO_MESSAGE, KnownKey
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.submissions import Loaded, LookUp, Question, Source, Told

PINNED_AT_ONCE = 64
"""How many that cannot go are passed over before the search for one that can is put off."""


class SessionState:
    """One session's counters: `last_seq` was given out, `committed_seq` may be read."""

    __slots__ = ("committed_seq", "held", "keys", "keys_whole", "last_n", "last_record", "last_seq", "whole")

    def __init__(self, last_seq: int, last_n: dict[str, int], whole: bool, keys_whole: bool = False) -> None:
        self.last_seq = self.committed_seq = last_seq
        self.last_n = last_n
        self.whole = whole
        self.keys: dict[str, KnownKey] | None = None  # None as long as there is none: most sessions have no keys
        self.keys_whole = keys_whole
        self.last_record = 0  # the number of its newest record, of all that were numbered here
        self.held = 0  # how many wait for it and for others


class _Waiter:
    """Somebody who needs the states of all of these sessions at once."""

    __slots__ = ("held", "missing", "over", "sessions", "waiter")

    def __init__(self, waiter: Any, sessions: list[str]) -> None:
        self.waiter, self.sessions = waiter, sessions
        self.missing = 0
        self.over = False
        self.held: list[SessionState] = []


class _Awaited:
    """A session that is being looked up, or will be."""

    __slots__ = ("keys", "parked", "senders", "size_bytes", "waiters")

    def __init__(self) -> None:
        self.senders: dict[str, None] = {}  # that are to be asked for
        self.keys: dict[str, None] = {}  # so, too
        self.parked: list[tuple[Source, list[Any]]] = []
        self.waiters: list[_Waiter] = []
        self.size_bytes = 0


class SessionStates:
    """The states of one partition's sessions."""

    def __init__(self, limits: Limits, covers_upto: int = 0) -> None:
        self.hot: OrderedDict[str, SessionState] = OrderedDict()  # the longest unused first
        self.awaited: dict[str, _Awaited] = {}
        self.to_ask: dict[str, None] = {}  # those of the awaited that no store was asked for yet
        self.crowded: set[str] = set()  # sessions with more senders than may stay
        self.full_of_keys: set[str] = set()  # sessions with more keys than may stay
        self.covers_upto = covers_upto
        self.parked_bytes = 0
        self._limits = limits
        self._senders = 0  # in all states together
        self._keys = 0  # so, too
        self._asked: dict[str, int] = {}  # session -> how many names its question has
        self._asked_names = 0

    # ------------------------------------------------------------------ what is missed

    def park(
        self, session: str, sender_id: str, source: Source, item: list[Any], size_bytes: int, keys: Iterable[str | None] = ()
    ) -> None:
        """`item` waits until the session is looked up, with this sender and these keys."""
        awaited = self._await(session)
        state = self.hot.get(session)
        if state is None or sender_id not in state.last_n:
            awaited.senders[sender_id] = None
        known = state.keys or () if state is not None else ()
        awaited.keys.update((key, None) for key in keys if key is not None and key not in known)
        awaited.parked.append((source, item))
        awaited.size_bytes += size_bytes
        self.parked_bytes += size_bytes

    def want(self, waiter: Any, sessions: list[str]) -> list[Loaded]:
        """Tell `waiter` the last readable seq of each, at once if all are here."""
        missing = [session for session in dict.fromkeys(sessions) if session not in self.hot]
        one = _Waiter(waiter, sessions)
        if not missing:
            return [self._loaded(one)]
        for session in missing:
            self._await(session).waiters.append(one)
        one.missing = len(missing)
        one.held = [self.hot[session] for session in sessions if session in self.hot]
        for state in one.held:
            state.held += 1
        return []

    def _await(self, session: str) -> _Awaited:
        awaited = self.awaited.get(session)
        if awaited is None:
            awaited = self.awaited[session] = _Awaited()
            self.to_ask[session] = None
        return awaited

    def ask(self) -> list[LookUp]:
        """What a store is to be asked for now, as far as there is room for more."""
        room = self._limits.states_names_max - self._asked_names
        asked: list[Question] = []
        while self.to_ask and room > 1:
            session = next(iter(self.to_ask))
            del self.to_ask[session]
            awaited = self.awaited[session]
            senders, keys = [*awaited.senders][: room - 1], [*awaited.keys]  # whoever is left out is missed again
            if keys:
                keys = keys[: max(room - 1 - len(senders), room // 2)]
                senders = senders[: room - 1 - len(keys)]
            asked.append(Question(session, senders, keys))
            self._asked[session] = names = 1 + len(senders) + len(keys)
            room -= names
        self._asked_names = self._limits.states_names_max - room
        return [LookUp(self.covers_upto, asked)] if asked else []

    # ------------------------------------------------------------------ what is told

    def told(self, asked: list[Question], told: list[Told]) -> tuple[list[tuple[Source, list[Any]]], list[_Waiter]]:
        """A store has told these states: what was parked, in order, and who need not wait any more."""
        parked: list[tuple[Source, list[Any]]] = []
        ready: list[_Waiter] = []
        for (session, senders, keys), (last_seq, last_n, whole, told_keys, keys_whole) in zip(asked, told, strict=True):
            awaited = self._answered(session)
            state = self.hot.get(session)
            if state is None:
                state = self.hot[session] = SessionState(last_seq, dict(last_n), whole, keys_whole)
                self._senders += len(last_n)
                for key, known in told_keys.items():
                    self.note_key(session, state, key, known)
            elif keys_whole and not state.keys_whole:  # what this state knows more of was never let go
                state.keys_whole = True
                for key, known in told_keys.items():
                    if key not in (state.keys or ()):
                        self.note_key(session, state, key, known)
            for key in keys:
                if state.keys is None or key not in state.keys:
                    self.note_key(session, state, key, told_keys.get(key, NO_MESSAGE))
            for sender_id in senders:
                if sender_id not in state.last_n:
                    state.last_n[sender_id] = last_n.get(sender_id, 0)
                    self._senders += 1
            if len(state.last_n) > self._limits.session_senders_hot_max:
                self.crowded.add(session)
            parked += awaited.parked
            for one in awaited.waiters:
                if not one.over:
                    one.missing -= 1
                    one.held.append(state)
                    state.held += 1
                    if not one.missing:
                        ready.append(one)
        return parked, ready

    def not_told(self, asked: list[Question]) -> tuple[list[tuple[Source, list[Any]]], list[Loaded]]:
        """No store answers: what was parked, and the waiters whose wish cannot be met."""
        parked: list[tuple[Source, list[Any]]] = []
        failed: list[Loaded] = []
        for session, _, _ in asked:
            awaited = self._answered(session)
            parked += awaited.parked
            for one in awaited.waiters:
                if not one.over:
                    self._release(one)
                    failed.append(Loaded(one.waiter, None))
        return parked, failed

    def loaded(self, ready: Iterable[_Waiter]) -> list[Loaded]:
        """The answers for those whose sessions are all here."""
        return [self._loaded(one) for one in ready]

    def _answered(self, session: str) -> _Awaited:
        self._asked_names -= self._asked.pop(session)
        awaited = self.awaited.pop(session)
        self.parked_bytes -= awaited.size_bytes
        return awaited

    def _loaded(self, one: _Waiter) -> Loaded:
        heads: list[int] = []
        for session in one.sessions:
            heads.append(self.hot[session].committed_seq)
            self.hot.move_to_end(session)
        self._release(one)
        return Loaded(one.waiter, heads)

    def _release(self, one: _Waiter) -> None:
        one.over = True
        for state in one.held:
            state.held -= 1

    # ------------------------------------------------------------------ keys

    @staticmethod
    def lacks(state: SessionState, keys: Iterable[str | None]) -> bool:
        """Whether a store has to be asked for one of these keys."""
        known = state.keys or ()
        return not state.keys_whole and any(key is not None and key not in known for key in keys)

    def note_key(self, session: str, state: SessionState, key: str, known: KnownKey) -> None:
        """The session has a message with this key now; or none, as a store says."""
        if state.keys is None:
            state.keys = {}
        if state.keys.pop(key, None) is None:
            self._keys += 1
        state.keys[key] = known  # the last one: it is known for the shortest time
        if len(state.keys) > self._limits.session_keys_hot_max:
            self.full_of_keys.add(session)

    def drop_keys(self, committed_records: int, committed_upto: int, over_before_us: int) -> None:
        """In each session that is full of keys the longest known half goes, but for those whose records are not committed, and
        for sessions that are being looked up: what comes is joined with what is here."""
        most = self._limits.session_keys_hot_max
        for session in sorted(self.full_of_keys):
            state = self.hot.get(session)
            known = state.keys if state is not None else None
            if state is None or known is None:
                self.full_of_keys.discard(session)
                continue
            if session in self.awaited:
                continue
            may_go = (key for key, one in known.items() if one.record <= committed_records)
            for key in [*islice(may_go, max(0, len(known) - (most + 1) // 2))]:
                one = known.pop(key)
                self._keys -= 1
                if one.seq and one.stored_at_us > over_before_us:
                    state.keys_whole = False
                    self.covers_upto = max(committed_upto, self.covers_upto)
            if len(known) <= most:
                self.full_of_keys.discard(session)

    # ------------------------------------------------------------------ what goes

    def add_sender(self, session: str, sender_id: str) -> None:
        """A sender that is new in a session of which all are known."""
        state = self.hot[session]
        require(state.whole and sender_id not in state.last_n, "a sender is new once, where all senders are known")
        state.last_n[sender_id] = 0
        self._senders += 1
        if len(state.last_n) > self._limits.session_senders_hot_max:
            self.crowded.add(session)

    def drop_senders(self, busy: set[tuple[str, str]], committed_upto: int) -> None:
        """In each crowded session the longest known half of the senders goes, but for the `busy` ones, which have records that
        are not committed."""
        most = self._limits.session_senders_hot_max
        for session in sorted(self.crowded):
            state = self.hot.get(session)
            old: list[str] = []
            if state is not None:
                idle = (sender_id for sender_id in state.last_n if (session, sender_id) not in busy)
                old = [*islice(idle, max(0, len(state.last_n) - (most + 1) // 2))]
                for sender_id in old:
                    del state.last_n[sender_id]
                self._senders -= len(old)
            if old and state is not None:
                state.whole = False
                self.covers_upto = committed_upto
            if state is None or len(state.last_n) <= most:
                self.crowded.discard(session)

    @property
    def too_many(self) -> bool:
        """Whether some states should go."""
        limits = self._limits
        return (
            len(self.hot) > limits.sessions_hot_max
            or self._senders > limits.senders_hot_max
            or self._keys > limits.keys_hot_max
        )

    def evict(self, committed_records: int, committed_upto: int) -> None:
        """Some sixteenth more than must go, so that stores need not be asked for ever newer frames (rule 3)."""
        limits, hot = self._limits, self.hot
        sessions = limits.sessions_hot_max - limits.sessions_hot_max // 16
        senders = limits.senders_hot_max - limits.senders_hot_max // 16
        keys = limits.keys_hot_max - limits.keys_hot_max // 16
        passes = min(PINNED_AT_ONCE, len(hot))
        while passes and (len(hot) > sessions or self._senders > senders or self._keys > keys):
            session, state = hot.popitem(last=False)
            if state.last_record > committed_records or state.held or session in self.awaited:
                hot[session] = state
                passes -= 1
                continue
            self._senders -= len(state.last_n)
            self._keys -= len(state.keys or ())
            if state.last_record:  # otherwise all of it was there when the state was told
                self.covers_upto = committed_upto
