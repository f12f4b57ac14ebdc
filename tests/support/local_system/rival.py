"""A SessionActor that Ray knows nothing of, for one partition: what Ray makes when it is wrong about who is alive (G9).

Run as ``python -m local_system.rival DATA PARTITION DETOURS`` (DETOURS: JSON, another address for some stores, such as one of a
bad network). It prints its address, and orders itself to take the partition over until it has it. It ends, as any writer
does, when it finds that somebody has taken the partition from it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from trilogue.actors.config import SessionConfig
from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.session.actor import SessionActor
from trilogue.actors.wire import connect

NAME = "session-rival"
AGAIN_S = 0.05


class RunFileBook:
    """Finds actors in the run file, as it is now, but for those to which there is a detour."""

    def __init__(self, data: Path, detours: dict[str, str]) -> None:
        self._data, self._detours = data, detours

    async def address_of(self, name: str) -> str:
        """The actor's "host:port"."""
        actors = json.loads((self._data / "run.json").read_bytes())["actors"] | self._detours
        if name not in actors:
            raise Unavailable(f"{name} is not in the run file")
        return str(actors[name])


async def main(data: Path, partition: int, detours: dict[str, str]) -> None:
    """Live until deposed."""
    record = json.loads((data / "cluster.json").read_bytes())
    stores = tuple(f"store-{k}" for k in range(1, record["stores"] + 1))
    config = SessionConfig(
        name=NAME,
        partitions=record["partitions"],
        cluster_id=record["cluster"],
        log_id=record["log_id"],
        stores=stores,
        copies=record["copies"],
        min_copies=record["min_copies"],
        token=(data / "token").read_text().strip(),
        listen="127.0.0.1:0",
        first_stores=stores[: record["first_stores"]],
    )
    actor = SessionActor(config, RunFileBook(data, detours))
    address = await actor.ready()
    connection = await connect(address, config.token, on_message=lambda *_: None, on_closed=lambda *_: None)
    print(address, flush=True)
    while (await actor.status())["state"] != "open":
        if (await actor.status())["partition"] is None:
            await connection.request(Say.TAKE, partition, 0)
        await asyncio.sleep(AGAIN_S)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
