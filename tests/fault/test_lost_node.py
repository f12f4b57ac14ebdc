"""A Ray node dies with all that runs on it (design §11): its store and its SessionActor are replaced before Ray has noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from local_system.campaign import SPARE_BOUND_S, Campaign
from local_system.nodes import SystemOnNodes
from local_system.system import LocalSystem
from local_system.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PARTITIONS, NODES = 2, 4
BACK_S = 60.0  # Ray needs 14 s to notice, and then starts the actors elsewhere


@pytest.fixture
def campaign(new_campaign: Callable[[LocalSystem, int], Campaign]) -> Iterator[Campaign]:
    """A system on four nodes, a store on each, under load."""
    with SystemOnNodes(PARTITIONS, NODES) as system, new_campaign(system, 3) as campaign:
        campaign.start_programs()
        yield campaign


def test_the_store_and_the_session_actor_of_a_lost_node_are_replaced_g1_g2_g3_g4_g5_g11(campaign: Campaign) -> None:
    system = campaign.system
    assert isinstance(system, SystemOnNodes)
    campaign.until_acked(200)
    actors = [name for name, one in system.status()["actors"].items() if one["role"] != "supervisor"]
    places = {name: system.node_of(name).pid for name in actors}
    spared = {system.head().pid, system.node_of("supervisor").pid}
    stores = {name for name in actors if name.startswith("store")}
    assert len({places[name] for name in stores}) == len(stores) == NODES
    assert len({places[name] for name in set(actors) - stores}) == 2 * PARTITIONS == NODES, "neighbours share a node"

    owners = {partition: campaign.owner(partition) for partition in range(PARTITIONS)}
    members = {name for owner in owners.values() for name in owner["members"]}
    homes = {places[str(owner["name"])] for owner in owners.values()} - spared
    candidates = [name for name in sorted(members) if places[name] not in spared]
    victim = next((name for name in candidates if places[name] in homes), candidates[0])
    lost = [name for name in actors if places[name] == places[victim]]

    began = campaign.note_fault(f"a lost node with {', '.join(lost)}", SPARE_BOUND_S)
    system.kill_node(system.node_of(victim))
    campaign.probe(began, "a lost node", SPARE_BOUND_S)
    campaign.until_whole()
    for partition in range(PARTITIONS):
        owner = campaign.owner(partition)
        assert owner["name"] not in lost
        assert victim not in owner["members"]
    campaign.check()

    eventually(system.is_well, BACK_S, f"{lost} are back on another node")
    campaign.until_acked(100)
    campaign.check()
