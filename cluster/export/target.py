"""Where an export goes: a directory, or a place in an object store (`s3://…`, `gs://…`), by `pyarrow.fs`.

Owns that a file has its final name only when it is whole. It must not know what is in the files. Rules:

1. Everything is written under `_trilogue/….writing` and moved when it is closed: a rename, or in an object store a copy on the
   server's side. On a local disk it is synced before, and its directory afterwards.
2. Only the names of an export are ever removed (`manifest.is_ours`).
3. Who writes holds a lock, where one can be had: on a local file system. It ends with its process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from trilogue.actors.protocol.errors import DirectoryInUse, UsageError
from trilogue.cluster.export.manifest import FOLDER, is_ours, is_read

LOCK = f"{FOLDER}/lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a file system says that knows no locks."""


class Target:
    """One export's place. All of its methods block; raise `OSError` when the place cannot be used."""

    def __init__(self, system: Any, root: str, name: str) -> None:
        self._system, self._root, self.name = system, root.rstrip("/"), name
        self.is_local = isinstance(system, fs.LocalFileSystem)

    @classmethod
    def open(cls, where: str) -> Target:
        """The place of that name: a directory, which need not exist yet, or a URL. Raises `UsageError`."""
        if not where:
            raise UsageError("an export needs a directory or a URL to go to: give --to DIR")
        if "://" not in where:
            system, root = fs.LocalFileSystem(), os.path.abspath(where)
        else:
            try:
                system, root = fs.FileSystem.from_uri(where)
            except (pa.lib.ArrowException, UnicodeError) as error:
                raise UsageError(f"{where!a} is no place that can be written to: {error}") from None
        try:
            root.encode()
        except UnicodeError:
            raise UsageError(f"{where!a} is no place that can be written to: its name is not UTF-8") from None
        if not root.strip("/"):
            raise UsageError(f"{where} names no directory, and no bucket: give --to DIR")
        return cls(system, root, where)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Keep others from writing here; whether that is possible. Raises `DirectoryInUse` when another one writes."""
        if not self.is_local:
            yield False
            return
        self._system.create_dir(self._at(FOLDER), recursive=True)
        descriptor = os.open(self._at(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                raise DirectoryInUse(f"another export writes to {self.name} now: wait for its end") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                is_locked = False
            yield is_locked
        finally:
            os.close(descriptor)

    def read(self, path: str) -> bytes | None:
        """The file's bytes; nothing if there is none."""
        try:
            with self._system.open_input_stream(self._at(path)) as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            return None

    def open_input(self, path: str) -> Any:
        """A file to be read at any place of it. Raises `FileNotFoundError`."""
        return self._system.open_input_file(self._at(path))

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file there, in the place of one of that name."""
        with self.writing(path) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Any]:
        """A stream; the file has its name when the block ends well, and is not there when it does not."""
        meanwhile = f"{FOLDER}/{path.replace('/', '-')}.writing"
        for folder in {FOLDER, path.rpartition("/")[0]} - {""}:
            self._system.create_dir(self._at(folder), recursive=True)
        try:
            with self._system.open_output_stream(self._at(meanwhile)) as stream:
                yield stream
        except BaseException:
            with contextlib.suppress(OSError):
                self._system.delete_file(self._at(meanwhile))
            raise
        if self.is_local:
            _sync(self._at(meanwhile))
        self._system.move(self._at(meanwhile), self._at(path))
        if self.is_local:
            _sync(os.path.dirname(self._at(path)))

    def files(self) -> set[str]:
        """The names of all files of exports that are there, whole or not, and of those that are taken for some."""
        root = self._list("")
        folders = [name for name, is_folder in root if is_folder and (name == FOLDER or name.startswith("partition="))]
        inside = [one for folder in folders for one in self._list(folder, recursive=True)]
        return {name for name, is_folder in root + inside if not is_folder and (is_ours(name) or is_read(name))}

    def _list(self, folder: str, *, recursive: bool = False) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of what is in it."""
        at = self._at(folder) if folder else self._root
        found = self._system.get_file_info(fs.FileSelector(at, allow_not_found=True, recursive=recursive))
        return [(info.path.removeprefix(self._root).lstrip("/"), info.type == fs.FileType.Directory) for info in found]

    def remove(self, path: str) -> None:
        """Remove a file of an export."""
        if is_ours(path):
            self._system.delete_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
