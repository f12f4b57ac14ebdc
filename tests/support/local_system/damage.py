"""Damage done on purpose to a copy of what a store holds, so that the checker can be seen to find it.

Owns the rewriting of journals: frames are taken apart, changed, and chained anew, so that every CRC holds and only the
story that they tell is wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any

from history_checker import read_store
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, decode_header, encode_frame, payload_of
from trilogue.actors.protocol.messages import pack_records, unpack_records

FRAME_BYTES_MAX = 1 << 30
RUN = 1
Change = Callable[[list[Any]], list[Any]]


def rewritten(store: Path, target: Path, change: Change) -> Path:
    """A copy of the store in which `change` was applied to the records of every frame."""
    copy = target / store.name
    copy.mkdir(parents=True)
    shutil.copy(store / "store.json", copy)
    crcs: dict[tuple[int, int], int] = {}
    written: list[bytes] = []
    for path in sorted(store.glob("journal-*.trl")):
        for header, frame in _records(path):
            if header.flags == 0:
                records = change([list(record) for record in unpack_records(payload_of(frame, header))])
                frame, crc = encode_frame(
                    log_id=header.log_id,
                    partition=header.partition,
                    epoch=header.epoch,
                    index=header.index,
                    prev_crc=crcs.get((header.partition, header.index - 1), 0),
                    count=len(records),
                    committed_upto=header.committed_upto,
                    payload=pack_records(records),
                )
                crcs[header.partition, header.index] = crc
            written.append(frame)
    (copy / "journal-00000001.trl").write_bytes(b"".join(written))
    return copy


def without(session: str, seq: int) -> Change:
    """The message is gone; what follows keeps its place."""

    def change(records: list[Any]) -> list[Any]:
        kept = []
        for record in records:
            k = seq - record[4] if record[0] == RUN and record[1] == session else -1
            if 0 <= k < len(record[7]):
                kept += [part for part in (_part(record, 0, k), _part(record, k + 1, len(record[7]))) if part[7]]
            else:
                kept.append(record)
        return kept

    return change


def with_bodies(session: str, bodies: dict[int, bytes]) -> Change:
    """Other bodies stand at these seqs."""

    def change(records: list[Any]) -> list[Any]:
        for record in records:
            if record[0] == RUN and record[1] == session:
                record[7] = [bodies.get(record[4] + k, body) for k, body in enumerate(record[7])]
        return records

    return change


def bodies_of(store: Path) -> dict[tuple[str, int], bytes]:
    """The bodies that stand on the store, by (session, seq)."""
    frames = [frame for chain in read_store(store).partitions.values() for frame in chain]
    runs = [record for frame in frames for record in frame.records if record[0] == RUN]
    return {(run[1], run[4] + k): body for run in runs for k, body in enumerate(run[7])}


def _records(path: Path) -> Iterator[tuple[Header, bytes]]:
    """The records of a journal file, up to the zeros behind them."""
    with path.open("rb") as file, mmap(file.fileno(), 0, prot=PROT_READ) as data:
        offset = 0
        while any(data[offset : offset + HEADER_BYTES]):
            header = decode_header(data[offset : offset + HEADER_BYTES], 0, FRAME_BYTES_MAX)
            yield header, data[offset : offset + header.frame_bytes]
            offset += header.frame_bytes


def _part(record: list[Any], start: int, end: int) -> list[Any]:
    kind, session, sender_id, first_n, first_seq, stored_at, times, bodies = record
    return [kind, session, sender_id, first_n + start, first_seq + start, stored_at, times[start:end], bodies[start:end]]
