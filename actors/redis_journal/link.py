"""One connection to one Redis node: commands go out in one piece, answers come back in order.

Owns the connection and what its errors mean. It must not know keys or scripts. Used by one thread at a time. Rules:

1. A connection that failed is never used again: what became of the commands on their way is not known.
2. A command that the server refuses is an answer like any other (`Refusal`): those beside it in the pipeline have answers
   of their own.
3. No error's text holds a user's name or a password.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry

from trilogue.actors.config import Credentials
from trilogue.actors.redis_journal.place import RedisPlace

Word = bytes | str | int
Command = Sequence[Word]


class LinkLost(Exception):
    """The server cannot be reached, or does not answer in time: whether it did what it was asked is not known. One line
    that says what to do."""


class Refusal(NamedTuple):
    """The server says no; `code` is the first word of its answer: OOM, READONLY, NOSCRIPT, …"""

    code: str
    text: str


class Link:
    """A connection to `host`:`port`, made when it is first used."""

    def __init__(self, place: RedisPlace, credentials: Credentials, timeout_ms: int) -> None:
        self.place = place
        self.lost = False
        self._hidden = [word for word in (credentials.password, credentials.username) if word and word != "default"]
        options: dict[str, Any] = {
            "host": place.host,
            "port": place.port,
            "db": place.database,
            "username": credentials.username or None,
            "password": credentials.password or None,
            "socket_timeout": timeout_ms / 1000,
            "socket_connect_timeout": timeout_ms / 1000,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if place.tls:
            options |= {"ssl_ca_certs": place.ca_file or None, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        self._connection: Any = (SSLConnection if place.tls else Connection)(**options)
        self._open = False

    def ask(self, *command: Word) -> Any:
        """The answer to one command: a value or a `Refusal`. Raises `LinkLost`."""
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to the commands, which go out together. Raises `LinkLost`: any of them may have been done."""
        if self.lost:
            raise LinkLost(f"the connection to {self.place.shown} was lost")
        connection = self._connection
        try:
            if not self._open:
                connection.connect()
                self._open = True
            packed: list[bytes] = []
            for command in commands:
                packed += connection.pack_command(*command)
            connection.send_packed_command(packed, check_health=False)
            return [self._answer() for _ in commands]
        except (exceptions.RedisError, OSError) as error:
            self.close()
            raise LinkLost(f"{self.place.shown} {self._without_secrets(_in_words(error))}") from None

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except exceptions.ConnectionError as error:
            if isinstance(error, exceptions.BusyLoadingError):
                return Refusal("LOADING", _line(error))
            raise
        except exceptions.ResponseError as error:
            code, line = _code(error), self._without_secrets(_line(error))
            return Refusal(code, f"{code} {line}" if code in ("MOVED", "ASK") else line)

    def _without_secrets(self, text: str) -> str:
        for word in self._hidden:
            text = text.replace(word, "***")
        return text

    def close(self) -> None:
        """Let go of it; it is not used again."""
        self.lost = True
        with contextlib.suppress(exceptions.RedisError, OSError):
            self._connection.disconnect()


_CODES = (
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
)


def _code(error: exceptions.ResponseError) -> str:
    """The first word of what the server said: the library takes away those that it knows."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    first = str(error).partition(" ")[0]
    return first if first.isupper() else "ERR"


def _in_words(error: Exception) -> str:
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return (
            "does not let us in: set TRILOGUE_REDIS_PASSWORD (or TRILOGUE_REDIS_PASSWORD_FILE) and, if it has users, "
            "TRILOGUE_REDIS_USERNAME"
        )
    if isinstance(error, exceptions.BusyLoadingError):
        return "is still loading its data: wait until it has"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return "does not answer in time: look what keeps it busy, or give the store another server"
    return f"cannot be reached ({_line(error).rstrip('.')}): start it, or give the store another server"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
