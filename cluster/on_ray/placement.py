"""Which store lives where, and what its copies therefore protect against.

Owns the plan from stores to machines, directories and ports, and the file DATA/places.json that remembers it. It
must not know Ray: nodes come in as values. Invariants: a store goes back to the machine where its directory is, or
nowhere; a plan that was asked for and cannot be had is an error, never a quieter plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import LaunchError, SettingsDiffer, counted
from trilogue.actors.redis_journal.place import parse_place
from trilogue.cluster.settings.config import ANY_HOST, LOOPBACK, ClusterRecord, store_names
from trilogue.cluster.settings.files import read_json, write_json
from trilogue.cluster.settings.store_urls import directory_of

FORMAT = 1


class Node(NamedTuple):
    """A living Ray node. Nodes of one machine (a simulated cluster) share their host."""

    node_id: str
    host: str


class Places(NamedTuple):
    """Where each store's directory is. `hosts` maps stores to machines; one machine for all is the embedded default."""

    spread: bool
    hosts: dict[str, str]
    directories: dict[str, str]

    @property
    def machines(self) -> int:
        return len(set(self.hosts.values()))


def plan(
    record: ClusterRecord,
    data: Path,
    nodes: Sequence[Node],
    here: Node,
    spread: bool | None,
    remembered: Places | None,
) -> Places:
    """Where the stores go. `spread=None` spreads over nodes when there are at least `copies` (3 of 3, say).

    Raises `LaunchError` when the nodes that were asked for, or that hold the data, are not there.
    """
    names = store_names(record)
    if remembered is not None:
        if not set(remembered.hosts) <= set(names):
            raise LaunchError(f"{data / 'places.json'} knows stores that cluster.json does not: restore both from one backup")
        return _again(remembered, record, data, nodes, here, spread)
    if spread and len(nodes) < record.stores:
        raise LaunchError(
            f"{record.stores} stores on nodes of their own need {record.stores} Ray nodes, and there are {len(nodes)}: "
            "add nodes, or leave out --spread"
        )
    if spread is None:
        spread = record.copies > 1 and len(nodes) >= max(record.copies, record.stores)
    if not spread:
        directories = {name: own_directory(record, name, data) for name in names}
        return Places(False, dict.fromkeys(names, here.host), directories)
    order = [here, *sorted(node for node in nodes if node != here)]
    hosts = {name: node.host for name, node in zip(names, order, strict=False)}
    alone = len(names) > 1 and len(set(hosts.values())) == len(names)
    return Places(True, hosts, {name: own_directory(record, name, data, "store" if alone else name) for name in names})


def own_directory(record: ClusterRecord, store: str, data: Path, by_default: str = "") -> str:
    """The store's directory on its machine: the one that its URL names, or one in the data directory. Of a store on a
    server, it holds what belongs to this machine."""
    named = directory_of(record.url_of(store))
    return str(named if named is not None else data / (by_default or store))


def _again(
    remembered: Places, record: ClusterRecord, data: Path, nodes: Sequence[Node], here: Node, spread: bool | None
) -> Places:
    """The stores that there were, where they were, and a place for each that has been added."""
    names = store_names(record)
    if remembered.machines == 1:
        # One machine, whatever its address is today, and wherever the data directory has been moved to.
        if spread and not remembered.spread and len({node.host for node in nodes}) > 1:
            raise SettingsDiffer("the data of all stores is on this machine: leave out --spread, or use another --data")
        hosts = dict.fromkeys(names, here.host)
        wide = remembered.spread if spread is None else spread
        if wide and len(nodes) < len(hosts):
            if spread:
                raise LaunchError(f"{len(hosts)} stores on nodes of their own need as many Ray nodes: there are {len(nodes)}")
            wide = False
        return Places(wide, hosts, {name: own_directory(record, name, data) for name in hosts})
    missing = {name: host for name, host in remembered.hosts.items() if host not in {node.host for node in nodes}}
    if missing:
        name, host = next(iter(missing.items()))
        raise LaunchError(f"{name}'s data is on {host}, which is not in this Ray cluster: start a Ray node there first")
    added = names[len(remembered.hosts) :]
    free = sorted({node.host for node in nodes} - set(remembered.hosts.values()))
    if len(free) < len(added):
        raise LaunchError(
            f"{len(names)} stores on machines of their own need {len(added)} more in this Ray cluster, and it has {len(free)}: "
            "start Ray nodes there first"
        )
    hosts = remembered.hosts | dict(zip(added, free, strict=False))
    return Places(
        remembered.spread, hosts, remembered.directories | {name: own_directory(record, name, data, "store") for name in added}
    )


