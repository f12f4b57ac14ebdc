"""Small files that must be whole or absent: written to a temporary name, synced, renamed.

Owns how the cluster's own small files (settings, tokens, run files) reach the disk. It must not know what is in them.
Invariant: a reader sees the old content or the new one, never a part, also after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from trilogue.actors.journal.files import sync_directory
from trilogue.actors.protocol.errors import DirectoryUnusable, NewerFormat


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put `content` at `path` in one step, durably. Raises `DirectoryUnusable` when the directory cannot take it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise DirectoryUnusable(f"cannot write {path}: {error.strerror}; make {path.parent} writable") from None


def write_json(path: Path, value: dict[str, Any], mode: int = 0o644) -> None:
    """`write_whole` of an indented JSON object."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode(), mode)


def read_json(path: Path, newest: int) -> dict[str, Any] | None:
    """The object in `path`; None if there is no such file. Raises `DirectoryUnusable` when it cannot be read as one, and
    `NewerFormat` when its "format" is above `newest`.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DirectoryUnusable(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise DirectoryUnusable(f"{path} is not JSON: restore it from a backup") from None
    if not isinstance(value, dict):
        raise DirectoryUnusable(f"{path} is not a JSON object: restore it from a backup")
    version = value.get("format")
    if isinstance(version, int) and version > newest:
        raise NewerFormat(f"{path} has format {version}, this trilogue reads {newest}: upgrade trilogue")
    return value


def make_directory(path: Path) -> None:
    """Create `path` for this user alone, if it is not there. Raises `DirectoryUnusable` in one line."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryUnusable(f"cannot create {path}: {error.strerror}; choose another directory") from None


def remove(path: Path) -> None:
    """Remove a file if it is there and may be removed: for files that say where something *was*."""
    with contextlib.suppress(OSError):
        path.unlink()
