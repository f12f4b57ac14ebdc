"""`trilogue verify`: read every frame of every store again, over the stores' streams.

Owns the reading: which stores, how far, a page at a time. It must not know what is right or wrong (``judge``).
Invariants: a store that does not answer is a problem, never an omission; at most one page a store is in memory;
only what is on all stores is compared, so a system under load can be verified. A store that is still being filled
is read from where its own chain begins, and a note says so. What lies behind the frames that are
judged is asked only what it trims.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import TrilogueError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.wire import Connection, Refused
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.judge import Findings, PartitionJudge
from trilogue.cluster.commands.show import Bars
from trilogue.cluster.commands.status import gather
from trilogue.cluster.commands.streams import connection_to


class Member(NamedTuple):
    """One store of a partition, and how many frames it holds."""

    store: str
    connection: Connection
    first_index: int
    last_index: int


async def verify(known: Known, bars: Bars) -> dict[str, Any]:
    """The report, as `--json` shows it: `ok` is true only if every store of every partition was read to its end and is
    right.

        Raises `Unavailable` when nothing runs there.
    """
    started = time.monotonic()
    status = await gather(known)
    findings, notes = Findings(), list[str]()
    log_id = _log_id(known)
    async with AsyncExitStack() as stack:
        connections: dict[str, Connection] = {}
        holders: dict[int, list[str]] = {}
        for store in _expected_stores(status):
            one = status["actors"].get(store)
            try:
                if one is None:
                    raise Unavailable("it does not answer")
                connections[store] = await stack.enter_async_context(connection_to(one["address"], known.token))
                held = await connections[store].request(Say.PARTITIONS)
            except (TrilogueError, Refused) as error:
                connections.pop(store, None)
                findings.add("unreachable", store, f"{error}: its copies were not read")
                continue
            for partition in held:
                holders.setdefault(partition, []).append(store)
            beyond = [partition for partition in held if partition >= len(status["partitions"])]
            if beyond:
                findings.add("misplaced", store, f"it holds frames of partitions {beyond}, which do not exist")
        for partition in range(len(status["partitions"])):
            about = status["partitions"][partition]
            stores = [name for name in about["stores"] or holders.get(partition, ()) if name in connections]
            firsts = {name: _first_index(status["actors"][name], partition) for name in stores}
            judge = PartitionJudge(
                partition, len(status["partitions"]), firsts, log_id, DEFAULT_LIMITS.frame_bytes_max, findings
            )
            try:
                await _read_partition(
                    judge, partition, firsts, connections, int(about["committed"] or 0), findings, notes, bars
                )
            except (TrilogueError, Refused) as error:
                findings.add("unreachable", f"partition {partition}", f"{error}: it was not read to its end")
    return {
        "ok": findings.problem_count == 0,
        "cluster": status["cluster"],
        "partitions": len(status["partitions"]),
        "stores": sorted(connections),
        "counts": {
            name: getattr(findings, name) for name in ("frames", "bytes", "messages", "skips", "aliases", "sessions", "senders")
        },
        "problem_count": findings.problem_count,
        "problems": [problem._asdict() for problem in findings.problems],
        "notes": notes,
        "seconds": round(time.monotonic() - started, 3),
    }


async def _read_partition(
    judge: PartitionJudge,
    partition: int,
    firsts: dict[str, int],
    connections: dict[str, Connection],
    committed: int,
    findings: Findings,
    notes: list[str],
    bars: Bars,
) -> None:
    """Read the partition on all of its stores up to the end that all have; `committed` was known before their ends were
    asked.
    """
    members = [
        Member(store, connections[store], first, (await connections[store].request(Say.INSPECT, partition))[1])
        for store, first in firsts.items()
    ]
    if not members:
        if committed:
            findings.add("unreachable", f"partition {partition}", "none of its stores answers")
        return
    begin = min(member.first_index for member in members)
    if begin > 1:
        text = f"its stores have not been filled with the frames before {begin} yet: try again later"
        findings.add("unreachable", f"partition {partition}", text)
        return
    for member in members:
        if member.first_index > 1:
            text = (
                f"{member.store} is still being filled: of partition {partition} it has the frames from {member.first_index} on"
            )
            notes.append(text)
    end = min(member.last_index for member in members)
    for member in members:
        if member.last_index < committed:
            text = f"it holds {member.last_index} frames, and {committed} are committed"
            findings.add("missing", f"{member.store} partition {partition}", text)
        elif member.last_index > end:
            more = member.last_index - end
            notes.append(f"{member.store} holds {more} frames of partition {partition} that are not on all stores (yet)")
    while any(judge.next_index(member.store) <= end for member in members):
        await asyncio.gather(*(_read_page(judge, member, partition, end) for member in members))
        done = min(judge.next_index(member.store) for member in members) - 1
        bars.advance(f"partition {partition}", done, end)
    for member in members:
        await _read_on(judge, member, partition, end)
    judge.finish(end)


async def _read_on(judge: PartitionJudge, member: Member, partition: int, end: int) -> None:
    """What was trimmed while this was read is named behind the end: read on there until it is found, or nothing follows."""
    first, last = end + 1, end
    if judge.misses_trims:
        last = (await member.connection.request(Say.INSPECT, partition))[1]
    while judge.misses_trims and first <= last:
        try:
            frames = await member.connection.request(Say.FRAMES, partition, first, last)
        except Refused as refusal:
            if refusal.code != Code.CORRUPT:
                raise
            return  # another store has it
        if not frames:
            return
        judge.take_trims(member.store, frames)
        first += len(frames)


async def _read_page(judge: PartitionJudge, member: Member, partition: int, end: int) -> None:
    """One page of a store; when it holds a damaged frame, frame by frame, so that the others are read."""
    first = judge.next_index(member.store)
    if first > end:
        return
    try:
        frames = await member.connection.request(Say.FRAMES, partition, first, end)
    except Refused as refusal:
        if refusal.code != Code.CORRUPT:
            raise
        frames = await _frame_by_frame(judge, member, partition, first)
        if not frames:
            return
    if not frames:
        raise Unavailable(
            f"{member.store} hands out no frame {first} of partition {partition}, though it has {member.last_index}"
        )
    judge.take(member.store, frames)


async def _frame_by_frame(judge: PartitionJudge, member: Member, partition: int, index: int) -> list[bytes]:
    """The frame at `index` alone; when that is the damaged one, the judge is told, and nothing comes."""
    try:
        frames: list[bytes] = await member.connection.request(Say.FRAMES, partition, index, index)
    except Refused as refusal:
        if refusal.code != Code.CORRUPT:
            raise
        judge.unreadable(member.store, refusal.text)
        return []
    return frames


def _first_index(store: dict[str, Any], partition: int) -> int:
    """Where the store's unbroken chain begins: at 1, unless it is still being filled with what was there before it joined."""
    return int(store["partitions"].get(partition, {}).get("base", 1))


def _expected_stores(status: dict[str, Any]) -> list[str]:
    """Every store that should be there: those that partitions name, that answer, and that the run file knows."""
    names = {name for one in status["partitions"] for name in one["stores"]}
    names |= {one["name"] for one in status["stores"]}
    names |= {name for name in status["missing"] if name.startswith("store-")}
    return sorted(names)


def _log_id(known: Known) -> int | None:
    """The log's id from the data directory, where that is on this machine."""
    if known.run is None:
        return None
    from trilogue.cluster.settings.config import read_record

    try:
        record = read_record(Path(known.run.data))
    except TrilogueError:
        return None
    return record.log_id if record is not None else None
