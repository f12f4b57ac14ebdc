"""Data of the first version (commit 6fdf8c0: three stores, no register, no spares), opened with the present one (G2, G5).

`tests/data/make_first_version.py` says how the data was made: that system was killed under load.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_system.bare import TOKEN, BareSystem
from local_system.system import LocalSystem
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.messages import Message
from trilogue.actors.protocol.vocabulary import Say
from trilogue.actors.wire import Connection, connect
from trilogue.client import Client
from trilogue.cluster.settings.config import read_record

from .conftest import eventually, run

ARCHIVE = Path(__file__).parents[1] / "data" / "first-version.tar.xz"
SESSIONS = [f"room-{k}" for k in range(6)]
RETRIED = 3


def unpack(place: Path) -> Path:
    """A copy of the old data in `place`; its directory."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(place, filter="data")
    assert json.loads((place / "data" / "cluster.json").read_text())["format"] == 1
    assert not list(place.rglob("register.db"))
    return place / "data"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareSystem]:
    """The old stores, and no other ones, opened by the present version."""
    data = unpack(tmp_path_factory.mktemp("old"))
    record = read_record(data)
    assert record is not None
    assert (record.partitions, record.stores, record.copies) == (2, 3, 3)
    with BareSystem(data, stores=3, sessions=2, record=record) as system:
        system.start(*system.stores, *system.sessions)
        for partition, session in enumerate(system.sessions):
            system.take(session, partition)
        yield system


def everything_in(new_client: Callable[[str], Client]) -> dict[str, list[Message]]:
    """All messages of all sessions."""

    async def read() -> dict[str, list[Message]]:
        async with new_client("reader") as client:
            return {session: await client.history(session, limit=10_000) for session in SESSIONS}

    found: dict[str, list[Message]] = run(read())
    return found


def test_all_that_the_first_version_acked_is_read_back_at_its_place_g2_g3_g4(old: BareSystem) -> None:
    found = everything_in(old.client)
    acked = json.loads((old.root.parent / "acked.json").read_text())
    assert acked
    for session, seq, sender, body in acked:
        message = found[session][seq - 1]
        assert (message.seq, message.sender, message.body.decode()) == (seq, sender, body)
    for session, messages in found.items():
        assert [message.seq for message in messages] == list(range(1, len(messages) + 1))
        load = [message.n for message in messages if message.sender == "carol"]
        assert load == list(range(1, len(load) + 1)), session


def test_a_retry_from_an_outbox_of_that_time_is_answered_with_the_original_place_g5_g10(old: BareSystem) -> None:
    """The outbox holds what the first version had stored already: its process was killed before the acks came."""
    before = everything_in(old.client)
    retries = old.root.parent / "again.db"
    shutil.copy(old.root.parent / "retries.db", retries)

    async def retry() -> None:
        async with old.client("bob", retries) as bob:
            assert bob.waiting == RETRIED * len(SESSIONS)
            await bob.flush()
            new = await bob.send(SESSIONS[0], b"new")
            assert (new.seq, new.n) == (len(before[SESSIONS[0]]) + 1, RETRIED + 1)

    run(retry())
    for session in SESSIONS[1:]:
        stored = next(message for message in before[session] if message.sender == "bob")
        assert answer_to(old, stored) == [session, stored.sender_id, 1, 1, stored.seq, True]
    after = everything_in(old.client)
    assert after[SESSIONS[0]].pop().body == b"new"
    assert after == before


def answer_to(system: BareSystem, message: Message) -> list[Any]:
    """What a SessionActor answers when this message is submitted again: [session, sender, n, count, seq, duplicate]."""
    address = system.status(system.sessions[partition_of(message.session, system.record.partitions)])["address"]
    submitted = [message.session, message.sender_id, message.n, [message.sent_at_us], [message.body]]

    async def submit() -> list[Any]:
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def on_message(source: Connection, said: list[Any]) -> None:
            if said[0] == Say.OPEN:
                source.send([Say.SUBMIT, [submitted]])
            elif said[0] in (Say.ACKED, Say.REFUSED):
                answer.set_result(said)

        connection = await connect(address, TOKEN, on_message=on_message, on_closed=lambda *_: None)
        said, _, _, acks = await answer
        connection.close()
        assert said == Say.ACKED
        return list(acks[0])

    answered: list[Any] = run(submit())
    return answered


@pytest.mark.long
def test_it_may_grow_by_a_spare_store_which_takes_the_place_of_a_killed_one_and_is_filled_g2_g11() -> None:
    system = LocalSystem(2)
    try:
        data = unpack(system.root)
        system.up("--stores", "4")
        record = json.loads((data / "cluster.json").read_text())
        assert (record["format"], record["stores"], record["first_stores"]) == (2, 4, 3)
        for one in system.status()["partitions"]:
            assert sorted(one["stores"]) == ["store-1", "store-2", "store-3"]
            assert one["spares"] == ["store-4"]
        addresses, token = ",".join(system.run_file()["addresses"]), system.token
        before = everything_in(lambda sender: Client(sender, address=addresses, token=token))
        system.signal(system.pid_of("store-1"), signal.SIGKILL)

        def whole_again() -> bool:
            status = system.status()
            owners = [status["actors"][one["actor"]] for one in status["partitions"] if one["actor"]]
            return len(owners) == system.partitions and all(
                "store-4" in owner["members"] and owner["state"] == "open" and len(owner["ranges"]) == 1 for owner in owners
            )

        eventually(whole_again, "store-4 holds everything from the first frame on")
        eventually(system.is_well, "the killed store is back, as a spare")
        assert everything_in(lambda sender: Client(sender, address=addresses, token=token)) == before
        assert system.verify()["counts"]["messages"] == sum(map(len, before.values()))
        system.down()
    finally:
        system.end()
