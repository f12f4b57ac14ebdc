"""The recipe's benchmark without a server: the order of its steps, what a crash between them costs, and the counting of it."""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from trilogue.actors.protocol.errors import Unavailable
from trilogue.bench.cli import app
from trilogue.bench.load.workload import Workload
from trilogue.bench.recipe import scenario
from trilogue.bench.recipe.crashes import AT_RANDOM, Told, figures_of, plan, unexplained
from trilogue.bench.recipe.load import judge_stream, parcels_of, shared_out
from trilogue.bench.recipe.path import CLAIMED, NUMBERED, Entry, Parcel, Recipe, Stored
from trilogue.bench.report import machine, plots
from trilogue.bench.report import table as report
from trilogue.bench.report.schema import Beside, CpuUs, CrashFigures, FloorFigures, LatencyMs, RecipeResult


class Crashed(Exception):
    """The process is gone."""


class FakeRedis:
    """The commands of the recipe, in memory; one that has replicas answers WAIT with how many of them are there."""

    def __init__(self, replicas_there: int = 0) -> None:
        self.claims: set[str] = set()
        self.counters: dict[str, int] = defaultdict(int)
        self.streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.replicas_there = replicas_there

    def pipeline(self, transaction: bool) -> FakePipeline:
        assert not transaction
        return FakePipeline(self)

    async def set(self, key: str, value: int, nx: bool, ex: int) -> bool:
        assert (value, nx, ex) == (1, True, 86_400)
        was_there = key in self.claims
        self.claims.add(key)
        return not was_there

    async def incr(self, key: str) -> int:
        self.counters[key] += 1
        return self.counters[key]

    async def xadd(self, key: str, fields: dict[str, Any]) -> None:
        self.streams[key].append(fields)

    async def execute_command(self, name: str, wanted: int, timeout_ms: int) -> int:
        assert (name, timeout_ms > 0) == ("WAIT", True)
        return min(wanted, self.replicas_there)


