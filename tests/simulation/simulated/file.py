"""A client's outbox file: what ``client.outbox.sqlite`` keeps, without SQLite.

Owns what survives the client's process. A commit is applied whole or not at all, some time after it was begun.
"""

from __future__ import annotations

from trilogue.client.outbox.sqlite import Commit, LaneRow, NumberRow, Stored, StoredRun


class OutboxFile:
    """The file. `cursors` holds how far each session was read, as a reader keeps it in the same file."""

    def __init__(self, outbox_id: str) -> None:
        self.outbox_id = outbox_id
        self.lanes: dict[tuple[str, str, str], LaneRow] = {}
        self.batches: dict[int, list[StoredRun]] = {}
        self.given_up: set[NumberRow] = set()
        self.cursors: dict[str, int] = {}

    def load(self) -> Stored:
        """All that it holds."""
        batches = [
            (number, [[*run[:4], list(run[4]), list(run[5]), *map(list, run[6:])] for run in runs])
            for number, runs in self.batches.items()
        ]
        return Stored(self.outbox_id, list(self.lanes.values()), batches, tuple(sorted(self.given_up)))

    def apply(self, commit: Commit) -> None:
        """Make a commit durable."""
        if commit.batch_id:
            self.batches[commit.batch_id] = commit.runs
        for row in commit.lanes:
            self.lanes[row[:3]] = row
        for number in commit.delete:
            self.batches.pop(number, None)
        self.given_up |= set(commit.given_up)
        for *lane, below in commit.settled:
            self.given_up -= {row for row in self.given_up if list(row[:3]) == lane and row[3] < below}
        if commit.forget_retired:
            self.lanes = {key: row for key, row in self.lanes.items() if not row[4]}
        if commit.outbox_id is not None:
            self.outbox_id = commit.outbox_id
