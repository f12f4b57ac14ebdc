"""Bugs to plant: each takes one rule out of the product, and the simulation must notice.

Owns, for each bug, what is replaced and within how many seeds an anomaly must show. A net that no bug was ever caught in proves
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from simulated.story import STORES
from trilogue.actors.protocol.log import LogWriter, SendFrames
from trilogue.actors.protocol.sequencer import Sequencer
from trilogue.actors.protocol.store import Fence, StoreState, Tell, WriteFence
from trilogue.actors.protocol.submissions import Answered, Recall, Refusal, Refused
from trilogue.actors.protocol.takeover import Takeover
from trilogue.actors.protocol.vocabulary import Code, Say

Patch = tuple[type, str, Any]


class Bug(NamedTuple):
    """`patches` are put in place; an anomaly must show within the first `seeds` seeds of the profile."""

    patches: list[Patch]
    profile: str
    seeds: int


# ---------------------------------------------------------------------- stores


def _fence_at_a_tie(self: Any, event: Any) -> list[Any]:
    state = self.partition(event.partition)
    if event.epoch < state.fence.epoch:
        return [Tell(event.source, [Say.REPLY, event.request_id, int(Code.DEPOSED), "too low"], False)]
    state.fence = Fence(event.epoch, event.writer, event.address)
    reply = [Say.REPLY, event.request_id, 0, list(state.answer())]
    return [WriteFence(event.partition, state.fence), Tell(event.source, reply, True)]


def _without_sync(say: Say) -> Callable[[Any, Any], list[Any]]:
    handle = StoreState.handle

    def early(self: Any, event: Any) -> list[Any]:
        effects: list[Any] = list(handle(self, event))
        return [e._replace(after_sync=False) if isinstance(e, Tell) and e.message[0] == say else e for e in effects]

    return early


def _volatile_fence(self: Any, event: Any, fence: Any = StoreState._fence) -> list[Any]:
    return [effect for effect in fence(self, event) if not isinstance(effect, WriteFence)]


def _any_writer(self: Any, event: Any, append: Any = StoreState._append) -> list[Any]:
    state = self.partition(event.partition)
    known = state.fence
    state.fence = Fence(event.epoch, event.writer, "")
    effects: list[Any] = append(self, event)
    state.fence = known
    return effects


# ---------------------------------------------------------------------- the log and its takeover


def _two_of_three(self: Any, store: str, epoch: int, upto: int, _crc: int) -> int:
    if epoch != self.epoch or upto <= self._stored[store]:
        return 0
    self._stored[store] = upto
    upto = sorted(self._stored.values())[1]
    if upto <= self.committed:
        return 0
    while self.committed < upto:
        self._committed_crc = self._frames.popleft().crc
        self.committed += 1
    self.has_room = True
    return upto


def _any_incarnation_again(self: Any, event: Any, back: Any = LogWriter._on_back) -> list[Any]:
    effects: list[Any] = back(self, event._replace(identity=self._members[event.store]))
    return effects


def _any_incarnation(self: Any, store: str, identity: Any, up: Any = Takeover._on_up) -> list[Any]:
    effects: list[Any] = up(self, store, self._identities.get(store, identity))
    return effects


def _nothing_again(self: Any, event: Any, back: Any = LogWriter._on_back) -> list[Any]:
    return [effect for effect in back(self, event) if not isinstance(effect, SendFrames)]


def _decide_by(key: Callable[[Any], Any], only_certain: bool = False) -> Callable[[Any], list[Any]]:
    """A takeover that chooses its tail in another way: what is no evidence is shown as an empty store to the product's rule."""
    decide = Takeover._decide

    def choose(self: Any) -> list[Any]:
        real = self._answers
        pool = {s: a for s, a in real.items() if a.certain or not only_certain} or real
        chosen = max(pool, key=lambda store: key(pool[store]))

        class Ranked(dict[str, Any]):
            """Iterates over the chosen store alone while the maximum is sought, and is the whole of the answers after that."""

            first = True

            def __iter__(self) -> Any:
                if self.first:
                    self.first = False
                    return iter([chosen])
                return super().__iter__()

        self._answers = Ranked(real)
        return decide(self)

    return choose


def _end(answer: Any) -> tuple[int, int]:
    return (answer.tail[-1].epoch, answer.tail[-1].frame_index) if answer.tail else (0, 0)


def _shortest(answer: Any) -> tuple[int, int]:
    epoch, index = _end(answer)
    return (-epoch, -index)


def _two_stores(self: Any, *, stores: tuple[str, ...], init: Any = Takeover.__init__, **rest: Any) -> None:
    init(self, stores=stores[:2], **rest)


def _only_members(handle: Any) -> Any:
    return lambda self, event: handle(self, event) if getattr(event, "store", STORES[0]) in STORES[:2] else []


