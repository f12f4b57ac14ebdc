"""Which sessions' states are in memory, and how the others come back (design §8, §9): a bounded cache, refilled from a store.

Owns the counters of each *hot* session, who waits for a *cold* one, and which goes first. It must not know how runs are
numbered or what a frame holds: it is told how far records are committed. Rules:

1. What is not here is not known: that a session is new, or a sender in it, is a store's word. Only of a `whole` state all
   senders are here, so another one is new.
2. A state goes only when all records of its session are committed, and nobody waits for it: the longest unused first. Of a
   session's senders the longest known go first, and the state is not whole from then on.
3. A store is asked for frames up to `covers_upto`: all of those of any session or sender that is not here.
4. Whatever is asked of a session that is being looked up waits behind what was asked before.
5. Of a session that is here an answer is believed for the senders that were asked for, which are not here: of the others this
   state knows more.
6. At most `states_names_max` names are being asked for at any time. What is missed meanwhile is asked for together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.submissions import Loaded, LookUp, Source, Told

PINNED_AT_ONCE = 64
"""How many that cannot go are passed over before the search for one that can is put off."""


class SessionState:
    """One session's counters: `last_seq` was given out, `committed_seq` may be read."""

    __slots__ = ("committed_seq", "held", "last_n", "last_record", "last_seq", "whole")

    def __init__(self, last_seq: int, last_n: dict[str, int], whole: bool) -> None:
        self.last_seq = self.committed_seq = last_seq
        self.last_n = last_n
        self.whole = whole
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

    __slots__ = ("parked", "senders", "size_bytes", "waiters")

    def __init__(self) -> None:
        self.senders: dict[str, None] = {}  # that are to be asked for
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
        self.covers_upto = covers_upto
        self.parked_bytes = 0
        self._limits = limits
        self._senders = 0  # in all states together
        self._asked: dict[str, int] = {}  # session -> how many names its question has
        self._asked_names = 0

    # ------------------------------------------------------------------ what is missed

    def park(self, session: str, sender_id: str, source: Source, item: list[Any], size_bytes: int) -> None:
        """`item` waits until the session is looked up, with this sender."""
        awaited = self._await(session)
        awaited.senders[sender_id] = None
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
        asked: list[tuple[str, list[str]]] = []
        while self.to_ask and room > 1:
            session = next(iter(self.to_ask))
            del self.to_ask[session]
            senders = [*self.awaited[session].senders][: room - 1]  # whoever is left out is missed again
            asked.append((session, senders))
            self._asked[session] = 1 + len(senders)
            room -= 1 + len(senders)
        self._asked_names = self._limits.states_names_max - room
        return [LookUp(self.covers_upto, asked)] if asked else []

    # ------------------------------------------------------------------ what is told

    def told(
        self, asked: list[tuple[str, list[str]]], told: list[Told]
    ) -> tuple[list[tuple[Source, list[Any]]], list[_Waiter]]:
        """A store has told these states: what was parked, in order, and who need not wait any more."""
        parked: list[tuple[Source, list[Any]]] = []
        ready: list[_Waiter] = []
        for (session, senders), (last_seq, last_n, whole) in zip(asked, told, strict=True):
            awaited = self._answered(session)
            state = self.hot.get(session)
            if state is None:
                state = self.hot[session] = SessionState(last_seq, dict(last_n), whole)
                self._senders += len(last_n)
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

    def not_told(self, asked: list[tuple[str, list[str]]]) -> tuple[list[tuple[Source, list[Any]]], list[Loaded]]:
        """No store answers: what was parked, and the waiters whose wish cannot be met."""
        parked: list[tuple[Source, list[Any]]] = []
        failed: list[Loaded] = []
        for session, _ in asked:
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
        return len(self.hot) > limits.sessions_hot_max or self._senders > limits.senders_hot_max

    def evict(self, committed_records: int, committed_upto: int) -> None:
        """Some sixteenth more than must go, so that stores need not be asked for ever newer frames (rule 3)."""
        limits, hot = self._limits, self.hot
        sessions = limits.sessions_hot_max - limits.sessions_hot_max // 16
        senders = limits.senders_hot_max - limits.senders_hot_max // 16
        passes = min(PINNED_AT_ONCE, len(hot))
        while passes and (len(hot) > sessions or self._senders > senders):
            session, state = hot.popitem(last=False)
            if state.last_record > committed_records or state.held or session in self.awaited:
                hot[session] = state
                passes -= 1
                continue
            self._senders -= len(state.last_n)
            if state.last_record:  # otherwise all of it was there when the state was told
                self.covers_upto = committed_upto
