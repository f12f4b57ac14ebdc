"""The outbox that survives its process: which messages go into which commit, and when they may leave the file.

Owns the bookkeeping between lanes and the groups in the file. It must not know SQLite or threads: `start` is told what to
commit, and `committed` is called when that returned. Rules:

1. A message is submitted only after its commit returned: after a crash, no number is used for another body.
2. One commit is under way at a time; what is handed over meanwhile is the next one. There is no timer.
3. A group is deleted once all its messages have their outcome, in the same transaction that writes down its lanes' numbers, or
   in a later one. Deletes ride along with a commit; when idle, they are made after a moment.
4. What was given up is written down before anybody hears of it (``given_up``).
5. What a lane numbers anew is committed whole, together with the end of its old numbering.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from trilogue.actors.protocol.errors import ClientClosed, OutboxUnusable, TrilogueError, counted
from trilogue.actors.protocol.limits import Limits
from trilogue.client.outbox.cursors import Cursors
from trilogue.client.outbox.given_up import GivenUpNumbers
from trilogue.client.outbox.outbox import Outbox, Tell
from trilogue.client.outbox.sqlite import Commit, LaneRow, Stored, StoredRun
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES, TOLD_BEFORE, Lane

RIDING_LANES_MAX = 64
DELETABLE_MESSAGES_MAX = 16_384


class Batch:
    """A group of messages in the file. `unsettled` counts the lanes' parts in it that are not settled."""

    __slots__ = ("bytes", "id", "lanes", "messages", "unsettled")

    def __init__(self, number: int) -> None:
        self.id = number
        self.unsettled = 0
        self.lanes: list[Lane] = []
        self.messages = self.bytes = 0


class Saving(NamedTuple):
    """A lane's messages in the commit that is under way."""

    lane: Lane
    outbox_id: str
    messages: int
    size_bytes: int


