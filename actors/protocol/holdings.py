"""What one store holds of one partition: a chain from a base on, and older frames below it (design §5, §6).

Owns the answer to "which frame may come next, and what does it replace", for the running store and for the scan of its
journal alike, so that a replay ends where the running store was. It must not know files, connections or time. Rules:

1. The *chain* is frames `base` … `last_index`, each naming the CRC of the one before; `base_prev` is the CRC of the frame
   before the base, as the writer named it. Below the base lie *older* frames, with holes. Every older frame is committed: it
   was kept by rule 5, or filled in by a writer, right below the base and chaining to it (a journal of the second version may
   hold fills that do not).
2. A frame is next if it chains: at `last_index + 1`, or at an index that the chain has. Then it *supersedes* that frame and all
   after it: never one that is known to be committed, never one that was put there under the present fence, never one of its own
   epoch. It may be of an *older* epoch than what it supersedes: one certain answer is enough for a takeover, so a frame that
   reached fewer stores may lose against an older one.
3. `committed_upto` is the highest that a frame of the chain has carried. It outlives a cut.
4. Fences go up, or are the identical one again. A higher one begins a new count of joins.
5. A join (numbered within its fence; each number is obeyed once) names a base. If the chain has that place, nothing is cut.
   Otherwise only what lies below the new base is kept, and of that only what the record vouches for or `committed_upto` does.
6. Older frames become part of the chain as soon as they connect to its base (`absorb`).
7. After a damaged tail was cut (`doubt`), the store cannot tell what it held, until it is joined anew: a writer that joins it
   knows the new incarnation, and gives it all that a member must have before the record names it. Whether an answer is that of
   a *member* is decided by the identity in the record, never by `certain` alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, MutableSequence
from typing import Generic, NamedTuple, TypeVar

from trilogue.actors.protocol.frames import Header
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.vocabulary import FenceAnswer, TailEntry

Item = TypeVar("Item")

NOTHING_YET = 1 << 64
"""An `own_from` above every index: nothing was put here under the present fence."""

_FIRST = Header._make([0] * len(Header._fields))

Interval = tuple[int, int]
"""A closed interval of indexes."""


class Fence(NamedTuple):
    """The writer that a partition obeys, and where that writer can be found."""

    epoch: int
    writer: str
    address: str


UNFENCED = Fence(0, "", "")


class Row(Generic[Item]):
    """A list or array that grows at both ends, in constant time an item. Positions count from the front."""

    __slots__ = ("_back", "_front", "append")

    def __init__(self, back: MutableSequence[Item]) -> None:
        self._back = back
        self.append: Callable[[Item], None] = back.append  # puts an item behind all others
        self._front = back[:0]  # what was put before the rest, backwards

    def __len__(self) -> int:
        return len(self._front) + len(self._back)

    def __getitem__(self, at: int) -> Item:
        at -= len(self._front)
        return self._back[at] if at >= 0 else self._front[-1 - at]

    def __setitem__(self, at: int, item: Item) -> None:
        at -= len(self._front)
        if at >= 0:
            self._back[at] = item
        else:
            self._front[-1 - at] = item

    def replace(self, at: int, items: MutableSequence[Item]) -> None:
        """Put these in the place of as many from position `at` on."""
        front = len(self._front)
        if at >= front:
            self._back[at - front : at - front + len(items)] = items
        else:
            for k, item in enumerate(items):
                self[at + k] = item

    @property
    def last(self) -> Item:
        """The last item, of at least one."""
        return self._back[-1] if self._back else self._front[0]

    def put_behind(self, row: Row[Item]) -> None:
        """Put a whole row behind this one."""
        self._back.extend(row.plain())

    def put_before(self, row: Row[Item]) -> None:
        """Put a whole row before this one, at the cost of that row."""
        self._front.extend(row.plain()[::-1])

    def cut(self, at: int) -> None:
        """Drop the items from position `at` on."""
        front = len(self._front)
        del self._back[max(0, at - front) :]
        if at < front:
            del self._front[: front - at]

    def part(self, start: int, end: int) -> Row[Item]:
        """The items from `start` to before `end`, copied."""
        front = len(self._front)
        part = self._front[max(0, front - end) : max(0, front - start)][::-1]
        part.extend(self._back[max(0, start - front) : max(0, end - front)])
        return Row(part)

    def plain(self) -> MutableSequence[Item]:
        """All items in order."""
        plain = self._front[::-1]
        plain.extend(self._back)
        return plain


class Piece:
    """Consecutive frames, each chaining to the one before; `prev_crc` is the CRC that the first of them names."""

    __slots__ = ("crcs", "epochs", "first", "prev_crc")

    def __init__(self, first: int, prev_crc: int, crcs: Row[int] | None = None, epochs: Row[int] | None = None) -> None:
        self.first, self.prev_crc = first, prev_crc
        self.crcs: Row[int] = crcs if crcs is not None else Row(array("I"))
        self.epochs: Row[int] = epochs if epochs is not None else Row(array("Q"))

    @property
    def last(self) -> int:
        """The index of its last frame, `first - 1` when it is empty."""
        return self.first + len(self.crcs) - 1

    @property
    def last_crc(self) -> int:
        """What the frame behind it must name."""
        return self.crcs.last if len(self.crcs) else self.prev_crc

    def append(self, header: Header) -> None:
        """Put the frame behind the last one."""
        self.crcs.append(header.header_crc)
        self.epochs.append(header.epoch)

    def part(self, first: int, last: int) -> Piece:
        """The frames `first` … `last` of it, of which there is at least one."""
        start, end = first - self.first, last - self.first + 1
        prev_crc = self.crcs[start - 1] if start else self.prev_crc
        return Piece(first, prev_crc, self.crcs.part(start, end), self.epochs.part(start, end))

    def put_behind(self, piece: Piece) -> None:
        """Make the piece that follows part of this one."""
        self.crcs.put_behind(piece.crcs)
        self.epochs.put_behind(piece.epochs)

    def put_before(self, piece: Piece) -> None:
        """Make the piece that this one follows part of it, at that one's cost."""
        self.crcs.put_before(piece.crcs)
        self.epochs.put_before(piece.epochs)
        self.first, self.prev_crc = piece.first, piece.prev_crc


