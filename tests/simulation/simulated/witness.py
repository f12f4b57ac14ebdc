"""Watches what no client can see: what is committed, and whether the stores that the record names hold it (design §6).

Owns the meaning of "committed" for the judge: a frame is what a writer said is committed, and its bytes are those that went
over the network. It shares no code with what it judges: of a record it reads the ranges, and of a disk the bytes at an index.
"""

from __future__ import annotations

from typing import Any

Frame = tuple[int, int]  # epoch, CRC


def crc_of(frame: bytes) -> int:
    """The CRC of a frame's header; a thin one has it behind its own."""
    at = 124 if frame[6] == 32 else 60
    return int.from_bytes(frame[at : at + 4], "little")


class Witness:
    """Notes every commit; `anomalies` says what must never be."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.anomalies: list[str] = []
        self.committed_frames: dict[int, int] = {}  # index -> CRC
        self.by: dict[int, int] = {}  # index -> the epoch of who committed it first
        self._made: dict[Any, dict[int, int]] = {}  # machine -> index -> CRC, of its frames
        self._changes: dict[Any, Any] = {}  # machine -> the change that was under way when it was last looked at
        self._known: dict[Any, int] = {}  # machine -> up to where its commits were looked at

    def look(self, process: Any) -> None:
        """A machine has worked: notice that it took over."""
        machine, log = process.machine, process.log
        if log is None:
            return
        change = self._changes.get(machine)
        if change is not None and log._change is not change and change.record is None:
            self.world.count("change: dropped")
        self._changes[machine] = log._change
        if machine in self._known:
            return
        self._known[machine] = log.committed
        own = self._made[machine] = {frame.frame_index: frame.crc for frame in log._frames}
        self.world.taken_over(process, machine)
        for index, crc in self.committed_frames.items():
            if self.by[index] < log.epoch and index > log.committed and own.get(index) != crc:
                self._found(
                    f"lost: frame {index} was committed by epoch {self.by[index]}, and epoch {log.epoch} has not got it"
                )

    def sent(self, machine: Any, frames: list[bytes]) -> None:
        """A writer sends frames."""
        for frame in frames:
            self._made.setdefault(machine, {})[int.from_bytes(frame[28:36], "little")] = int.from_bytes(frame[60:64], "little")

    def committed(self, machine: Any, upto: int) -> None:
        """A writer says that everything up to there is committed."""
        first = self._known.get(machine, machine.log.committed if machine.log is not None else 0) + 1
        self._known[machine] = upto
        for index in range(first, upto + 1):
            crc = self._made[machine].get(index)
            known = self.committed_frames.setdefault(index, crc or 0)
            self.by.setdefault(index, machine.epoch)
            if known != crc:
                self._found(f"two commits: frame {index} is not what epoch {self.by[index]} had committed")
            for process in self.world.sessions:
                log = process.log
                if process.alive and log is not None and log.epoch > machine.epoch:
                    theirs = self._made[process.machine].get(index) if process.machine in self._made else crc
                    if log.last_index < index or (theirs is not None and theirs != crc):
                        self._found(f"deposed: epoch {machine.epoch} got frame {index} committed against epoch {log.epoch}")
        self.check(self.world.register.value, first)

    def check(self, record: Any, first: int = 1) -> None:
        """Every committed frame from `first` on is on every store that the record names for it, unless it was damaged."""
        if record is None:
            return
        for position, one in enumerate(record.ranges):
            end = record.ranges[position + 1].first if position + 1 < len(record.ranges) else 1 << 62
            for name, store, incarnation in one.members:
                disk = self.world.disks[name]
                if (disk.uuid, disk.incarnation) != (store, incarnation):
                    continue
                held = disk.frames.by_index
                for index, crc in self.committed_frames.items():
                    if max(first, one.first) <= index < end:
                        frame = held.get(index)
                        if frame is None or crc_of(frame) != crc:
                            self._found(f"not held: {name} of the range from {one.first} lacks the committed frame {index}")
                            return

        for name, store_process in self.world.stores.items():
            state = store_process.state.partitions.get(0)
            if state is None or not store_process.alive:
                continue
            for index, frame in store_process.frames.by_index.items():
                own = crc_of(frame)
                if index <= state.committed_upto and self.committed_frames.get(index, own) != own:
                    self._found(f"junk: {name} would serve a frame {index} that is not the committed one")

    def _found(self, anomaly: str) -> None:
        if not self.anomalies:
            self.world.note("ANOMALY", anomaly)
        self.anomalies.append(anomaly)
