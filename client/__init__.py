"""Send to sessions and read them. ::

    async with Client(sender="alice", outbox="alice.db") as client:
        ack = await client.send("room-42", b"hello")
        async for message in client.subscribe("room-42"):
            ...

`SyncClient` is the same for code without an event loop. Importing this does not import Ray. All errors are re-exported
here; their tree stands in ``trilogue.actors.protocol.errors``.
"""

from trilogue.actors.protocol.errors import (
    ClientClosed,
    ConflictingKey,
    ConflictingRetry,
    Corrupt,
    DataError,
    DirectoryInUse,
    DirectoryUnusable,
    GivenUp,
    HistoryTrimmed,
    InvalidKey,
    InvalidRange,
    InvalidSender,
    InvalidSession,
    InvalidSettings,
    LaunchError,
    MessageTooLarge,
    NewerFormat,
    NotAuthorized,
    OutboxInUse,
    OutboxUnusable,
    Overloaded,
    ProofOfLoss,
    ProtocolError,
    ServerUnusable,
    SettingsDiffer,
    TrilogueError,
    Unavailable,
    Unsent,
    UsageError,
    WrongCluster,
)
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import Ack, Message
from trilogue.client.client import Client
from trilogue.client.connecting.presence import ClientState
from trilogue.client.reading.subscription import Subscription
from trilogue.client.sync import SyncClient, SyncSubscription

__all__ = [
    "Client", "SyncClient", "Ack", "Message", "Subscription", "SyncSubscription", "ClientState", "Limits", "DEFAULT_LIMITS",
    "TrilogueError",
    "UsageError", "InvalidSession", "InvalidSender", "InvalidRange", "InvalidKey", "MessageTooLarge", "InvalidSettings",
    "ConflictingRetry", "ConflictingKey", "OutboxInUse", "OutboxUnusable", "ClientClosed", "Unsent", "GivenUp",
    "HistoryTrimmed",
    "NotAuthorized", "ProtocolError", "Overloaded", "Unavailable", "ProofOfLoss",
    "DataError", "DirectoryInUse", "WrongCluster", "NewerFormat", "DirectoryUnusable", "ServerUnusable", "Corrupt",
    "LaunchError", "SettingsDiffer",
]  # fmt: skip
