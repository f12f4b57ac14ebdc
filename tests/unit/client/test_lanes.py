"""Lanes, flow, answers and both outboxes against a tiny model of a SessionActor, in whatever order Hypothesis finds.

What must hold: nothing lost, nothing twice, each sender's order, and a file that holds what it was said to hold (G4, G5, G10).
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trilogue.actors.protocol.errors import GivenUp, MessageTooLarge, TrilogueError
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.protocol.messages import Ack
from trilogue.actors.protocol.vocabulary import Code
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.outbox.outbox import Outbox
from trilogue.client.outbox.sqlite import Commit, Stored
from trilogue.client.reading.heads import Heads
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.flow import Flow
from trilogue.client.sending.giving_up import GivingUp
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES

SMALL = Limits(
    body_bytes_max=400, run_messages_max=3, submit_bytes_max=1000, in_flight_messages_max=8, in_flight_bytes_max=2000,
    outbox_messages_max=1000, outbox_commit_bytes_max=600, lanes_max=DEFAULT_LIMITS.lanes_max,
)  # fmt: skip
TOO_LARGE = b"L" * 300
FATES = st.sampled_from(["once", "once", "once", "twice", "never", "late"])
LANES = [("red", "ann"), ("red", "bob"), ("blue", "ann")]


class Caller:
    """Stands for a future."""

    def __init__(self) -> None:
        self.outcome: Ack | TrilogueError | None = None
        self.cancelled = False

    def done(self) -> bool:
        return self.cancelled or self.outcome is not None

    def set_result(self, result: Ack) -> None:
        assert not self.done(), "two outcomes for one message"
        self.outcome = result

    def set_exception(self, exception: TrilogueError) -> None:
        assert not self.done(), "two outcomes for one message"
        self.outcome = exception


class Server:
    """A SessionActor in forty lines: one log; what is not committed may be lost in a crash."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int, bytes | None]] = []  # (session, sender_id, n, body; None: a skip)
        self.committed = 0
        self.epoch = 1
        self.overloaded = False

    def numbers(self, session: str, sender_id: str) -> dict[int, bytes | None]:
        return {n: body for s, i, n, body in self.log if (s, i) == (session, sender_id)}

    def seq(self, session: str, sender_id: str, n: int) -> int:
        """The message's seq; 0 for a skip."""
        seq = 0
        for s, i, number, body in self.log:
            seq += s == session and body is not None
            if (s, i, number) == (session, sender_id, n):
                return seq if body is not None else 0
        raise AssertionError("not in the log")

    def take(self, session: str, sender_id: str, n: int, body: bytes | None) -> tuple[int, int] | None:
        """Accept one message (None), or refuse it: (code, expected_n)."""
        numbers = self.numbers(session, sender_id)
        next_n = len(numbers) + 1
        if n < next_n:
            same = body is None or numbers[n] is None or numbers[n] == body
            assert same, "one number was used for two bodies (G5)"
            return None
        if n > next_n:
            return Code.OUT_OF_ORDER, next_n
        if body == TOO_LARGE:
            return Code.MESSAGE_TOO_LARGE, n
        if self.overloaded:
            return Code.OVERLOADED, n
        self.log.append((session, sender_id, n, body))
        return None


