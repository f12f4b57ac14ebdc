"""What was done and seen: the events of one run, as the processes that took part wrote them down.

Owns the events' shapes and the files that they are kept in. It knows nothing of trilogue but what a user knows.
Invariants: times are CLOCK_MONOTONIC of one machine in ns, so they compare across its processes; a hand-over is
written down before it happens and an answer after it came, so that no order is claimed that was not there.

A message is known by its *mark*: the first word of its body, and the CRC of all of it. The recorder keeps marks
unique, so a body that was changed on its way is a message that nobody handed over.

One file a process and life, JSON lines, `NAME.LIFE.jsonl`:

    {"e": "handed", "mark", "session", "sender", "t"}      just before it is handed over
    {"e": "acked", "mark", "t", "seq", "sender_id", "n", "copies", "epoch", "duplicate"}
    {"e": "failed", "mark", "t", "error"}                  the client said that it is not stored
    {"e": "proof of loss", "mark", "t", "error"}           the client said that something acked is gone
    {"e": "saved", "upto"}                                 the first `upto` messages of this life are in the file
    {"e": "flushed"}                                       all that NAME was ever given is acked
    {"e": "reads", "reader", "session", "after", "t"}      a reader begins; after null: from now on
    {"e": "read", "reader", "session", "t", "seq", "sender_id", "n", "mark"}
    {"e": "begins", "reader", "session", "first"}          it was told that the session begins there now
    {"e": "read all", "reader", "session", "upto"}         it was told that the session ends there, and has read so far
    {"e": "fault", "t", "what", "bound_s", "sessions"}     from t on, the sessions must come back within bound_s
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32


def mark_of(body: bytes) -> str:
    """The mark of a message with this body."""
    return f"{body.split(b' ', 1)[0].decode(errors='replace')}#{crc32(body):08x}"


class HandedOver(NamedTuple):
    """A message was about to be handed to a client. `outbox` names the client through all its lives."""

    mark: str
    outbox: str
    session: str
    sender: str
    at_ns: int


class Acked(NamedTuple):
    """A client was told that the message is stored. `epoch` is the writer's that said so, `by` the client's life."""

    mark: str
    at_ns: int
    seq: int
    sender_id: str
    n: int
    copies: int
    duplicate: bool = False
    epoch: int = 0
    by: str = ""


class Read(NamedTuple):
    """A reader was given a message."""

    seq: int
    sender_id: str
    n: int
    mark: str
    at_ns: int


class Fault(NamedTuple):
    """Something was broken, or mended, at `at_ns`; from then on the sessions must take messages again in `bound_s`."""

    at_ns: int
    what: str
    bound_s: float
    sessions: tuple[str, ...]


@dataclass(slots=True)
class Reading:
    """What one reader saw of one session, in the order in which it saw it."""

    reader: str
    session: str
    after: int | None
    began_ns: int = 0
    reads: list[Read] = field(default_factory=list)
    begins: set[int] = field(default_factory=set)  # seqs at which it was told that the session begins
    read_upto: int | None = None


@dataclass(slots=True)
class History:
    """All events of a run. What one outbox was given stands in the order of the hand-overs."""

    handed: list[HandedOver] = field(default_factory=list)
    acked: list[Acked] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    proofs: dict[str, str] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    flushed: set[str] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def load(directory: Path) -> History:
    """The history in the files of `directory`."""
    history = History()
    files = sorted(directory.glob("*.jsonl"), key=lambda path: (_name(path), int(path.name.split(".")[-2])))
    for path in files:
        _Life(history, _name(path), path).load()
    return history


def _name(path: Path) -> str:
    return path.name.rsplit(".", 2)[0]


class _Life:
    """One process's file, being read into the history."""

    def __init__(self, history: History, name: str, path: Path) -> None:
        self._history, self._name, self._path = history, name, path
        self._marks: list[str] = []
        self._readings: dict[tuple[str, str], Reading] = {}

    def load(self) -> None:
        whole, _, _cut_off = self._path.read_bytes().rpartition(b"\n")  # a killed process may leave half a line
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError) as error:
                raise ValueError(f"{self._path}:{number}: {type(error).__name__}: {error}") from None

    def _take(self, event: dict[str, Any]) -> None:
        history = self._history
        match event["e"]:
            case "read":
                read = Read(event["seq"], event["sender_id"], event["n"], event["mark"], event["t"])
                self._readings[event["reader"], event["session"]].reads.append(read)
            case "handed":
                history.flushed.discard(self._name)
                self._marks.append(event["mark"])
                handed = HandedOver(event["mark"], self._name, event["session"], event["sender"], event["t"])
                history.handed.append(handed)
            case "acked":
                by = self._path.name.removesuffix(".jsonl")
                history.acked.append(Acked(
                    event["mark"], event["t"], event["seq"], event["sender_id"], event["n"], event["copies"],
                    event["duplicate"], event.get("epoch", 0), by,
                ))  # fmt: skip
            case "failed":
                history.failed[event["mark"]] = event["error"]
            case "proof of loss":
                history.proofs[event["mark"]] = event["error"]
            case "saved":
                history.saved.update(self._marks[: event["upto"]])
            case "flushed":
                history.saved.update(self._marks)
                history.flushed.add(self._name)
            case "reads":
                reading = Reading(event["reader"], event["session"], event["after"], event["t"])
                self._readings[event["reader"], event["session"]] = reading
                history.readings.append(reading)
            case "begins":
                self._readings[event["reader"], event["session"]].begins.add(event["first"])
            case "read all":
                self._readings[event["reader"], event["session"]].read_upto = event["upto"]
            case "fault":
                history.faults.append(Fault(event["t"], event["what"], event["bound_s"], tuple(event["sessions"])))
            case unknown:
                raise ValueError(f"an event of unknown kind {unknown!r}")
