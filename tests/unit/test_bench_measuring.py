"""The benchmarks' clocks, counters and results: figures that stand for what was measured, under keys that stay."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from rich.console import Console

from trilogue.actors.protocol.errors import DirectoryUnusable, Overloaded, Unavailable, UsageError
from trilogue.bench.driver import LoadProcess
from trilogue.bench.floor import floor
from trilogue.bench.load import metrics
from trilogue.bench.load.generator import Script
from trilogue.bench.load.job import Job
from trilogue.bench.load.metrics import HIGHEST_US, CpuMeter, Histogram
from trilogue.bench.load.pouring import Acks, Item, Pulse, drip, pour
from trilogue.bench.load.readback import read_all_back
from trilogue.bench.load.verification import Verdict
from trilogue.bench.report import machine, plots
from trilogue.bench.report import table as report
from trilogue.bench.report.schema import CpuUs, FloorFigures, LatencyMs, Result, Row
from trilogue.client import Ack, Client, Message

KEYS = [
    "command", "commit", "machine", "settings", "messages", "seconds", "messages_per_s", "latency_ms", "lost", "duplicated",
    "reordered", "cpu_us_per_message", "floor", "rows",
]  # fmt: skip


def result(**changed: Any) -> Result:
    values: dict[str, Any] = {
        "command": "throughput",
        "commit": "v0",
        "machine": machine.machine_facts(None),
        "settings": {"sessions": 64, "seed": 1},
        "messages": 1000,
        "seconds": 0.01,
        "messages_per_s": 100_000.0,
        "latency_ms": LatencyMs(p50=1, p99=2, p999=3, max=4),
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "cpu_us_per_message": CpuUs(client=4, session=3, store=2),
        "floor": FloorFigures(latency_ms_p50=0.3, messages_per_s=400_000),
        "rows": [],
    }
    return Result(**(values | changed))


def rows(*cpu: CpuUs) -> list[Row]:
    values = dict(result(command="scale"))
    del values["rows"]
    return [Row(**(values | {"partitions": 1 << k, "nodes": 1, "cpu_us_per_message": one})) for k, one in enumerate(cpu)]


def shown(of: Result, *examples: str) -> str:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report.show(of, console, examples)
    console.file.close()
    return console.export_text()


def test_the_keys_of_the_json_are_the_contracts(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report.write_json(result(rows=rows(CpuUs(client=1, session=1, store=1))), path)
    written = json.loads(path.read_text())
    assert list(written) == KEYS
    assert list(written["latency_ms"]) == ["p50", "p99", "p999", "max"]
    assert list(written["cpu_us_per_message"]) == ["client", "session", "store"]
    assert list(written["floor"]) == ["latency_ms_p50", "messages_per_s"]
    assert set(written["rows"][0]) == {*KEYS, "partitions", "nodes"} - {"rows"}


def test_a_json_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        report.write_json(result(), tmp_path / "nowhere" / "result.json")


def test_the_table_leads_with_the_answer_and_its_verification() -> None:
    text = shown(result())
    assert text.splitlines()[0] == (
        "100,000 messages/s, 0.25 × the floor · 1,000 messages read back: lost 0, duplicated 0, reordered 0"
    )
    assert "client 4.00 µs, session 3.00 µs, store 2.00 µs" in text
    assert "seed 1" in text


def test_one_of_a_thing_is_not_called_several_and_a_short_run_is_not_said_to_take_no_time() -> None:
    settings = {"senders": 1, "sessions": 1, "offered_messages_per_s": 1000}
    text = shown(result(command="replay", messages=1, seconds=0.0019, settings=settings))
    assert "1 message of 1 sender in 1 session read back" in text
    assert "1 in 1.9 ms" in text
    assert "offered messages/s 1000" in text
    of = result(command="scale", rows=rows(CpuUs(client=4, session=3, store=3)))
    assert shown(of).startswith("100,000 messages/s over 1 partition ·")


def test_the_values_of_two_curves_do_not_cover_each_other() -> None:
    """Of the upper curve they stand above it, of the lower one below."""
    percentiles = (0.0, 50.0, 90.0, 99.0, 99.9)
    curves = {
        "low": ([(at, 15.0) for at in percentiles], plots.BLUE),
        "high": ([(at, 20.0) for at in percentiles], plots.AMBER),
    }
    axes = Figure().subplots()
    plots.draw_percentiles(axes, curves)
    placed = {(text.get_text(), text.xyann[1] > 0) for text in axes.texts if isinstance(text, Annotation)}
    assert placed == {("20 ms", True), ("15 ms", False)}


@pytest.mark.parametrize("anomaly", ["lost", "duplicated", "reordered"])
def test_a_run_that_found_something_says_so_first(anomaly: str) -> None:
    text = shown(result(**{anomaly: 2}), f"{anomaly}: room seq 7")
    assert text.startswith("FAILED: ")
    assert f"{anomaly} 2" in text
    assert f"{anomaly}: room seq 7" in text


def test_scale_says_how_the_processor_time_grows_and_fits_a_terminal() -> None:
    of = result(command="scale", rows=rows(CpuUs(client=4, session=3, store=3), CpuUs(client=5, session=3, store=3)))
    assert report.cpu_growth(of) == pytest.approx(0.1)
    text = shown(of)
    assert "+10.0% processor time a message from 1 to 2 partitions" in text
    assert "…" not in text


def test_processor_time_that_is_not_known_is_never_shown_as_zero() -> None:
    unknown = CpuUs(client=4, session=None, store=2)
    assert unknown.total is None
    assert "session not known" in shown(result(cpu_us_per_message=unknown))
    assert report.cpu_growth(result(rows=rows(unknown, unknown))) is None


def test_percentiles_are_of_what_was_recorded() -> None:
    histogram = Histogram()
    for microseconds in range(1, 1001):
        histogram.record_ns(microseconds * 1000)
    latency = histogram.latency_ms()
    assert latency.p50 == pytest.approx(0.5, rel=0.01)
    assert latency.p99 == pytest.approx(0.99, rel=0.01)
    assert latency.max == pytest.approx(1.0, rel=0.01)
    at = [percentile for percentile, _ in histogram.curve_ms()]
    assert at == sorted(at)
    assert {50.0, 99.0, 99.9} <= set(at)


def test_a_latency_beyond_the_range_counts_as_the_ranges_end() -> None:
    histogram = Histogram()
    histogram.record_ns(HIGHEST_US * 5000)
    histogram.record_ns(0)
    assert histogram.count == 2
    assert histogram.latency_ms().max == pytest.approx(HIGHEST_US / 1000, rel=0.01)


def test_histograms_cross_processes_and_add_up() -> None:
    one, two = Histogram(), Histogram()
    one.record_ns(1_000_000)
    two.record_ns(3_000_000)
    again = Histogram(one.encode())
    again.add(two)
    assert again.count == 2
    assert again.latency_ms().max == pytest.approx(3, rel=0.01)


def test_an_empty_histogram_has_no_curve() -> None:
    assert Histogram().curve_ms() == []
    assert Histogram().latency_ms() == LatencyMs(p50=0, p99=0, p999=0, max=0)


def test_processor_time_of_others_is_null_when_the_span_is_too_short_for_clock_ticks() -> None:
    meter = CpuMeter({"session": [os.getpid()]})
    meter.start()
    used = meter.stop()
    assert used["client"] is not None
    assert used["session"] is None


def test_processor_time_is_counted_by_role_and_null_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SPAN_S_MIN", 0.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    meter = CpuMeter({"session": [os.getpid(), os.getpid()], "store": [], "gone": [ended.pid]})
    meter.start()
    used = meter.stop()
    assert used["client"] is not None
    assert used["session"] is not None
    assert used["store"] is None
    assert used["gone"] is None


def test_the_floor_is_refused_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "file_system_of", lambda _: "tmpfs")
    with pytest.raises(DirectoryUnusable, match="tmpfs, where fdatasync means nothing"):
        floor.measure_floor(tmp_path)


def test_a_file_system_in_memory_is_recognised() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("no /dev/shm here")
    assert machine.file_system_of(shared) == "tmpfs"
    with pytest.raises(DirectoryUnusable):
        machine.refuse_memory(shared)


def test_the_floor_is_measured_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(floor, "refuse_memory", lambda _: None)
    one = floor.measure_floor(tmp_path, latency_s=0.01, rate_s=0.01)
    both = one.and_also(one)
    assert one.figures().latency_ms_p50 > 0
    assert one.figures().messages_per_s > 0
    assert both.messages == 2 * one.messages
    assert both.seconds == pytest.approx(2 * one.seconds)
    assert list(tmp_path.iterdir()) == []


class FakeClient:
    """Acks each message in the loop's next turn; refuses every tenth hand-over once, as a full outbox does."""

    def __init__(self) -> None:
        self.calls = self.drained = 0
        self.stored: list[Item] = []

    def post(self, session: str, body: bytes, *, sender: str | None = None) -> asyncio.Future[Ack]:
        self.calls += 1
        if self.calls % 10 == 0:
            raise Overloaded("the outbox is full: wait (drain)")
        self.stored.append((session, body, sender))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ack] = loop.create_future()
        loop.call_soon(future.set_result, Ack(session, len(self.stored), "me", "me", len(self.stored), 3, 1, False))
        return future

    async def send(self, session: str, body: bytes, *, sender: str | None = None) -> Ack:
        return await self.post(session, body, sender=sender)

    async def drain(self) -> None:
        self.drained += 1

    async def flush(self) -> None:
        await asyncio.sleep(0)


