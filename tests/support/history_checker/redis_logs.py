"""What stands on a store that is on a Redis server: a second, small reader of its keys, written from their description alone.

Owns that reading. It imports nothing of trilogue, as ``journals``, whose reading of records it shares: a partition's log is the
same bytes as a journal in files. It never writes. The keys of the store NAME:

    trilogue:{…/NAME}               hash with `identity`: JSON with store, incarnation, log_id
    trilogue:{…/NAME/STORE/P}:log   hash: offset -> entry, where an offset is the sum of the sizes before it; a thin frame
                                    has the size of the whole one
    trilogue:{…/NAME/STORE/P}:head  hash with `end`: the sum of all
"""

from __future__ import annotations

import json
from typing import Any

import redis

from history_checker.journals import HEADER, THIN, StoreContents, read_one

STORE_CHARACTERS = 12


def read_redis_store(client: redis.Redis, name: str) -> StoreContents:
    """What the store has on this server."""
    answers: Any = client
    keys: list[bytes] = answers.keys(f"trilogue:{{*/{name}}}")
    if len(keys) != 1:
        return StoreContents(name, damage=[f"{len(keys)} stores say that they are {name}"])
    said = json.loads(answers.hget(keys[0], "identity"))
    contents = StoreContents(name, identity=(said["store"], said["incarnation"]))
    slot = keys[0].decode().removesuffix("}") + "/" + said["store"][:STORE_CHARACTERS] + "/"
    for head in sorted(answers.keys(slot.replace("[", "\\[") + "*}:head")):
        entries = answers.hgetall(head.removesuffix(b"head") + b"log")
        in_order = sorted((int(offset), entry) for offset, entry in entries.items())
        end = 0
        for offset, entry in in_order:
            if offset != end:
                contents.damage.append(f"{head.decode()}: byte {end} is missing, {offset} is there")
            end = offset + _step(entry)
        if int(answers.hget(head, "end")) != end:
            contents.damage.append(f"{head.decode()}: its log ends at {end}")
        data = bytearray(end)
        for offset, entry in in_order:
            data[offset : offset + len(entry)] = entry
        for offset, _ in in_order:
            if problem := read_one(bytes(data), offset, said["log_id"], contents):
                contents.damage.append(f"{head.decode()} at byte {offset}: {problem}")
                break
    return contents


def _step(entry: bytes) -> int:
    """How far behind the entry the next one lies: a thin frame keeps the place of the whole one, whose header it holds."""
    if len(entry) < 2 * HEADER.size or entry[6] != THIN:
        return len(entry)
    size = int.from_bytes(entry[HEADER.size + 44 : HEADER.size + 48], "little")
    return HEADER.size + -(-size // 8) * 8
