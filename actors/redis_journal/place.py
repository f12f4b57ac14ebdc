"""Which Redis server a store is on, as its URL says it.

Owns the URL's form: `redis://HOST[:PORT][/DB]` or `rediss://…` (TLS), with `?replicas=N` (each append waits for so many
replicas, too) and `?ca_file=FILE` (who vouches for the server's certificate). It must not know connections. Invariant:
there is no password in it, so it may be shown and kept anywhere.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from trilogue.actors.protocol.errors import InvalidSettings

SCHEMES: Final = ("redis", "rediss")
PORT: Final = 6379
DATABASES_MAX: Final = 1 << 20
REPLICAS_MAX: Final = 16
_PLAIN: Final = "/+,:=;~!$'()*"
"""What a file's name may have in a URL as it is, beside letters and digits."""
_HOST: Final = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?:/\d{1,7}(?=$|\?)|(?=$|[/?]))", re.ASCII)
_OPTION: Final = re.compile(r"[a-z_]{1,20}")


class RedisPlace(NamedTuple):
    """One database of one server, or of the cluster that this server is one of."""

    host: str
    port: int
    database: int = 0
    tls: bool = False
    replicas: int = 0
    ca_file: str = ""

    @property
    def url(self) -> str:
        """The one way to write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        options = [f"replicas={self.replicas}"] if self.replicas else []
        options += [f"ca_file={quote(self.ca_file, safe=_PLAIN)}"] if self.ca_file else []
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{host}:{self.port}/{self.database}" + ("?" + "&".join(options) if options else "")

    @property
    def shown(self) -> str:
        """The same without the options: what messages call it."""
        return self.url.partition("?")[0]


class Node(NamedTuple):
    """A node of a Redis Cluster, master or replica, by the name that it has in its cluster."""

    name: str
    host: str
    port: int


def is_redis(url: str) -> bool:
    """Whether the URL names a Redis server."""
    return url.partition("://")[0].lower() in SCHEMES and "://" in url


def parse_place(url: str) -> RedisPlace:
    """The place that the URL names. Raises `InvalidSettings`, which never shows what may be a password."""
    shown = shown_of(url)
    scheme, _, rest = url.partition("://")
    if "@" in rest:
        raise InvalidSettings(
            f"--store {shown}: leave the user and the password out of the URL; they come from TRILOGUE_REDIS_USERNAME and "
            "TRILOGUE_REDIS_PASSWORD (or the file that TRILOGUE_REDIS_PASSWORD_FILE names)"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORT
    except ValueError:
        raise InvalidSettings(f"--store {shown}: write redis://HOST:PORT/DB, with a PORT up to 65535") from None
    options = dict(_option(word) for word in parts.query.split("&") if word)
    database = parts.path.strip("/") or "0"
    replicas = options.pop("replicas", "0")
    ca_file = options.pop("ca_file", "")
    if options:
        plain = all(value and _OPTION.fullmatch(name) for name, value in options.items())
        what = ", ".join(options) if plain else "one of its options"
        raise InvalidSettings(f"--store {shown}: nothing is known of {what}; replicas and ca_file are")
    if not host or parts.fragment or scheme.lower() not in SCHEMES:
        raise InvalidSettings(f"--store {shown}: write redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    if not _is_number(database, DATABASES_MAX - 1):
        raise InvalidSettings(f"--store {shown}: the database is a whole number")
    if not _is_number(replicas, REPLICAS_MAX):
        raise InvalidSettings(f"--store {shown}: replicas is a whole number from 0 to {REPLICAS_MAX}")
    return RedisPlace(host, port, int(database), scheme.lower() == "rediss", int(replicas), ca_file)


def shown_of(url: str) -> str:
    """As much of a URL, of whatever kind, as cannot be a password: a host, if what follows may follow one, and no options."""
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalpha():
        return "…"
    host = _HOST.match(rest) if "@" not in rest else None
    if host is None:
        return f"{scheme}://…"
    return f"{scheme}://{host[0]}" + ("/…" if rest.startswith("/", host.end()) else "")


def _option(word: str) -> tuple[str, str]:
    """A `+` is a plus: these are names of files, not forms of the web."""
    name, _, value = word.partition("=")
    return unquote(name), unquote(value)


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most
