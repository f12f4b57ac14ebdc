"""Who reads much reads from a store: when that one is killed, another one gives the rest (G2, G7)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from local_system.bare import BareSystem
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.client import Client, Overloaded
from trilogue.client.reading.tables import tables_of

MESSAGES = 60_000
DEADLINE_S = 60.0


def test_table_is_whole_though_the_store_that_it_comes_from_is_killed_meanwhile_G2(tmp_path: Path) -> None:
    async def talk(client: Client, system: BareSystem) -> None:
        for number in range(MESSAGES):
            while True:
                try:
                    client.post("big", b"%0256d" % number)
                    break
                except Overloaded:
                    await client.drain()
        await client.flush()
        names = {address: name for name, address in system._addresses.items()}
        killed = []
        for _ in range(2):
            reading = asyncio.create_task(client.table("big"))
            while not (serving := [*tables_of(client)._stores._connections]) and not reading.done():  # noqa: ASYNC110
                await asyncio.sleep(0)
            for address in serving:
                if names[address] in system._processes:
                    killed.append(names[address])
                    system.kill(names[address])
            table = await reading
            assert table["seq"].to_pylist() == list(range(1, MESSAGES + 1))
            assert [int(body) for body in table["body"].to_pylist()] == list(range(MESSAGES))
        assert len(set(killed)) == len(killed) >= 2

    in_system(tmp_path, talk)


def test_table_is_held_up_for_half_a_second_by_a_paused_store_not_for_the_time_that_a_request_may_take_G11(
    tmp_path: Path,
) -> None:
    async def talk(client: Client, system: BareSystem) -> None:
        await asyncio.gather(*(client.send("small", b"%d" % number) for number in range(100)))
        await client.table("small")
        [address] = tables_of(client)._stores._connections
        system.pause({address: name for name, address in system._addresses.items()}[address])
        async with system.client("bob") as fresh:  # it has no connection there yet
            for reader in (client, fresh):
                for most_s in (DEFAULT_LIMITS.handshake_timeout_ms / 2000, DEFAULT_LIMITS.hedge_ms / 1000):
                    begun = time.monotonic()
                    assert (await reader.table("small")).num_rows == 100
                    assert time.monotonic() - begun < most_s

    in_system(tmp_path, talk)


def in_system(directory: Path, talk: Callable[[Client, BareSystem], Awaitable[None]]) -> None:
    """Talk, in a system of four stores with a spare SessionActor."""

    async def bounded(system: BareSystem) -> None:
        async with asyncio.timeout(DEADLINE_S), system.client("ann") as client:
            await talk(client, system)

    with BareSystem(directory, stores=4) as system:
        system.start(*system.stores, *system.sessions)
        system.take("session-0")
        system.until("session-0", state="open", spares=lambda spares: len(spares) == 1)
        asyncio.run(bounded(system))