class PartitionState:
    """What one store holds of one partition, and whom it obeys there."""

    __slots__ = (
        "certain", "chain", "committed_upto", "fence", "joins", "last_crc", "last_epoch", "last_index", "older", "own_from",
    )  # fmt: skip

    def __init__(self, *, certain: bool) -> None:
        self.fence = UNFENCED
        self.joins = 0  # the newest one obeyed under this fence
        self.chain = Piece(1, 0)
        self.last_index = 0  # of the chain; `base - 1` when it is empty
        self.last_crc = 0  # what the next frame must name
        self.last_epoch = 0  # of the chain's last frame, 0 for none
        self.older: list[Piece] = []  # in order, with holes between them
        self.committed_upto = 0
        self.own_from = NOTHING_YET  # the first index that was put here under the present fence
        self.certain = certain

    # ------------------------------------------------------------------ what is held

    @property
    def base(self) -> int:
        """The index of the chain's first frame, be it there or not."""
        return self.chain.first

    @property
    def base_prev(self) -> int:
        """The CRC of the frame before the base."""
        return self.chain.prev_crc

    @property
    def highest_epoch(self) -> int:
        """The highest epoch seen, in a fence or in a frame."""
        return max(self.fence.epoch, self.last_epoch)

    def crc_before(self, index: int) -> int:
        """What `prev_crc` of the frame at `index`, which is in the chain or next to it, must be."""
        chain = self.chain
        return chain.crcs[index - chain.first - 1] if index > chain.first else chain.prev_crc

    def crc_at(self, index: int) -> int | None:
        """The CRC of the frame at `index`, in the chain or older; nothing if there is none."""
        if index >= self.chain.first:
            piece = self.chain
        else:
            at = self._piece_from(index)
            if at < 0:
                return None
            piece = self.older[at]
        return piece.crcs[index - piece.first] if index <= piece.last else None

    def answer(self) -> FenceAnswer:
        """What this store holds, for the writer that has just fenced it."""
        chain = self.chain
        base, last = chain.first, self.last_index
        first = max(base, min(self.committed_upto, last))
        tail = [TailEntry(i, chain.epochs[i - base], chain.crcs[i - base]) for i in range(first, last + 1)]
        if base > 1 and first == base:
            tail.insert(0, TailEntry(base - 1, 0, chain.prev_crc))  # as its writer named it: the frame itself is not here
        return FenceAnswer(self.committed_upto, self.certain, base, tail)

    # ------------------------------------------------------------------ fences

    def obeys(self, epoch: int, writer: str) -> bool:
        """Whether this is the writer that it is fenced to."""
        fence = self.fence
        return fence.epoch == epoch and fence.writer == writer and epoch > 0

    def refuses(self, epoch: int, writer: str) -> bool:
        """Whether a fence of this writer comes too late."""
        return not self.obeys(epoch, writer) and epoch <= self.highest_epoch

    def obey(self, fence: Fence) -> None:
        """From now on this writer is obeyed."""
        now = self.fence
        if (fence.epoch, fence.writer) != (now.epoch, now.writer):
            require(fence.epoch > now.epoch, "a fence of epoch {} goes back: {} is in force", fence.epoch, now.epoch)
            self.joins = 0
            self.own_from = NOTHING_YET
        self.fence = fence

    def doubt(self) -> None:
        """Here the store cut a damaged tail: it cannot tell what it held."""
        self.certain = False

    # ------------------------------------------------------------------ the chain

    def problem(self, header: Header) -> str:
        """Why the frame is not a next one of the chain (rule 2); empty if it is."""
        chain, index = self.chain, header.index
        at, length = index - chain.first, len(chain.crcs)
        if at < 0 or index < 1:
            return f"frame {index} lies below the base {chain.first}"
        if at > length:
            return f"frame {index} leaves a hole after {self.last_index}"
        if header.prev_crc != (chain.crcs[at - 1] if at else chain.prev_crc):
            return f"frame {index} does not chain to the one before"
        if header.committed_upto >= index:
            return f"frame {index} vouches for itself"
        if at and header.epoch < chain.epochs[at - 1]:
            return f"frame {index} of epoch {header.epoch}: its epoch goes back"
        return self._no_successor(header, at) if at < length else ""

    def _no_successor(self, header: Header, at: int) -> str:
        index = header.index
        if header.header_crc == self.chain.crcs[at]:
            return f"frame {index} is there already"
        if index <= self.committed_upto:
            return f"frame {index} would replace a committed one"
        if header.epoch == self.chain.epochs[at]:
            return f"frame {index} of epoch {header.epoch} supersedes another one of that epoch"
        if index >= self.own_from:
            return f"frame {index} supersedes one of the same writer"
        return ""

    def take(self, header: Header) -> None:
        """Put a frame that is next at its index, superseding what stood there and after it. Breaks an invariant otherwise."""
        epoch, index, committed_upto = header.epoch, header.index, header.committed_upto
        if index != self.last_index + 1:
            self._supersede(header)
        elif header.prev_crc != self.last_crc:
            violated("frame {} does not chain", index)
        elif committed_upto >= index:
            violated("frame {} vouches for itself", index)
        elif epoch < self.last_epoch:
            violated("frame {} of epoch {}: its epoch goes back", index, epoch)
        chain = self.chain
        chain.crcs.append(header.header_crc)
        chain.epochs.append(epoch)
        self.last_index, self.last_crc, self.last_epoch = index, header.header_crc, epoch
        if index < self.own_from:
            self.own_from = index
        if committed_upto > self.committed_upto:
            self.committed_upto = committed_upto

    def run_problem(self, first: int, prev_crc: int, epochs: array[int], crcs: array[int]) -> str:
        """As `problem`, for consecutive frames of which each chains to the one before, and none vouches for itself."""
        return self.problem(_FIRST._replace(index=first, prev_crc=prev_crc, epoch=epochs[0], header_crc=crcs[0]))

    def take_run(self, first: int, prev_crc: int, committed_upto: int, epochs: array[int], crcs: array[int]) -> None:
        """As `take`, for such frames: `committed_upto` is the highest that they carry."""
        problem = self.run_problem(first, prev_crc, epochs, crcs)
        require(not problem, problem)
        chain = self.chain
        chain.crcs.cut(first - chain.first)
        chain.epochs.cut(first - chain.first)
        chain.crcs.put_behind(Row(crcs))
        chain.epochs.put_behind(Row(epochs))
        self.last_index, self.last_crc, self.last_epoch = chain.last, crcs[-1], epochs[-1]
        self.own_from = min(self.own_from, first)
        self.committed_upto = max(self.committed_upto, committed_upto)

    def _supersede(self, header: Header) -> None:
        """Make room for a frame at an index that the chain has."""
        problem = self.problem(header)
        require(not problem, problem)
        chain = self.chain
        chain.crcs.cut(header.index - chain.first)
        chain.epochs.cut(header.index - chain.first)

    # ------------------------------------------------------------------ joins and older frames

    def join(self, number: int, first: int, prev_crc: int, intervals: Iterable[Interval]) -> list[Interval] | None:
        """Obey a join (rule 5). Returns the intervals that were kept below `first`; nothing if nothing was cut."""
        require(number > self.joins, "join {} of epoch {} comes after join {}", number, self.fence.epoch, self.joins)
        self.joins = number
        self.certain = True
        chain = self.chain
        if chain.first <= first <= self.last_index + 1 and self.crc_before(first) == prev_crc:
            return None
        allowed = _united([(1, self.committed_upto), *intervals], first - 1)
        self.older = [
            piece.part(max(piece.first, start), min(piece.last, end))
            for piece in (*self.older, chain)
            for start, end in allowed
            if max(piece.first, start) <= min(piece.last, end)
        ]
        self.chain = Piece(first, prev_crc)
        self.last_index, self.last_crc, self.last_epoch = first - 1, prev_crc, 0
        self.own_from = NOTHING_YET
        kept = [(piece.first, piece.last) for piece in self.older]
        self.absorb()
        return kept

    def connects(self, header: Header) -> bool:
        """Whether the frame is the one right below the base: what else a copy brings may be of a store that lost its end, where
        an older frame stands again that had been superseded (seed 12062 of commit e8eecaf)."""
        return header.index == self.base - 1 and header.header_crc == self.chain.prev_crc

    def fill_problem(self, header: Header) -> str:
        """Why the frame is not one to fill in; empty if it is."""
        index = header.index
        if not 1 <= index < self.base:
            return f"frame {index} does not lie below the base {self.base}"
        if header.committed_upto >= index:
            return f"frame {index} vouches for itself"
        held = self.crc_at(index)
        if held == header.header_crc:
            return f"frame {index} is there already"
        if held is not None and index <= self.committed_upto:
            return f"frame {index} would replace a committed one"
        return ""

    def fill(self, header: Header) -> bool:
        """Take in a frame below the base; false for one that lies elsewhere, or that is there already."""
        if header.index >= self.base or self.crc_at(header.index) == header.header_crc:
            return False
        problem = self.fill_problem(header)
        require(not problem, problem)
        self._put_older(header)
        self.absorb()
        return True

    def absorb(self) -> None:
        """Make the older frames that connect to the base part of the chain (rule 6)."""
        chain, older = self.chain, self.older
        while older and older[-1].last == chain.first - 1 and older[-1].last_crc == chain.prev_crc:
            chain.put_before(older.pop())
            self.last_epoch = chain.epochs.last

    def _put_older(self, header: Header) -> None:
        older, index = self.older, header.index
        at = self._piece_from(index)
        if at >= 0 and older[at].last >= index:  # another frame is there: take it out
            piece = older[at]
            rests = [(piece.first, index - 1), (index + 1, piece.last)]
            older[at : at + 1] = [piece.part(first, last) for first, last in rests if first <= last]
            at = self._piece_from(index)
        if at >= 0 and older[at].last == index - 1 and older[at].last_crc == header.prev_crc:
            older[at].append(header)
        else:
            at += 1
            older.insert(at, Piece(index, header.prev_crc))
            older[at].append(header)
        self._connect(at)

    def _connect(self, at: int) -> None:
        """Make the piece at `at` and the one behind it one, if they chain."""
        piece, *rest = self.older[at : at + 2]
        if not rest or piece.last != rest[0].first - 1 or piece.last_crc != rest[0].prev_crc:
            return
        if len(piece.crcs) < len(rest[0].crcs):
            rest[0].put_before(piece)
            del self.older[at]
        else:
            piece.put_behind(rest[0])
            del self.older[at + 1]

    def _piece_from(self, index: int) -> int:
        """The place of the last older piece that begins at or below `index`; -1 for none."""
        return bisect_right(self.older, index, key=lambda piece: piece.first) - 1


def _united(intervals: Iterable[Interval], last: int) -> list[Interval]:
    """The same indexes up to `last`, as intervals in order that do not overlap."""
    united: list[Interval] = []
    for start, end in sorted((start, min(end, last)) for start, end in intervals):
        if start > end:
            continue
        if united and start <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return united
