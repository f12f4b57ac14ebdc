"""An open journal on a Redis server: what it appends is on the server's disk when `append` returns.

Owns the appends, the reads, and the noticing that the server is not what it was. It must not know what an entry means, or how a
journal is opened (``opening``). One thread appends; any thread reads. Rules:

1. All that is appended at once goes out in one pipeline: one script for each partition, and, where the server has it, one
   WAITAOF that waits for its disk and for as many replicas' disks as were asked for. It returns when all have answered yes.
2. A position is (partition, offset, size) in that partition's log.
3. After any other answer, or none, nothing is written any more (`JournalBroken`): the process ends, and its successor reads
   what is there. Only "out of memory" leaves it something to serve (`JournalFull`), as a full disk does; then some
   partitions of that append may have been written, and nobody is told so.
4. The server is looked at every second, also while nothing is written: one that was emptied, restored, taken by another
   process, or set to promise less, ends the process, too. Each link is used then, so that none is cut for being idle.
5. Before the process ends, for whatever reason this journal has, nothing is appended any more, and all that was confirmed is
   in the witness, durably (`_stop`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from zlib import crc32

from trilogue.actors.config import Credentials
from trilogue.actors.journal import (
    FenceRecord,
    FillRecord,
    Identity,
    IncarnationRaised,
    JoinRecord,
    JournalBroken,
    JournalFull,
    Position,
)
from trilogue.actors.journal.interface import Part
from trilogue.actors.journal.records import encode_control
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.journal.thin_file import Thin
from trilogue.actors.protocol.errors import Corrupt, ProtocolError, ServerUnusable, Unavailable
from trilogue.actors.protocol.frames import ALIGNMENT, HEADER_BYTES
from trilogue.actors.protocol.invariants import require, violated
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.thinning import header_of
from trilogue.actors.redis_journal.layout import APPEND, PART, Keys, call, identity_key, rewrite
from trilogue.actors.redis_journal.link import Command, LinkLost, Refusal
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import RedisPlace
from trilogue.actors.redis_journal.readers import Readers
from trilogue.actors.redis_journal.replay import PART_BYTES, chained, damaged, filled_in, may_be, refilled
from trilogue.actors.redis_journal.thin_part import ThinPart
from trilogue.actors.redis_journal.witness import Witness, write_witness

logger = logging.getLogger(__name__)

Record = FenceRecord | JoinRecord | FillRecord
Buffer = bytes | memoryview
_PARTITION = slice(16, 20)  # of a frame's header
_ENDS = "the store ends, and reads its server again when it starts"
_new = tuple.__new__


class Log:
    """How far one partition's log goes, and under which fence; where its parts begin, and what was given back in them."""

    __slots__ = ("chain", "end", "epoch", "freed_bytes", "keys", "parts")

    def __init__(
        self, keys: Keys, end: int, chain: int, epoch: int, parts: dict[int, int] | None = None, freed_bytes: int = 0
    ) -> None:
        self.keys, self.end, self.chain, self.epoch = keys, end, chain, epoch
        self.parts, self.freed_bytes = parts if parts is not None else {}, freed_bytes


class Whose(NamedTuple):
    """Which store of which cluster, and the owner of its keys that this process is."""

    cluster: str
    name: str
    owner: str


