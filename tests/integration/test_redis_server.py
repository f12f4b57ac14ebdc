"""The Redis that tests and the recipe's benchmark start: it answers, keeps its data and its port, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from local_system.waiting import eventually
from redis_server import NewServer, missing
from trilogue.actors.protocol.errors import Unavailable
from trilogue.bench.recipe.server import HOST, RedisServer

LOADED_KEYS = 10_000
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


def test_what_a_server_acked_is_there_after_kill_and_restart_on_the_same_port(new_server: NewServer) -> None:
    server = new_server(**DURABLE, requirepass="secret", maxmemory_policy="noeviction")
    client = redis.Redis.from_url(server.url)
    client.set("tea", b"green")
    port, pid = server.port, server.pid
    server.kill()
    assert not server.answers()
    assert not Path(f"/proc/{pid}").exists()
    server.restart({"maxmemory": "100mb"})
    assert (server.port, client.get("tea")) == (port, b"green")
    assert client.config_get("maxmemory*") | {"maxmemory": "104857600", "maxmemory-policy": "noeviction"} == (
        client.config_get("maxmemory*")
    )


def test_a_server_with_a_password_counts_as_started_only_when_its_data_is_loaded(new_server: NewServer) -> None:
    server = new_server(**DURABLE, requirepass="secret")
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipeline:
        for k in range(LOADED_KEYS):
            pipeline.set(f"key-{k}", b"")
        pipeline.execute()
    server.restart({"key-load-delay": "100"})  # µs a key: it answers now and then while it loads them
    with redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as client:
        assert client.dbsize() == LOADED_KEYS


def test_a_replica_follows_and_both_end_with_stop(new_server: NewServer) -> None:
    server = new_server(**DURABLE)
    replica = new_server(**DURABLE, replicaof=f"{HOST} {server.port}")
    client, follower = redis.Redis.from_url(server.url), redis.Redis.from_url(replica.url)
    eventually(lambda: follower.info("replication")["master_link_status"] == "up", 20.0, "the replica follows")
    client.set("tea", b"green")
    assert client.wait(1, 10_000) == 1
    assert follower.get("tea") == b"green"
    client.close()
    follower.close()
    for one in (server, replica):
        one.stop()
        assert not one.answers()


def test_a_setting_that_the_server_does_not_know_is_one_line_that_names_the_binary(redis_binary: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_binary, tmp_path, {"no-such-setting": "1"})
    with pytest.raises(Unavailable) as refused:
        server.start()
    assert str(redis_binary) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not server.runs


def test_a_server_ends_with_the_process_that_started_it_even_by_kill_9(redis_binary: Path, tmp_path: Path) -> None:
    program = (
        "import sys, os, signal, pathlib; from trilogue.bench.recipe.server import RedisServer\n"
        "server = RedisServer(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "server.start(); print(server.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, redis_binary, tmp_path], capture_output=True, text=True)
    pid = int(done.stdout)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 10.0, "the server is gone")


def test_without_a_server_a_test_is_skipped_with_a_loud_word_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED: no redis-server"):
        missing("redis-server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make redis"):
        missing("redis-server")
