"""Stores and SessionActors as plain processes: no Ray, no Supervisor. Whoever tests says what starts when, and who takes what.

Owns the processes, their addresses and their end. Run as a program, it is one of these processes, on the event loop that Ray's
actors have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import uvloop

from local_system.waiting import eventually
from trilogue.actors.config import SessionConfig, StoreConfig
from trilogue.actors.protocol.errors import DataError, TrilogueError, Unavailable
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Refused, connect
from trilogue.client import Client
from trilogue.cluster.settings.config import ClusterRecord
from trilogue.cluster.settings.ports import choose_ports

TOKEN = "the token"
NEW = ClusterRecord("c", 7, 1, 3, 0, "now", 0, 3, 1)
"""One partition that is to be on three stores; how many stores there are is said in another place."""

PATIENCE_S = 30.0


class BareSystem:
    """`start` what is to run; `take` gives a partition to a SessionActor. Everything ends with it."""

    def __init__(
        self, root: Path, *, stores: int, sessions: int = 1, record: ClusterRecord = NEW, limits: Limits = DEFAULT_LIMITS,
        urls: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """The stores are in `root`, or at their `urls`; of `record`, the numbers of stores and spares do not count."""
        self._urls = urls
        self.root = root
        self.record = record
        self.stores = tuple(f"store-{k}" for k in range(1, stores + 1))
        self.sessions = tuple(f"session-{k}" for k in range(sessions))
        self._limits = limits
        ports = choose_ports((*self.stores, *self.sessions), "127.0.0.1", 0, {})
        self._addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> BareSystem:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill(*self._processes)

    def start(self, *names: str) -> None:
        """Start these actors; none is waited for."""
        for name in names:
            command = [sys.executable, "-m", "local_system.bare", json.dumps(self._config(name))]
            path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
            with (self.root / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    command, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log
                )

    def kill(self, *names: str) -> None:
        """`kill -9`, all at once."""
        processes = [self._processes.pop(name) for name in names]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait(PATIENCE_S)

    def pause(self, name: str) -> None:
        """SIGSTOP: it says nothing more, and its connections stay. It is killed in the end."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def take(self, session: str, partition: int = 0, epoch: int = 0) -> None:
        """Order the SessionActor to take the partition over from the writer of `epoch`, as soon as it answers."""
        eventually(lambda: self.ask(session, Say.TAKE, partition, epoch) != "", PATIENCE_S, f"{session} takes the order")

    def until(self, session: str, **wanted: Any) -> dict[str, Any]:
        """The status of the SessionActor, once it shows all that is wanted: a value, or a test of it."""

        def as_wanted() -> dict[str, Any]:
            status = self.status(session)
            shown = all(key in status and (v(status[key]) if callable(v) else status[key] == v) for key, v in wanted.items())
            return status if shown else {}

        return eventually(as_wanted, PATIENCE_S, lambda: f"{session} shows {wanted}: {self.status(session)}")

    def status(self, name: str) -> dict[str, Any]:
        """What the actor says of itself; empty when it does not answer."""
        return self.ask(name, Say.STATUS) or {}

    def ask(self, name: str, say: Say, *items: Any) -> Any:
        """The answer of an actor; an empty text when there is none."""

        async def asked() -> Any:
            connection = await connect(self._addresses[name], TOKEN, on_message=_nothing, on_closed=_nothing)
            try:
                return await connection.request(say, *items)
            finally:
                connection.close()

        try:
            return asyncio.run(asked())
        except (TrilogueError, Refused):
            return ""

    def client(self, sender: str, outbox: Path | None = None) -> Client:
        """A client of this system."""
        return Client(sender=sender, outbox=outbox, address=",".join(self.addresses), token=TOKEN)

    @property
    def addresses(self) -> list[str]:
        """Where everything is."""
        return list(self._addresses.values())

    def _config(self, name: str) -> dict[str, Any]:
        record = self.record
        common = {
            "name": name, "cluster_id": record.cluster, "log_id": record.log_id, "partitions": record.partitions,
            "token": TOKEN, "listen": self._addresses[name], "limits": asdict(self._limits),
        }  # fmt: skip
        if name in self.stores:
            url = self._urls.get(name, "")
            return {**common, "directory": str(self.root / name), "allow_tmpfs": True, "url": url}
        told = {name: getattr(record, name) for name in ("copies", "min_copies", "keep_s", "keep_bytes")}
        return {**common, **told, "stores": self.stores, "book": self._addresses}


class FixedBook:
    """Everything stays where it is."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses

    async def address_of(self, name: str) -> str:
        """The actor's address. Whether it is there, a connection tells."""
        if name not in self._addresses:
            raise Unavailable(f"{name} is not known")
        return self._addresses[name]


def _nothing(*_: Any) -> None:
    """What an actor says on its own."""


async def run(config: dict[str, Any]) -> None:
    """Be the actor until the end."""
    from trilogue.actors.session.actor import SessionActor
    from trilogue.actors.store.actor import StoreActor

    book = config.pop("book", None)
    config["limits"] = Limits(**config["limits"])
    actor: Any
    if book is None:
        actor = StoreActor(StoreConfig(**config))
    else:
        actor = SessionActor(SessionConfig(**{**config, "stores": tuple(config["stores"])}), FixedBook(book))
    with contextlib.suppress(DataError):  # it goes on, and says what keeps it from serving
        await actor.ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
