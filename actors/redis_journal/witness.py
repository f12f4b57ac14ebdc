"""What a store knows of its server's data outside of that server: `witness.json` in the store's directory.

Owns the file. It must not know the server. It says which store was there, under which incarnation, and for each partition
an [end, chain] that the log had. A log that does not have that place any more has lost something that it once confirmed:
the server was restored from a backup, or a replica took over that lacked the end. It also says which nodes a Redis Cluster had:
the one that the URL names may be gone. Rules:

1. What it says was confirmed by the server. It is about a second behind while the store writes; a process that finds the server
   changed, or does not reach it, appends nothing more, and writes down all that it knows, durably, before it ends.
2. A witness that is not there, or not whole, says nothing: then the store cannot tell.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from trilogue.actors.journal.files import sync_directory
from trilogue.actors.redis_journal.place import Node

FILE: Final = "witness.json"


class Witness(NamedTuple):
    """`logs` are [end, chain] of each partition; `nodes` those of its Redis Cluster, if it lies on one."""

    store: str
    incarnation: int
    logs: tuple[tuple[int, int], ...]
    nodes: tuple[Node, ...] = ()


def read_witness(directory: Path) -> Witness | None:
    """The directory's witness; nothing if there is none that can be believed."""
    try:
        line, _, crc = (directory / FILE).read_bytes().rpartition(b"\n")
        if int(crc, 16) != crc32(line):
            return None
        said = json.loads(line)
        return Witness(
            str(said["store"]),
            int(said["incarnation"]),
            tuple((int(end), int(chain)) for end, chain in said["logs"]),
            tuple(Node(str(name), str(host), int(port)) for name, host, port in said.get("nodes", ())),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_witness(directory: Path, witness: Witness, *, durably: bool) -> None:
    """Replace it whole. Raises `OSError`."""
    line = json.dumps(witness._asdict()).encode()
    temporary = directory / f"{FILE}.tmp"
    with open(temporary, "wb") as file:
        file.write(b"%b\n%08x" % (line, crc32(line)))
        if durably:
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, directory / FILE)
    if durably:
        sync_directory(directory)
