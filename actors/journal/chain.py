"""One partition's chain, as a scan follows it: which frame may come next.

Owns the rule of what chains and what supersedes. Pure; it must not know files. The rule: a frame's `index` is one above
the partition's last and its `prev_crc` is the last one's `header_crc`; or it *supersedes*: its `index` is not above the
last but above all that is known to be committed, its `prev_crc` fits the frame before, and its epoch is higher than that
of the frame which it replaces (which goes, and all after it). Nothing else is a next frame: not even a second copy of one.
"""

from __future__ import annotations

from trilogue.actors.protocol.frames import Header


class Chain:
    """What the next frame must fit: the frames from `committed_upto` on, so as many as are in flight."""

    __slots__ = ("_frames", "_oldest", "committed_upto", "last_index")

    def __init__(self) -> None:
        self.committed_upto = 0
        self.last_index = 0
        self._frames: dict[int, tuple[int, int]] = {0: (0, 0)}  # index -> (header_crc, epoch)
        self._oldest = 0

    def problem(self, header: Header) -> str:
        """Why the frame does not belong here; empty if it does."""
        index = header.index
        if index > self.last_index + 1:
            return f"frame {index} of partition {header.partition} where {self.last_index + 1} should be"
        if index <= self.committed_upto:
            return f"frame {index} of partition {header.partition}, which has committed {self.committed_upto}"
        if header.committed_upto >= index:
            return f"frame {index} of partition {header.partition} says that it is committed itself"
        if header.prev_crc != self._frames[index - 1][0]:
            return f"frame {index} of partition {header.partition} does not chain to the one before"
        if index <= self.last_index and header.epoch <= self._frames[index][1]:
            return f"frame {index} of partition {header.partition} is there already, in epoch {self._frames[index][1]}"
        return ""

    @property
    def last_epoch(self) -> int:
        """The epoch of the last frame: its writer has vouched for all before it."""
        return self._frames[self.last_index][1]

    def take(self, header: Header) -> None:
        """Take in a frame that belongs here."""
        index = header.index
        for superseded in range(index, self.last_index + 1):
            del self._frames[superseded]
        self._frames[index] = (header.header_crc, header.epoch)
        self.last_index = index
        self.committed_upto = max(self.committed_upto, header.committed_upto)
        while self._oldest < self.committed_upto:
            del self._frames[self._oldest]
            self._oldest += 1
