"""`trilogue bench …`: the commands, and the options that only one of them has.

Owns the command line of the benchmarks. It must not know how anything is measured; what is heavy is imported when a
command runs, so that `trilogue --help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trilogue.actors.protocol.errors import UsageError
from trilogue.bench.recipe.command import redis_recipe
from trilogue.bench.running import Address, BodyBytes, Data, Json, Messages, Partitions, Plot, Seed, Sessions, Stores, carry_out
from trilogue.cluster.commands.cli import named_path

if TYPE_CHECKING:
    from trilogue.bench.report.progress import Progress
    from trilogue.bench.scenarios import Outcome
    from trilogue.bench.systems import Where

app = typer.Typer(
    name="bench",
    help="Measure, and verify while measuring: lost, duplicated and reordered stand beside every rate.",
    no_args_is_help=True,
)


@app.command()
def throughput(
    messages: Messages = None,
    sessions: Sessions = None,
    body_bytes: BodyBytes = None,
    partitions: Partitions = None,
    outbox: Annotated[
        str, typer.Option("--outbox", metavar="memory|FILE", help="Where the client keeps what is not acked.")
    ] = "memory",
    store: Stores = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How many messages a second one client gets onto three disks, with a future for each."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.throughput(
            where,
            progress,
            messages=scenarios.THROUGHPUT_MESSAGES if messages is None else messages,
            sessions=scenarios.THROUGHPUT_SESSIONS if sessions is None else sessions,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            outbox=None if outbox == "memory" else outbox,
            seed=seed,
        )

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        run, floor = outcome.runs[0], outcome.runs[0].floor.histogram().curve_ms()
        plots.plot_throughput(outcome.result, run.histogram.curve_ms(), floor, _rates(outcome), path)

    carry_out(scenario, draw, address=address, data=data, json=json, plot=plot, partitions=partitions, stores=store)


@app.command()
def latency(
    messages: Messages = None,
    partitions: Partitions = None,
    store: Stores = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How long one message takes to three disks and back, with nothing else in flight."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        count = scenarios.LATENCY_MESSAGES if messages is None else messages
        return scenarios.latency(where, progress, messages=count, seed=seed)

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        run, floor = outcome.runs[0], outcome.runs[0].floor.histogram().curve_ms()
        plots.plot_latency(outcome.result, run.histogram.curve_ms(), floor, path)

    carry_out(scenario, draw, address=address, data=data, json=json, plot=plot, partitions=partitions, stores=store)


@app.command()
def scale(
    partitions: Annotated[str, typer.Option("--partitions", metavar="1,2,4,8", help="The counts to compare.")] = "1,2,4,8",
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Nodes of a simulated Ray cluster on this machine.")] = 1,
    messages: Messages = None,
    sessions: Sessions = None,
    seed: Seed = 1,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """What a message costs as the partitions grow in number: a fresh system for each count, the same load."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.scale(
            where,
            progress,
            partitions=_counts(partitions),
            messages=scenarios.SCALE_MESSAGES if messages is None else messages,
            sessions=scenarios.SCALE_SESSIONS if sessions is None else sessions,
            seed=seed,
        )

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        plots.plot_scale(outcome.result, path)

    carry_out(scenario, draw, address=None, data=data, json=json, plot=plot, nodes=nodes)


