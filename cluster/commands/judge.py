"""Is what the stores hold what trilogue promises? The pure half of `trilogue verify`.

Owns the judgement of one partition's frames, as they are on several stores. It must not know where frames come
from: they are handed in, store by store, in the order of their indexes. Rules, for every frame on every store:

1. Its CRCs hold, it is of this log and partition, its index follows, and its `prev_crc` is the CRC of the one
   before.
2. Its epoch never falls, and what it says is committed lies before it.
3. All stores hold the same frame at the same index.
4. Its records can be read; a session's seqs are 1, 2, 3 …; so are the numbers of each sender in it, skips included
   (hence each `(sender_id, n)` is there once); a session is in the partition that its slot leads to.
5. Of a frame whose messages were trimmed, a store may keep the numbers alone (`Gone`): they are judged as any. Only what a trim
   on record names may be gone. That may lie behind the frames that are judged, for a system that runs trims meanwhile.
6. An idempotency key stands at one message of its session within its time; an alias stands for such a message, of the same
   body.

Memory is bounded by the sessions and senders that there are, by the keys whose time is not over, and by the frames that some
stores have handed in and others have not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import Header
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.keys import digest_of
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.messages import Alias, Floor, Gone, Record, Run, Trim, keys_of, unpack_items, unpack_record
from trilogue.actors.protocol.thinning import header_of, payload_of_records

PROBLEMS_KEPT_MAX = 1_000


class Problem(NamedTuple):
    """One thing that is not as promised. `kind` is one word that stays what it is."""

    kind: str
    where: str
    text: str


@dataclass(slots=True)
class Findings:
    """What was counted and what was found wrong, over all partitions. Keeps the first `PROBLEMS_KEPT_MAX` problems."""

    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    frames: int = 0
    bytes: int = 0
    messages: int = 0
    gone: int = 0
    skips: int = 0
    aliases: int = 0
    sessions: int = 0
    senders: int = 0

    def add(self, kind: str, where: str, text: str) -> None:
        """Note a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(Problem(kind, where, text))


class _Copy:
    """How far one store's copy has been judged."""

    __slots__ = ("broken", "crc", "epoch", "first", "index")

    def __init__(self, first: int) -> None:
        self.first = first
        self.index = first - 1
        self.crc = 0
        self.epoch = 0
        self.broken = first > 1  # the frame before could not be read: what follows has nothing to chain to


