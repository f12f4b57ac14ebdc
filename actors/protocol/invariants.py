"""The check that stays under ``python -O``.

Owns the one way to say "this cannot happen". A broken invariant is a bug in trilogue, never a user's fault:
whoever runs effects ends the process on it (``trilogue.actors.pump``), because going on could lose or repeat
a message.
"""

from __future__ import annotations

from typing import NoReturn


class InvariantBroken(AssertionError):
    """A rule of the protocol does not hold in this process. The process must end; the disks decide what is true."""


def require(condition: object, what: str, *details: object) -> None:
    """Raise `InvariantBroken` with `what` unless `condition` holds, under ``python -O`` too.

    `details` fill the ``{}`` of `what`, and only then: texts that nobody reads took a fifth of a store's time on an append.
    """
    if not condition:
        violated(what, *details)


def violated(what: str, *details: object) -> NoReturn:
    """Raise `InvariantBroken` with `what`: on hot paths, `if not …: violated(…)` is `require` without its call (0.1 µs)."""
    raise InvariantBroken(what.format(*details) if details else what)
