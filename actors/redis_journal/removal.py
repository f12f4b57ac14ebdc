"""Taking all that a cluster has on a Redis server away, for good: what a benchmark or a test leaves behind.

Owns the looking for keys by their names. It must not know what is in them. No running system ever does this.
"""

from __future__ import annotations

from typing import Final

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import ServerUnusable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.redis_journal.layout import keys_of_cluster
from trilogue.actors.redis_journal.link import LinkLost, Refusal
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import RedisPlace

KEYS_AT_ONCE: Final = 1000


def remove_keys(place: RedisPlace, credentials: Credentials, cluster: str) -> int:
    """Remove every key of every store of the cluster from the server; how many there were. Raises `ServerUnusable`."""
    nodes = Nodes.reach(place, credentials, DEFAULT_LIMITS.redis_timeout_ms)
    removed = 0
    try:
        for link in nodes.links:
            cursor: bytes | int = 0
            while True:
                answer = link.ask("SCAN", cursor, "MATCH", keys_of_cluster(cluster), "COUNT", KEYS_AT_ONCE)
                if isinstance(answer, Refusal):
                    raise ServerUnusable(f"{place.shown}: {answer.text}")
                cursor, keys = answer
                link.ask_all([("UNLINK", key) for key in keys])
                removed += len(keys)
                if int(cursor) == 0:
                    break
    except LinkLost as lost:
        raise ServerUnusable(str(lost)) from None
    finally:
        nodes.close()
    return removed
