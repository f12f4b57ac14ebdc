"""A journal on real Redis servers: what it called durable is read back, and what the server lost is noticed (G1, G2, G9)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import pytest
import redis

from history_checker.redis_logs import read_redis_store
from local_system.waiting import eventually
from redis_server import SERVERS, NewServer
from redis_store import DURABLE, JUMP, LOG_ID, PARTITIONS, RedisStore, fence
from trilogue.actors.config import Credentials
from trilogue.actors.journal import (
    Doubted,
    FillRecord,
    FrameFilled,
    FrameFound,
    JoinRecord,
    Journal,
    JournalBroken,
    JournalFull,
    Position,
    open_identity,
)
from trilogue.actors.journal.salvage import FrameKey
from trilogue.actors.protocol.errors import Corrupt, ServerUnusable, Unavailable
from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.redis_journal import journal as journal_module
from trilogue.actors.redis_journal.export import export_store
from trilogue.actors.redis_journal.layout import partition_keys, rewrite
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.place import parse_place
from trilogue.actors.redis_journal.removal import remove_keys
from trilogue.actors.redis_journal.witness import read_witness, write_witness
from trilogue.actors.store.contents import StoreContents
from trilogue.actors.store.places import IN_LOGS
from trilogue.bench.recipe.server import HOST, RedisServer
from trilogue.cluster.settings.ports import PORTS, free_port

IMPATIENT = Limits(hedge_ms=250, member_lag_ms=500, redis_timeout_ms=1_000)


@pytest.fixture
def server(new_server: NewServer) -> RedisServer:
    return new_server(**DURABLE)


@pytest.fixture
def store(server: RedisServer, tmp_path: Path) -> RedisStore:
    """An open one, with a little of everything in it."""
    store = RedisStore(server, tmp_path / "store-1")
    assert store.open() == []
    store.append(fence(0, 1), store.frame(0, b"one"), fence(2, 1))
    store.append(store.frame(0, b"two", committed=1), store.frame(2, b"other"), store.frame(0, b"three" * 1000, committed=2))
    return store


def client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def found(store: RedisStore, kind: str) -> list[Position]:
    """Where the frames that were stored in this way lie."""
    return [entry[1] for entry in store.in_order() if entry[0] == kind]


def with_older_frames(store: RedisStore) -> bytes:
    """Partition 1 begins at frame 5, and frame 4 is filled in below it."""
    filled = store.frame(1, b"filled in", index=4, prev_crc=99)
    join = JoinRecord(1, 1, "writer-1", "127.0.0.1:9", 1, 5, decode_frame(filled, len(filled)).header_crc, ())
    store.append(join, FillRecord(1, filled))
    return filled


def test_what_was_appended_is_read_back_in_order_after_kill_9_of_the_server_G1_G2(store: RedisStore) -> None:
    with_older_frames(store)
    who = store.opened.identity
    store.server.restart()
    assert store.open() == store.in_order()
    assert store.opened.identity == who, "the same store, under the same incarnation"
    store.append(store.frame(0, b"and on"))
    store.server.restart()
    assert store.open() == store.in_order()


def test_a_frame_a_row_and_a_part_are_read_by_their_positions(store: RedisStore) -> None:
    frames = [store.frame(3, bytes(range(k, k + 100))) for k in range(5)]
    positions = store.append(*frames)
    assert [store.opened.read(position) for position in positions] == frames
    assert store.opened.read_row(positions) == frames
    part = frames[2][70:90]
    assert store.opened.read_part(positions[2], 70, 20, crc32(part)) == part
    with pytest.raises(Corrupt):
        store.opened.read_part(positions[2], 71, 20, crc32(part))
    filled = with_older_frames(store)
    position = found(store, "FrameFilled")[0]
    assert store.opened.read(position) == filled
    assert store.opened.read_part(position, 64, 6, crc32(b"filled")) == b"filled"


def test_a_copy_in_files_holds_the_same_and_says_what_is_damaged(store: RedisStore, tmp_path: Path) -> None:
    with_older_frames(store)
    place, who = parse_place(f"redis://{store.server.address}/0"), store.opened.identity

    def copied(name: str) -> tuple[list[str] | None, list[str]]:
        """What is damaged, and what is in the copy."""
        directory = tmp_path / name
        directory.mkdir()
        damage = export_store(place, Credentials(), who, "store-1", PARTITIONS, directory, DEFAULT_LIMITS, store.directory)
        identity = open_identity(directory, cluster=who.cluster, log_id=who.log_id, fresh_store=who.store)
        found: list[str] = []
        Journal.open(directory, identity, DEFAULT_LIMITS, lambda entry: found.append(shown(entry))).close()
        return damage, found

    assert copied("whole") == ([], [shown(entry) for entry in store.in_order()])
    assert store.opened.reason_to_end() == "", "it is still its owner's"
    client = client_of(store.server)
    log = client.keys("*/2}:log")[0]
    (last,) = sorted(map(int, client.hkeys(log)))[1:]
    client.hset(log, str(last), b"x" * 80)
    damage, found = copied("damaged")
    assert damage is not None
    assert f"a damaged log of partition 2 at byte {last}" in damage[0]
    assert found == [shown(entry) for entry in store.in_order()[:-1]]


def shown(entry: Any) -> str:
    """An entry of a replay, or of the book, without where it lies."""
    if isinstance(entry, FrameFound | FrameFilled):
        return f"{type(entry).__name__} {bytes(entry.payload)!r}"
    return f"{entry[0]} {entry[2]!r}" if isinstance(entry[0], str) else repr(entry)


def test_the_checkers_own_reader_sees_what_is_there_and_what_is_wrong(server: RedisServer, tmp_path: Path) -> None:
    store, client, records = RedisStore(server, tmp_path / "store-1"), client_of(server), msgpack.packb(["a record"])
    store.open()
    store.append(fence(0, 1), *(store.frame(0, records) for _ in range(3)), fence(3, 2), store.frame(3, records))
    seen = read_redis_store(client, "store-1")
    assert (seen.damage, seen.identity) == ([], (store.opened.identity.store, 1))
    assert {partition: (holding.fence, holding.last) for partition, holding in seen.partitions.items()} == {
        0: (1, 3),
        3: (2, 1),
    }
    (log,) = client.keys("*/0}:log")
    second = sorted(map(int, client.hkeys(log)))[2]
    whole = client.hget(log, str(second)) or b""
    client.hset(log, str(second), whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
    assert "a damaged payload" in read_redis_store(client, "store-1").damage[0]
    client.hdel(log, str(second))
    assert "is missing" in read_redis_store(client, "store-1").damage[0]
    client.flushall()
    assert read_redis_store(client, "store-1").damage == ["0 stores say that they are store-1"]


def test_all_that_a_cluster_has_on_a_server_can_be_taken_away_and_nothing_else(store: RedisStore) -> None:
    client = client_of(store.server)
    client.set("somebody's", "own")
    assert remove_keys(parse_place(store.server.url), Credentials(), "d" * 32) == 0
    assert remove_keys(parse_place(store.server.url), Credentials(), store.opened.identity.cluster) > 0
    assert client.keys() == [b"somebody's"]


# ---------------------------------------------------------------------- servers that cannot promise


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"appendonly": "no"}, "it has `appendonly no`, and forgets what it has when it ends: set `appendonly yes`"),
        ({"appendfsync": "no"}, "it has `appendfsync no`, and never syncs by itself: set `appendfsync always`"),
        (
            {"maxmemory_policy": "allkeys-lru"},
            "it has `maxmemory-policy allkeys-lru`, and throws away what it has: set `maxmemory-policy noeviction`",
        ),
        (
            {"no_appendfsync_on_rewrite": "yes"},
            "it has `no-appendfsync-on-rewrite yes`, and answers without syncing at times: set it to `no`",
        ),
    ],
)
def test_a_server_that_cannot_promise_it_is_refused_with_its_own_line(
    new_server: NewServer, tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    server = new_server(**{**DURABLE, **settings})
    store = RedisStore(server, tmp_path / "store-1")
    with pytest.raises(ServerUnusable) as caught:
        store.open()
    assert str(caught.value) == f"redis://{server.address}/0 cannot promise what a store must: {line}"
    assert client_of(server).dbsize() == 0, "nothing was changed there"


def test_a_server_that_syncs_every_second_is_taken_only_if_it_can_say_how_far(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**{**DURABLE, "appendfsync": "everysec"})
    store = RedisStore(server, tmp_path / "store-1")
    if can_wait(server):
        store.open()
        store.append(store.frame(0, b"on its disk"))
        server.restart()
        assert store.open() == store.in_order()
    else:
        with pytest.raises(
            ServerUnusable, match="answers before it syncs: set `appendfsync always`, or take a server with WAITAOF"
        ):
            store.open()


def test_a_replica_is_refused_and_so_is_a_master_that_becomes_one_G9(
    new_server: NewServer, store: RedisStore, tmp_path: Path
) -> None:
    replica = new_server(**DURABLE, replicaof=f"{HOST} {store.server.port}")
    with pytest.raises(ServerUnusable, match="it is a read-only replica: name its master"):
        RedisStore(replica, tmp_path / "other").open()
    client_of(store.server).replicaof(HOST, str(replica.port))
    with pytest.raises(JournalBroken, match="read only replica"):
        store.append(store.frame())
    assert "it is a read-only replica" in store.opened.reason_to_end()
    replica.kill()  # two that follow each other wait for each other
    store.server.kill()


def test_replicas_that_are_asked_for_have_it_on_disk_or_it_is_not_stored(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**DURABLE)
    store = RedisStore(server, tmp_path / "store-1", Limits(redis_timeout_ms=4_000), options="?replicas=1")
    if not can_wait(server):
        with pytest.raises(ServerUnusable, match="it cannot wait for replicas' disks"):
            store.open()
        return
    with pytest.raises(ServerUnusable, match="it has 0 replicas, and 1 are to have each message"):
        store.open()
    replica = new_server(**DURABLE, replicaof=f"{HOST} {server.port}")
    eventually(lambda: client_of(replica).info("replication")["master_link_status"] == "up", 20.0, "the replica follows")
    eventually(lambda: client_of(server).info("replication")["connected_slaves"] == 1, 20.0, "its master knows it")
    store.open()
    store.append(store.frame(0, b"on two disks"))
    os.kill(replica.pid, signal.SIGSTOP)
    with pytest.raises(JournalBroken, match="not confirmed in time"):
        store.append(store.frame(0, b"on one disk"))
    server.kill()  # in peace, it would wait for its replica


def test_a_setting_that_changes_while_a_store_is_open_ends_it(store: RedisStore) -> None:
    assert store.opened.reason_to_end() == ""
    client_of(store.server).config_set("maxmemory-policy", "allkeys-random")
    assert "`maxmemory-policy allkeys-random`" in store.opened.reason_to_end()


@pytest.mark.parametrize("redis_binary", SERVERS[:1], indirect=True)
def test_an_append_only_file_that_is_not_whole_yet_is_waited_for(new_server: NewServer, tmp_path: Path) -> None:
    """With WAITAOF, the server itself waits for it."""
    server = new_server(**{**DURABLE, "appendonly": "no"}, rdb_key_save_delay="20000")
    client = client_of(server)
    client.mset({f"key-{k}": b"x" for k in range(500)})
    client.config_set("appendonly", "yes")  # begins to write it, for ten seconds
    store = RedisStore(server, tmp_path / "store-1")
    with pytest.raises(ServerUnusable, match="is writing its append-only file anew"):
        store.open()
    server.kill()


def test_a_server_that_loads_its_data_is_waited_for(store: RedisStore) -> None:
    with client_of(store.server).pipeline(transaction=False) as pipeline:
        for k in range(4_000):  # it answers between a thousand of them
            pipeline.set(f"key-{k}", b"x")
        pipeline.execute()

    def restart() -> None:
        with contextlib.suppress(Unavailable):  # it is killed before it is up
            store.server.restart({"key-load-delay": "250"})

    slow = threading.Thread(target=restart)
    slow.start()

    def line() -> str:
        try:
            store.open()
        except ServerUnusable as error:
            return str(error)
        return "open"

    eventually(lambda: "is still loading its data: wait until it has" in line(), 20.0, line)
    store.server.kill()
    slow.join()


def test_a_server_is_reached_by_tls_if_its_certificate_is_vouched_for(new_server: NewServer, tmp_path: Path) -> None:
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port(PORTS, HOST)
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=redis", "-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    files = {"tls_cert_file": str(certificate), "tls_key_file": str(key), "tls_ca_cert_file": str(certificate)}
    store = RedisStore(new_server(**DURABLE, tls_port=str(port), tls_auth_clients="no", **files), tmp_path / "store-1")
    with pytest.raises(ServerUnusable, match="certificate verify failed"):
        store.open(f"rediss://{HOST}:{port}/0")
    url = f"rediss://{HOST}:{port}/0?ca_file={certificate}"
    assert store.open(url) == []
    store.append(store.frame(0, b"in secret"))
    assert store.open(url) == store.in_order()


def can_wait(server: RedisServer) -> bool:
    return server.binary.name == "valkey-server"


# ---------------------------------------------------------------------- what a server may lose


def test_an_emptied_server_is_a_new_store_G2(store: RedisStore) -> None:
    was = store.opened.identity
    client_of(store.server).flushall()
    with pytest.raises(JournalBroken, match="its keys are gone"):
        store.append(store.frame())
    assert "was emptied" in store.opened.reason_to_end()
    assert store.open() == []
    now = store.opened.identity
    assert now.store != was.store
    assert now.incarnation == 1


def test_a_server_restored_from_a_backup_cannot_tell_what_it_held_G2(store: RedisStore, tmp_path: Path) -> None:
    before = len(store.book)
    backup = tmp_path / "backup"
    store.server.stop()
    shutil.copytree(store.server.directory, backup)
    store.server.start()
    store.open()
    store.append(store.frame(2, b"after the backup"))
    assert store.opened.reason_to_end() == ""  # it has written down how far it is
    who = store.opened.identity

    store.server.stop()
    shutil.rmtree(store.server.directory)
    shutil.copytree(backup, store.server.directory)
    store.server.start()
    del store.book[before:]
    assert store.open() == [*store.in_order(), *raised(2)]
    assert store.opened.identity == replace(who, incarnation=2)
    store.book += [(doubt.partition, doubt) for doubt in raised(2)]
    assert store.open() == store.in_order(), "it still cannot tell: nobody has joined it since"


def test_a_partition_that_was_joined_since_can_tell_again_after_any_restart_as_with_files_G2_G11(
    store: RedisStore, tmp_path: Path
) -> None:
    (store.directory / "witness.json").unlink()
    store.open()
    incarnation = store.opened.incarnation
    store.book += [(doubt.partition, doubt) for doubt in raised(incarnation)]
    frame = store.opened.read(found(store, "FrameFound")[0])
    store.append(JoinRecord(0, 2, "writer-2", "127.0.0.1:9", 1, 2, decode_frame(frame, len(frame)).header_crc, ()))
    contents = StoreContents(LOG_ID, DEFAULT_LIMITS, IN_LOGS)
    assert store.open(also=contents.replay) == store.in_order()
    assert store.opened.incarnation == incarnation, "nothing more was lost"
    assert {partition: contents.state.partition(partition).certain for partition in range(PARTITIONS)} == {
        0: True,
        1: False,
        2: False,
        3: False,
    }


def raised(incarnation: int) -> list[Doubted]:
    """What is replayed behind everything else when the incarnation is raised."""
    return [Doubted(partition, incarnation) for partition in range(PARTITIONS)]


def flush(server: RedisServer) -> None:
    client_of(server).flushall()


@pytest.mark.parametrize("end", [RedisServer.kill, flush], ids=["unreachable", "emptied"])
def test_what_was_acked_since_the_last_second_is_missed_after_any_reason_to_end_G2(
    store: RedisStore, tmp_path: Path, end: Callable[[RedisServer], None]
) -> None:
    assert store.opened.reason_to_end() == ""
    store.server.stop()
    shutil.copytree(store.server.directory, tmp_path / "replica")
    store.server.start()
    before = store.open()
    store.append(store.frame(2, b"acked, and not on the replica"))
    end(store.server)
    assert store.opened.reason_to_end() != ""
    store.server.kill()
    shutil.rmtree(store.server.directory)
    shutil.copytree(tmp_path / "replica", store.server.directory)
    store.server.start()
    assert store.open() == [*before, *raised(2)]


def test_an_append_beside_a_reason_to_end_is_in_the_witness_or_refused_G2(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, ask_each = store.opened, Nodes.ask_each
    wrote, watched = threading.Event(), threading.Thread(target=journal.reason_to_end)

    def slow(self: Nodes, *asked: Any) -> Any:
        """The server has it; before its answer is here, the watching finds a reason."""
        answers = ask_each(self, *asked)
        client_of(store.server).config_set("maxmemory-policy", "allkeys-random")
        watched.start()
        assert not wrote.wait(0.2), "the witness waits for the append"
        return answers

    def witness(*args: Any, **named: Any) -> None:
        wrote.set()
        write_witness(*args, **named)

    monkeypatch.setattr(Nodes, "ask_each", slow)
    monkeypatch.setattr(journal_module, "write_witness", witness)
    (position,) = store.append(store.frame(2, b"acked"))
    watched.join()
    seen = read_witness(store.directory)
    assert seen is not None
    assert seen.logs[2][0] == position.offset + position.size
    with pytest.raises(JournalBroken, match="allkeys-random"):
        store.append(store.frame(2, b"refused"))


def test_a_log_with_the_same_length_and_another_end_is_noticed_G2(store: RedisStore, tmp_path: Path) -> None:
    """What a replica that took over may have: another writer's frames."""
    twin = tmp_path / "twin"
    store.server.stop()
    shutil.copytree(store.server.directory, twin)
    store.server.start()
    store.open()
    chain = list(store.chains[0])
    store.append(store.frame(0, b"here"))
    assert store.opened.reason_to_end() == ""
    store.server.stop()
    shutil.rmtree(store.server.directory)
    shutil.copytree(twin, store.server.directory)
    witness = (store.directory / "witness.json").read_bytes()
    store.server.start()
    store.open()
    store.chains[0] = chain
    store.append(store.frame(0, b"them"))
    (store.directory / "witness.json").write_bytes(witness)
    assert store.open()[-PARTITIONS:] == raised(3)
    assert store.opened.incarnation == 3


