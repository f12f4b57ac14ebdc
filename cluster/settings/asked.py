"""What a user asks for, checked, and made to agree with the data directory.

Owns the settings' bounds and defaults, and the creation of a data directory: cluster.json and the token. It must not know how
anything is started. Invariants: cluster.json is written once; partitions, copies and stores of the data never change
under it; the token is readable by its owner alone.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trilogue.actors.protocol.errors import DirectoryUnusable, InvalidSettings, SettingsDiffer
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.limits import COPIES_MAX, STORES_MAX
from trilogue.cluster.settings.config import FORMAT, ClusterRecord, read_record, split_listen
from trilogue.cluster.settings.directories import data_home
from trilogue.cluster.settings.files import make_directory, write_json, write_whole

PARTITIONS_DEFAULT = 4
COPIES_DEFAULT = 3
LOG_ID_BITS = 63
TOKEN_BYTES = 32
_BOUNDS = {"partitions": PARTITIONS_MAX, "copies": COPIES_MAX, "stores": STORES_MAX}


class Settings(BaseModel):
    """What a user asked for. None means: as the data was created with, or the default for new data."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] | None = None
    copies: Annotated[int, Field(ge=1, le=COPIES_MAX)] | None = None
    stores: Annotated[int, Field(ge=1, le=STORES_MAX)] | None = None
    data: Path
    listen: str | None = None
    spread: bool | None = None
    allow_tmpfs: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.copies is not None and self.stores is not None and self.stores < self.copies:
            raise ValueError(f"{self.copies} copies need as many stores: --stores {self.copies} at least")
        if self.listen is not None:
            split_listen(self.listen)
        return self


def settings_of(*, data: str | os.PathLike[str] | None = None, **values: Any) -> Settings:
    """Checked settings. Raises `InvalidSettings` in one line that names what is out of bounds."""
    if data is not None and (not os.fspath(data) or "\0" in os.fspath(data)):
        raise InvalidSettings(f"--data {os.fspath(data)!r} is no path: name a directory")
    try:
        directory = Path(data).expanduser().absolute() if data is not None else data_home().absolute()
        return Settings(data=directory, **values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if name in _BOUNDS:
            what = f"--{name} {first['input']}: give a whole number from 1 to {_BOUNDS[name]}"
        else:
            what = f"--{name} {first['input']!r}: {first['msg']}" if name else str(first["msg"]).removeprefix("Value error, ")
        raise InvalidSettings(what) from None


def open_data(settings: Settings) -> tuple[ClusterRecord, str]:
    """The record and the token of `settings.data`, created if the directory is new.

    Raises `DirectoryUnusable`, `NewerFormat`, or `SettingsDiffer` when the data was created with other settings.
    """
    make_directory(settings.data)
    record = read_record(settings.data)
    if record is None:
        record = _create(settings)
    _check_same(settings, record)
    return record, _token(settings.data)


def _create(settings: Settings) -> ClusterRecord:
    orphan = next((path for path in settings.data.glob("store*/store.json")), None)
    if orphan is not None:
        raise DirectoryUnusable(
            f"{settings.data} holds stores ({orphan.parent.name}) but no cluster.json: restore it, or use another --data"
        )
    copies = settings.copies or min(COPIES_DEFAULT, settings.stores or COPIES_DEFAULT)
    record = ClusterRecord(
        cluster=secrets.token_hex(16),
        log_id=secrets.randbits(LOG_ID_BITS) | 1,
        partitions=settings.partitions or PARTITIONS_DEFAULT,
        copies=copies,
        stores=settings.stores or copies,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_json(settings.data / "cluster.json", {"format": FORMAT, **record._asdict()})
    return record


def _check_same(settings: Settings, record: ClusterRecord) -> None:
    for name in ("partitions", "copies", "stores"):
        asked, have = getattr(settings, name), getattr(record, name)
        if asked is not None and asked != have:
            what = "re-partitioning does not exist yet" if name == "partitions" else f"changing {name} does not exist yet"
            raise SettingsDiffer(
                f"{settings.data} was created with --{name} {have}, not {asked}: {what}; use --{name} {have} or another --data"
            )


def _token(data: Path) -> str:
    """The token of the system, made at its first start; readable by its owner alone."""
    path = data / "token"
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_hex(TOKEN_BYTES)
        write_whole(path, token.encode() + b"\n", mode=0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise DirectoryUnusable(f"cannot read {path}: {error}") from None
    if not token:
        raise DirectoryUnusable(f"{path} is empty: remove it, and the next start makes a new one")
    return token
