"""Pictures of a result: a PNG or an SVG that stands on its own.

Owns how figures are drawn. It must not know how they were come by. Invariants: every axis has its unit, and every picture
names the commit, the machine and the verdict, so that none is shown without them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from trilogue.actors.protocol.errors import UsageError
from trilogue.bench.report.schema import FailoverResult, RecipeResult, Result, SessionsResult
from trilogue.bench.report.table import headline

SUFFIXES = (".png", ".svg")
INK, QUIET, GRID = "#1f2733", "#6b7684", "#e4e8ed"
BLUE, AMBER, GREEN, RED = "#2f6fde", "#e09f2c", "#3a9d6e", "#c8453b"
ROLE_COLOURS = {"client": AMBER, "session": BLUE, "store": GREEN}
SESSIONS_SHOWN_MAX = 24
ROWS_SHOWN_MIN = 8
ROWS_NAMED_MAX = 25
STALL_GOAL_MS = 250.0
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "svg.fonttype": "none",
}
NINES = ((0.0, "0"), (50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999"))
MARKED = (50.0, 99.0, 99.9)
Curve = Sequence[tuple[float, float]]


def check_suffix(path: Path) -> None:
    """Raise `UsageError` unless the file's name says PNG or SVG."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: end the name in {' or '.join(SUFFIXES)}")


def plot_latency(result: Result, curve: Curve, floor: Curve, path: Path) -> None:
    """Latency by percentile beside the floor's."""
    curves = {"trilogue, one message in flight": (curve, BLUE), "floor, one frame in flight": (floor, QUIET)}
    _save(result, path, lambda figure: draw_percentiles(figure.subplots(), curves))


def plot_throughput(result: Result, curve: Curve, floor: Curve, rates: Sequence[tuple[float, float]], path: Path) -> None:
    """The rate over the run's time, and latency under full load by percentile beside the floor's."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _rate(left, rates, result)
        draw_percentiles(right, {"full load": (curve, BLUE), "floor, one frame": (floor, QUIET)})

    _save(result, path, draw)


def plot_reading(result: Result, curves: Mapping[str, Curve], path: Path) -> None:
    """Two latencies by percentile: of deliveries and acks, or of a writer with and without a reader that catches up."""
    colours = (BLUE, AMBER)
    named = {name: (curve, colour) for (name, curve), colour in zip(curves.items(), colours, strict=True)}
    _save(result, path, lambda figure: draw_percentiles(figure.subplots(), named))


def plot_sessions(result: Result, curves: Mapping[str, Curve], path: Path) -> None:
    """What each process grew by, and the cold sessions' latencies by percentile."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        assert isinstance(result, SessionsResult)
        names = [one.name for one in result.memory]
        bars = left.barh(
            names, [one.grew_mib for one in result.memory], color=[ROLE_COLOURS[one.role] for one in result.memory]
        )
        left.bar_label(bars, [f"{one.grew_mib:+.0f}" for one in result.memory], padding=3)
        left.set(title="Memory over the empty system", xlabel="MiB of its own (USS)")
        left.invert_yaxis()
        left.grid(visible=False, axis="y")
        colours = (BLUE, AMBER)
        draw_percentiles(right, {name: (curve, colour) for (name, curve), colour in zip(curves.items(), colours, strict=True)})

    _save(result, path, draw)


def plot_recipe(result: Result, curves: Mapping[str, Curve], path: Path) -> None:
    """Latency under load and of lonely messages by percentile, and what the crashes of the second run cost."""

    def draw(figure: Figure) -> None:
        assert isinstance(result, RecipeResult)
        crash = result.crash
        left, *right = figure.subplots(1, 2, width_ratios=(3, 2)) if crash else [figure.subplots()]
        colours = (BLUE, AMBER)
        draw_percentiles(left, {name: (curve, colour) for (name, curve), colour in zip(curves.items(), colours, strict=True)})
        if crash is not None:
            names, counts = ("kills of the sender", "lost for good", "holes"), (crash.kills, crash.lost_for_good, crash.holes)
            bars = right[0].barh(names, counts, color=(QUIET, RED, AMBER))
            right[0].bar_label(bars, padding=3)
            right[0].set(title="Second run: what kills cost", xlabel=f"of {crash.messages:,} messages")
            right[0].invert_yaxis()
            right[0].grid(visible=False, axis="y")

    _save(result, path, draw)


