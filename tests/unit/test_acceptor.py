"""An acceptor's file: what was answered is there after a crash, and what is damaged is never voted with (G2, G11)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.errors import Corrupt, DirectoryUnusable, NewerFormat, ProtocolError, WrongCluster
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.register.charter import ERA
from trilogue.actors.protocol.vocabulary import Code, Say
from trilogue.actors.store import acceptor as acceptors
from trilogue.actors.store.acceptor import FILE, VOTES, Acceptor
from trilogue.actors.wire import Refused

CHARTER = {"store-1": "me", "store-2": "you", "store-3": "she"}
VALUE = [1, b"data", False]


class Opened:
    """One directory, and its acceptor after each crash."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.acceptor: Acceptor | None = None

    def open(self, fresh: str = "me", cluster: str = "cluster-a") -> Acceptor:
        self.acceptor = Acceptor.open(self.directory, cluster=cluster, fresh_acceptor=fresh, limits=DEFAULT_LIMITS)
        return self.acceptor

    def crash(self) -> None:
        """What a kill leaves: the files as they are now, in a directory of their own."""
        after = self.directory.with_name(self.directory.name + "'")
        shutil.copytree(self.directory, after)
        self.close()
        self.directory = after

    def close(self) -> None:
        if self.acceptor is not None:
            self.acceptor.close()
            self.acceptor = None

    def ask(self, *asked: Any) -> Any:
        """The answers to these, asked at once; one alone is given alone."""
        many = list(asked) if isinstance(asked[0], tuple) else [asked]
        acceptor = self.acceptor
        assert acceptor is not None

        async def all_of_them() -> list[Any]:
            answers = (acceptor.answer(say, list(arguments)) for say, *arguments in many)
            return await asyncio.gather(*answers, return_exceptions=True)

        answers = asyncio.run(all_of_them())
        if len(many) > 1:
            return answers
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Opened]:
    directory = tmp_path / "store"
    directory.mkdir()
    opened = Opened(directory)
    yield opened
    opened.close()


@pytest.fixture
def founded(one: Opened) -> Opened:
    one.open()
    one.ask(Say.FOUND, 1, CHARTER)
    return one


def test_new_acceptor_knows_no_charter_and_says_who_it_is(one: Opened) -> None:
    assert one.open().id == "me"
    assert one.ask(Say.CHARTER) == ["me", 0, {}]
    assert one.ask(Say.CHARTER, 3) == ["me", 0, {}]


def test_promise_survives_a_crash_between_prepare_and_accept_G11(founded: Opened) -> None:
    assert founded.ask(Say.PREPARE, 1, "k", 5, "p") == [True, [5, "p"], [0, ""], None]
    founded.crash()
    assert founded.open("another").id == "me"
    assert founded.ask(Say.ACCEPT, 1, "k", 4, "q", VALUE) == [False, [5, "p"]]
    assert founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE) == [True, [5, "p"]]


def test_accepted_value_survives_a_crash_G2(founded: Opened) -> None:
    founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE)
    founded.crash()
    founded.open()
    assert founded.ask(Say.PREPARE, 1, "k", 6, "q") == [True, [6, "q"], [5, "p"], VALUE]


def test_charters_survive_a_crash(founded: Opened) -> None:
    founded.ask(Say.FOUND, 2, {"store-1": "me"})
    founded.crash()
    founded.open()
    assert founded.ask(Say.CHARTER) == ["me", 2, {"store-1": "me"}]
    assert founded.ask(Say.CHARTER, 1) == ["me", 1, CHARTER]
    assert founded.acceptor is not None
    assert founded.acceptor.status() == {"acceptor": "me", "charter": 2, "acceptors": ["store-1"], "member": True}


def test_emptied_directory_is_another_acceptor_and_does_not_vote(founded: Opened) -> None:
    founded.close()
    for path in founded.directory.iterdir():
        path.unlink()
    assert founded.open("another").id == "another"
    founded.ask(Say.FOUND, 1, CHARTER)
    with pytest.raises(Refused) as refused:
        founded.ask(Say.PREPARE, 1, "k", 1, "p")
    assert refused.value.code == Code.CANNOT_TELL


def test_vote_under_an_unknown_charter_is_refused(founded: Opened) -> None:
    for asked in ((Say.PREPARE, 2, "k", 1, "p"), (Say.ACCEPT, 2, "k", 1, "p", VALUE)):
        with pytest.raises(Refused) as refused:
            founded.ask(*asked)
        assert refused.value.code == Code.CANNOT_TELL


def test_another_charter_of_a_known_number_is_refused(founded: Opened) -> None:
    assert founded.ask(Say.FOUND, 1, CHARTER) is None
    with pytest.raises(Refused, match="founded by other"):
        founded.ask(Say.FOUND, 1, {"store-1": "me"})
    assert founded.ask(Say.CHARTER) == ["me", 1, CHARTER]


def test_after_a_rescue_nothing_is_voted_for_under_a_charter_of_before_and_what_was_accepted_is_told_G9(
    founded: Opened,
) -> None:
    founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE)
    answers = founded.ask((Say.FOUND, ERA, {"store-1": "me"}), (Say.PREPARE, 1, "k", 6, "p"))
    assert answers[0] is None
    assert isinstance(answers[1], Refused)
    founded.crash()
    founded.open()
    for asked in ((Say.PREPARE, 1, "k", 7, "p"), (Say.ACCEPT, 1, "k", 7, "p", VALUE)):
        with pytest.raises(Refused) as refused:
            founded.ask(*asked)
        assert refused.value.code == Code.DEPOSED
    assert founded.ask(Say.PREPARE, 1, "k", 0, "") == [False, [5, "p"], [5, "p"], VALUE]
    assert founded.ask(Say.PREPARE, ERA, "k", 1, "p")[0]


