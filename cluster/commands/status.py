"""How a running system is: gathered over the streams, shown as a table or as one stable object.

Owns the shape of `trilogue status --json`. It must not import Ray: it works when Ray is dead. Invariants: an actor
that does not answer is named, never left out; the keys stay what they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilogue.actors.protocol.errors import NotAuthorized, TrilogueError, Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.margins import in_words, margins, register_of
from trilogue.cluster.commands.streams import ask_all
from trilogue.cluster.on_ray.placement import protection, read_places
from trilogue.cluster.settings import keeping
from trilogue.cluster.settings.config import SUPERVISOR, read_record
from trilogue.cluster.settings.runfile import RunFile

FORMAT = 1
HOPS = 3


async def gather(known: Known) -> dict[str, Any]:
    """The status of everything that answers. Raises `Unavailable` when nothing does, `NotAuthorized` for a wrong token."""
    answers = await ask_all(known.addresses, known.token, Say.STATUS)
    routes: dict[str, Any] = {}
    # Whoever answers leads to others: to actors that have moved, or to all when only one address was given.
    for _ in range(HOPS):
        asked = [address for address, answer in answers.items() if _good(answer) and address not in routes]
        routes |= await ask_all(asked, known.token, Say.WHERE)
        found = {address for route in routes.values() if _good(route) for address in route["addresses"]} - set(answers)
        if not found:
            break
        answers |= await ask_all(found, known.token, Say.STATUS)
    actors: dict[str, dict[str, Any]] = {}
    for answer in answers.values():
        if _good(answer):
            actors[str(answer["name"])] = answer
    if not actors:
        for answer in answers.values():
            if isinstance(answer, NotAuthorized):
                raise answer
        raise known.silent(next(iter(answers.values()), Unavailable("no address is known")))
    route = next((one for one in routes.values() if _good(one)), None)
    return _shape(known, actors, route)


def healthy(status: dict[str, Any]) -> bool:
    """Whether every partition accepts messages and every actor answers."""
    return not status["missing"] and all(one["state"] == "open" for one in (*status["partitions"], *status["stores"]))


def _good(answer: Any) -> bool:
    return not isinstance(answer, TrilogueError)


def _shape(known: Known, actors: dict[str, dict[str, Any]], route: dict[str, Any] | None) -> dict[str, Any]:
    run = known.run
    stores = {name: one for name, one in actors.items() if one.get("role") == "store"}
    sessions = [one for one in actors.values() if one.get("role") == "session"]
    owners = _owners(sessions)
    supervisor = actors.get(SUPERVISOR, {})
    heard = supervisor.get("partitions", {})
    count = int(route["partitions"]) if route is not None else len(heard) or max(owners, default=-1) + 1
    expected = {store for one in owners.values() for store in (*one["members"], *one["spares"])}
    expected |= set(supervisor.get("watched", ()))
    if run is not None:
        expected |= set(run.actors)
    copies = max((int(one["copies"]) for one in owners.values()), default=0)
    partitions = [_partition(p, owners.get(p), heard.get(p), route) for p in range(count)]
    register = register_of(stores) | {"gone": supervisor.get("register", {}).get("gone", {})}
    there = sum(one["state"] == "open" for one in stores.values())
    return {
        "format": FORMAT,
        "cluster": run.cluster if run is not None else str((route or {}).get("cluster", "")),
        "data": run.data if run is not None else None,
        "addresses": [str(one["address"]) for one in actors.values()],
        "started_by": run.started_by if run is not None else None,
        "ray": {"address": run.ray.address, "temp_dir": run.ray.temp_dir} if run is not None else None,
        "logs": run.logs if run is not None else None,
        "partitions": partitions,
        "spare_sessions": sorted(str(one["name"]) for one in sessions if one["partition"] is None),
        "failovers": supervisor.get("failovers"),
        "stores": [_store(one) for _, one in sorted(stores.items())],
        "missing": sorted(expected - set(actors)),
        "retention": {key: _setting(supervisor, run, key) for key in ("keep_s", "keep_bytes")},
        "register": register,
        "may_lose": margins(partitions, register, there, _setting(supervisor, run, "min_copies")),
        "protects_against": _protection(run.data if run is not None else None, stores, copies),
        "actors": dict(sorted(actors.items())),
    }


def _setting(supervisor: dict[str, Any], run: RunFile | None, name: str) -> int | None:
    """What the system was told to be, as the Supervisor says, or the data directory; None when nobody says it."""
    if name in supervisor:
        return int(supervisor[name])
    if run is not None:
        with contextlib.suppress(TrilogueError):
            record = read_record(Path(run.data))
            return int(getattr(record, name)) if record is not None else None
    return None


def _owners(sessions: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Who serves each partition: of two that say so, the one in the higher epoch; the other one ends by itself."""
    owners: dict[int, dict[str, Any]] = {}
    for one in sessions:
        number = one["partition"]
        if number is not None and (number not in owners or one["epoch"] > owners[number]["epoch"]):
            owners[int(number)] = one
    return owners


