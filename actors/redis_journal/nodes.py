"""Where a store's keys lie: on one server, or on the nodes of a Redis Cluster.

Owns one link to each node, and the map from hash slots to them. It must not know what is asked. Rules:

1. Every node of the cluster that may hold keys is looked at (``promise``) before the first one is used.
2. The map is read when the links are made. A slot that moves afterwards answers MOVED, like any other refusal: whoever
   writes ends, and opens the journal anew.
3. A link knows all scripts from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis.crc import key_slot

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import ServerUnusable
from trilogue.actors.redis_journal.layout import SCRIPTS
from trilogue.actors.redis_journal.link import Command, Link, LinkLost, Refusal
from trilogue.actors.redis_journal.place import RedisPlace
from trilogue.actors.redis_journal.promise import Server, look_at


class Nodes:
    """The links of one user of the server. Made by `reach`."""

    def __init__(self, links: Sequence[Link], servers: Sequence[Server], slots: Sequence[tuple[int, int, Link]]) -> None:
        self.servers = tuple(servers)
        self.links = tuple(links)
        self._slots = tuple(slots)

    @classmethod
    def reach(cls, place: RedisPlace, credentials: Credentials, timeout_ms: int, *, opening: bool = False) -> Nodes:
        """Connect, and look whether every node can keep the promise. Raises `ServerUnusable`."""
        first = Link(place, credentials, timeout_ms)
        links, servers, slots = [first], [look_at(first, opening=opening)], list[tuple[int, int, Link]]()
        try:
            if servers[0].cluster:
                by_address = {(place.host, place.port): first}
                for start, end, host, port in _ranges(first):
                    link = by_address.get((host, port))
                    if link is None:
                        link = by_address[host, port] = Link(place._replace(host=host, port=port), credentials, timeout_ms)
                        links.append(link)
                        servers.append(look_at(link, opening=opening))
                    slots.append((start, end, link))
            for link in links:
                for answer in link.ask_all([("SCRIPT", "LOAD", script.text) for script in SCRIPTS]):
                    if isinstance(answer, Refusal):
                        raise ServerUnusable(
                            f"{link.place.shown} takes no scripts ({answer.text}): allow this user SCRIPT and EVALSHA"
                        )
        except LinkLost as lost:
            raise ServerUnusable(str(lost)) from None
        return cls(links, servers, slots)

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
        """Look again whether every node can keep the promise. Raises `ServerUnusable`."""
        self.servers = tuple(map(look_at, self.links))

    def ping(self) -> None:
        """Let each link be used. Raises `LinkLost`."""
        for link in self.links:
            link.ask("PING")

    def close(self) -> None:
        """Let go of the links."""
        for link in self.links:
            link.close()


def _ranges(link: Link) -> list[tuple[int, int, str, int]]:
    """(first slot, last slot, host, port) of the cluster's masters."""
    answer = link.ask("CLUSTER", "SLOTS")
    if isinstance(answer, Refusal) or not answer:
        why = answer.text if isinstance(answer, Refusal) else "no node has any slot"
        raise ServerUnusable(f"{link.place.shown} is a Redis Cluster that does not work ({why}): finish setting it up")
    return [
        (int(start), int(end), (master[0] or link.place.host.encode()).decode(), int(master[1]))
        for start, end, master, *_ in answer
    ]