class FileOutbox(Outbox):
    """An outbox in a file. `start` begins a commit; `tidy_soon` asks for a call of `tidy` in a moment."""

    durable = True

    def __init__(
        self,
        limits: Limits,
        fresh_id: Callable[[], str],
        wake: Callable[[], None],
        start: Callable[[Commit], None],
        tidy_soon: Callable[[], None],
    ) -> None:
        super().__init__(limits, fresh_id, wake)
        self.path = ""
        self._start = start
        self._tidy_soon = tidy_soon
        self._stored_id = self.outbox_id
        self._next_batch = 1
        self._live = 0  # groups in the file
        self._under_way: tuple[Commit, list[Saving], int] | None = None  # …, and how many marks of dirty lanes it takes
        self._marks_done = 0
        self._savers: deque[tuple[int, Callable[[TrilogueError | None], None]]] = deque()
        self._rows: list[LaneRow] = []  # ends of numberings, for the next commit
        self._released: list[Batch] = []  # parts that the next commit numbers anew elsewhere
        self._renamed: set[Lane] = set()
        self._deletable: list[Batch] = []
        self._deletable_lanes: dict[Lane, None] = {}
        self._deletable_messages = self._deletable_bytes = 0
        self._retired = False
        self._cursors = Cursors()
        self._given_up = GivenUpNumbers()

    # ------------------------------------------------------------------ opening

    def restore(self, path: str, stored: Stored) -> None:
        """Take over what a former process left. Raises `OutboxUnusable` when its numbers do not follow each other."""
        self.path = path
        self.outbox_id = self._stored_id = stored.outbox_id
        numbers: dict[tuple[str, str, str], int] = {}
        for session, sender, outbox_id, next_n, retired in stored.lanes:
            numbers[(session, sender, outbox_id)] = next_n
            self._retired |= bool(retired)
            if not retired:
                self._adopt(Lane(session, sender, outbox_id, next_n))
        for number, runs in stored.batches:
            batch = Batch(number)
            self._live += 1
            self._next_batch = number + 1
            for run in runs:
                self._restore_run(batch, run, numbers)
            if not batch.unsettled:
                self._now_deletable(batch)
        self._given_up.found(stored.given_up)
        for session, sender, outbox_id, n in stored.given_up:
            given = self.lanes.get((session, sender))
            if given is not None and given.outbox_id == outbox_id and given.first_n <= n < given.next_n:
                given.refusals[n] = TOLD_BEFORE
        for lane in self.lanes.values():
            lane.submitted_n = lane.next_n - 1  # a former process may have submitted all of it
            lane.saved, lane.saved_bytes = len(lane.bodies), lane.size_bytes
            self.messages += lane.saved
            self.bytes += lane.saved_bytes + lane.key_bytes

    def _adopt(self, lane: Lane) -> None:
        if (lane.session, lane.sender) in self.lanes:
            text = f"the outbox {self.path} numbers sender {lane.sender!r} in session {lane.session!r} in two ways"
            raise OutboxUnusable(f"{text}: give another file (this one is left as it is)")
        self.lanes[(lane.session, lane.sender)] = lane

    def _restore_run(self, batch: Batch, run: StoredRun, numbers: dict[tuple[str, str, str], int]) -> None:
        session, sender, outbox_id, first_n, times, bodies, *keys = run
        settled = numbers.get((session, sender, outbox_id), 1)
        last_n = first_n + len(bodies) - 1
        if last_n < settled:
            return
        lane = self.lanes.get((session, sender))
        if lane is None or lane.outbox_id != outbox_id:
            lane = Lane(session, sender, outbox_id, max(first_n, settled))
            self._adopt(lane)
        known = max(settled - first_n, 0)
        if first_n + known != lane.next_n:
            text = f"the outbox {self.path} lacks number {lane.next_n} of sender {sender!r} in session {session!r}"
            raise OutboxUnusable(f"{text}: restore the file, or give another one (this one is left as it is)")
        for k, key in enumerate(keys[0][known:] if keys else ()):
            if key is not None:
                lane.keys[lane.next_n + k + lane.shift] = key
        lane.bodies += bodies[known:]
        lane.times += times[known:]
        lane.futures += [None] * (len(bodies) - known)
        size = sum(map(len, bodies[known:])) + MESSAGE_OVERHEAD_BYTES * (len(bodies) - known)
        lane.size_bytes += size
        self._add_part(batch, lane, last_n, len(bodies) - known, size)

    def _add_part(self, batch: Batch, lane: Lane, last_n: int, count: int, size: int) -> None:
        batch.unsettled += 1
        batch.lanes.append(lane)
        batch.messages += count
        batch.bytes += size
        if lane.parts is None:
            lane.parts = deque()
        lane.parts.append((last_n, batch))

    # ------------------------------------------------------------------ commits

    def save(self) -> None:
        """Begin a commit of what is dirty, unless one is under way: that one's end begins the next."""
        due = self.dirty or self._rows or self._cursors.due or self._given_up.due
        if self._under_way is None and self.failed is None and due:
            self._begin()

    def tidy(self) -> None:
        """Delete what needs not be kept, although nothing else is to be committed."""
        if self._under_way is None and self.failed is None and (self._deletable or self._rows or self._released):
            self._begin(tidying=True)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or due: the file may be closed."""
        due = self.dirty or self._rows or self._released or self._deletable or self._cursors.due or self._given_up.due
        return self._under_way is None and (self.failed is not None or not due)

    def _begin(self, tidying: bool = False) -> None:
        for batch in self._released:
            self._settle_part(batch)
        self._released = []
        batch = Batch(self._next_batch)
        saving, marks = self._take_dirty(batch)
        rows, self._rows = self._rows, []
        delete: list[int] = []
        if tidying or not saving or self._deletes_ride():
            delete = [old.id for old in self._deletable]
            rows += [
                (lane.session, lane.sender, lane.outbox_id, lane.first_n, 0)
                for lane in self._deletable_lanes
                if lane.stopped is None and self.lanes.get((lane.session, lane.sender)) is lane
            ]
            self._live -= len(delete)
            self._deletable, self._deletable_lanes = [], {}
            self._deletable_messages = self._deletable_bytes = 0
        forget = self._retired and self._live == 0 and not saving
        if saving:
            self._next_batch += 1
            self._live += 1
        runs: list[StoredRun] = []
        for lane, outbox_id, count, _ in saving:
            first, end = lane.saved, lane.saved + count
            run = [lane.session, lane.sender, outbox_id, lane.first_n + first, lane.times[first:end], lane.bodies[first:end]]
            if keys := lane.keys_of(first, end):
                run.append(keys)
            runs.append(run)
        renewed = self.outbox_id if self.outbox_id != self._stored_id else None
        given_up = self._given_up.take({one.lane: one.messages for one in saving}) if self._given_up.due else ()
        commit = Commit(
            batch.id if saving else 0, runs, rows, delete, renewed, forget, self._cursors.take(), given_up,
            self._given_up.settled(rows),
        )  # fmt: skip
        self._retired = (self._retired or any(row[4] for row in rows)) and not forget
        self._under_way = (commit, saving, marks)
        self._start(commit)

    def _take_dirty(self, batch: Batch) -> tuple[list[Saving], int]:
        """What the next commit saves, about `outbox_commit_bytes_max` of it; the rest stays dirty, in its order."""
        saving: list[Saving] = []
        room = self._limits.outbox_commit_bytes_max
        messages_max = self._limits.outbox_messages_max
        dirty, done = self.dirty, 0
        for lane in dirty:
            if room <= 0 and lane not in self._renamed:
                break
            count, size = len(lane.bodies) - lane.saved, lane.size_bytes - lane.saved_bytes
            if count > 0 and size > room and lane not in self._renamed:
                count, size = lane.fit(lane.saved, len(lane.bodies), messages_max, room)
            if count > 0:
                saving.append(Saving(lane, lane.outbox_id, count, size))
                self._add_part(batch, lane, lane.first_n + lane.saved + count - 1, count, size)
                room -= size + lane.overhead_bytes
                if lane.saved + count < len(lane.bodies):
                    break
            lane.dirty = False
            done += 1
        self._renamed.clear()
        self.dirty = dirty[done:]
        return saving, done

    def _deletes_ride(self) -> bool:
        """Whether deleting now is cheap (few lanes' numbers to write) or due (much can be deleted)."""
        return (
            len(self._deletable_lanes) <= RIDING_LANES_MAX
            or self._deletable_messages >= DELETABLE_MESSAGES_MAX
            or self._deletable_bytes >= self._limits.outbox_commit_bytes_max
        )

    def committed(self, error: TrilogueError | None) -> None:
        """The commit that is under way returned."""
        assert self._under_way is not None
        commit, saving, marks = self._under_way
        self._under_way = None
        if error is not None:
            self._fail(error)
            return
        if commit.outbox_id is not None:
            self._stored_id = commit.outbox_id
        for lane, outbox_id, count, size in saving:
            if lane.outbox_id != outbox_id or lane.stopped is not None:
                continue  # it was numbered anew, or stopped, meanwhile
            lane.saved += count
            lane.saved_bytes += size
            if lane.flow is not None:
                lane.flow.ready(lane)
        self._marks_done += marks
        while self._savers and self._savers[0][0] <= self._marks_done:
            self._savers.popleft()[1](None)
        self._cursors.committed()
        self._given_up.committed(None)
        self.save()
        if self._under_way is None and self._deletable:
            self._tidy_soon()

    def when_saved(self, tell: Callable[[TrilogueError | None], None]) -> None:
        """Call `tell` once all that was handed over so far is in the file, or with the error that prevents it."""
        under_way = self._under_way[2] if self._under_way is not None else 0
        target = self._marks_done + under_way + len(self.dirty)
        if self.failed is not None or target == self._marks_done:
            tell(self.failed)
        else:
            self._savers.append((target, tell))

    def confirm(self, name: str, session: str, seq: int, tell: Callable[[TrilogueError | None], None]) -> None:
        """A reader has handled everything up to `seq`: `tell` is called when that is in the file, or with what prevents it."""
        if self.failed is not None:
            tell(self.failed)
            return
        self._cursors.confirm(name, session, seq, tell)
        self.save()

    def give_up(self, lane: Lane, n: int, tell: Tell) -> None:
        """As in memory, once the file says so."""
        if self.failed is not None:
            tell(self.failed)
            return
        self._given_up.add(lane, n, tell)
        self.save()

    def _move_savers(self) -> None:
        """The order of what is dirty changed: those who wait now wait for all of it."""
        waiting, self._savers = self._savers, deque()
        for _, tell in waiting:
            self.when_saved(tell)

    def _fail(self, error: TrilogueError) -> None:
        """The disk failed: what is not known to be saved fails, and nothing more is taken. What is saved is still sent."""
        self.failed = error
        self.cache.clear()
        self.dirty = []
        for lane in self.lanes.values():
            futures, size = lane.drop_unsaved()
            if not futures:
                continue
            self.messages -= len(futures)
            self.bytes -= size
            lane.dirty = False
            lane.failures += len(futures)
            lane.error = error
            for future in futures:
                if future is not None and not future.done():
                    future.set_exception(type(error)(*error.args))
        while self._savers:
            self._savers.popleft()[1](error)
        self._cursors.failed(error)
        self._given_up.committed(error)

    # ------------------------------------------------------------------ settling

    def settled(self, lane: Lane) -> None:
        """Messages of `lane` have their outcome: count their groups down."""
        parts = lane.parts
        first_n = lane.first_n
        while parts and parts[0][0] < first_n:
            batch = parts.popleft()[1]
            assert isinstance(batch, Batch)
            self._settle_part(batch)

    def _settle_part(self, batch: Batch) -> None:
        batch.unsettled -= 1
        if batch.unsettled == 0:
            self._now_deletable(batch)

    def _now_deletable(self, batch: Batch) -> None:
        if not self._deletable:
            self._tidy_soon()
        self._deletable.append(batch)
        for lane in batch.lanes:
            self._deletable_lanes[lane] = None
        self._deletable_messages += batch.messages
        self._deletable_bytes += batch.bytes

    def retire(self, lane: Lane) -> None:
        """The next commit writes down that this numbering has ended, and its groups need not be kept for it."""
        self._rows.append((lane.session, lane.sender, lane.outbox_id, lane.next_n, 1))
        if lane.parts:
            self._released += [part for _, part in lane.parts if isinstance(part, Batch)]
            lane.parts.clear()
        self._tidy_soon()

    def rename(self, lane: Lane) -> None:
        """As in memory; the lane stands first in the next commit, and stands in it whole."""
        super().rename(lane)
        for n in lane.refusals:
            self._given_up.add(lane, n, _nobody)
        if lane.bodies:
            self._renamed.add(lane)
            self.dirty.remove(lane)
            self.dirty.insert(0, lane)
            self._move_savers()

    def abandon(self, lane: Lane) -> None:
        """The lane stopped: its groups stay in the file, where the next process and its operator find them."""
        super().abandon(lane)
        self._rows.append((lane.session, lane.sender, lane.outbox_id, lane.first_n, 0))
        lane.parts = None

    def left_behind(self, count: int) -> TrilogueError:
        """What those hear who still wait when the client closes: their messages are in the file."""
        return ClientClosed(f"the client was closed; {self.path} keeps {counted(count, 'message')} for the next client to send")


def _nobody(_: TrilogueError | None) -> None:
    """Nobody waits for it."""
