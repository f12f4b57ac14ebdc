"""Judges what befell a register, from raw facts: who accepted what, and what each operation was told.

Shares no code with what it judges: ballots, values and charters reach it as plain tuples and bytes, and it counts its own
majorities.
"""

from __future__ import annotations

from typing import Any

import msgpack

NEXT = "charter"


class Judge:
    """Notes facts in the order in which they happen; `anomalies` says what cannot be: its kind, then the case."""

    def __init__(self, founders: set[str]) -> None:
        self.anomalies: list[str] = []
        self.charters = {1: founders}
        self.votes: dict[tuple[int, str, Any], tuple[Any, set[str]]] = {}
        self.chosen: dict[str, dict[int, bytes]] = {}
        self.never: set[bytes] = set()
        self.moves = self.done = self.refused = self.reads = 0

    def accepted(self, acceptor: str, number: int, key: str, ballot: Any, value: tuple[int, bytes, bool]) -> None:
        """An acceptor said yes."""
        known, who = self.votes.setdefault((number, key, ballot), (value, set()))
        if known != value:
            self.anomalies.append(f"two values: one ballot {ballot}, two values of {key}: {known} and {value}")
            return
        members = self.charters.get(number, set())
        if acceptor not in members:
            return
        who.add(acceptor)
        if len(who) != len(members) // 2 + 1:
            return
        version, data, moved = value
        self.moves += moved
        name = f"{key}@{number}" if key == NEXT else key
        versions = self.chosen.setdefault(name, {0: b""})
        if versions.setdefault(version, data) != data:
            self.anomalies.append(f"forked: version {version} of {name} is both {versions[version]!r} and {data!r}")
        if data in self.never:
            self.anomalies.append(f"denied: {data!r} was reported as never done, and is there")
        if key == NEXT and version:
            following, acceptors = msgpack.unpackb(data)
            self.charters[following] = set(acceptors.values())

    def top(self, name: str) -> int:
        """The newest version in force: whoever asks from now on must not hear of an older one."""
        return max(self.chosen.get(name, {0: b""}))

    def _is_there(self, what: str, name: str, version: int, data: bytes | None, floor: int) -> None:
        if self.chosen.get(name, {0: b""}).get(version) != (data or b""):
            self.anomalies.append(f"invented: {what} {version} of {name}, which was never in force: {data!r}")
        if version < floor:
            self.anomalies.append(f"stale: {what} {version} of {name}, when {floor} had been in force before the question")

    def found(self, name: str, version: int, data: bytes | None, floor: int) -> None:
        """A read was answered."""
        self.reads += 1
        self._is_there("read", name, version, data, floor)

    def set(self, name: str, wanted: int, data: bytes, version: int) -> None:
        """A compare-and-set was told that it is done."""
        self.done += 1
        if version != wanted + 1 or self.chosen.get(name, {}).get(version) != data:
            self.anomalies.append(f"no majority: yes to version {version} of {name} without a majority")

    def not_in_force(
        self, name: str, wanted: int, own: bytes, version: int, data: bytes | None, tried: bool, floor: int
    ) -> None:
        """A compare-and-set was told of another version; if not `tried`, that its own was never in force and never will be."""
        self.refused += 1
        if version == wanted:
            self.anomalies.append(f"refused: no to a change of version {wanted} of {name}, which is in force")
        self._is_there("told", name, version, data, floor)
        if not tried:
            self.said_never(own)

    def said_never(self, own: bytes) -> None:
        """A compare-and-set was told that its own data was never in force, and never will be."""
        self.never.add(own)
        if any(own in versions.values() for versions in self.chosen.values()):
            self.anomalies.append(f"denied: {own!r} was reported as never done, and had been there")
