"""Look-ups: nobody depends on one actor, and an old answer never hides a newer one (design §10)."""

from __future__ import annotations

import pytest

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.client import NotAuthorized, ProtocolError, Unavailable
from trilogue.client.connecting.discovery import Found
from trilogue.client.connecting.routes import Routes


async def nowhere() -> Found:
    raise Unavailable("nothing is named")


@in_loop
async def test_an_actor_that_is_behind_cannot_keep_a_client_from_the_others() -> None:
    cluster, old = Cluster(), Cluster()
    present, behind = FakeSessionActor(cluster), FakeSessionActor(old)
    await present.start()
    address = await behind.start(writes=False)
    old.writers[0] = (1, "10.0.0.1:1")
    cluster.writers[0] = (7, present.server.address)
    routes = Routes(Found([address, present.server.address], TOKEN, "a test"), nowhere, DEFAULT_LIMITS)
    assert await routes.address_of(0, fresh=False) == "10.0.0.1:1"
    for _ in range(4):
        await routes.refresh()
    assert await routes.address_of(0, fresh=False) == present.server.address, "the higher epoch counts, whoever said it"
    for actor in (present, behind):
        await actor.server.close()


@in_loop
async def test_when_nobody_answers_the_system_is_looked_for_again() -> None:
    actor = FakeSessionActor(Cluster())
    address = await actor.start()

    async def elsewhere() -> Found:
        return Found([address], TOKEN, "the run file")

    routes = Routes(Found(["127.0.0.1:1"], "an old token", "a test"), elsewhere, DEFAULT_LIMITS)
    assert await routes.address_of(0, fresh=False) == address
    await actor.server.close()
    with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1"):
        await routes.refresh()
    assert await routes.address_of(0, fresh=False) == address, "what is known stays known"


@in_loop
async def test_another_system_at_the_same_address_is_noticed() -> None:
    actor = FakeSessionActor(Cluster())
    address = await actor.start()
    routes = Routes(Found([address], TOKEN, "a test"), nowhere, DEFAULT_LIMITS)
    await routes.refresh()
    actor.cluster.partitions = 2
    with pytest.raises(ProtocolError, match="another system"):
        await routes.refresh()
    with pytest.raises(NotAuthorized):
        await Routes(Found([address], "wrong", "a test"), nowhere, DEFAULT_LIMITS).refresh()
    await actor.server.close()


@in_loop
async def test_a_partition_without_a_writer_is_said() -> None:
    actor = FakeSessionActor(Cluster())
    address = await actor.start(writes=False)
    routes = Routes(Found([address], TOKEN, "a test"), nowhere, DEFAULT_LIMITS)
    with pytest.raises(Unavailable, match="partition 0 has no SessionActor yet"):
        await routes.address_of(0, fresh=False)
    await actor.server.close()
