"""Finding the system (design §10): an argument, the environment, this process's Ray, the file that `up` wrote; in this order.

Owns the order and where each of them keeps addresses and token. It must not import Ray: it looks whether somebody else did.
Invariant: what was said explicitly is never overruled by what was found.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import NotAuthorized, Unavailable, UsageError

RAY_NAMESPACE = "trilogue"
SUPERVISOR = "supervisor"
RAY_TIMEOUT_S = 5.0


class Found(NamedTuple):
    """Where to ask for the system."""

    addresses: list[str]
    token: str
    source: str


def run_file() -> Path:
    """The file in which `trilogue up` says where the system is."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "trilogue" / "run.json"


async def find(address: str | None, token: str | None) -> Found:
    """Where the system is said to be; whether it answers there is not looked at. Raises `Unavailable` when nothing says so,
    `NotAuthorized` when the token is missing, `UsageError` for an address that is none."""
    source, named = "address=", address
    if named is None and (named := os.environ.get("TRILOGUE_ADDRESS") or None) is not None:
        source = "TRILOGUE_ADDRESS"
    run = _read_run_file()
    if named is not None:
        addresses = split_addresses(named, source)
        if token is None:
            token = _token_from_environment()
        if token is None and run is not None and set(addresses) & set(run["addresses"]):
            token = _read_token(run["token_file"])
        return Found(addresses, _required(token, source), source)
    if (found := await _from_ray()) is not None:
        return Found(found.addresses, token or found.token, found.source)
    if run is not None:
        own = token or _token_from_environment() or _read_token(run["token_file"])
        return Found(run["addresses"], own, str(run_file()))
    raise Unavailable(
        "no trilogue system was named or found: start one with `trilogue up` (or trilogue.cluster.launch), "
        'or give address="HOST:PORT" and token=, or set TRILOGUE_ADDRESS and TRILOGUE_TOKEN_FILE'
    )


def split_addresses(named: str, source: str) -> list[str]:
    """The addresses of "host:port,host:port". Raises `UsageError` that names the `source` when there is none, or it is none."""
    addresses = [part.strip() for part in named.split(",") if part.strip()]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise UsageError(f"{source} names {address!r}, which is no address: write HOST:PORT")
    if not addresses:
        raise UsageError(f"{source} is empty: write HOST:PORT")
    return addresses


def _required(token: str | None, source: str) -> str:
    if not token:
        raise NotAuthorized(f"{source} says where the system is, but there is no token: give token= or set TRILOGUE_TOKEN_FILE")
    return token


def _token_from_environment() -> str | None:
    path = os.environ.get("TRILOGUE_TOKEN_FILE")
    return _read_token(path) if path else None


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotAuthorized(f"the token file {path} cannot be read: {error}; use the one that `trilogue up` wrote") from None


def _read_run_file() -> dict[str, Any] | None:
    """What `up` wrote, if it has the shape that it should have."""
    try:
        run = json.loads(run_file().read_text())
    except (OSError, ValueError):
        return None
    match run:
        case {"addresses": [str(), *_] as addresses, "token_file": str()} if all(isinstance(a, str) for a in addresses):
            return dict(run)
    return None


async def _from_ray() -> Found | None:
    """What the named Supervisor says, if this process has joined a Ray cluster that has one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    try:
        async with asyncio.timeout(RAY_TIMEOUT_S):
            supervisor = await asyncio.to_thread(ray.get_actor, SUPERVISOR, RAY_NAMESPACE)  # asks the GCS, which may be dead
            where = await supervisor.where.remote()
    except Exception:  # whatever Ray raises (no such actor, it just died, it is slow): the run file may still say
        return None
    match where:
        case {"addresses": [_, *_] as addresses, "token": str(token)}:
            return Found([str(address) for address in addresses], token, "the Supervisor")
    return None
