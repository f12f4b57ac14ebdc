"""Reading and changing the register over connections that are there anyway (design §7).

Owns the carrying out of ``protocol.register.proposal``: who is asked, for how long, when a round is begun again; how the
charter is found, founded and changed. It must not know what the values mean. Rules:

1. A round asks all acceptors at once and goes on with the first majority. An acceptor without a connection is not waited for.
2. A round that came to nothing is begun again after a random back-off, until the caller's time is over. Then `Unavailable`
   says what is missing, and that the change may have been made. It is never "no".
3. Charter 1 is founded when every founder says that it knows none, and no other store that answers knows one; it is used when
   every founder has it on disk.
4. An acceptor that does not know its charter yet is told (FOUND) and asked once more.
5. A charter is changed in an order that anyone can take up: every key in use is moved to the present charter, the next one is
   decided, its acceptors are told, every key in use is moved to it.
6. A charter of a later era is adopted only by a rescue, and each key that it starts with is put in by `restore` (``charter``,
   rule 5).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.register.charter import (
    CHARTER_KEY,
    Charter,
    Charters,
    charter_from,
    decode_charter,
    encode_charter,
    following,
)
from trilogue.actors.protocol.register.proposal import (
    AskAccept,
    AskPrepare,
    CompareAndSet,
    Event,
    Failed,
    Found,
    Lacking,
    NotInForce,
    Operation,
    Outcome,
    Proposal,
    Read,
    Restore,
    Set,
    Settled,
    TryAgain,
    Voted,
)
from trilogue.actors.protocol.register.votes import Ballots, Vote, check_key, vote_from_accept, vote_from_prepare
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.pump import spawn
from trilogue.actors.wire import Connection, Refused

ConnectionOf = Callable[[str], Connection | None]
Done = TypeVar("Done")


class Survey(NamedTuple):
    """What the stores that answered say: the newest charter known here, each one's acceptor, and who knows an older charter."""

    charter: Charter | None
    acceptors: dict[str, str]
    behind: tuple[str, ...]


