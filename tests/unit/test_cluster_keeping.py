"""How long, and how many bytes of, messages are kept: what people write, and what is shown to them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import InvalidSettings
from trilogue.cluster.settings.keeping import (
    KEEP_BYTES_MAX,
    KEEP_S_MAX,
    bytes_of,
    bytes_text,
    in_words,
    seconds_of,
    time_text,
)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("30d", 2_592_000), ("12h", 43_200), ("90m", 5_400), ("45s", 45), (" 1s ", 1), ("forever", 0),
        (60, 60), (1.5, 2), (timedelta(days=1), 86_400), (timedelta(milliseconds=1_001), 2), ("36500d", KEEP_S_MAX),
    ],
)  # fmt: skip
def test_a_time_is_a_text_with_a_unit_a_timedelta_or_seconds_rounded_up(asked: Any, seconds: int) -> None:
    assert seconds_of(asked) == seconds


@pytest.mark.parametrize(
    "asked",
    [
        "0", "0d", "", "30", "d", "-1d", "1.5d", "30 days", "30D", "36501d", "all", "9" * 99 + "d", 0, -1, 0.5, True,
        float("nan"), float("inf"), timedelta(0), [30],
    ],
)  # fmt: skip
def test_a_time_that_cannot_be_meant_is_refused_in_one_line_that_shows_what_can(asked: Any) -> None:
    """G8: "keep for 0" could as well mean "keep nothing", and what is gone is gone."""
    with pytest.raises(InvalidSettings, match=r"as in 30d, 12h, 90m or 45s .* or forever") as refused:
        seconds_of(asked)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ("50GiB", 50 << 30), ("500MB", 500_000_000), ("1.5GiB", 3 << 29), ("10 kib", 10_240), ("2tb", 2 * 10**12),
        ("1TiB", 1 << 40), ("1000000", 1_000_000), ("7B", 7), (4096, 4096), ("all", 0),
    ],
)  # fmt: skip
def test_a_size_is_a_number_with_a_unit_or_of_bytes(asked: Any, size: int) -> None:
    assert bytes_of(asked) == size


@pytest.mark.parametrize("asked", ["0", "", "GiB", "-5MB", "50G", "5 gigs", "0.1B", "forever", "9" * 30, 0, -1, True, 1.5])
def test_a_size_that_cannot_be_meant_is_refused_in_one_line_that_shows_what_can(asked: Any) -> None:
    with pytest.raises(InvalidSettings, match=r"as in 50GiB, 500MB or 1000000, or all"):
        bytes_of(asked)


@given(seconds=st.integers(0, KEEP_S_MAX), size=st.integers(0, 10**14) | st.sampled_from([KEEP_BYTES_MAX, 3 << 40]))
def test_what_is_shown_can_be_typed_again(seconds: int, size: int) -> None:
    assert seconds_of(time_text(seconds)) == seconds
    assert bytes_of(bytes_text(size)) == size


def test_what_is_let_go_is_said_in_words() -> None:
    assert in_words(0, 0) == "keeps everything"
    assert in_words(86_400, 0) == "lets go messages older than 1d"
    assert in_words(0, 1 << 30) == "lets go the oldest of more than 1GiB in a partition"
    both = "lets go messages older than 36h and the oldest of more than 500MB in a partition"
    assert in_words(129_600, 500_000_000) == both
