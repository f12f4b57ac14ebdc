"""Times and processor time: histograms of latency, and what each role's processes have used.

Owns how both are counted. It must not know what is being measured. Invariants: no recorded latency is dropped (one beyond
the histogram's range counts as the range's end), and the processor time of a role is the sum over all its processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import cast

import psutil
from hdrh.histogram import HdrHistogram

from trilogue.bench.report.schema import LatencyMs

HIGHEST_US = 600_000_000
SIGNIFICANT_DIGITS = 3
CURVE_STEPS_PER_HALVING = 8
SPAN_S_MIN = 0.2


class Histogram:
    """Latencies, to three significant digits, from a microsecond to ten minutes."""

    def __init__(self, encoded: str = "") -> None:
        """Empty, or what `encode` made."""
        self._counts = HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)
        if encoded:
            self._counts.decode_and_add(encoded.encode())

    @property
    def count(self) -> int:
        """How many latencies were recorded."""
        return cast(int, self._counts.get_total_count())

    def record_ns(self, span_ns: int, count: int = 1) -> None:
        """Count one latency, which `count` messages had."""
        self._counts.record_value(min(max(1, round(span_ns / 1000)), HIGHEST_US), count)

    def add(self, other: Histogram) -> None:
        """Count all that `other` has counted."""
        self._counts.add(other._counts)

    def encode(self) -> str:
        """The histogram as text, for another process."""
        encoded: bytes = self._counts.encode()
        return encoded.decode()

    def latency_ms(self) -> LatencyMs:
        """The four figures of a result, in milliseconds; all 0 when nothing was recorded."""
        return LatencyMs(p50=self._at(50), p99=self._at(99), p999=self._at(99.9), max=self._at(100))

    def curve_ms(self) -> list[tuple[float, float]]:
        """(percentile, milliseconds) in steps that grow finer towards 100, as far as the number of samples allows."""
        wanted = [50.0, 99.0, 99.9]
        left = 100.0
        while left / 100 * self.count >= 1:
            wanted.append(100 - left)
            left *= 0.5 ** (1 / CURVE_STEPS_PER_HALVING)
        return [(at, self._at(at)) for at in sorted(set(wanted)) if at <= 100 * (1 - 1 / max(1, self.count))]

    def _at(self, percentile: float) -> float:
        # The histogram's own highest value of a bucket, so that a figure is never better than what was measured.
        return round(self._counts.get_value_at_percentile(percentile) / 1000, 4) if self.count else 0.0


class CpuMeter:
    """Processor time of roles between two moments. `pids` are the processes on this machine by role."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = pids
        self._own_ns = 0
        self._began = 0.0
        self._before: dict[str, float | None] = {}

    def start(self) -> None:
        """The span begins."""
        self._before = {role: _used_s(pids) for role, pids in self._pids.items()}
        self._own_ns = time.process_time_ns()
        self._began = time.monotonic()

    def stop(self) -> dict[str, float | None]:
        """Seconds used since `start` by `client` (this process) and by each role; None where it is not known.

        It is not known for a role without processes on this machine, when one of them ended in between, or when the span
        was too short for the kernel's clock ticks.
        """
        too_short = time.monotonic() - self._began < SPAN_S_MIN
        used: dict[str, float | None] = {"client": (time.process_time_ns() - self._own_ns) / 1e9}
        for role, pids in self._pids.items():
            before, after = self._before[role], _used_s(pids)
            used[role] = None if too_short or before is None or after is None else after - before
        return used


def _used_s(pids: Sequence[int]) -> float | None:
    try:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
    except psutil.Error:
        return None
    return sum(each.user + each.system for each in times) if times else None
