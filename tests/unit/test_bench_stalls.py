"""How long a fault was felt: from the fault to the first ack of a message that was handed over afterwards; and who acked it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from trilogue.actors.protocol.ids import partition_of
from trilogue.bench.load import generator
from trilogue.bench.load.job import Ending, Fault, Job, Outages, Report
from trilogue.bench.load.pouring import Pulse
from trilogue.bench.load.stalls import BEFORE_MS, MS, Moments, Watch, outages
from trilogue.bench.load.steady import Steady, sessions_of
from trilogue.client import Ack, Message

# (handed over, acked, epoch) in milliseconds; a message goes to partition 0, the next one to partition 1 if there are two.
Told = Sequence[tuple[float, float, int]]


def recorded(told: Told, partitions: int = 1) -> tuple[Moments, Watch]:
    moments, watch = Moments(list(range(partitions))), Watch(partitions)
    for handed, acked, epoch in told:
        number = moments.hand_over(int(handed * MS))
        moments.acked_ns[number], moments.epochs[number] = int(acked * MS), epoch
    for number in sorted(range(len(told)), key=lambda k: told[k][1]):
        handed, acked, epoch = told[number]
        if acked:
            watch.came(moments.partition(number), int(handed * MS), int(acked * MS), epoch)
    return moments, watch


def kill(before: float, after: float | None = None, *partitions: int, epoch: int = 0, paused: bool = False) -> Fault:
    after_ns = int((before if after is None else after) * MS)
    return Fault(before_ns=int(before * MS), after_ns=after_ns, partitions=list(partitions) or [0], epoch=epoch, paused=paused)


def felt(told: Told, *faults: Fault, partitions: int = 1) -> Outages:
    return outages(faults, *recorded(told, partitions))


def stalls_ms(found: Outages) -> list[float]:
    return [one.stall_ns / MS for one in found.felt]


def test_a_stall_ends_with_the_first_ack_of_a_message_that_was_handed_over_after_the_fault() -> None:
    told = [(1000, 1001, 1), (1009, 1300, 2), (1011, 1500, 2), (1012, 1450, 2), (1460, 1461, 2)]
    found = felt(told, kill(1010, epoch=1))
    assert stalls_ms(found) == [440], "neither the message before the kill, nor the first one after it, but the first ack"
    assert found.felt[0].epoch == 2
    assert found.stale == 0


def test_the_doubts_of_the_clock_lengthen_a_stall() -> None:
    """The signal was sent at some moment between 1010 and 1012: a message of 1011 may have been acked before it."""
    told = [(1011, 1011.5, 1), (1013, 1200, 2)]
    assert stalls_ms(felt(told, kill(1010, 1012, epoch=1))) == [190]


def test_only_the_partitions_that_the_process_served_count_and_of_several_the_last_one() -> None:
    told = [(1000, 1001, 1), (1000, 1001, 7), (1011, 1200, 2), (1012, 1013, 7), (1014, 1300, 2), (1015, 1320, 7)]
    assert stalls_ms(felt(told, kill(1010, None, 0), partitions=2)) == [190]
    assert stalls_ms(felt(told, kill(1010, None, 1), partitions=2)) == [3]
    assert stalls_ms(felt(told, kill(1010, None, 0, 1), partitions=2)) == [190]


def test_each_fault_has_its_own_stall() -> None:
    told = [(1000, 1001, 1), (1011, 1100, 2), (1990, 1995, 2), (2020, 2400, 3), (2500, 2501, 3)]
    assert stalls_ms(felt(told, kill(1010, epoch=1), kill(2010, epoch=2))) == [90, 390]


def test_a_fault_after_which_nothing_was_acked_is_an_error_and_never_a_short_stall() -> None:
    with pytest.raises(ValueError, match="fault 2: partition 0 acked nothing"):
        felt([(1000, 1001, 1), (1011, 1100, 2), (2020, 0, 0)], kill(1010), kill(2010))
    with pytest.raises(ValueError, match="fault 1: partition 1 acked nothing"):
        felt([(1011, 1100, 2)], kill(1010, None, 0, 1), partitions=2)


def test_a_message_that_was_handed_over_at_the_very_moment_does_not_count() -> None:
    assert stalls_ms(felt([(1010, 1011, 1), (1020, 1200, 2)], kill(1010, epoch=1))) == [190]


def test_the_longest_gap_is_within_one_partition() -> None:
    told = [(0, 10, 1), (0, 11, 1), (0, 20, 1), (0, 400, 1), (0, 410, 1), (0, 420, 1)]
    assert felt(told, partitions=2).longest_gap_ms == 390
    assert felt(told).longest_gap_ms == 380


def test_the_epochs_of_each_partition_are_named_once() -> None:
    told = [(1, 2, 3), (1, 2, 8), (3, 4, 3), (3, 4, 8), (5, 6, 5), (5, 6, 9)]
    assert felt(told, partitions=2).epochs == [[3, 5], [8, 9]]


def test_an_ack_of_a_lower_epoch_than_one_before_is_stale_g9() -> None:
    """A writer that was paused, lost its partition and wakes up must get nothing acked."""
    told = [(1000, 1001, 4), (1011, 1200, 5), (1012, 4011, 4), (1013, 4012, 5)]
    found = felt(told, kill(1010, epoch=4, paused=True))
    assert found.stale == 1
    assert "an ack of epoch 4 came after one of epoch 5" in found.stale_examples[0]


def test_an_ack_by_a_writer_that_had_been_killed_before_the_hand_over_is_stale() -> None:
    """Either somebody else was killed than the writer, or the dead ack: in both cases the stall is not what it seems."""
    told = [(1000, 1001, 4), (1011, 1012, 4), (1013, 1200, 5)]
    assert felt(told, kill(1010, epoch=4)).stale == 1
    assert felt(told, kill(1010, epoch=0)).stale == 0, "a store has no epoch"
    assert felt(told, kill(1010, epoch=4, paused=True)).stale == 0, "one that was paused may go on if nobody took over"


def test_the_strip_counts_the_acks_of_the_served_partitions_and_ends_where_the_next_fault_begins() -> None:
    told = [
        (1000, 1005, 1),
        (1000, 1006, 1),
        (1011, 1035, 2),
        (1012, 1036, 2),
        (1013, 1037, 2),
        (1900, 1901, 2),
        (2001, 2002, 2),
    ]
    first, second = felt(told, kill(1010, epoch=1), kill(1110)).felt
    zero = int(BEFORE_MS / 10)
    assert (first.acks[zero - 1], first.acks[zero], first.acks[zero + 2], sum(first.acks)) == (2, 0, 3, 5)
    assert len(first.acks) == zero + 10
    assert second.acks[zero - 8] == 3
    only = felt([(1000, 1005, 1), (1000, 1006, 1), (1011, 1035, 2), (1012, 3000, 2)], kill(1010), partitions=2).felt[0]
    assert sum(only.acks) == 2


# ------------------------------------------------------------------ the load


def test_every_partition_gets_its_sessions_in_turn() -> None:
    names = sessions_of("p/", 10, 4)
    assert len(set(names)) == len(names) == 12
    assert [partition_of(name, 4) for name in names] == [0, 1, 2, 3] * 3


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class FakeSystem:
    """Stores what clients hand over, and acks in the loop's next turn; what `stalled` keeps back is acked when it is let go."""

    def __init__(self) -> None:
        self.sessions: dict[str, list[Message]] = {}
        self.epoch = 1
        self.stalled: list[tuple[asyncio.Future[Ack], Ack]] | None = None

    def client(self, **_: object) -> FakeClient:
        return FakeClient(self)