def test_without_a_witness_a_store_cannot_tell_and_takes_an_incarnation_that_was_never_used(store: RedisStore) -> None:
    (store.directory / "witness.json").unlink()
    assert store.open()[-PARTITIONS:] == raised(2 + JUMP)
    (store.directory / "witness.json").write_bytes(b"half a wit")
    assert store.open()[-PARTITIONS:] == raised(3 + 2 * JUMP)


def test_a_log_that_was_damaged_is_refused_and_left_alone(store: RedisStore) -> None:
    client, key = client_of(store.server), b"".join(client_of(store.server).keys("*/0}:log"))
    offset = sorted(map(int, client.hkeys(key)))[1]
    whole = client.hget(key, str(offset))
    assert whole is not None
    client.hset(key, str(offset), whole[:65] + b"!" + whole[66:])
    with pytest.raises(Corrupt, match=f"a damaged log of partition 0 at byte {offset}: a frame's payload fails its CRC"):
        store.open()
    client.hdel(key, str(offset))
    with pytest.raises(Corrupt, match=f"at byte {offset}: nothing lies there"):
        store.open()
    client.hset(key, str(offset), whole)
    assert store.open() == store.in_order()


def test_a_frame_that_went_bad_is_written_again_where_it_was(store: RedisStore) -> None:
    filled = with_older_frames(store)
    client = client_of(store.server)
    for kind, index in (("FrameFound", 1), ("FrameFilled", 4)):
        position = found(store, kind)[0]
        frame = store.opened.read(position)
        key = FrameKey(position.file, index, decode_frame(frame, len(frame)).header_crc)
        store.opened.check_in_place(position, key)
        log = next(name for name in client.keys("*:log") if f"/{position.file}}}".encode() in name)
        field = str(position.offset - (64 if kind == "FrameFilled" else 0))
        client.hset(log, field, b"x" * len(client.hget(log, field) or b""))
        with pytest.raises(Corrupt):
            store.opened.check_in_place(position, key)
        store.opened.rewrite_in_place(position, key, frame)
        assert store.opened.read(position) == frame
    assert frame == filled
    assert store.open() == store.in_order()


