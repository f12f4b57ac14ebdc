"""What commands write on: terminals, files, pipes, and pipes that nobody reads any more.

Owns the console of every command. It must not know what is written. Invariants: a reader that has seen enough (`| head`) ends
neither the work nor its verdict: the rest is written to nowhere, and the exit code says what it would have said; where there
is no terminal, lines are as long as they need to be.
"""

from __future__ import annotations

from rich.console import Console

from trilogue.cluster.commands.output import silence

WIDTH_WITHOUT_TERMINAL = 200


class Paper(Console):
    """Standard output, or standard error."""

    def __init__(self, *, stderr: bool = False, highlight: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=highlight)
        if not self.is_terminal:
            self.width = WIDTH_WITHOUT_TERMINAL

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        self.quiet = True
        silence(self.file)
