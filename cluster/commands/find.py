"""Finding the running system for a command, without Ray.

Owns the order: `--address`, `--data`, `TRILOGUE_ADDRESS`, the user's run file, the default data directory's. It
must not know what is asked there. Invariant: what was named explicitly is never overruled by what was found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from trilogue.actors.protocol.errors import NotAuthorized, TrilogueError, Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client.connecting.discovery import split_addresses
from trilogue.cluster.commands.streams import ask, ask_all, first_that_answers
from trilogue.cluster.settings.directories import data_home, whole_path
from trilogue.cluster.settings.runfile import (
    RunFile,
    data_run_file,
    find_run_file,
    read_run_file,
    read_token,
    user_run_file,
)


class Known(NamedTuple):
    """Where to ask, and what the run file says of the system; `run` is None when only an address is known."""

    addresses: list[str]
    token: str
    run: RunFile | None

    def silent(self, why: TrilogueError) -> Unavailable:
        """What to say when nothing answers: how to start the system, or, of a bare address, what was found there."""
        if self.run is not None:
            return Unavailable(f"nothing answers: the system is down; start it with `trilogue up --data {self.run.data}`")
        return Unavailable(f"no trilogue answers at {', '.join(self.addresses)}: {why}")


def locate(address: str | None, data: Path | None) -> Known:
    """Where the system is said to be. Raises `Unavailable` when nothing says so, `NotAuthorized` without a token, `UsageError`
    for an address that is none."""
    source, named = "--address", address
    if named is None and data is None and (named := os.environ.get("TRILOGUE_ADDRESS") or None) is not None:
        source = "TRILOGUE_ADDRESS"
    if named is not None:
        addresses = split_addresses(named, source)
        run = _run_file_with(addresses)
        token_file = os.environ.get("TRILOGUE_TOKEN_FILE")
        if token_file:
            return Known(addresses, read_token(Path(token_file)), run)
        if run is None:
            raise NotAuthorized(f"no token for {named}: set TRILOGUE_TOKEN_FILE to the token file that `trilogue up` wrote")
        return Known(addresses, run.token(), run)
    run = find_run_file(data)
    if run is None and data is None:
        run = read_run_file(data_run_file(data_home()))
    if run is None:
        where = f" on {whole_path(data)}" if data is not None else ""
        option = f" --data {data}" if data is not None else ""
        raise Unavailable(f"nothing is running{where}: start it with `trilogue up{option}`")
    return Known(run.addresses, run.token(), run)


async def check_answers(known: Known) -> None:
    """Raise `Unavailable` that says what to do unless one of the system's actors answers; `NotAuthorized` likewise."""
    try:
        await first_that_answers(known.addresses, known.token)
    except Unavailable as error:
        raise known.silent(error) from None


async def run_file_behind(known: Known) -> RunFile | None:
    """The run file of a system of which only an address was given, if its data directory is on this machine."""
    if known.run is not None:
        return known.run
    where = await ask(known.addresses[0], known.token, Say.WHERE)
    for status in (await ask_all(where["addresses"], known.token, Say.STATUS)).values():
        if isinstance(status, TrilogueError) or not status.get("directory"):
            continue
        run = read_run_file(data_run_file(Path(status["directory"]).parent))
        if run is not None and run.cluster == where["cluster"]:
            return run
    return None


def _run_file_with(addresses: list[str]) -> RunFile | None:
    run = read_run_file(user_run_file())
    return run if run is not None and set(addresses) & set(run.addresses) else None