def test_what_waits_is_done_in_one_transaction_and_in_order(one: Opened) -> None:
    acceptor = one.open()
    begun: list[str] = []
    acceptor._database.set_trace_callback(lambda text: begun.append(text) if text.startswith(("BEGIN", "COMMIT")) else None)
    answers = one.ask(
        (Say.FOUND, 1, CHARTER), (Say.FOUND, 1, {"a": "b"}), (Say.PREPARE, 1, "k", 1, "p"), (Say.PREPARE, 1, "k", 2, "q"),
        (Say.ACCEPT, 1, "k", 1, "p", VALUE), (Say.PREPARE, 2, "k", 1, "p"),
    )  # fmt: skip
    assert begun == ["BEGIN IMMEDIATE", "COMMIT"]
    assert answers[0] is None
    assert isinstance(answers[1], Refused)
    assert answers[2:5] == [[True, [1, "p"], [0, ""], None], [True, [2, "q"], [0, ""], None], [False, [2, "q"]]]
    assert isinstance(answers[5], Refused)


def test_full_disk_refuses_and_keeps_nothing(founded: Opened) -> None:
    acceptor = founded.acceptor
    assert acceptor is not None
    (pages,) = acceptor._database.execute("PRAGMA page_count").fetchone()
    acceptor._database.execute(f"PRAGMA max_page_count = {pages}")
    big = [1, bytes(DEFAULT_LIMITS.register_data_bytes_max), False]
    answers = founded.ask((Say.PREPARE, 1, "k", 1, "p"), (Say.ACCEPT, 1, "k", 1, "p", big))
    assert [answer.code for answer in answers] == [Code.FULL, Code.FULL]
    assert founded.ask(Say.PREPARE, 1, "k", 0, "") == [False, [0, ""], [0, ""], None]


@pytest.mark.parametrize(
    ("say", "arguments"),
    [
        (Say.PING, []), (Say.CHARTER, ["x"]), (Say.FOUND, [0, {"a": "b"}]), (Say.FOUND, [1, []]), (Say.PREPARE, [1, "k", 1]),
        (Say.PREPARE, [1, "", 1, "p"]), (Say.PREPARE, [1, "k", -1, "p"]), (Say.ACCEPT, [1, "k", 1, "p", None]),
        (Say.ACCEPT, [1, "k", 1, "p", [1, bytes(DEFAULT_LIMITS.register_data_bytes_max + 1), False]]),
        (Say.PREPARE, [2**64, "k", 1, "p"]), (Say.CHARTER, [2**64]), (Say.PREPARE, [True, "k", 1, "p"]),
    ],
)  # fmt: skip
def test_request_of_another_shape_is_refused_at_once(founded: Opened, say: Say, arguments: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        founded.ask(say, *arguments)


def test_what_an_acceptor_is_asked_has_a_name() -> None:
    assert {Say.CHARTER, Say.FOUND, Say.PREPARE, Say.ACCEPT} == VOTES


# ---------------------------------------------------------------------- files that are not to be trusted


def altered(one: Opened, *statements: str) -> None:
    one.close()
    database = sqlite3.connect(one.directory / FILE)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def test_newer_format_is_left_alone(founded: Opened) -> None:
    altered(founded, "PRAGMA user_version = 2")
    with pytest.raises(NewerFormat, match="upgrade"):
        founded.open()


def test_register_of_another_cluster_is_refused(founded: Opened) -> None:
    founded.close()
    with pytest.raises(WrongCluster, match="another directory"):
        founded.open(cluster="cluster-b")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cells SET cell = x'00'",
        "UPDATE cells SET key = 'other'",
        "UPDATE charters SET number = 9",
        "DELETE FROM acceptor",
        "PRAGMA application_id = 7",
    ],
)
def test_damaged_row_is_found_when_the_file_is_opened(founded: Opened, statement: str) -> None:
    founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE)
    altered(founded, statement)
    with pytest.raises(Corrupt, match="keep its directory"):
        founded.open()


@pytest.mark.parametrize("at", [0, 20, 100, 4096, 8192])
def test_overwritten_file_is_never_voted_with(founded: Opened, at: int) -> None:
    founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE)
    founded.close()
    path = founded.directory / FILE
    data = bytearray(path.read_bytes())
    data[at : at + 64] = b"\xa5" * 64
    path.write_bytes(data)
    with pytest.raises((Corrupt, DirectoryUnusable, NewerFormat)):
        founded.open()


def test_row_that_is_damaged_later_ends_all_votes(founded: Opened) -> None:
    founded.ask(Say.ACCEPT, 1, "k", 5, "p", VALUE)
    assert founded.acceptor is not None
    founded.acceptor._database.execute("UPDATE cells SET crc = crc + 1")
    for key in ("k", "other"):
        with pytest.raises(Corrupt):
            founded.ask(Say.PREPARE, 1, key, 9, "p")


def test_file_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnusable):
        Opened(tmp_path / "missing").open()


def test_file_of_a_creation_that_was_cut_off_is_a_new_acceptor(one: Opened) -> None:
    (one.directory / acceptors.FILE).touch()
    assert one.open("fresh").id == "fresh"
