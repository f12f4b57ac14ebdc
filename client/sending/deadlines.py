"""The clock of the messages' deadlines.

Owns one timer: of the deadline that comes next. It must not know what happens then (``giving_up``). Invariant: while a
message has a deadline, the timer is set for it or for an earlier one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from trilogue.client.outbox.outbox import Outbox
from trilogue.client.sending.giving_up import GivingUp
from trilogue.client.sending.lanes import Lane, Waiter


class Deadlines:
    """One client's. `wake` is called when something was given up: there is something to save and to send."""

    def __init__(self, outbox: Outbox, wake: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._giving_up = GivingUp(outbox)
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, lane: Lane, waiter: Waiter, deadline_s: float, passed_s: float = 0.0) -> None:
        """The message that `lane` has taken last, so many seconds ago, has this deadline."""
        due = self._loop.time() + deadline_s - passed_s
        self._giving_up.watch(lane, waiter, due, deadline_s)
        if self._timer is None or due < self._timer.when():
            self._set(due)

    def cancel(self, waiter: Waiter) -> bool:
        """As `Client.cancel`."""
        cancelled = self._giving_up.cancel(waiter)
        if cancelled:
            self._wake()
        return cancelled

    def close(self) -> None:
        """No deadline passes any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._expire) if due is not None else None

    def _expire(self) -> None:
        self._timer = None
        self._set(self._giving_up.expire(self._loop.time()))
        self._wake()
