"""Opening a journal: what is read back, and what damage means.

Owns the rules below. It changes nothing on disk (``journal`` cuts, after this has allowed it) and must not know what a
payload means.

A record *verifies* if its header's CRC, its payload's CRC, its padding and its log_id hold, it lies wholly in its file,
and it belongs where it lies: a control record says so itself (``records``), a frame fits its chain
(``protocol.holdings``). A JOIN has a higher number than the one before under its fence, and a FILL holds one whole frame of
its partition, below the base. A partition's chain begins at its base, so "the last replayed index" is at least base - 1.

What is replayed is the longest run of records that verify, from the first file's start. If more follows:

1. In any file but the newest: `Corrupt`. All of it was durable before the next file got its name, which says where the
   records end. So is damage in a file's head (FILE and the fences repeated after it): it was durable before the name.
2. In the newest file, if anything behind the damage proves that what is missing was committed: `Corrupt`. The proof is
   an intact header of this log whose `committed_upto` is above the partition's last replayed index; or above all that is
   known to be committed, not below the base, and in a higher epoch than the last replayed frame's: the missing one may
   supersede that frame. (One of an older epoch can supersede, too; but whoever says that such a one is committed is of a
   later epoch than both.) A torn write does not look like this: what is committed was durable here before a later frame
   could say so. (Only a power cut in the first write after a takeover can be mistaken for the second case, and only if a
   header is gone.) A thin frame was committed when it was made: so it proves that itself, be it damaged or behind the
   damage. While a store is being taken in, frames are committed without it, and what is copied to it speaks of
   them: so it syncs before it writes a frame that speaks of one that it has not synced, and after each JOIN
   (``protocol.store``).
3. Otherwise the tail may be a torn write, which was never answered: it is cut, and the incarnation raised. The replay
   keeps all that it knows to be committed: a frame's `committed_upto` is below its own index, and no frame at or below
   it is superseded. A FILL or JOIN that is cut may have been answered (no later frame speaks of them): the raised
   incarnation voids what was promised with it, and the frames of a FILL stand with those that it was copied from.
4. Nothing but zeros behind the last record, or the file's end, is a clean end.

Bodies can contain journal frames, so what looks like a header behind the damage may be a user's bytes. Where the
damaged record's own header still verifies, the search starts behind that record, and it never looks inside a whole
frame. Beyond that the safe side is taken: a false proof refuses to open, and cuts nothing. It takes more than a copy,
though: a copy of a real frame claims only what was committed before the copy was sent, and a member of that partition
had that on disk before it stored the copy.

A file that was written anew without what is gone (``thin_file``) says itself where its records end now, and where they ended
when the next file was begun. It was whole on the disk before it took the other's place.

An intact header of a newer version is no damage: `NewerFormat`.

A closed file may be taken from its summary (``summary``): its records were verified when it was made, and rule 1 was applied to
them then. What happened to it since is noticed by who reads a frame, and by the scrubber. The newest file is always read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from trilogue.actors.journal.files import BLOCK_BYTES, ZEROS, FileReader, corrupt, file_path
from trilogue.actors.journal.identity import Identity
from trilogue.actors.journal.records import (
    FILE_FORMAT,
    Entry,
    FenceRecord,
    FileRecord,
    FillRecord,
    FrameFilled,
    FrameFound,
    FramesFound,
    IncarnationRaised,
    JoinRecord,
    Position,
    check_place,
    control_bytes,
    decode_control,
    follows,
)
from trilogue.actors.journal.summary import FILL, Summary, load_summary
from trilogue.actors.protocol.errors import Corrupt, NewerFormat, ProtocolError
from trilogue.actors.protocol.frames import (
    ALIGNMENT,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Header,
    check_payload,
    decode_header,
)
from trilogue.actors.protocol.holdings import Fence, PartitionState
from trilogue.actors.protocol.thinning import FLAG_THIN, header_of, inner_of, payload_of_records

_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_ANY_BYTES = 1 << 33  # above what a header can say: files bound the frames here, not today's limits
_NO_HEADER = ZEROS[:HEADER_BYTES]
_NONE = memoryview(b"")  # the payload of a frame that was not read


class _Damage(Exception):
    """The record at `offset` does not verify. `header` is its own, if that is intact and belongs there."""

    def __init__(self, offset: int, what: str, header: Header | None = None) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what
        self.header = header


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the newest file's records end, and why what lies behind must be cut (empty: nothing does)."""

    file: int
    offset: int
    file_bytes: int
    torn: str


