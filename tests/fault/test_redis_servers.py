"""Redis servers under stores that are under load: killed, paused, emptied, restored, full (G1, G2, G3, G5, G8, G11).

Once with one such store of three, once with three, on each of the servers; a spare store is in files.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_system.campaign import ACTOR_BOUND_S, SPARE_BOUND_S, SYSTEM_BOUND_S, Campaign
from local_system.redis_system import PASSWORD, RedisSystem
from local_system.system import LocalSystem
from local_system.waiting import eventually
from redis_server import SERVERS, missing
from trilogue.bench.recipe.server import find_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PARTITIONS = 2
ONE, ALL = ("files", "files", "redis", "files"), ("redis", "redis", "redis", "files")
KINDS = [(name, kinds) for name in SERVERS for kinds in (ONE, ALL)]
KILLS = 5
BACK_S = 30.0  # a store looks at its server every second; its process may have to be started again


@pytest.fixture(scope="module", params=KINDS, ids=[f"{3 - kinds[:3].count('files')}-on-{name}" for name, kinds in KINDS])
def campaign(request: pytest.FixtureRequest, new_campaign: Callable[[LocalSystem, int], Campaign]) -> Iterator[Campaign]:
    """One running system under load for all tests of this file and this kind."""
    name, kinds = request.param
    binary = find_server(name)
    if binary is None:
        missing(name)
    assert binary is not None
    with RedisSystem(PARTITIONS, binary, kinds) as system, new_campaign(system, 3) as campaign:
        campaign.start_programs()
        yield campaign


def servers_of(campaign: Campaign) -> RedisSystem:
    assert isinstance(campaign.system, RedisSystem)
    return campaign.system


def make_members(campaign: Campaign) -> str:
    """A store on Redis that is a member of a partition. Where a spare store has taken its place, that one's process is
    killed, until it is back: a store that was slow is not taken for a while."""
    system = servers_of(campaign)

    def member() -> str:
        for partition in range(PARTITIONS):
            members = campaign.owner(partition)["members"]
            if there := sorted(set(members) & set(system.servers)):
                return str(campaign.random.choice(there))
        campaign.kill_actor(campaign.random.choice(members))
        return ""

    return eventually(member, 2 * BACK_S, "a store on Redis is a member")


def well_again(campaign: Campaign, what: str) -> None:
    eventually(campaign.system.is_well, BACK_S, lambda: f"all is well after {what}: {_states(campaign)}")
    campaign.until_whole(BACK_S)


def _states(campaign: Campaign) -> dict[str, str]:
    return {one["name"]: one["state"] for one in campaign.system.status().get("stores", [])}


def test_kill_9_and_restart_of_a_redis_server_under_load_g1_g2_g3_g4_g5_g11(campaign: Campaign) -> None:
    for _ in range(KILLS):
        campaign.until_acked(50 + campaign.random.randrange(100))
        server = servers_of(campaign).servers[make_members(campaign)]
        began = campaign.note_fault("kill -9 of a redis-server", SPARE_BOUND_S)
        server.kill()
        campaign.probe(began, "kill -9 of a redis-server", SPARE_BOUND_S)
        server.start()
        well_again(campaign, "a redis-server was killed and restarted")
    campaign.check()


def test_kill_9_and_restart_of_all_redis_servers_at_once_g1_g2_g3_g4_g5_g11(campaign: Campaign) -> None:
    campaign.until_acked(100)
    servers = list(servers_of(campaign).servers.values())
    began = campaign.note_fault("kill -9 of all redis-servers", SYSTEM_BOUND_S)
    for server in servers:
        server.kill()
    for server in servers:
        server.start()
    campaign.probe(began, "kill -9 of all redis-servers", SYSTEM_BOUND_S)
    well_again(campaign, "all redis-servers were killed and restarted")
    campaign.check()


def test_kill_9_of_a_redis_server_and_its_store_at_once_g1_g2_g3_g5_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    server, pid = servers_of(campaign).servers[store], campaign.system.pid_of(store)
    began = campaign.note_fault("kill -9 of a store and its redis-server", SPARE_BOUND_S)
    server.kill()
    campaign.system.signal(pid, signal.SIGKILL)
    campaign.probe(began, "kill -9 of a store and its redis-server", SPARE_BOUND_S)
    server.start()
    campaign.system.until_replaced(store, pid, ACTOR_BOUND_S)
    well_again(campaign, "both were killed")
    campaign.check()


def test_the_system_starts_without_one_of_its_servers_which_comes_later_g2_g10_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    server = servers_of(campaign).servers[store]
    server.kill()
    campaign.kill_everything()
    eventually(
        lambda: "start it, or give" in _states(campaign).get(store, ""), BACK_S, lambda: f"it waits: {_states(campaign)}"
    )
    server.start()
    well_again(campaign, "a redis-server came later")
    campaign.check()


def test_a_paused_redis_server_is_a_slow_store_g2_g5_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    began = campaign.note_fault("SIGSTOP of a redis-server", SPARE_BOUND_S)
    servers_of(campaign).pause_server(store)
    campaign.probe(began, "SIGSTOP of a redis-server", SPARE_BOUND_S)
    servers_of(campaign).let_server_go_on(store)
    well_again(campaign, "a redis-server was paused")
    campaign.check()


def test_flushall_under_load_loses_nothing_and_is_filled_from_the_others_g2_g3_g5_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    campaign.until_whole()
    was = campaign.system.status()["actors"][store]["store"]
    pid = campaign.system.pid_of(store)
    began = campaign.note_fault("FLUSHALL", SPARE_BOUND_S)
    servers_of(campaign).empty(store)
    campaign.probe(began, "FLUSHALL", SPARE_BOUND_S)
    campaign.system.until_replaced(store, pid, ACTOR_BOUND_S)
    well_again(campaign, "FLUSHALL")
    assert campaign.system.status()["actors"][store]["store"] != was, "it is another store"
    campaign.check()


def test_a_server_restored_from_a_backup_under_load_cannot_tell_and_is_filled_g2_g3_g5_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    campaign.until_whole()
    server = servers_of(campaign).servers[store]
    before = campaign.system.status()["actors"][store]
    backup = campaign.system.root / "backup"
    shutil.copytree(server.directory, backup)  # the file only grows: what was written first is there
    campaign.until_acked(100)
    witness = campaign.system.data / store / "witness.json"
    then = witness.read_bytes()
    campaign.until_acked(100)
    eventually(lambda: witness.read_bytes() != then, ACTOR_BOUND_S, "what it has now was written down")
    began = campaign.note_fault("a redis-server restored from a backup", SPARE_BOUND_S)
    server.kill()
    shutil.rmtree(server.directory)
    shutil.move(backup, server.directory)
    server.start()
    campaign.probe(began, "a redis-server restored", SPARE_BOUND_S)
    well_again(campaign, "a redis-server was restored")
    after = eventually(lambda: campaign.system.status()["actors"].get(store, {}), ACTOR_BOUND_S, f"{store} answers")
    assert after["store"] == before["store"]
    assert after["incarnation"] > before["incarnation"], "it cannot tell what it held"
    campaign.check()


def test_a_full_redis_server_gives_way_and_comes_back_when_it_has_room_g2_g8_g11(campaign: Campaign) -> None:
    campaign.until_acked(50)
    store = make_members(campaign)
    client = servers_of(campaign).client_of(store)
    memory: Any = client.info("memory")
    began = campaign.note_fault("a redis-server out of memory", SPARE_BOUND_S)
    client.config_set("maxmemory", str(memory["used_memory"] // 2))
    campaign.probe(began, "a redis-server out of memory", SPARE_BOUND_S)
    eventually(lambda: _states(campaign).get(store, "").startswith("full"), ACTOR_BOUND_S, lambda: f"full: {_states(campaign)}")
    client.config_set("maxmemory", "0")
    well_again(campaign, "a redis-server was full")
    campaign.check()


def test_in_the_end_verify_reads_all_and_no_password_was_written_down_g1_g2(campaign: Campaign) -> None:
    system = servers_of(campaign)
    campaign.finish()
    campaign.judged()
    shown = system.run("status")
    assert all(f"redis://{server.address}/0" in shown.stdout for server in system.servers.values()), shown.stdout
    report = system.verify()
    assert set(system.servers) <= set(report["stores"])
    temporary = Path(system.run_file()["ray"]["temp_dir"])
    assert not _with_password(temporary)
    system.down()
    offline = system.verify()
    assert offline["offline"]
    assert set(system.servers) <= set(offline["stores"])
    assert offline["counts"]["messages"] == report["counts"]["messages"]
    configurations = {server.directory / "server.conf" for server in system.servers.values()}
    assert _with_password(system.root) <= configurations
    assert PASSWORD not in shown.stdout + shown.stderr


def _with_password(root: Path) -> set[Path]:
    """The files that hold the password."""
    return {path for path in root.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()}
