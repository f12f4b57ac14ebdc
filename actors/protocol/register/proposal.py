"""One operation on the register, by one proposer: CASPaxos, rounds until it is decided (design §7).

Owns what is asked of the acceptors, and what their answers mean. It must not know time, connections or disks: whoever runs
it carries out the effects, gives every ask one answer or none, and calls `start`, again after each `TryAgain`. Rules:

1. A round asks for promises under a new ballot, takes the accepted value of the highest ballot that a majority tells, and has
   a majority accept either that value again or the one that the operation makes of it. Only a majority's yes is an outcome.
2. Silence is no answer: a round without a majority is followed by another, until there is an outcome. It is never "no".
3. A compare-and-set that finds its own data, at the version that it wanted to make, is done. One that finds another version
   says `NotInForce`, and `tried` once it ever asked for its data to be accepted: then it may have been in force for a while.
   So data must differ between proposers: it names its writer.
4. A value that a whole majority holds under one ballot is in force as it is. Reading looks first, with no ballot at all
   (nothing is written, nobody is disturbed), and makes a round only when a look does not show that.
5. A value marked as moved is the last one under its charter: the operation goes on under the next, whose number and
   acceptors it reads under the old one, in `CHARTER_KEY`.
6. A key that is empty under charter v > 1 may have a value under v - 1. It is marked as moved there first, absent or not;
   what was marked is the value from which charter v goes on.
7. The first charter of a later era begins with what a rescue puts into it. A key that is empty there was not rescued yet: only
   `Restore` may fill it, everybody else tries again.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.register.charter import CHARTER_KEY, Charter, Charters, decode_charter, is_first
from trilogue.actors.protocol.register.votes import ABSENT, NO_BALLOT, Ballot, Ballots, Value, Vote


class Read(NamedTuple):
    """What is there?"""


class CompareAndSet(NamedTuple):
    """Set `data` if the version in force is `version` (0: the key is absent)."""

    version: int
    data: bytes


class Restore(NamedTuple):
    """Put `data` in as `version` if the key is empty since a rescue began. What is there already stays: `NotInForce`."""

    version: int
    data: bytes


class Found(NamedTuple):
    """What was in force at some moment of the operation; None: the key is absent, and `version` is 0."""

    version: int
    data: bytes | None


class Set(NamedTuple):
    """The data is in force, or was, as this version."""

    version: int


class NotInForce(NamedTuple):
    """Another version is in force. If `tried`, the operation's own data may have been in force before it; otherwise never."""

    version: int
    data: bytes | None
    tried: bool


class AskPrepare(NamedTuple):
    """Ask every acceptor of the charter for its promise; each answer comes back as `Voted`, or `Failed`, with this `ask`."""

    ask: int
    charter: Charter
    key: str
    ballot: Ballot


class AskAccept(NamedTuple):
    """Ask every acceptor of the charter to accept; answered like `AskPrepare`."""

    ask: int
    charter: Charter
    key: str
    ballot: Ballot
    value: Value


class TryAgain(NamedTuple):
    """This round came to nothing; call `start` after a while. `conflict`: another proposer was in the way, not silence."""

    conflict: bool


class Lacking(NamedTuple):
    """Find out the charter of this number, let the `Charters` learn it, and call `start`."""

    number: int


class Settled(NamedTuple):
    """The operation is over."""

    outcome: Outcome


class Voted(NamedTuple):
    """The acceptor at this name answered."""

    ask: int
    name: str
    vote: Vote


class Failed(NamedTuple):
    """The acceptor at this name cannot be asked, or said nothing in time; it may have done what it was asked."""

    ask: int
    name: str


Operation = Read | CompareAndSet | Restore
Outcome = Found | Set | NotInForce
Effect = AskPrepare | AskAccept | TryAgain | Lacking | Settled
Event = Voted | Failed


class _Phase(Enum):
    IDLE = "between rounds"
    LOOK = "looking"
    PREPARE = "asking for promises"
    ACCEPT = "asking to accept"
    OVER = "over"


