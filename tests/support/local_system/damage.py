"""Damage done on purpose to a copy of what a store holds, so that the checker can be seen to find it.

Owns the rewriting of journals: frames are taken apart, changed, and chained anew, so that every CRC holds and only the
story that they tell is wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any

import msgpack

from history_checker import read_store
from trilogue.actors.protocol.frames import HEADER_BYTES, Header, decode_header, encode_frame, payload_of
from trilogue.actors.protocol.messages import pack_records, unpack_records

FRAME_BYTES_MAX = 1 << 30
RUNS = 1, 6  # without keys and with
FRAME, JOIN, FILL = 0, 8, 16
Change = Callable[[list[Any]], list[Any]]


class Rewriting:
    """Copies of stores in which the records of frames were changed, and everything was chained anew.

    A store may lack the frames before its base, so all frames of all stores are known here, each by its CRC.
    """

    def __init__(self, stores: Sequence[Path]) -> None:
        self._stores = stores
        self._frames: dict[int, tuple[Header, bytes]] = {}
        for store in stores:
            for path in sorted(store.glob("journal-*.trl")):
                for header, data in _records(path):
                    if header.flags in (FRAME, FILL):
                        inner = data[HEADER_BYTES:] if header.flags == FILL else data
                        header = decode_header(inner[:HEADER_BYTES], 0, FRAME_BYTES_MAX)
                        self._frames[header.header_crc] = (header, payload_of(inner[: header.frame_bytes], header))

    def copies(self, target: Path, changes: dict[Path, Change]) -> list[Path]:
        """All stores, copied, each with its change."""
        return [self._copy(store, target / store.name, changes.get(store)) for store in self._stores]

    def _copy(self, store: Path, copy: Path, change: Change | None) -> Path:
        copy.mkdir(parents=True)
        shutil.copy(store / "store.json", copy)
        if change is None:
            for path in store.glob("journal-*.trl"):
                shutil.copy(path, copy)
            return copy
        frames = self._changed(change)
        written = bytearray()
        for path in sorted(store.glob("journal-*.trl")):
            for header, data in _records(path):
                if header.flags == FRAME:
                    data = frames[header.header_crc][0]
                elif header.flags == FILL:
                    inner = decode_header(data[HEADER_BYTES : 2 * HEADER_BYTES], 0, FRAME_BYTES_MAX)
                    data = _note(header, frames[inner.header_crc][0])
                elif header.flags == JOIN:
                    items = msgpack.unpackb(payload_of(data, header))
                    items[4] = frames[items[4]][1] if items[4] in frames else items[4]
                    data = _note(header, msgpack.packb(items))
                written += data
        (copy / "journal-00000001.trl").write_bytes(written)
        return copy

    def _changed(self, change: Change) -> dict[int, tuple[bytes, int]]:
        """Each frame's new bytes and new CRC, by its old one. A frame is made after the one that it names."""
        made: dict[int, tuple[bytes, int]] = {}
        for header, payload in sorted(self._frames.values(), key=lambda one: (one[0].partition, one[0].index)):
            records = change([list(record) for record in unpack_records(payload)])
            made[header.header_crc] = encode_frame(
                log_id=header.log_id,
                partition=header.partition,
                epoch=header.epoch,
                index=header.index,
                prev_crc=made[header.prev_crc][1] if header.prev_crc in made else header.prev_crc,
                count=len(records),
                committed_upto=header.committed_upto,
                payload=pack_records(records),
            )
        return made


def _note(header: Header, payload: bytes) -> bytes:
    """One of the store's own records, with another payload."""
    data, _ = encode_frame(
        log_id=header.log_id, partition=header.partition, epoch=header.epoch, index=header.index, prev_crc=0,
        count=header.count, committed_upto=0, payload=payload, flags=header.flags,
    )  # fmt: skip
    return data


def without(session: str, seq: int) -> Change:
    """The message is gone; what follows keeps its place."""

    def change(records: list[Any]) -> list[Any]:
        kept = []
        for record in records:
            k = seq - record[4] if record[0] in RUNS and record[1] == session else -1
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
            if record[0] in RUNS and record[1] == session:
                record[7] = [bodies.get(record[4] + k, body) for k, body in enumerate(record[7])]
        return records

    return change


def bodies_of(store: Path) -> dict[tuple[str, int], bytes]:
    """The bodies that stand on the store, by (session, seq)."""
    frames = [frame for holding in read_store(store).partitions.values() for frame in holding.frames]
    runs = [record for frame in frames for record in frame.records if record[0] in RUNS]
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
    kind, session, sender_id, first_n, first_seq, stored_at, *lists = record  # times, bodies and, if it has any, keys
    part = [items[start:end] for items in lists]
    return [kind, session, sender_id, first_n + start, first_seq + start, stored_at, *part]
