"""The one place that runs what may not fail (design §3): a broken invariant or a dead background task ends the process.

Owns the end of a process, and how an actor's process is set up. It must not know which actor it is. Ray restarts a process that
ended here; after an exception inside a method it would let the actor go on serving.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVarTuple

from trilogue.actors.protocol.errors import ProtocolError

logger = logging.getLogger(__name__)

EXIT_CODE = 70
THREAD_SWITCH_S = 0.0005
Arguments = TypeVarTuple("Arguments")
_tasks: set[asyncio.Task[Any]] = set()


def end_process(reason: str) -> NoReturn:
    """Say why on standard error and end this process at once: nothing is flushed, the disks decide what is true."""
    print(f"trilogue: process {os.getpid()} ends: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def guarded(function: Callable[[*Arguments], None]) -> Callable[[*Arguments], None]:
    """`function`, ending the process on any exception but `ProtocolError`, which is the peer's fault."""

    @functools.wraps(function)
    def run(*args: *Arguments) -> None:
        try:
            function(*args)
        except ProtocolError:
            raise
        except Exception as error:
            traceback.print_exc()
            end_process(f"{type(error).__name__}: {error}")

    return run


def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run `work` in the background. If it dies of an exception, the process ends."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        end_process(f"the task {task.get_name()} died: {type(error).__name__}: {error}")


def settle_process() -> None:
    """Once, when an actor starts: what was imported is never scanned again, and collections are rare (messages make no cycles);
    a thread that reads gives way quickly, so that appends do not wait for it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(THREAD_SWITCH_S)
