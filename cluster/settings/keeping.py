"""How long messages are kept, and how many bytes of them: between what people write and numbers.

Owns the words of both settings. It must not know where they are stored, nor how messages are let go
(``trilogue.actors.session.retention``). Rules:

1. 0 is the number for "keep everything". Nobody writes it: "keep for 0" could as well mean "keep nothing", and what is gone is
   gone. People write `forever` and `all`.
2. What cannot be read is refused in one line that shows what can.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta

from trilogue.actors.protocol.errors import InvalidSettings

KEEP_S_MAX = 36_500 * 86_400
KEEP_BYTES_MAX = 1 << 60
FOREVER, ALL = "forever", "all"
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_BYTES = {
    "TiB": 1 << 40, "TB": 10**12, "GiB": 1 << 30, "GB": 10**9, "MiB": 1 << 20, "MB": 10**6, "KiB": 1 << 10, "KB": 10**3, "B": 1,
}  # fmt: skip
_BY_LOWER = {unit.lower(): size for unit, size in _BYTES.items()}

KeepFor = str | float | timedelta
KeepBytes = str | int


def seconds_of(asked: KeepFor) -> int:
    """`30d`, `12h`, `90m`, `45s`, a `timedelta`, or a number of seconds, rounded up; `forever`: 0. Raises `InvalidSettings`."""
    seconds = math.nan
    if asked == FOREVER:
        return 0
    if isinstance(asked, str):
        found = re.fullmatch(r"(\d{1,12})([dhms])", asked.strip())
        seconds = int(found[1]) * _SECONDS[found[2]] if found is not None else math.nan
    elif isinstance(asked, timedelta):
        seconds = asked.total_seconds()
    elif isinstance(asked, int | float) and not isinstance(asked, bool):
        seconds = asked
    if not 1 <= seconds <= KEEP_S_MAX:
        raise InvalidSettings(
            f"--keep-for {asked}: write how long, as in 30d, 12h, 90m or 45s (1s to {KEEP_S_MAX // 86_400}d), or {FOREVER}"
        )
    return math.ceil(seconds)


def bytes_of(asked: KeepBytes) -> int:
    """`50GiB`, `500MB`, or a number of bytes; `all`: 0. Raises `InvalidSettings`."""
    size: float = 0
    if asked == ALL:
        return 0
    if isinstance(asked, str):
        found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?)\s?([a-z]{0,3})", asked.strip().lower())
        unit = _BY_LOWER.get(found[2] or "b", 0) if found is not None else 0
        size = float(found[1]) * unit if found is not None else 0
    elif isinstance(asked, int) and not isinstance(asked, bool):
        size = asked
    if not 1 <= size <= KEEP_BYTES_MAX:
        raise InvalidSettings(f"--keep-bytes {asked}: write how much, as in 50GiB, 500MB or 1000000, or {ALL}")
    return int(size)


def time_text(seconds: int) -> str:
    """As `--keep-for` takes it."""
    unit = next((unit for unit, size in _SECONDS.items() if seconds % size == 0), "s")
    return f"{seconds // _SECONDS[unit]}{unit}" if seconds else FOREVER


def bytes_text(size: int) -> str:
    """As `--keep-bytes` takes it."""
    unit = next((unit for unit, of in _BYTES.items() if size % of == 0), "B")
    return f"{size // _BYTES[unit]}{unit}" if size else ALL


def in_words(seconds: int, size: int) -> str:
    """What is let go, in one line."""
    parts = [f"messages older than {time_text(seconds)}"] * bool(seconds)
    parts += [f"the oldest of more than {bytes_text(size)} in a partition"] * bool(size)
    return f"lets go {' and '.join(parts)}" if parts else "keeps everything"
