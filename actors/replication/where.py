"""Where the partitions are: what several stores say, as one answer.

Owns the merging of WHERE answers. It must not know who asks. Rules:

1. A store tells the fences that it has seen: of a partition whose member it is no more, an old one. The highest epoch counts.
2. A store that does not answer at once (it is paused, or its disk is slow) is not waited for when another one has answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection

AT_ONCE_S: Final = 0.05


async def where(stores: Iterable[Connection]) -> dict[str, Any]:
    """The answer to WHERE: writers, addresses, cluster. Raises `Unavailable` when no store answers."""
    asked = {asyncio.ensure_future(store.request(Say.WHERE)) for store in stores}
    try:
        pending = asked
        routes: list[dict[str, Any]] = []
        timeout_s: float | None = AT_ONCE_S
        while pending and not routes:
            when = asyncio.ALL_COMPLETED if timeout_s is not None else asyncio.FIRST_COMPLETED
            done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=when)
            routes = [task.result() for task in done if task.exception() is None and isinstance(task.result(), dict)]
            timeout_s = None
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not routes:
        raise Unavailable("no store answers: try again")
    writers: dict[int, list[Any]] = {}
    for route in routes:
        for partition, writer in route["writers"].items():
            writers[partition] = max(writers.get(partition, writer), writer)
    return {**routes[0], "writers": writers, "addresses": [address for route in routes for address in route["addresses"]]}