# ---------------------------------------------------------------------- the sequencer


def _no_dedupe_after_takeover(
    self: Any, session: str, last_seq: int, last_n: Any, restore: Any = Sequencer.restore_session
) -> None:
    restore(self, session, last_seq, {})


def _retry_as_new(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    for session, sender_id, first_n, _, _ in runs:
        state = self.sessions.get(session)
        if state is not None and first_n <= state.last_n.get(sender_id, 0):
            state.last_n[sender_id] = first_n - 1
    effects: list[Any] = submit(self, source, runs, now_us)
    return effects


def _refuse_before_dedupe(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    effects: list[Any] = []
    for run in runs:
        session, sender_id, first_n, _, bodies = run
        state = self.sessions.get(session)
        expected = (state.last_n.get(sender_id, 0) if state is not None else 0) + 1
        if first_n == expected:
            effects += submit(self, source, [run], now_us)
        else:
            refusal = Refusal(session, sender_id, first_n, len(bodies), Code.OUT_OF_ORDER, "", expected)
            effects.append(Refused(source, [refusal]))
    return effects


def _holes_in_n(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    for session, sender_id, first_n, _, _ in runs:
        state = self.sessions.get(session)
        if state is not None and first_n > state.last_n.get(sender_id, 0) + 1:
            state.last_n[sender_id] = first_n - 1
    effects: list[Any] = submit(self, source, runs, now_us)
    return effects


def _ack_at_once(self: Any, source: Any, runs: list[Any], now_us: int, submit: Any = Sequencer.submit) -> list[Any]:
    before = len(self._waiting)
    effects: list[Any] = submit(self, source, runs, now_us)
    acks = [(r[1], r[2], r[3], len(r[7]), r[4], False) for r in self._waiting[before:]]
    return effects + ([Answered(source, acks)] if acks else [])


def _retry_answered_early(self: Any, retry: Any) -> list[Any]:
    return [Recall(retry)]


def _seq_starts_again(self: Any, session: str, last_seq: int, last_n: Any, restore: Any = Sequencer.restore_session) -> None:
    restore(self, session, 0, last_n)


BUGS: dict[str, Bug] = {
    "a fence is accepted at a tie": Bug([(StoreState, "_fence", _fence_at_a_tie)], "zombies", 100),
    "a fence is answered before its sync": Bug([(StoreState, "handle", _without_sync(Say.REPLY))], "zombies", 100),
    "a fence is never written": Bug([(StoreState, "_fence", _volatile_fence)], "zombies", 100),
    "a yes leaves before its sync": Bug([(StoreState, "handle", _without_sync(Say.STORED))], "storms", 100),
    "a store obeys any writer": Bug([(StoreState, "_append", _any_writer)], "mixed", 50),
    "two of three are enough to commit": Bug([(LogWriter, "stored", _two_of_three)], "mixed", 20),
    "an incarnation is not looked at": Bug(
        [(LogWriter, "_on_back", _any_incarnation_again), (Takeover, "_on_up", _any_incarnation)], "disks", 20
    ),
    "a member that is back gets nothing again": Bug([(LogWriter, "_on_back", _nothing_again)], "storms", 20),
    "two of three are enough to take over": Bug(
        [
            (Takeover, "__init__", _two_stores),
            (Takeover, "handle", _only_members(Takeover.handle)),
            (LogWriter, "handle", _only_members(LogWriter.handle)),
        ],
        "mixed",
        20,
    ),
    "the shortest tail is chosen": Bug([(Takeover, "_decide", _decide_by(_shortest))], "disks", 20),
    "only stores that are certain are evidence": Bug(
        [(Takeover, "_decide", _decide_by(_end, only_certain=True))], "disks", 100
    ),
    "dedupe is in memory only": Bug([(Sequencer, "restore_session", _no_dedupe_after_takeover)], "mixed", 20),
    "seqs start again after a takeover": Bug([(Sequencer, "restore_session", _seq_starts_again)], "mixed", 20),
    "a retry gets a new seq": Bug([(Sequencer, "submit", _retry_as_new)], "mixed", 20),
    "a refusal comes before dedupe": Bug([(Sequencer, "submit", _refuse_before_dedupe)], "mixed", 20),
    "a sender's numbers may have holes": Bug([(Sequencer, "submit", _holes_in_n)], "storms", 50),
    "an ack leaves before the commit": Bug([(Sequencer, "submit", _ack_at_once)], "mixed", 20),
    "a retry is answered before its original is committed": Bug([(Sequencer, "_retry", _retry_answered_early)], "mixed", 20),
}

CAUGHT_BY_THE_JUDGE_ALONE = ["a fence is accepted at a tie", "a fence is never written", "seqs start again after a takeover"]
"""Bugs that the product's own invariants meet first, and that the judge finds without them, too."""
