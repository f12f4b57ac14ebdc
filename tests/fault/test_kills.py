"""`kill -9` of each kind of actor and of everything, a pause, a lost disk, under load: lost 0, duplicated 0, reordered 0.

The short ones, on one system: each kind of actor twice, the rest once. `make fault` does more (``test_long_campaigns``).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from history_checker import Kind, read_register
from local_system.bad_weather import pause_owner
from local_system.campaign import Campaign
from local_system.damage import Change, Rewriting, bodies_of, with_bodies, without
from local_system.redis_system import RedisSystem


@pytest.mark.parametrize("kind", ["session", "store", "supervisor"])
def test_kill_9_of_an_actor_under_load_loses_doubles_and_reorders_nothing_g2_g3_g4_g5_g6_g7_g11(
    campaign: Campaign, kind: str
) -> None:
    for _ in range(2):
        campaign.until_acked(100)
        campaign.kill_actor(campaign.victim(kind))
    campaign.check()


def test_a_paused_writer_is_replaced_and_gets_nothing_acked_when_it_goes_on_g2_g3_g5_g9_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    pause_owner(campaign, 0)
    campaign.check()


def test_a_store_whose_directory_is_deleted_is_replaced_and_made_anew_g1_g2_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    campaign.delete_store(campaign.victim("store"))
    campaign.check()


def test_kill_9_of_everything_at_once_under_load_loses_doubles_and_reorders_nothing_g2_g3_g4_g5_g10_g11(
    campaign: Campaign,
) -> None:
    campaign.until_acked(100)
    campaign.kill_everything()
    campaign.check()


def test_kill_9_of_a_sender_loses_nothing_that_its_outbox_holds_g4_g5_g10(campaign: Campaign) -> None:
    for name in ("alice", "gateway"):
        campaign.until_acked(100)
        campaign.kill_program(name)
    campaign.check()


def test_after_all_kills_verify_finds_nothing_and_down_leaves_nothing_but_the_data_g1_g2(campaign: Campaign) -> None:
    campaign.finish()
    report = campaign.system.verify()
    campaign.system.down()
    history = campaign.judged()
    assert report["counts"]["messages"] >= len({ack.mark for ack in history.acked})


def test_the_checker_finds_what_was_done_to_a_copy_of_this_very_run(campaign: Campaign, tmp_path: Path) -> None:
    """The net is no hole: each break is made in a real run's journals, with every CRC in order, and must be found."""
    if isinstance(campaign.system, RedisSystem):
        pytest.skip("what is broken here are journals in files")
    campaign.finish()
    history, stores = campaign.judged(), campaign.system.stores
    rewriting, session = Rewriting(stores), campaign.sessions[0]
    in_force = read_register(stores).partitions[0].ranges[-1].members
    members = [store for store in stores if store.name in in_force]
    bodies = bodies_of(members[0])
    lane = [one for one in history.handed if (one.session, one.outbox) == (session, "alice")]
    seqs = {ack.mark: ack.seq for ack in history.acked}
    first, second = [seqs[one.mark] for one in lane if one.mark in seqs][3:5]

    def found(name: str, change: dict[Path, Change]) -> set[Kind]:
        """What the checker finds when these stores were changed."""
        return {one.kind for one in campaign.anomalies(history, rewriting.copies(tmp_path / name, change))}

    assert found("same", dict.fromkeys(stores, list)) == set()
    gone = without(session, first)
    assert {Kind.LOST, Kind.GAP, Kind.NOT_COMMITTED} <= found("gone", dict.fromkeys(stores, gone))
    assert Kind.STORES_DISAGREE in found("gone on one", {members[1]: gone})
    doubled = with_bodies(session, {second: bodies[session, first]})
    assert {Kind.DUPLICATED, Kind.LOST} <= found("doubled", dict.fromkeys(stores, doubled))
    swapped = with_bodies(session, {first: bodies[session, second], second: bodies[session, first]})
    assert {Kind.REORDERED, Kind.SENDER_ORDER} <= found("swapped", dict.fromkeys(stores, swapped))
    changed = with_bodies(session, {first: bodies[session, first] + b"!"})
    assert {Kind.MADE_UP, Kind.LOST} <= found("changed", dict.fromkeys(stores, changed))


def test_the_checker_finds_what_was_done_to_a_copy_of_this_very_history(campaign: Campaign) -> None:
    campaign.finish()
    history, stores = campaign.judged(), campaign.system.stores
    reading = next(one for one in history.readings if one.reader == "memory.1")
    del reading.reads[len(reading.reads) // 2]
    twice = history.acked[len(history.acked) // 2]
    history.acked.append(twice._replace(seq=twice.seq + 1))
    found = Counter(one.kind for one in campaign.anomalies(history, stores))
    assert found[Kind.CURSOR_SKIPPED] == 1
    assert found[Kind.CONFLICTING_ANSWERS] >= 1
