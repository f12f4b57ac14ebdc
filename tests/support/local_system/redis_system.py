"""A system some of whose stores are on real Redis servers, which can be hurt, too.

Owns the servers and their ends. Each store has a server of its own.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import TracebackType

import redis

from history_checker import StoreContents
from history_checker.redis_logs import read_redis_store
from local_system.system import LocalSystem
from trilogue.bench.recipe.server import RedisServer

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
PASSWORD = "correct-horse-battery-staple"


class RedisSystem(LocalSystem):
    """`kinds` says of each store, in their order, whether it is on "redis" or in "files". All servers have a password."""

    def __init__(
        self,
        partitions: int,
        binary: Path,
        kinds: tuple[str, ...],
        up_options: tuple[str, ...] = (),
        settings: dict[str, str] = DURABLE,
    ) -> None:
        super().__init__(partitions, up_options)
        self.environment["TRILOGUE_REDIS_PASSWORD"] = PASSWORD
        self.servers: dict[str, RedisServer] = {}
        for number, kind in enumerate(kinds, 1):
            name = f"store-{number}"
            if kind == "redis":
                self.servers[name] = RedisServer(binary, self.root / f"redis-{number}", {**settings, "requirepass": PASSWORD})
                url = f"redis://{self.servers[name].address}/0"
            else:
                url = f"file://{self.data / name}"
            self._up_options += ("--store", url)

    def __enter__(self) -> RedisSystem:
        for server in self.servers.values():
            server.start()
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            for server in self.servers.values():
                server.kill()

    def client_of(self, store: str) -> redis.Redis:
        """A client of the store's server."""
        return redis.Redis.from_url(self.servers[store].url)

    def contents_of(self, store: Path) -> StoreContents:
        """What stands on the store."""
        if store.name in self.servers:
            return read_redis_store(self.client_of(store.name), store.name)
        return super().contents_of(store)

    def empty(self, store: str) -> None:
        """FLUSHALL: of the store's data, nothing is left."""
        self.client_of(store).flushall()

    def delete_directory(self, store: str) -> None:
        """All that the store has is there no more: its keys, and what it keeps on its machine."""
        if store in self.servers:
            self.empty(store)
        super().delete_directory(store)

    def pause_server(self, store: str) -> None:
        """The server says nothing any more, and keeps its connections."""
        os.kill(self.servers[store].pid, signal.SIGSTOP)

    def let_server_go_on(self, store: str) -> None:
        """It goes on."""
        os.kill(self.servers[store].pid, signal.SIGCONT)
