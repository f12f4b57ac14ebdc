"""How a SessionActor learns from a store how far its sessions are (design §6, last paragraph; §8, §9).

Owns the asking: of the log's end at a takeover, and of cold sessions later. It must not know what the answers are for. Rules:

1. Only a store that holds the whole log is asked (`ReplicatedLog.ask`), and its answer covers every frame that was asked for.
2. A store whose index is ahead of what this writer knows to be committed has served another writer: this one is over.
3. At a takeover it is asked until a store answers. Later, when none does for about a second, that is told: whoever waits is
   refused for now, hears why, and comes again; what is kept for him meanwhile would only grow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from trilogue.actors.protocol.errors import ProtocolError, Unavailable
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.keys import KnownKey
from trilogue.actors.protocol.submissions import LookedUp, LookUp, Question, Told
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.pump import end_process, spawn
from trilogue.actors.replication.replicated_log import ReplicatedLog

ASK_AGAIN_S = 0.2
TRIES = 5


class Lookups:
    """The look-ups of one writer; `tell` hears what came of each."""

    def __init__(self, log: ReplicatedLog, tell: Callable[[LookedUp], None]) -> None:
        self._log, self._tell = log, tell

    async def clock_at_end(self, upto: int, waits: Callable[[str], None]) -> int:
        """When the last record of the log was stored, in µs. The log ends at frame `upto`, and all of it is committed."""
        while True:
            try:
                last_stored_at_us, covered, _ = await self._ask(upto, [])
            except Unavailable as error:
                waits(str(error))
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            if covered != upto:
                _end(covered)
            return last_stored_at_us

    def look_up(self, order: LookUp) -> None:
        """Carry the order out, beside everything else."""
        spawn(self._look_up(order), "look-up of sessions")

    async def _look_up(self, order: LookUp) -> None:
        asked, tries = order.asked, 0
        while asked:
            try:
                _, covered, told = await self._ask(order.upto, asked)
            except Unavailable:
                tries += 1
                if tries == TRIES:
                    self._tell(LookedUp(asked, None, _now_us()))
                    return
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            if covered > self._log.committed:
                _end(covered)
            require(covered >= order.upto and 0 < len(told) <= len(asked), "a store tells what it was asked for")
            self._tell(LookedUp(asked[: len(told)], told, _now_us()))
            asked = asked[len(told) :]

    async def _ask(self, upto: int, asked: list[Question]) -> tuple[int, int, list[Told]]:
        answer = await self._log.ask(Say.STATES, self._log.partition, upto, asked)
        match answer:
            case [int(last_stored_at_us), int(covered), list(states)]:
                return last_stored_at_us, covered, list(map(_told, states))
        raise ProtocolError("what a store tells of sessions has an unknown shape")


def _told(item: Any) -> Told:
    match item:
        case [int(last_seq), dict(last_n), bool(whole), dict(keys), bool(keys_whole)]:
            return Told(last_seq, last_n, whole, {key: KnownKey(*known) for key, known in keys.items()}, keys_whole)
    raise ProtocolError("what a store tells of a session has an unknown shape")


def _now_us() -> int:
    return time.time_ns() // 1000


def _end(covered: int) -> None:
    end_process(f"a store has committed frames up to {covered}: another writer took this partition over")
