"""What several stores together still have: which chain each partition has, who lacks what, and what nobody has any more.

Owns the decision of a repair. Pure: it must not know files' bytes, or how a store is rebuilt. Rules:

1. Every frame names the one before it by CRC, so the frames of all stores are one tree per partition. Of two branches, that one
   counts which was put on some store under the higher fence, and then the one with the higher (epoch, index): so a takeover
   would choose. An intact store stands by the end of its chain under its present fence. It is never decided by counting copies.
2. A frame that was found by searching only, and also seen inside a body, is no end: it counts where a frame that is beyond
   doubt names it, and nowhere else.
3. A frame whose header alone is intact proves that it was there, and what it follows.
4. Known to be committed is what some frame of the chain says. What is known to be committed and whole on no store is *lost*.
   What was there, is whole on no store and not known to be committed is *doubtful*, unless an intact store of the partition
   ends before it: then it was on its way, and nobody heard "stored".
5. A frame beside the chain that knows another history to be committed is a *contradiction*, and nothing is decided.
6. Only damaged stores are given anything, whole partitions at a time, and only what chains from frame 1 on. An intact store is
   never changed because of a damaged one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trilogue.actors.journal.records import FenceRecord, Position
from trilogue.actors.journal.salvage import Found, FrameKey, StoreSalvage

Interval = tuple[int, int]  # both ends belong to it


class Home(NamedTuple):
    """Where a whole copy of a frame lies."""

    store: str
    position: Position


@dataclass(slots=True)
class Node:
    """One frame of the tree. It is `sure` if it lies where frames begin, or was never seen inside a body."""

    key: FrameKey
    epoch: int
    prev_crc: int
    committed_upto: int
    rank: int  # the highest epoch that was in force where it was put on a store
    sure: bool = False
    homes: list[Home] = field(default_factory=list)


@dataclass(slots=True)
class PartitionPlan:
    """What can be had of one partition. `chain` holds the frames from 1 on that the stores are given."""

    partition: int
    chain: list[Node]
    committed: int
    lost: list[Interval]
    doubtful: list[Interval]
    never_stored: list[Interval]  # on its way when the system ended: an intact store does not have it
    given_up: int  # whole frames that follow what is missing: no store could hold them
    contradiction: str


@dataclass(slots=True)
class Plan:
    """What to do. `contents`: the partitions that each damaged store is given, and `fences`: those that it must remember."""

    partitions: dict[int, PartitionPlan]
    contents: dict[str, list[int]]
    fences: dict[str, list[FenceRecord]]
    lacking: dict[tuple[str, int], list[Interval]]  # what each store that is damaged, or ends early, does not have of a chain

    @property
    def loses(self) -> bool:
        """Whether carrying it out gives something up that may have been stored."""
        return any(one.lost or one.doubtful or one.contradiction for one in self.partitions.values())


def plan(stores: Mapping[str, StoreSalvage], copies: int) -> Plan:
    """Decide. `copies`: on how many stores a partition is meant to be, for those that damage has wiped out on a store."""
    trees = _trees(stores)
    shown = {name: _shown(one) for name, one in stores.items()}
    for partition in set().union(*shown.values()):
        trees.setdefault(partition, {})
    partitions = {
        partition: _decide(partition, tree, [one.ends.get(partition) for one in stores.values() if one.intact])
        for partition, tree in sorted(trees.items())
    }
    contents: dict[str, list[int]] = {}
    fences: dict[str, list[FenceRecord]] = {}
    for name, one in stores.items():
        if not one.intact:
            contents[name] = [p for p in partitions if p in shown[name] or sum(p in other for other in shown.values()) < copies]
            fences[name] = [fence for p in contents[name] if (fence := _fence(p, one, stores.values())) is not None]
    lacking = {
        (name, p): gaps
        for name, one in stores.items()
        for p in (contents[name] if name in contents else sorted(shown[name]))
        if (gaps := _gaps(partitions[p].chain, name))
    }
    return Plan(partitions, contents, fences, lacking)


def intervals(indexes: Iterable[int]) -> list[Interval]:
    """Rising numbers as closed intervals."""
    result: list[Interval] = []
    for index in indexes:
        if result and result[-1][1] == index - 1:
            result[-1] = (result[-1][0], index)
        else:
            result.append((index, index))
    return result


# ---------------------------------------------------------------------- the tree

_Tree = dict[tuple[int, int], Node]  # (index, CRC) -> the frame


def _trees(stores: Mapping[str, StoreSalvage]) -> dict[int, _Tree]:
    embedded = set[FrameKey]().union(*(one.embedded for one in stores.values()))
    trees: dict[int, _Tree] = {}
    for name, one in stores.items():
        for whole, found in [(True, f) for f in one.frames] + [(False, f) for f in one.torn]:
            node = _node(trees, found)
            node.sure = node.sure or found.placed or found.key not in embedded
            node.rank = max(node.rank, found.fence)
            if whole:
                node.homes.append(Home(name, found.position))
                node.homes.sort(key=lambda home: -home.position.size)  # whole ones before what is left of one
        for partition, key in one.tips.items():
            tip = trees[partition][key.frame_index, key.crc]
            tip.rank = max(tip.rank, one.fence_epoch(partition))
    return trees


def _node(trees: dict[int, _Tree], found: Found) -> Node:
    partition, index, crc = found.key
    tree = trees.setdefault(partition, {})
    node = tree.get((index, crc))
    if node is None:
        node = tree[index, crc] = Node(found.key, found.epoch, found.prev_crc, found.committed_upto, found.fence)
    return node


def _shown(one: StoreSalvage) -> set[int]:
    """The partitions of which the store shows anything."""
    return {found.key.partition for found in (*one.frames, *one.torn)} | set(one.fences)


# ---------------------------------------------------------------------- one partition


def _decide(partition: int, tree: _Tree, intact_ends: list[int | None]) -> PartitionPlan:
    sure = [node for node in tree.values() if node.sure]
    if not sure:
        return PartitionPlan(partition, [], 0, [], [], [], 0, "")
    path, contradiction = _path(tree, _end(tree, sure))
    committed = max((node.committed_upto for node in path if node is not None), default=0)
    missing = [index for index, node in enumerate(path, 1) if node is None or not node.homes]
    reach = missing[0] - 1 if missing else len(path)
    chain = [node for node in path[:reach] if node is not None]
    lost = [index for index in missing if index <= committed]
    unproven = [index for index in missing if index > committed]
    denied = not lost and any(known is not None and known <= reach for known in intact_ends)
    return PartitionPlan(
        partition=partition,
        chain=chain,
        committed=committed,
        lost=intervals(lost),
        doubtful=[] if denied else intervals(unproven),
        never_stored=intervals(unproven) if denied else [],
        given_up=sum(1 for node in path[reach:] if node is not None and node.homes),
        contradiction=contradiction or _beside(tree, sure, path),
    )


def _end(tree: _Tree, sure: list[Node]) -> Node:
    """The last frame of the chain (rule 1)."""
    bottoms = _bottoms(tree)
    fitting = sure
    while True:
        end = max(fitting, key=_weight)
        # What was put there under lower fences counts where it continues this, or may: a lost frame lies between.
        at, above = end.key.frame_index, {end.key}
        for node in sorted(tree.values(), key=lambda node: node.key.frame_index):
            index = node.key.frame_index
            if index > at:
                before = tree.get((index - 1, node.prev_crc))
                if before is not None and before.key in above:
                    above.add(node.key)
        fitting = [node for node in fitting if node.key.frame_index > at and (node.key in above or bottoms[node.key] > at + 1)]
        if not fitting:
            return end


def _weight(node: Node) -> tuple[int, int, int, bool]:
    return (node.rank, node.epoch, node.key.frame_index, bool(node.homes))


def _bottoms(tree: _Tree) -> dict[FrameKey, int]:
    """From which index on the frames below each frame are known."""
    bottoms: dict[FrameKey, int] = {}
    for node in sorted(tree.values(), key=lambda node: node.key.frame_index):
        before = tree.get((node.key.frame_index - 1, node.prev_crc))
        bottoms[node.key] = bottoms[before.key] if before is not None else node.key.frame_index
    return bottoms


def _path(tree: _Tree, end: Node) -> tuple[list[Node | None], str]:
    """The frames from 1 to `end`: None where nobody knows even the header. And what cannot be, in words."""
    by_index: dict[int, list[Node]] | None = None
    down: list[Node | None] = [end]
    crc: int | None = end.prev_crc
    epoch, contradiction = end.epoch, ""
    for index in range(end.key.frame_index - 1, 0, -1):
        node = tree.get((index, crc)) if crc is not None else None
        if crc is None:
            # What the lost frame above follows is unknown: the latest frame here that may be it.
            if by_index is None:
                by_index = _by_index(tree)
            fitting = [one for one in by_index.get(index, ()) if one.epoch <= epoch]
            node = max(fitting, key=_weight, default=None)
        if node is not None and node.epoch > epoch:  # epochs never fall along a chain
            contradiction = f"frame {index} of partition {end.key.partition} has a higher epoch than the one that follows it"
        crc = node.prev_crc if node is not None else None
        epoch = node.epoch if node is not None else epoch
        down.append(node)
    if crc not in (0, None):
        contradiction = f"frame 1 of partition {end.key.partition} follows a frame with CRC {crc:#010x}"
    return down[::-1], contradiction


def _by_index(tree: _Tree) -> dict[int, list[Node]]:
    result: dict[int, list[Node]] = {}
    for node in tree.values():
        if node.sure:
            result.setdefault(node.key.frame_index, []).append(node)
    return result


def _beside(tree: _Tree, sure: list[Node], path: list[Node | None]) -> str:
    """Why the path cannot be all there is: a sure frame beside it knows something else to be committed."""
    on_path = {node.key for node in path if node is not None}
    for node in sure:
        if node.key in on_path:
            continue
        claimed = node.committed_upto
        ancestor: Node | None = node
        while ancestor is not None and ancestor.key.frame_index > claimed and ancestor.key not in on_path:
            index = ancestor.key.frame_index - 1
            ancestor = tree.get((index, ancestor.prev_crc)) if index else None
        if ancestor is not None and ancestor.key not in on_path:
            where = f"partition {node.key.partition}"
            return (
                f"frame {node.key.frame_index} of epoch {node.epoch} in {where} knows frame {claimed} to be committed, "
                f"which is not in the chain that ends in epoch {path[-1].epoch if path[-1] else 0} at {len(path)}"
            )
    return ""


# ---------------------------------------------------------------------- one store


def _fence(partition: int, own: StoreSalvage, stores: Iterable[StoreSalvage]) -> FenceRecord | None:
    """The fence that a rebuilt store must remember: the highest that any store knows, its own one among equals."""
    known = [one.fences[partition] for one in (own, *stores) if partition in one.fences]
    return max(known, key=lambda fence: fence.epoch, default=None)  # the first of equals


def _gaps(chain: list[Node], store: str) -> list[Interval]:
    return intervals(node.key.frame_index for node in chain if all(home.store != store for home in node.homes))
