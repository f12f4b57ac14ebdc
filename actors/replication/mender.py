"""What a partition's writer does for a store that found one of its frames bad: it fetches the frame from another one.

Owns this one conversation. It must not know which stores are members, nor decide whether a frame is right: the store that takes
it does, and it takes nothing but what it once stored. One frame at a time, so a page of bad ones costs little memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Refused

logger = logging.getLogger(__name__)


class Asked(Protocol):
    """A connection to a store, as far as this needs it."""

    async def request(self, say: Say, *items: Any) -> Any:
        """Ask; raises `Unavailable` or `Refused`."""
        ...


async def mend(partition: int, epoch: int, writer: str, stores: Mapping[str, Asked]) -> int:
    """Ask each store what went bad of the partition, and give it back from another one; how many frames were mended."""
    mended = 0
    for name, store in stores.items():
        try:
            for frame_index in await store.request(Say.DAMAGED, partition):
                others = [other for peer, other in stores.items() if peer != name]
                frame = await _fetch(partition, frame_index, others)
                if frame is None:
                    logger.warning(
                        "frame %d of partition %d: %s lost it, no other store gives it", frame_index, partition, name
                    )
                    continue
                mended += await store.request(Say.REPAIR, partition, epoch, writer, [frame])
        except (Unavailable, Refused) as error:
            logger.warning("partition %d: %s cannot be mended now: %s", partition, name, error)
    return mended


async def _fetch(partition: int, frame_index: int, stores: Iterable[Asked]) -> bytes | None:
    """The frame from the first store that gives it."""
    for store in stores:
        try:
            frames = await store.request(Say.FRAMES, partition, frame_index, frame_index)
        except (Unavailable, Refused):
            continue
        if frames:
            frame: bytes = frames[0]
            return frame
    return None
