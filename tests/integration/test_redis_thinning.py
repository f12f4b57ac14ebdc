"""A store on a real Redis server gives the space of trimmed messages back, and nothing else goes (G2, G5)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import redis

from history_checker.redis_logs import read_redis_store
from redis_server import NewServer
from redis_store import DURABLE, RedisStore
from trilogue.actors.config import Credentials
from trilogue.actors.journal import FillRecord, Identity, JoinRecord, JournalBroken
from trilogue.actors.protocol.errors import Corrupt
from trilogue.actors.protocol.messages import FLOOR, TRIM, pack_records
from trilogue.actors.protocol.thinning import header_of, is_thin, placed, thinned
from trilogue.actors.redis_journal.export import export_store
from trilogue.actors.redis_journal.journal import RedisJournal
from trilogue.actors.redis_journal.layout import partition_keys
from trilogue.actors.redis_journal.link import LinkLost
from trilogue.actors.redis_journal.nodes import Nodes
from trilogue.actors.redis_journal.opening import Opening, open_redis_journal
from trilogue.actors.redis_journal.place import parse_place
from trilogue.bench.recipe.server import RedisServer
from trimmed_store import LOG_ID, SMALL, Store, run, seqs

MESSAGES = 64  # in each frame
FRAMES = 400
CLUSTER = "c"
_owners = itertools.count(1)


@pytest.fixture
def server(new_server: NewServer) -> RedisServer:
    return new_server(**DURABLE)


@pytest.fixture
def store(server: RedisServer, tmp_path: Path) -> Store:
    """Two sessions by turns, some 25 MiB in three parts that are closed and one that is not."""
    place = parse_place(f"redis://{server.address}/0")

    def opened(replay: Any) -> RedisJournal:
        owner, jump = f"owner-{next(_owners)}", 1 << 30
        opening = Opening(place, Credentials(), tmp_path / "store", "store-1", CLUSTER, LOG_ID, 1, "a" * 32, owner, jump, SMALL)
        return open_redis_journal(opening, replay)

    store = Store(tmp_path / "store", opened=opened)
    for k in range(FRAMES):
        store.append(run("st"[k % 2], k // 2 * MESSAGES + 1, MESSAGES))
    store.catch_up()
    return store


def memory(server: RedisServer) -> int:
    """Bytes of all keys on the server."""
    client = redis.Redis.from_url(server.url)
    return sum(int(client.memory_usage(key, samples=0) or 0) for key in client.keys("trilogue:*"))


LAST = FRAMES // 2 * MESSAGES


def test_trimmed_messages_give_the_servers_space_back_and_all_else_is_read_as_before_g2_g5(
    store: Store, server: RedisServer
) -> None:
    before, other = memory(server), store.runs("t", 0)
    store.append((TRIM, "s", LAST + 1, 9))
    redis.Redis.from_url(server.url).script_flush()
    store.thin()
    assert store.thinner.files_thinned == 3
    print(f"MiB on the server: {before / 2**20:.1f}, then {memory(server) / 2**20:.1f}")
    assert memory(server) < before - 11 * 2**20
    assert store.journal.freed_bytes > 11 * 2**20
    assert is_thin(store.frame(1))
    assert store.runs("t", 0) == other
    assert store.runs("s", 0) == LAST + 1
    assert store.originals("s", 1, LAST) == {n: n for n in range(1, LAST + 1)}


def test_a_log_with_thin_frames_opens_where_the_running_store_was_also_after_kill_9_of_the_server_g2(
    store: Store, server: RedisServer
) -> None:
    store.append((TRIM, "s", LAST // 2, 9))
    store.thin()
    freed = store.journal.freed_bytes
    assert freed > 2**20
    places = [store.places.at(index) for index in range(1, store.places.last_index + 1)]
    state, other = store.held.state.partition(0), store.runs("t", 0)
    server.restart()
    again = store.reopen()
    reopened = again.held.state.partition(0)
    assert [again.places.at(index) for index in range(1, again.places.last_index + 1)] == places
    assert (reopened.last_index, reopened.last_crc) == (state.last_index, state.last_crc)
    assert again.journal.incarnation == 1, "nothing of it was lost"
    assert again.journal.freed_bytes == freed
    assert again.runs("t", 0) == other
    again.append(run("t", LAST + 1, MESSAGES))
    again.append((FLOOR, FRAMES, 9))
    again.thin()  # thinner still, and what was appended since is there
    assert again.journal.freed_bytes > freed + 11 * 2**20
    last = again.reopen()
    assert seqs(last.runs("t", LAST)) == [*range(LAST + 1, LAST + MESSAGES + 1)]
    assert last.originals("s", 1, MESSAGES) == {n: n for n in range(1, MESSAGES + 1)}


def test_a_link_that_is_lost_while_entries_change_ends_the_store_and_its_successor_reads_what_is_there_g2(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = store.runs("t", 0)
    store.append((TRIM, "s", LAST + 1, 9))
    ask_each = Nodes.ask_each

    def lose(self: Nodes, commands: Any, wait: Any) -> Any:
        ask_each(self, commands, wait)
        raise LinkLost("it is lost behind the changes")

    monkeypatch.setattr(Nodes, "ask_each", lose)
    with pytest.raises(JournalBroken, match="lost behind the changes"):
        store.thin()
    monkeypatch.undo()
    again = store.reopen()
    assert is_thin(again.frame(1))
    assert again.runs("t", 0) == other
    assert again.originals("s", 1, LAST) == {n: n for n in range(1, LAST + 1)}


def test_a_copy_in_files_of_a_log_with_thin_frames_is_whole(store: Store, server: RedisServer, tmp_path: Path) -> None:
    store.append((TRIM, "s", LAST + 1, 9))
    store.thin()
    copy = tmp_path / "copy"
    copy.mkdir()
    who = Identity("", 0, CLUSTER, LOG_ID)
    place = parse_place(f"redis://{server.address}/0")
    assert export_store(place, Credentials(), who, "store-1", 1, copy, SMALL, store.directory) == []
    files = Store(copy)
    assert files.places.last_index == store.places.last_index
    assert files.runs("t", 0) == store.runs("t", 0)
    assert is_thin(files.frame(1))


def test_a_thin_entry_that_went_bad_is_noticed_and_put_back(store: Store, server: RedisServer) -> None:
    whole = store.frame(1)
    store.append((TRIM, "s", LAST + 1, 9))
    store.thin()
    position = store.places.at(1)
    assert position is not None
    client = redis.Redis.from_url(server.url)
    [key] = [key for key in client.keys("trilogue:*") if key.endswith(b"/0}:log")]
    entry = client.hget(key, str(position.offset))
    assert entry is not None
    assert len(entry) == position.size < len(whole)
    for at in range(0, len(entry), 5):
        client.hset(key, str(position.offset), entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :])
        with pytest.raises(Corrupt):
            store.frame(1)
    store.thinner.put_back(position, whole)
    store.thin()
    assert store.back == [(0, 1)]
    assert header_of(store.frame(1), len(whole)) == header_of(whole, len(whole))
    assert store.originals("s", 1, MESSAGES) == {n: n for n in range(1, MESSAGES + 1)}
    assert store.reopen().places.last_index == store.places.last_index


def test_a_filled_in_frame_that_went_bad_is_put_back_in_the_size_that_a_peer_has_g2(
    server: RedisServer, tmp_path: Path
) -> None:
    """A frame that was filled in whole is thin on the peer, or the other way round; after that the log is as it was."""
    store, client = RedisStore(server, tmp_path / "store-1"), redis.Redis.from_url(server.url)
    store.open()
    records = pack_records([run("s", 1, 8), run("t", 1, 8)])
    whole = store.frame(1, records, index=4, prev_crc=99, count=2)
    thin = placed(thinned(whole, lambda item: item[1] == "s", 0), 7, 12_344)
    thinner = placed(thinned(whole, lambda item: True, 0), 7, 8)
    assert len(thinner) < len(thin) < len(whole)
    header = header_of(whole, len(whole))
    store.append(JoinRecord(1, 1, "writer-1", "127.0.0.1:9", 1, 5, header.header_crc, ()))
    store.chains[1] = [0, 0, 0, header.header_crc]
    store.append(FillRecord(1, whole))
    (place,) = [entry[1] for entry in store.in_order() if entry[0] == "FrameFilled"]
    for _ in range(9):
        store.append(store.frame(1, pack_records([run("t", 9, 1024)])))
    others = [entry for entry in store.in_order() if entry[0] != "FrameFilled"]
    keys = partition_keys(CLUSTER * 32, "store-1", store.opened.identity.store, 1)
    key, field = keys.log.decode(), str(place.offset - 64)

    was = place
    for frame in (thin, thinner, whole, thinner, thin):
        entry = client.hget(key, field) or b""
        client.hset(key, field, entry[:-9] + bytes([entry[-9] ^ 1]) + entry[-8:])
        with pytest.raises(Corrupt):
            store.opened.read(was)
        part = store.opened.part_of(was)
        anew = store.opened.written_anew(part, lambda *entry: entry[3], {was.offset: (was.size, frame)})
        assert [*anew.write()]
        anew.take_place()
        assert [*anew.moves.of(1)] == [(4, place.offset, place.offset, len(frame))]
        was = place._replace(size=len(frame))
        assert store.opened.read(was) == frame
        assert store.opened.read_part(was, 64, 60, crc32(frame[64:124])) == frame[64:124]
        replayed = store.open()
        assert store.opened.incarnation == 1
        assert [entry for entry in replayed if entry[0] != "FrameFilled"] == others
        assert [entry[1] for entry in replayed if entry[0] == "FrameFilled"] == [was]
        again = store.opened.written_anew(part, lambda *entry: entry[3], {})
        assert [*again.write()]
        assert again.moves.partitions == [], "as it came, from then on"
    seen = read_redis_store(client, "store-1")
    assert seen.damage == []
    client.hset(key, field, b"x" * 300)
    anew = store.opened.written_anew(part, lambda *entry: entry[3], {was.offset: (was.size, whole)})
    with pytest.raises(Corrupt, match="the header of what was filled in went bad, too"):
        list(anew.write())


def test_the_checkers_own_reader_takes_thin_frames_for_what_they_are(server: RedisServer, store: Store) -> None:
    store.append((TRIM, "s", LAST + 1, 9))
    store.thin()
    assert is_thin(store.frame(1))
    seen = read_redis_store(redis.Redis.from_url(server.url), "store-1")
    assert seen.damage == []
    assert seen.partitions[0].last == store.places.last_index
    assert sum(frame.thin for frame in seen.partitions[0].frames) > 0
