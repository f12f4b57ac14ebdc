"""The long campaigns (`make fault`): every kind of fault ten times or more, on one system, under load.

After each test, everything is read back and judged, from the first message on. `TRILOGUE_FAULT_SEED` repeats the choices.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from local_system.bad_weather import Rival, diverge, kill_newborn, pause_actor, pause_program
from local_system.campaign import ACTOR_BOUND_S, Campaign
from local_system.proxy import BadNetwork
from local_system.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

KILLS = 10
ACTORS = ("session-0", "session-1", "store-1", "store-2", "store-3", "supervisor")


@pytest.fixture(autouse=True)
def _judged_in_the_end(campaign: Campaign) -> Iterator[None]:
    """Whatever a test did: nothing may be wrong afterwards."""
    yield
    campaign.check()


@pytest.mark.parametrize("kind", ["session", "store", "supervisor"])
def test_ten_kills_of_each_kind_of_actor_g2_g3_g4_g5_g11(campaign: Campaign, kind: str) -> None:
    for _ in range(KILLS):
        campaign.until_acked(campaign.random.randrange(200))
        campaign.kill_actor(campaign.random.choice([name for name in ACTORS if name.startswith(kind)]))


def test_ten_kills_of_everything_at_once_and_sometimes_of_the_senders_too_g2_g3_g4_g5_g10_g11(campaign: Campaign) -> None:
    for kill in range(KILLS):
        campaign.until_acked(campaign.random.randrange(200))
        doomed = [name for name in ("alice", "gateway") if kill % 3 == 2]
        campaign.kill_everything(doomed)


def test_ten_kills_of_a_sender_whose_successor_sends_what_its_outbox_holds_g4_g5_g10(campaign: Campaign) -> None:
    for _ in range(KILLS):
        campaign.until_acked(campaign.random.randrange(200))
        campaign.kill_program(campaign.random.choice(["alice", "gateway", "memory"]))


def test_several_actors_killed_in_one_instant_come_back_g2_g5_g11(campaign: Campaign) -> None:
    for _ in range(KILLS // 2):
        campaign.until_acked(campaign.random.randrange(100))
        doomed = campaign.random.sample(ACTORS, campaign.random.choice([2, 3, len(ACTORS)]))
        campaign.kill_actors(doomed)


def test_an_actor_killed_again_as_soon_as_it_is_back_g2_g5_g9_g11(campaign: Campaign) -> None:
    for _ in range(KILLS // 2):
        kill_newborn(campaign, campaign.random.choice(ACTORS[:5]))


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_dead_part_of_ray_is_mended_by_up_g2_g5_g11(campaign: Campaign, process: str) -> None:
    campaign.until_acked(50)
    campaign.kill_part_of_ray(process)


@pytest.mark.parametrize("name", ["session-0", "session-1", "store-1", "store-3"])
def test_an_actor_that_was_paused_goes_on_as_if_nothing_had_been_g2_g5_g9_g11(campaign: Campaign, name: str) -> None:
    campaign.until_acked(50)
    pause_actor(campaign, name)


@pytest.mark.parametrize("kill_it", [False, True])
def test_stores_whose_logs_end_differently_are_made_equal_g1_g2_g3_g5(campaign: Campaign, kill_it: bool) -> None:
    for store in campaign.random.sample(ACTORS[2:5], 3):
        campaign.until_acked(50)
        diverge(campaign, store, kill_it)


def test_a_reader_and_sender_that_was_paused_misses_nothing_g3_g7(campaign: Campaign) -> None:
    campaign.until_acked(50)
    pause_program(campaign, "memory", others_ack=1500)


def test_a_second_session_actor_takes_a_paused_ones_partition_and_gives_it_back_g2_g3_g5_g9(campaign: Campaign) -> None:
    name = "session-1"
    for _ in range(3):
        campaign.until_acked(50)
        paused = campaign.system.pid_of(name)
        campaign.system.signal(paused, signal.SIGSTOP)
        with Rival(campaign.system, name) as rival:
            began = campaign.note_fault("a rival is open while the owner is paused", ACTOR_BOUND_S)
            campaign.probe(began, "a takeover by a rival", ACTOR_BOUND_S)
            began = campaign.note_fault("the zombie wakes up", ACTOR_BOUND_S)
            campaign.system.signal(paused, signal.SIGCONT)
            campaign.probe(began, "a zombie that wakes up", ACTOR_BOUND_S)
            campaign.system.until_replaced(name, paused, ACTOR_BOUND_S)
            rival.wait_until_deposed(ACTOR_BOUND_S)
        eventually(campaign.system.is_well, ACTOR_BOUND_S, "every partition is open")


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
            eventually(lambda: program.ask("counts")["acked"] >= before + count, wanted_s, f"{count} more acks through it")

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


def test_everything_at_once_while_everything_else_happens_g2_g3_g4_g5_g10_g11(campaign: Campaign) -> None:
    for _ in range(2):
        campaign.until_acked(50)
        paused = campaign.system.pid_of(campaign.random.choice(ACTORS[2:5]))
        campaign.system.signal(paused, signal.SIGSTOP)
        campaign.kill_everything(["alice"])
        campaign.kill_actors(campaign.random.sample(ACTORS, 2))


def test_after_all_of_it_verify_finds_nothing_g1_g2_g3(campaign: Campaign) -> None:
    campaign.rest()
    report = campaign.system.verify()
    assert report["counts"]["messages"] > 0
    campaign.pour()