def _partition(
    partition: int, one: dict[str, Any] | None, heard: dict[str, Any] | None, route: dict[str, Any] | None
) -> dict[str, Any]:
    """What its owner says; what the Supervisor hears of it; without an owner, what the stores remember.

    `stores` are the members of its last range, `spares` the stores that could replace one of them now. All messages in the
    frames up to `floor` were let go.
    """
    about = {key: heard.get(key) if heard is not None else None for key in ("since", "failovers")}
    if one is None:
        epoch, address = (route or {}).get("writers", {}).get(partition, (0, ""))
        state = f"its SessionActor does not answer at {address or 'any known address'}"
        if heard is not None and heard["actor"] is None:
            state = str(heard["state"])
        return {"partition": partition, "state": state, "actor": None, "epoch": epoch, "copies": 0, "stores": [], "spares": [],
                "address": address, "committed": 0, "floor": 0, "hot_sessions": 0, **about}  # fmt: skip
    if heard is not None and heard["actor"] != one["name"]:
        about["since"] = None
    same = ("partition", "state", "epoch", "copies", "spares", "address", "committed", "floor", "hot_sessions")
    return {**{key: one.get(key) for key in same}, "actor": one["name"], "stores": one["members"], **about}


def _store(one: dict[str, Any]) -> dict[str, Any]:
    journal = one.get("journal") or {}
    return {
        "name": one["name"],
        "state": one["state"],
        "address": one["address"],
        "directory": one["directory"],
        "url": one.get("url", ""),
        "store": one.get("store"),
        "incarnation": one.get("incarnation"),
        "bytes": journal.get("bytes", 0),
        "files": journal.get("files", 0),
        "full": bool(journal.get("full", False)),
        "disk_bytes_free": one.get("disk_bytes_free"),
        "partitions": len(one.get("partitions") or {}),
        "index": _index(one.get("index") or {}, one.get("partitions") or {}),
    }