class FakePipeline:
    """Commands that wait for `execute`."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._waiting: list[Any] = []

    def __getattr__(self, command: str) -> Any:
        return lambda *arguments, **named: self._waiting.append(getattr(self._redis, command)(*arguments, **named))

    async def execute(self) -> list[Any]:
        waiting, self._waiting = self._waiting, []
        return [await each for each in waiting]


def recipe(redis: FakeRedis, replicas: int = 0) -> Recipe:
    return Recipe(redis, replicas)  # type: ignore[arg-type]


def parcel(n: int, session: str = "s") -> Parcel:
    return Parcel(session, n, b"body %d" % n)


@pytest.mark.parametrize("step", [CLAIMED, NUMBERED])
def test_a_crash_between_the_claim_and_the_message_makes_every_retry_a_duplicate_of_nothing(step: str) -> None:
    redis = FakeRedis()

    def crash(reached: str) -> None:
        if reached == step:
            raise Crashed

    with pytest.raises(Crashed):
        asyncio.run(recipe(redis).store(parcel(1), crash))
    assert asyncio.run(recipe(redis).store(parcel(1))).duplicate
    assert asyncio.run(recipe(redis).store_all([parcel(1), parcel(2)]))[0].duplicate
    assert [fields["n"] for fields in redis.streams["stream:s"]] == [2]
    assert redis.streams["stream:s"][0]["seq"] == (1 if step == CLAIMED else 2), "a number was given and not used"


def test_a_batch_and_single_messages_are_stored_alike_and_duplicates_once() -> None:
    redis = FakeRedis()

    async def both() -> list[Stored]:
        first = await recipe(redis).store(parcel(1))
        return [first, *await recipe(redis).store_all([parcel(1), parcel(2), parcel(1, "t"), parcel(3)])]

    answers = asyncio.run(both())
    assert [(one.seq, one.duplicate) for one in answers] == [(1, False), (0, True), (2, False), (1, False), (3, False)]
    assert [(fields["seq"], fields["n"]) for fields in redis.streams["stream:s"]] == [(1, 1), (2, 2), (3, 3)]


def test_a_missing_replica_is_no_stored_message() -> None:
    stored = asyncio.run(recipe(FakeRedis(replicas_there=2), replicas=2).store_all([parcel(1)]))
    assert stored == [Stored(1, 3, duplicate=False)]
    for attempt in (recipe(FakeRedis(1), 2).store(parcel(1)), recipe(FakeRedis(1), 2).store_all([parcel(1)])):
        with pytest.raises(Unavailable, match="1 of 2 replicas"):
            asyncio.run(attempt)


def test_a_session_belongs_to_one_connection_and_keeps_its_order() -> None:
    parcels = parcels_of(Workload(500, 7, 16, 1))
    shares = shared_out(parcels, 3)
    assert sorted(map(id, parcels)) == sorted(id(one) for share in shares for one in share)
    assert all(share for share in shares)
    owners: dict[str, set[int]] = defaultdict(set)
    for k, share in enumerate(shares):
        last: dict[str, int] = defaultdict(int)
        for one in share:
            owners[one.session].add(k)
            assert one.n == last[one.session] + 1
            last[one.session] = one.n
    assert all(len(of_it) == 1 for of_it in owners.values())


SENT = [(parcel(n), Stored(n, 1, duplicate=False)) for n in (1, 2, 3)]
KEPT = [Entry(n, n, b"body %d" % n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("entries", "copies", "kind"),
    [
        (KEPT[:2], 1, "lost"),
        ([KEPT[0], Entry(2, 2, b"another"), KEPT[2]], 1, "lost"),
        (KEPT, 2, "lost"),
        ([*KEPT, Entry(4, 3, b"body 3")], 1, "duplicated"),
        ([KEPT[0], KEPT[2], KEPT[1]], 1, "reordered"),
        ([KEPT[0], Entry(3, 2, b"body 2"), Entry(4, 3, b"body 3")], 1, "reordered"),
    ],
)
def test_the_first_run_is_judged_like_trilogues_own(entries: list[Entry], copies: int, kind: str) -> None:
    assert judge_stream("s", SENT, KEPT, 1).clean
    assert getattr(judge_stream("s", SENT, entries, copies), kind) > 0


def told(*lines: str, killed_at: list[tuple[int, str]]) -> Told:
    heard = Told(killed_at=killed_at)
    for line in lines:
        heard.hear(line)
    return heard


def test_what_kills_cost_is_counted_from_what_the_stream_holds() -> None:
    heard = told(
        "handed 1", "stored 1 1", "handed 2", "at 2 claimed",  # lost, exactly
        "handed 2", "duplicate 2", "handed 3",  # lost, at random, after its INCR
        "handed 3", "duplicate 3", "handed 4",  # killed after its XADD: not lost
        "handed 4", "duplicate 4",
        killed_at=[(2, CLAIMED), (3, AT_RANDOM), (4, AT_RANDOM)],
    )  # fmt: skip
    entries = [Entry(1, 1, b"body 1"), Entry(3, 4, b"body 4")]
    figures = figures_of(heard, entries, numbered_upto=3, claimed={1, 2, 3, 4})
    assert figures == CrashFigures(
        kills=3, kills_between=1, messages=4, told_duplicate=3, lost_for_good=2, lost_between=1, holes=1
    )
    assert unexplained(heard, entries, {1, 2, 3, 4}, body_of=lambda n: b"body %d" % n) == []
    assert heard.answered_upto == heard.handed_upto == 4


@pytest.mark.parametrize(
    ("lines", "entries", "claimed", "named"),
    [
        (["handed 1", "duplicate 1"], [], set(), "no dedupe key"),
        (["handed 1"], [Entry(1, 1, b"body 1")], {1}, "never answered"),
        (["handed 1", "stored 1 1"], [Entry(1, 1, b"body 1"), Entry(2, 1, b"body 1")], {1}, "2 times"),
        (["handed 1", "stored 1 1"], [Entry(1, 1, b"another")], {1}, "another body"),
        (["handed 1", "stored 1 1"], [], {1}, "told to be stored"),
    ],
)
def test_what_no_crash_of_a_sender_explains_is_said(
    lines: list[str], entries: list[Entry], claimed: set[int], named: str
) -> None:
    (wrong,) = unexplained(told(*lines, killed_at=[]), entries, claimed, body_of=lambda n: b"body %d" % n)
    assert named in wrong


def test_half_of_the_kills_are_exact_and_the_plan_follows_from_the_seed() -> None:
    kills = plan(40, seed=3)
    assert kills == plan(40, seed=3) != plan(40, seed=4)
    steps = [kill.step for kill in kills]
    assert (steps.count(CLAIMED), steps.count(NUMBERED), steps.count(AT_RANDOM)) == (10, 10, 20)


def result(**changed: Any) -> RecipeResult:
    latency = LatencyMs(p50=1, p99=2, p999=3, max=4)
    values: dict[str, Any] = {
        "command": "redis-recipe", "commit": "v0", "machine": machine.machine_facts(None), "messages": 100, "seconds": 0.1,
        "settings": {"sessions": 64, "wait": 2}, "messages_per_s": 1000.0, "latency_ms": latency, "lonely_ms": latency,
        "lost": 0, "duplicated": 0, "reordered": 0, "cpu_us_per_message": CpuUs(client=50, session=0, store=9), "rows": [],
        "floor": FloorFigures(latency_ms_p50=0.3, messages_per_s=400_000), "server": "Redis 7.0.15", "unexplained": 0,
        "crash": CrashFigures(
            kills=40, kills_between=20, messages=250, told_duplicate=36, lost_for_good=33, lost_between=20, holes=17
        ),
        "trilogue": Beside(
            messages_per_s=300_000, latency_ms=latency, lonely_ms=latency,
            cpu_us_per_message=CpuUs(client=1, session=1, store=1),
        ),
    }  # fmt: skip
    return RecipeResult(**(values | changed))


def printed(of: RecipeResult) -> str:
    console = Console(file=io.StringIO(), width=200)
    report.show(of, console, [])
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_losses_of_the_second_run_are_said_and_fail_nothing() -> None:
    shown = printed(result())
    assert "33 lost for good" in shown
    assert "20 by 20 kills between SET NX and XADD, 13 by 20 at random" in shown
    assert "17 holes" in shown
    assert "a primary and 2 replicas, WAIT 2" in shown
    assert "300,000 messages/s" in shown
    assert not result().failed
    assert "lost for good" not in printed(result(crash=None, trilogue=None))


def test_a_loss_in_the_first_run_and_what_is_unexplained_fail_the_run() -> None:
    assert result(lost=1).failed
    of = result(unexplained=2)
    assert of.failed
    assert "FAILED" in printed(of)
    assert "2 that no crash explains" in printed(of)


@pytest.mark.parametrize("changed", [{}, {"crash": None}])
def test_the_result_can_be_drawn(changed: dict[str, Any], tmp_path: Path) -> None:
    curve = [(0.0, 1.0), (50.0, 2.0), (99.0, 3.0)]
    plots.plot_recipe(result(**changed), {"full load": curve, "one in flight": curve}, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert ("lost for good" in drawn) == (not changed)
    assert "one in flight" in drawn


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--wait", "5"], "--wait 5"), (["--crashes", "-1"], "--crashes -1"), (["--messages", "0"], "--messages 0")],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "find_server", lambda: pytest.fail("it must be found out before anything is started"))
    done = CliRunner().invoke(app, ["redis-recipe", *arguments])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert named in done.stderr


def test_without_a_redis_server_one_line_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "find_server", lambda: None)
    done = CliRunner().invoke(app, ["redis-recipe"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "make redis" in done.stderr
