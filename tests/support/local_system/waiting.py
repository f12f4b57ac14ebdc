"""The one place where tests wait: for a condition, with a deadline; never for a duration."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
POLL_S = 0.02


def eventually(condition: Callable[[], Value], deadline_s: float, what: str | Callable[[], str]) -> Value:
    """The first true value of `condition`; an AssertionError that says `what` if there is none within `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)
    return value