def plot_floor(result: Result, curve: Curve, path: Path) -> None:
    """The floor's latency by percentile."""
    _save(result, path, lambda figure: draw_percentiles(figure.subplots(), {"floor": (curve, BLUE)}))


def plot_scale(result: Result, path: Path) -> None:
    """Processor time a message by role, and the rate, for each number of partitions."""
    names = [str(row.partitions) for row in result.rows]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        base = [0.0] * len(names)
        for role, colour in ROLE_COLOURS.items():
            used = [getattr(row.cpu_us_per_message, role) or 0.0 for row in result.rows]
            bars = left.bar(names, used, bottom=base, width=0.62, color=colour, label=role)
            left.bar_label(bars, [f"{each:.1f}" for each in used], label_type="center", color="white", fontsize=9)
            base = [below + each for below, each in zip(base, used, strict=True)]
        for position, total in enumerate(base):
            left.annotate(f"{total:.1f}", (position, total), (0, 4), textcoords="offset points", ha="center", weight="bold")
        left.set(title="Processor time a message", xlabel="partitions", ylabel="µs a message, all processes of the role")
        left.set_ylim(0, max(base, default=0) * 1.12 or 1)
        _legend(left)
        left.grid(visible=False, axis="x")
        rates = [row.messages_per_s / 1000 for row in result.rows]
        right.bar(names, rates, width=0.62, color=BLUE)
        for position, rate in enumerate(rates):
            right.annotate(f"{rate:.0f}", (position, rate), (0, 4), textcoords="offset points", ha="center", weight="bold")
        cores = result.machine.get("cores")
        right.set(title=f"Rate, all on the same {cores} cores", xlabel="partitions", ylabel="thousand messages/s")
        right.set_ylim(0, max(rates, default=0) * 1.12 or 1)
        right.grid(visible=False, axis="x")

    _save(result, path, draw)


def plot_replay(
    result: Result, by_session: Mapping[str, int], rates: Sequence[tuple[float, float]], curve: Curve, path: Path
) -> None:
    """Messages by session, the rate over the run's time, and the latency by percentile."""
    ordered = sorted(by_session.items(), key=lambda item: item[1], reverse=True)
    shown = ordered[:SESSIONS_SHOWN_MAX]
    rest = len(ordered) - len(shown)

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
        left, upper, lower = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        bars = left.barh([name for name, _ in shown], [count for _, count in shown], color=BLUE, height=0.7)
        left.bar_label(bars, [f"{count:,}" for _, count in shown], padding=4, fontsize=8, color=INK)
        left.set_ylim(max(len(shown), ROWS_SHOWN_MIN) - 0.4, -0.6)
        left.tick_params(axis="y", labelsize=8, length=0)
        left.grid(visible=False, axis="y")
        title = f"The {len(shown)} fullest of {len(ordered)} sessions" if rest else f"{len(ordered)} sessions"
        left.set(title=title, xlabel="messages")
        left.margins(x=0.12)
        _rate(upper, rates, result)
        draw_percentiles(lower, {"replay": (curve, BLUE)})

    _save(result, path, draw, height=6.4)