@dataclass(slots=True)
class Scanner:
    """Replays the journal of one directory. `run` once; then `fences` and `incarnation` are what the journal says."""

    directory: Path
    identity: Identity
    replay: Callable[[Entry], None]
    summaries: bool = False  # whether closed files may be taken from their summaries (``summary``)
    fences: dict[int, FenceRecord] = field(default_factory=dict)
    incarnation: int = 0
    older_bytes: int = 0  # of records in all files but the newest
    partitions: dict[int, PartitionState] = field(default_factory=dict)

    def run(self, numbers: Sequence[int]) -> Tail:
        """Replay the files. Raises `Corrupt`, `NewerFormat`, or `JournalBroken` (a file cannot be synced)."""
        for k, number in enumerate(numbers):
            if number != k + 1:
                raise corrupt(file_path(self.directory, k + 1), 0, "the file is missing")
        head, head_crc = self._head(numbers[0])
        if head.previous_bytes:
            raise corrupt(file_path(self.directory, numbers[0]), 0, "files before it are missing")
        for number in numbers[:-1]:
            following, following_crc = self._head(number + 1)
            end = self._end_of(number, head, following)
            summary = load_summary(self.directory, number, self.identity, head_crc, end) if self.summaries else None
            if summary is not None:
                self._summarised_file(number, head, summary)
            else:
                self._sealed_file(number, head, end)
            head, head_crc = following, following_crc
        if head.original_bytes:
            raise corrupt(file_path(self.directory, numbers[-1] + 1), 0, "the file is missing")
        return self._newest_file(numbers[-1], head)

    def _end_of(self, number: int, head: FileRecord, following: FileRecord) -> int:
        """Where the records of a closed file end, as the next file says, or the file itself if it was written anew."""
        if not head.original_bytes:
            return following.previous_bytes
        if head.original_bytes != following.previous_bytes or head.wrong_end:
            what = head.wrong_end or f"it was written anew from {head.original_bytes} bytes, not {following.previous_bytes}"
            raise corrupt(file_path(self.directory, number), 0, what)
        return head.end

    def _head(self, number: int) -> tuple[FileRecord, int]:
        """The file's first record, checked against the directory's identity, and its CRC."""
        with FileReader(self.directory, number) as file:
            try:
                found = self._record(file, 0)
                if found is None:
                    raise _Damage(0, "it starts with zeros")
                try:
                    record = decode_control(found[0], _payload(*found), file=number, offset=0)
                except ProtocolError as error:
                    raise _Damage(0, str(error)) from None
            except _Damage as damage:
                raise corrupt(file.path, 0, damage.what) from None
            if not isinstance(record, FileRecord):
                raise corrupt(file.path, 0, "it does not start with a FILE record")
            if record.format > FILE_FORMAT:
                raise NewerFormat(f"{file.path} has format {record.format}; this program knows {FILE_FORMAT}: upgrade it")
            if record.store != self.identity.store:
                raise corrupt(file.path, 0, f"it belongs to store {record.store}, not to {self.identity.store}")
            return record, found[0].header_crc

    def _summarised_file(self, number: int, head: FileRecord, summary: Summary) -> None:
        """As `_sealed_file`, without reading it."""
        path = file_path(self.directory, number)
        try:
            self._raise_to(path, 0, head.incarnation)
            for item in summary.items:
                if isinstance(item, FramesFound):
                    self._take_run(item)
                elif item[0] == FILL:
                    _, offset, partition, inner, size = item
                    header = decode_header(inner, 0, _ANY_BYTES)
                    self._take_fill(offset, partition, header, Position(number, offset + HEADER_BYTES, size), _NONE)
                elif item[1]:  # the head, at 0, was read
                    data = memoryview(item[2])
                    self._take(path, number, item[1], decode_header(data, 0, _ANY_BYTES), data)
        except (_Damage, ProtocolError) as damage:
            raise corrupt(path, 0, f"its summary does not fit: {damage}") from None
        self.older_bytes += summary.end

    def _take_run(self, run: FramesFound) -> None:
        state = self._partition(run.partition)
        problem = state.run_problem(run.first, run.prev_crc, run.epochs, run.crcs)
        if problem:
            raise _Damage(run.offsets[0], f"{problem} of partition {run.partition}")
        state.take_run(run.first, run.prev_crc, run.committed_upto, run.epochs, run.crcs)
        self.replay(run)

    def _sealed_file(self, number: int, head: FileRecord, end: int) -> None:
        with FileReader(self.directory, number) as file:
            reached, damage, records = self._walk(file, head, min(end, file.size))
            if damage:
                raise corrupt(file.path, damage.offset, damage.what)
            if reached != end or records <= head.fences:
                raise corrupt(file.path, reached, f"its records should go on to byte {end}")
            behind = file.first_nonzero(end)
            if behind is not None:
                raise corrupt(file.path, behind, f"there are bytes behind its end at {end}")
            self.older_bytes += end

    def _newest_file(self, number: int, head: FileRecord) -> Tail:
        with FileReader(self.directory, number) as file:
            end, damage, records = self._walk(file, head, file.size)
            if damage is None:
                nonzero = file.first_nonzero(end)
                if nonzero is not None:
                    damage = _Damage(end, f"zeros where a record should be, but byte {nonzero} is not zero")
            if records <= head.fences:
                raise corrupt(file.path, end, damage.what if damage else "its first fences are missing")
            if damage is None:
                return Tail(number, end, file.size, "")
            self._refuse_if_committed(file, damage)
            return Tail(number, end, file.size, f"{file.path} at byte {damage.offset}: {damage.what}")

    def _refuse_if_committed(self, file: FileReader, damage: _Damage) -> None:
        """Rule 2: raise `Corrupt` if something behind the damage proves that what is missing was committed."""
        damaged = damage.header
        if damaged and damaged.flags == FLAG_THIN:
            raise corrupt(file.path, damage.offset, f"{damage.what}; it is what is left of a frame that was committed")
        # A frame reaches as far as its header says: what is inside it are its bodies.
        behind = damage.offset + damaged.frame_bytes if damaged else damage.offset
        for offset, header in self._intact_headers(file, behind):
            state = self._partition(header.partition)
            last, epoch = state.last_index, state.last_epoch
            if damaged and damaged.flags == 0 and damaged.partition == header.partition:
                last, epoch = damaged.index - 1, damaged.epoch
            claimed = header.committed_upto
            superseded = claimed >= state.base and claimed > state.committed_upto and header.epoch > epoch
            if header.flags == 0 and (claimed > last or superseded):
                raise corrupt(
                    file.path,
                    damage.offset,
                    f"{damage.what}; the header at byte {offset} says that partition {header.partition} had committed "
                    f"frame {claimed} in epoch {header.epoch}, and what can be read ends at {last} in epoch {epoch}",
                )

    def _intact_headers(self, file: FileReader, offset: int) -> Iterator[tuple[int, Header]]:
        """What looks like headers of this log from `offset` on, but for those inside a whole frame."""
        skip_to = offset
        while offset < file.size:
            block = file.read(offset, BLOCK_BYTES + HEADER_BYTES)
            found = block.find(_MAGIC_BYTES)
            while 0 <= found < BLOCK_BYTES:
                at = offset + found
                if at >= skip_to and at % ALIGNMENT == 0:
                    header = self._header_at(file, at)
                    if header is not None:
                        whole = _whole(file, at, header)
                        yield at, _vouching(file, at, header) if whole else header
                        if whole:
                            skip_to = at + header.frame_bytes
                found = block.find(_MAGIC_BYTES, found + 1)
            offset += BLOCK_BYTES

    def _header_at(self, file: FileReader, offset: int) -> Header | None:
        try:
            header = decode_header(file.view(offset, HEADER_BYTES), 0, _ANY_BYTES)
        except ProtocolError:
            return None
        return header if header.log_id == self.identity.log_id else None

    def _walk(self, file: FileReader, head: FileRecord, upto: int) -> tuple[int, _Damage | None, int]:
        """Replay records until `upto`, zeros or damage: where that is, the damage, how many records came before."""
        offset = control_bytes(head)
        records = 1
        self._raise_to(file.path, 0, head.incarnation)
        while offset < upto:
            try:
                found = self._record(file, offset)
                if found is None:
                    break
                self._take(file.path, file.number, offset, *found)
            except _Damage as damage:
                return offset, damage, records
            offset += found[0].frame_bytes
            records += 1
        return offset, None, records

    def _record(self, file: FileReader, offset: int) -> tuple[Header, memoryview] | None:
        """The header and bytes of the intact record at `offset`; nothing where zeros are."""
        head = file.view(offset, HEADER_BYTES)
        if head == _NO_HEADER[: len(head)]:
            return None
        try:
            header = decode_header(head, 0, _ANY_BYTES)
        except ProtocolError as error:
            if _is_newer(head):
                version = head[4]
                raise NewerFormat(f"{file.path} holds version {version} at byte {offset}: upgrade this program") from None
            raise _Damage(offset, str(error)) from None
        if header.log_id != self.identity.log_id:
            raise _Damage(offset, f"a record of log {header.log_id}")
        data = file.view(offset, header.frame_bytes)
        try:
            check_payload(header, data, 0)
        except ProtocolError as error:
            if header.flags:
                fits = (header.count, header.index) == (file.number, offset)
            else:
                fits = not self._partition(header.partition).problem(header)
            raise _Damage(offset, str(error), header if fits else None) from None
        return header, data

    def _take(self, path: Path, number: int, offset: int, header: Header, data: memoryview) -> None:
        """Replay an intact record if it belongs here."""
        position = Position(number, offset, header.frame_bytes)
        if header.flags == 0:
            self._take_frame(offset, header, position, _payload(header, data))
            return
        try:
            if header.flags == FLAG_THIN:
                check_place(header, file=number, offset=offset)
                payload = _payload(header, data)
                self._take_frame(offset, inner_of(header, payload), position, payload[HEADER_BYTES:])
                return
            record = decode_control(header, _payload(header, data), file=number, offset=offset)
        except ProtocolError as error:
            raise _Damage(offset, str(error)) from None
        if isinstance(record, FenceRecord):
            self._fence(offset, record)
        elif isinstance(record, JoinRecord):
            self._join(offset, record)
        elif isinstance(record, FillRecord):
            self._fill(number, offset, record)
        elif isinstance(record, IncarnationRaised):
            self._raise_to(path, offset, record.incarnation)
        else:
            raise _Damage(offset, "a FILE record inside a file")

    def _take_frame(self, offset: int, header: Header, position: Position, payload: memoryview) -> None:
        state = self._partition(header.partition)
        problem = state.problem(header)
        if problem:
            raise _Damage(offset, f"{problem} of partition {header.partition}")
        state.take(header)
        self.replay(FrameFound(header, position, payload))

    def _fence(self, offset: int, fence: FenceRecord) -> None:
        if fence != self.fences.get(fence.partition):
            self._obey(offset, fence)
            self.replay(fence)

    def _obey(self, offset: int, fence: FenceRecord) -> None:
        before = self.fences.get(fence.partition)
        if before is not None and not follows(before, fence):
            raise _Damage(offset, f"a fence of epoch {fence.epoch} after one of epoch {before.epoch}")
        self.fences[fence.partition] = fence
        self._partition(fence.partition).obey(Fence(*fence[1:]))

    def _join(self, offset: int, join: JoinRecord) -> None:
        self._obey(offset, join.fence)
        state = self._partition(join.partition)
        if join.number <= state.joins:
            raise _Damage(offset, f"join {join.number} of epoch {join.epoch} after join {state.joins}")
        state.join(join.number, join.first, join.prev_crc, join.intervals)
        self.replay(join)

    def _fill(self, number: int, offset: int, fill: FillRecord) -> None:
        try:
            header = header_of(fill.frame, _ANY_BYTES)
        except ProtocolError as error:
            raise _Damage(offset, str(error)) from None
        if (header.log_id, header.partition, header.flags) != (self.identity.log_id, fill.partition, 0):
            raise _Damage(offset, f"a frame of log {header.log_id}, partition {header.partition}, was filled in")
        position = Position(number, offset + HEADER_BYTES, len(fill.frame))
        self._take_fill(offset, fill.partition, header, position, payload_of_records(fill.frame))

    def _take_fill(self, offset: int, partition: int, header: Header, position: Position, payload: memoryview) -> None:
        state = self._partition(partition)
        problem = state.fill_problem(header)
        if problem:
            raise _Damage(offset, f"{problem} of partition {partition}")
        state.fill(header)
        self.replay(FrameFilled(header, position, payload))

    def _raise_to(self, path: Path, offset: int, incarnation: int) -> None:
        if incarnation > self.identity.incarnation:
            raise Corrupt(
                f"{path} knows incarnation {incarnation} at byte {offset}, but store.json says "
                f"{self.identity.incarnation}: it was replaced by an older one; "
                "do not use this store, and keep its directory"
            )
        if incarnation > self.incarnation:
            if self.incarnation:
                self.replay(IncarnationRaised(incarnation))
            self.incarnation = incarnation

    def _partition(self, partition: int) -> PartitionState:
        state = self.partitions.get(partition)
        if state is None:
            state = self.partitions[partition] = PartitionState(certain=True)
        return state


def _payload(header: Header, data: memoryview) -> memoryview:
    return data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]


def _whole(file: FileReader, offset: int, header: Header) -> bool:
    try:
        check_payload(header, file.view(offset, header.frame_bytes), 0)
    except ProtocolError:
        return False
    return True


def _vouching(file: FileReader, offset: int, header: Header) -> Header:
    """What a whole record says of commits: of a thin frame, that it was committed itself."""
    if header.flags == FLAG_THIN and (header.count, header.index) == (file.number, offset):
        with contextlib.suppress(ProtocolError):
            inner = inner_of(header, file.view(offset + HEADER_BYTES, HEADER_BYTES))
            return inner._replace(committed_upto=inner.index)
    return header


def _is_newer(head: memoryview) -> bool:
    """Whether these are the intact 64 bytes of a header that a newer version wrote."""
    if len(head) < HEADER_BYTES or head[:4] != _MAGIC_BYTES or head[4] <= VERSION:
        return False
    return crc32(head[: HEADER_BYTES - 4]) == int.from_bytes(head[HEADER_BYTES - 4 :], "little")
