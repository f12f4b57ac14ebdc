"""Silence on a connection: when it is asked for a sign of life, and when it is dead."""

from __future__ import annotations

import pytest

from trilogue.client.connecting.keepalive import ANSWER_S, IDLE_PING_AFTER_S, PING_AFTER_S, KeepAlive, Sign


@pytest.mark.parametrize(("outstanding", "bound_s"), [(True, 6.0), (False, 14.0)])
def test_a_connection_that_says_nothing_is_dead_within_the_bound(outstanding: bool, bound_s: float) -> None:
    alive, signs = KeepAlive(100.0), []
    now = 100.0
    while Sign.DEAD not in signs:
        now += 0.1
        signs.append(alive.look(now, outstanding))
    assert signs.count(Sign.PING) == 1
    assert now - 100.0 <= bound_s + 0.2
    assert bound_s == (PING_AFTER_S if outstanding else IDLE_PING_AFTER_S) + ANSWER_S


def test_any_word_of_the_other_side_is_a_sign_of_life() -> None:
    alive = KeepAlive(0.0)
    assert alive.look(PING_AFTER_S, True) is Sign.PING
    alive.heard_at = PING_AFTER_S + 1.0
    assert not alive.asked
    assert alive.look(PING_AFTER_S + ANSWER_S, True) is Sign.PING, "it has been silent again since"


def test_a_process_that_was_stopped_itself_believes_nobody_dead() -> None:
    alive = KeepAlive(0.0)
    assert alive.look(PING_AFTER_S, True) is Sign.PING
    alive.begin_anew(3600.0)
    assert alive.look(3600.5, True) is Sign.NOTHING
