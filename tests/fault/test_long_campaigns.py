"""The long campaigns (`make fault`): every kind of fault ten times or more, on one system, under load.

After each test, everything is read back and judged, from the first message on. `TRILOGUE_FAULT_SEED` repeats the choices.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from local_system.bad_weather import Rival, diverge, kill_newborn, pause_owner, pause_program, pause_store
from local_system.campaign import ACTOR_BOUND_S, SPARE_BOUND_S, Campaign
from local_system.proxy import BadNetwork
from local_system.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

KILLS = 10
KILLS_OF_EVERYTHING = 20


@pytest.fixture(autouse=True)
def _judged_in_the_end(campaign: Campaign) -> Iterator[None]:
    """Whatever a test did: nothing may be wrong afterwards."""
    yield
    campaign.check()


@pytest.mark.parametrize("kind", ["session", "store", "supervisor"])
def test_ten_kills_of_each_kind_of_actor_g2_g3_g4_g5_g11(campaign: Campaign, kind: str) -> None:
    for _ in range(KILLS):
        campaign.until_acked(campaign.random.randrange(200))
        campaign.kill_actor(campaign.victim(kind))


def test_five_kills_of_a_sender_whose_successor_sends_what_its_outbox_holds_g4_g5_g10(campaign: Campaign) -> None:
    for _ in range(KILLS // 2):
        campaign.until_acked(campaign.random.randrange(200))
        campaign.kill_program(campaign.random.choice(["alice", "gateway", "memory"]))


def test_several_actors_killed_in_one_instant_come_back_g2_g5_g11(campaign: Campaign) -> None:
    for count in (2, 3, None):
        campaign.until_acked(campaign.random.randrange(100))
        actors = sorted(campaign.system.status()["actors"])
        campaign.kill_actors(campaign.random.sample(actors, count or len(actors)))


def test_an_actor_killed_again_as_soon_as_it_is_back_g2_g5_g9_g11(campaign: Campaign) -> None:
    for kind in ("session", "store"):
        kill_newborn(campaign, campaign.victim(kind))


def test_directories_of_stores_are_deleted_one_after_another_and_filled_up_again_g1_g2_g11(campaign: Campaign) -> None:
    deleted = 0
    for _ in range(4):
        campaign.until_acked(campaign.random.randrange(200))
        store = campaign.victim("store")
        if campaign.may_lose(store):
            campaign.delete_store(store)
            deleted += 1
    assert deleted


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_dead_part_of_ray_is_mended_by_up_g2_g5_g11(campaign: Campaign, process: str) -> None:
    campaign.until_acked(50)
    campaign.kill_part_of_ray(process)


def test_a_paused_writer_is_replaced_and_gets_nothing_acked_when_it_goes_on_g2_g3_g5_g9_g11(campaign: Campaign) -> None:
    for partition in (0, 1):
        campaign.until_acked(50)
        pause_owner(campaign, partition)


def test_a_paused_store_is_replaced_and_becomes_a_spare_g1_g2_g5_g11(campaign: Campaign) -> None:
    for _ in range(3):
        campaign.until_acked(50)
        pause_store(campaign, campaign.victim("store"))


@pytest.mark.parametrize("kill_it", [False, True])
def test_stores_whose_logs_end_differently_are_made_equal_g1_g2_g3_g5(campaign: Campaign, kill_it: bool) -> None:
    for _ in range(2):
        campaign.until_acked(50)
        diverge(campaign, kill_it)


def test_a_reader_and_sender_that_was_paused_misses_nothing_g3_g7(campaign: Campaign) -> None:
    campaign.until_acked(50)
    pause_program(campaign, "memory", others_ack=1500)


def test_no_spare_pushes_a_living_writer_out_and_a_cut_off_one_gets_nothing_acked_g2_g3_g5_g9_g11(campaign: Campaign) -> None:
    """A writer that the Supervisor does not know, and whose way to each store can be cut."""
    system = campaign.system
    seed = campaign.random.randrange(1 << 32)
    with contextlib.ExitStack() as stack:
        networks = {
            name: stack.enter_context(BadNetwork(seed + k, rewrites=False))
            for k, name in enumerate(store.name for store in system.stores)
        }
        addresses = system.run_file()["actors"]
        detours = {name: network.front_of(addresses[name]) for name, network in networks.items()}
        began = campaign.note_fault("a rival takes the partition of a paused writer", ACTOR_BOUND_S)
        rival = stack.enter_context(Rival(campaign, 0, detours))
        campaign.probe(began, "a takeover by a rival", ACTOR_BOUND_S)

        rival.let_the_supervisor_go_on()
        eventually(lambda: _gave_up(system.status()), ACTOR_BOUND_S, "a spare has tried to take it over, and has given up")
        campaign.until_acked(100)
        rival.let_the_owner_go_on()
        assert rival.status()["epoch"] == rival.epoch, "it was not disturbed"

        cut_off = campaign.random.choice(rival.members())
        began = campaign.note_fault("the writer's way to a store is cut", SPARE_BOUND_S)
        networks[cut_off].down = True
        networks[cut_off].cut()
        campaign.probe(began, "a cut between a writer and a store", SPARE_BOUND_S)
        assert cut_off not in rival.members()
        networks[cut_off].down = False
        eventually(lambda: cut_off in rival.status()["spares"], ACTOR_BOUND_S, f"{cut_off} is a spare")

        silent = campaign.random.choice(rival.members())
        began = campaign.note_fault("the writer hears nothing from a store", SPARE_BOUND_S)
        networks[silent].be_silent(True)
        campaign.probe(began, "silence between a writer and a store", SPARE_BOUND_S)
        assert silent not in rival.members()
        networks[silent].be_silent(False)
        campaign.until_acked(100)
        assert rival.status()["epoch"] == rival.epoch, "it is still the same writer"

        began = campaign.note_fault("the writer's way to all stores is cut", SPARE_BOUND_S)
        for network in networks.values():
            network.down = True
            network.cut()
        campaign.probe(began, "a writer that is cut off", SPARE_BOUND_S)
        assert campaign.owner(0)["epoch"] > rival.epoch
        for network in networks.values():
            network.down = False
        rival.wait_until_deposed(ACTOR_BOUND_S)
    eventually(system.is_well, ACTOR_BOUND_S, "every partition is open")


def _gave_up(status: dict[str, Any]) -> bool:
    """Whether a SessionActor has been told that the writer which it was to replace is alive."""
    return any("alive" in one.get("gave_up", "") for one in status["actors"].values())


def test_cut_connections_swallowed_acks_delays_and_silence_on_the_way_to_a_client_g4_g5_g6_g7(campaign: Campaign) -> None:
    with BadNetwork(campaign.random.randrange(1 << 32)) as network:
        fronts = [network.front_of(address) for address in campaign.system.run_file()["addresses"]]
        where = {"address": ",".join(fronts), "token": campaign.system.token}
        everything: dict[str, int | None] = dict.fromkeys(campaign.sessions, 0)
        program = campaign.start_program("far-away", senders=["frank", "grace"], outbox=True, reads=everything, **where)
        program.wait_until_started()
        program.ask("pour")

        def acked_more(count: int, wanted_s: float = ACTOR_BOUND_S) -> None:
            before = program.ask("counts")["acked"]
            counts = lambda: program.ask("counts")  # noqa: E731
            eventually(
                lambda: counts()["acked"] >= before + count,
                wanted_s,
                lambda: f"{count} more acks than {before} through it: {counts()}, {program.ask('trouble')}",
            )

        for _ in range(KILLS):
            acked_more(campaign.random.randrange(1, 100))
            network.cut()
        network.delay_s_max = 0.005
        acked_more(200)
        network.cut()
        acked_more(200)
        network.delay_s_max = 0.0
        for _ in range(3):
            network.swallow_acks = True
            swallowed = network.acks_swallowed
            eventually(lambda n=swallowed: network.acks_swallowed >= n + 20, ACTOR_BOUND_S, "acks are on their way")
            if campaign.random.random() < 0.5:
                network.cut()
            network.swallow_acks = False
            acked_more(100)
        network.be_silent(True)
        eventually(lambda: program.ask("trouble")["trouble"], ACTOR_BOUND_S, "the client notices the silence")
        network.be_silent(False)
        acked_more(100)
        assert network.cuts > KILLS
        campaign.rest()
        campaign.judged()
        campaign.end_program("far-away")
        campaign.pour()


def test_everything_is_killed_twenty_times_in_a_row_while_members_change_g1_g2_g3_g4_g5_g10_g11(campaign: Campaign) -> None:
    """Design §14: a membership change *during* another fault. Just before, a store is killed, paused or emptied."""
    system, rng = campaign.system, campaign.random
    for kill in range(KILLS_OF_EVERYTHING):
        campaign.until_acked(rng.randrange(150))
        what = rng.choice(["nothing", "kill", "kill", "pause", "delete", "delete", "writer"])
        store = campaign.victim("store")
        pid = system.pid_of(store)
        if what == "delete" and campaign.may_lose(store):
            campaign.until_whole()  # one intact copy is left, even if the next one dies before it is filled
            system.delete_directory(store)
        elif what == "writer":
            system.signal(int(campaign.owner(0)["pid"]), signal.SIGKILL)
        elif what != "nothing":
            system.signal(pid, signal.SIGSTOP if what == "pause" else signal.SIGKILL)
        campaign.until_acked(rng.choice([0, 1, 20, 100]))
        campaign.kill_everything([name for name in ("alice", "gateway") if kill % 5 == 4])
        if kill == KILLS_OF_EVERYTHING // 2:
            campaign.check()


def test_after_all_of_it_verify_finds_nothing_g1_g2_g3(campaign: Campaign) -> None:
    campaign.rest()
    report = campaign.system.verify()
    assert report["counts"]["messages"] > 0
    campaign.pour()
