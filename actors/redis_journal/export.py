"""Reading a store's whole journal off its server into files, for `trilogue verify` of a system that is down.

Owns the copy. It changes nothing on the server, and does not become the owner of what it reads. The copy is a journal in
files of the same frames, fences, joins and fills, so whoever can read and judge one of those can judge this; a log that is
damaged is copied up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trilogue.actors.config import Credentials
from trilogue.actors.journal import (
    FenceRecord,
    FillRecord,
    Identity,
    JoinRecord,
    Journal,
    open_identity,
)
from trilogue.actors.journal.records import ThinFrame, decode_control
from trilogue.actors.protocol.errors import Corrupt, ServerUnusable
from trilogue.actors.protocol.frames import HEADER_BYTES, decode_header, payload_of
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import FLAG_THIN
from trilogue.actors.redis_journal.layout import WALK, call, identity_key, partition_keys
from trilogue.actors.redis_journal.link import LinkLost
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.opening import decode_identity, good
from trilogue.actors.redis_journal.place import RedisPlace
from trilogue.actors.redis_journal.replay import LogReplay, holds_fill, step_of
from trilogue.actors.redis_journal.witness import read_witness


def export_store(
    place: RedisPlace, credentials: Credentials, who: Identity, name: str, partitions: int, directory: Path, limits: Limits,
    home: Path,
) -> list[str] | None:  # fmt: skip
    """Copy the store `name` into `directory`, which is empty; what is damaged, or nothing at all if there is no such store.

    `who` says cluster and log; `home` is the store's own directory. Raises `ServerUnusable`, `WrongCluster`,
    `NewerFormat` or `Corrupt` (its identity).
    """
    witness = read_witness(home)
    known = witness.nodes if witness is not None else ()
    nodes = Nodes.reach(place, credentials, limits.redis_timeout_ms, known=known)
    try:
        key = identity_key(who.cluster, name)
        said = good(place.shown, nodes.of(key).ask("HGET", key, "identity"))
        if said is None:
            return None
        there = decode_identity(said, place.shown, name, who)
        copy = open_identity(directory, cluster=who.cluster, log_id=who.log_id, fresh_store=there.store)
        journal = Journal.open(directory, copy, limits, lambda _: None)
        try:
            return [damage for p in range(partitions) if (damage := _copy(nodes, place, there, name, p, journal, limits))]
        finally:
            journal.close()
    except LinkLost as lost:
        raise ServerUnusable(str(lost)) from None
    finally:
        nodes.close()


def _copy(nodes: Nodes, place: RedisPlace, who: Identity, name: str, partition: int, journal: Journal, limits: Limits) -> str:
    """Copy one partition's log; what is wrong with it."""
    keys = partition_keys(who.cluster, name, who.store, partition)
    link = nodes.of(keys.head)
    head = good(place.shown, link.ask("HMGET", keys.head, "end", "chain"))
    if head[0] is None:
        return f"its keys of partition {partition} are gone"
    end, chain = map(int, head)
    log = LogReplay(place.shown, partition, who.log_id, lambda _: None)
    try:
        while log.end < end:
            entries = good(place.shown, link.ask(*call(WALK, (keys.log,), log.end, end, limits.redis_page_bytes)))
            if not entries:
                raise log.corrupt(f"nothing lies there, and the log goes on to byte {end}")
            begin, whole = log.end, 0
            try:
                for entry in entries:
                    log.take([entry])
                    whole += 1
            finally:
                journal.append([*_records(entries[:whole], partition, begin)])
        if log.chain != chain:
            raise log.corrupt("its entries are not those that were appended")
    except Corrupt as error:
        return str(error)
    return ""


def _records(
    entries: list[bytes], partition: int, offset: int
) -> Iterator[bytes | FenceRecord | JoinRecord | FillRecord | ThinFrame]:
    """What is appended to a journal in files to have the same there; but for a raised incarnation, which is not the copy's."""
    for entry in entries:
        header = decode_header(entry, 0, len(entry))
        if header.flags == 0:
            yield entry
        elif holds_fill(entry):
            yield FillRecord(partition, payload_of(entry, header)[HEADER_BYTES:])
        elif header.flags == FLAG_THIN:
            yield ThinFrame(partition, entry)
        else:
            record = decode_control(header, payload_of(entry, header), file=partition, offset=offset)
            if isinstance(record, FenceRecord | JoinRecord | FillRecord):
                yield record
        offset += step_of(entry)
