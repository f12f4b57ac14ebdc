"""Every error that a user can meet, and whose fault it is.

Owns the tree below. It knows nothing of where an error is raised. Each message says what to do next, and each
error survives pickling (positional arguments to ``super().__init__``), since Ray carries it between processes.

::

    TrilogueError
    ├── UsageError                the caller's fault: nothing was stored, the same call fails again
    │   ├── InvalidSession        not a non-empty UTF-8 string of at most 255 bytes
    │   ├── InvalidSender         empty, too long, or with control characters
    │   ├── InvalidKey            an idempotency key that is no non-empty UTF-8 string of at most 255 bytes
    │   ├── InvalidRange          `after`, `limit`, `last` or `credit` out of bounds
    │   ├── MessageTooLarge       the body is above `body_bytes_max`
    │   └── InvalidSettings       partitions, copies, stores or an address that make no sense
    ├── ConflictingKey            this idempotency key was used in this session before, for another body
    ├── ConflictingRetry          this number was used before, for another body: a copied or restored outbox
    ├── OutboxInUse               another process holds this outbox file
    ├── OutboxUnusable            not an outbox, from a newer version, or its disk failed
    ├── ClientClosed              the client was closed
    │   └── Unsent                … while messages of an outbox in memory were not acked: `count` of them
    ├── GivenUp                   its sender gave this message up: a deadline, or `cancel`; `may_be_stored` says what is known
    ├── NotAuthorized             the token is wrong or missing
    ├── ProtocolError             the peer does not speak this protocol, or its frame is malformed
    ├── Overloaded                a bound is reached: wait (`drain`), then try again
    ├── Unavailable               the system cannot do it now; it may later. For `send`: the message may have been stored
    ├── ProofOfLoss               the system forgot what it had acked: stop, and run `trilogue verify`
    ├── HistoryTrimmed            what was asked for is gone by your retention; `first_available` says from where on it is not
    ├── DataError                 the data directory's fault
    │   ├── DirectoryInUse        another process holds it
    │   ├── WrongCluster          it belongs to another cluster
    │   ├── NewerFormat           it was written by a newer version
    │   ├── DirectoryUnusable     it cannot be written, or lies on tmpfs
    │   ├── ServerUnusable        a store's Redis server does not answer, or cannot promise what a store must
    │   └── Corrupt               bytes that were known to be committed are damaged
    └── LaunchError               the system could not be started as asked
        └── SettingsDiffer        it runs, or its data was created, with other settings
"""

from __future__ import annotations

from collections.abc import Mapping


def counted(count: int, noun: str) -> str:
    """ "1 message", "2,000 messages": for sentences in errors and elsewhere."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class TrilogueError(Exception):
    """The root of all that trilogue raises on purpose. `str(error)` is one line that says what to do next."""


class UsageError(TrilogueError):
    """The caller's fault: nothing was stored, and the same call would fail again."""


class InvalidSession(UsageError, ValueError):
    """The session's id is not a non-empty UTF-8 string of at most 255 bytes."""


class InvalidSender(UsageError, ValueError):
    """The sender's name is empty, too long, or holds control characters."""


class InvalidKey(UsageError, ValueError):
    """The idempotency key is not a non-empty UTF-8 string of at most 255 bytes."""


class InvalidRange(UsageError, ValueError):
    """An `after`, `limit`, `last` or credit is out of its bounds."""


class MessageTooLarge(UsageError, ValueError):
    """The body is above `body_bytes_max`."""


class InvalidSettings(UsageError, ValueError):
    """Partitions, copies, stores or an address that make no sense: nothing was started or changed."""


class ConflictingRetry(TrilogueError):
    """This sender_id's number was used before, with another body: the outbox was copied or restored.

    This message was **not** stored. Later ones go on under a new sender_id.
    """


class ConflictingKey(TrilogueError):
    """This idempotency key was used in this session within its time, for a message with another body.

    This message was **not** stored. The sender's later ones follow.
    """


class OutboxInUse(TrilogueError):
    """Another process holds this outbox file."""


class OutboxUnusable(TrilogueError):
    """The file is no outbox, is from a newer version, or its disk failed."""


class ClientClosed(TrilogueError):
    """The client was closed before this was done. A message that it left in an outbox's file is sent by the next client."""


class Unsent(ClientClosed):
    """The client was closed while `count` messages of an outbox in memory were not acked: each stored once or not at all."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count

    def __str__(self) -> str:
        were = "was" if self.count == 1 else "were"
        return (
            f"{counted(self.count, 'message')} {were} not acked when the client closed, and its outbox was in memory: "
            "each is stored once or not at all; give Client(outbox=FILE) to keep them"
        )


class GivenUp(TrilogueError):
    """This message was given up: its deadline passed, or it was cancelled. It is never sent again, by no process.

    `may_be_stored` false: there are 0 copies, and it will never be stored. True: it was on its way, and no answer came: there
    are 0 or 1 copies; reading the session tells.
    """

    def __init__(self, text: str, may_be_stored: bool) -> None:
        super().__init__(text, may_be_stored)
        self.may_be_stored = may_be_stored

    def __str__(self) -> str:
        return str(self.args[0])


class NotAuthorized(TrilogueError):
    """The token is wrong or missing."""


class ProtocolError(TrilogueError):
    """The peer does not speak this protocol, or sent a malformed frame. Only that connection ends."""


class Overloaded(TrilogueError):
    """A bound is reached. Nothing was stored: wait (`drain`), then hand it over again."""


class Unavailable(TrilogueError):
    """The system cannot do it now. Raised for a message that was handed over, it *may* have been stored."""


class ProofOfLoss(TrilogueError):
    """The system no longer has what it had acked. Stop sending and run `trilogue verify`."""


class HistoryTrimmed(TrilogueError):
    """Messages of the session that were asked for are gone: trimmed by hand, or by the retention that `up` was given.

    `first_available` is the lowest seq that can be read, or that the next message will get. Never raised for what is there.
    `gone` says the same of all sessions that this is about: `sync` tells of several at once.
    """

    def __init__(self, session: str, first_available: int, gone: Mapping[str, int] | None = None) -> None:
        super().__init__(session, first_available)
        self.session, self.first_available = session, first_available
        self.gone = dict(gone or {session: first_available})

    def __str__(self) -> str:
        others = f"; so were {len(self.gone) - 1} other sessions" if len(self.gone) > 1 else ""
        return (
            f"session {self.session!r} was trimmed: its first message is {self.first_available} now; "
            f"read on with after={self.first_available - 1}{others}"
        )


class DataError(TrilogueError):
    """The data directory cannot be used as it is."""


class DirectoryInUse(DataError):
    """Another process holds the directory's lock."""


class WrongCluster(DataError):
    """The directory belongs to another cluster."""


class NewerFormat(DataError):
    """The directory was written by a newer version."""


class DirectoryUnusable(DataError):
    """The directory cannot be written, or lies where `fdatasync` means nothing (tmpfs)."""


class ServerUnusable(DataError):
    """A store's Redis server does not answer, or cannot promise what a store must. Nothing was changed there."""


class Corrupt(DataError):
    """Bytes that were known to be committed are damaged. The store serves nothing; nothing was changed on disk."""


class LaunchError(TrilogueError):
    """The system could not be started as asked."""


class SettingsDiffer(LaunchError):
    """The system runs, or its data was created, with other settings."""
