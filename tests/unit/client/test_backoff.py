"""The ladders' steps."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from trilogue.client.connecting.backoff import RECONNECT_S, reconnect_after_s, retry_after_s


def test_an_unanswered_message_is_sent_again_after_1_3_5_then_every_5_seconds() -> None:
    assert [retry_after_s(tries) for tries in range(6)] == [1, 3, 5, 5, 5, 5]


def test_the_first_reconnection_is_made_at_once() -> None:
    assert reconnect_after_s(0, 0.0) == 0


def test_after_a_loss_one_looks_in_quick_succession_and_after_a_second_no_more_than_once_a_second() -> None:
    looks = list(itertools.accumulate(RECONNECT_S))
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert all(gap <= 0.02 + 1e-9 for look, gap in zip(looks, gaps, strict=False) if look < 0.09), "a spare needs 30 to 60 ms"
    assert all(gap <= 0.1 for look, gap in zip(looks, gaps, strict=False) if look < 0.25)
    assert len([look for look in looks if look < 1.0]) <= 15, "no storm"
    assert list(RECONNECT_S) == sorted(RECONNECT_S)
    assert RECONNECT_S[-1] == 1.0


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_reconnecting_never_waits_longer_than_a_second_nor_shorter_than_half_its_step(attempt: int, jitter: float) -> None:
    step = reconnect_after_s(attempt, 0.0)
    assert step == RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)] <= 1.0
    assert step / 2 <= reconnect_after_s(attempt, jitter) <= step
