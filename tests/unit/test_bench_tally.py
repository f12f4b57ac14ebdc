"""What a benchmark's readers got: whatever is missing, repeated, out of order or altered is counted (G7)."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from trilogue.bench.load.fanout import judge_acks
from trilogue.bench.load.tally import Expected, Tally, moment_of, stamped
from trilogue.bench.load.workload import Workload
from trilogue.bench.report.schema import CatchupResult, CpuUs, DeliveryCpuUs, FloorFigures, LatencyMs, ReadingResult
from trilogue.bench.report.table import headline
from trilogue.client import Ack

TOTAL = 50
BODY = Workload(TOTAL, 1, 40, 1).bodies()


class Got(NamedTuple):
    seq: int
    body: bytes


def got(*seqs: int) -> list[Got]:
    return [Got(seq, stamped(BODY(seq - 1), 1_000 + seq)) for seq in seqs]


def tally(*batches: list[Got]) -> Tally:
    one = Tally(Expected(BODY, TOTAL))
    for batch in batches:
        one.take(batch)
    return one


def test_a_body_carries_the_moment_of_its_hand_over_and_is_its_own_otherwise() -> None:
    body = stamped(BODY(7), 123_456_789_012)
    assert (moment_of(body), len(body), body[:8]) == (123_456_789_012, 40, BODY(7)[:8])


def test_a_reader_that_got_everything_once_has_nothing_against_it_G7() -> None:
    one = tally(got(*range(1, 8)), got(8), got(*range(9, TOTAL + 1)))
    assert (one.missing, one.repeated, one.wrong, one.done, one.at) == (0, 0, 0, True, TOTAL)


@pytest.mark.parametrize(
    ("batches", "found"),
    [
        ([got(*range(1, TOTAL))], (1, 0, 0)),
        ([got(1, 2), got(2, 3), got(*range(4, TOTAL + 1))], (0, 1, 0)),
        ([got(1, 3, 2), got(*range(4, TOTAL + 1))], (0, 0, 2)),
        ([got(1, 2), got(*range(4, TOTAL + 1))], (1, 0, 1)),
        ([[*got(1, 2), Got(3, stamped(BODY(3), 1))], got(*range(4, TOTAL + 1))], (0, 0, 1)),
        ([[*got(1, 2), Got(3, stamped(BODY(2), 1)[:-1])], got(*range(4, TOTAL + 1))], (0, 0, 1)),
        ([], (TOTAL, 0, 0)),
    ],
)
def test_each_anomaly_of_a_reader_is_counted_G7(batches: list[list[Got]], found: tuple[int, int, int]) -> None:
    one = tally(*batches)
    assert (one.missing, one.repeated, one.wrong) == found


def ack(seq: int, **changed: object) -> Ack:
    return Ack("s", seq, "a", "a/1", seq, 3, 1, False)._replace(**changed)  # type: ignore[arg-type]


def test_acks_of_a_session_with_one_writer_follow_each_other() -> None:
    assert judge_acks([ack(1), ack(2), ack(3)], "s", 3).clean
    assert judge_acks([ack(1), ack(3), ack(2)], "s", 3).reordered == 2
    assert judge_acks([ack(1), ack(2, copies=2)], "s", 3).lost == 1
    assert judge_acks([ack(1, session="t")], "s", 3).lost == 1


def reading(**changed: object) -> dict[str, object]:
    latency = LatencyMs(p50=1, p99=2, p999=3, max=4)
    return {
        "command": "fanout", "commit": "c", "machine": {}, "settings": {}, "messages": 10, "seconds": 1.0,
        "messages_per_s": 10.0, "latency_ms": latency, "lost": 0, "duplicated": 0, "reordered": 0,
        "cpu_us_per_message": CpuUs(client=1, session=1, store=1), "rows": [],
        "floor": FloorFigures(latency_ms_p50=1, messages_per_s=1), "readers": 1000, "processes": 10, "deliveries": 10_000,
        "deliveries_per_s": 123_456.0, "lag_ms": latency, "behind_messages_max": 7,
        "cpu_us_per_delivery": DeliveryCpuUs(writer=1, readers=1, session=1, store=None), **changed,
    }  # fmt: skip


def test_the_answer_of_a_reading_names_the_rate_and_what_was_found() -> None:
    text = headline(ReadingResult.model_validate(reading())).plain
    assert text.startswith("123,456 deliveries/s to 1,000 readers")
    assert "10,000 deliveries checked: lost 0" in text
    behind = reading(command="catchup", writer_alone_ms=LatencyMs(p50=1, p99=1, p999=1, max=1))
    assert "p99 is 2.00 × what it is without" in headline(CatchupResult.model_validate(behind)).plain
    assert headline(ReadingResult.model_validate(reading(lost=1))).plain.startswith("FAILED")