class RegisterClient:
    """The register as one process sees it. Any number of operations may run at the same time."""

    def __init__(
        self,
        founders: Sequence[str],
        connection_of: ConnectionOf,
        limits: Limits = DEFAULT_LIMITS,
        *,
        others: Callable[[], Iterable[str]] = tuple,
        chance: random.Random | None = None,
    ) -> None:
        """`founders`: who founds charter 1 (`founders_of`). `others`: further stores that may know a charter. A process start
        makes its own: the ballots carry a new name."""
        require(founders, "a register has founders")
        self._founders, self._connection_of, self._limits, self._others = tuple(founders), connection_of, limits, others
        self._chance = chance or random.Random()
        self._charters = Charters()
        self._ballots = Ballots(uuid.uuid4().hex)
        self._problems: dict[str, str] = {}
        self._numbers: dict[str, int] = {}  # the newest charter that each store is known to know

    # ------------------------------------------------------------------ operations

    async def read(self, key: str, *, timeout_ms: int | None = None) -> Found:
        """(version, data) of `key`; (0, None) when it is absent. Raises `Unavailable`."""
        outcome = await self._bounded(f"read {key!r}", self._operate(check_key(key), Read()), timeout_ms)
        assert isinstance(outcome, Found)
        return outcome

    async def compare_and_set(self, key: str, version: int, data: bytes, *, timeout_ms: int | None = None) -> Set | NotInForce:
        """Set `key` if its version is `version` (0: absent). `data` names its writer: two proposers never propose the same.

        Raises `Unavailable` when the time is over: the change may have been made, or may still be; read again.
        """
        if len(data) > self._limits.register_data_bytes_max:
            raise ProtocolError(f"{len(data)} bytes for the register: {self._limits.register_data_bytes_max} at most")
        change = self._operate(check_key(key), CompareAndSet(version, data))
        outcome = await self._bounded(f"set {key!r}", change, timeout_ms)
        assert not isinstance(outcome, Found)
        return outcome

    async def charter(self, *, timeout_ms: int | None = None) -> Charter:
        """The newest charter that is known here; found, or founded, when none is. Raises `Unavailable`."""
        return await self._bounded("find its charter", self._known(), timeout_ms)

    async def survey(self) -> Survey:
        """Ask every store once which charter it knows. Founds nothing."""
        acceptors = await self._learn(self._everyone(), 0)
        newest = self._charters.newest
        behind = tuple(name for name in acceptors if newest is not None and self._numbers.get(name, 0) < newest.number)
        return Survey(newest, acceptors, behind)

    async def tell(self, charter: Charter, stores: Iterable[str]) -> frozenset[str]:
        """Tell these stores of a charter that was decided; who knows it now."""
        return frozenset(await self._of_each(stores, Say.FOUND, charter.number, charter.acceptors))

    async def settle(self, keys: Iterable[str], *, timeout_ms: int | None = None) -> None:
        """Finish the move of these keys to the present charter, if its mover did not. Raises `Unavailable`."""
        await self._bounded("move its keys", self._move_keys(tuple(map(check_key, keys))), timeout_ms)

    async def adopt(self, charter: Charter) -> None:
        """Go over to a charter that a rescue founds (rule 6): all its stores are told. Raises `Unavailable` if one is not."""
        told = await self.tell(charter, charter.acceptors)
        if missing := sorted(set(charter.acceptors) - told):
            reasons = ", ".join(f"{name} ({self._problems.get(name, 'not connected')})" for name in missing)
            raise Unavailable(f"the register's new charter could not be given to {reasons}: run it again")
        self._charters.learn(charter)

    async def restore(self, key: str, version: int, data: bytes, *, timeout_ms: int | None = None) -> Set | NotInForce:
        """Give `key` the value that a rescue found, unless it has one since. Raises `Unavailable`."""
        outcome = await self._bounded(f"restore {key!r}", self._operate(check_key(key), Restore(version, data)), timeout_ms)
        assert not isinstance(outcome, Found)
        return outcome

    async def move_charter(self, stores: Sequence[str], keys: Iterable[str], *, timeout_ms: int | None = None) -> Charter:
        """Make `stores` the register's keepers, one charter further, and move `keys` (all that are in use, absent ones too).

        Returns the charter that follows: another one than asked when someone else moved the register meanwhile; ask again then.
        Safe to repeat, and anyone may finish what another began. Raises `Unavailable`.
        """
        return await self._bounded("move the charter", self._move(tuple(stores), tuple(map(check_key, keys))), timeout_ms)

    async def _bounded(self, what: str, work: Coroutine[Any, Any, Done], timeout_ms: int | None) -> Done:
        try:
            async with asyncio.timeout((timeout_ms or self._limits.register_wait_ms) / 1000):
                return await work
        except TimeoutError:
            raise Unavailable(f"the register could not {what} in time: {self._missing()}") from None

    def _missing(self) -> str:
        charter = self._charters.newest
        names = sorted(charter.acceptors) if charter is not None else list(self._founders)
        needed = f"charter {charter.number} needs {charter.majority}" if charter is not None else "founding it needs all"
        away = [name for name in names if self._connection_of(name) is None]
        reasons = {**self._problems, **dict.fromkeys(away, "not connected")}
        lacking = ", ".join(f"{name} ({reason})" for name, reason in sorted(reasons.items())) or "none is missing: try again"
        return f"{needed} of {', '.join(names)}; missing: {lacking}; a change may have been made all the same: read again"

    # ------------------------------------------------------------------ carrying a proposal out

    async def _operate(self, key: str, operation: Operation, pinned: int = 0) -> Outcome:
        await self._known()
        proposal = Proposal(key, operation, self._charters, self._ballots, pinned)
        events: asyncio.Queue[Event] = asyncio.Queue()
        effects = proposal.start()
        fruitless = 0
        while True:
            for effect in effects:
                match effect:
                    case Settled(outcome):
                        return outcome
                    case TryAgain(conflict):
                        await self._back_off(fruitless, conflict)
                        fruitless += 1
                        effects = proposal.start()
                        break
                    case Lacking(number):
                        await self._find(number)
                        effects = proposal.start()
                        break
                    case AskPrepare() | AskAccept():
                        self._ask_all(effect, events)
            else:
                effects = proposal.handle(await events.get())

    def _ask_all(self, ask: AskPrepare | AskAccept, events: asyncio.Queue[Event]) -> None:
        for name in ask.charter.acceptors:
            connection = self._connection_of(name)
            if connection is None or connection.closed:
                events.put_nowait(Failed(ask.ask, name))
            else:
                spawn(self._ask(ask, name, connection, events), f"register: {type(ask).__name__} of {name}")

    async def _ask(self, ask: AskPrepare | AskAccept, name: str, connection: Connection, events: asyncio.Queue[Event]) -> None:
        """Exactly one event: a vote, or a failure."""
        event: Event = Failed(ask.ask, name)
        try:
            try:
                vote = await self._vote(ask, connection)
            except Refused as refusal:
                if refusal.code != Code.CANNOT_TELL:
                    raise
                await self._request(connection, Say.FOUND, ask.charter.number, ask.charter.acceptors)
                vote = await self._vote(ask, connection)
            event = Voted(ask.ask, name, vote)
            self._problems.pop(name, None)
        except (Unavailable, Refused, ProtocolError) as error:
            self._problems[name] = str(error)
        finally:
            events.put_nowait(event)

    async def _vote(self, ask: AskPrepare | AskAccept, connection: Connection) -> Vote:
        number, ballot = ask.charter.number, ask.ballot
        if isinstance(ask, AskPrepare):
            answer = await self._request(connection, Say.PREPARE, number, ask.key, *ballot)
            return vote_from_prepare(answer, self._limits.register_data_bytes_max)
        return vote_from_accept(await self._request(connection, Say.ACCEPT, number, ask.key, *ballot, list(ask.value)))

    async def _request(self, connection: Connection, say: Say, *items: Any) -> Any:
        return await connection.request(say, *items, timeout_ms=self._limits.register_round_ms)

    async def _back_off(self, fruitless: int, conflict: bool) -> None:
        """Wait a random time, longer after each fruitless round. Silence may mean that the charter has moved on: ask for it."""
        limits = self._limits
        bound = min(limits.register_backoff_longest_ms, limits.register_backoff_ms << min(fruitless + 1, 16))
        await asyncio.sleep(self._chance.uniform(0.2, 1) * bound / 1000)
        if not conflict:
            await self._learn(self._everyone(), 0)

    # ------------------------------------------------------------------ finding and founding the charter

    async def _known(self) -> Charter:
        """The newest known charter; asked for, and founded, until there is one."""
        fruitless = 0
        while (charter := self._charters.newest) is None:
            if not await self._find_or_found():
                await self._back_off(fruitless, conflict=True)
                fruitless += 1
        return charter

    async def _find(self, number: int) -> None:
        """Learn the charter of this number: some store that took part in it, or in the next one, knows it."""
        await self._learn(self._everyone(), number)
        if self._charters.get(number) is None:
            await asyncio.sleep(self._limits.register_backoff_longest_ms / 1000)

    def _everyone(self) -> list[str]:
        newest = self._charters.newest
        members = newest.acceptors if newest is not None else {}
        return list(dict.fromkeys([*members, *self._founders, *self._others()]))

    async def _learn(self, names: Iterable[str], number: int) -> dict[str, str]:
        """Ask for the charter `number` (0: the newest); learn what is told. Each answering store's acceptor by its name."""
        told = await self._of_each(names, Say.CHARTER, *([number] if number else []))
        acceptors: dict[str, str] = {}
        for name, answer in told.items():
            match answer:
                case [str(acceptor), 0, {}] if acceptor:
                    acceptors[name] = acceptor
                    known = 0
                case [str(acceptor), known, members] if acceptor:
                    acceptors[name] = acceptor
                    self._charters.learn(charter_from(known, members))
                case _:
                    self._problems[name] = "it answered CHARTER in an unknown shape"
                    continue
            if not number:
                self._numbers[name] = known
        return acceptors

    async def _of_each(self, names: Iterable[str], say: Say, *items: Any) -> dict[str, Any]:
        """What each store answered that did: nothing is said of the others."""
        connections = {name: c for name in names if (c := self._connection_of(name)) is not None and not c.closed}
        work = (self._request(connection, say, *items) for connection in connections.values())
        answers = await asyncio.gather(*work, return_exceptions=True)
        told: dict[str, Any] = {}
        for name, answer in zip(connections, answers, strict=True):
            if isinstance(answer, Unavailable | Refused):
                self._problems[name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                told[name] = answer
        return told

    async def _find_or_found(self) -> bool:
        """One attempt (rule 3)."""
        acceptors = await self._learn(self._everyone(), 0)
        if self._charters.newest is not None:
            return True
        founding = {name: acceptors[name] for name in self._founders if name in acceptors}
        if len(founding) < len(self._founders):
            return False
        charter = following(Charter(0, {}), founding)
        told = await self._of_each(self._founders, Say.FOUND, charter.number, charter.acceptors)
        return len(told) == len(self._founders) and self._charters.learn(charter)

    # ------------------------------------------------------------------ changing the charter

    async def _move(self, stores: tuple[str, ...], keys: tuple[str, ...]) -> Charter:
        """Rule 5."""
        await self._learn(self._everyone(), 0)
        present = await self._known()
        await self._move_keys(keys)
        wanted = await self._acceptors_of(stores, present)
        newest = self._charters.newest
        if newest is not None and (newest != present or wanted == present.acceptors):
            return newest
        change = CompareAndSet(0, encode_charter(following(present, wanted)))
        outcome = await self._operate(CHARTER_KEY, change, pinned=present.number)
        chosen = following(present, wanted)
        if isinstance(outcome, NotInForce):
            assert outcome.data is not None
            chosen = decode_charter(outcome.data)
        await self._tell(present, chosen)
        self._charters.learn(chosen)
        await self._move_keys(keys)
        return chosen

    async def _acceptors_of(self, stores: tuple[str, ...], present: Charter) -> dict[str, str]:
        """The present acceptor of each store, asked; a keeper that does not answer keeps its id."""
        fruitless = 0
        while True:
            found = {**present.acceptors, **await self._learn(stores, 0)}
            if all(name in found for name in stores):
                return {name: found[name] for name in stores}
            await self._back_off(fruitless, conflict=True)
            fruitless += 1

    async def _tell(self, present: Charter, chosen: Charter) -> None:
        """Both charters to all who keep either, until a majority of the new one has them. The others learn it when asked."""
        fruitless = 0
        names = list(dict.fromkeys([*chosen.acceptors, *present.acceptors]))
        while True:
            await self._of_each(names, Say.FOUND, present.number, present.acceptors)
            told = await self._of_each(names, Say.FOUND, chosen.number, chosen.acceptors)
            if len(set(told) & set(chosen.acceptors)) >= chosen.majority:
                return
            await self._back_off(fruitless, conflict=True)
            fruitless += 1

    async def _move_keys(self, keys: tuple[str, ...]) -> None:
        """A key that is read under a charter is moved to it first."""
        for key in keys:
            await self._operate(key, Read())
