"""What the commands show while they work, and when they are done.

Owns terminals: progress on standard error, results on standard output. It must not know what the work is.
Invariant: where standard error is no terminal, progress is plain lines, so that logs stay readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from trilogue.actors.protocol.errors import counted
from trilogue.cluster.commands.paper import Paper

if TYPE_CHECKING:
    from trilogue.cluster.commands.rescue import Facts
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
    console = Paper(stderr=True)
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


@contextmanager
def lines() -> Iterator[Callable[[str], None]]:
    """Says what is being done now, a line each: for a work that asks questions in between."""
    console = Paper(stderr=True)
    yield lambda what: console.print(what, markup=False, soft_wrap=True)


class _RichBars:
    def __init__(self, console: Paper) -> None:
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
    shown = _RichBars(Paper(stderr=True))
    with shown.progress:
        yield shown


def started(outcome: Outcome) -> None:
    """What runs, where, and what to do next."""
    run = outcome.run
    console = Paper()
    what = "runs already" if outcome.was_running else "is up"
    stores = [name for name in run.actors if name.startswith("store-")]
    sessions = [name for name in run.actors if name.startswith("session-")]
    option = f" --data {run.data}"
    for line in (
        f"trilogue {what}: {counted(len(stores), 'store')}, {counted(len(sessions), 'SessionActor')}",
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
    console = Paper()
    counts = report["counts"]
    console.print(
        f"{counted(counts['messages'], 'message')} in {counted(counts['sessions'], 'session')}, "
        f"{counted(counts['frames'], 'frame')} on {counted(len(report['stores']), 'store')}, "
        f"{counted(report['partitions'], 'partition')}, {report['seconds']:.1f} s",
        soft_wrap=True,
    )
    for problem in report["problems"][:PROBLEMS_SHOWN]:
        console.print(f"  {problem['kind']}: {problem['where']}: {problem['text']}", markup=False, soft_wrap=True)
    if report["problem_count"] > PROBLEMS_SHOWN:
        console.print(f"  … and {report['problem_count'] - PROBLEMS_SHOWN} more")
    for note in report["notes"]:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    for repair in report.get("repairs", ()):
        for line in (
            f"repaired {repair['store']}: {counted(repair['frames'], 'frame')}, "
            f"{repair['frames_from_others']:,} of them from other stores",
            f"  what was there before is kept in {repair['kept']} ({repair['kept_bytes'] / 1e6:.1f} MB): "
            "it may be removed when `trilogue verify` is content",
        ):
            console.print(line, markup=False, soft_wrap=True)
    console.print("verified: nothing damaged, lost, doubled or out of order" if report["ok"] else "NOT OK: see above")
    if report.get("mendable"):
        console.print("`trilogue verify --repair` makes the damaged stores whole again: their peers have all that they lack")


def exported(report: dict[str, Any]) -> None:
    """What was added."""
    console = Paper()
    if not report["files"]:
        console.print(f"nothing new: {counted(report['messages_in_all'], 'message')} are there", soft_wrap=True)
        return
    console.print(
        f"{counted(report['messages'], 'message')} of {counted(report['sessions'], 'session')} in "
        f"{counted(report['files'], 'new file')}, {report['seconds']:.1f} s; "
        f"{counted(report['messages_in_all'], 'message')} in all in {report['to']}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def compared(report: dict[str, Any]) -> None:
    """The verdict on an export, and the first problems."""
    console = Paper()
    console.print(
        f"{counted(report['messages'], 'message')} in {counted(report['files'], 'file')} compared, {report['seconds']:.1f} s",
        soft_wrap=True,
    )
    for problem in report["problems"][:PROBLEMS_SHOWN]:
        console.print(f"  {problem['kind']}: {problem['where']}: {problem['text']}", markup=False, soft_wrap=True)
    if report["problem_count"] > PROBLEMS_SHOWN:
        console.print(f"  … and {report['problem_count'] - PROBLEMS_SHOWN} more")
    for note in report["notes"]:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    console.print("the export is what the stores hold" if report["ok"] else "NOT OK: see above")


def rescue_asked(facts: Facts) -> None:
    """What a rescue would do, and what may be lost by it."""
    from trilogue.cluster.commands.rescue import may_lose

    console = Paper(stderr=True)
    keepers, votes = ", ".join(facts.charter.acceptors), ", ".join(facts.votes) or "none"
    lost = ", ".join(facts.lost) or "none"
    for line in (
        f"the register is kept by {keepers} (charter {facts.charter.number}); with their memory are there: {votes}",
        f"gone for good, as you say: {lost}"
        + (f"; new and empty under their names: {', '.join(facts.fresh)}" * bool(facts.fresh)),
        f"what is left: {', '.join(facts.left)}",
        "a rescue that was begun before is finished:" if facts.resumed else "what will be done:",
        f"  1. on {', '.join(facts.left)}, no writer of before is obeyed any more, in {counted(facts.partitions, 'partition')}",
        "  2. the register is founded anew by what is left, and gives no vote under its old charter for ever",
        "  3. each partition goes on from the longest log that is left, as soon as there are enough stores",
        "a lost store that comes back with its old data after this is like an empty one: its votes count for nothing",
    ):
        console.print(line, markup=False, soft_wrap=True)
    if facts.whole:
        console.print(
            f"no acked message is lost: each is on {facts.least} stores at least, and so on one that is left",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print(f"MESSAGES MAY BE LOST: {may_lose(facts)}", markup=False, soft_wrap=True)


def rescued(report: dict[str, Any]) -> None:
    """What a rescue has done, and what is to be done now."""
    console = Paper()
    console.print(
        f"rescued: the register is kept by {', '.join(report['keepers'])} (charter {report['charter']})", soft_wrap=True
    )
    for one in report["partitions"]:
        where = f"partition {one['partition']}"
        console.print(
            f"  {where}: goes on from {one['from']}, with {counted(one['frames'], 'frame')}", markup=False, soft_wrap=True
        )
        for first, last in one["lost"]:
            text = f"  {where} STAYS CLOSED: no store that is left has its frames {first}-{last}"
            console.print(f"{text}; look for the lost stores' disks", markup=False, soft_wrap=True)
        for given_up in one["given_up"]:
            console.print(f"  {where}: given up: {given_up}", markup=False, soft_wrap=True)
    there, least = report["stores_there"], report["min_copies"]
    if there < least:
        console.print(
            f"{_are_there(there)}, and nothing is acked before {least} are: start the missing ones (empty ones will do), "
            "add others with `trilogue up --stores N`, or go on with fewer copies with `trilogue up --min-copies N`",
            markup=False,
            soft_wrap=True,
        )
    elif there < report["copies"]:
        console.print(f"{_are_there(there)}: messages get so many copies until there are {report['copies']}", soft_wrap=True)
    console.print("see `trilogue status`, then `trilogue verify`")


def _are_there(stores: int) -> str:
    return f"{counted(stores, 'store')} {'is' if stores == 1 else 'are'} there"