def items(count: int) -> Iterator[Item]:
    return ((f"s{k % 3}", str(k).encode(), None) for k in range(count))


def test_pouring_hands_over_every_item_once_and_in_order_though_the_outbox_is_full_at_times() -> None:
    fake, acks = FakeClient(), Acks(Pulse())
    futures = asyncio.run(pour(cast(Client, fake), items(1000), acks, sampled_every=16, burst_messages=64))
    assert fake.stored == list(items(1000))
    assert [future.result().seq for future in futures] == list(range(1, 1001))
    assert fake.drained > 100
    assert acks.pulse.done == 1000
    assert len(acks.waits_ns) == len(acks.moments_ns) == 63


def test_dripping_measures_every_message_one_after_the_other() -> None:
    fake, acks = FakeClient(), Acks(Pulse())
    futures = asyncio.run(drip(cast(Client, fake), items(9), acks))
    assert [future.result().seq for future in futures] == list(range(1, 10))
    assert acks.histogram().count == 9


class FakeReader:
    """Serves histories in pages of at most two messages, whatever is asked for."""

    def __init__(self, histories: dict[str, list[Message]]) -> None:
        self.histories = histories

    async def history(self, session: str, *, after: int, limit: int) -> list[Message]:
        assert limit > 2
        return [message for message in self.histories[session] if message.seq > after][:2]


