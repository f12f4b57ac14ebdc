"""Where each store keeps its journal, as `--store` says it, and who a Redis server is told that we are.

Owns the form of the URLs and the environment's names of the credentials. It must not know how a server is asked. An empty
URL is the store's place by default: its directory under the data directory. Invariants: no URL holds a password; of two
stores, none has the other's place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trilogue.actors.config import Credentials
from trilogue.actors.protocol.errors import InvalidSettings
from trilogue.actors.redis_journal.place import is_redis, parse_place, shown_of
from trilogue.cluster.settings.directories import whole_path

FILE: Final = "file://"
USERNAME: Final = "TRILOGUE_REDIS_USERNAME"
PASSWORD: Final = "TRILOGUE_REDIS_PASSWORD"
_PATH: Final = re.compile(r"[\w./~-]*")
"""What may be a directory, and no URL with a password."""
PASSWORD_FILE: Final = "TRILOGUE_REDIS_PASSWORD_FILE"


def store_name(number: int) -> str:
    """The name of the store of this number, from 1 on."""
    return f"store-{number}"


def normal_urls(urls: Sequence[str], data: Path) -> tuple[str, ...]:
    """The URLs in the one way to write each: empty for a store's place by default. Raises `InvalidSettings`."""
    normal = tuple(_normal(url, number, data) for number, url in enumerate(urls, 1))
    named = [url for url in normal if url]
    for url in named:
        if named.count(url) > 1:
            raise InvalidSettings(f"--store {url} is named twice: each store needs a place of its own")
    return normal


def _normal(url: str, number: int, data: Path) -> str:
    if is_redis(url):
        return parse_place(url).url
    is_file = url.startswith(FILE)
    if not is_file or url == FILE or "\0" in url:
        shown = url if is_file or _PATH.fullmatch(url) else shown_of(url)
        raise InvalidSettings(f"--store {shown}: write file://DIR, redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    directory = whole_path(url.removeprefix(FILE))
    return "" if directory == data / store_name(number) else f"{FILE}{directory}"


def directory_of(url: str) -> Path | None:
    """The directory that the URL names; None for one that names none."""
    return Path(url.removeprefix(FILE)) if url.startswith(FILE) else None


def redis_credentials() -> Credentials:
    """Who the Redis servers are told that we are, from the environment. Raises `InvalidSettings`."""
    username, password, file = (os.environ.get(name, "") for name in (USERNAME, PASSWORD, PASSWORD_FILE))
    if password and file:
        raise InvalidSettings(f"{PASSWORD} and {PASSWORD_FILE} are both set: leave one of them out")
    if file:
        try:
            password = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InvalidSettings(
                f"{PASSWORD_FILE} names {file}, which cannot be read ({why}): name the file with the password"
            ) from None
        if not password:
            raise InvalidSettings(f"{PASSWORD_FILE} names {file}, which is empty: write the password into it")
    if username and not password:
        raise InvalidSettings(f"{USERNAME} is set without a password: set {PASSWORD} or {PASSWORD_FILE}, too")
    return Credentials(username, password)
