"""Where a long benchmark is, for the person who waits.

Owns the line on standard error. It must not know what the phases mean. Invariants: nothing is shown unless standard error is
a terminal, and standard output is never touched.
"""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from trilogue.cluster.commands.paper import Paper


class Progress:
    """One line with the present phase; a context manager, so that the line goes when the work ends."""

    def __init__(self) -> None:
        console = Paper(stderr=True)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self.about = ""

    def phase(self, name: str, done: int = 0, total: int | None = None) -> None:
        """The work is in phase `name`, at `done` of `total`; without a total nobody knows how long it takes."""
        described = f"{self.about}{name}"
        if described != self._phase or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(described, total=total)
            self._phase = described
        self._bars.update(self._task, completed=done, total=total)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
