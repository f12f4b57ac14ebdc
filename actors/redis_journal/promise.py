"""Whether a Redis server can keep a store's promise: what is answered is on its disk, and stays.

Owns the questions and the lines of refusal. It must not know keys. Rules, for each server that a store's keys lie on:

1. It writes an append-only file, and syncs it before it answers (`appendfsync always`), or at least every second where it
   can say how far it has synced (WAITAOF: Redis 7.2, Valkey); it does not leave out syncs while it rewrites that file.
2. It forgets nothing for want of memory (`noeviction`), and is no replica, whose writes its master does not know.
3. Replicas that are to have each append on their disks, too, are there; only WAITAOF can wait for them.
4. What a server does not let us see is not believed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from trilogue.actors.protocol.errors import ServerUnusable
from trilogue.actors.redis_journal.link import Link, LinkLost, Refusal
from trilogue.actors.redis_journal.place import RedisPlace

OLDEST: Final = (7, 0)
ROOM_BYTES: Final = 64 * 1024 * 1024
ROOM_SHARE: Final = 20


class Server(NamedTuple):
    """What a server says of itself. `waits`: it has WAITAOF; `memory_max` 0: no bound is set."""

    version: str
    waits: bool
    cluster: bool
    memory_used: int
    memory_max: int

    @property
    def bytes_free(self) -> int | None:
        """How much more may be stored; None where nothing bounds it but the machine."""
        return max(0, self.memory_max - self.memory_used) if self.memory_max else None

    @property
    def has_room(self) -> bool:
        """Whether a store that was full goes on: with so much room that it is not full again at once."""
        free = self.bytes_free
        return free is None or free >= min(ROOM_BYTES, self.memory_max // ROOM_SHARE)


def look_at(link: Link, *, opening: bool = False) -> Server:
    """The server behind the link, when it can keep the promise. Raises `ServerUnusable` that says what it lacks.

    Who is `opening` a journal waits while the file is written anew: it may be the first one since `appendonly no`, which
    counts when it is whole, and a server without WAITAOF does not say so.
    """
    place = link.place
    try:
        said, known, *settings = link.ask_all(
            [("INFO",), ("COMMAND", "INFO", "WAITAOF"), *(("CONFIG", "GET", name) for name in _SETTINGS)]
        )
    except LinkLost as lost:
        raise ServerUnusable(str(lost)) from None
    info = _info(place, said)
    waits = isinstance(known, list) and any(isinstance(one, list) and one for one in known)
    for problem in _problems(info, place.replicas, waits, dict(zip(_SETTINGS, map(_setting, settings), strict=True))):
        raise ServerUnusable(f"{place.shown} cannot promise what a store must: {problem}")
    rewriting = any(info.get(name) == "1" for name in ("aof_rewrite_in_progress", "aof_rewrite_scheduled"))
    if opening and rewriting and not waits:
        raise ServerUnusable(f"{place.shown} is writing its append-only file anew: wait until it has")
    if info.get("cluster_enabled") == "1" and place.database:
        raise ServerUnusable(f"{place.shown} is a Redis Cluster, which has one database only: write /0")
    return Server(
        version=_version(info),
        waits=waits,
        cluster=info.get("cluster_enabled") == "1",
        memory_used=int(info.get("used_memory", 0)),
        memory_max=int(info.get("maxmemory", 0)),
    )


def is_in_cluster(link: Link) -> bool:
    """Whether the server is a node of a Redis Cluster. Raises `ServerUnusable` or `LinkLost`."""
    return _info(link.place, link.ask("INFO")).get("cluster_enabled") == "1"


def _info(place: RedisPlace, said: object) -> dict[str, str]:
    if isinstance(said, Refusal):
        raise ServerUnusable(f"{place.shown} does not say how it is ({said.text}): allow this user INFO")
    info = _fields(said)
    if info.get("loading") == "1":
        raise ServerUnusable(f"{place.shown} is still loading its data: wait until it has")
    return info


_SETTINGS: Final = ("appendfsync", "no-appendfsync-on-rewrite")


def _problems(info: dict[str, str], replicas: int, waits: bool, settings: dict[str, str | None]) -> list[str]:
    """What the server lacks, the first thing first."""
    problems = []
    if tuple(int(part) for part in info.get("redis_version", "0.0").split(".")[:2]) < OLDEST:
        problems.append(f"it is version {_version(info)}: take Redis {OLDEST[0]}.{OLDEST[1]} or newer, or Valkey")
    if info.get("role") != "master":
        problems.append("it is a read-only replica: name its master")
    if info.get("aof_enabled") != "1":
        problems.append("it has `appendonly no`, and forgets what it has when it ends: set `appendonly yes`")
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        problems.append(f"it has `maxmemory-policy {policy}`, and throws away what it has: set `maxmemory-policy noeviction`")
    fsync = settings["appendfsync"]
    if fsync is None and not waits:
        problems.append("it does not show how it syncs: allow this user `CONFIG GET appendfsync`")
    elif fsync == "everysec" and not waits:
        problems.append(
            "it has `appendfsync everysec`, and answers before it syncs: set `appendfsync always`, or take a server with "
            "WAITAOF (Redis 7.2, Valkey)"
        )
    elif fsync not in ("always", "everysec", None):
        problems.append(f"it has `appendfsync {fsync}`, and never syncs by itself: set `appendfsync always`")
    if settings["no-appendfsync-on-rewrite"] == "yes":
        problems.append("it has `no-appendfsync-on-rewrite yes`, and answers without syncing at times: set it to `no`")
    if replicas and not waits:
        problems.append("it cannot wait for replicas' disks: take a server with WAITAOF (Redis 7.2, Valkey)")
    there = int(info.get("connected_slaves", 0))
    if there < replicas:
        problems.append(f"it has {there} replicas, and {replicas} are to have each message: connect more, or ask for fewer")
    return problems


def _version(info: dict[str, str]) -> str:
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version', '?')}"


def _setting(answer: object) -> str | None:
    """What CONFIG GET says; nothing when it may not be asked, or is not known."""
    if isinstance(answer, list) and len(answer) == 2 and isinstance(answer[1], bytes):
        return answer[1].decode(errors="replace")
    return None


def _fields(said: object) -> dict[str, str]:
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