class PartitionJudge:
    """Judges one partition. Hand in each store's frames with `take` and `unreadable`, and while it `misses_trims`, those that
    lie behind them with `take_trims`; `finish` at the end.

    `firsts` says with which index each store begins: one of them with 1.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        firsts: Mapping[str, int],
        log_id: int | None,
        frame_bytes_max: int,
        findings: Findings,
    ) -> None:
        self.partition = partition
        self._partitions = partitions
        self._copies = {store: _Copy(first) for store, first in firsts.items()}
        self._log_id = log_id
        self._frame_bytes_max = frame_bytes_max
        self._findings = findings
        self._waiting: dict[int, dict[str, int | None]] = {}
        self._read_upto = 0
        self._last_seq: dict[str, int] = {}
        self._last_n: dict[tuple[str, str], int] = {}
        self._keys = KeyJudge(findings)
        self._trims = TrimJudge(findings)

    def next_index(self, store: str) -> int:
        """The index of the frame that is expected from `store` next."""
        return self._copies[store].index + 1

    def take(self, store: str, frames: Sequence[bytes]) -> None:
        """Judge frames of `store` that follow what it has handed in before."""
        for frame in frames:
            self._take_one(store, frame)

    def unreadable(self, store: str, why: str) -> None:
        """`store` cannot hand in its next frame: it says that the frame is damaged."""
        index = self.next_index(store)
        self._findings.add("damaged", self._where(store, index), why)
        self._step(store, index, None)

    @property
    def misses_trims(self) -> bool:
        """Whether something is gone that no trim has named so far."""
        return bool(self._trims.unnamed())

    def take_trims(self, store: str, frames: Sequence[bytes]) -> None:
        """Frames of `store` that follow the last one that is judged: they are only asked what they trim."""
        for frame in frames:
            with contextlib.suppress(ProtocolError):
                index = header_of(frame, self._frame_bytes_max).index
                for record in map(unpack_record, unpack_items(payload_of_records(frame))):
                    if isinstance(record, Floor):
                        self._trims.floor(self._where(store, index), index, record)
                    elif isinstance(record, Trim):
                        self._trims.trim(record)

    def finish(self, end: int) -> None:
        """Every store should have handed in its frames up to `end`: name those that have not."""
        for store, copy in self._copies.items():
            if copy.index < end:
                self._findings.add("missing", self._where(store, copy.index + 1), f"it ends here; others go on to frame {end}")
        self._findings.sessions += len(self._last_seq)
        self._findings.senders += len(self._last_n)
        self._trims.finish()

    # ------------------------------------------------------------------ one frame

    def _take_one(self, store: str, frame: bytes) -> None:
        index = self.next_index(store)
        self._findings.frames += 1
        self._findings.bytes += len(frame)
        try:
            header = header_of(frame, self._frame_bytes_max)
        except ProtocolError as error:
            self._findings.add("damaged", self._where(store, index), str(error))
            self._step(store, index, None)
            return
        self._check_place(store, index, header)
        if self._read_upto == index - 1 and self._read(store, index, frame, header):
            self._read_upto = index
        self._step(store, index, header)

    def _check_place(self, store: str, index: int, header: Header) -> None:
        copy, where = self._copies[store], self._where(store, index)
        if self._log_id is None:
            self._log_id = header.log_id
        if (header.log_id, header.partition, header.index) != (self._log_id, self.partition, index):
            text = f"it is frame {header.index} of partition {header.partition} in log {header.log_id}"
            self._findings.add("misplaced", where, text)
        if not copy.broken and header.prev_crc != copy.crc:
            self._findings.add("chain", where, f"it follows a frame with CRC {header.prev_crc:#010x}, not {copy.crc:#010x}")
        if header.epoch < copy.epoch:
            self._findings.add("epoch", where, f"epoch {header.epoch} comes after epoch {copy.epoch}")
        if header.committed_upto >= index:
            self._findings.add("committed", where, f"it calls frame {header.committed_upto} committed, which is not before it")

    def _step(self, store: str, index: int, header: Header | None) -> None:
        """Go on to the store's next frame, and compare the stores once all have handed in this one."""
        copy = self._copies[store]
        copy.index = index
        copy.broken = header is None
        if header is not None:
            copy.crc, copy.epoch = header.header_crc, max(copy.epoch, header.epoch)
        crcs = self._waiting.setdefault(index, {})
        crcs[store] = header.header_crc if header is not None else None
        if len(crcs) < sum(copy.first <= index for copy in self._copies.values()):
            return
        del self._waiting[index]
        if len({crc for crc in crcs.values() if crc is not None}) > 1:
            shown = ", ".join(f"{name} {crc:#010x}" for name, crc in crcs.items() if crc is not None)
            self._findings.add(
                "disagree", f"partition {self.partition} frame {index}", f"the stores hold different frames: {shown}"
            )
        if self._read_upto < index:
            # No copy could be read: go on behind it, and let the numbers show what was in it.
            self._findings.add("lost", f"partition {self.partition} frame {index}", "no store holds a readable copy")
            self._read_upto = index

    # ------------------------------------------------------------------ its records

    def _read(self, store: str, index: int, frame: bytes, header: Header) -> bool:
        where = self._where(store, index)
        try:
            items = unpack_items(payload_of_records(frame))
            records = list(map(unpack_record, items))
        except ProtocolError as error:
            self._findings.add("record", where, str(error))
            return False
        if len(records) != header.count:
            self._findings.add("record", where, f"{len(records)} records where the header counts {header.count}")
        for record, item in zip(records, items, strict=True):
            self._judge(where, index, record)
            if isinstance(record, Run):
                if keys := keys_of(item):
                    self._keys.take(where, record, keys)
            elif isinstance(record, Gone):
                self._keys.take_gone(record)
            elif isinstance(record, Alias) and not self._trims.is_gone(record.session, record.seq):
                self._keys.take_alias(where, record)  # of what is gone, keys whose time is over are not kept
        return True

    def _judge(self, where: str, index: int, record: Record) -> None:
        if isinstance(record, Floor):
            self._trims.floor(where, index, record)
            return
        session = record.session
        if partition_of(session, self._partitions) != self.partition:
            self._findings.add(
                "misplaced", where, f"session {session!r} belongs to partition {partition_of(session, self._partitions)}"
            )
        if isinstance(record, Trim):
            last_seq = self._last_seq.get(session, 0)
            if record.before > last_seq + 1:
                text = f"session {session!r} is trimmed below {record.before}, and ends at {last_seq}"
                self._findings.add("trim", where, text)
            self._trims.trim(record)
            return
        if isinstance(record, Run | Gone):
            count, first_n = len(record.bodies) if isinstance(record, Run) else record.messages, record.first_n
            last_seq = self._last_seq.get(session, 0)
            if record.first_seq != last_seq + 1:
                kind = "gap" if record.first_seq > last_seq else "duplicate"
                self._findings.add(f"seq-{kind}", where, f"session {session!r}: seq {record.first_seq} after {last_seq}")
            self._last_seq[session] = max(last_seq, record.first_seq + count - 1)
            if isinstance(record, Gone):
                self._trims.gone(where, index, record)
            else:
                self._findings.messages += count
        else:
            count, first_n = 1, record.n
            self._last_seq.setdefault(session, 0)
            if isinstance(record, Alias):
                self._findings.aliases += 1
            else:
                self._findings.skips += 1
        key = (session, record.sender_id)
        last_n = self._last_n.get(key, 0)
        if first_n != last_n + 1:
            kind = "gap" if first_n > last_n else "duplicate"
            self._findings.add(f"n-{kind}", where, f"sender {record.sender_id!r} in {session!r}: n {first_n} after {last_n}")
        self._last_n[key] = max(last_n, first_n + count - 1)

    def _where(self, store: str, index: int) -> str:
        return f"{store} partition {self.partition} frame {index}"


