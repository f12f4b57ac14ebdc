"""The judge behind `trilogue verify` passes what is right and names each kind of wrong (G1-G7)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import pytest

from trilogue.actors.protocol.frames import HEADER_BYTES, encode_frame
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.messages import ALIAS, FLOOR, GONE, KEYED, RUN, SKIP, TRIM, pack_records
from trilogue.cluster.commands.judge import PROBLEMS_KEPT_MAX, Findings, PartitionJudge

LOG, PARTITIONS, FRAME_BYTES_MAX = 7, 4, 1 << 20
STORES = ("store-1", "store-2", "store-3")
SESSION = "room"
PARTITION = partition_of(SESSION, PARTITIONS)
ALICE = "alice/" + "a" * 32
BOB = "bob/" + "b" * 32


def run(first_n: int, first_seq: int, count: int = 1, sender_id: str = ALICE, session: str = SESSION) -> list[Any]:
    return [RUN, session, sender_id, first_n, first_seq, 1, [1] * count, [b"x"] * count]


def skip(n: int, sender_id: str = ALICE) -> list[Any]:
    return [SKIP, SESSION, sender_id, n, 1]


def chain(frames_records: Sequence[list[Any]], **changes: Any) -> list[bytes]:
    """A correct chain of frames with these records; `changes` apply to the last frame alone."""
    frames: list[bytes] = []
    crc = 0
    for index, records in enumerate(frames_records, 1):
        fields: dict[str, Any] = {
            "log_id": LOG,
            "partition": PARTITION,
            "epoch": 1,
            "index": index,
            "prev_crc": crc,
            "count": len(records),
            "committed_upto": index - 1,
            "payload": pack_records(records),
        }
        if index == len(frames_records):
            fields |= changes
        frame, crc = encode_frame(**fields)
        frames.append(frame)
    return frames


def judged(*copies: list[bytes], log_id: int | None = LOG) -> Findings:
    """The findings on these copies, one a store."""
    findings = Findings()
    stores = STORES[: len(copies)]
    judge = PartitionJudge(PARTITION, PARTITIONS, dict.fromkeys(stores, 1), log_id, FRAME_BYTES_MAX, findings)
    for store, frames in zip(stores, copies, strict=True):
        judge.take(store, frames)
    judge.finish(max(map(len, copies)))
    return findings


def kinds(findings: Findings) -> list[str]:
    return [problem.kind for problem in findings.problems]


RIGHT = [[run(1, 1, 3)], [run(1, 4, 2, BOB), run(4, 6)], [skip(5)], [run(6, 7), skip(3, BOB)], [run(4, 8, 2, BOB)]]


def test_three_equal_right_copies_are_right_and_counted_once() -> None:
    good = chain(RIGHT)
    findings = judged(good, good, good)
    assert kinds(findings) == []
    assert (findings.messages, findings.skips, findings.sessions, findings.senders) == (9, 2, 1, 2)
    assert findings.frames == 3 * len(good)
    assert findings.bytes == 3 * sum(map(len, good))


def test_it_does_not_matter_in_which_pieces_the_stores_hand_in() -> None:
    good, findings = chain(RIGHT), Findings()
    judge = PartitionJudge(PARTITION, PARTITIONS, dict.fromkeys(STORES, 1), LOG, FRAME_BYTES_MAX, findings)
    for start, end in ((0, 1), (1, 4), (4, 5)):
        for store in STORES:
            assert judge.next_index(store) == start + 1
            judge.take(store, good[start:end])
    judge.finish(len(good))
    assert kinds(findings) == []
    assert findings.messages == 9


def test_a_store_that_is_still_being_filled_is_judged_from_where_it_begins() -> None:
    good, other, findings = chain(RIGHT), chain([*RIGHT[:-1], [run(4, 8, 3, BOB)]]), Findings()
    judge = PartitionJudge(PARTITION, PARTITIONS, {"store-1": 1, "store-4": 3}, LOG, FRAME_BYTES_MAX, findings)
    assert judge.next_index("store-4") == 3
    judge.take("store-1", good)
    judge.take("store-4", other[2:])
    judge.finish(len(good))
    assert kinds(findings) == ["disagree"]
    assert findings.messages == 9
    assert findings.frames == len(good) + 3


@pytest.mark.parametrize("position", [0, 20, HEADER_BYTES - 1, HEADER_BYTES, -1])
def test_a_flipped_byte_is_damage_and_the_other_copies_still_speak(position: int) -> None:
    good = chain(RIGHT)
    bad = bytearray(good[1])
    bad[position] ^= 0x40
    findings = judged([good[0], bytes(bad), *good[2:]], good, good)
    assert kinds(findings) == ["damaged"]
    assert findings.problems[0].where == f"store-1 partition {PARTITION} frame 2"
    assert findings.messages == 9


def test_a_frame_that_no_store_can_read_is_lost_and_its_numbers_are_missed() -> None:
    good = chain(RIGHT)
    bad = [good[0], good[1][:-1] + b"!", *good[2:]]
    found = kinds(judged(bad, bad))
    assert found.count("damaged") == 2
    assert found.count("lost") == 1
    assert "seq-gap" in found
    assert "n-gap" in found


def test_a_store_that_says_itself_that_a_frame_is_damaged_is_believed() -> None:
    good, findings = chain(RIGHT), Findings()
    judge = PartitionJudge(PARTITION, PARTITIONS, dict.fromkeys(STORES[:2], 1), LOG, FRAME_BYTES_MAX, findings)
    judge.take("store-1", good)
    judge.take("store-2", good[:2])
    judge.unreadable("store-2", "frame 3 fails its CRC")
    judge.take("store-2", good[3:])
    judge.finish(len(good))
    assert kinds(findings) == ["damaged"]


def test_a_frame_that_does_not_follow_the_one_before_breaks_the_chain() -> None:
    bad = chain(RIGHT, prev_crc=12345)
    assert kinds(judged(bad, bad)) == ["chain", "chain"]


def test_a_stale_frame_of_another_history_breaks_the_chain() -> None:
    good, other = chain(RIGHT), chain([[run(1, 1, 3)], [run(1, 4, 2, BOB), run(4, 6, 1, ALICE)], [run(5, 7)]])
    found = kinds(judged([*good[:2], other[2], *good[3:]]))
    assert "chain" in found


@pytest.mark.parametrize("change", [{"partition": PARTITION + 1}, {"log_id": LOG + 1}, {"index": 9}])
def test_a_frame_that_belongs_elsewhere_is_misplaced(change: dict[str, Any]) -> None:
    assert kinds(judged(chain(RIGHT, **change))) == ["misplaced"]


def test_without_a_known_log_id_the_first_frame_says_which_log_it_is() -> None:
    assert kinds(judged(chain(RIGHT), log_id=None)) == []
    assert kinds(judged(chain(RIGHT, log_id=LOG + 1), log_id=None)) == ["misplaced"]


def test_an_epoch_that_falls_is_wrong() -> None:
    assert kinds(judged(chain(RIGHT, epoch=0))) == ["epoch"]


def test_a_frame_cannot_call_itself_committed() -> None:
    assert kinds(judged(chain(RIGHT, committed_upto=len(RIGHT)))) == ["committed"]


def test_stores_that_hold_different_frames_at_one_index_disagree() -> None:
    good, other = chain(RIGHT), chain([*RIGHT[:-1], [run(4, 8, 3, BOB)]])
    findings = judged(good, other, good)
    assert kinds(findings) == ["disagree"]
    assert f"partition {PARTITION} frame {len(RIGHT)}" in findings.problems[0].where


def test_a_copy_that_ends_early_is_missing_frames() -> None:
    good = chain(RIGHT)
    findings = judged(good, good[:-2], good)
    assert kinds(findings) == ["missing"]
    assert findings.problems[0].where.startswith("store-2")


def test_a_count_that_does_not_fit_the_records_is_wrong() -> None:
    assert kinds(judged(chain(RIGHT, count=99))) == ["record"]


def test_a_payload_that_is_no_array_of_records_is_wrong() -> None:
    assert "record" in kinds(judged(chain(RIGHT, payload=b"\xc1")))


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        ([[run(1, 1)], [run(2, 3)]], "seq-gap"),
        ([[run(1, 2)]], "seq-gap"),
        ([[run(1, 1, 2)], [run(3, 2)]], "seq-duplicate"),
        ([[run(1, 1)], [run(3, 2)]], "n-gap"),
        ([[run(2, 1)]], "n-gap"),
        ([[run(1, 1, 2)], [run(2, 3)]], "n-duplicate"),
        ([[run(1, 1)], [skip(1)]], "n-duplicate"),
        ([[run(1, 1)], [skip(3)]], "n-gap"),
    ],
)
def test_numbers_that_are_not_dense_are_named(records: list[list[Any]], kind: str) -> None:
    """G3, G4, G5: dense seqs, dense n, each (sender_id, n) once."""
    assert kinds(judged(chain(records))) == [kind]


def test_the_same_n_of_two_senders_or_in_two_sessions_is_no_duplicate() -> None:
    other = next(name for name in map(str, range(1000)) if partition_of(name, PARTITIONS) == PARTITION)
    records = [[run(1, 1), run(1, 2, 1, BOB), run(1, 1, 1, ALICE, other)]]
    assert kinds(judged(chain(records))) == []


def test_a_session_in_a_partition_that_is_not_its_own_is_misplaced() -> None:
    other = next(name for name in map(str, range(1000)) if partition_of(name, PARTITIONS) != PARTITION)
    assert kinds(judged(chain([[run(1, 1, 1, ALICE, other)]]))) == ["misplaced"]


def test_problems_are_counted_without_end_and_kept_up_to_a_bound() -> None:
    findings = Findings()
    for number in range(PROBLEMS_KEPT_MAX + 5):
        findings.add("damaged", str(number), "x")
    assert findings.problem_count == PROBLEMS_KEPT_MAX + 5
    assert len(findings.problems) == PROBLEMS_KEPT_MAX


# ---------------------------------------------------------------------- idempotency keys

DAY_US = 24 * 3600 * 1_000_000


def keyed(n: int, seq: int, key: str, at_us: int = 1, body: bytes = b"x") -> list[Any]:
    return [KEYED, SESSION, ALICE, n, seq, at_us, [1], [body], [key]]


def alias(n: int, seq: int, at_us: int = 1, body: bytes = b"x") -> list[Any]:
    return [ALIAS, SESSION, ALICE, n, seq, at_us, blake2b(body, digest_size=16).digest()]


def test_keys_that_come_again_after_their_time_and_aliases_within_it_are_right_G5() -> None:
    records = [keyed(1, 1, "k"), keyed(2, 2, "l"), alias(3, 1, DAY_US), keyed(4, 3, "k", DAY_US + 1), alias(5, 3, 2 * DAY_US)]
    findings = judged(chain([records]))
    assert kinds(findings) == []
    assert (findings.messages, findings.aliases, findings.skips) == (3, 2, 0)


@pytest.mark.parametrize(
    ("kind", "records"),
    [
        ("key-duplicate", [keyed(1, 1, "k"), keyed(2, 2, "k", DAY_US)]),
        ("alias", [keyed(1, 1, "k"), alias(2, 1, DAY_US + 1)]),
        ("alias", [keyed(1, 1, "k"), alias(2, 1, body=b"another")]),
        ("alias", [run(1, 1), alias(2, 1)]),
        ("alias", [alias(1, 7)]),
        ("n-gap", [keyed(1, 1, "k"), alias(3, 1)]),
        ("n-duplicate", [keyed(1, 1, "k"), alias(1, 1)]),
        ("seq-gap", [keyed(1, 1, "k"), keyed(2, 3, "l")]),
    ],
)
def test_key_or_alias_that_is_not_as_promised_is_found_G5(kind: str, records: list[Any]) -> None:
    assert kinds(judged(chain([records]))) == [kind]


@pytest.mark.parametrize(
    ("behind", "found"), [([TRIM, SESSION, 4, 9], []), ([TRIM, SESSION, 3, 9], ["gone"]), ([FLOOR, 1, 9], [])]
)
def test_what_is_gone_may_be_named_behind_the_frames_that_are_judged_G8(behind: list[Any], found: list[str]) -> None:
    gone = [GONE, SESSION, ALICE, 1, 1, 1, 3, []]
    judged_frame, *more = chain([[gone], [run(4, 4)], [behind, run(9, 9)]])
    findings = Findings()
    judge = PartitionJudge(PARTITION, PARTITIONS, {"store-1": 1}, LOG, FRAME_BYTES_MAX, findings)
    judge.take("store-1", [judged_frame])
    assert judge.misses_trims
    judge.take_trims("store-1", more)
    judge.finish(1)
    assert kinds(findings) == found
    assert findings.messages == 0, "what lies behind is not judged"
