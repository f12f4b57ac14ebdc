"""The links over which an open journal's readers ask its server, and over which it is looked at.

Owns these links, apart from those that append, and what the server and its nodes said last. It must not know what is asked.
Any thread may use it; one at a time does. Rules:

1. Links that were lost are made anew by the next question. Whoever asks when they are lost hears so (`Unavailable`).
2. A server that forgot the scripts (SCRIPT FLUSH) is told them again, and asked once more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import ServerUnusable, Unavailable
from trilogue.actors.redis_journal.link import Command, LinkLost, Refusal
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import Node, RedisPlace
from trilogue.actors.redis_journal.promise import Server


class Readers:
    """The readers' links. `servers` and `known` are as they were when they were looked at last."""

    def __init__(self, place: RedisPlace, credentials: Credentials, timeout_ms: int, opened: Nodes) -> None:
        """Not connected yet; `opened` are the links that append, which were looked at just now."""
        self.servers: tuple[Server, ...] = opened.servers
        self.known: tuple[Node, ...] = opened.known
        self._place, self._credentials, self._timeout_ms = place, credentials, timeout_ms
        self._nodes: Nodes | None = None
        self._asking = threading.Lock()

    def ask(self, key: bytes, command: Command) -> Any:
        """The answer of the key's node. Raises `Unavailable`."""
        with self._asking:
            try:
                nodes = self._reached()
                answer = nodes.of(key).ask(*command)
                if isinstance(answer, Refusal) and answer.code == "NOSCRIPT":
                    nodes.load()
                    answer = nodes.of(key).ask(*command)
            except (LinkLost, ServerUnusable) as error:
                raise Unavailable(f"{error}: ask again") from None
        if isinstance(answer, Refusal):
            raise Unavailable(f"{self._place.shown}: {answer.text}: ask again")
        return answer

    def change(self, key: bytes, commands: Iterable[Command], last: Command | None) -> tuple[list[Any], list[Any]]:
        """As `Nodes.ask_each`, of one key. Raises `Unavailable` (nothing was sent), or `LinkLost`."""
        self.ask(key, ["PING"])  # links that were lost are made anew
        with self._asking:
            assert self._nodes is not None
            return self._nodes.ask_each(((key, command) for command in commands), last)

    def look(self) -> None:
        """Look at the server again. Raises `ServerUnusable` or `LinkLost`."""
        with self._asking:
            nodes = self._reached()
            nodes.look()
            self.servers, self.known = nodes.servers, nodes.known

    def close(self) -> None:
        """Let go of the server."""
        with self._asking:
            if self._nodes is not None:
                self._nodes.close()

    def _reached(self) -> Nodes:
        if self._nodes is None or self._nodes.lost:
            self._nodes = None
            self._nodes = Nodes.reach(self._place, self._credentials, self._timeout_ms, known=self.known)
        return self._nodes
