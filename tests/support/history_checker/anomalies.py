"""The names of what may not happen (design §14), and how one is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What is wrong."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    GAP = "gap"
    SENDER_ORDER = "sender order broken"
    REAL_TIME = "real-time order broken"
    NOT_COMMITTED = "read not committed"
    READERS_DISAGREE = "readers disagree"
    CURSOR_SKIPPED = "cursor skipped"
    NEVER_CAME_BACK = "never came back"
    STORES_DISAGREE = "stores disagree"
    CONFLICTING_ANSWERS = "conflicting answers"
    MADE_UP = "made up"
    TOO_FEW_COPIES = "too few copies"
    REFUSED_BUT_STORED = "refused but stored"
    DAMAGED = "damaged"
    NOT_TRIMMED = "gone and not trimmed"
    DEPOSED = "acked by a deposed writer"


class Anomaly(NamedTuple):
    """One thing that is wrong, and where."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


def summary(anomalies: Iterable[Anomaly], each_max: int = 5) -> str:
    """How many of each kind, and the first few of each; empty when there are none."""
    found = list(anomalies)
    lines = [f"{count} × {kind}" for kind, count in Counter(one.kind for one in found).most_common()]
    shown: Counter[Kind] = Counter()
    for one in found:
        shown[one.kind] += 1
        if shown[one.kind] <= each_max:
            lines.append(f"  {one}")
    return "\n".join(lines)
