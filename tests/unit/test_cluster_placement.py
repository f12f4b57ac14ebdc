"""Where stores go: back to their data, spread where there is room, and never quietly elsewhere."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trilogue.actors.protocol.errors import LaunchError, NewerFormat, SettingsDiffer
from trilogue.cluster.on_ray.placement import (
    Node,
    Places,
    check_listen,
    node_of,
    plan,
    protection,
    read_places,
    spread_over,
    write_places,
)
from trilogue.cluster.settings.config import ClusterRecord
from trilogue.cluster.settings.ports import check_host, choose_ports, is_free

RECORD = ClusterRecord("c" * 32, 7, 4, 3, 3, "now", 3, 3, 1)
GROWN = RECORD._replace(stores=4)
DATA = Path("/data")
HERE = Node("n1", "10.0.0.1")
MACHINES = [HERE, Node("n2", "10.0.0.2"), Node("n3", "10.0.0.3")]
SIMULATED = [Node(name, "127.0.0.1") for name in ("n1", "n2", "n3")]


def test_on_one_node_every_store_has_a_directory_of_its_own() -> None:
    places = plan(RECORD, DATA, [HERE], HERE, None, None)
    assert places.directories == {f"store-{k}": f"/data/store-{k}" for k in (1, 2, 3)}
    assert not places.spread


def test_on_three_machines_each_has_one_store() -> None:
    places = plan(RECORD, DATA, MACHINES, HERE, None, None)
    assert places.spread
    assert sorted(places.hosts.values()) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert set(places.directories.values()) == {"/data/store"}


def test_on_simulated_nodes_of_one_machine_the_directories_differ() -> None:
    places = plan(RECORD, DATA, SIMULATED, SIMULATED[0], None, None)
    assert places.spread
    assert len(set(places.directories.values())) == 3
    chosen = {node_of(store, places.hosts, True, SIMULATED, "n1") for store in places.hosts}
    assert chosen == {"n1", "n2", "n3"}


def test_too_few_nodes_are_refused_when_a_node_each_was_asked_for() -> None:
    with pytest.raises(LaunchError, match="need 3 Ray nodes, and there are 2"):
        plan(RECORD, DATA, MACHINES[:2], HERE, True, None)
    assert not plan(RECORD, DATA, MACHINES[:2], HERE, None, None).spread


def test_stores_go_back_to_the_machines_that_hold_their_data() -> None:
    first = plan(RECORD, DATA, MACHINES, HERE, None, None)
    again = plan(RECORD, DATA, [Node(f"new-{node.node_id}", node.host) for node in MACHINES], HERE, None, first)
    assert again == first


def test_a_machine_that_holds_data_and_is_not_there_is_named() -> None:
    first = plan(RECORD, DATA, MACHINES, HERE, None, None)
    with pytest.raises(LaunchError, match=r"data is on 10\.0\.0\.[23], which is not in this Ray cluster"):
        plan(RECORD, DATA, [HERE], HERE, None, first)


def test_data_of_one_machine_stays_there_whatever_its_address_is_today_and_wherever_the_directory_went() -> None:
    first = plan(RECORD, DATA, [HERE], HERE, None, None)
    now = Node("n9", "192.168.7.7")
    again = plan(RECORD, Path("/moved"), [now, *MACHINES[1:]], now, None, first)
    assert set(again.hosts.values()) == {"192.168.7.7"}
    assert again.directories["store-2"] == "/moved/store-2"
    with pytest.raises(SettingsDiffer, match="leave out --spread"):
        plan(RECORD, DATA, MACHINES, HERE, True, first)


def test_a_store_that_was_added_gets_a_place_and_the_others_keep_theirs() -> None:
    """G2: nothing moves because something was added."""
    first = plan(RECORD, DATA, [HERE], HERE, None, None)
    grown = plan(GROWN, DATA, [HERE], HERE, None, first)
    assert grown.directories == {**first.directories, "store-4": "/data/store-4"}
    assert set(grown.hosts.values()) == {"10.0.0.1"}
    wide = plan(RECORD, DATA, MACHINES, HERE, None, None)
    fourth = Node("n4", "10.0.0.4")
    grown = plan(GROWN, DATA, [*MACHINES, fourth], HERE, None, wide)
    assert grown.hosts == {**wide.hosts, "store-4": "10.0.0.4"}
    assert grown.directories == {**wide.directories, "store-4": "/data/store"}


def test_a_store_that_was_added_and_has_no_machine_of_its_own_is_refused() -> None:
    wide = plan(RECORD, DATA, MACHINES, HERE, None, None)
    with pytest.raises(LaunchError, match="need 1 more in this Ray cluster, and it has 0"):
        plan(GROWN, DATA, MACHINES, HERE, None, wide)


def test_places_that_know_more_stores_than_the_data_are_not_planned_anew() -> None:
    """G2: a cluster.json out of an old backup must not send stores to empty directories."""
    grown = plan(GROWN, DATA, [*MACHINES, Node("n4", "10.0.0.4")], HERE, None, None)
    with pytest.raises(LaunchError, match=r"knows stores that cluster\.json does not"):
        plan(RECORD, DATA, MACHINES, HERE, None, grown)


def test_a_store_waits_for_a_node_on_its_machine() -> None:
    places = plan(RECORD, DATA, MACHINES, HERE, None, None)
    lost = next(store for store, host in places.hosts.items() if host == "10.0.0.2")
    assert node_of(lost, places.hosts, True, [HERE, MACHINES[2]], "n1") is None
    assert node_of(lost, places.hosts, True, [*MACHINES, Node("n4", "10.0.0.2")][1:], "n1") in ("n2", "n4")


def test_stores_on_several_machines_cannot_listen_on_one_machines_address() -> None:
    places = plan(RECORD, DATA, MACHINES, HERE, None, None)
    with pytest.raises(LaunchError, match=r"--listen 0\.0\.0\.0:0"):
        check_listen("127.0.0.1", places)
    check_listen("0.0.0.0", places)
    check_listen("127.0.0.1", plan(RECORD, DATA, SIMULATED, SIMULATED[0], None, None))


@pytest.mark.parametrize(
    ("hosts", "spread", "copies", "says"),
    [
        (["a", "a", "a"], False, 3, "a crashed process loses nothing; a lost disk or machine can lose"),
        (["a", "a", "a"], True, 3, "a crashed process or a lost Ray node loses nothing"),
        (["a", "b", "c"], True, 3, "2 lost disks or machines lose nothing"),
        (["a"], False, 1, "one copy only"),
        (["a", "b", "a"], False, 3, "on 2 machines"),
    ],
)
def test_what_the_copies_protect_against_is_said_plainly(hosts: list[str], spread: bool, copies: int, says: str) -> None:
    assert says in protection({f"store-{k}": host for k, host in enumerate(hosts)}, spread, copies)


def test_places_and_ports_are_remembered(tmp_path: Path) -> None:
    assert read_places(tmp_path) == (None, {})
    places = plan(RECORD, tmp_path, [HERE], HERE, None, None)
    write_places(tmp_path, places, {"store-1": 20001})
    assert read_places(tmp_path) == (places, {"store-1": 20001})


def test_places_of_a_newer_version_are_not_guessed_at(tmp_path: Path) -> None:
    write_places(tmp_path, Places(False, {"store-1": "a"}, {"store-1": "/d"}), {})
    path = tmp_path / "places.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NewerFormat, match="upgrade trilogue"):
        read_places(tmp_path)


def test_damaged_memory_of_places_is_an_error_not_a_new_plan(tmp_path: Path) -> None:
    (tmp_path / "places.json").write_text('{"format": 1}')
    with pytest.raises(LaunchError, match=r"places\.json is damaged"):
        read_places(tmp_path)


def test_actors_keep_their_ports_and_never_share_one() -> None:
    names = ["store-1", "store-2", "session-0"]
    chosen = choose_ports(names, "127.0.0.1", 0, {})
    assert len(set(chosen.values())) == 3
    assert choose_ports(names, "127.0.0.1", 0, chosen) == chosen
    clash = choose_ports(names, "127.0.0.1", 0, dict.fromkeys(names, chosen["store-1"]))
    assert len(set(clash.values())) == 3


def test_a_port_that_was_asked_for_and_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(LaunchError, match=f"port {port} on 127.0.0.1 is taken"):
            choose_ports(["store-1"], "127.0.0.1", port, {})
        other = choose_ports(["store-1"], "127.0.0.1", 0, {"store-1": port})
    assert other["store-1"] != port


def test_ports_beyond_the_last_one_are_refused() -> None:
    with pytest.raises(LaunchError, match="choose a lower one"):
        choose_ports(["a", "b"], "127.0.0.1", 65_535, {})


def test_a_host_that_is_not_this_machines_is_refused() -> None:
    check_host("127.0.0.1")
    for host in ("192.0.2.200", "no-such-host.invalid"):
        with pytest.raises(LaunchError, match="cannot listen on"):
            check_host(host)


def test_places_know_on_how_many_machines_they_are() -> None:
    assert Places(True, {"store-1": "a", "store-2": "b"}, {}).machines == 2


def test_session_actors_of_neighbouring_numbers_are_on_different_nodes_G11() -> None:
    nodes = [Node("b", "10.0.0.2"), Node("a", "10.0.0.1"), Node("c", "10.0.0.3")]
    assert [spread_over(number, nodes) for number in range(4)] == ["a", "b", "c", "a"]
    assert spread_over(0, []) is None
