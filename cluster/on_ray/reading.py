"""`read_sessions`: histories as a Ray dataset, read in parallel where the stores are.

Owns the plan: which partitions are read on which node. It must not know how a task reads (``datasource``), and is the only one
that knows whether Ray Data is there. Rules:

1. A partition is read by one task, so a session's messages come in their order, each once.
2. A task runs on a node that has a store of its partition, if there is such a node and it is free; partitions are spread over
   those that could read them.
3. How far each session is read is decided when the dataset is made: everything that was acked before. So it is the same
   however often it is executed, and whichever of its tasks is run again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.ids import check_session, partition_of
from trilogue.client import Client
from trilogue.client.connecting.discovery import find
from trilogue.cluster.commands.streams import run

if TYPE_CHECKING:
    import ray.data

    from trilogue.cluster.on_ray.blocks import Part

COLUMNS = ("session", "seq", "sender", "sender_id", "n", "sent_at", "stored_at", "body")


def read_sessions(sessions: Iterable[str] | None = None, columns: Iterable[str] | None = None) -> ray.data.Dataset:
    """These sessions, or all of them, as a dataset: each message once, in order within its session.

    Columns: as `Client.table` has them, names as plain strings; `columns` names those that are wanted. The system is found as a
    client finds it. What was acked before the call is read, whenever the dataset is executed: a partition by one task, on a
    node that has a store of it if there is one. Ray shows rows of one task in their order; `preserve_order` of its execution
    options orders the tasks, too. Raises `UsageError`, `InvalidSession`, and `Unavailable` when the system is not found.
    """
    if isinstance(sessions, str) or isinstance(columns, str):
        raise UsageError("read_sessions takes lists: write read_sessions(sessions=[…], columns=[…])")
    named = list(dict.fromkeys(columns)) if columns is not None else list(COLUMNS)
    if not named or not set(named) <= set(COLUMNS):
        raise UsageError(f"columns={named}: name some of {', '.join(COLUMNS)}")
    wanted = None if sessions is None else list(dict.fromkeys(check_session(session) for session in sessions))
    try:
        import ray
        import ray.data  # it needs pandas
    except ImportError as error:
        raise UsageError(f"Ray Data is not installed here ({error}): pip install 'trilogue[data]'") from None
    from trilogue.cluster.on_ray.datasource import dataset

    parts, hosts = run(_parts(wanted))
    nodes = _nodes(ray.nodes()) if ray.is_initialized() else {}  # type: ignore[no-untyped-call]
    return dataset([(nodes.get(host, ""), mine) for host, mine in assign(parts, hosts, nodes).items()], named)


async def _parts(sessions: list[str] | None) -> tuple[list[Part], dict[int, list[str]]]:
    """What each task reads, and the hosts of the stores that have it."""
    from trilogue.client.reading.tables import tables_of
    from trilogue.cluster.on_ray.blocks import Part, stretches_of, stretches_of_all

    found = await find(None, None)
    address = ",".join(found.addresses)
    async with Client(address=address, token=found.token) as client:
        tables = tables_of(client)
        partitions = await tables.partitions()
        groups: Mapping[int, list[str] | None] = dict.fromkeys(range(partitions))
        if sessions is not None:
            groups = {p: sorted(s for s in sessions if partition_of(s, partitions) == p) for p in range(partitions)}
            groups = {partition: names for partition, names in groups.items() if names}

        async def planned(partition: int, names: list[str] | None) -> tuple[Part, list[str]]:
            holder = tables.holder(partition)
            stretches = await (stretches_of_all(tables, holder) if names is None else stretches_of(client, names))
            places = [one.rpartition(":")[0] for one in await holder.addresses()]
            return Part(address, found.token, partition, stretches, ""), places

        plans = await asyncio.gather(*(planned(partition, names) for partition, names in groups.items()))
        return [part for part, _ in plans], {part.partition: places for part, places in plans}


def assign(parts: list[Part], hosts: Mapping[int, list[str]], nodes: Mapping[str, str]) -> dict[str, list[Part]]:
    """host -> what is read there, "" for wherever there is room: of the hosts with a store and a node the least burdened."""
    burden: Counter[str] = Counter()
    assigned: dict[str, list[Part]] = {}
    for part in parts:
        possible = [host for host in dict.fromkeys(hosts.get(part.partition, ())) if host in nodes]
        host = min(possible, key=lambda one: burden[one]) if possible else ""
        burden[host] += 1
        assigned.setdefault(host, []).append(part._replace(host=host))
    return assigned


def _nodes(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """host -> its node's id; a host with several nodes (a simulated cluster) is none that could be told apart."""
    alive = [(node["NodeManagerAddress"], node["NodeID"]) for node in nodes if node["Alive"]]
    count = Counter(host for host, _ in alive)
    return {host: node for host, node in alive if count[host] == 1}