class TrimJudge:
    """Judges one partition's trims, in the order of the log: what is gone must be named by one of them, sooner or later.

    Seqs rise with the frames, so the last run that is gone vouches for all before it in its session.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._floor = 0
        self._before: dict[str, int] = {}  # session -> its messages below this seq were trimmed
        self._gone: dict[str, tuple[str, int, int]] = {}  # session -> of its last run that is gone: where, frame, last seq

    def floor(self, where: str, index: int, record: Floor) -> None:
        """All messages in frames up to one that lies before this one."""
        if record.upto >= index:
            self._findings.add("trim", where, f"it trims up to frame {record.upto}, which does not lie before it")
        self._floor = max(self._floor, record.upto)

    def trim(self, record: Trim) -> None:
        """A session's messages below some seq."""
        self._before[record.session] = max(record.before, self._before.get(record.session, 0))

    def gone(self, where: str, index: int, record: Gone) -> None:
        """A run whose bodies are gone."""
        self._findings.gone += record.messages
        self._gone[record.session] = where, index, record.first_seq + record.messages - 1

    def is_gone(self, session: str, seq: int) -> bool:
        """Whether this message may be gone, as far as the log was read."""
        return session in self._gone and seq <= self._gone[session][2]

    def unnamed(self) -> list[tuple[str, str, int]]:
        """What no trim names: (session, where its last run is that is gone, the last seq of that)."""
        return [
            (session, where, last_seq)
            for session, (where, index, last_seq) in self._gone.items()
            if index > self._floor and last_seq >= self._before.get(session, 0)
        ]

    def finish(self) -> None:
        """The log ends here."""
        for session, where, last_seq in self.unnamed():
            self._findings.add("gone", where, f"session {session!r}: seq {last_seq} is gone, and no trim names it")


class KeyJudge:
    """Judges one partition's idempotency keys, in the order of the log. Whose time is over by the log's own is forgotten."""

    def __init__(self, findings: Findings, honoured_ms: int = DEFAULT_LIMITS.key_honoured_ms) -> None:
        self._findings, self._honoured_us = findings, honoured_ms * 1000
        self._seqs: dict[tuple[str, str], int] = {}  # (session, key) -> the seq of its newest message
        self._keyed: dict[
            tuple[str, int], tuple[str, int, bytes]
        ] = {}  # (session, seq) -> key, stored_at_us, digest; oldest first

    def take(self, where: str, run: Run, keys: list[str | None]) -> None:
        """A run whose messages have these keys."""
        self._forget(run.stored_at_us)
        for k, key in enumerate(keys):
            if key is None:
                continue
            seq, name = run.first_seq + k, (run.session, key)
            if name in self._seqs:
                text = f"session {run.session!r}: key {key!r} is at seq {self._seqs[name]}, and again at {seq}"
                self._findings.add("key-duplicate", where, text)
            self._seqs[name] = seq
            self._keyed[run.session, seq] = key, run.stored_at_us, digest_of(run.bodies[k])

    def take_gone(self, record: Gone) -> None:
        """A run whose bodies are gone: these of its keys are left."""
        self._forget(record.stored_at_us)
        for k, key, digest in record.keyed:
            self._seqs[record.session, key] = record.first_seq + k
            self._keyed[record.session, record.first_seq + k] = key, record.stored_at_us, digest

    def take_alias(self, where: str, alias: Alias) -> None:
        """A number that stands for an earlier message."""
        self._forget(alias.stored_at_us)
        known = self._keyed.get((alias.session, alias.seq))
        if known is None or known[2] != alias.digest:
            why = "has no key that is honoured" if known is None else "has another body"
            text = f"sender {alias.sender_id!r} in {alias.session!r}: n {alias.n} stands for seq {alias.seq}, which {why}"
            self._findings.add("alias", where, text)

    def _forget(self, now_us: int) -> None:
        while self._keyed:
            place, (key, stored_at_us, _) = next(iter(self._keyed.items()))
            if now_us - stored_at_us < self._honoured_us:
                return
            del self._keyed[place]
            session, seq = place
            if self._seqs.get((session, key)) == seq:
                del self._seqs[session, key]
