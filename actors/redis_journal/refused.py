"""A store on a server whose data was refused: looked at until somebody has removed it, or put it right.

Owns the looking. It must not know what was wrong. It changes nothing on the server, and does not become the owner of what it
looks at. Rules:

1. The store's identity on the server tells: one that is gone, or another one, or one of another owner, is a reason to open the
   store anew. Whoever opens a store writes the owner, so a backup that was put back has another one.
2. A server that does not answer says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import ServerUnusable
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.redis_journal.layout import identity_key
from trilogue.actors.redis_journal.link import LinkLost, Refusal
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import RedisPlace
from trilogue.actors.redis_journal.witness import read_witness


class RefusedStore:
    """The store `name` of the cluster, which was refused just now."""

    def __init__(
        self, place: RedisPlace, credentials: Credentials, directory: Path, cluster: str, name: str, limits: Limits
    ) -> None:
        self._place, self._credentials, self._timeout_ms = place, credentials, limits.redis_timeout_ms
        witness = read_witness(directory)
        self._known = witness.nodes if witness is not None else ()
        self._key, self._name = identity_key(cluster, name), name
        self._nodes: Nodes | None = None
        self._seen: Any = None

    def reason_to_end(self) -> str:
        """Why the store is to be opened anew; empty for most of the time. Blocks for a round trip."""
        try:
            if self._nodes is None:
                self._nodes = Nodes.reach(self._place, self._credentials, self._timeout_ms, known=self._known)
            there = self._nodes.of(self._key).ask("HMGET", self._key, "identity", "owner")
        except (LinkLost, ServerUnusable):
            there = None
        if there is None or isinstance(there, Refusal):
            self.close()
            return ""
        if there[0] is None:
            return f"the keys of {self._name} were removed from {self._place.shown}: it is a new store"
        if self._seen is not None and there != self._seen:
            return f"{self._place.shown} has other data of {self._name}: it is opened anew"
        self._seen = there
        return ""

    def close(self) -> None:
        """Let go of the server."""
        if self._nodes is not None:
            self._nodes.close()
            self._nodes = None
