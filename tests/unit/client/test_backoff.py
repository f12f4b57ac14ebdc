"""The ladders' steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trilogue.client.connecting.backoff import RECONNECT_S, reconnect_after_s, retry_after_s


def test_an_unanswered_message_is_sent_again_after_1_3_5_then_every_5_seconds() -> None:
    assert [retry_after_s(tries) for tries in range(6)] == [1, 3, 5, 5, 5, 5]


def test_the_first_reconnection_is_made_at_once() -> None:
    assert reconnect_after_s(0, 0.0) == 0


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_reconnecting_never_waits_longer_than_a_second_nor_shorter_than_half_its_step(attempt: int, jitter: float) -> None:
    step = reconnect_after_s(attempt, 0.0)
    assert step == RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)] <= 1.0
    assert step / 2 <= reconnect_after_s(attempt, jitter) <= step
