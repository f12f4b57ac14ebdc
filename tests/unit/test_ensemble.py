"""Who should hold a partition's log next, rule by rule (design §6, rules 4 to 6): pure choices."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_log import A, B, C, D, E, damaged, emptied
from trilogue.actors.protocol.ensemble import Wish, is_replaced, laggard, merged, replacement, with_range
from trilogue.actors.protocol.ranges import Member, Range

ORDER = tuple(member.name for member in (A, B, C, D, E))
STRICT = Wish(copies=3, min_copies=3, order=ORDER)
REDUCED = Wish(copies=3, min_copies=2, order=ORDER)
ABC = (A, B, C)


def wanted(
    members: tuple[Member, ...],
    up: Collection[Member],
    failed: Collection[Member] = (),
    slow: Collection[Member] = (),
    *,
    wish: Wish = STRICT,
) -> set[Member] | None:
    """`replacement`, said with members, without their order."""
    keys = {member.key for member in failed}, {member.key for member in slow}
    found = replacement(wish, members, {member.key: member for member in up}, *keys)
    return None if found is None else set(found)


# ---------------------------------------------------------------------- who is replaced, and by whom


def test_ensemble_that_is_whole_stays_as_it_is() -> None:
    assert wanted(ABC, up=(A, B, C, D, E)) is None


def test_failed_member_is_replaced_by_a_store_that_is_there_G11() -> None:
    assert wanted(ABC, up=(A, B, D), failed=[C]) == {A, B, D}


def test_member_that_is_merely_not_here_yet_is_waited_for() -> None:
    assert wanted(ABC, up=(A, B, D)) is None


def test_full_member_is_replaced_though_it_is_connected() -> None:
    assert wanted(ABC, up=(A, B, C, D), failed=[C]) == {A, B, D}


def test_spare_that_failed_itself_is_not_taken() -> None:
    assert wanted(ABC, up=(A, B, D), failed=[C, D]) is None
    assert wanted(ABC, up=(A, B, D, E), failed=[C, D]) == {A, B, E}


def test_spares_are_taken_in_the_order_of_the_wish_whatever_the_order_in_which_they_came() -> None:
    assert wanted(ABC, up=(E, B, D, A), failed=[C]) == {A, B, D}
    assert wanted(ABC, up=(A, D, B, E), failed=[C], wish=STRICT._replace(order=tuple(reversed(ORDER)))) == {A, B, E}


def test_store_that_the_wish_does_not_name_comes_last() -> None:
    stranger = Member("store-x", "uuid-x", 1)
    assert wanted(ABC, up=(stranger, B, E, A), failed=[C]) == {A, B, E}
    assert wanted(ABC, up=(stranger, B, A), failed=[C]) == {A, B, stranger}


def test_member_that_cut_a_damaged_tail_comes_before_other_spares_for_its_own_place() -> None:
    wish = STRICT._replace(order=tuple(reversed(ORDER)))
    assert wanted(ABC, up=(A, B, damaged(C), D), failed=[C], wish=wish) == {A, B, damaged(C)}


def test_order_of_kept_members_does_not_change() -> None:
    up = {member.key: member for member in (C, A, D)}
    assert replacement(STRICT, ABC, up, {B.key}, set()) == (A, C, D)


# ---------------------------------------------------------------------- slow ones


def test_slow_member_is_replaced_only_if_a_spare_is_there() -> None:
    assert wanted(ABC, up=(A, B, C), slow=[C]) is None
    assert wanted(ABC, up=(A, B, C), slow=[C], wish=REDUCED) is None, "slow is not a reason to hold fewer copies"
    assert wanted(ABC, up=(A, B, C, D), slow=[C]) == {A, B, D}


def test_slow_member_is_not_replaced_by_a_slow_spare() -> None:
    assert wanted(ABC, up=(A, B, C, D), slow=[C, D]) is None


def test_slow_spare_is_taken_when_there_is_no_other() -> None:
    assert wanted(ABC, up=(A, B, D, E), failed=[C], slow=[D]) == {A, B, E}
    assert wanted(ABC, up=(A, B, D), failed=[C], slow=[D]) == {A, B, D}


def test_failed_member_goes_before_a_slow_one() -> None:
    assert wanted(ABC, up=(A, B, D), failed=[C], slow=[B]) == {A, B, D}


@pytest.mark.parametrize("wish", [STRICT, REDUCED], ids=["strict", "reduced"])
def test_one_spare_takes_the_place_of_one_slow_member_and_the_other_slow_one_stays_G1(wish: Wish) -> None:
    found = wanted(ABC, up=(A, B, C, D), slow=[B, C], wish=wish)
    assert found is not None
    assert len(found) == 3
    assert {A, D} < found


def test_spare_makes_a_reduced_ensemble_whole_before_it_replaces_a_slow_member() -> None:
    assert wanted((A, B), up=(A, B, D), slow=[B], wish=REDUCED) == {A, B, D}
    assert wanted((A, B), up=(A, B, D, E), slow=[B], wish=REDUCED) == {A, D, E}


# ---------------------------------------------------------------------- who is cut off


def test_writer_that_reaches_one_member_only_changes_nothing() -> None:
    assert wanted(ABC, up=(A, D, E), failed=[B, C]) is None
    assert wanted(ABC, up=(D, E), failed=ABC) is None


def test_member_that_can_never_be_back_does_not_count_there_G11() -> None:
    assert wanted(ABC, up=(A, emptied(B), D, E), failed=[B, C]) == {A, emptied(B), D}
    assert wanted(ABC, up=(A, emptied(B), emptied(C)), failed=[B, C]) == {A, emptied(B), emptied(C)}


def test_full_members_count_as_reached() -> None:
    assert wanted(ABC, up=(A, B, C, D, E), failed=[B, C]) == {A, D, E}


def test_whole_ensemble_that_lost_its_memory_is_declared_anew_G11() -> None:
    anew = (damaged(A), damaged(B), damaged(C))
    assert wanted(ABC, up=anew, failed=ABC) == set(anew)


def test_store_is_replaced_when_another_one_answers_at_its_place() -> None:
    def up(*members: Member) -> dict[str, Member]:
        return {member.key: member for member in members}

    assert not is_replaced(A, up())
    assert not is_replaced(A, up(A, B))
    assert is_replaced(A, up(damaged(A)))
    assert is_replaced(A, up(emptied(A)))
    assert not is_replaced(A, up(emptied(B)))


# ---------------------------------------------------------------------- fewer copies


def test_partition_waits_when_there_is_no_spare() -> None:
    assert wanted(ABC, up=(A, B), failed=[C]) is None


def test_smaller_ensemble_is_declared_where_the_operator_allows_it() -> None:
    assert wanted(ABC, up=(A, B), failed=[C], wish=REDUCED) == {A, B}


def test_smaller_ensemble_is_never_below_min_copies() -> None:
    assert wanted((A, B), up=(A,), failed=[B], wish=REDUCED) is None
    assert wanted((A, B), up=(A, D), failed=[B], wish=REDUCED) == {A, D}


def test_smaller_ensemble_is_made_whole_as_soon_as_a_store_is_there() -> None:
    assert wanted((A, B), up=(A, B), wish=REDUCED) is None
    assert wanted((A, B), up=(A, B, C), wish=REDUCED) == {A, B, C}
    assert wanted((A, B), up=(A, B, C), slow=[C], wish=REDUCED) == {A, B, C}, "a slow copy is better than none"


# ---------------------------------------------------------------------- all rules at once

STORES = (A, B, C, D, E)


@st.composite
def situations(draw: Any) -> dict[str, Any]:
    """An ensemble, and at each of five places: nobody, the store that was there, the same without its tail, or another one."""
    min_copies = draw(st.integers(2, 3))
    members = tuple(draw(st.lists(st.sampled_from(STORES), min_size=min_copies, max_size=3, unique=True)))
    there = [draw(st.sampled_from([None, store, store, damaged(store), emptied(store)])) for store in STORES]
    up = draw(st.permutations([member for member in there if member is not None]))
    anyone = [*members, *up]
    some = st.lists(st.sampled_from(anyone), unique=True, max_size=4)
    return {
        "members": members,
        "up": up,
        "failed": draw(some),
        "slow": draw(some),
        "wish": Wish(3, min_copies, ORDER),
    }


@settings(max_examples=400)
@given(situations())
def test_every_choice_obeys_every_rule(it: dict[str, Any]) -> None:
    members, up, failed, slow = set(it["members"]), set(it["up"]), set(it["failed"]), set(it["slow"])
    found = wanted(**it)
    if found is None:
        return
    replaced = {member for member in members if any(other.name == member.name and other != member for other in up)}
    assert found <= up, "everybody in it is there"
    assert not found & failed
    assert it["wish"].min_copies <= len(found) <= it["wish"].copies
    assert len({member.store for member in found}) == len({member.name for member in found}) == len(found)
    assert found != members
    assert len(members - up - replaced) <= 1, "who is cut off changes nothing"
    gone_slow = (members - found) - failed
    assert gone_slow <= slow, "nobody else is dropped"
    if gone_slow:
        assert len(found) >= len(members), "slow is not a reason to hold fewer copies"
        assert not (found - members) & slow, "a slow one is replaced by one that is not"
    if len(found) < it["wish"].copies:
        assert up - failed - members <= found, "whoever is there was taken"


@settings(max_examples=300)
@given(situations())
def test_changes_come_to_an_end_when_nothing_else_happens(it: dict[str, Any]) -> None:
    """First a failed member is replaced, then slow ones; nobody goes in and out for ever."""
    for _ in range(len(STORES)):
        found = wanted(**it)
        if found is None:
            return
        it["members"] = tuple(found)
    raise AssertionError("the ensemble changes for ever")


# ---------------------------------------------------------------------- ranges


def test_new_range_is_put_behind_a_last_one_that_has_committed_frames() -> None:
    assert with_range((Range(1, ABC),), 11, (A, B, D)) == (Range(1, ABC), Range(11, (A, B, D)))


def test_new_range_replaces_a_last_one_that_starts_there_or_later() -> None:
    ranges = (Range(1, ABC), Range(11, (A, B, D)))
    assert with_range(ranges, 11, (A, B, E)) == (Range(1, ABC), Range(11, (A, B, E)))
    assert with_range((Range(1, ABC),), 1, (A, B, D)) == (Range(1, (A, B, D)),)


def test_merged_range_starts_where_the_older_one_did_and_is_on_the_members_of_the_newer() -> None:
    ranges = (Range(1, ABC), Range(11, (A, B, D)), Range(21, (A, D, E)))
    assert merged(ranges) == (Range(1, ABC), Range(11, (A, D, E)))
    assert merged(merged(ranges)) == (Range(1, (A, D, E)),)


@given(st.lists(st.tuples(st.integers(0, 9), st.permutations(STORES)), max_size=8))
def test_ranges_stay_in_order_through_all_changes_and_merges(steps: list[tuple[int, list[Member]]]) -> None:
    ranges: tuple[Range, ...] = (Range(1, ABC),)
    committed = 0
    for more, members in steps:
        committed += more
        ranges = with_range(ranges, max(ranges[-1].first - 1, committed) + 1, tuple(members[:3]))
        assert ranges[-1].members == tuple(members[:3])
        assert ranges[0].first == 1
        assert all(older.first < newer.first for older, newer in pairwise(ranges))
        if len(ranges) > 2:
            ranges = merged(ranges)


# ---------------------------------------------------------------------- who lags


@pytest.mark.parametrize(
    ("stored", "who"),
    [
        ({}, ""),
        ({"a": 5}, ""),
        ({"a": 5, "b": 5, "c": 5}, ""),
        ({"a": 5, "b": 4, "c": 5}, "b"),
        ({"a": 9, "b": 4, "c": 5}, "b"),
        ({"a": 5, "b": 4, "c": 4}, ""),
        ({"a": -1, "b": 4, "c": 4}, "a"),
    ],
)
def test_laggard_is_the_one_for_which_alone_all_others_wait(stored: dict[str, int], who: str) -> None:
    assert laggard(stored) == who
