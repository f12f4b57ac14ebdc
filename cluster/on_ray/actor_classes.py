"""The one place where trilogue's classes become Ray actors, with every option spelled out.

Owns the options and the constructors' arguments. It must not decide where an actor runs (``placement``) or whether
(``supervisor``). Invariants: named, detached, restarted without end, never retried by Ray (a retried call could do
something twice), and holding no CPU of Ray's books, so that they run beside a user's own work.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Final, NamedTuple

from trilogue.actors.config import NOBODY, SessionConfig, StoreConfig
from trilogue.actors.redis_journal.place import is_redis
from trilogue.actors.session import actor as session_actor
from trilogue.actors.store import actor as store_actor
from trilogue.actors.wire import join_address
from trilogue.cluster.on_ray import supervisor
from trilogue.cluster.on_ray.address_book import RayAddressBook
from trilogue.cluster.on_ray.placement import Node, node_of, spread_over
from trilogue.cluster.settings.config import ANY_HOST, LOOPBACK, NAMESPACE, SUPERVISOR, Desired, session_names, store_names
from trilogue.cluster.settings.ports import outward_address

OPTIONS: Final[dict[str, Any]] = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "max_concurrency": 64,
    "get_if_exists": True,
}


class Place(NamedTuple):
    """Where an actor's process is, and in which directory Ray keeps what it prints."""

    address: str
    pid: int
    host: str
    logs: str


class StoreActor(store_actor.StoreActor):
    """A StoreActor that knows its Ray node's address."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(replace(config, listen=_listen_here(config.listen)))

    async def place(self) -> Place:
        """Where it is, as soon as it serves. Raises the `DataError` that keeps it from serving."""
        return _place(await self.ready())


class SessionActor(session_actor.SessionActor):
    """A SessionActor that knows its Ray node's address."""

    def __init__(self, config: SessionConfig, book: RayAddressBook) -> None:
        super().__init__(replace(config, listen=_listen_here(config.listen)), book)

    async def place(self) -> Place:
        """Where it is, as soon as it listens."""
        return _place(await self.ready())


class Supervisor(supervisor.Supervisor):
    """The Supervisor, creating actors through Ray."""

    def __init__(self, desired: Desired, here: str) -> None:
        super().__init__(
            replace(desired, host=_host_here(desired.host)),
            RayAddressBook(),
            lambda name: create_actor(desired, name, here),
        )

    async def place(self) -> Place:
        """Where it is, as soon as it listens."""
        return _place(await self.ready())


def _place(address: str) -> Place:
    try:
        logs = os.path.dirname(os.readlink("/proc/self/fd/2"))
    except OSError:
        logs = ""
    return Place(address, os.getpid(), _node_host(), logs)


def create_actor(desired: Desired, name: str, here: str) -> Any:
    """The handle of the actor `name`, created unless it exists; None while its machine has no living node.

    A blocking call. `here` is the id of the node that launched the system.
    """
    listen = join_address(desired.host, desired.ports.get(name, 0))
    record = desired.record
    if name == SUPERVISOR:
        return _actor(Supervisor, name, _near(here, soft=True), desired, here)
    if name in desired.hosts:
        node = node_of(name, desired.hosts, desired.spread, living_nodes(), here)
        if node is None:
            return None
        url = record.url_of(name)
        store = StoreConfig(
            name=name,
            directory=desired.directories[name],
            cluster_id=record.cluster,
            log_id=record.log_id,
            partitions=record.partitions,
            token=desired.token,
            listen=listen,
            allow_tmpfs=desired.allow_tmpfs,
            url=url if is_redis(url) else "",
            credentials=desired.credentials if is_redis(url) else NOBODY,
        )
        return _actor(StoreActor, name, _near(node, soft=False), store)
    stores = store_names(record)
    session = SessionConfig(
        name=name,
        partitions=record.partitions,
        cluster_id=record.cluster,
        log_id=record.log_id,
        stores=stores,
        copies=record.copies,
        min_copies=record.min_copies,
        token=desired.token,
        listen=listen,
        first_stores=stores[: record.first_stores],
        keep_s=record.keep_s,
        keep_bytes=record.keep_bytes,
    )
    # A soft wish is one that Ray may pass over: it has put three neighbours on one node. Of a lost node Ray says that its actor
    # is dead, and the Supervisor creates it again, on a living one.
    apart = spread_over(session_names(record).index(name), living_nodes()) if desired.spread else None
    near = _near(here, soft=True) if apart is None else _near(apart, soft=False)
    return _actor(SessionActor, name, near, session, RayAddressBook())


def living_nodes() -> list[Node]:
    """The Ray cluster's nodes that are alive. A blocking call."""
    import ray

    listed: Any = ray.nodes
    return [Node(str(node["NodeID"]), str(node["NodeManagerAddress"])) for node in listed() if node["Alive"]]


def _actor(cls: type, name: str, strategy: Any, *arguments: Any) -> Any:
    import ray

    remote: Any = ray.remote(num_cpus=0)(cls)
    return remote.options(name=name, scheduling_strategy=strategy, **OPTIONS).remote(*arguments)


def _near(node_id: str, *, soft: bool) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=soft)


def _listen_here(listen: str) -> str:
    host, _, port = listen.rpartition(":")
    return join_address(_host_here(host.strip("[]")), int(port))


def _host_here(host: str) -> str:
    """Where to listen: "every interface" means this machine's own address, which others can use as it stands."""
    if host not in ANY_HOST:
        return host
    own = _node_host()
    return outward_address() if own in LOOPBACK else own


def _node_host() -> str:
    import ray

    own_address: Any = ray.util.get_node_ip_address
    return str(own_address())