def node_of(store: str, hosts: dict[str, str], spread: bool, nodes: Iterable[Node], here: str) -> str | None:
    """The id of the node where `store` is to run now; None while its machine has no living node.

    `here` is the preferred node of a system that is not spread.
    """
    on_host = sorted(node.node_id for node in nodes if node.host == hosts[store])
    if not on_host:
        return None
    if not spread:
        return here if here in on_host else on_host[0]
    neighbours = sorted(name for name, host in hosts.items() if host == hosts[store])
    return on_host[neighbours.index(store) % len(on_host)]


def spread_over(number: int, nodes: Iterable[Node]) -> str | None:
    """The id of the node where the SessionActor of this number is to run, so that neighbours in number are not neighbours in
    place; None without nodes. Ray's own SPREAD puts actors that need no CPU side by side."""
    ids = sorted(node.node_id for node in nodes)
    return ids[number % len(ids)] if ids else None


def protection(hosts: dict[str, str], spread: bool, copies: int, servers: Mapping[str, str] = MappingProxyType({})) -> str:
    """In plain words, what the copies protect against. `servers` are the URLs of the stores that are on Redis servers."""
    text = _protection(_data_hosts(hosts, servers), spread, copies)
    if servers:
        text += f"; {', '.join(f'{name} is on {url}' for name, url in sorted(servers.items()))}"
    shared = len({parse_place(url)[:2] for url in servers.values()}) < len(servers)
    return text + (": they share a server, which is lost as one" if shared else "")


def _data_hosts(hosts: dict[str, str], servers: Mapping[str, str]) -> dict[str, str]:
    """The machines that have the stores' data. A server on loopback is on the machine of its store."""
    there = {name: parse_place(url).host for name, url in servers.items()}
    return {name: host if there.get(name, LOOPBACK[0]) in LOOPBACK else there[name] for name, host in hosts.items()}


def _protection(hosts: dict[str, str], spread: bool, copies: int) -> str:
    machines = len(set(hosts.values()))
    if copies == 1:
        return "one copy only: a lost disk loses messages"
    if machines >= copies and machines == len(hosts):
        lost = "a lost disk or machine loses" if copies == 2 else f"{copies - 1} lost disks or machines lose"
        return f"{copies} copies on {copies} machines: {lost} nothing"
    nodes = " or a lost Ray node" if spread else ""
    return (
        f"{copies} copies on {counted(machines, 'machine')}: a crashed process{nodes} loses nothing; "
        "a lost disk or machine can lose messages"
    )


def check_listen(host: str, places: Places) -> None:
    """Raise `LaunchError` if stores on several machines would listen where the others cannot reach them."""
    if places.machines > 1 and host not in ANY_HOST:
        raise LaunchError(
            f"the stores are on {places.machines} machines and cannot share the address {host}: --listen 0.0.0.0:0 lets "
            "each actor listen on its own machine's address"
        )


def read_places(data: Path) -> tuple[Places | None, dict[str, int]]:
    """What DATA/places.json remembers: the places and the ports; (None, {}) when there is no such file.

    Raises `NewerFormat`, `DirectoryUnusable`, or `LaunchError` when it is damaged.
    """
    raw = read_json(data / "places.json", FORMAT)
    if raw is None:
        return None, {}
    try:
        places = Places(bool(raw["spread"]), dict(raw["hosts"]), dict(raw["directories"]))
        return places, {str(name): int(port) for name, port in raw["ports"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise LaunchError(f"{data / 'places.json'} is damaged: restore it (it says which machine holds which store)") from None


def write_places(data: Path, places: Places, ports: dict[str, int]) -> None:
    """Remember where the stores are, and the actors' ports."""
    value: dict[str, Any] = {"format": FORMAT, **places._asdict(), "ports": ports}
    write_json(data / "places.json", value)
