"""Putting a rebuilt journal in the place of a damaged one, so that a crash at any point leaves one of them.

Owns the names and the order of the steps. It must not know what is in the files. In a store's directory:

    repair.tmp        is being built: worth nothing, removed by whoever finds it
    repair-DATE       complete and durable. **This name decides**: from here on the new journal is the store's. Meanwhile the
                      old files move to damaged-DATE
    repaired-DATE     all old files have moved; the new ones move to their places, `store.json` first, the first journal
                      file last
    damaged-DATE      what was there before, kept

Whoever opens the store calls `finish_swap` first, with the directory's lock held; each step may be done again. In between, a
program that knows nothing of this finds `store.json` without the first journal file, and refuses to open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from trilogue.actors.journal.files import file_path, journal_numbers, remove_summaries, sync_directory

BUILDING = "repair.tmp"
_DECIDED, _EMPTIED, _KEPT = "repair-", "repaired-", "damaged-"
_IDENTITY = "store.json"


def building_directory(directory: Path) -> Path:
    """An empty directory to build the new journal in."""
    path = directory / BUILDING
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    return path


def kept_directory(directory: Path, stamp: str) -> Path:
    """Where the old files are kept."""
    return directory / f"{_KEPT}{stamp}"


def swap_in(directory: Path, stamp: str) -> Path:
    """Let what was built, and is durable, be the store's journal from now on. Returns where the old one is kept."""
    sync_directory(directory / BUILDING)
    os.rename(directory / BUILDING, directory / f"{_DECIDED}{stamp}")
    sync_directory(directory)
    finish_swap(directory)
    return kept_directory(directory, stamp)


def finish_swap(directory: Path) -> None:
    """Go on where a swap was interrupted; nothing to do is the rule. Raises `OSError`."""
    for path in sorted(directory.glob(f"{_DECIDED}[0-9]*")):
        _move_old_files_away(directory, path)
    for path in sorted(directory.glob(f"{_EMPTIED}[0-9]*")):
        _move_new_files_in(directory, path)


def _move_old_files_away(directory: Path, decided: Path) -> None:
    stamp = decided.name.removeprefix(_DECIDED)
    kept = kept_directory(directory, stamp)
    kept.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not (kept / _IDENTITY).exists():
            shutil.copy2(directory / _IDENTITY, kept / f"{_IDENTITY}.tmp")  # a store without it would be a new one
            os.rename(kept / f"{_IDENTITY}.tmp", kept / _IDENTITY)
    remove_summaries(directory)
    for number in journal_numbers(directory):
        os.rename(file_path(directory, number), file_path(kept, number))
    sync_directory(kept)
    sync_directory(directory)
    os.rename(decided, directory / f"{_EMPTIED}{stamp}")
    sync_directory(directory)


def _move_new_files_in(directory: Path, emptied: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(emptied / _IDENTITY, directory / _IDENTITY)
    for number in reversed(journal_numbers(emptied)):
        if number == 1:
            sync_directory(directory)
        os.rename(file_path(emptied, number), file_path(directory, number))
    sync_directory(directory)
    shutil.rmtree(emptied)
    sync_directory(directory)