def test_a_repair_replaces_the_very_frame_and_nothing_else_that_lies_there_G2(store: RedisStore) -> None:
    (before, position, other) = store.append(*(store.frame(partition, b"the same size") for partition in (0, 0, 3)))
    frame = store.opened.read(position)
    key = FrameKey(0, 5, decode_frame(frame, len(frame)).header_crc)
    with pytest.raises(InvariantBroken, match="a frame of partition 0 lies in log 3"):
        store.opened.rewrite_in_place(other, key, frame)
    for offset in (before.offset, 0, position.offset + 1_000):
        with pytest.raises(Corrupt, match="another record lies where a frame was stored; nothing is written there"):
            store.opened.rewrite_in_place(position._replace(offset=offset), key, frame)
    keys = partition_keys("c" * 32, "store-1", store.opened.identity.store, 0)
    client = client_of(store.server)
    assert client.execute_command(*rewrite(keys, "another", position.offset, frame, b"x")) == (
        b"another process has taken this store"
    )
    owner = (client.hget(keys.head.decode(), "owner") or b"").decode()
    assert client.execute_command(*rewrite(keys, owner, before.offset, frame, b"x")) == b"another entry lies there"
    assert store.open() == store.in_order(), "nothing was changed"


# ---------------------------------------------------------------------- failures while it is open


