"""What a rescue may conclude from the stores that are left: the decision for one partition, pure (design §6, §7).

Owns what counts as whole, as doubtful and as lost, and the record with which a partition goes on. It must not know connections,
nor what the register once said: with its majority gone, what it still says may be old. Every store that is left has been fenced
above every epoch before it said what it holds, so nothing is acked behind its back any more. Rules:

1. A message was acked when *all* stores of an ensemble had it. With fewer stores lost than the smallest ensemble had, one that
   is left has every acked message. A store that cut a damaged tail counts as lost here: it cannot tell.
2. Of those that hold the highest frame that any of them knows to be committed, the one whose log ends highest, by (epoch,
   index), is what the partition goes on from.
3. A frame that another store has above that and that one has not is doubtful: it may have been acked.
4. Below the start of that one's chain its own link decides: only a chain that leads to it is the log. Frames that no such chain
   has are lost, and the record says so: their range names nobody.
5. A last range that is smaller than `min_copies` names nobody besides its members: so nothing is acked before a store has
   taken that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from trilogue.actors.protocol.ranges import Member, Range
from trilogue.actors.protocol.vocabulary import FenceAnswer, TailEntry

NOBODY: Final = "nobody-"
"""How the id of a store begins that never was."""


class Holding(NamedTuple):
    """What a fenced store says of the partition. `base_prev` is the CRC that its first frame names; `links` are the CRCs of its
    frames just below other stores' bases, by index."""

    member: Member
    answer: FenceAnswer
    base_prev: int
    links: dict[int, int]

    @property
    def end(self) -> tuple[int, int]:
        """(epoch, index) of its last frame."""
        last = self.answer.tail[-1] if self.answer.tail else TailEntry(0, 0, 0)
        return last.epoch, last.frame_index

    @property
    def committed(self) -> int:
        """Up to where it knows that all is committed: a chain begins behind a committed frame."""
        return max(self.answer.committed_upto, self.answer.base - 1)

    @property
    def crcs(self) -> dict[int, int]:
        """The CRCs of the frames of its tail, by index."""
        return {entry.frame_index: entry.crc for entry in self.answer.tail}


class Recovery(NamedTuple):
    """How a partition goes on: with `ranges`, from what `source` has, up to frame `last`.

    `holes`: frames that are lost. `doubts`: what may be lost, in words. `conflict`: the stores contradict each other about
    what is committed, and nothing was decided.
    """

    source: str
    last: int
    ranges: tuple[Range, ...]
    holes: tuple[tuple[int, int], ...]
    doubts: tuple[str, ...]
    conflict: str


def is_nobody(member: Member) -> bool:
    """Whether the member is a place that nobody has taken."""
    return member.store.startswith(NOBODY)


def least_ensemble(min_copies: int, ranges: Sequence[Range]) -> int:
    """How many stores each acked message was on at least. `ranges`: the last ones that were ever heard of."""
    return min([min_copies, *(sum(not is_nobody(member) for member in one.members) for one in ranges)])


def recover(holdings: Sequence[Holding], copies: int, min_copies: int, nobody: Member) -> Recovery:
    """The decision, from what all stores that are left hold. `nobody`, named as a lost one, stands where a store is missing."""
    committed = max(holding.committed for holding in holdings)
    witnesses = [holding for holding in holdings if holding.committed == committed]
    known = {crc for holding in witnesses if (crc := holding.crcs.get(committed)) is not None}
    if committed and len(known) != 1:
        names = ", ".join(holding.member.name for holding in witnesses)
        what = "no store that is left has it" if not known else f"{names} have different ones"
        return Recovery("", 0, (), (), (), f"frame {committed} is known to be committed, and {what}")
    able = [holding for holding in holdings if committed == 0 or holding.crcs.get(committed) in known]
    sure = [holding for holding in able if holding.answer.certain] or able
    best = max(sure, key=lambda holding: (holding.end, -holding.answer.base))
    doubts = [doubt for holding in holdings if holding is not best and (doubt := _doubt(best, holding, committed))]
    equal = sorted((h for h in sure if _same_end(h, best)), key=lambda h: (h.answer.base, h is not best))[:copies]
    ranges, holes = _ranges(equal, best, holdings, nobody)
    members = ranges[-1].members
    if len(members) < min_copies:
        ranges = (*ranges[:-1], Range(ranges[-1].first, (*members, nobody)))
    return Recovery(best.member.name, best.end[1], ranges, holes, tuple(doubts), "")


def _same_end(one: Holding, other: Holding) -> bool:
    return one.end == other.end and (one.end[1] == 0 or one.crcs[one.end[1]] == other.crcs[other.end[1]])


def _doubt(best: Holding, other: Holding, committed: int) -> str:
    """Rule 3."""
    kept = best.crcs
    strange = [index for index, crc in other.crcs.items() if index > committed and kept.get(index) != crc]
    if not strange:
        return ""
    first, last = min(strange), max(strange)
    frames = f"frame {first}" if first == last else f"frames {first}-{last}"
    return f"{other.member.name} has {frames}, which {best.member.name} has not, or has others there: they may have been acked"


def _ranges(
    members: Sequence[Holding], best: Holding, holdings: Sequence[Holding], nobody: Member
) -> tuple[tuple[Range, ...], tuple[tuple[int, int], ...]]:
    """The ranges from the first frame on, and what nobody has (rule 4)."""
    first = max(holding.answer.base for holding in members)
    ranges = [Range(first, tuple(holding.member for holding in members))]
    # From the highest base down: at each step, who holds the chain that leads to it the furthest back.
    at = next((holding for holding in members if holding.answer.base == first), best)
    while first > 1:
        before = [h for h in holdings if h.answer.base < first and h.links.get(first - 1) == at.base_prev]
        before += [h for h in members if h.answer.base < first]
        if not before:
            return (Range(1, (nobody,)), *ranges), ((1, first - 1),)
        at = min(before, key=lambda holding: holding.answer.base)
        first = at.answer.base
        ranges.insert(0, Range(first, (at.member,)))
    return tuple(ranges), ()