class FakeClient:
    def __init__(self, system: FakeSystem) -> None:
        self.system, self.waiting = system, 0

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def post(self, session: str, body: bytes) -> asyncio.Future[Ack]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ack] = loop.create_future()
        self.waiting += 1
        future.add_done_callback(self.settled)
        system, history = self.system, self.system.sessions.setdefault(session, [])
        seq = len(history) + 1
        history.append(Message(session, seq, "bench", "bench/id", seq, body, 0, 0))
        ack = Ack(session, seq, "bench", "bench/id", seq, 3, system.epoch, False)
        if system.stalled is not None:
            system.stalled.append((future, ack))
        else:
            loop.call_soon(future.set_result, ack)
        return future

    def settled(self, _: object) -> None:
        self.waiting -= 1

    async def flush(self) -> None:
        await until(lambda: not self.waiting)
        await asyncio.sleep(0)

    async def history(self, session: str, *, after: int, limit: int) -> list[Message]:
        return self.system.sessions[session][after : after + limit]


JOB = Job(
    kind="failover",
    address="a",
    prefix="p/",
    copies=3,
    seed=1,
    sessions=4,
    body_bytes=32,
    messages_per_s=2000,
    in_flight_max=300,
)


def carried_on(monkeypatch: pytest.MonkeyPatch, system: FakeSystem) -> Report:
    """A short failover against the fake system: a stall of 100 ms, then another epoch."""

    async def run() -> Report:
        ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(generator, "Client", system.client)
        load = Steady(JOB, Pulse())
        work = asyncio.create_task(generator.carry_on(JOB, Pulse(), load, ending))
        await until(lambda: load.messages >= 50)
        before_ns = time.monotonic_ns()
        system.stalled, held = [], load.messages
        await until(lambda: load.messages >= held + 100 and time.monotonic_ns() - before_ns > 100 * MS)
        let_go, system.stalled, system.epoch = system.stalled, None, 2
        for future, ack in let_go:
            future.set_result(ack._replace(epoch=2))
        await until(lambda: load.watch.acked_upto_ns[0] > before_ns + 120 * MS)
        ending.set_result(Ending(faults=[Fault(before_ns=before_ns, after_ns=before_ns, partitions=[0], epoch=1)]))
        return await work

    return asyncio.run(run())