def plot_failover(
    result: FailoverResult, acks: Sequence[Sequence[int | None]], step_ms: float, before_ms: float, path: Path
) -> None:
    """The acks around each fault as a strip, by steps from `before_ms` before it (None: not looked at), and each stall."""
    faults = list(range(1, result.kills + 1))
    word = "pause" if result.settings["pause_s"] else "kill"
    stalls = [one.stall_ms for one in result.stalls]
    height = 2.6 + max(1.2, min(4.4, 0.22 * result.kills))
    row_points = (height - 2.2) * 72 / result.kills

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        _strips(left, acks, step_ms, before_ms, result.settings["offered_messages_per_s"])
        left.axvline(0, color=RED, linewidth=1.6)
        left.axvline(STALL_GOAL_MS, color=QUIET, linewidth=1.2, linestyle=(0, (1, 2)))
        left.plot(stalls, faults, "|", color=AMBER, markersize=row_points * 0.9, markeredgewidth=2)
        left.set(title=f"Acks around each {word}, by {step_ms:g} ms", ylabel=word)
        left.set_xlabel(f"ms since the {word}; amber: first ack of a later message; dotted: {STALL_GOAL_MS:g} ms")
        left.yaxis.set_major_locator(FixedLocator(faults[:: -(-result.kills // ROWS_NAMED_MAX)]))
        left.set_ylim(result.kills + 0.5, 0.5)
        for at, name, colour, dashes in (
            (STALL_GOAL_MS, f"{STALL_GOAL_MS:g} ms", QUIET, (0, (1, 2))),
            (result.stall_ms.p50, f"p50 {result.stall_ms.p50:,.0f}", BLUE, (0, (4, 3))),
            (result.stall_ms.max, f"longest {result.stall_ms.max:,.0f}", RED, (0, (4, 3))),
        ):
            right.axvline(at, color=colour, linewidth=1.6, linestyle=dashes, label=name)
        right.hlines(faults, 0, stalls, color=GRID, linewidth=min(6.0, row_points / 3))
        right.plot(stalls, faults, "o", color=BLUE, markersize=min(7.0, row_points * 0.7), zorder=3)
        right.set(title="Stalls", xlabel=f"ms from the {word} to the first ack of a later message")
        right.set_xlim(0, max(*stalls, STALL_GOAL_MS) * 1.08)
        right.tick_params(axis="y", labelleft=False, length=0)
        right.grid(visible=False, axis="y")
        _legend(right)

    _save(result, path, draw, height=height)


def _strips(axes: Axes, acks: Sequence[Sequence[int | None]], step_ms: float, before_ms: float, offered_per_s: float) -> None:
    """A row for each fault: white where nothing was acked, the darker the more; twice what is offered is the darkest. What was
    not looked at, because the next fault came, is grey."""
    if not acks:
        return
    colours = LinearSegmentedColormap.from_list("acks", ["white", BLUE, INK]).with_extremes(bad=GRID)
    rows = [[math.nan if count is None else count for count in row] for row in acks]
    upto_ms = len(acks[0]) * step_ms - before_ms
    axes.imshow(
        rows, cmap=colours, vmin=0, vmax=2 * offered_per_s * step_ms / 1000, aspect="auto", interpolation="nearest",
        extent=(-before_ms, upto_ms, len(acks) + 0.5, 0.5),
    )  # fmt: skip
    axes.hlines([k + 0.5 for k in range(1, len(acks))], -before_ms, upto_ms, color="white", linewidth=1.2)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def rates_of(acked_at_s: Sequence[float], sampled_every: int, seconds: float) -> list[tuple[float, float]]:
    """(second, messages/s) over the run, from the moments of the sampled acks."""
    steps = min(40, max(1, len(acked_at_s) // 20))
    width = seconds / steps
    counts = [0] * steps
    for moment in acked_at_s:
        counts[min(steps - 1, int(moment / width))] += 1
    return [((step + 0.5) * width, count * sampled_every / width) for step, count in enumerate(counts)]


def draw_percentiles(axes: Axes, curves: Mapping[str, tuple[Curve, str]]) -> None:
    """Percentiles on an axis on which each further nine takes the same room."""
    drawn = {name: (curve, colour) for name, (curve, colour) in curves.items() if curve}
    worst = max((curve[-1][0] for curve, _ in drawn.values()), default=0.0)
    for name, (curve, colour) in drawn.items():
        axes.plot([100 / (100 - at) for at, _ in curve], [ms for _, ms in curve], color=colour, linewidth=2, label=name)
    for marked in MARKED:
        found = [(_at(curve, marked), colour) for curve, colour in drawn.values()]
        known = sorted(((ms, colour) for ms, colour in found if ms is not None), reverse=True)
        for rank, (milliseconds, colour) in enumerate(known):
            _mark(axes, 100 / (100 - marked), milliseconds, colour, above=rank == 0 and len(known) > 1)
    axes.set(xscale="log", yscale="log", title="Latency by percentile", xlabel="percentile", ylabel="milliseconds")
    ticks = [(at, label) for at, label in NINES if at <= worst] or [NINES[0]]
    axes.xaxis.set_major_locator(FixedLocator([100 / (100 - at) for at, _ in ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([label for _, label in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else ""))
    # Wide enough that at least one of the ticks 1, 2, 5 falls into it.
    values = [ms for curve, _ in curves.values() for _, ms in curve if ms > 0] or [1.0]
    axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
    if len(curves) > 1:
        _legend(axes)


def _at(curve: Curve, percentile: float) -> float | None:
    """The milliseconds at a percentile; None where the curve has too few samples to say."""
    return next((ms for at, ms in curve if at >= percentile - 1e-6), None)


def _mark(axes: Axes, x: float, milliseconds: float, colour: str, *, above: bool) -> None:
    """A point on a curve, with its value where a rising curve leaves room: to the lower right, or, of the upper one of two
    curves, to the upper left.
    """
    axes.plot([x], [milliseconds], "o", color=colour, markersize=5)
    value = f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"
    axes.annotate(
        value, (x, milliseconds), (-6, 6) if above else (6, -13), textcoords="offset points",
        ha="right" if above else "left", color=colour, weight="bold", fontsize=9,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip


def _rate(axes: Axes, rates: Sequence[tuple[float, float]], result: Result) -> None:
    unit, word = (1000, "thousand messages/s") if result.messages_per_s >= 10_000 else (1, "messages/s")
    seconds, shown, mean = [at for at, _ in rates], [rate / unit for _, rate in rates], result.messages_per_s / unit
    axes.fill_between(seconds, shown, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(seconds, shown, color=BLUE, linewidth=1.6, label="acks")
    axes.axhline(mean, color=AMBER, linewidth=1.6, linestyle=(0, (4, 3)), label=f"mean {mean:,.3g}")
    axes.set(title="Acks over time", xlabel="seconds since the first hand-over", ylabel=word)
    axes.set_ylim(0, max([*shown, mean]) * 1.1)
    axes.set_xlim(0, result.seconds)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _legend(axes)


def _legend(axes: Axes) -> None:
    """In the row of the title, at its other end, where no curve comes."""
    axes.legend(
        ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.3, handlelength=1.4, columnspacing=1.4, fontsize=9
    )


def _save(result: Result, path: Path, draw: Callable[[Figure], None], height: float = 4.6) -> None:
    """Draw in the common style, with the answer above and what it was measured on below."""
    check_suffix(path)
    with mpl.rc_context(STYLE):
        # Room for the words above and below, in inches whatever the figure's height.
        top, bottom = 0.86 / height, 0.36 / height
        layout = ConstrainedLayoutEngine(rect=(0.01, bottom, 0.98, 1 - top - bottom), wspace=0.06, hspace=0.1)
        figure = pyplot.figure(figsize=(11, height), layout=layout)
        try:
            answer, _, verdict = headline(result).plain.partition(" · ")
            figure.text(
                0.018, 1 - 0.14 / height, answer, va="top", fontsize=14, weight="bold", color=RED if result.failed else INK
            )
            figure.text(0.018, 1 - 0.48 / height, verdict, va="top", fontsize=9.5, color=QUIET)
            draw(figure)
            machine = result.machine
            small = f"trilogue bench {result.command} · commit {result.commit} · {machine['cpu']}, {machine['cores']} cores"
            small += f" · {machine['kernel']} · {machine['filesystem']}"
            figure.text(0.018, 0.1 / height, small, va="bottom", fontsize=7.5, color=QUIET)
            with warnings.catch_warnings():
                # People name sessions in scripts that the font may lack; a box in their place is no reason to say so.
                warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
                figure.savefig(path, dpi=160)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        finally:
            pyplot.close(figure)
