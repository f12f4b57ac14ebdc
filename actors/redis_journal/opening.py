"""Opening a store's journal on its server: who it is, what it has, and whether it has lost anything.

Owns the order. It must not know an open journal's appends and reads (``journal``). Rules:

1. Nothing is changed on a server that cannot keep the promise (``promise``).
2. A server without the store's identity has a new store: every partition's keys are made, then the identity is written. So
   where there is an identity, each partition's keys were there.
3. Whoever opens becomes the owner of every log before it reads it: from then on nobody else changes it.
4. What the witness (``witness``) knows to be confirmed and the server does not have any more is lost: then, or when there
   is no witness of this store, the incarnation is raised. It becomes higher than any that was used: what the record says of
   the former ones is void.
5. In this order, each step durable: the logs say that the store cannot tell, the identity gets the incarnation, the witness
   is written. A crash between them raises it again. What a log says stands in its place in the order, as in a journal in files:
   a partition that was joined since can tell again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from trilogue.actors.config import Credentials
from trilogue.actors.journal import Doubted, Entry, Identity, JournalFull
from trilogue.actors.protocol.errors import Corrupt, DirectoryUnusable, NewerFormat, ServerUnusable, WrongCluster
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.redis_journal.journal import Log, RedisJournal, Whose, wait_command
from trilogue.actors.redis_journal.layout import CLAIM, OWN, WALK, call, identity_key, partition_keys
from trilogue.actors.redis_journal.link import Command, LinkLost, Refusal
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import RedisPlace
from trilogue.actors.redis_journal.replay import LogReplay
from trilogue.actors.redis_journal.witness import Witness, read_witness

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Opening:
    """Who opens what. `fresh_store` and `owner` are UUIDs in hex, `jump` is a random number: where nothing says which
    incarnations were used, the next one is so much higher."""

    place: RedisPlace
    credentials: Credentials
    directory: Path
    name: str
    cluster: str
    log_id: int
    partitions: int
    fresh_store: str
    owner: str
    jump: int
    limits: Limits


def open_redis_journal(opening: Opening, replay: Callable[[Entry], None]) -> RedisJournal:
    """Open the journal and replay it: partition by partition, each in its order. Blocks.

    Raises `ServerUnusable`, `NewerFormat`, `WrongCluster` or `Corrupt` (the server's data is as it was; forget what was
    replayed), or `JournalBroken`.
    """
    witness = read_witness(opening.directory)
    known = witness.nodes if witness is not None else ()
    nodes = Nodes.reach(opening.place, opening.credentials, opening.limits.redis_timeout_ms, known=known, opening=True)
    try:
        return _Opener(opening, nodes, replay).open(witness)
    except LinkLost as lost:
        nodes.close()
        raise ServerUnusable(str(lost)) from None
    except BaseException:
        nodes.close()
        raise


class _Opener:
    """One opening."""

    def __init__(self, opening: Opening, nodes: Nodes, replay: Callable[[Entry], None]) -> None:
        self._opening, self._nodes, self._replay = opening, nodes, replay
        self._shown = opening.place.shown
        self._key = identity_key(opening.cluster, opening.name)
        self._lost = False  # something that was confirmed

    def open(self, witness: Witness | None) -> RedisJournal:
        """`witness` is what the directory has."""
        opening = self._opening
        said = self._ask(self._key, "HGET", self._key, "identity")
        is_new = said is None
        fresh = Identity(opening.fresh_store, 1, opening.cluster, opening.log_id)
        identity = fresh if is_new else decode_identity(said, self._shown, opening.name, fresh)
        if witness is not None and witness.store != identity.store:
            witness = None
        claimed = self._claim(identity, is_new)
        if is_new:
            self._write_identity(identity)
        else:
            self._ask(self._key, *call(OWN, (self._key,), opening.owner))
        logs = {partition: self._replayed(identity, partition, one, witness) for partition, one in claimed.items()}
        whose = Whose(opening.cluster, opening.name, opening.owner)
        if not is_new and (self._lost or witness is None or witness.incarnation != identity.incarnation):
            identity = replace(identity, incarnation=self._next_incarnation(identity, witness))
        journal = RedisJournal(
            opening.place, opening.credentials, opening.directory, identity, whose, self._nodes, logs, opening.limits
        )
        raised = not is_new and (witness is None or identity.incarnation != witness.incarnation)
        if raised:
            try:
                journal.raise_incarnation()
            except JournalFull as full:
                raise ServerUnusable(str(full)) from None
            self._write_identity(identity)
        try:
            journal.witness(durably=True)
        except OSError as error:
            raise DirectoryUnusable(f"{opening.directory} cannot be written ({error.strerror}): make it writable") from None
        for partition in logs if raised else ():
            self._replay(Doubted(partition, identity.incarnation))
        return journal

    def _next_incarnation(self, identity: Identity, witness: Witness | None) -> int:
        if witness is None:
            return identity.incarnation + 1 + self._opening.jump
        return max(identity.incarnation, witness.incarnation) + 1

    # ------------------------------------------------------------------ the logs

    def _claim(self, identity: Identity, is_new: bool) -> dict[int, tuple[int, int, int]]:
        """Become the owner of each log: its (end, chain, epoch)."""
        opening = self._opening
        keys = [partition_keys(opening.cluster, opening.name, identity.store, p) for p in range(opening.partitions)]
        answers, _ = self._nodes.ask_each((one.head, call(CLAIM, (one.head,), opening.owner)) for one in keys)
        found = {}
        for partition, answer in enumerate(answers):
            made, end, chain, epoch = map(int, good(self._shown, answer))
            self._lost |= bool(made) and not is_new
            found[partition] = end, chain, epoch
        return found

    def _replayed(self, identity: Identity, partition: int, claimed: tuple[int, int, int], witness: Witness | None) -> Log:
        """Replay the partition's log, and compare it with the witness."""
        opening, (end, chain, epoch) = self._opening, claimed
        keys = partition_keys(opening.cluster, opening.name, identity.store, partition)
        seen_end, seen_chain = witness.logs[partition] if witness is not None and partition < len(witness.logs) else (0, 0)
        self._lost |= end < seen_end
        log = LogReplay(self._shown, partition, opening.log_id, self._replay)
        link = self._nodes.of(keys.log)
        compared = seen_end == 0 or self._lost
        while log.end < end:
            upto = end if compared else seen_end
            entries = good(self._shown, link.ask(*call(WALK, (keys.log,), log.end, upto, opening.limits.redis_page_bytes)))
            if not entries:
                raise log.corrupt(f"nothing lies there, and the log goes on to byte {end}")
            log.take(entries)
            if not compared and log.end >= seen_end:
                compared = True
                self._lost |= (log.end, log.chain) != (seen_end, seen_chain)
        if (log.end, log.chain) != (end, chain):
            raise log.corrupt(f"it ends there with {log.chain:#010x}, and should end at byte {end} with {chain:#010x}")
        return Log(keys, end, chain, epoch, log.parts, log.freed_bytes)

    # ------------------------------------------------------------------ the identity

    def _write_identity(self, identity: Identity) -> None:
        """Put it on the server, durably."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "store": identity.store,
            "incarnation": identity.incarnation,
            "cluster": identity.cluster,
            "log_id": identity.log_id,
        }
        fields["crc32"] = _crc_of(fields)
        opening = self._opening
        command: Command = ["HSET", self._key, "identity", json.dumps(fields), "owner", opening.owner]
        wait = wait_command(self._nodes, opening.place, opening.limits)
        (answer,), waited = self._nodes.ask_each([(self._key, command)], wait)
        good(self._shown, answer)
        for confirmed in waited:
            local, replicas = good(self._shown, confirmed)
            if local < 1 or replicas < opening.place.replicas:
                raise ServerUnusable(f"{self._shown}: its disk or its replicas' have not confirmed in time: try again")

    def _ask(self, key: bytes, *command: bytes | str | int) -> Any:
        return good(self._shown, self._nodes.of(key).ask(*command))


def decode_identity(said: bytes, shown: str, name: str, wanted: Identity) -> Identity:
    """Who the store is by its server's word. Raises `NewerFormat`, `Corrupt`, or `WrongCluster`."""
    try:
        fields = json.loads(said)
    except ValueError:
        fields = None
    match fields:
        case {"format": int(version)} if version > FORMAT:
            raise NewerFormat(f"{shown} has format {version}; this program knows formats up to {FORMAT}: upgrade it")
        case {
            "format": 1,
            "store": str(store),
            "incarnation": int(incarnation),
            "cluster": str(cluster),
            "log_id": int(log_id),
            "crc32": int(crc),
        } if crc == _crc_of(fields):
            if (cluster, log_id) != (wanted.cluster, wanted.log_id):
                raise WrongCluster(
                    f"{shown} has {name} of cluster {cluster} (log {log_id}), not of {wanted.cluster} (log {wanted.log_id}): "
                    "give this cluster another database"
                )
            return Identity(store, incarnation, cluster, log_id)
    raise Corrupt(f"{shown} holds a damaged identity of {name}: do not use this store, and keep its data")


def good(shown: str, answer: Any) -> Any:
    """The answer, unless the server says no. Raises `ServerUnusable`."""
    if isinstance(answer, Refusal):
        raise ServerUnusable(f"{shown} refuses to open the store: {answer.text}")
    return answer


def _crc_of(fields: dict[str, Any]) -> int:
    return crc32(json.dumps({key: fields[key] for key in sorted(fields) if key != "crc32"}).encode())