class MemoryMachine(RuleBasedStateMachine):
    """An outbox in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = (f"{k:032x}" for k in itertools.count(1))
        self.now = 0.0
        self.server = Server()
        self.posted: dict[tuple[str, str], list[tuple[bytes, Caller]]] = {lane: [] for lane in LANES}
        self.bodies = itertools.count()
        self.submitted: set[bytes] = set()
        self.may_end: set[bytes] = set()  # they had a deadline, or were cancelled
        self.told_so: set[bytes] = set()  # their sender has heard that they were given up
        self.to_server: list[tuple[str, Any]] = []
        self.to_client: list[tuple[str, int, Any]] = []
        self.awaited: list[tuple[int, list[Any]]] = []  # acks that wait for the commit of the log up to there
        self.outbox = self.new_outbox()
        self.connect_parts()

    def new_outbox(self) -> Outbox:
        return Outbox(SMALL, lambda: next(self.ids), lambda: None)

    def connect_parts(self) -> None:
        self.flow = Flow(0, SMALL)
        self.answers = Answers(self.flow, self.outbox, Heads())
        self.giving_up = GivingUp(self.outbox)
        for lane in self.outbox.lanes.values():
            self.flow.add(lane)

    @initialize()
    def start(self) -> None:
        self.open()

    # ------------------------------------------------------------------ the client

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 5), large=st.booleans(), size=st.sampled_from([5, 200]))
    def post(self, lane: tuple[str, str], count: int, large: bool, size: int) -> None:
        for k in range(count):
            body = TOO_LARGE if large and k == 1 else b"%05d" % next(self.bodies) + b"x" * (size - 5)
            self.hand_over(lane, body)

    @rule(lane=st.sampled_from(LANES), count=st.integers(1, 4), deadline=st.sampled_from([0.5, 2.0, 5.0]))
    def post_with_a_deadline(self, lane: tuple[str, str], count: int, deadline: float) -> None:
        for _ in range(count):
            body = b"%05d" % next(self.bodies)
            self.may_end.add(body)
            self.hand_over(lane, body)
            self.giving_up.watch(self.outbox.lanes[lane], self.posted[lane][-1][1], self.now + deadline, deadline)

    @rule(lane=st.sampled_from(LANES), back=st.integers(1, 6))
    def cancel(self, lane: tuple[str, str], back: int) -> None:
        if back <= len(self.posted[lane]):
            body, caller = self.posted[lane][-back]
            if self.giving_up.cancel(caller):
                assert body not in self.submitted or body == TOO_LARGE, "it may have been stored (design §8)"
                self.may_end.add(body)

    def hand_over(self, name: tuple[str, str], body: bytes) -> None:
        lane = self.outbox.lane(*name)
        if lane.flow is None:
            self.flow.add(lane)
        caller = Caller()
        self.posted[name].append((body, caller))
        self.outbox.messages += 1
        self.outbox.bytes += len(body) + MESSAGE_OVERHEAD_BYTES
        lane.bodies.append(body)
        lane.times.append(0)
        lane.futures.append(caller)
        lane.size_bytes += len(body) + MESSAGE_OVERHEAD_BYTES
        if not lane.dirty:
            lane.dirty = True
            self.outbox.dirty.append(lane)

    @rule(lane=st.sampled_from(LANES), size=st.sampled_from([5, 200]))
    def send_alone(self, lane: tuple[str, str], size: int) -> None:
        """As the desk does for a `send` when nothing else waits, unless the outbox is a file."""
        self.hand_over(lane, b"%05d" % next(self.bodies) + b"x" * (size - 5))
        if self.outbox.messages == 1 and not self.outbox.durable:
            run = self.flow.take_alone(self.outbox.lanes[lane], self.now)
            if run is not None:
                self.to_server.append(("submit", [[*run[:3], list(run[3]), list(run[4])]]))  # packed at once
                self.note_submitted(run)

    @rule(lane=st.sampled_from(LANES), at=st.integers(0, 20))
    def cancel_the_wait(self, lane: tuple[str, str], at: int) -> None:
        if at < len(self.posted[lane]) and not self.posted[lane][at][1].done():
            self.posted[lane][at][1].cancelled = True

    @rule()
    def close_for_a_while(self) -> None:
        self.flow.closed()
        self.to_server, self.to_client, self.awaited = [], [], []

    @precondition(lambda self: not self.flow.is_open)
    @rule()
    def open_again(self) -> None:
        self.open()

    @rule()
    def save(self) -> None:
        self.outbox.save()

    @rule()
    def pump(self) -> None:
        while (taken := self.flow.take(self.now)) is not None:
            runs, given_up = taken
            if runs:
                assert len({(run[0], run[1]) for run in runs}) == len(runs), "a lane stands in a submission once"
                assert all(len(run[4]) <= SMALL.run_messages_max for run in runs)
                for run in runs:
                    self.note_submitted(run)
                self.to_server.append(("submit", runs))
            if given_up:
                self.to_server.append(("give up", given_up))
        assert self.flow.in_flight_messages <= SMALL.in_flight_messages_max

    def note_submitted(self, run: list[Any]) -> None:
        assert not self.told_so & set(run[4]), "it was given up, and is sent"
        self.submitted.update(run[4])

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.giving_up.expire(self.now)
        self.flow.overdue(self.now)

    @invariant()
    def what_was_given_up_is_remembered(self) -> None:
        given_up = [body for posted in self.posted.values() for body, caller in posted if isinstance(caller.outcome, GivenUp)]
        self.told_so.update(body for body in given_up if body != TOO_LARGE)  # all of those are one body

    # ------------------------------------------------------------------ the network and the server

    def open(self) -> None:
        self.flow.opened(self.server.epoch, SMALL.body_bytes_max)

    @precondition(lambda self: self.to_server)
    @rule(lose=st.integers(0, 9))
    def serve(self, lose: int) -> None:
        kind, items = self.to_server.pop(0)
        if lose == 9:
            return
        refusals: list[list[Any]] = []
        for item in items:
            session, sender_id, first_n = item[:3]
            for n, body in enumerate(item[4] if kind == "submit" else [None], first_n):
                refused = self.server.take(session, sender_id, n, body)
                if refused is None:
                    self.awaited.append((len(self.server.log), [session, sender_id, n]))
                else:
                    refusals.append([session, sender_id, n, 1, refused[0], "refused", refused[1]])
        if refusals:
            self.to_client.append(("refused", self.server.epoch, refusals))
        self.answer()

    @rule(count=st.integers(1, 10))
    def commit(self, count: int) -> None:
        self.server.committed = min(self.server.committed + count, len(self.server.log))
        self.answer()

    def answer(self) -> None:
        ready = [ack for upto, ack in self.awaited if upto <= self.server.committed]
        self.awaited = [(upto, ack) for upto, ack in self.awaited if upto > self.server.committed]
        runs = [[*ack, 1, self.server.seq(*ack), False] for ack in ready]
        if runs:
            self.to_client.append(("acked", self.server.epoch, runs))

    @rule(fates=st.lists(FATES, min_size=1, max_size=4), commits=st.integers(0, 4))
    def go_on(self, fates: list[str], commits: int) -> None:
        """What happens most of the time, so that faults meet messages in every state."""
        self.save()
        self.finish_commits()
        self.pump()
        while len(self.to_server) > len(fates) % 2:
            self.serve(lose=0)
        self.commit(commits)
        for fate in fates:
            if self.to_client:
                self.hear(fate)

    @precondition(lambda self: self.to_client)
    @rule(fate=FATES)
    def hear(self, fate: str) -> None:
        answer = self.to_client.pop(0)
        if fate == "late" and answer[0] == "acked" and self.to_client and self.to_client[0][0] == "acked":
            answer, self.to_client[0] = self.to_client[0], answer
        for _ in range({"twice": 2, "never": 0}.get(fate, 1)):
            self.take_answer(*answer)

    def take_answer(self, kind: str, epoch: int, runs: list[Any]) -> None:
        if kind == "acked":
            self.answers.acked(self.now, epoch, 3, runs)
        else:
            assert self.answers.refused(self.now, epoch, runs) is False

    @rule(overloaded=st.booleans())
    def load(self, overloaded: bool) -> None:
        self.server.overloaded = overloaded

    @rule(crash=st.booleans())
    def lose_the_connection(self, crash: bool) -> None:
        self.disconnect(crash)
        self.open()

    def disconnect(self, crash: bool) -> None:
        self.flow.closed()
        self.to_server, self.to_client, self.awaited = [], [], []
        if crash:
            self.server.epoch += 1
            del self.server.log[self.server.committed :]

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def accounts_agree(self) -> None:
        lanes = self.outbox.lanes.values()
        assert self.outbox.messages == sum(len(lane.bodies) for lane in lanes)
        assert self.outbox.bytes == sum(lane.size_bytes for lane in lanes)
        assert self.flow.in_flight_messages == sum(lane.sent for lane in lanes)
        assert self.flow.in_flight_bytes == sum(lane.sent_bytes for lane in lanes)
        for lane in lanes:
            assert 0 <= lane.sent <= lane.saved <= len(lane.bodies) == len(lane.times) == len(lane.futures)
            assert lane.sent_bytes == lane.bytes_of(lane.sent)
            assert lane.saved_bytes == lane.bytes_of(lane.saved)
            assert lane.stopped is None, "there is no loss here"
            assert not lane.conflicted, "there is no copied outbox here"

    def calm(self) -> None:
        """No more faults: everything must come to an end, within a bounded number of turns."""
        self.server.overloaded = False
        self.disconnect(crash=False)
        self.open()
        for _ in range(300):
            self.save()
            self.finish_commits()
            self.pump()
            while self.to_server:
                self.serve(lose=0)
            self.commit(1000)
            while self.to_client:
                self.take_answer(*self.to_client.pop(0))
            if not self.outbox.messages:
                return
            self.tick(1.0)
        raise AssertionError(f"{self.outbox.messages} messages never got an outcome")

    def finish_commits(self) -> None:
        """Memory has none."""

    def teardown(self) -> None:
        self.calm()
        for (session, sender), posted in self.posted.items():
            stored = [body for s, i, _, body in self.server.log if s == session and i.startswith(f"{sender}/") and body]
            wanted = [body for body, _ in posted if body != TOO_LARGE and (body not in self.may_end or body in stored)]
            assert stored == wanted, "lost, twice, or out of order (G4, G5)"
            for body, caller in posted:
                if isinstance(caller.outcome, Ack):
                    ack = caller.outcome
                    assert self.server.seq(ack.session, ack.sender_id, ack.n) == ack.seq
                    assert self.server.numbers(ack.session, ack.sender_id)[ack.n] == body
                elif body == TOO_LARGE:
                    assert caller.cancelled or isinstance(caller.outcome, MessageTooLarge | GivenUp)
                elif isinstance(caller.outcome, GivenUp):
                    assert body in self.may_end
                    assert caller.outcome.may_be_stored or body not in stored, "0 copies means 0 copies (G8)"
                else:
                    assert caller.cancelled


class Disk:
    """What commits do to a file, as a model: rows of batches and lanes."""

    def __init__(self, outbox_id: str) -> None:
        self.outbox_id = outbox_id
        self.lanes: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.batches: dict[int, list[Any]] = {}
        self.given_up: set[tuple[str, str, str, int]] = set()

    def apply(self, commit: Commit) -> None:
        if commit.batch_id:
            assert commit.batch_id not in self.batches
            self.batches[commit.batch_id] = [[*run[:4], list(run[4]), list(run[5]), *map(list, run[6:])] for run in commit.runs]
        for session, sender, outbox_id, next_n, retired in commit.lanes:
            self.lanes[(session, sender, outbox_id)] = (next_n, retired)
        for number in commit.delete:
            del self.batches[number]
        self.given_up |= set(commit.given_up)
        for *lane, below in commit.settled:
            self.given_up = {row for row in self.given_up if list(row[:3]) != lane or row[3] >= below}
        if commit.forget_retired:
            self.lanes = {name: row for name, row in self.lanes.items() if not row[1]}
        self.outbox_id = commit.outbox_id or self.outbox_id

    def stored(self) -> Stored:
        rows = [(*name, *row) for name, row in self.lanes.items()]
        return Stored(self.outbox_id, rows, sorted(self.batches.items()), tuple(self.given_up))


class FileMachine(MemoryMachine):
    """An outbox in a file: commits take their time, and the process may be killed at any moment (G10)."""

    def __init__(self) -> None:
        self.disk = Disk("f" * 32)
        self.commits: list[Commit] = []
        super().__init__()

    def new_outbox(self) -> Outbox:
        outbox = FileOutbox(SMALL, lambda: next(self.ids), lambda: None, self.commits.append, lambda: None)
        outbox.restore("a.db", self.disk.stored())
        return outbox

    @precondition(lambda self: self.commits)
    @rule()
    def fsync(self) -> None:
        self.disk.apply(self.commits.pop(0))
        self.file.committed(None)

    @rule()
    def tidy(self) -> None:
        self.file.tidy()

    @property
    def file(self) -> FileOutbox:
        assert isinstance(self.outbox, FileOutbox)
        return self.outbox

    @rule(commit_was_done=st.booleans())
    def kill_the_client(self, commit_was_done: bool) -> None:
        saved = {name: lane.next_n - len(lane.bodies) + lane.saved for name, lane in self.outbox.lanes.items()}
        if self.commits and commit_was_done:
            self.disk.apply(self.commits[0])
        self.commits.clear()
        self.disconnect(crash=False)
        self.outbox = self.new_outbox()
        self.connect_parts()
        self.open()
        for name, posted in self.posted.items():
            next_n = self.outbox.lanes[name].next_n if name in self.outbox.lanes else 1
            assert next_n >= saved.get(name, 1), "what was saved is not there (G10)"
            del posted[next_n - 1 :]  # never saved, never submitted: nobody was promised anything
            for _, caller in posted:
                caller.cancelled = caller.cancelled or caller.outcome is None  # its process is gone

    def finish_commits(self) -> None:
        while self.commits:
            self.fsync()

    def calm(self) -> None:
        super().calm()
        self.finish_commits()
        self.tidy()
        self.finish_commits()
        assert self.disk.given_up == set(), "what was given up is settled"
        assert self.disk.batches == {}, "everything has its outcome, so nothing is left to be sent again"
        numbers = {name: lane.next_n for name, lane in self.outbox.lanes.items() if lane.next_n > 1}
        reopened = self.new_outbox()
        assert {name: lane.next_n for name, lane in reopened.lanes.items()} == numbers, "the numbering goes on where it was"


TestOutboxInMemory = MemoryMachine.TestCase
TestOutboxInMemory.settings = settings(max_examples=100, stateful_step_count=50)
TestOutboxInFile = FileMachine.TestCase
TestOutboxInFile.settings = settings(max_examples=100, stateful_step_count=50)
