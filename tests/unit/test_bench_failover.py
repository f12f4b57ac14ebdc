"""`trilogue bench failover`: whom it kills, when it thinks that the system is whole, and what it says in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from trilogue.actors.protocol.errors import Unavailable, UsageError
from trilogue.bench import failover, scenarios
from trilogue.bench.cli import app
from trilogue.bench.failover import Victim, Whole, choose, owner
from trilogue.bench.load.job import Saying
from trilogue.bench.report import machine, plots, table
from trilogue.bench.report.schema import CpuUs, FailoverResult, FloorFigures, LatencyMs, Spread, Stall, spread
from trilogue.bench.scenarios import Outcome

HERE = "127.0.0.1:1"
PID = os.getpid()


def session(name: str, partition: Any, state: str = "open", epoch: int = 1, **more: Any) -> dict[str, Any]:
    values = {"role": "session", "name": name, "pid": PID, "address": HERE, "state": state, "partition": partition}
    return {**values, "epoch": epoch, "copies": 3, "stores": ["store-1", "store-2", "store-3"], **more}


def status(*actors: dict[str, Any], stores: int = 3, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    others = [{"role": "store", "name": f"store-{k}", "pid": 1, "address": HERE, "state": "open"} for k in range(1, stores + 1)]
    others.append({"role": "supervisor", "name": "supervisor", "pid": 1, "address": HERE, "state": "open"})
    return {"actors": {one["name"]: one for one in (*actors, *others)}, "missing": list(missing)}


NOW = status(session("session-0", 0), session("session-1", 1), session("session-2", None, "spare", 0))
AFTER_A_FAILOVER = status(
    session("session-0", None, "spare", 0), session("session-1", 1), session("session-2", 0, epoch=5, pid=PID)
)


def test_the_owner_is_who_serves_the_partition_now_whatever_its_name() -> None:
    assert (owner(NOW, 0) or {})["name"] == "session-0"
    assert (owner(AFTER_A_FAILOVER, 0) or {})["name"] == "session-2"
    assert choose(AFTER_A_FAILOVER, "session", 0, 2) == Victim("session-2", PID, [0], 5)
    both = status(session("session-0", 0, epoch=4), session("session-2", 0, epoch=5))
    assert (owner(both, 0) or {})["name"] == "session-2", "the highest epoch is in force"


def test_a_partition_that_nobody_serves_has_no_victim() -> None:
    waiting = status(session("session-0", 0, "waiting: store-2 does not answer"))
    assert owner(waiting, 0) is None
    with pytest.raises(Unavailable, match="no session to kill"):
        choose(waiting, "session", 0, 1)


def test_sessions_and_stores_are_killed_in_turn() -> None:
    assert [choose(NOW, "session", turn, 2).partitions for turn in range(4)] == [[0], [1], [0], [1]]
    assert [choose(NOW, "store", turn, 2).name for turn in range(4)] == ["store-1", "store-2", "store-3", "store-1"]
    assert choose(NOW, "store", 0, 2).partitions == [0, 1]
    assert choose(NOW, "supervisor", 7, 2) == Victim("supervisor", 1, [0, 1], 0)


def test_only_members_of_an_ensemble_are_killed() -> None:
    spare_store = status(session("session-0", 0), session("session-1", 1, stores=["store-2", "store-3", "store-4"]), stores=5)
    chosen = [choose(spare_store, "store", turn, 2) for turn in range(5)]
    assert [one.name for one in chosen] == ["store-1", "store-2", "store-3", "store-4", "store-1"]
    assert [one.partitions for one in chosen] == [[0], [0, 1], [0, 1], [1], [0]]
    moved = status(session("session-0", 0, members=["store-2", "store-3", "store-4"], stores=["store-1"]), stores=5)
    assert [choose(moved, "store", turn, 1).name for turn in range(3)] == ["store-2", "store-3", "store-4"]


def test_a_process_of_another_machine_is_never_killed() -> None:
    with pytest.raises(UsageError, match="does not run on this machine"):
        choose(status(session("session-0", 0, address="10.0.0.7:1")), "session", 0, 1)


def test_a_process_that_is_no_ray_actor_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    with pytest.raises(Unavailable, match="is no Ray actor"):
        failover._strike(Victim("session-0", PID, [0], 1), signal.SIGKILL)


def test_a_strike_reads_the_clock_before_and_after_the_signal() -> None:
    victim = subprocess.Popen(["ray::not", "60"], executable="/bin/sleep")
    named = Path(f"/proc/{victim.pid}/cmdline")
    until = failover.time.monotonic() + 10
    while not named.read_bytes():  # a process has no command line for a moment after it was replaced by another program
        assert failover.time.monotonic() < until
    began = failover.time.monotonic_ns()
    fault = failover._strike(Victim("session-0", victim.pid, [2], 9), signal.SIGKILL)
    ended = failover.time.monotonic_ns()
    assert victim.wait(10) == -signal.SIGKILL
    assert began <= fault.before_ns <= fault.after_ns <= ended
    assert (fault.partitions, fault.epoch, fault.paused) == ([2], 9, False)


@pytest.mark.parametrize(
    ("now", "lacks"),
    [
        (AFTER_A_FAILOVER, ""),
        (NOW, ""),
        (status(session("session-1", 1), session("session-2", 0)), "2 of 3 actors with the role session"),
        (status(*NOW["actors"].values(), missing=("session-3",)), "session-3 does not answer"),
        (status(*[NOW["actors"][f"session-{k}"] for k in range(3)], stores=2), "2 of 3 actors with the role store"),
        (
            status(session("session-0", 0, "waiting: x"), *map(NOW["actors"].get, ("session-1", "session-2"))),
            "partition 0 is not",
        ),
        (status(session("session-0", 0, copies=2), *map(NOW["actors"].get, ("session-1", "session-2"))), "2 of 3 copies"),
        (status(session("session-0", 0), session("session-1", 1), session("session-2", 0, epoch=7)), "session-0 thinks"),
        (status(session("session-0", 0), session("session-1", 1), session("session-2", None, "warming up")), "is warming up"),
        ({"actors": {}}, "nothing answers"),
    ],
)
def test_the_system_is_whole_when_every_actor_and_copy_is_back_and_one_spare_is_as_good_as_another(
    now: dict[str, Any], lacks: str
) -> None:
    whole = Whole.of(NOW, 2, 3)
    found = whole.lacks(now)
    assert lacks in found
    assert bool(found) == bool(lacks)


def test_the_killed_process_does_not_count_though_it_still_seems_to_answer() -> None:
    whole = Whole.of(NOW, 2, 3)
    assert whole.lacks(NOW, killed_pid=PID)
    assert not whole.lacks(NOW, killed_pid=PID + 1)


# ------------------------------------------------------------------ the report


def result(**changed: Any) -> FailoverResult:
    stalls = [
        Stall(victim="session-0", victim_epoch=k, partitions=[0], stall_ms=ms, epoch=k + 1, whole_again_s=1.0)
        for k, ms in enumerate((120.0, 90.0, 300.0, 110.0), start=1)
    ]
    settings = {"kill": "session", "pause_s": 0, "offered_messages_per_s": 4000, "seed": 1}
    values: dict[str, Any] = {
        "command": "failover", "commit": "v0", "machine": machine.machine_facts(None), "settings": settings, "messages": 1000,
        "seconds": 2.0, "messages_per_s": 500.0, "latency_ms": LatencyMs(p50=1, p99=2, p999=3, max=4), "lost": 0,
        "duplicated": 0, "reordered": 0, "cpu_us_per_message": CpuUs(client=4, session=None, store=2),
        "floor": FloorFigures(latency_ms_p50=0.3, messages_per_s=400_000), "rows": [], "kills": 4,
        "stall_ms": spread([one.stall_ms for one in stalls]), "stalls": stalls, "whole_again_s": Spread(p50=1.0, max=1.0),
        "longest_gap_ms": 305.0, "epochs": [[1, 2, 3, 4, 5]], "stale_acks": 0,
    }  # fmt: skip
    return FailoverResult(**(values | changed))


def shown(of: FailoverResult) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        table.show(of, console, [])
        return console.export_text()


def test_the_median_is_one_that_occurred_and_does_not_flatter() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(p50=2.0, max=3.0)
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(p50=3.0, max=4.0)
    assert spread([7.0]) == Spread(p50=7.0, max=7.0)


def test_the_keys_of_the_json_are_the_contracts_then_its_own(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    table.write_json(result(), path)
    written = json.loads(path.read_text())
    own = ["kills", "stall_ms", "stalls", "whole_again_s", "longest_gap_ms", "epochs", "stale_acks"]
    assert list(written)[-8:] == ["rows", *own]
    assert written["stall_ms"] == {"p50": 120.0, "max": 300.0}
    assert written["kills"] == len(written["stalls"]) == 4


def test_the_table_leads_with_the_stall_and_its_verification() -> None:
    text = shown(result())
    assert text.splitlines()[0] == (
        "120 ms stall (p50), 300 ms at most, after kill -9 of the partition's SessionActor, 4 times"
        " · 1,000 messages read back: lost 0, duplicated 0, reordered 0, stale acks 0"
    )
    assert "120 90 300 110" in text
    assert "305 ms" in text
    assert "1 to 5" in text


def test_a_pause_says_how_often_another_writer_took_over() -> None:
    text = shown(result(settings={**result().settings, "pause_s": 3.0}))
    assert "after a pause of the partition's SessionActor" in text
    assert "4 of 4" in text


@pytest.mark.parametrize("anomaly", ["lost", "duplicated", "reordered", "stale_acks"])
def test_a_run_that_found_something_says_so_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, anomaly: str) -> None:
    def found(*_: object, **__: object) -> Outcome:
        return Outcome(result(**{anomaly: 1}), [f"{anomaly}: it was this one"])

    monkeypatch.setattr(scenarios, "failover", found)
    said = CliRunner().invoke(app, ["failover", "--kills", "4"])
    assert said.exit_code == 1
    assert said.stdout.startswith("FAILED: ")
    assert f"{anomaly.replace('_', ' ')} 1" in said.stdout
    assert "it was this one" in said.stdout


def test_a_clean_run_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "failover", lambda *_, **__: Outcome(result()))
    assert CliRunner().invoke(app, ["failover"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--kills", "0"], "--kills 0"),
        (["--kills", "100000"], "--kills 100000"),
        (["--kill", "raylet"], "--kill raylet: one of session, store, supervisor"),
        (["--partitions", "0"], "--partitions 0"),
        (["--plot", "stalls.gif"], ".png or .svg"),
        (["--address", "127.0.0.1:1", "--data", "here"], "leave out --address"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str) -> None:
    monkeypatch.setattr(scenarios, "system", lambda *_: pytest.fail("wrong usage must be found out before a system is started"))
    said = CliRunner().invoke(app, ["failover", *arguments])
    assert said.exit_code == 2
    assert named in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("kills", [1, 4, 60])
def test_the_picture_is_drawn_for_few_and_for_many(tmp_path: Path, kills: int) -> None:
    one = result().stalls[0]
    of = result(kills=kills, stalls=[one] * kills)
    acks: list[list[int | None]] = [[40] * 20 + [0] * 12 + [200] + [40] * 20 + [None] * 7] * kills
    plots.plot_failover(of, acks, 10.0, 200.0, tmp_path / "stalls.svg")
    assert "120 ms stall (p50)" in (tmp_path / "stalls.svg").read_text()


def test_a_load_that_ends_early_is_heard_while_the_system_is_hurt() -> None:
    class Ended:
        def sayings(self) -> Any:
            yield Saying(phase="sending", done=1, acked_upto_ns=[5])
            raise Unavailable("nothing has moved for 60 s")

    ear = failover._Ear(Ended(), 1)  # type: ignore[arg-type]
    ear._thread.join(10)
    assert ear.acked_upto_ns == [5]
    with pytest.raises(Unavailable, match="nothing has moved"):
        ear.check()


def test_the_generator_ends_when_its_driver_has_gone() -> None:
    job = json.dumps({"kind": "failover", "address": "127.0.0.1:1", "token": "x", "prefix": "p", "copies": 3, "seed": 1,
                      "messages_per_s": 100, "in_flight_max": 10})  # fmt: skip
    command = [sys.executable, "-m", "trilogue.bench.load.generator"]
    done = subprocess.run(command, input=job + "\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Unavailable" in done.stdout
