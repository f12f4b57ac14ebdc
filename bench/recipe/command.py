"""`trilogue bench redis-recipe`: its options.

Owns the command's line. It must not know what is measured; what is heavy is imported when the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trilogue.bench.running import BodyBytes, Data, Json, Messages, Plot, Seed, Sessions, carry_out

if TYPE_CHECKING:
    from trilogue.bench.report.progress import Progress
    from trilogue.bench.scenarios import Outcome
    from trilogue.bench.systems import Where


def redis_recipe(
    messages: Messages = None,
    sessions: Sessions = None,
    body_bytes: BodyBytes = None,
    wait: Annotated[
        int, typer.Option("--wait", metavar="N", help="WAIT for N replicas (so many are started) before a message counts.")
    ] = 0,
    crashes: Annotated[
        int | None, typer.Option("--crashes", metavar="N", help="How often the sender of the second run is killed; 0: never.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure trilogue with the same load right afterwards, and show both.")
    ] = False,
    seed: Seed = 1,
    data: Data = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The recipe that trilogue replaces: SET NX EX 86400, INCR, XADD (and WAIT) with redis-py, on a Redis of its own.

    Its messages are read back and verified like trilogue's. In a second, small run its sender is killed again and again, and
    its successor sends again what had no answer: what is lost for good then is counted.
    """

    def scenario(where: Where, progress: Progress) -> Outcome:
        from trilogue.bench import scenarios
        from trilogue.bench.recipe import scenario as recipe

        return recipe.redis_recipe(
            where,
            progress,
            messages=recipe.MESSAGES if messages is None else messages,
            sessions=scenarios.THROUGHPUT_SESSIONS if sessions is None else sessions,
            body_bytes=scenarios.BODY_BYTES if body_bytes is None else body_bytes,
            wait=wait,
            crashes=recipe.CRASHES if crashes is None else crashes,
            compare=compare,
            seed=seed,
        )

    def draw(outcome: Outcome, path: Path) -> None:
        from trilogue.bench.report import plots

        plots.plot_recipe(outcome.result, outcome.curves, path)

    carry_out(scenario, draw, address=None, data=data, json=json, plot=plot)
