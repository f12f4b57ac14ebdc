"""What the commands show while they work, and when they are done.

Owns terminals: progress on standard error, results on standard output. It must not know what the work is.
Invariant: where standard error is no terminal, progress is plain lines, so that logs stay readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

if TYPE_CHECKING:
    from trilogue.cluster.commands.up_down import Outcome

PROBLEMS_SHOWN = 20


class Bars(Protocol):
    """Progress of a work of known size, in several parts."""

    def advance(self, part: str, done: int, total: int) -> None:
        """`done` of `total` of `part` is done."""
        ...


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Says what is being done now."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        said: list[str] = []

        def say(what: str) -> None:
            if what not in said[-1:]:
                said.append(what)
                console.print(what, markup=False, soft_wrap=True)

        yield say
        return
    with console.status("…") as status:
        yield lambda what: status.update(what)


class _RichBars:
    def __init__(self, console: Console) -> None:
        from rich.progress import Progress

        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, Any] = {}

    def advance(self, part: str, done: int, total: int) -> None:
        if part not in self._tasks:
            self._tasks[part] = self.progress.add_task(part, total=total)
        self.progress.update(self._tasks[part], completed=done, total=total)


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars on a terminal; nothing elsewhere."""
    shown = _RichBars(Console(stderr=True))
    with shown.progress:
        yield shown


def started(outcome: Outcome) -> None:
    """What runs, where, and what to do next."""
    run = outcome.run
    console = Console(highlight=False)
    what = "runs already" if outcome.was_running else "is up"
    stores = [name for name in run.actors if name.startswith("store-")]
    sessions = [name for name in run.actors if name.startswith("session-")]
    option = f" --data {run.data}"
    for line in (
        f"trilogue {what}: {len(stores)} stores, {len(sessions)} partitions",
        f"  address  {next(iter(run.actors.values()), '')}   (token: {run.token_file})",
        f"  data     {run.data}",
        f"  logs     {run.logs}",
        "next:",
        f"  trilogue send{option} room-42 'hello'",
        f"  trilogue tail{option} room-42",
        f"  trilogue status{option}",
        f"  trilogue down{option}",
    ):
        console.print(line, markup=False, soft_wrap=True)
    if outcome.overshadowed:
        console.print(
            f"the system of {outcome.overshadowed} keeps running: reach it with --data {outcome.overshadowed}",
            markup=False,
            soft_wrap=True,
        )


def verified(report: dict[str, Any]) -> None:
    """The verdict, and the first problems."""
    console = Console(highlight=False)
    counts = report["counts"]
    console.print(
        f"{counts['messages']} messages in {counts['sessions']} sessions, {counts['frames']} frames on "
        f"{len(report['stores'])} stores, {report['partitions']} partitions, {report['seconds']:.1f} s",
        soft_wrap=True,
    )
    for problem in report["problems"][:PROBLEMS_SHOWN]:
        console.print(f"  {problem['kind']}: {problem['where']}: {problem['text']}", markup=False, soft_wrap=True)
    if report["problem_count"] > PROBLEMS_SHOWN:
        console.print(f"  … and {report['problem_count'] - PROBLEMS_SHOWN} more")
    for note in report["notes"]:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    console.print("verified: nothing damaged, lost, doubled or out of order" if report["ok"] else "NOT OK: see above")