def test_whoever_opens_it_last_has_it_alone_G9(store: RedisStore, tmp_path: Path) -> None:
    first = store.opened
    store.open()
    with pytest.raises(JournalBroken, match="another process has taken this store"):
        first.append([store.frame(1, b"from the first")])
    assert "another process has taken this store" in first.reason_to_end()
    del store.chains[1]
    store.append(store.frame(1, b"from the second"))


def test_the_server_itself_refuses_a_lower_fence_and_another_end_G9(store: RedisStore) -> None:
    client = client_of(store.server)
    head = client.keys("*/0}:head")[0]
    epoch, end = client.hmget(head, "epoch", "end")
    assert epoch == b"1"
    client.hset(head, "epoch", str(1 << 62))
    with pytest.raises(JournalBroken, match=f"the fence of epoch {1 << 62} is in force"):
        store.append(store.frame())
    store.chains[0].pop()
    client.hset(head, "epoch", "1")
    store.open()
    client.hset(head, "end", "8")
    with pytest.raises(JournalBroken, match=f"its log ends at byte 8, and should end at {int(end or 0)}"):
        store.append(store.frame())


def test_a_killed_server_breaks_the_journal_and_nothing_is_lost_G1_G2(store: RedisStore) -> None:
    store.server.kill()
    with pytest.raises(JournalBroken):
        store.append(store.frame(0, b"to nobody"))
    with pytest.raises(JournalBroken):  # nothing is tried again
        store.append(store.frame(0, b"to nobody"))
    with pytest.raises(Unavailable):
        store.opened.read(store.in_order()[1][1])
    with pytest.raises(ServerUnusable, match="start it, or give the store another server"):
        store.open()
    store.server.start()
    assert store.open() == store.in_order()


