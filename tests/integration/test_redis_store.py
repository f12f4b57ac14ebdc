"""A store on a real Redis server beside two in files, as processes: what was acked is there, whatever became of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from local_system.bare import BareSystem
from local_system.waiting import eventually
from redis_server import NewServer
from redis_store import DURABLE
from trilogue.bench.recipe.server import RedisServer

WAIT_S = 30.0


def send(system: BareSystem, *bodies: bytes) -> None:
    """Send them, and wait for their acks: each is on three stores."""

    async def sending() -> None:
        async with system.client("alice") as client:
            assert {(await client.send("room", body, deadline_s=WAIT_S)).copies for body in bodies} == {3}

    asyncio.run(sending())


def read(system: BareSystem) -> list[bytes]:
    async def reading() -> list[bytes]:
        async with system.client("bob") as client:
            return [message.body for message in await client.history("room", limit=1000)]

    return asyncio.run(reading())


def state(system: BareSystem) -> str:
    return str(system.status("store-3").get("state", ""))


@pytest.fixture
def server(new_server: NewServer) -> RedisServer:
    return new_server(**DURABLE)


def test_acked_messages_survive_kill_9_of_the_server_and_an_emptied_one_is_filled_up_G1_G2_G11(
    server: RedisServer, tmp_path: Path
) -> None:
    """Without Ray nobody restarts a process that ends because of its server: the test does."""
    url = f"redis://{server.address}/0"
    with BareSystem(tmp_path, stores=3, urls={"store-3": url}) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        send(system, b"one", b"two")
        assert system.status("store-3")["url"] == url

        server.kill()
        eventually(lambda: system.status("store-3") == {}, WAIT_S, "the store has noticed, and has ended")
        system.start("store-3")
        eventually(lambda: "start it, or give" in state(system), WAIT_S, "it says what it waits for")
        server.start()
        eventually(lambda: state(system) == "open", WAIT_S, lambda: f"it is open again: {state(system)}")
        send(system, b"three")

        client = redis.Redis.from_url(server.url)
        client.flushall()
        eventually(lambda: system.status("store-3") == {}, WAIT_S, "the store has noticed, and has ended")
        system.start("store-3")
        send(system, b"four")
        system.until("session-0", ranges=lambda ranges: len(ranges) == 1, members=lambda members: len(members) == 3)
        assert read(system) == [b"one", b"two", b"three", b"four"]
        assert client.dbsize() > 0


def test_a_store_with_damaged_data_comes_back_as_a_new_one_once_its_keys_are_removed_G2_G11(
    server: RedisServer, tmp_path: Path
) -> None:
    with BareSystem(tmp_path, stores=3, urls={"store-3": f"redis://{server.address}/0"}) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        send(system, b"one")
        was = system.status("store-3")["store"]
        client = redis.Redis.from_url(server.url)
        (log,) = [key for key in client.keys("trilogue:*:log") if client.hlen(key)][:1]
        offset = max(map(int, client.hkeys(log)))
        client.hset(log, str(offset), b"x" * 80)
        client.hset(client.keys("trilogue:*}")[0], "owner", "a test")
        eventually(lambda: system.status("store-3") == {}, WAIT_S, "it ends, to read its server anew")
        system.start("store-3")
        eventually(
            lambda: "once its keys are removed" in state(system), WAIT_S, lambda: f"it says what is damaged: {state(system)}"
        )
        client.delete(*client.keys("trilogue:*"))
        eventually(lambda: system.status("store-3") == {}, WAIT_S, "it ends, to begin anew")
        system.start("store-3")
        eventually(lambda: state(system) == "open", WAIT_S, lambda: f"it is open again: {state(system)}")
        assert system.status("store-3")["store"] != was
        system.until("session-0", ranges=lambda ranges: len(ranges) == 1, members=lambda members: len(members) == 3)
        send(system, b"two")
        assert read(system) == [b"one", b"two"]


def test_a_server_that_may_not_be_used_is_said_and_taken_when_it_may(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**{**DURABLE, "maxmemory_policy": "allkeys-lru"})
    with BareSystem(tmp_path, stores=3, urls={"store-3": f"redis://{server.address}/0"}) as system:
        system.start("store-3")
        eventually(lambda: "set `maxmemory-policy noeviction`" in state(system), WAIT_S, lambda: f"its line: {state(system)}")
        redis.Redis.from_url(server.url).config_set("maxmemory-policy", "noeviction")
        eventually(lambda: state(system) == "open", WAIT_S, lambda: f"it is open: {state(system)}")
