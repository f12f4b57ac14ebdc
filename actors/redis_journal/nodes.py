"""Where a store's keys lie: on one server, or on the nodes of a Redis Cluster.

Owns one link to each node, and the map from hash slots to them. It must not know what is asked. Rules:

1. Every node of the cluster that holds keys is looked at (``promise``) before the first one is used. The node that the URL
   names is asked for the map, and need not hold any: after a failover it may be a replica. When it does not answer, any other
   node that was known is asked; one that does not know any of them is another cluster's.
2. The map is read when the links are made. A slot that moves afterwards answers MOVED, like any other refusal: whoever
   writes ends, and opens the journal anew.
3. A link knows all scripts from its beginning. A server may be told to forget them (SCRIPT FLUSH): whoever reads loads them
   again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis.crc import key_slot

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import ServerUnusable
from trilogue.actors.redis_journal.layout import SCRIPTS
from trilogue.actors.redis_journal.link import Command, Link, LinkLost, Refusal
from trilogue.actors.redis_journal.place import Node, RedisPlace
from trilogue.actors.redis_journal.promise import Server, is_in_cluster, look_at


class Nodes:
    """The links of one user of the server. Made by `reach`. `known`: all nodes of the cluster, as its map was read last."""

    def __init__(
        self, links: Sequence[Link], servers: Sequence[Server], slots: Sequence[tuple[int, int, Link]], known: Sequence[Node]
    ) -> None:
        self.servers = tuple(servers)
        self.links = tuple(links)
        self.known = tuple(known)
        self._slots = tuple(slots)

    @classmethod
    def reach(
        cls, place: RedisPlace, credentials: Credentials, timeout_ms: int, *, known: Iterable[Node] = (), opening: bool = False
    ) -> Nodes:
        """Connect, and look whether every node can keep the promise. Raises `ServerUnusable`.

        `known` are nodes of the cluster from an earlier time: they are asked when the place does not lead to the keys.
        """
        known = tuple(known)
        addresses = dict.fromkeys([(place.host, place.port), *((node.host, node.port) for node in known)])
        problem: ServerUnusable | None = None
        for host, port in addresses:
            links = [Link(place._replace(host=host, port=port), credentials, timeout_ms)]
            try:
                return cls._reached(links, known if problem else (), credentials, timeout_ms, opening)
            except (LinkLost, ServerUnusable) as error:
                for link in links:
                    link.close()
                problem = problem or ServerUnusable(str(error))
        assert problem is not None
        raise problem

    @classmethod
    def _reached(
        cls, links: list[Link], known: Sequence[Node], credentials: Credentials, timeout_ms: int, opening: bool
    ) -> Nodes:
        """By the way of `links[0]`, which is to lead to a cluster that has one of the `known` nodes, if there are any. What is
        linked is put in `links`."""
        (first,), slots = links, list[tuple[int, int, Link]]()
        ranges = _map(first)
        there = [node for _, _, nodes in ranges for node in nodes]
        if known and not {node.name for node in known} & {node.name for node in there}:
            raise ServerUnusable(f"{first.place.shown} is another server by now")
        if ranges:
            by_address = {(first.place.host, first.place.port): first}
            for start, end, (master, *_) in ranges:
                link = by_address.get((master.host, master.port))
                if link is None:
                    place = first.place._replace(host=master.host, port=master.port)
                    link = by_address[master.host, master.port] = Link(place, credentials, timeout_ms)
                    links.append(link)
                slots.append((start, end, link))
            if first not in [link for _, _, link in slots]:
                links.pop(0).close()
        servers = [look_at(link, opening=opening) for link in links]
        nodes = cls(links, servers, slots, list(dict.fromkeys(there)))
        nodes.load()
        return nodes

    def load(self) -> None:
        """Let each node know all scripts. Raises `ServerUnusable` or `LinkLost`."""
        for link in self.links:
            for answer in link.ask_all([("SCRIPT", "LOAD", script.text) for script in SCRIPTS]):
                if isinstance(answer, Refusal):
                    raise ServerUnusable(
                        f"{link.place.shown} takes no scripts ({answer.text}): allow this user SCRIPT and EVALSHA"
                    )

    @property
    def waits(self) -> bool:
        """Whether every node has WAITAOF."""
        return all(server.waits for server in self.servers)

    @property
    def lost(self) -> bool:
        """Whether a link is gone."""
        return any(link.lost for link in self.links)

    def of(self, key: bytes) -> Link:
        """The link to the node where the key lies."""
        if not self._slots:
            return self.links[0]
        slot = key_slot(key)
        for start, end, link in self._slots:
            if start <= slot <= end:
                return link
        raise LinkLost(f"{self.links[0].place.shown} has no node for slot {slot}")

    def ask_each(self, commands: Iterable[tuple[bytes, Command]], last: Command | None = None) -> tuple[list[Any], list[Any]]:
        """The answers to (key, command) …, in their order; and those to `last`, which ends what goes to each node.

        Raises `LinkLost`: any of them may have been done.
        """
        groups: dict[int, tuple[Link, list[int], list[Command]]] = {}
        count = 0
        for key, command in commands:
            link = self.of(key)
            _, places, group = groups.setdefault(id(link), (link, [], []))
            places.append(count)
            group.append(command)
            count += 1
        answers: list[Any] = [None] * count
        ends: list[Any] = []
        for link, places, group in groups.values():
            found = link.ask_all(group if last is None else [*group, last])
            if last is not None:
                ends.append(found.pop())
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers, ends

    def look(self) -> None:
        """Look again whether every node can keep the promise, and which there are. Raises `ServerUnusable` or `LinkLost`."""
        self.servers = tuple(map(look_at, self.links))
        if self._slots:
            self.known = tuple(dict.fromkeys(node for _, _, nodes in _map(self.links[0]) for node in nodes))

    def ping(self) -> None:
        """Let each link be used. Raises `LinkLost`."""
        for link in self.links:
            link.ask("PING")

    def close(self) -> None:
        """Let go of the links."""
        for link in self.links:
            link.close()


def _map(link: Link) -> list[tuple[int, int, list[Node]]]:
    """(first slot, last slot, master and replicas) of the cluster; nothing if the server is none. Any of its nodes knows it."""
    if not is_in_cluster(link):
        return []
    answer = link.ask("CLUSTER", "SLOTS")
    if isinstance(answer, Refusal) or not answer:
        why = answer.text if isinstance(answer, Refusal) else "no node has any slot"
        raise ServerUnusable(f"{link.place.shown} is a Redis Cluster that does not work ({why}): finish setting it up")
    return [
        (
            int(start),
            int(end),
            [Node(name.decode(), (host or link.place.host.encode()).decode(), int(port)) for host, port, name, *_ in nodes],
        )
        for start, end, *nodes in answer
    ]
