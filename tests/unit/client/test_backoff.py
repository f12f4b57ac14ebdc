"""The ladders' steps."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from trilogue.client.connecting.backoff import RECONNECT_S, Pace, attempts_max, reconnect_after_s, retry_after_s


def test_an_unanswered_message_is_sent_again_after_1_3_5_then_every_5_seconds() -> None:
    assert [retry_after_s(tries) for tries in range(6)] == [1, 3, 5, 5, 5, 5]


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_jitter_makes_a_retry_later_by_a_fifth_at_most_and_never_earlier(tries: int, jitter: float) -> None:
    assert retry_after_s(tries) <= retry_after_s(tries, jitter) <= 1.2 * retry_after_s(tries)


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


def begun_within(pace: Pace, began: float, seconds: float, jitters: list[float]) -> int:
    """How many connections begin until `began + seconds` if somebody always wants one."""
    now = began
    for count, jitter in enumerate(itertools.cycle(jitters)):
        now += max(pace.wait_s(now), 0.0)
        if now > began + seconds:
            return count
        pace.began(now, jitter)
    raise AssertionError


JITTERS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30)


@given(st.floats(0, 60), JITTERS)
def test_without_an_answer_no_more_connections_begin_than_the_bound_says(seconds: float, jitters: list[float]) -> None:
    assert 1 <= begun_within(Pace(), 100.0, seconds, jitters) <= attempts_max(seconds)


def test_the_bound_is_what_the_docstring_says() -> None:
    assert [attempts_max(seconds) for seconds in (0.0, 0.73, 5.0, 60.0)] == [1, 15, 23, 133]
    for tenths in range(8, 600):
        assert attempts_max(tenths / 10) <= 15 + 2 * (tenths / 10 - 0.73) + 1e-9
    assert 17 <= begun_within(Pace(), 0.0, 5.0, [0.5]) <= 21


@given(st.integers(1, 43), JITTERS)
def test_a_network_that_is_up_2_s_and_down_5_s_costs_the_bound_of_5_s_each_time(flaps: int, jitters: list[float]) -> None:
    pace = Pace()
    for flap in range(flaps):
        began = begun_within(pace, 7.0 * flap, 5.0, jitters)
        assert began <= attempts_max(5.0)
        pace.answered()


def test_an_answer_lets_the_next_connection_begin_at_once() -> None:
    pace = Pace()
    for now in range(100):
        pace.began(float(now), 0.0)
    assert pace.wait_s(99.0) == 1.0
    pace.answered()
    assert pace.wait_s(99.0) <= 0.0
