"""Histories as tables, from a running system (G3, G7)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.ids import partition_of
from trilogue.client import Client, HistoryTrimmed, SyncClient, UsageError
from trilogue.client.reading.tables import tables_of
from trilogue.cluster import read_sessions
from trilogue.cluster.commands.find import Known
from trilogue.cluster.export.comparing import compare
from trilogue.cluster.export.exporting import Chosen, export
from trilogue.cluster.on_ray.reading import _parts

from .conftest import run

NAMES = [f"read-{k}" for k in range(9)]


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


def test_table_of_a_trimmed_session_says_where_it_begins_and_so_does_the_list_of_sessions(system: Any) -> None:
    async def talk() -> None:
        async with Client(sender="ann") as client:
            await asyncio.gather(*(client.send("trimmed-table", b"%d" % k) for k in range(10)))
            assert await client.trim("trimmed-table", before=6) == 6
            with pytest.raises(HistoryTrimmed) as trimmed:
                await client.table("trimmed-table")
            assert (trimmed.value.session, trimmed.value.first_available) == ("trimmed-table", 6)
            assert (await client.table("trimmed-table", after=5))["seq"].to_pylist() == [6, 7, 8, 9, 10]
            tables = tables_of(client)
            holder = tables.holder(partition_of("trimmed-table", await tables.partitions()))
            assert ("trimmed-table", 6, 10) in [one async for one in tables.sessions(holder)]

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


def test_ray_dataset_has_every_message_once_in_order_within_its_session(system: Any) -> None:
    """G3, over all partitions, while nobody says in which order tasks end."""

    async def talk() -> dict[str, list[tuple[int, bytes]]]:
        async with Client(sender="ann") as client:
            for k in range(40):
                for name in NAMES:
                    client.post(name, b"%d" % k, sender=f"s{k % 3}")
            await client.flush()
            return {name: [(m.seq, m.body) for m in await client.history(name, limit=1000)] for name in NAMES}

    said = run(talk())
    dataset = read_sessions(columns=["body", "session", "seq"])
    found: dict[str, list[tuple[int, bytes]]] = {}
    for row in dataset.iter_rows():
        found.setdefault(row["session"], []).append((row["seq"], row["body"]))
    assert {name: found[name] for name in NAMES} == said
    rows = read_sessions(sessions=[*NAMES[:2], "nobody was here"]).take_all()
    assert sorted((row["session"], row["seq"]) for row in rows) == [(name, seq) for name in NAMES[:2] for seq in range(1, 41)]
    assert [*rows[0]] == ["session", "seq", "sender", "sender_id", "n", "sent_at", "stored_at", "body"]
    assert read_sessions(sessions=[]).schema().names == [*rows[0]]
    for wrong in ({"columns": ["text"]}, {"columns": []}, {"sessions": "a"}):
        with pytest.raises(UsageError):
            read_sessions(**wrong)


def test_ray_dataset_has_every_message_once_though_a_task_is_killed_and_fails_if_it_cannot_be_read_again_G3_G8(
    system: Any, tmp_path: Path
) -> None:
    import ray.data

    async def talk() -> None:
        async with Client(sender="ann") as client:
            await asyncio.gather(*(client.send("killed-task", b"%d" % k) for k in range(2000)))

    run(talk())
    [part], _ = run(_parts(["killed-task"]))
    mark = tmp_path / "killed"
    rows = ray.data.read_datasource(dying([part], str(mark)), override_num_blocks=1).take_all()
    assert mark.exists()
    assert [row["seq"] for row in rows] == list(range(1, 2001))
    trims = dying([part], str(tmp_path / "trimmed"), trims="killed-task")
    with pytest.raises(Exception, match="read the dataset anew"):
        ray.data.read_datasource(trims, override_num_blocks=1).take_all()


def dying(parts: list[Any], mark: str, trims: str | None = None) -> Any:
    """A datasource whose task is killed the first time that it has given four blocks; before that it may trim the session.

    All within a function: Ray carries that to its workers whole, which cannot import tests.
    """
    from trilogue.cluster.on_ray import blocks
    from trilogue.cluster.on_ray.datasource import ReadTask, SessionsDatasource, _read

    def killed_once(part: Any) -> Any:
        blocks.BLOCK_ROWS = 300
        for number, block in enumerate(_read(part, ["seq"])):
            if number == 4 and not os.path.exists(mark):
                with open(mark, "x"):
                    pass
                if trims is not None:
                    with SyncClient(address=part.address, token=part.token) as client:
                        client.trim(trims, before=100)
                os.kill(os.getpid(), signal.SIGKILL)
            yield block
        blocks.BLOCK_ROWS = 128 * 1024

    class Dying(SessionsDatasource):
        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            return [
                ReadTask(lambda part=part: killed_once(part), task.metadata) for part, task in zip(parts, whole, strict=True)
            ]

    whole = SessionsDatasource(parts, ["seq"]).get_read_tasks(1)
    return Dying(parts, ["seq"])


def test_export_of_a_running_system_is_read_by_ray_data_and_by_duckdb(system: Any, tmp_path: Path) -> None:
    import duckdb
    import ray.data

    async def talk() -> None:
        async with Client(sender="ann") as client:
            await asyncio.gather(*(client.send(f"exported-{k % 7}", b"%d" % k) for k in range(300)))
        known = Known(system.addresses, system.token, None)
        report = await export(known, str(tmp_path), Chosen([], None, 0), lambda said: None)
        assert report["messages"] >= 300
        assert (await compare(known, str(tmp_path), NoBars()))["ok"]

    run(talk())
    mine = [row for row in ray.data.read_parquet(str(tmp_path)).take_all() if row["session"].startswith("exported-")]
    assert sorted(int(row["body"]) for row in mine) == list(range(300))
    rows = duckdb.sql(
        f"select count(*), count(distinct (session, seq)) from read_parquet('{tmp_path}/**/*.parquet')"
    ).fetchall()
    assert rows[0][0] == rows[0][1] >= 300


class NoBars:
    def advance(self, part: str, done: int, total: int) -> None:
        pass