@app.command()
def failover(
    kills: Annotated[int | None, typer.Option("--kills", metavar="N", help="How many, one after another.")] = None,
    kill: Annotated[str, typer.Option("--kill", metavar="session|store|supervisor", help="Whom to kill.")] = "session",
    pause: Annotated[bool, typer.Option("--pause", help="Only stop it (SIGSTOP), and let it go on 3 seconds later.")] = False,
    partitions: Partitions = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How long messages wait when an actor is killed: kill -9 again and again, while one client does not stop sending.

    A stall lasts from the kill to the first ack of a message that was handed over afterwards, in the partition that the
    killed actor served. With --address, the actors of that running system are killed: Ray brings them back.
    """

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        count = scenarios.FAILOVER_KILLS if kills is None else kills
        return scenarios.failover(where, progress, kills=count, kill=kill, pause=pause, seed=seed)

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots
        from trilogue.bench.report.schema import FailoverResult

        outages = outcome.runs[0].report.outages
        if isinstance(outcome.result, FailoverResult) and outages is not None:
            strips = outages.strips
            acks = [[*felt.acks, *[None] * (strips.steps - len(felt.acks))] for felt in outages.felt]
            plots.plot_failover(outcome.result, acks, strips.step_ms, strips.before_ms, path)

    carry_out(scenario, draw, address=address, data=data, json=json, plot=plot, partitions=partitions)


@app.command()
def fanout(
    readers: Annotated[int | None, typer.Option("--readers", metavar="N", help="How many follow the session.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", metavar="N", help="In how many client processes.")] = None,
    messages: Messages = None,
    body_bytes: BodyBytes = None,
    rate: Annotated[
        int, typer.Option("--rate", metavar="N", help="Messages a second; 0: as fast as the slowest reader takes them.")
    ] = 0,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How many deliveries a second one session makes to many readers, and how far behind the slowest is.

    Each reader checks that it gets each message once, in order, with the right body.
    """

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.fanout(
            where,
            progress,
            messages=scenarios.FANOUT_MESSAGES if messages is None else messages,
            readers=scenarios.FANOUT_READERS if readers is None else readers,
            processes=scenarios.FANOUT_PROCESSES if processes is None else processes,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            rate=rate,
            seed=seed,
        )

    carry_out(scenario, _draw_reading, address=address, data=data, json=json, plot=plot)


@app.command()
def catchup(
    messages: Annotated[int | None, typer.Option("--messages", metavar="N", help="How far behind the reader is.")] = None,
    body_bytes: BodyBytes = None,
    rate: Annotated[int | None, typer.Option("--rate", metavar="N", help="Messages a second of the writer.")] = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How fast a reader that is far behind catches up, and what a writer to the same session feels of it."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.catchup(
            where,
            progress,
            messages=scenarios.CATCHUP_MESSAGES if messages is None else messages,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            rate=scenarios.CATCHUP_MESSAGES_PER_S if rate is None else rate,
            seed=seed,
        )

    carry_out(scenario, _draw_reading, address=address, data=data, json=json, plot=plot)


@app.command()
def table(
    messages: Annotated[int | None, typer.Option("--messages", metavar="N", help="How many messages the session has.")] = None,
    body_bytes: BodyBytes = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
) -> None:
    """How fast one session's history becomes an Arrow table, from a warm store."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import bulk, scenarios

        result, run = bulk.measure_table(
            where,
            progress,
            messages=bulk.TABLE_MESSAGES if messages is None else messages,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            seed=seed,
        )
        return scenarios.Outcome(result, list(run.report.found.examples), [run], run.floor)

    carry_out(scenario, _no_plot, address=address, data=data, json=json, plot=None)


@app.command()
def export(
    messages: Messages = None,
    sessions: Sessions = None,
    body_bytes: BodyBytes = None,
    partitions: Partitions = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
) -> None:
    """How fast everything becomes Parquet files, and how much memory that takes. Ten million messages take 20 GB of disk."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import bulk, scenarios

        result, run = bulk.measure_export(
            where,
            progress,
            messages=bulk.EXPORT_MESSAGES if messages is None else messages,
            sessions=bulk.EXPORT_SESSIONS if sessions is None else sessions,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            seed=seed,
        )
        return scenarios.Outcome(result, list(run.report.found.examples), [run], run.floor)

    carry_out(scenario, _no_plot, address=address, data=data, json=json, plot=None, partitions=partitions)


def _no_plot(_outcome: Outcome, _path: Path) -> None:
    """Two figures make no picture."""


@app.command(name="sessions")
def many_sessions(
    sessions: Annotated[int | None, typer.Option("--sessions", metavar="N", help="How many sessions there are.")] = None,
    body_bytes: BodyBytes = None,
    seed: Seed = 1,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """What a million idle sessions cost: memory, a restart of everything, and the first message of somebody who comes back.

    Each session gets three messages. Then everything is killed (kill -9) and started again.
    """

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.many_sessions(
            where,
            progress,
            sessions=scenarios.MANY_SESSIONS if sessions is None else sessions,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            seed=seed,
        )

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        plots.plot_sessions(outcome.result, outcome.curves, path)

    carry_out(scenario, draw, address=None, data=data, json=json, plot=plot)


def _draw_reading(outcome: Outcome, path: Path) -> None:
    from trilogue.bench.load.metrics import Histogram
    from trilogue.bench.report import plots

    run = outcome.runs[0]
    fan = run.report.fan
    if fan is not None:
        acks = run.histogram.curve_ms()
        if fan.writer_alone:
            named = {"writer alone": Histogram(fan.writer_alone).curve_ms(), "writer meanwhile": acks}
        else:
            named = {"delivery": Histogram(fan.lags).curve_ms(), "ack": acks}
        plots.plot_reading(outcome.result, named, path)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=named_path, help="A conversation: .jsonl or .jsonl.gz.")],
    partitions: Partitions = None,
    seed: Seed = 1,
    address: Address = None,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Send a real conversation for all of its senders, read all of it back, and compare it with the file.

    Each line of the file is {"session", "sender", "sent_at", "text"}; sent_at is milliseconds since 1970.
    """

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.replay(where, progress, file=file, seed=seed)

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        run = outcome.runs[0]
        by_session = run.report.messages_by_session
        plots.plot_replay(outcome.result, by_session, _rates(outcome), run.histogram.curve_ms(), path)

    carry_out(scenario, draw, address=address, data=data, json=json, plot=plot, partitions=partitions)


@app.command()
def floor(seed: Seed = 1, data: Data = None, json: Json = None, plot: Plot = None) -> None:
    """What no system on this machine can beat: blocking sockets, three receivers, an fdatasync for each frame."""

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios

        return scenarios.floor_alone(where, progress, seed=seed)

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        if outcome.floor is not None:
            plots.plot_floor(outcome.result, outcome.floor.histogram().curve_ms(), path)

    carry_out(scenario, draw, address=None, data=data, json=json, plot=plot)


app.command(name="redis-recipe")(redis_recipe)


def _rates(outcome: Outcome) -> list[tuple[float, float]]:
    from trilogue.bench.report import plots

    report = outcome.runs[0].report
    return plots.rates_of(report.acked_at_s, report.sampled_every, report.seconds)


def _counts(text: str) -> list[int]:
    """`1,2,4,8` as numbers. Raises `UsageError`."""
    from trilogue.bench.systems import Where

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--partitions {text!r}: numbers with commas between them, like 1,2,4,8") from None
    for count in counts:
        Where(address=None, data=None, partitions=count)
    return counts
