"""Stalls: how long after a fault the first message that was handed over since then was acked; and who acked it.

Owns the arithmetic on the moments of hand-overs and acks. It is pure. Rules:

1. A stall lasts from the fault to the first ack of a message that was handed over after it, in the partition that the hurt
   process served (design §15); where it served several, until each of them has had such an ack.
2. The clock's doubts lengthen a stall: it starts before the signal was sent, and only a message counts that was handed over
   after the signal had been sent. It is exact otherwise: nothing is sampled or rounded.
3. Epochs never fall from one ack of a partition to the next, and a writer that was killed acks nothing that was handed over
   afterwards: what breaks this is a stale ack, and the run has failed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from trilogue.bench.load.job import Fault, Felt, Outages, Strips

STEP_MS = 10.0
BEFORE_MS = 200.0
AFTER_MS_MIN = 400.0
AFTER_MS_MAX = 20_000.0
AFTER_SHARE = 1.12
MS = 1_000_000
EXAMPLES_MAX = 10


def moments() -> array[int]:
    """An empty list of moments or numbers, 8 bytes each."""
    return array("Q")


@dataclass(slots=True)
class Moments:
    """When each message was handed over and acked (0: not yet), and under which epoch; by number, hand-overs in order.

    Message k goes to partition `cycle[k % len(cycle)]`.
    """

    cycle: Sequence[int]
    handed_ns: array[int] = field(default_factory=moments)
    acked_ns: array[int] = field(default_factory=moments)
    epochs: array[int] = field(default_factory=moments)

    def hand_over(self, now_ns: int) -> int:
        """A message is handed over; its number."""
        self.handed_ns.append(now_ns)
        self.acked_ns.append(0)
        self.epochs.append(0)
        return len(self.handed_ns) - 1

    def first_ack(self, partition: int, after_ns: int) -> int | None:
        """The number of the message that was acked first of those that were handed over after `after_ns`."""
        best: int | None = None
        best_ns = 0
        for number in range(bisect_right(self.handed_ns, after_ns), len(self.handed_ns)):
            if best is not None and self.handed_ns[number] >= best_ns:
                break  # nothing is acked before it is handed over
            acked_ns = self.acked_ns[number]
            if acked_ns and self.partition(number) == partition and (best is None or acked_ns < best_ns):
                best, best_ns = number, acked_ns
        return best

    def partition(self, number: int) -> int:
        """Where the message goes."""
        return self.cycle[number % len(self.cycle)]


@dataclass(slots=True)
class Watch:
    """What is noticed while acks come: of each partition the newest hand-over that was acked, the longest gap, the epochs."""

    partitions: int
    acked_upto_ns: list[int] = field(init=False)
    longest_gap_ns: int = 0
    stale: int = 0
    examples: list[str] = field(default_factory=list)
    _last_ns: list[int] = field(init=False)
    _epochs: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.acked_upto_ns = [0] * self.partitions
        self._last_ns = [0] * self.partitions
        self._epochs = [[] for _ in range(self.partitions)]

    def came(self, partition: int, handed_ns: int, now_ns: int, epoch: int) -> None:
        """An ack is here."""
        last_ns, epochs = self._last_ns[partition], self._epochs[partition]
        if last_ns and now_ns - last_ns > self.longest_gap_ns:
            self.longest_gap_ns = now_ns - last_ns
        self._last_ns[partition] = now_ns
        if handed_ns > self.acked_upto_ns[partition]:
            self.acked_upto_ns[partition] = handed_ns
        if not epochs or epoch > epochs[-1]:
            epochs.append(epoch)
        elif epoch < epochs[-1]:
            self.found_stale(f"partition {partition}: an ack of epoch {epoch} came after one of epoch {epochs[-1]}")

    def found_stale(self, what: str) -> None:
        """Count one stale ack."""
        self.stale += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"stale ack: {what}")

    @property
    def epochs(self) -> list[list[int]]:
        """The epochs of each partition's acks, in the order in which they came up."""
        return self._epochs


def outages(faults: Sequence[Fault], moments: Moments, watch: Watch) -> Outages:
    """How the faults were felt. Raises `ValueError` if a partition acked nothing that was handed over after one of them."""
    ends = [_end(k, fault, moments) for k, fault in enumerate(faults, start=1)]
    stalls_ns = [moments.acked_ns[end] - fault.before_ns for fault, end in zip(faults, ends, strict=True)]
    strips = _strips(max(stalls_ns, default=0))
    for k, fault in enumerate(faults, start=1):
        _look_for_the_dead(k, fault, moments, watch)
    felt = [
        Felt(stall_ns=stall_ns, epoch=moments.epochs[end], acks=acks)
        for stall_ns, end, acks in zip(stalls_ns, ends, _acks_around(faults, moments, strips), strict=True)
    ]
    return Outages(
        felt=felt,
        strips=strips,
        longest_gap_ms=round(watch.longest_gap_ns / MS, 3),
        epochs=watch.epochs,
        stale=watch.stale,
        stale_examples=watch.examples,
    )


def _end(number: int, fault: Fault, moments: Moments) -> int:
    """The number of the message whose ack ended the fault's stall: the last one of its partitions' first acks."""
    firsts = []
    for partition in fault.partitions:
        first = moments.first_ack(partition, fault.after_ns)
        if first is None:
            raise ValueError(f"fault {number}: partition {partition} acked nothing that was handed over afterwards")
        firsts.append(first)
    return max(firsts, key=moments.acked_ns.__getitem__)


def _look_for_the_dead(number: int, fault: Fault, moments: Moments, watch: Watch) -> None:
    """Count acks that a killed writer gave after its end: it was not the one that was killed, or it lives."""
    if not fault.epoch or fault.paused:
        return  # who was only paused may go on as if it had been slow, unless another took over: `Watch` sees that
    for k in range(bisect_right(moments.handed_ns, fault.after_ns), len(moments.handed_ns)):
        if moments.acked_ns[k] and moments.partition(k) in fault.partitions:
            if moments.epochs[k] > fault.epoch:
                return  # epochs do not fall: `Watch` sees that
            watch.found_stale(f"kill {number}: epoch {moments.epochs[k]} acked a message that was handed over after its end")


def _strips(longest_ns: int) -> Strips:
    after_ms = min(max(AFTER_MS_MIN, longest_ns / MS * AFTER_SHARE), AFTER_MS_MAX)
    return Strips(step_ms=STEP_MS, before_ms=BEFORE_MS, steps=round((BEFORE_MS + after_ms) / STEP_MS))


def _acks_around(faults: Sequence[Fault], moments: Moments, strips: Strips) -> list[list[int]]:
    """For each fault: how many acks its partitions had in each step around it; up to the next fault, or the end of the run."""
    counts = [[0] * strips.steps for _ in faults]
    step_ns = int(strips.step_ms * MS)
    begins_ns = [fault.before_ns - int(strips.before_ms * MS) for fault in faults]
    span_ns = strips.steps * step_ns
    for number, at_ns in enumerate(moments.acked_ns):
        k = bisect_right(begins_ns, at_ns) - 1
        while at_ns and k >= 0 and at_ns < begins_ns[k] + span_ns:
            if moments.partition(number) in faults[k].partitions:
                counts[k][(at_ns - begins_ns[k]) // step_ns] += 1
            k -= 1
    ends_ns = [*(fault.before_ns for fault in faults[1:]), max(moments.acked_ns, default=0)]
    for of_it, begin_ns, end_ns in zip(counts, begins_ns, ends_ns, strict=False):
        del of_it[max(0, end_ns - begin_ns) // step_ns :]
    return counts
