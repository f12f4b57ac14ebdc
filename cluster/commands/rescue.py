"""`trilogue rescue`: a register without its majority is founded anew from the stores that are left (design §7).

Owns the order of the work over the streams of a system that runs: look, ask the operator, fence, decide (``rescue_plan``),
found, restore. It must not know Ray. Rules:

1. While a majority of the charter answers there is nothing to rescue, and nothing is changed.
2. That stores are gone for good is what the operator states, and nobody else can know. Every store that was not named must
   answer; one that was named, and still has what it had, is not lost.
3. What may be lost is said before anything is changed, and is given up only if that is asked for (`--accept-loss`).
4. First every store that is left is fenced in every partition, far above every epoch: no writer of before gets anything acked
   any more. Only then is it decided what each partition goes on from.
5. The new charter begins a new era. From the moment that the stores know it, they give no vote under the old one. A partition
   whose record was not restored yet is waited for: whoever runs it again finishes it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from trilogue.actors.protocol.errors import ProtocolError, Unavailable, UsageError
from trilogue.actors.protocol.frames import Header
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.ranges import Member, PartitionRecord, decode_record, encode_record, record_key
from trilogue.actors.protocol.register.charter import ERA, FOUNDERS, Charter, founders_of, is_first, rescued
from trilogue.actors.protocol.register.proposal import NotInForce
from trilogue.actors.protocol.register.votes import NO_BALLOT, vote_from_prepare
from trilogue.actors.protocol.thinning import header_of
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry
from trilogue.actors.replication.register_client import RegisterClient
from trilogue.actors.wire import Connection, Refused
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.rescue_plan import NOBODY, Holding, Recovery, least_ensemble, recover
from trilogue.cluster.commands.status import gather
from trilogue.cluster.commands.streams import connection_to
from trilogue.cluster.settings.config import SUPERVISOR, read_record, store_names

EPOCH_STEP: Final = 1 << 20
"""How far above all that was seen the fences are: a writer whose claim only the lost stores knew stays below."""
VERSION_STEP: Final = 1 << 40
FENCE_ATTEMPTS: Final = 5
CHARTERS_BACK: Final = 64
UNFINISHED_MS: Final = 2_500

Progress = Callable[[str], None]


class Facts(NamedTuple):
    """What the operator is told before anything is changed."""

    charter: Charter
    votes: tuple[str, ...]  # the charter's stores that are left with their memory
    lost: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]  # lost ones under whose names new stores are there
    partitions: int
    least: int
    uncertain: tuple[str, ...]
    resumed: bool

    @property
    def whole(self) -> bool:
        """Whether one of the stores that are left must have every acked message (``rescue_plan``, rule 1)."""
        return len({*self.lost, *self.uncertain}) < self.least


class Wanted(NamedTuple):
    """What the system was asked to be."""

    stores: tuple[str, ...]
    partitions: int
    copies: int
    min_copies: int


async def rescue(
    known: Known,
    lost: Sequence[str],
    confirm: Callable[[Facts], bool],
    progress: Progress,
    *,
    accept_loss: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Any] | None:
    """Rescue the system; None when `confirm` said no. Raises `Unavailable` that says why it is refused, or `UsageError`."""
    progress("asking all stores")
    status = await gather(known)
    wanted = _wanted(status, known)
    if strange := sorted(set(lost) - set(wanted.stores)):
        raise UsageError(f"no store is called {' or '.join(strange)}: they are {', '.join(wanted.stores)}")
    async with AsyncExitStack() as stack:
        connections: dict[str, Connection] = {}
        for name in wanted.stores:
            address = status["actors"].get(name, {}).get("address")
            if address:
                connections[name] = await stack.enter_async_context(connection_to(address, known.token))
        work = Rescue(wanted, connections, tuple(dict.fromkeys(lost)), limits)
        facts = await work.look()
        if not facts.whole and not accept_loss:
            raise Unavailable(f"nothing was changed: {may_lose(facts)}; look for their disks first, then say --accept-loss")
        if not confirm(facts):
            return None
        return await work.carry_out(facts, progress, accept_loss=accept_loss)


def may_lose(facts: Facts) -> str:
    """What only the lost stores may have had, in words."""
    doubted = [*facts.lost, *(name for name in facts.uncertain if name not in facts.lost)]
    text = f"an acked message is on {facts.least} stores at least, and it may be that those were among {', '.join(doubted)}"
    cut = [name for name in facts.uncertain if name not in facts.lost]
    return text + (f" ({', '.join(cut)} cut a damaged end, and cannot tell what was there)" if cut else "")


def _wanted(status: dict[str, Any], known: Known) -> Wanted:
    supervisor = status["actors"].get(SUPERVISOR)
    if supervisor is not None:
        stores, partitions = tuple(supervisor["stores"]), len(supervisor["partitions"])
        return Wanted(stores, partitions, supervisor["copies"], supervisor["min_copies"])
    record = read_record(Path(known.run.data)) if known.run is not None else None
    if record is None:
        raise Unavailable("the Supervisor does not answer, and only it knows here which stores there are: try again in a while")
    return Wanted(store_names(record), record.partitions, record.copies, record.min_copies)


class Rescue:
    """One rescue. `look` changes nothing."""

    def __init__(
        self, wanted: Wanted, connections: dict[str, Connection], lost: tuple[str, ...], limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._wanted, self._connections, self._lost, self._limits = wanted, connections, lost, limits
        self._left = tuple(name for name in wanted.stores if name not in lost)
        self._register = RegisterClient(founders_of(wanted.stores), connections.get, limits, others=lambda: wanted.stores)
        self._members: dict[str, Member] = {}
        self._acceptors: dict[str, str] = {}
        self._epochs: dict[int, int] = {}
        self._addresses: dict[int, str] = {}

    # ------------------------------------------------------------------ looking

    async def look(self) -> Facts:
        """What there is. Raises `Unavailable` when there is nothing to rescue, or when it cannot be done."""
        survey = await self._register.survey()
        charter = survey.charter
        if charter is None:
            raise Unavailable("no store that answers knows of a register: nothing was ever kept here, or too much is lost")
        self._acceptors = survey.acceptors
        resumed = await self._check_lost(charter)
        await self._check_left(charter)
        records = await self._old_records(charter)
        self._check_records(records)
        uncertain = await self._look_at_partitions(records)
        return Facts(
            charter=charter,
            votes=tuple(name for name in charter.acceptors if self._has_vote(charter, name)),
            lost=self._lost,
            left=self._left,
            fresh=tuple(name for name in self._lost if name in self._acceptors),
            partitions=self._wanted.partitions,
            least=least_ensemble(self._wanted.min_copies, [record.ranges[-1] for record in records.values()]),
            uncertain=uncertain,
            resumed=resumed,
        )

    def _has_vote(self, charter: Charter, name: str) -> bool:
        return self._acceptors.get(name) == charter.acceptors[name]

    async def _check_lost(self, charter: Charter) -> bool:
        """Rules 1 and 2. Whether a rescue was begun and not finished."""
        votes = [name for name in charter.acceptors if self._has_vote(charter, name)]
        enough = len(votes) >= charter.majority
        if enough and is_first(charter.number) and charter.number > 1 and not await self._is_complete():
            return True  # a store that was lost may keep the new charter, as the new one that it is now
        for name in self._lost:
            if name in votes:
                raise Unavailable(f"{name} answers, and has its memory: it is not lost; nothing was changed")
        if not enough:
            return False
        raise Unavailable(
            f"nothing to rescue: {len(votes)} of the {len(charter.acceptors)} stores that keep the register answer "
            f"({', '.join(votes)}), and {charter.majority} are enough; lost stores are replaced by themselves"
        )

    async def _is_complete(self) -> bool:
        try:
            await self._register.settle(self._keys(), timeout_ms=UNFINISHED_MS)
        except Unavailable:
            return False
        return True

    def _keys(self) -> list[str]:
        return [record_key(partition) for partition in range(self._wanted.partitions)]

    async def _check_left(self, charter: Charter) -> None:
        """Every store that is left answers, and is who it was as far as that is known."""
        for name in self._left:
            connection = self._connections.get(name)
            if connection is None:
                raise Unavailable(
                    f"{name} does not answer: a rescue needs every store that is not lost; wait until it is there, or say "
                    f"--lost {name} if it is gone for good"
                )
            info = connection.peer_info
            if not isinstance(info.get("store"), str) or not isinstance(info.get("incarnation"), int):
                raise Unavailable(f"{name} is not open yet, or refuses to serve (`trilogue status` says why): mend that first")
            self._members[name] = Member(name, info["store"], info["incarnation"])
            if name in charter.acceptors and name in self._acceptors and not self._has_vote(charter, name):
                raise Unavailable(
                    f"{name} is another store than the one that was there, its directory was emptied: say --lost {name}, too"
                )
        if not self._left:
            raise Unavailable("no store is left: there is nothing to rescue from")

    async def _old_records(self, charter: Charter) -> dict[int, PartitionRecord]:
        """What the register's stores that are left last accepted: a hint only, since others may have decided later."""
        found: dict[int, PartitionRecord] = {}
        first = max(1, charter.number // ERA * ERA, charter.number - CHARTERS_BACK)
        for number in range(charter.number, first - 1, -1):
            asked = [p for p in range(self._wanted.partitions) if p not in found]
            cells = await asyncio.gather(*(self._accepted(number, record_key(partition)) for partition in asked))
            found |= {p: decode_record(data) for p, data in zip(asked, cells, strict=True) if data}
        return found

    async def _accepted(self, number: int, key: str) -> bytes:
        """What the highest ballot that anybody tells had accepted; empty for nothing."""
        best = NO_BALLOT, b""
        for name in self._left:
            try:
                answer = await self._connections[name].request(Say.PREPARE, number, key, *NO_BALLOT)
            except Refused:
                continue  # it took no part in that charter
            vote = vote_from_prepare(answer, self._limits.register_data_bytes_max)
            if vote.value is not None and vote.value.version:
                best = max(best, (vote.accepted, vote.value.data))
        return best[1]

    def _check_records(self, records: dict[int, PartitionRecord]) -> None:
        """The stores that the partitions named are those that are left, or those that are lost."""
        for partition, record in records.items():
            self._epochs[partition] = record.epoch
            self._addresses[partition] = record.address
            for member in (member for one in record.ranges for member in one.members):
                now = self._connections[member.name].peer_info.get("store") if member.name in self._connections else None
                if member.name in self._lost and now == member.store:
                    raise Unavailable(f"{member.name} answers, and has its data: it is not lost; nothing was changed")
                if member.name in self._left and now != member.store:
                    raise Unavailable(
                        f"{member.name} is another store than the one that partition {partition} names, its directory was "
                        f"emptied: say --lost {member.name}, too"
                    )

    async def _look_at_partitions(self, records: dict[int, PartitionRecord]) -> tuple[str, ...]:
        """The highest epochs that were ever seen, and the stores that cannot tell what they once held."""
        uncertain: set[str] = set()
        for name in self._left:
            status = await self._connections[name].request(Say.STATUS)
            for number, one in status["partitions"].items():
                if not one["certain"]:
                    uncertain.add(name)
                self._epochs[int(number)] = max(self._epochs.get(int(number), 0), int(one["epoch"]))
            for record in records.values():
                now = self._members[name]
                if any(m.store == now.store and m.incarnation != now.incarnation for m in record.ranges[-1].members):
                    uncertain.add(name)
        return tuple(sorted(uncertain))

    # ------------------------------------------------------------------ carrying it out

    async def carry_out(self, facts: Facts, progress: Progress, *, accept_loss: bool) -> dict[str, Any]:
        """Fence, decide, found, restore. Raises `Unavailable` when something may be lost that was not given up."""
        writer = f"rescue {uuid.uuid4().hex}"
        epochs: dict[int, int] = {}
        recoveries: dict[int, Recovery] = {}
        for partition in range(self._wanted.partitions):
            progress(f"fencing partition {partition} of {self._wanted.partitions}")
            epochs[partition], answers = await self._fence(partition, writer)
            holdings = await self._holdings(partition, answers)
            nobody = Member(self._lost[0] if self._lost else "nobody", NOBODY + uuid.uuid4().hex, 0)
            recoveries[partition] = recover(holdings, self._wanted.copies, self._wanted.min_copies, nobody)
        self._check_recoveries(recoveries, accept_loss=accept_loss)
        charter = facts.charter if facts.resumed else rescued(facts.charter.number, self._keepers(facts))
        progress(f"founding charter {charter.number} of the register on {', '.join(charter.acceptors)}")
        await self._register.adopt(charter)
        await self._register.tell(charter, self._connections)
        kept = set()
        for partition, recovery in recoveries.items():
            progress(f"restoring the record of partition {partition} of {self._wanted.partitions}")
            record = PartitionRecord(epochs[partition], writer, self._addresses.get(partition, ""), recovery.ranges)
            version = charter.number // ERA * VERSION_STEP
            if isinstance(await self._register.restore(record_key(partition), version, encode_record(record)), NotInForce):
                kept.add(partition)  # an earlier run restored it
        return self._report(facts, charter, recoveries, kept)

    def _keepers(self, facts: Facts) -> dict[str, str]:
        """The stores of the new charter: those that knew the register, then others that are left, then new ones."""
        order = dict.fromkeys([*facts.votes, *self._left, *facts.fresh])
        return {name: self._acceptors[name] for name in [name for name in order if name in self._acceptors][:FOUNDERS]}

    async def _fence(self, partition: int, writer: str) -> tuple[int, dict[str, FenceAnswer]]:
        """Rule 4: the epoch, and what each store that is left holds."""
        for _ in range(FENCE_ATTEMPTS):
            views = await self._of_all_left(Say.INSPECT, partition)
            seen = max(self._epochs.get(partition, 0), *(StoreView(*view).epoch for view in views.values()))
            epoch = seen + EPOCH_STEP
            try:
                told = await self._of_all_left(Say.FENCE, partition, epoch, writer, self._addresses.get(partition, ""))
            except Refused as refusal:
                if refusal.code != Code.DEPOSED:
                    raise Unavailable(f"partition {partition} cannot be fenced: {refusal.text}") from None
                continue  # somebody was faster
            answers = {name: _fence_answer(answer) for name, answer in told.items()}
            return epoch, answers
        raise Unavailable(f"partition {partition} cannot be fenced, others take it over all the time: run it again")

    async def _of_all_left(self, say: Say, *items: Any) -> dict[str, Any]:
        """Every answer of the stores that are left. Raises `Unavailable` or `Refused` when one of them has none."""
        answers = await asyncio.gather(*(self._connections[name].request(say, *items) for name in self._left))
        return dict(zip(self._left, answers, strict=True))

    async def _holdings(self, partition: int, answers: dict[str, FenceAnswer]) -> list[Holding]:
        """The answers, with the CRCs that say which chain leads to which (``rescue_plan``, rule 4)."""
        bases = sorted({answer.base for answer in answers.values() if answer.base > 1})
        holdings = []
        for name, answer in answers.items():
            last = answer.tail[-1].frame_index if answer.tail else answer.base - 1
            base_prev = 0
            if answer.base > 1:
                header = await self._header(name, partition, answer.base) if last >= answer.base else None
                base_prev = header.prev_crc if header is not None else answer.tail[0].crc
            links = {}
            for index in (base - 1 for base in bases if answer.base <= base - 1 <= last):
                header = await self._header(name, partition, index)
                if header is not None:
                    links[index] = header.header_crc
            holdings.append(Holding(self._members[name], answer, base_prev, links))
        return holdings

    async def _header(self, name: str, partition: int, index: int) -> Header | None:
        try:
            frames = await self._connections[name].request(Say.FRAMES, partition, index, index)
        except Refused as refusal:
            raise Unavailable(f"{name} cannot read frame {index} of partition {partition}: {refusal.text}") from None
        return header_of(frames[0], self._limits.frame_bytes_max) if frames else None

    def _check_recoveries(self, recoveries: dict[int, Recovery], *, accept_loss: bool) -> None:
        for partition, one in recoveries.items():
            if one.conflict:
                raise Unavailable(
                    f"nothing was rescued: in partition {partition} {one.conflict}; keep all directories as they are and run "
                    "`trilogue verify`"
                )
            if one.doubts and not accept_loss:
                raise Unavailable(
                    f"nothing was rescued: in partition {partition} {one.doubts[0]}; say --accept-loss to go on without them"
                )

    def _report(self, facts: Facts, charter: Charter, recoveries: dict[int, Recovery], kept: Iterable[int]) -> dict[str, Any]:
        stores = len([name for name in self._wanted.stores if name in self._connections])
        return {
            "ok": not any(one.holes for one in recoveries.values()),
            "charter": charter.number,
            "keepers": list(charter.acceptors),
            "lost": list(facts.lost),
            "left": list(facts.left),
            "whole": facts.whole,
            "stores_there": stores,
            "copies": self._wanted.copies,
            "min_copies": self._wanted.min_copies,
            "partitions": [
                {
                    "partition": partition,
                    "frames": one.last,
                    "from": one.source,
                    "lost": [list(hole) for hole in one.holes],
                    "given_up": list(one.doubts),
                    "restored_before": partition in kept,
                }
                for partition, one in recoveries.items()
            ],
        }


def _fence_answer(fields: Any) -> FenceAnswer:
    match fields:
        case [int(committed_upto), bool(certain), int(base), [*tail]]:
            return FenceAnswer(committed_upto, certain, base, [TailEntry(*entry) for entry in tail])
    raise ProtocolError("an answer to FENCE of unknown shape")
