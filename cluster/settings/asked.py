"""What a user asks for, checked, and made to agree with the data directory.

Owns the settings' bounds and defaults, and the creation of a data directory: cluster.json and the token. It must not know how
anything is started. Invariants: partitions and copies of the data never change under it, and stores only become more; what is
changed is written when a start has been found possible, and before anything is started; the token is readable by its
owner alone.

Four numbers are about copies. `copies`: on how many stores each message is. `stores`: how many there are in all. Spare stores:
those that are more than the copies, one by default. `spare_sessions`: SessionActors that wait for a partition to take over.
How long messages are kept, and how many bytes of them, each start may say anew (``keeping``).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trilogue.actors.protocol.errors import DirectoryUnusable, InvalidSettings, SettingsDiffer
from trilogue.actors.protocol.ids import PARTITIONS_MAX
from trilogue.actors.protocol.limits import COPIES_MAX, STORES_MAX
from trilogue.cluster.settings.config import SPARE_SESSIONS_DEFAULT, ClusterRecord, read_record, split_listen, write_record
from trilogue.cluster.settings.directories import data_home, whole_path
from trilogue.cluster.settings.files import make_directory, write_whole
from trilogue.cluster.settings.keeping import (
    KEEP_BYTES_MAX,
    KEEP_S_MAX,
    KeepBytes,
    KeepFor,
    bytes_of,
    bytes_text,
    seconds_of,
    time_text,
)
from trilogue.cluster.settings.store_urls import FILE, normal_urls, store_name

PARTITIONS_DEFAULT = 4
COPIES_DEFAULT = 3
SPARE_STORES = 1
SPARE_SESSIONS_MAX = 64
LEAST_COPIES = 2  # what is on one store only is never called stored, unless it was asked for from the start
LOG_ID_BITS = 63
NEVER_STARTED_WITHOUT = "places.json"  # which every start writes before it makes an actor
TOKEN_BYTES = 32
_BOUNDS = {
    "partitions": (1, PARTITIONS_MAX),
    "copies": (1, COPIES_MAX),
    "stores": (1, STORES_MAX),
    "min_copies": (1, COPIES_MAX),
    "spare_sessions": (0, SPARE_SESSIONS_MAX),
}


class Settings(BaseModel):
    """What a user asked for. None means: as the data was created with, or the default for new data."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] | None = None
    copies: Annotated[int, Field(ge=1, le=COPIES_MAX)] | None = None
    stores: Annotated[int, Field(ge=1, le=STORES_MAX)] | None = None
    min_copies: Annotated[int, Field(ge=1, le=COPIES_MAX)] | None = None
    spare_sessions: Annotated[int, Field(ge=0, le=SPARE_SESSIONS_MAX)] | None = None
    keep_s: Annotated[int, Field(ge=0, le=KEEP_S_MAX)] | None = None
    keep_bytes: Annotated[int, Field(ge=0, le=KEEP_BYTES_MAX)] | None = None
    urls: tuple[str, ...] | None = None
    data: Path
    listen: str | None = None
    spread: bool | None = None
    allow_tmpfs: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.urls is not None and self.stores not in (None, len(self.urls)):
            raise ValueError(f"--stores {self.stores} and {len(self.urls)} times --store: leave --stores out")
        named = self.stores if self.urls is None else len(self.urls)
        if self.copies is not None and named is not None and named < self.copies:
            raise ValueError(f"{self.copies} copies need as many stores: {self._more(self.copies)}")
        if self.listen is not None:
            split_listen(self.listen)
        return self

    def _more(self, stores: int) -> str:
        return f"--stores {stores} at least" if self.urls is None else f"give --store {stores} times at least"


