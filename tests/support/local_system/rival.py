"""A second SessionActor for a partition that has one: what Ray makes when it is wrong about who is alive (G9).

Run as ``python -m local_system.rival DATA NAME``. It takes the partition over from whoever has it, and prints its
address. It ends, as any writer does, when it finds that somebody has taken the partition from it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from trilogue.actors.config import SessionConfig
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.session_actor import SessionActor


class RunFileBook:
    """Finds actors in the run file, as it is now."""

    def __init__(self, data: Path) -> None:
        self._data = data

    async def address_of(self, name: str) -> str:
        """The actor's "host:port"."""
        actors = json.loads((self._data / "run.json").read_bytes())["actors"]
        if name not in actors:
            raise Unavailable(f"{name} is not in the run file")
        return str(actors[name])


async def main(data: Path, name: str) -> None:
    """Live until deposed."""
    record = json.loads((data / "cluster.json").read_bytes())
    partition = int(name.removeprefix("session-"))
    names = [f"store-{k}" for k in range(1, record["stores"] + 1)]
    config = SessionConfig(
        name=name,
        partition=partition,
        partitions=record["partitions"],
        cluster_id=record["cluster"],
        log_id=record["log_id"],
        stores=tuple(names[(partition + k) % len(names)] for k in range(record["copies"])),
        token=(data / "token").read_text().strip(),
        listen="127.0.0.1:0",
    )
    actor = SessionActor(config, RunFileBook(data))
    print(await actor.ready(), flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
