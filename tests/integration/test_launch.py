"""`launch` inside a program that has initialised Ray: one system, found again from everywhere, refused to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.errors import (
    DirectoryInUse,
    InvalidSettings,
    LaunchError,
    SettingsDiffer,
    WrongCluster,
)
from trilogue.client import Client, SyncClient
from trilogue.cluster import launch
from trilogue.cluster.commands.status import healthy
from trilogue.cluster.settings.asked import open_data, settings_of

from .conftest import PARTITIONS, run


def test_a_message_is_on_three_stores_before_its_sender_hears_of_it_and_readers_see_it(system: Any) -> None:
    """G1, G3, G7: through the Supervisor, which a process with Ray finds by itself."""

    async def talk() -> None:
        async with Client(sender="alice") as client:
            acks = [await client.send("launch", f"message {k}".encode()) for k in range(5)]
            assert [ack.seq for ack in acks] == [1, 2, 3, 4, 5]
            assert {ack.copies for ack in acks} == {3}
            page = await client.history("launch")
            assert [message.body for message in page] == [f"message {k}".encode() for k in range(5)]

    run(talk())


def test_launching_again_returns_the_same_system_and_leaves_it_running(system: Any) -> None:
    with launch(partitions=PARTITIONS, copies=3, data=system.data, allow_tmpfs=True) as again:
        assert again.addresses == system.addresses
        assert again.token == system.token
    with launch() as found:
        assert found.data == system.data
    assert healthy(system.status())


@pytest.mark.parametrize("change", [
    {"partitions": PARTITIONS + 1}, {"copies": 2}, {"stores": 5}, {"min_copies": 2}, {"spare_sessions": 3},
    {"listen": "127.0.0.1:9"},
])  # fmt: skip
def test_other_settings_than_those_of_the_running_system_are_refused(system: Any, change: dict[str, Any]) -> None:
    with pytest.raises(SettingsDiffer):
        launch(**{"data": system.data, **change})


def test_another_data_directory_is_refused_on_the_same_ray_and_not_created(system: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsDiffer, match="already runs the system of"):
        launch(data=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_settings_that_make_no_sense_are_refused(system: Any) -> None:
    with pytest.raises(InvalidSettings, match="partitions 0"):
        launch(partitions=0)


def test_another_ray_than_the_one_that_this_process_uses_is_refused(system: Any) -> None:
    with pytest.raises(LaunchError, match="connected to the Ray at"):
        launch(data=system.data, ray_address="127.0.0.1:1")


def test_data_that_a_running_system_holds_is_refused_before_anything_is_started(system: Any) -> None:
    from trilogue.cluster.on_ray.starting import check_free

    with pytest.raises(DirectoryInUse, match="is in use by the running system"):
        check_free(settings_of(data=system.data))


def test_a_task_of_the_same_ray_finds_the_system_and_sends_while_another_reads(system: Any) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def send(count: int) -> tuple[str, list[int]]:
        with launch() as cluster, SyncClient(sender="task") as client:
            return str(cluster.data), [client.send("from-a-task", b"%d" % k).seq for k in range(count)]

    @ray.remote(num_cpus=0)
    def read(count: int) -> list[bytes]:
        with SyncClient() as client, client.subscribe("from-a-task", after=0) as messages:
            return [next(messages).body for _ in range(count)]

    reader, sender = read.remote(3), send.remote(3)
    data, seqs = ray.get(sender, timeout=30)
    assert data == str(system.data)
    assert seqs == [1, 2, 3]
    assert ray.get(reader, timeout=30) == [b"0", b"1", b"2"]


def test_the_handle_says_where_the_system_is_without_its_secret(system: Any) -> None:
    assert system.address in system.addresses
    assert system.token not in repr(system)
    assert len(system.addresses) == 4 + PARTITIONS + 1 + 1


def test_the_status_keeps_its_shape_and_says_what_the_copies_protect_against(system: Any) -> None:
    status = system.status()
    assert [one["state"] for one in status["partitions"]] == ["open"] * PARTITIONS
    assert [one["name"] for one in status["stores"]] == ["store-1", "store-2", "store-3", "store-4"]
    assert status["missing"] == []
    assert len(status["spare_sessions"]) == 1
    sessions = {one["actor"] for one in status["partitions"]} | set(status["spare_sessions"])
    assert sessions == {"session-0", "session-1", "session-2"}
    for one in status["partitions"]:
        assert len(one["stores"]) == one["copies"] == 3
        assert sorted([*one["stores"], *one["spares"]]) == ["store-1", "store-2", "store-3", "store-4"]
    assert status["register"]["stores"] == status["register"]["answering"] == ["store-1", "store-2", "store-3"]
    assert status["may_lose"]["acks"]["at_once"] == 1
    assert status["retention"] == {"keep_s": 0, "keep_bytes": 0}
    assert [one["floor"] for one in status["partitions"]] == [0] * PARTITIONS
    assert "a crashed process loses nothing; a lost disk or machine can lose" in status["protects_against"]
    assert set(status) == {
        "format", "cluster", "data", "addresses", "started_by", "ray", "logs", "partitions", "stores", "spare_sessions",
        "failovers", "missing", "register", "may_lose", "protects_against", "actors", "retention",
    }  # fmt: skip


def test_the_client_on_a_wrong_token_is_told_so(system: Any) -> None:
    from trilogue.actors.protocol.errors import NotAuthorized

    async def knock() -> None:
        async with Client(sender="mallory", address=system.address, token="wrong") as client:
            await client.heads(["launch"])

    with pytest.raises(NotAuthorized):
        run(knock())


def test_a_store_directory_of_another_cluster_stops_the_start_in_one_line(users_ray: None, system: Any, tmp_path: Path) -> None:
    """A store refuses it, and the reason travels through Ray unharmed."""
    import shutil

    import ray

    from trilogue.actors.config import StoreConfig
    from trilogue.cluster.on_ray.actor_classes import StoreActor

    record, token = open_data(settings_of(data=tmp_path))
    shutil.copytree(system.data / "store-1", tmp_path / "store-1")
    config = StoreConfig(
        "stranger", str(tmp_path / "store-1"), record.cluster, record.log_id, 1, token, "127.0.0.1:0", allow_tmpfs=True
    )
    stranger: Any = ray.remote(num_cpus=0)(StoreActor).remote(config)
    with pytest.raises(WrongCluster) as refusal:
        ray.get(stranger.place.remote(), timeout=30)
    assert "belongs to cluster" in str(refusal.value.cause)
    assert "\n" not in str(refusal.value.cause)
    ray.kill(stranger)


def test_joining_a_ray_without_its_token_says_at_once_what_is_missing(system: Any) -> None:
    """Ray itself would try for 20 seconds, and say less."""
    import subprocess
    import sys

    program = "import sys\nfrom trilogue.cluster.on_ray.ray_head import check_welcome\ncheck_welcome(sys.argv[1])"
    environment = {"PATH": "/usr/bin", "HOME": "/nonexistent", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "-c", program, _ray_address()]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert "wants a token: set RAY_AUTH_MODE=token" in refused.stderr


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def test_a_head_of_ours_takes_no_port_that_ray_keeps_for_another_of_its_parts() -> None:
    from ray._private import ray_constants

    from trilogue.cluster.on_ray.ray_head import HEAD_PORTS

    client_server_port, worker_ports = 10_001, range(10_002, 20_000)
    kept = {
        ray_constants.DEFAULT_DASHBOARD_PORT,
        ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT,
        client_server_port,
        *worker_ports,
    }
    assert kept.isdisjoint(HEAD_PORTS)
