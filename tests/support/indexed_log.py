"""Frames of numbered records, and the same as plain lists: what an index is compared with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trilogue.actors.index.entries import Place
from trilogue.actors.index.keeper import IndexKeeper
from trilogue.actors.index.partition import PartitionIndex
from trilogue.actors.protocol.frames import decode_frame, encode_frame
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import KEYED, RUN, SKIP, Message, Run, Skip, messages_of, pack_records

SESSIONS, SENDERS = ("s", "t", "ü"), ("a/" + "0" * 32, "b/" + "1" * 32)
SMALL = Limits(index_recent_bytes_max=1 << 20, index_resting_bytes_max=1, index_merge_segments_max=2)
FOR_EVER = float("inf")
Step = tuple[int, int, int]
"""(which session, which sender, how many messages; 0: a skip). After an odd number the frame ends."""


class Log:
    """Frames, and what is in them."""

    def __init__(self, steps: list[Step]) -> None:
        self.frames: list[bytes] = []
        self.messages: dict[str, list[Message]] = {name: [] for name in SESSIONS}
        self.numbers: dict[tuple[str, str], dict[int, tuple[int, bytes]]] = {}  # n -> (seq, body); of a skip: (0, b"")
        self.keys: dict[str, dict[str, tuple[int, int, bytes]]] = {name: {} for name in SESSIONS}  # key -> (seq, time, digest)
        records: list[Any] = []
        for session_at, sender_at, count in steps:
            records.append(self._record(SESSIONS[session_at], SENDERS[sender_at], count))
            if count % 2:
                self._frame(records)
                records = []
        self._frame(records)

    def _record(self, session: str, sender_id: str, count: int) -> Any:
        own = self.numbers.setdefault((session, sender_id), {})
        n = len(own) + 1
        if count == 0:
            own[n] = (0, b"")
            return Skip(SKIP, session, sender_id, n, 5)
        seq = len(self.messages[session]) + 1
        bodies = [b"%d" % (n + k) for k in range(count)]
        own |= {n + k: (seq + k, body) for k, body in enumerate(bodies)}
        record = Run(RUN, session, sender_id, n, seq, 5, [7] * count, bodies)
        self.messages[session] += messages_of(record)
        keys = [f"k{seq + k}" if (seq + k) % 3 == 0 else "often" if (seq + k) % 7 == 0 else None for k in range(count)]
        for k, key in enumerate(keys):
            if key is not None:
                digest = hashlib.blake2b(bodies[k], digest_size=16).digest()
                self.keys[session][key] = (seq + k, 5, digest)
        return (KEYED, *record[1:], keys) if any(keys) else record

    def _frame(self, records: list[Any]) -> None:
        self.frames.append(
            encode_frame(
                log_id=1, partition=0, epoch=1, index=len(self.frames) + 1, prev_crc=0, count=len(records), committed_upto=0,
                payload=pack_records(records),
            )[0]
        )  # fmt: skip

    def last_n(self, session: str) -> dict[str, int]:
        """{sender_id: last n} of a session."""
        return {sender_id: len(own) for (name, sender_id), own in self.numbers.items() if name == session}

    def crc_at(self, partition: int, index: int) -> int | None:
        """The CRC of the frame at `index`."""
        if partition or not 0 < index <= len(self.frames):
            return None
        return decode_frame(self.frames[index - 1], 1 << 30).header_crc

    def keeper(self, directory: Path | None = None, mark: str = "mark") -> IndexKeeper:
        """The indexes of a store that has this log."""
        return IndexKeeper(directory, mark, self.crc_at, SMALL)

    def frame(self, index: int) -> bytes:
        """The frame at `index`."""
        return self.frames[index - 1]

    def read(self, _: str, place: Place) -> bytes:
        """The bytes of a record."""
        return self.frames[place.frame_index - 1][place.offset : place.offset + place.size]

    def index(self, keeper: IndexKeeper | None = None, upto: int | None = None) -> PartitionIndex:
        """The partition's index, up to there."""
        keeper = keeper or self.keeper()
        keeper.advance(0, len(self.frames) if upto is None else upto, self.frame, FOR_EVER)
        return keeper.of(0)