def test_a_load_that_goes_on_through_a_stall_measures_it_and_reads_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    report = carried_on(monkeypatch, FakeSystem())
    assert report.outages is not None
    assert report.found == report.found.model_copy(update={"lost": 0, "duplicated": 0, "reordered": 0, "examples": []})
    (one,) = report.outages.felt
    assert 100 <= one.stall_ns / MS < 5000
    assert one.epoch == 2
    assert report.outages.epochs == [[1, 2]]
    assert report.outages.stale == 0
    assert report.outages.longest_gap_ms >= 95
    assert report.messages > 150


@pytest.mark.parametrize(
    ("anomaly", "change"),
    [
        ("lost", lambda history: history[:-1]),
        ("duplicated", lambda history: [*history, history[0]._replace(seq=len(history) + 1)]),
        ("reordered", lambda history: [history[1]._replace(seq=1), history[0]._replace(seq=2), *history[2:]]),
    ],
)
def test_a_system_that_loses_doubles_or_reorders_a_message_is_found_out_g2_g4_g5(
    monkeypatch: pytest.MonkeyPatch, anomaly: str, change: object
) -> None:
    class Broken(FakeClient):
        async def history(self, session: str, *, after: int, limit: int) -> list[Message]:
            whole = self.system.sessions[session]
            return (change(whole) if session == "p/session-0" else whole)[after : after + limit]  # type: ignore[operator]

    system = FakeSystem()
    system.client = lambda **_: Broken(system)  # type: ignore[method-assign]
    report = carried_on(monkeypatch, system)
    assert getattr(report.found, anomaly) >= 1
    assert report.found.examples


def test_what_falls_due_while_too_much_is_in_flight_is_left_out() -> None:
    async def run() -> tuple[int, int]:
        system = FakeSystem()
        system.stalled = []
        client, load = FakeClient(system), Steady(JOB, Pulse())
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.4
        await load.send(client, lambda: loop.time() > until)  # type: ignore[arg-type]
        before, system.stalled = load.messages, None
        client.waiting = 0
        until = loop.time() + 0.02
        await load.send(client, lambda: loop.time() > until)  # type: ignore[arg-type]
        return before, load.messages

    before, after = asyncio.run(run())
    assert before == JOB.in_flight_max
    assert 0 < after - before < 300, "800 messages fell due before: they are not made up for"


def test_a_message_that_was_not_acked_is_an_error() -> None:
    async def run() -> None:
        system = FakeSystem()
        load = Steady(JOB, Pulse())
        system.stalled = []
        await load.send(FakeClient(system), lambda: load.messages > 10)  # type: ignore[arg-type]
        system.stalled[0][0].set_exception(RuntimeError("conflict"))
        await asyncio.sleep(0)
        load.all_acks()

    with pytest.raises(generator.Unavailable, match=r"messages were not acked: RuntimeError: conflict"):
        asyncio.run(run())
