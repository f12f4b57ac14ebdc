"""The journal of one store: identity and lock of its directory, and what it appended, durable and in order.

``identity`` says whose directory it is, ``records`` what a journal holds besides frames, ``files`` how bytes get to the
disk and back, ``scan`` what damage means when a journal is opened, ``summary`` what a closed file holds in short,
``journal`` puts them together, ``interface`` is what a store needs of it. No asyncio, no Ray.
"""

from trilogue.actors.journal.files import JournalBroken, JournalFull
from trilogue.actors.journal.identity import DirectoryLock, Identity, directory_mark, open_identity, try_lock
from trilogue.actors.journal.interface import InPlace, StoreJournal
from trilogue.actors.journal.journal import Journal
from trilogue.actors.journal.records import (
    Doubted,
    Entry,
    FenceRecord,
    FillRecord,
    FrameFilled,
    FrameFound,
    FramesFound,
    IncarnationRaised,
    JoinRecord,
    Position,
)

__all__ = [
    "Journal",
    "StoreJournal",
    "InPlace",
    "try_lock",
    "DirectoryLock",
    "directory_mark",
    "open_identity",
    "Identity",
    "Position",
    "Entry",
    "FrameFound",
    "FrameFilled",
    "FramesFound",
    "FenceRecord",
    "JoinRecord",
    "FillRecord",
    "IncarnationRaised",
    "Doubted",
    "JournalFull",
    "JournalBroken",
]