def test_sessions_are_read_back_to_their_very_end_whatever_a_pages_size() -> None:
    histories = {f"s{k}": [Message(f"s{k}", seq, "me", "me", seq, b"", 0, 0) for seq in range(1, k + 1)] for k in range(40)}
    seen: dict[str, list[Message]] = {}

    def judge(session: str, history: Any) -> Verdict:
        seen[session] = list(history)
        return Verdict(lost=1)

    verdict = asyncio.run(read_all_back(cast(Client, FakeReader(histories)), list(histories), Pulse(), judge))
    assert seen == histories
    assert verdict.lost == 40


def test_a_script_sends_the_same_items_as_often_as_it_is_asked() -> None:
    job = Job(
        kind="throughput", address="127.0.0.1:1", prefix="p/", copies=3, seed=5, messages=90, warm_up_messages=10, sessions=4
    )
    script = Script(job)
    all_items = list(script.items(0, 100))
    assert script.messages == 100
    assert list(script.items(10, 100)) == all_items[10:]
    assert [script.item(number) for number in range(100)] == all_items
    numbers = script.by_session()
    assert sorted(number for of_it in numbers.values() for number in of_it) == list(range(100))
    assert all(all_items[number][0] == session for session, of_it in numbers.items() for number in of_it)


def test_the_load_generator_imports_no_ray() -> None:
    code = "import sys, trilogue.bench.load.generator; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_token_is_not_in_a_jobs_repr() -> None:
    job = Job(kind="latency", address="a", token="secret-token", prefix="p", copies=3, seed=1)
    assert "secret-token" not in repr(job)


@pytest.mark.parametrize(("end", "told"), [("sys.exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "killed by SIGKILL")])
def test_a_load_generator_that_ends_without_a_report_is_said_to_have_ended_how(end: str, told: str) -> None:
    program = f"import os, sys; print('no saying'); sys.stdout.flush(); {end}"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with process, pytest.raises(Unavailable, match=told):
        list(LoadProcess(process).sayings())


def test_a_load_generator_whose_driver_was_killed_ends_without_a_word() -> None:
    job = Job(kind="latency", address="127.0.0.1:1", token="t", prefix="p", copies=3, seed=1, messages=1)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "trilogue.bench.load.generator"], input=job.model_dump_json().encode() + b"\n",
            stdout=nobody, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"")
