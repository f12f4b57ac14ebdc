"""What an export consists of: its files, and what each of them is said to hold.

Owns the manifest's shape and the files' names. It must not know file systems, Parquet or clients. Pure.
Rules:

1. `_trilogue/manifest.json` names every file that counts. Whatever else lies there is the rest of an export that was cut short.
2. A data file has a file of ranges beside it, `_trilogue/….ranges` (an Arrow file): (session, first_seq, last_seq) in the
   order of its rows. So the manifest stays small, however many sessions there are.
3. Files are only added. What a later run finds exported is where the ranges end.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from trilogue.actors.protocol.errors import NewerFormat, UsageError

FORMAT: Final = 1
FOLDER: Final = "_trilogue"
MANIFEST: Final = f"{FOLDER}/manifest.json"
_NAMES: Final = re.compile(
    r"_trilogue/[^/]*\.(ranges|writing)"
    r"|partition=[0-9]{5,}/part-[0-9]{6,}-([0-9a-f]{8}-)?[0-9]{5,}\.parquet",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file, and where its ranges are; paths are relative to the export."""

    path: str
    ranges: str
    partition: int
    rows: int
    body_bytes: int
    sessions: int
    first_session: str
    last_session: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that counts of an export. `run` is the number of the last run that wrote to it."""

    cluster: str
    partitions: int
    run: int
    files: tuple[DataFile, ...] = ()
    run_id: str = ""
    """Of the last run: what no other run has, also not one that began with the same manifest at the same time."""
    after: int = 0
    """The highest `--after` that a run with files was given: what lies below it was left out on purpose."""

    def as_json(self) -> bytes:
        """It, as it is stored."""
        return json.dumps({"trilogue_export": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def of_json(cls, data: bytes, where: str) -> Manifest:
        """The manifest in these bytes. Raises `NewerFormat`, or `UsageError` when they are none."""
        try:
            value: dict[str, Any] = json.loads(data)
            version = value.pop("trilogue_export")
            if version != FORMAT:
                raise NewerFormat(f"{where} is an export of format {version}, this program knows {FORMAT}: upgrade it")
            return _SHAPE.validate_python(value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{where} has a {MANIFEST} that is no manifest: {_why(error)}; name another directory") from None

    def next_run(self, run_id: str) -> Manifest:
        """It, as the next run begins."""
        return replace(self, run=self.run + 1, run_id=run_id)

    def with_file(self, file: DataFile, after: int = 0) -> Manifest:
        """It, with one file more, of a run with that `--after`."""
        return replace(self, files=(*self.files, file), after=max(self.after, after))

    @property
    def names(self) -> set[str]:
        """Of all its files."""
        return {name for file in self.files for name in (file.path, file.ranges)}

    def of_partition(self, partition: int) -> list[DataFile]:
        """The partition's files, oldest first."""
        return [file for file in self.files if file.partition == partition]


_SHAPE: Final = TypeAdapter(Manifest)


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def data_path(partition: int, run: int, run_id: str, number: int) -> str:
    """The name of the file `number` that a run writes."""
    return f"partition={partition:05d}/part-{run:06d}-{run_id}-{number:05d}.parquet"


def ranges_path(partition: int, run: int, run_id: str, number: int) -> str:
    """The name of its ranges."""
    return f"{FOLDER}/partition-{partition:05d}-{run:06d}-{run_id}-{number:05d}.ranges"


def is_ours(path: str) -> bool:
    """Whether an export has written a file of this name: then it is a rest if no manifest names it."""
    return _NAMES.fullmatch(path) is not None


def is_read(path: str) -> bool:
    """Whether those who read the whole export take a file of this name for a part of it."""
    return path.endswith(".parquet") and not path.startswith(FOLDER)
