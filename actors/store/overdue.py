"""Up to which frame a partition's log is too old, or too long: what its writer may let go (``session.retention``).

Owns what is remembered between two looks, so that a look costs little however long the log is. It must not know why something
is let go, or how space is given back: it is given the frames and their sizes. Used by the reader's thread alone. Rules:

1. A look ends soon after its deadline. What is not known to be old by then is not: the next look goes on.
2. What holds no message is not worth a floor, which is a frame, too: else an idle partition would get one at every look.
3. A frame in which no message is left gets none back, so that each is read once for rule 2.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from trilogue.actors.protocol.thinning import holds_messages, last_stored
from trilogue.actors.store.places import FramePlaces

ReadFrame = Callable[[int], bytes]


class Overdue:
    """What is too old, or too much, in one partition."""

    def __init__(self, places: FramePlaces, read_frame: ReadFrame, frame_bytes_max: int) -> None:
        self._places, self._frame, self._frame_bytes_max = places, read_frame, frame_bytes_max
        self._nothing = 0, 0  # no message lies in the frames behind the first of them, up to the second

    def upto(self, floor: int, upto: int, before_us: int, bytes_max: int, deadline: float) -> int:
        """The last frame with messages up to `upto` that holds nothing stored since `before_us`, or behind which `bytes_max`
        bytes lie; the floor if none above it is known."""
        old = self._older_than(before_us, floor, upto)
        if bytes_max < (upto - floor) * self._frame_bytes_max:
            old = max(old, self._places.before_last(upto, floor, bytes_max, lambda: monotonic() < deadline))
        return self._last_with_messages(old, floor, deadline)

    def _older_than(self, before_us: int, floor: int, upto: int) -> int:
        low, high = floor, upto  # `low` is old; what lies behind `high` is not
        while low < high:
            middle = at = (low + high + 1) // 2
            stored_at_us = None
            while at > low and stored_at_us is None:  # an empty frame is as old as the one before it
                stored_at_us = last_stored(self._frame(at))
                at -= 1
            if stored_at_us is None or stored_at_us < before_us:
                low = middle
            else:
                high = middle - 1
        return low

    def _last_with_messages(self, old: int, floor: int, deadline: float) -> int:
        behind, upto = self._nothing
        top = upto if behind < old <= upto else old
        at, found = old, False
        while at > floor and not found:
            if behind < at <= upto:
                at = behind
            elif monotonic() >= deadline:
                break
            elif holds_messages(self._frame(at)):
                found = True
            else:
                at -= 1
        if at < top:
            self._nothing = at, top
        return at if found else floor
