"""Opening a store's journal, whichever kind its settings name: in files, or on a Redis server.

Owns the lock of the store's directory, the choice, and how long it is tried. It must not know connections or what a store
answers. Rules:

1. A directory that a dying predecessor still holds is tried for a while.
2. A journal in files that is not whole with its summaries is opened from its files alone.
3. A server that cannot be reached, or cannot promise what a store must, is looked at again every second, for as long as it
   takes: the store serves nothing until then, and says why.
4. A server's data that is refused is looked at every second, too: when it was removed or replaced, the store is opened anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from trilogue.actors.config import StoreConfig
from trilogue.actors.journal import DirectoryLock, Identity, Journal, StoreJournal, open_identity, try_lock
from trilogue.actors.protocol.errors import Corrupt, DataError, DirectoryInUse, NewerFormat, ServerUnusable, WrongCluster
from trilogue.actors.redis_journal.opening import Opening, open_redis_journal
from trilogue.actors.redis_journal.place import parse_place
from trilogue.actors.redis_journal.refused import RefusedStore
from trilogue.actors.store.contents import StoreContents
from trilogue.actors.store.places import IN_LOGS

logger = logging.getLogger(__name__)

LOCK_RETRY_S = 0.1
LOOK_AGAIN_S = 1.0
JUMP_BITS = 40


class Watched(Protocol):
    """What is asked every second whether the process must end."""

    def reason_to_end(self) -> str:
        """Why; empty for most of the time. May block."""
        ...


async def lock_when_free(config: StoreConfig) -> DirectoryLock:
    """The lock of the store's directory. Raises `DirectoryInUse` after a while, or `DirectoryUnusable`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.limits.directory_lock_wait_ms / 1000
    while True:
        try:
            return try_lock(Path(config.directory), allow_tmpfs=config.allow_tmpfs)
        except DirectoryInUse:
            if loop.time() >= deadline:
                raise
            await asyncio.sleep(LOCK_RETRY_S)


def check_identity(config: StoreConfig) -> Identity | None:
    """Who the store in this directory is; nothing of one that its server knows. Raises `DataError`."""
    if config.url:
        return None
    return open_identity(Path(config.directory), cluster=config.cluster_id, log_id=config.log_id, fresh_store=uuid.uuid4().hex)


async def open_journal(
    config: StoreConfig, identity: Identity | None, not_yet: Callable[[ServerUnusable], None]
) -> tuple[StoreJournal, StoreContents]:
    """The open journal, and all that it holds; `not_yet` is told of each attempt on a server that failed.

    Raises another `DataError`, after which nothing was changed.
    """
    if identity is not None:
        return await _open_files(config, identity)
    while True:
        try:
            return await asyncio.to_thread(_open_redis, config)
        except ServerUnusable as problem:
            not_yet(problem)
        await asyncio.sleep(LOOK_AGAIN_S)


def refused(config: StoreConfig, problem: DataError) -> RefusedStore | None:
    """What to look at until the journal may be opened anew; nothing of one that is not, or not for its server's data."""
    if not config.url or not isinstance(problem, Corrupt | WrongCluster | NewerFormat):
        return None
    directory = Path(config.directory)
    return RefusedStore(parse_place(config.url), config.credentials, directory, config.cluster_id, config.name, config.limits)


async def _open_files(config: StoreConfig, identity: Identity) -> tuple[StoreJournal, StoreContents]:
    directory = Path(config.directory)
    held = StoreContents(config.log_id, config.limits)
    try:
        return await asyncio.to_thread(Journal.open, directory, identity, config.limits, held.replay, summaries=True), held
    except Corrupt as error:
        logger.warning("opening the journal from its files alone: %s", error)
    held = StoreContents(config.log_id, config.limits)
    return await asyncio.to_thread(Journal.open, directory, identity, config.limits, held.replay), held


def _open_redis(config: StoreConfig) -> tuple[StoreJournal, StoreContents]:
    held = StoreContents(config.log_id, config.limits, IN_LOGS)
    opening = Opening(
        place=parse_place(config.url),
        credentials=config.credentials,
        directory=Path(config.directory),
        name=config.name,
        cluster=config.cluster_id,
        log_id=config.log_id,
        partitions=config.partitions,
        fresh_store=uuid.uuid4().hex,
        owner=uuid.uuid4().hex,
        jump=secrets.randbits(JUMP_BITS),
        limits=config.limits,
    )
    return open_redis_journal(opening, held.replay), held