class RedisJournal:
    """All that one store has promised to remember, on its server. Made by ``opening``."""

    def __init__(
        self, place: RedisPlace, credentials: Credentials, directory: Path, identity: Identity, whose: Whose, nodes: Nodes,
        logs: dict[int, Log], limits: Limits,
    ) -> None:  # fmt: skip
        """Take over what was opened. Use `open_redis_journal`."""
        self.directory = directory
        self.identity = identity
        self.full = not all(server.has_room for server in nodes.servers)
        self.bytes_written = 0
        self.fdatasyncs = 0
        self.freed_bytes = sum(log.freed_bytes for log in logs.values())
        self._place, self._limits = place, limits
        self._cluster, self._name, self._owner = whose
        self._nodes = nodes
        self._logs = logs
        self._stopped: JournalBroken | None = None
        self._appending = threading.RLock()  # held while the state of the logs, or of the links to append, is in question
        self._append_seen = 0
        self._readers = Readers(place, credentials, limits.redis_timeout_ms, nodes)
        self._witnessed: Witness | None = None
        self._witnessing = threading.Lock()

    @property
    def incarnation(self) -> int:
        """How often this store began, or lost what it may have promised: from 1 on."""
        return self.identity.incarnation

    def closed_files(self) -> range:
        """No files: nothing of it is summarised."""
        return range(0)

    @property
    def part_bytes(self) -> int:
        """Parts of a log on a server are small: one is written anew in one step."""
        return PART_BYTES

    def part_of(self, position: Position) -> Part:
        """Which part of its partition's log."""
        return position.file, position.offset // PART_BYTES

    def is_closed(self, part: Part) -> bool:
        """Whether the log goes on in the next part."""
        partition, number = part
        return (number + 1) * PART_BYTES <= self._logs[partition].end

    def size_of(self, part: Part) -> int:
        """As much as was appended to it: what was given back is not known of one part."""
        return PART_BYTES

    def is_far_behind(self, position: Position) -> bool:
        """Whether more than a part of its log was written since."""
        return position.offset + 2 * PART_BYTES < self._logs[position.file].end

    def written_anew(self, part: Part, thin: Thin, instead: Mapping[int, tuple[int, bytes]]) -> ThinPart:
        """A closed part, to be written anew without what is gone."""
        partition, number = part
        log = self._logs[partition]
        start = log.parts.get(number, log.end)
        if min(instead, default=start) < start:
            start = min(instead) - HEADER_BYTES  # it was filled in by a record that begins in the part before
        end = min((at for later, at in log.parts.copy().items() if later > number), default=log.end)
        return ThinPart(log.keys, partition, start, end, self._owner, self._readers.ask, self._change, thin, instead)

    def bytes_free(self) -> int | None:
        """How much more the server takes; None where it has no bound. As it was a second ago."""
        free = [server.bytes_free for server in self._readers.servers]
        return min((one for one in free if one is not None), default=None)

    # ------------------------------------------------------------------ appending

    def append(self, entries: Sequence[Buffer | Record | IncarnationRaised]) -> list[Position]:
        """Make whole frames, fences, joins and fills durable, in this order; returns where each lies (of a fill: its frame).

        Raises `JournalFull` (who asked must not be told of any of them) or `JournalBroken` (the process must end).
        """
        return self._append([(_partition_of(entry), entry) for entry in entries])

    def raise_incarnation(self) -> None:
        """Write down in each log that from here on the store cannot tell what it held."""
        self._append([(partition, IncarnationRaised(self.incarnation)) for partition in self._logs])

    def _append(self, entries: Sequence[tuple[int, Buffer | Record | IncarnationRaised]]) -> list[Position]:
        with self._appending:
            return self._appended(entries)

    def _appended(self, entries: Sequence[tuple[int, Buffer | Record | IncarnationRaised]]) -> list[Position]:
        if self._stopped is not None:
            raise JournalBroken(*self._stopped.args)
        grown: dict[int, tuple[Log, list[bytes | str | int]]] = {}
        positions = []
        total = 0
        for partition, entry in entries:
            if partition not in grown:
                log = self._logs[partition]
                grown[partition] = Log(log.keys, log.end, log.chain, log.epoch, log.parts), []
            log, words = grown[partition]
            inside = 0
            # The len() of a control record counts its fields: being a tuple tells it from a buffer.
            if isinstance(entry, tuple):
                data = encode_control(entry, log_id=self.identity.log_id, file=partition, offset=log.end)
                if isinstance(entry, FenceRecord | JoinRecord):
                    require(entry.epoch >= log.epoch, "a fence of epoch {} goes back: {} is in force", entry.epoch, log.epoch)
                    log.epoch = entry.epoch
                elif isinstance(entry, FillRecord):
                    inside = HEADER_BYTES
            else:
                data = bytes(entry)
            if len(data) % ALIGNMENT:
                violated("only whole, padded frames are appended")
            words += (log.end, data)
            log.parts.setdefault(log.end // PART_BYTES, log.end)
            positions.append(_new(Position, (partition, log.end + inside, len(data) - inside)))
            log.end += len(data)
            log.chain = chained(log.chain, data)
            total += len(data)
        self._write(grown)
        for partition, (log, _) in grown.items():
            self._logs[partition] = log
        self.bytes_written += total
        self.fdatasyncs += 1
        self.full = False
        return positions

    def _write(self, grown: dict[int, tuple[Log, list[bytes | str | int]]]) -> None:
        commands: list[tuple[bytes, Command]] = []
        for partition, (log, words) in grown.items():
            now = self._logs[partition]
            state = self._owner, now.end, now.chain, log.epoch, log.end, log.chain
            commands.append((log.keys.head, call(APPEND, log.keys, *state, *words)))
        shown = self._place.shown
        try:
            answers, waited = self._nodes.ask_each(commands, wait_command(self._nodes, self._place, self._limits))
        except LinkLost as lost:
            self._broken(str(lost))
        for answer in answers:
            if answer != 1 and not (isinstance(answer, Refusal) and answer.code == "OOM"):
                self._broken(f"{shown}: {_text(answer)}")
        if any(isinstance(answer, Refusal) for answer in answers):
            self.full = True
            raise JournalFull(f"{self._place.shown} is out of memory: give it more (maxmemory), then start the store again")
        self._check_waited(waited)

    def _check_waited(self, waited: Sequence[Any]) -> None:
        """Break unless its disk, and its replicas' disks, have confirmed."""
        shown = self._place.shown
        for answer in waited:
            if isinstance(answer, Refusal):
                self._broken(f"{shown}: {answer.text}")
            if answer[0] < 1 or answer[1] < self._place.replicas:
                self._broken(f"{shown}: its disk or its replicas' have not confirmed in time: {answer}")

    def _broken(self, why: str) -> NoReturn:
        """What became of an append is not known."""
        raise self._stop(why)

    def _stop(self, why: str) -> JournalBroken:
        """From here on nothing is written; what is known to be there is written down before the process ends. Any thread may
        call it: an append that another one is in ends first, and is in the witness."""
        with self._appending:
            stopped = self._stopped = self._stopped or JournalBroken(f"{why}; {_ENDS}")
            try:
                self.witness(durably=True)
            except OSError as error:
                logger.error("what the server has cannot be written down: %s", error)
            return stopped

    # ------------------------------------------------------------------ reading

    def read(self, position: Position) -> bytes:
        """The frame at `position`, checked again. Any thread may call it. Raises `Corrupt`, or `Unavailable`."""
        return self.read_row([position])[0]

    def read_row(self, positions: Sequence[Position]) -> list[bytes]:
        """As `read`, for several frames of one partition, in one round trip."""
        partition = positions[0].file
        key = self._logs[partition].keys.log
        fields = [word for position in positions for word in (position.offset, position.offset - HEADER_BYTES)]
        answer = self._readers.ask(key, ["HMGET", key, *fields])
        frames = []
        for k, position in enumerate(positions):
            entry, around = answer[2 * k], answer[2 * k + 1]
            frame = entry if entry is not None else filled_in(around, position.size)
            try:
                header = header_of(frame, position.size)
            except ProtocolError as error:
                raise self._damaged(position, str(error)) from None
            if header.log_id != self.identity.log_id or header.flags or len(frame) != position.size:
                raise self._damaged(position, "another record lies where a frame was stored")
            frames.append(frame)
        return frames

    def read_part(self, position: Position, offset: int, size: int, crc: int) -> bytes:
        """`size` bytes at `offset` in the frame at `position`, checked against the CRC that they had in the verified frame."""
        require(offset + size <= position.size, "a part lies inside its frame")
        keys = self._logs[position.file].keys
        command = call(PART, (keys.log,), position.offset, position.offset - HEADER_BYTES, offset, size)
        data = self._readers.ask(keys.log, command) or b""
        if crc32(data) != crc:
            raise self._damaged(position, "a record of a stored frame fails its CRC")
        return bytes(data)

    def check_in_place(self, position: Position, key: FrameKey) -> None:
        """Raise `Corrupt` unless the frame `key` lies at `position` on the server. One that is not reached says nothing."""
        with contextlib.suppress(Unavailable):
            header = header_of(self.read(position), position.size)
            if FrameKey(header.partition, header.index, header.header_crc) != key:
                raise self._damaged(position, f"frame {header.index} where frame {key.frame_index} was stored")

    def rewrite_in_place(self, position: Position, key: FrameKey, frame: bytes) -> None:
        """Write `frame` where it was stored before. Raises `ProtocolError` (it is not that frame), `Corrupt` (not written)."""
        header = header_of(frame, position.size)
        if FrameKey(header.partition, header.index, header.header_crc) != key or len(frame) != position.size:
            raise ProtocolError(f"frame {header.index} where frame {key.frame_index} of {key.partition} was stored")
        require(position.file == key.partition, "a frame of partition {} lies in log {}", key.partition, position.file)
        keys, offset, entry = self._logs[position.file].keys, position.offset, frame
        try:
            there, around = self._readers.ask(keys.log, ["HMGET", keys.log, offset, offset - HEADER_BYTES])
            if there is None:
                there, offset = around, offset - HEADER_BYTES
                fill = FillRecord(key.partition, frame)
                entry = encode_control(fill, log_id=self.identity.log_id, file=position.file, offset=offset)
                if there is not None and len(there) == len(entry) + HEADER_BYTES:  # it came back in this size
                    entry = refilled(there, frame, position.file, offset)
            if there is None or len(there) != len(entry) or not may_be(key, there):
                raise self._damaged(position, "another record lies where a frame was stored; nothing is written there")
            answer = self._readers.ask(keys.log, rewrite(keys, self._owner, offset, there, entry))
        except Unavailable as error:
            raise self._damaged(position, str(error)) from None
        if answer != 1:
            raise self._damaged(position, f"the server does not take it back: {_text(answer)}")
        self.check_in_place(position, key)

    def _change(self, key: bytes, commands: list[Command]) -> None:
        """Change entries over the readers' own link; returns when all are changed, and on disk.

        Raises `Unavailable` (none is), or `JournalBroken` (some may be: their places are not known any more).
        """
        try:
            answers, waited = self._readers.change(key, commands, wait_command(self._nodes, self._place, self._limits))
        except LinkLost as error:
            self._broken(str(error))
        if refused := [answer for answer in answers if answer != 1]:
            if len(refused) == len(answers):
                raise Unavailable(f"{self._place.shown}: {_text(refused[0])}: it is tried again")
            self._broken(f"{self._place.shown}: {_text(refused[0])}")
        self._check_waited(waited)

    def _damaged(self, position: Position, what: str) -> Corrupt:
        return damaged(self._place.shown, position.file, position.offset, what)

    # ------------------------------------------------------------------ watching the server

    def reason_to_end(self) -> str:
        """Why this journal must be opened anew; empty for most of the time. Any thread may ask; blocks for a round trip.

        With a reason, nothing is appended any more, and the witness is written.
        """
        reason = self._reason_to_end()
        if reason:
            self._stop(reason)
            return reason
        try:
            self.witness(durably=False)
        except OSError as error:
            logger.warning("what the server has cannot be written down: %s; it is tried again", error)
        return ""

    def _reason_to_end(self) -> str:
        try:
            owner = self._readers.ask(key := identity_key(self._cluster, self._name), ["HGET", key, "owner"])
            self._readers.look()
            self._keep_alive()
        except (Unavailable, ServerUnusable, LinkLost) as error:
            return str(error)
        if owner is None:
            return f"{self._place.shown} was emptied: what was promised there is lost"
        if owner.decode(errors="replace") != self._owner:
            return f"{self._place.shown}: another process has taken this store"
        if self.full and all(server.has_room for server in self._readers.servers):
            return f"{self._place.shown} has room again: the journal is opened anew"
        return ""

    def _keep_alive(self) -> None:
        """Use the links that append, if nothing was appended since the last time: a server, or what lies between, may cut those
        that are idle. Raises `LinkLost`."""
        with self._appending:
            if self.fdatasyncs == self._append_seen and self._stopped is None:
                self._nodes.ping()
            self._append_seen = self.fdatasyncs

    def witness(self, *, durably: bool) -> None:
        """Write down how far each log goes. Raises `OSError`."""
        with self._witnessing:  # whoever comes later also writes what is newer
            logs = self._logs.copy()
            ends = tuple((log.end, log.chain) for _, log in sorted(logs.items()))
            witness = Witness(self.identity.store, self.incarnation, ends, self._readers.known)
            if durably or witness != self._witnessed:
                write_witness(self.directory, witness, durably=durably)
                self._witnessed = witness

    def status(self) -> dict[str, Any]:
        """What people may want to know of it."""
        return {
            "directory": str(self.directory),
            "url": self._place.url,
            "server": self._readers.servers[0].version,
            "waits_for": f"WAITAOF 1 {self._place.replicas}" if self._nodes.waits else "appendfsync always",
            "store": self.identity.store,
            "incarnation": self.incarnation,
            "files": 0,
            "bytes": sum(log.end for log in self._logs.copy().values()) - self.freed_bytes,
            "freed_bytes": self.freed_bytes,
            "bytes_written": self.bytes_written,
            "fdatasyncs": self.fdatasyncs,
            "full": self.full,
        }

    def close(self) -> None:
        """Let go of the server; all that was appended is durable already."""
        self._nodes.close()
        self._readers.close()


def wait_command(nodes: Nodes, place: RedisPlace, limits: Limits) -> Command | None:
    """What ends all that must be on disk; nothing where the server answers only then. Answered before the link is lost."""
    return ("WAITAOF", 1, place.replicas, limits.redis_timeout_ms * 3 // 4) if nodes.waits else None


def _partition_of(entry: Buffer | Record | IncarnationRaised) -> int:
    if isinstance(entry, FenceRecord | JoinRecord | FillRecord):
        return entry.partition
    if isinstance(entry, IncarnationRaised):
        violated("an incarnation is raised in all logs at once")
    return int.from_bytes(entry[_PARTITION], "little")


def _text(answer: object) -> str:
    if isinstance(answer, Refusal):
        return answer.text
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
