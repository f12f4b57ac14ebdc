"""One question to several stores that can all answer it: the first answer counts, whichever store gives it.

Owns when the next store is asked. It must not know what is asked. Rules:

1. The next one is asked at once when one fails, and after a while when one says nothing; who was asked before may still answer.
   (Hedged requests: Dean & Barroso, The Tail at Scale, CACM 2013.)
2. When an answer is here, no other one is waited for. So only what changes nothing may be asked in this way.

`asyncio.staggered` does much the same, but is not documented, and swallows exceptions that are bugs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from trilogue.actors.protocol.errors import Unavailable
from trilogue.actors.wire import Refused

Ask = Callable[[], Coroutine[Any, Any, Any]]
"""Ask one store. Raises `Unavailable` or `Refused` when it has no answer."""


async def first_answer(asks: Iterable[Ask], patience_s: float) -> Any:
    """The first answer that comes; each next one is asked after `patience_s`. Raises what the last one to fail has raised."""
    coming = iter(asks)
    asked: set[asyncio.Task[Any]] = set()
    problem: Exception = Unavailable("no store is connected that could be asked")
    try:
        while True:
            ask = next(coming, None)
            if ask is not None:
                asked.add(asyncio.ensure_future(ask()))
            elif not asked:
                raise problem
            timeout_s = patience_s if ask is not None else None
            done, asked = await asyncio.wait(asked, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            errors = {task: task.exception() for task in done}
            for task, error in errors.items():
                if error is None:
                    return task.result()
                if not isinstance(error, (Unavailable, Refused)):
                    raise error
                problem = error
    finally:
        for task in asked:
            task.cancel()