def settings_of(
    *,
    data: str | os.PathLike[str] | None = None,
    stores: int | Sequence[str] | None = None,
    keep_for: KeepFor | None = None,
    keep_bytes: KeepBytes | None = None,
    **values: Any,
) -> Settings:
    """Checked settings; `stores` is how many there are, or the URL of each. Raises `InvalidSettings` in one line that names
    what is out of bounds."""
    values["keep_s"] = seconds_of(keep_for) if keep_for is not None else None
    values["keep_bytes"] = bytes_of(keep_bytes) if keep_bytes is not None else None
    if data is not None and (not os.fspath(data) or "\0" in os.fspath(data)):
        raise InvalidSettings(f"--data {os.fspath(data)!r} is no path: name a directory")
    try:
        directory = whole_path(data) if data is not None else data_home().absolute()
        if stores is not None and not isinstance(stores, int):
            values["urls"] = normal_urls([str(url) for url in stores], directory)
            stores = None
        return Settings(data=directory, stores=stores, **values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        option = "--" + name.replace("_", "-")
        if name in _BOUNDS:
            least, most = _BOUNDS[name]
            what = f"{option} {first['input']}: give a whole number from {least} to {most}"
        else:
            what = f"{option} {first['input']!r}: {first['msg']}" if name else str(first["msg"]).removeprefix("Value error, ")
        raise InvalidSettings(what) from None


def open_data(settings: Settings) -> tuple[ClusterRecord, str]:
    """The record and the token of `settings.data`, created if the directory is new. What was asked for otherwise than before is
    in the record, and kept by `keep_record` alone: a system may still run as it was.

    Raises `DirectoryUnusable`, `NewerFormat`, or `SettingsDiffer` when the data was created with other settings.
    """
    make_directory(settings.data)
    record = read_record(settings.data)
    if record is None:
        record = _create(settings)
    return as_asked(settings, record), _token(settings.data)


def as_asked(settings: Settings, record: ClusterRecord, nodes: int = 1) -> ClusterRecord:
    """`record` with what may change changed; how many stores there are is decided, once there are `nodes` Ray nodes.

    Raises `SettingsDiffer` for what never changes, `InvalidSettings` for what does not fit it.
    """
    for name in ("partitions", "copies"):
        asked, have = getattr(settings, name), getattr(record, name)
        if asked is not None and asked != have:
            what = "re-partitioning does not exist yet" if name == "partitions" else f"changing {name} does not exist yet"
            raise SettingsDiffer(
                f"{settings.data} was created with --{name} {have}, not {asked}: {what}; use --{name} {have} or another --data"
            )
    if settings.urls is not None and not (settings.data / NEVER_STARTED_WITHOUT).exists():
        record = record._replace(stores=0, first_stores=0, urls=())  # a first start that failed has put nothing anywhere
    urls = _urls_as_asked(settings, record)
    stores = settings.stores or max(record.stores, len(urls)) or stores_for(record.copies, nodes, settings.spread)
    if stores < record.stores:
        raise SettingsDiffer(
            f"{settings.data} has {record.stores} stores, not {stores}: taking stores away does not exist yet; "
            f"use --stores {record.stores} or more"
        )
    if stores < record.copies:
        raise InvalidSettings(f"{record.copies} copies need as many stores: --stores {record.copies} at least")
    min_copies = record.min_copies if settings.min_copies is None else settings.min_copies
    least = min(LEAST_COPIES, record.copies)
    if not least <= min_copies <= record.copies:
        bounds = f"a whole number from {least} to {record.copies}" if least < record.copies else str(least)
        raise InvalidSettings(f"--min-copies {min_copies}: with {record.copies} copies give {bounds}")
    spare_sessions = record.spare_sessions if settings.spare_sessions is None else settings.spare_sessions
    return record._replace(
        urls=urls,
        stores=stores,
        first_stores=record.first_stores or stores,
        min_copies=min_copies,
        spare_sessions=spare_sessions,
        keep_s=record.keep_s if settings.keep_s is None else settings.keep_s,
        keep_bytes=record.keep_bytes if settings.keep_bytes is None else settings.keep_bytes,
    )


def _urls_as_asked(settings: Settings, record: ClusterRecord) -> tuple[str, ...]:
    """The stores' places: those that there are, and those that are new."""
    if settings.urls is None:
        return record.urls
    known = [*record.urls, *[""] * (record.stores - len(record.urls))]
    for number, (was, asked) in enumerate(zip(known, settings.urls, strict=False), 1):
        if was != asked:
            default = f"{FILE}{settings.data / store_name(number)}"
            raise SettingsDiffer(
                f"{store_name(number)} of {settings.data} is at {was or default}, not at {asked or default}: moving a store "
                "does not exist yet; name the stores in the order in which they were made"
            )
    if len(settings.urls) < len(known):
        raise SettingsDiffer(
            f"{settings.data} has {len(known)} stores, not {len(settings.urls)}: taking stores away does not exist yet; "
            "name all of them, or none"
        )
    return settings.urls if any(settings.urls) else ()


def stores_for(copies: int, nodes: int, spread: bool | None) -> int:
    """How many stores new data gets when nobody says it: one a node on a cluster, else the copies and a spare one."""
    if spread or (spread is None and 1 < copies <= nodes):
        return min(max(copies, nodes), STORES_MAX)
    return copies + SPARE_STORES


def keep_record(settings: Settings, record: ClusterRecord) -> None:
    """Remember the record of a system that is about to start: for good, what the number of its stores is about."""
    write_record(settings.data, record)


def check_running(settings: Settings, record: ClusterRecord) -> None:
    """Raise `SettingsDiffer` when a system that runs with `record` is not the one that is asked for."""
    _urls_as_asked(settings, record)
    if settings.urls is not None and len(settings.urls) > record.stores:
        raise SettingsDiffer(
            f"the system runs with {record.stores} stores, not {len(settings.urls)}: end it first, then start it so"
        )
    for name in ("partitions", "copies", "stores", "min_copies", "spare_sessions"):
        asked, have = getattr(settings, name), getattr(record, name)
        if asked is not None and asked != have:
            way_out = (
                "leave it out, or use another data directory"
                if name in ("partitions", "copies") or (name == "stores" and asked < have)
                else "end it first, then start it so"
            )
            raise SettingsDiffer(f"the system runs with {name}={have}, not {asked}: {way_out}")
    for option, asked, have, text in (
        ("keep-for", settings.keep_s, record.keep_s, time_text),
        ("keep-bytes", settings.keep_bytes, record.keep_bytes, bytes_text),
    ):
        if asked is not None and asked != have:
            raise SettingsDiffer(
                f"the system runs with --{option} {text(have)}, not {text(asked)}: end it first, then start it so"
            )


def _create(settings: Settings) -> ClusterRecord:
    orphan = next((path for path in settings.data.glob("store*/store.json")), None)
    if orphan is not None:
        raise DirectoryUnusable(
            f"{settings.data} holds stores ({orphan.parent.name}) but no cluster.json: restore it, or use another --data"
        )
    stores = settings.stores or len(settings.urls or ())
    copies = settings.copies or min(COPIES_DEFAULT, stores or COPIES_DEFAULT)
    record = ClusterRecord(
        cluster=secrets.token_hex(16),
        log_id=secrets.randbits(LOG_ID_BITS) | 1,
        partitions=settings.partitions or PARTITIONS_DEFAULT,
        copies=copies,
        stores=stores,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        first_stores=stores,
        min_copies=copies,
        spare_sessions=SPARE_SESSIONS_DEFAULT,
        urls=settings.urls if settings.urls and any(settings.urls) else (),
    )
    as_asked(settings, record)
    write_record(settings.data, record)
    return record


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