def test_a_server_that_says_nothing_is_left_in_time(store: RedisStore) -> None:
    store.limits = IMPATIENT
    store.open()
    os.kill(store.server.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(JournalBroken, match="does not answer in time"):
        store.append(store.frame(0, b"into the dark"))
    assert time.monotonic() - began < 3.0
    os.kill(store.server.pid, signal.SIGCONT)


def test_scripts_that_a_server_forgot_are_loaded_again_by_who_reads(store: RedisStore) -> None:
    position = found(store, "FrameFound")[0]
    assert store.opened.read(position)
    for _ in range(2):
        client_of(store.server).script_flush()
        assert store.opened.read_part(position, 64, 3, crc32(b"one")) == b"one"
        assert store.opened.reason_to_end() == ""


def test_a_server_that_cuts_idle_connections_does_not_cut_an_idle_store(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**DURABLE, timeout="2")
    store = RedisStore(server, tmp_path / "store-1")
    store.open()
    store.append(store.frame(0, b"before"))
    with socket.create_connection((HOST, server.port)) as idle:
        idle.setblocking(False)

        def is_cut() -> bool:
            assert store.opened.reason_to_end() == ""
            with contextlib.suppress(BlockingIOError):
                return idle.recv(1) == b""
            return False

        eventually(is_cut, 20.0, "the server cuts who is idle")
    store.append(store.frame(0, b"after"))
    assert store.open() == store.in_order()


def test_a_server_without_memory_stores_nothing_serves_reads_and_is_opened_anew_when_it_has_room(store: RedisStore) -> None:
    client = client_of(store.server)
    client.config_set("maxmemory", str(client.info("memory")["used_memory"]))
    with pytest.raises(JournalFull, match="out of memory"):
        store.append(store.frame(0, b"too much" * 1000))
    assert store.opened.full
    (_, position, payload) = store.in_order()[1]
    assert payload in store.opened.read(position)
    assert store.opened.reason_to_end() == ""
    assert store.open() == store.in_order()
    assert store.opened.full
    client.config_set("maxmemory", "1gb")
    assert "has room again" in store.opened.reason_to_end()


def test_a_password_comes_from_outside_and_is_never_shown(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**DURABLE, requirepass="sesame")
    store = RedisStore(server, tmp_path / "store-1")
    with pytest.raises(ServerUnusable, match="set TRILOGUE_REDIS_PASSWORD") as caught:
        store.open(f"redis://{server.address}/0")
    store.credentials = Credentials("", "open sesame")
    with pytest.raises(ServerUnusable, match="does not let us in") as wrong:
        store.open(f"redis://{server.address}/0")
    store.credentials = Credentials("", "sesame")
    store.open(f"redis://{server.address}/0")
    store.append(store.frame())
    shown = f"{caught.value}{wrong.value}{store.credentials!r}{store.opened.status()}{store.opened.reason_to_end()}"
    assert "sesame" not in shown


def test_a_user_needs_few_rights_and_is_never_named(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(**DURABLE)
    client = client_of(server)
    rights = "+info +config|get +command|info +script|load +evalsha +hget +hset +hmget +hstrlen +ping"
    rights += " +waitaof" if can_wait(server) else ""
    client.execute_command("ACL", "SETUSER", "trilogue-7", "on", ">sesame", "~trilogue:*", "-@all", *rights.split())
    store = RedisStore(server, tmp_path / "store-1")
    store.credentials = Credentials("trilogue-7", "sesame")
    store.open()
    store.append(fence(0, 1), store.frame(0, b"with few rights"))
    assert store.open() == store.in_order()
    client.execute_command("ACL", "SETUSER", "trilogue-7", "-hget")
    with pytest.raises(ServerUnusable, match="no permissions to run the 'hget' command") as caught:
        store.open()
    assert "trilogue-7" not in str(caught.value)


def new_cluster(new_server: NewServer, *slots: tuple[int, int] | None) -> list[RedisServer]:
    """A Redis Cluster of nodes with these slots; one without any is the first one's replica."""
    settings = {**DURABLE, "cluster_enabled": "yes", "cluster_node_timeout": "2000"}
    buses = (free_port(PORTS, HOST), free_port(reversed(PORTS), HOST))  # else it is 10,000 above, where anybody may be
    servers = [new_server(**settings, cluster_port=str(bus)) for bus in buses]
    first, second = map(client_of, servers)
    for server, some in zip(servers, slots, strict=True):
        if some is not None:
            client_of(server).execute_command("CLUSTER", "ADDSLOTSRANGE", *some)
    first.execute_command("CLUSTER", "MEET", HOST, servers[1].port, buses[1])
    until_it_works(*servers)
    if slots[1] is None:
        name = first.execute_command("CLUSTER", "MYID").decode()
        eventually(lambda: name in second.execute_command("CLUSTER", "NODES").decode(), 20.0, "it knows its master")
        second.execute_command("CLUSTER", "REPLICATE", name)
        eventually(lambda: second.info("replication").get("master_link_status") == "up", 20.0, "the replica follows")
        eventually(lambda: len(first.execute_command("CLUSTER", "SLOTS")[0]) == 4, 20.0, "its master has told of it")
    return servers


def until_it_works(*servers: RedisServer) -> None:
    for server in servers:
        client = client_of(server)
        eventually(
            lambda client=client: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO").decode(), 20.0, "it works"
        )


@pytest.mark.parametrize("redis_binary", SERVERS[:1], indirect=True)
def test_a_store_on_a_redis_cluster_goes_on_after_a_failover_also_when_the_node_in_its_url_is_gone_G2_G11(
    new_server: NewServer, tmp_path: Path
) -> None:
    seed, replica = new_cluster(new_server, (0, 16383), None)
    store = RedisStore(seed, tmp_path / "store-1")
    store.open()
    store.append(fence(0, 1), store.frame(0, b"before the failover"))
    assert store.opened.reason_to_end() == ""
    client = client_of(replica)
    eventually(lambda: client.dbsize() == client_of(seed).dbsize(), 20.0, "the replica has it")
    client.execute_command("CLUSTER", "FAILOVER")
    eventually(lambda: client.info("replication")["role"] == "master", 20.0, "the replica is the master")
    eventually(lambda: client_of(seed).info("replication")["role"] == "slave", 20.0, "and the master its replica")
    assert "MOVED" in store.opened.reason_to_end()
    assert store.open() == store.in_order()
    store.append(store.frame(0, b"by the map of the node that the URL names"))
    seed.kill()
    assert store.opened.reason_to_end() == "", "it has nothing there any more"
    assert store.open() == store.in_order()
    store.append(store.frame(0, b"by a node that was known"))
    assert store.open() == store.in_order()

    replica.kill()
    with pytest.raises(ServerUnusable, match=rf"{seed.address}/0 cannot be reached"):
        store.open()
    stranger = RedisServer(
        seed.binary, tmp_path / "stranger", {name.replace("_", "-"): value for name, value in DURABLE.items()}
    )
    stranger.port = replica.port
    with stranger, pytest.raises(ServerUnusable, match=rf"{seed.address}/0 cannot be reached"):
        store.open()


@pytest.mark.parametrize("redis_binary", SERVERS[:1], indirect=True)
def test_the_partitions_of_a_store_lie_on_the_nodes_of_a_redis_cluster(new_server: NewServer, tmp_path: Path) -> None:
    servers = new_cluster(new_server, (0, 8191), (8192, 16383))
    clients = [client_of(server) for server in servers]
    store = RedisStore(servers[0], tmp_path / "store-1")
    store.open()
    store.append(*(entry for p in range(4) for entry in (fence(p, 1), store.frame(p, b"on some node"))))
    assert all(client.dbsize() for client in clients), "both nodes have some"
    for server in servers:
        server.restart()
    until_it_works(*servers)
    assert store.open() == store.in_order()
    assert store.opened.read(store.in_order()[1][1])
