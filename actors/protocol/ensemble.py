"""Which stores a partition's log is written to, and what they should be next (design §6, rules 4 to 6).

Owns the choice of members, and the shape of the ranges that a compare-and-set puts into the record. Pure functions: it must
not know what was sent to whom (``log``). Rules:

1. A member that is gone, full or persistently behind is replaced by a store that is there; one that is merely not here yet
   is waited for.
2. Who cannot reach two of its members is probably cut off itself: it changes nothing ("does not churn spares"). A member that
   can never be back, since another store has its place, does not count there.
3. With no spare, the partition waits; with `min_copies` below `copies` a smaller ensemble is declared, and made whole as soon
   as a store is there.
4. A new range starts at the first frame that is not known to be committed, and replaces a last range that starts there or
   later.
5. Ranges merge when each member of the newer one holds the chain from the older one's first frame on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range


class Wish(NamedTuple):
    """How many stores should hold each frame, and in which order stores are preferred (by name)."""

    copies: int
    min_copies: int
    order: tuple[str, ...]


class Change:
    """A change of the ensemble under way: join the fresh ones, copy, compare-and-set."""

    __slots__ = ("began_ms", "first", "fresh", "members", "number", "prev_crc", "record")

    def __init__(
        self, number: int, members: tuple[Member, ...], fresh: frozenset[str], first: int, prev_crc: int, began_ms: int
    ) -> None:
        self.number = number  # of the join within the epoch: a late one with a lower number is refused
        self.members = members
        self.fresh = fresh  # keys of those that have to join
        self.first, self.prev_crc = first, prev_crc  # where they join
        self.began_ms = began_ms
        self.record: PartitionRecord | None = None  # what is being compared and set, once it is


class Pace:
    """Who is too slow to be a member. Forgiven in time, or no spare would be left one day."""

    def __init__(self, patience_ms: int, forgiven_after_ms: int) -> None:
        self.slow: dict[str, int] = {}  # and since when
        self._patience_ms, self._forgiven_after_ms = patience_ms, forgiven_after_ms
        self._lagging: tuple[str, int] = ("", 0)
        self._silent: dict[str, int] = {}

    def mark(self, stores: Iterable[str], now_ms: int) -> None:
        """These are slow."""
        self.slow |= dict.fromkeys(stores, now_ms)

    def forgive(self, store: str) -> None:
        """It begins anew."""
        self.slow.pop(store, None)

    def look(self, now_ms: int, silent: Iterable[str], stored: Mapping[str, int]) -> None:
        """Time has passed. `silent`: connected members that have not answered the fence; in `stored` members are compared."""
        self.slow = {key: since for key, since in self.slow.items() if now_ms - since < self._forgiven_after_ms}
        self._silent = {key: self._silent.get(key, now_ms) for key in silent}
        self.mark((key for key, since in self._silent.items() if now_ms - since >= self._patience_ms), now_ms)
        store = laggard(stored)
        since = self._lagging[1] if store and store == self._lagging[0] else now_ms
        self._lagging = (store, since)
        if store and now_ms - since >= self._patience_ms:
            self.mark([store], now_ms)
            self._lagging = ("", now_ms)


def replacement(
    wish: Wish,
    members: Sequence[Member],
    up: Mapping[str, Member],
    failed: Collection[str],
    slow: Collection[str],
) -> tuple[Member, ...] | None:
    """The members that there should be, or None: no change.

    `up` maps keys to the stores that are connected. `failed` are stores that are gone, full or wrong; `slow` ones are replaced
    only by one that is not, and taken only when there is no other. Even a whole ensemble that lost its memory is declared anew:
    a writer has all in its own that may be committed beyond what the members have confirmed.
    """
    if sum(member.key not in up and not is_replaced(member, up) for member in members) > 1:
        return None
    inside = {member.key for member in members}
    known = {member.store for member in members}
    spares = [member for key, member in up.items() if key not in inside and key not in failed]
    # A member that cut a damaged tail has most of what it needs: it comes before other spares.
    spares.sort(key=lambda member: (member.key in slow, member.store not in known, _preference(wish, member)))
    out = {key for key in inside if key in failed}
    if not out:  # a slow one goes only for one that is not: as many of them as there are such spares beyond those that lack
        good = sum(member.key not in slow for member in spares) - max(0, wish.copies - len(members))
        out = set([member.key for member in members if member.key in slow][: max(0, good)])
    kept = [member for member in members if member.key not in out]
    if any(member.key not in up for member in kept):
        return None
    wanted = tuple(kept + spares[: max(0, wish.copies - len(kept))])
    if len(wanted) < wish.min_copies or {member.key for member in wanted} == inside:
        return None
    return wanted


def _preference(wish: Wish, member: Member) -> int:
    return wish.order.index(member.name) if member.name in wish.order else len(wish.order)


def is_replaced(member: Member, up: Mapping[str, Member]) -> bool:
    """Whether another store, or the same one without its memory, is now where the member was: it will never be back."""
    return any(other.name == member.name and key != member.key for key, other in up.items())


def with_range(ranges: tuple[Range, ...], first: int, members: tuple[Member, ...]) -> tuple[Range, ...]:
    """The ranges when `members` hold the log from the frame `first` on (rule 4)."""
    last = ranges[-1]
    if last.first >= first:
        return (*ranges[:-1], Range(last.first, members))
    return (*ranges, Range(first, members))


def merged(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """The ranges when the members of the last one hold the one before, too."""
    return (*ranges[:-2], Range(ranges[-2].first, ranges[-1].members))


def laggard(stored: Mapping[str, int]) -> str:
    """The member for which alone all others wait; empty when there is none."""
    if len(stored) < 2:
        return ""
    order = sorted(stored, key=stored.__getitem__)
    return order[0] if stored[order[0]] < stored[order[1]] else ""
