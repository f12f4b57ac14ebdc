"""How every `trilogue bench` command runs: the options that many have, the files that it writes, and how it ends.

Owns the options that are shared, and the exit codes: 0 measured and clean, 1 something was lost, duplicated, reordered or
acked by the wrong one, or it could not be measured, 2 wrong usage. Errors are one line. It must not know what a command
measures; what is heavy is imported when one runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trilogue.actors.protocol.errors import TrilogueError, UsageError
from trilogue.cluster.commands.cli import named_path

if TYPE_CHECKING:
    from trilogue.bench.report.progress import Progress
    from trilogue.bench.scenarios import Outcome
    from trilogue.bench.systems import Where

Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", parser=named_path, help="Write the result as one JSON object.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", parser=named_path, help="Draw the result: a .png or .svg file.")
]
Seed = Annotated[int, typer.Option("--seed", help="Fixes what is sent, and in which order.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Measure this running system instead of one of its own."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", parser=named_path, help="Where the measured system keeps its files for as long as it runs."
    ),
]
Messages = Annotated[int | None, typer.Option("--messages", metavar="N", help="How many messages are measured.")]
Sessions = Annotated[int | None, typer.Option("--sessions", metavar="N", help="How many sessions they go to.")]

Partitions = Annotated[int | None, typer.Option("--partitions", metavar="N", help="Partitions of the system (1).")]
Stores = Annotated[
    list[str] | None,
    typer.Option("--store", metavar="URL", help="One of the measured system's three copies is there: redis://HOST:PORT/DB."),
]
BodyBytes = Annotated[int | None, typer.Option("--body-bytes", metavar="N", help="Bytes of each body.")]

Scenario = Callable[["Where", "Progress"], "Outcome"]
Draw = Callable[["Outcome", Path], None]


def carry_out(
    scenario: Scenario,
    draw: Draw,
    *,
    address: str | None,
    data: Path | None,
    json: Path | None,
    plot: Path | None,
    partitions: int | None = None,
    nodes: int = 1,
    stores: list[str] | None = None,
) -> None:
    """Check the files that will be written, measure, report, and end with the verdict."""
    try:
        outcome = _measure(scenario, address, data, json, plot, partitions, nodes, stores or [])
        _report(outcome, draw, json, plot)
    except UsageError as error:
        typer.echo(f"trilogue bench: {error}", err=True)
        raise typer.Exit(2) from None
    except TrilogueError as error:
        typer.echo(f"trilogue bench: {error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(1 if outcome.result.failed else 0)


def _measure(
    scenario: Scenario,
    address: str | None,
    data: Path | None,
    json: Path | None,
    plot: Path | None,
    partitions: int | None,
    nodes: int,
    stores: list[str],
) -> Outcome:
    from trilogue.bench.report import plots
    from trilogue.bench.report.progress import Progress
    from trilogue.bench.systems import Where

    for option, file in (("--json", json), ("--plot", plot)):
        # A run takes long: what cannot be written is found out before it.
        if file is not None and not os.access(file.parent, os.W_OK):
            raise UsageError(f"{option} {file}: {file.parent} is no directory that can be written")
        if file is not None and file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise UsageError(f"{option} {file}: it is there already and cannot be written, or is no file")
    if plot is not None:
        plots.check_suffix(plot)
    if address is not None and partitions is not None:
        raise UsageError("--partitions is for a system of the benchmark's own: leave out --partitions, or leave out --address")
    where = Where(address, data, 1 if partitions is None else partitions, nodes, tuple(stores))
    with Progress() as progress:
        return scenario(where, progress)


def _report(outcome: Outcome, draw: Draw, json: Path | None, plot: Path | None) -> None:
    from trilogue.bench.report import table as report
    from trilogue.cluster.commands.paper import Paper

    result = outcome.result
    # The files first: whoever reads our output may have gone away.
    if json is not None:
        report.write_json(result, json)
    if plot is not None:
        draw(outcome, plot)
    console = Paper(highlight=True)
    report.show(result, console, outcome.examples)
    for file in (json, plot):
        if file is not None:
            console.print(f"wrote {file}", style="dim", highlight=False, soft_wrap=True)
