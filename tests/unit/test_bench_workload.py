"""What the benchmarks send follows from the seed; what is read from a conversation's file is checked line by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from trilogue.actors.protocol.errors import UsageError
from trilogue.bench.load.conversation import Line, compare_with_file, parse, read_conversation
from trilogue.bench.load.workload import Workload

CONVERSATION = Path(__file__).parent.parent / "data" / "conversation.jsonl"
GOOD = {"session": "room", "sender": "Amélie", "sent_at": 1, "text": "hello ☕"}


def test_the_same_seed_makes_the_same_messages() -> None:
    one, two = Workload(1000, 16, 64, seed=7), Workload(1000, 16, 64, seed=7)
    assert one.order() == two.order()
    assert [one.bodies()(k) for k in range(1000)] == [two.bodies()(k) for k in range(1000)]


def test_another_seed_makes_other_messages() -> None:
    one, two = Workload(1000, 16, 64, seed=7), Workload(1000, 16, 64, seed=8)
    assert one.order() != two.order()
    assert one.bodies()(5) != two.bodies()(5)


@pytest.mark.parametrize("body_bytes", [8, 9, 256, 5000])
def test_bodies_have_the_size_that_was_asked_for_and_no_two_are_equal(body_bytes: int) -> None:
    body = Workload(10_000, 4, body_bytes, seed=1).bodies()
    made = {body(number) for number in range(10_000)}
    assert len(made) == 10_000
    assert {len(each) for each in made} == {body_bytes}


def test_every_session_is_within_the_number_that_was_asked_for() -> None:
    order = Workload(5000, 16, 64, seed=3).order()
    assert len(order) == 5000
    assert set(order) == set(range(16))


@pytest.mark.parametrize(
    ("messages", "sessions", "body_bytes", "named"),
    [
        (0, 1, 256, "--messages 0"),
        (-5, 1, 256, "--messages -5"),
        (10, 0, 256, "--sessions 0"),
        (10, 1, 7, "--body-bytes 7"),
        (10, 1, 2 << 20, "--body-bytes 2097152"),
        (10**12, 1, 256, "--messages 1000000000000"),
    ],
)
def test_numbers_that_cannot_be_run_are_refused_by_their_option(
    messages: int, sessions: int, body_bytes: int, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        Workload(messages, sessions, body_bytes, seed=1)


def test_the_projects_own_conversation_is_read_whole() -> None:
    lines = read_conversation(CONVERSATION)
    assert 60 <= len(lines) <= 100
    assert len({line.session for line in lines}) == 3
    assert len({line.sender for line in lines}) > 5
    assert any(not line.text for line in lines), "an empty text is a message, too"
    assert any(not line.text.isascii() for line in lines)


def test_a_gzipped_conversation_is_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "conversation.jsonl.gz"
    packed.write_bytes(gzip.compress(CONVERSATION.read_bytes()))
    assert read_conversation(packed) == read_conversation(CONVERSATION)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8|not JSON"),
        (b"[1, 2]", "an object with session, sender, sent_at, text is wanted"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "text"}).encode(), "'text' is missing"),
        (json.dumps(GOOD | {"text": 5}).encode(), "'text' is a string, not int"),
        (json.dumps(GOOD | {"sent_at": "noon"}).encode(), "'sent_at' is milliseconds"),
        (json.dumps(GOOD | {"sent_at": True}).encode(), "'sent_at' is milliseconds"),
        (json.dumps(GOOD | {"session": ""}).encode(), "session's id is empty"),
        (json.dumps(GOOD | {"session": 4}).encode(), "session's id is a str"),
        (json.dumps(GOOD | {"sender": "a\nb"}).encode(), "control character"),
        (json.dumps(GOOD | {"text": "\ud800"}).encode(), "lone surrogate"),
        (json.dumps(GOOD | {"text": "x" * (1 << 20) + "y"}).encode(), "1048577 bytes"),
    ],
)
def test_a_bad_line_is_named_by_its_number(bad: bytes, why: str) -> None:
    good = json.dumps(GOOD).encode()
    with pytest.raises(UsageError, match=rf"^talk\.jsonl line 3: .*({why})") as caught:
        list(parse([good, b"\n", bad, good], "talk.jsonl"))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_conversation(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_conversation(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(UsageError, match="holds no message"):
        read_conversation(empty)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(CONVERSATION.read_bytes())[:-40])
    with pytest.raises(UsageError, match="cannot be read"):
        read_conversation(torn)


def lines_of(*texts: str) -> list[Line]:
    return [Line("room", who, 0, text) for who, _, text in (each.partition(":") for each in texts)]


def read_of(*texts: str) -> list[tuple[str, bytes]]:
    return [(who, text.encode()) for who, _, text in (each.partition(":") for each in texts)]


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (("a:one", "b:x", "a:two", "a:two"), (0, 0, 0)),
        (("b:x", "a:one", "a:two", "a:two"), (0, 0, 0)),
        (("a:one", "b:x", "a:two"), (1, 0, 0)),
        (("a:one", "b:x", "a:two", "a:two", "a:two"), (0, 1, 0)),
        (("a:one", "b:x", "b:x", "a:two", "a:two"), (0, 1, 0)),
        (("a:two", "b:x", "a:one", "a:two"), (0, 0, 2)),
        (("a:one", "b:y", "a:two", "a:two"), (1, 1, 0)),
        (("a:one", "c:x", "a:two", "a:two"), (1, 1, 0)),
    ],
)
def test_the_comparison_with_the_file_finds_each_anomaly(read: tuple[str, ...], found: tuple[int, int, int]) -> None:
    verdict = compare_with_file("room", lines_of("a:one", "b:x", "a:two", "a:two"), read_of(*read))
    assert (verdict.lost, verdict.duplicated, verdict.reordered) == found
