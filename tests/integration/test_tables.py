"""Histories as tables, from a running system (G3, G7)."""

from __future__ import annotations

import asyncio
from typing import Any

from trilogue.client import Client
from trilogue.client.reading.tables import tables_of

from .conftest import run


def test_table_of_a_session_is_its_history_whoever_sent_it_and_with_what_key(system: Any) -> None:
    async def talk() -> None:
        async with Client(sender="ann") as ann, Client(sender="bob") as bob:
            for k in range(50):
                await asyncio.gather(
                    *(ann.send("tables", b"a%d" % n, key=f"k{n}" if k % 3 == 0 else None) for n in range(k, k + 3)),
                    bob.send("tables", b"b%d" % k),
                )
            messages = await bob.history("tables", limit=1000)
            table = await bob.table("tables")
            assert len(messages) > 150
            assert table["seq"].to_pylist() == [message.seq for message in messages]
            for name in ("session", "sender", "sender_id", "n", "body"):
                assert table[name].to_pylist() == [getattr(message, name) for message in messages]
            for name in ("sent_at", "stored_at"):
                assert table[name].cast("int64").to_pylist() == [getattr(message, f"{name}_us") for message in messages]
            assert (await bob.table("tables", after=7, limit=100)).to_pylist() == table.slice(7, 100).to_pylist()

    run(talk())


def test_each_partition_tells_its_sessions_in_order_and_all_together_have_all(system: Any) -> None:
    async def talk() -> None:
        names = [f"listed-{k}" for k in range(30)]
        async with Client(sender="ann") as client:
            await asyncio.gather(*(client.send(name, b"x") for name in names))
            tables = tables_of(client)
            found = {}
            for partition in range(await tables.partitions()):
                listed = [one async for one in tables.sessions(tables.holder(partition))]
                assert [one.session for one in listed] == sorted(one.session for one in listed)
                found |= {one.session: one for one in listed}
            assert [found[name] for name in names] == [(name, 1, 1) for name in names]
            heads = await client.heads(found)
            assert {name: one.last_seq for name, one in found.items()} == heads

    run(talk())
