"""Which Redis server a store is on, as its URL says it.

Owns the URL's form: `redis://HOST[:PORT][/DB]` or `rediss://…` (TLS), with `?replicas=N` (each append waits for so many
replicas, too) and `?ca_file=FILE` (who vouches for the server's certificate). It must not know connections. Invariant:
there is no password in it, so it may be shown and kept anywhere.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from trilogue.actors.protocol.errors import InvalidSettings

SCHEMES: Final = ("redis", "rediss")
PORT: Final = 6379
DATABASES_MAX: Final = 1 << 20
REPLICAS_MAX: Final = 16


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
        options += [f"ca_file={self.ca_file}"] if self.ca_file else []
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
    scheme, _, rest = url.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}"
    if "@" in rest:
        raise InvalidSettings(
            f"--store {shown}: leave the user and the password out of the URL; they come from TRILOGUE_REDIS_USERNAME and "
            "TRILOGUE_REDIS_PASSWORD (or the file that TRILOGUE_REDIS_PASSWORD_FILE names)"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORT
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise InvalidSettings(f"--store {shown}: {error}; write redis://HOST:PORT/DB") from None
    database = parts.path.strip("/") or "0"
    replicas = options.pop("replicas", "0")
    ca_file = unquote(options.pop("ca_file", ""))
    if options:
        raise InvalidSettings(f"--store {shown}: nothing is known of {', '.join(options)}; replicas and ca_file are")
    if not host or parts.fragment or scheme.lower() not in SCHEMES:
        raise InvalidSettings(f"--store {shown}: write redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    if not database.isdigit() or int(database) >= DATABASES_MAX:
        raise InvalidSettings(f"--store {shown}: the database is a whole number")
    if not replicas.isdigit() or int(replicas) > REPLICAS_MAX:
        raise InvalidSettings(f"--store {shown}: replicas is a whole number from 0 to {REPLICAS_MAX}")
    return RedisPlace(host, port, int(database), scheme.lower() == "rediss", int(replicas), ca_file)
