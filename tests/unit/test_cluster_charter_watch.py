"""When a store of the register's charter is replaced, and by whom (G11): at once, after a while, or not at all."""

from __future__ import annotations

import pytest

from trilogue.actors.protocol.register.charter import Charter
from trilogue.cluster.on_ray.charter_watch import ASLEEP_MS, GONE_MS, CharterWatch

STORES = ("store-1", "store-2", "store-3", "store-4")
IDS = {name: f"id of {name}" for name in STORES}
CHARTER = Charter(1, {name: IDS[name] for name in STORES[:3]})
STEP_MS = 1_000


def without(*names: str) -> dict[str, str]:
    """What the others answer."""
    return {name: one for name, one in IDS.items() if name not in names}


def watch(stores: tuple[str, ...] = STORES) -> CharterWatch:
    return CharterWatch(stores, 0)


def after(one: CharterWatch, acceptors: dict[str, str], until_ms: int, charter: Charter = CHARTER) -> tuple[str, ...] | None:
    """What is decided when the stores answer so from the first second on, until then."""
    decided = None
    for now_ms in range(STEP_MS, until_ms + 1, STEP_MS):
        decided = one.look(charter, acceptors, now_ms)
    return decided


def test_g11_nothing_is_changed_while_all_answer() -> None:
    one = watch()
    assert after(one, IDS, 60_000) is None
    assert one.health is not None
    assert (one.health.may_lose, one.health.gone, one.health.lost) == (1, {}, False)


def test_g11_an_emptied_store_is_taken_in_again_at_once_as_the_acceptor_that_it_is_now() -> None:
    one = watch()
    assert one.look(CHARTER, IDS | {"store-2": "another"}, STEP_MS) == ("store-1", "store-2", "store-3")


def test_g11_a_silent_store_is_replaced_by_a_spare_one_after_the_bound_and_not_before() -> None:
    one = watch()
    assert after(one, without("store-2"), GONE_MS - STEP_MS) is None
    assert one.look(CHARTER, without("store-2"), GONE_MS) == ("store-1", "store-4", "store-3")


def test_a_store_that_restarts_again_and_again_changes_nothing() -> None:
    one = watch()
    for now_ms in range(STEP_MS, 100_000, STEP_MS):
        assert one.look(CHARTER, IDS if now_ms % 5_000 == 0 else without("store-2"), now_ms) is None


def test_without_another_store_the_charter_stays_and_says_who_is_gone() -> None:
    one = watch(STORES[:3])
    answers = {name: IDS[name] for name in STORES[:2]}
    assert after(one, answers, 60_000) is None
    assert one.health is not None
    assert one.health.gone == {"store-3": "it does not answer"}
    assert (one.health.may_lose, one.health.lost) == (0, False)


@pytest.mark.parametrize("emptied", [True, False])
def test_without_a_majority_nothing_is_decided_and_it_is_lost(emptied: bool) -> None:
    one = watch()
    answers = without("store-2", "store-3") | ({"store-2": "new 2", "store-3": "new 3"} if emptied else {})
    assert after(one, answers, GONE_MS) is None
    assert one.health is not None
    assert one.health.lost
    assert one.health.may_lose == -1


def test_two_silent_ones_are_not_lost_before_the_bound() -> None:
    one = watch()
    assert after(one, without("store-2", "store-3"), GONE_MS - STEP_MS) is None
    assert one.health is not None
    assert not one.health.lost


def test_a_charter_of_one_store_grows_to_three_as_stores_come() -> None:
    one = watch()
    alone = Charter(1 << 20, {"store-3": IDS["store-3"]})
    assert one.look(alone, {"store-3": IDS["store-3"]}, STEP_MS) is None
    assert one.look(alone, IDS, 2 * STEP_MS) == ("store-3", "store-1", "store-2")


def test_time_that_the_supervisor_slept_through_is_nobodys_silence() -> None:
    one = watch()
    assert one.look(CHARTER, IDS, STEP_MS) is None
    assert one.look(CHARTER, without("store-2"), STEP_MS + GONE_MS + ASLEEP_MS) is None
    assert after(one, IDS, STEP_MS) is None


def test_of_two_lost_of_five_both_are_replaced_as_far_as_there_are_stores() -> None:
    five = Charter(3, {f"store-{k}": f"id {k}" for k in range(1, 6)})
    one = CharterWatch([f"store-{k}" for k in range(1, 7)], 0)
    answers = {"store-1": "id 1", "store-3": "id 3", "store-4": "id 4", "store-6": "id 6"}
    decided = after(one, answers, GONE_MS, five)
    assert decided == ("store-1", "store-6", "store-3", "store-4", "store-5")