def _index(index: dict[str, Any], partitions: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """How much of what is committed a store's index knows, and what it takes. It is behind while it is made anew, and a little
    while the store is busy."""
    whole = {number: one["committed_upto"] for number, one in partitions.items() if one["base"] == 1}
    known = sum(min(upto, index.get("indexed_upto", {}).get(number, 0)) for number, upto in whole.items())
    return {
        "percent": 100 * known // max(1, sum(whole.values())) if any(whole.values()) else 100,
        "bytes": index.get("catalogue_bytes", 0),
        "trouble": index.get("trouble", ""),
    }


def _protection(data: str | None, stores: dict[str, dict[str, Any]], copies: int) -> str:
    places = record = None
    if data is not None:
        with contextlib.suppress(TrilogueError):
            places, _ = read_places(Path(data))
            record = read_record(Path(data))
    copies = copies or (record.copies if record is not None else 0)
    if not copies:
        return "unknown: no partition is served"
    servers = {name: str(one["url"]) for name, one in stores.items() if one.get("url")}
    if places is not None:
        return protection(places.hosts, places.spread, copies, servers)
    hosts = {name: str(one["address"]).rpartition(":")[0] for name, one in stores.items()}
    return protection(hosts, False, copies, servers) if hosts else "unknown: no store answers"


def render(status: dict[str, Any]) -> None:
    """Show it to a person."""
    from rich.table import Table

    from trilogue.cluster.commands.paper import Paper

    console = Paper()
    for label, value in (
        ("cluster", status["cluster"]),
        ("data", status["data"]),
        ("address", ", ".join(status["addresses"][:1]) + f"  (any of {len(status['addresses'])} leads to all)"),
        ("copies", status["protects_against"]),
        ("register", _register(status["register"])),
        ("retention", _retention(status["retention"])),
        ("margins", f"stores that may be lost {in_words(status['may_lose'])}"),
        ("Ray", f"{status['ray']['address']}, {status['ray']['temp_dir'] or 'joined'}" if status["ray"] else None),
        ("logs", status["logs"]),
    ):
        if value:
            console.print(f"{label:10}{value}", markup=False, soft_wrap=True)
    partitions = Table(
        "partition", "state", "served by", "since (UTC)", "epoch", "failovers", "copies", "stores", "spare stores",
        "hot sessions", "frames", "address", box=None, pad_edge=False,
    )  # fmt: skip
    for one in status["partitions"]:
        style = None if one["state"] == "open" else "yellow"
        row = (
            one["partition"], one["state"], one["actor"], _when(one["since"]), one["epoch"], one["failovers"], one["copies"],
            _numbers(one["stores"]), _numbers(one["spares"]), one["hot_sessions"], _frames(one), one["address"],
        )  # fmt: skip
        partitions.add_row(*("-" if item in (None, "") else str(item) for item in row), style=style)
    stores = Table("store", "state", "on disk", "free", "partitions", "index", "where", box=None, pad_edge=False)
    for one in status["stores"]:
        style = None if one["state"] == "open" else "yellow"
        shown = (
            one["name"],
            one["state"],
            size(one["bytes"]),
            size(one["disk_bytes_free"]),
            one["partitions"],
            one["index"]["trouble"] or f"{one['index']['percent']} %",
            one["url"] or one["directory"],
        )
        stores.add_row(*map(str, shown), style=style)
    console.print()
    console.print(partitions)
    console.print()
    console.print(stores)
    console.print(f"\nspare SessionActors: {', '.join(status['spare_sessions']) or 'none'}", markup=False)
    if status["missing"]:
        console.print(
            f"\nnot answering: {', '.join(status['missing'])} (Ray restarts an actor within a few seconds)", style="yellow"
        )


def _retention(retention: dict[str, int | None]) -> str | None:
    keep_s, keep_bytes = retention["keep_s"], retention["keep_bytes"]
    return keeping.in_words(keep_s, keep_bytes) if keep_s is not None and keep_bytes is not None else None


def _frames(partition: dict[str, Any]) -> str:
    """How many frames were written, and with which the messages begin that are kept."""
    floor = partition["floor"]
    return f"{partition['committed']}, from {floor + 1}" if floor else str(partition["committed"])


def _register(register: dict[str, Any]) -> str | None:
    if not register["charter"]:
        return None
    away = [name for name in register["stores"] if name not in register["answering"]]
    text = f"kept by {', '.join(register['stores'])}"
    if away:
        text += "; missing: " + ", ".join(
            f"{name} ({register['gone'][name]})" if name in register["gone"] else name for name in away
        )
    return (
        text
        if register["may_lose"] >= 0
        else f"{text}: IT STANDS STILL; if they are gone for good, see `trilogue rescue --help`"
    )


def _when(since: str | None) -> str:
    return since.replace("T", " ").removesuffix("Z") if since else ""


def _numbers(stores: Sequence[str]) -> str:
    return " ".join(name.removeprefix("store-") for name in stores)


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