class Proposal:
    """One operation. `pinned`: the charter under which it stays, for `CHARTER_KEY` only."""

    def __init__(self, key: str, operation: Operation, charters: Charters, ballots: Ballots, pinned: int = 0) -> None:
        require((key == CHARTER_KEY) == (pinned > 0), "only the next charter is asked for under a charter of one's choice")
        require(charters.newest is not None, "a register that was not founded")
        self._key, self._operation, self._charters, self._ballots = key, operation, charters, ballots
        self._pinned = pinned
        self._ask = 0
        self._phase = _Phase.IDLE
        self._tried = False
        self._carried: tuple[int, Value] | None = None  # (charter, the value that it goes on from)
        self._lookup: Proposal | None = None
        self._goal = pinned  # the charter under which the operation takes place; below it, keys are only marked
        self._votes: dict[str, Vote] = {}
        self._failed: set[str] = set()
        self._then: Outcome | None = None
        self._enter(pinned)

    def start(self) -> list[Effect]:
        """Begin a round. What was asked before is void: an answer to it is not looked at."""
        require(self._phase is not _Phase.OVER, "an operation that is over does not begin again")
        if self._lookup is not None:
            return self._from_lookup(self._lookup.start())
        newest = self._charters.newest
        assert newest is not None
        if not self._pinned and newest.number > self._goal:
            self._goal = newest.number
            self._enter(self._goal)
        charter = self._charters.get(self._here)
        if charter is None:
            self._phase = _Phase.IDLE
            return [Lacking(self._here)]
        self._charter = charter
        self._phase = _Phase.LOOK if self._looks else _Phase.PREPARE
        self._ballot = NO_BALLOT if self._looks else self._ballots.draw()
        return [AskPrepare(self._new_ask(), charter, self._key, self._ballot)]

    def handle(self, event: Event) -> list[Effect]:
        """Decide on one answer."""
        if self._lookup is not None:
            return self._from_lookup(self._lookup.handle(event))
        if event.ask != self._ask or self._phase in (_Phase.IDLE, _Phase.OVER) or event.name not in self._charter.acceptors:
            return []
        if isinstance(event, Voted):
            self._ballots.seen(event.vote.promised)
            if event.vote.ok or self._phase is _Phase.LOOK:
                self._votes[event.name] = event.vote
                if len(self._votes) == self._charter.majority:
                    return self._conclude() if self._phase is _Phase.ACCEPT else self._decide()
                return []
            self._conflict = True
        if event.name not in self._votes:
            self._failed.add(event.name)
        if len(self._charter.acceptors) - len(self._failed) < self._charter.majority:
            return self._again()
        return []

    # ------------------------------------------------------------------ rounds

    def _enter(self, number: int) -> None:
        self._here = number
        self._looks = isinstance(self._operation, Read) or number < self._goal

    def _new_ask(self) -> int:
        self._ask += 1
        self._votes, self._failed, self._conflict = {}, set(), False
        return self._ask

    def _again(self) -> list[Effect]:
        self._phase = _Phase.IDLE
        return [TryAgain(self._conflict)]

    def _decide(self) -> list[Effect]:
        """A majority told what it accepted: the highest of it is what a value must follow (rule 1)."""
        top = max(self._votes.values(), key=lambda vote: vote.accepted)
        in_force = all(vote.accepted == top.accepted for vote in self._votes.values())
        value = top.value
        if value is None:
            if self._here == 1 or self._pinned:
                value = ABSENT
            elif is_first(self._here):
                if not isinstance(self._operation, Restore):
                    return self._again()
                value, in_force = Value(self._operation.version, self._operation.data, False), False
            elif self._carried is not None and self._carried[0] == self._here:
                value, in_force = self._carried[1], False
            else:
                self._enter(self._here - 1)
                return self.start()
        if value.moved or self._here < self._goal:
            return self._propose(value, _marked(value), None, in_force)
        return self._propose(value, *self._operate(value), in_force)

    def _operate(self, value: Value) -> tuple[Value, Outcome]:
        """What the operation makes of the value in force, and its outcome once that is accepted."""
        data = value.data if value.version else None
        if isinstance(self._operation, Read):
            return value, Found(value.version, data)
        restores = isinstance(self._operation, Restore)
        wanted = Value(self._operation.version + (not restores), self._operation.data, False)
        if value == wanted:
            return value, Set(value.version)
        if value.version == self._operation.version and not restores:
            return wanted, Set(wanted.version)
        return value, self._not_in_force(value.version, data)

    def _not_in_force(self, version: int, data: bytes | None) -> NotInForce:
        return NotInForce(version, data, self._tried)

    def _propose(self, old: Value, new: Value, then: Outcome | None, in_force: bool) -> list[Effect]:
        """Have `new` accepted, then come to `then` (None: follow to the next charter)."""
        self._value, self._then = new, then
        if new == old and in_force:
            return self._conclude()
        if self._phase is _Phase.LOOK:
            self._looks = False
            return self.start()
        self._tried = self._tried or isinstance(then, Set)
        self._phase = _Phase.ACCEPT
        return [AskAccept(self._new_ask(), self._charter, self._key, self._ballot, new)]

    def _conclude(self) -> list[Effect]:
        """`_value` is in force."""
        if self._then is None:
            return self._follow()
        self._phase = _Phase.OVER
        return [Settled(self._then)]

    # ------------------------------------------------------------------ from charter to charter

    def _follow(self) -> list[Effect]:
        """The key moved: go on under the next charter, from the marked value (rules 5 and 6)."""
        number = self._here + 1
        self._carried = (number, self._value._replace(moved=False))
        self._goal = max(self._goal, number)
        if self._charters.get(number) is None:
            self._phase = _Phase.IDLE
            self._lookup = Proposal(CHARTER_KEY, Read(), self._charters, self._ballots, pinned=self._here)
            self._lookup._ask = self._ask  # asks stay unique within the operation
            return self._from_lookup(self._lookup.start())
        self._enter(number)
        return self.start()

    def _from_lookup(self, effects: list[Effect]) -> list[Effect]:
        assert self._lookup is not None
        match effects:
            case [Settled(Found(_, bytes(data)))]:
                charter = decode_charter(data)
                require(charter.number == self._here + 1, "charter {} follows {}", charter.number, self._here)
                self._charters.learn(charter)
                self._ask = self._lookup._ask
                self._lookup = None
                self._enter(charter.number)
                return self.start()
            case [Settled()]:
                require(False, "a key moved away from charter {}, and no charter follows it", self._here)
        return effects


def _marked(value: Value) -> Value:
    """The same value, as the last one under its charter."""
    return value._replace(moved=True)
