"""Free ports, and the ones that actors had before.

Owns the choice of ports. It must not know who listens. Invariant: a port that was asked for is had, or is an error; one that
was not asked for stays the same from start to start where it can, so that addresses stay true.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from trilogue.actors.protocol.errors import LaunchError
from trilogue.cluster.settings.config import LOOPBACK

# Below the ephemeral ports, which any outgoing connection may take while an actor restarts, and above Ray's workers'.
PORTS = range(20_000, 32_000)
PORT_TRIES = 200


def choose_ports(names: Sequence[str], host: str, first: int, remembered: dict[str, int]) -> dict[str, int]:
    """A port for each actor: consecutive ones from `first`, or, when that is 0, the former ones or free ones.

    Raises `LaunchError` when a port that was asked for is taken.
    """
    probe = host if host in LOOPBACK else ("::" if ":" in host else "0.0.0.0")
    if first:
        if first + len(names) - 1 > 65_535:
            raise LaunchError(f"--listen {host}:{first}: {len(names)} ports are needed from there on: choose a lower one")
        for port in range(first, first + len(names)):
            if not is_free(probe, port):
                raise LaunchError(f"port {port} on {host} is taken: choose another one with --listen {host}:PORT (0: any)")
        return {name: first + k for k, name in enumerate(names)}
    chosen: dict[str, int] = {}
    for name in names:
        port = remembered.get(name, 0)
        tries = 0
        while not port or port in chosen.values() or not is_free(probe, port):
            tries += 1
            port = random.choice(PORTS) if tries < PORT_TRIES else 0
            if not port:
                break
        chosen[name] = port
    return chosen


def free_port(candidates: list[int], host: str = "127.0.0.1") -> int:
    """The first of `candidates` that can be bound now. Raises `LaunchError` when none can."""
    for port in candidates:
        if is_free(host, port):
            return port
    raise LaunchError(f"no free port on {host} among {len(candidates)} that were tried: try again")


def is_free(host: str, port: int) -> bool:
    """Whether `host:port` can be listened on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def check_host(host: str) -> None:
    """Raise `LaunchError` unless this machine can listen on `host`."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {host}: {error.strerror or error}; give --listen an address of this machine"
        ) from None


def outward_address() -> str:
    """This machine's address in its network; loopback when it has none. No packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: only the routing table is asked
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
