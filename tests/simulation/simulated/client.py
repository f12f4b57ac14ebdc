"""A client: the product's outbox, lanes, flow, answers and inbox, and the glue that `link` and `Feed` are in production.

Owns one run of one client's process, and what its program did with it. Everything that it is told goes into the history, which
the checker judges; beside what the product's parts would do it sends what no good client sends: old retries, numbers that come
too early, pages that overlap.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from random import Random
from typing import Any

from simulated.clockwork import Link, Process
from simulated.file import OutboxFile
from trilogue.actors.protocol.errors import ConflictingKey, GivenUp, MessageTooLarge, ProofOfLoss, TrilogueError
from trilogue.actors.protocol.ids import sender_id_of
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import Message, Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.client.connecting.backoff import Pace
from trilogue.client.outbox.file import FileOutbox
from trilogue.client.outbox.sqlite import Commit
from trilogue.client.reading.delivery import runs_of
from trilogue.client.reading.heads import Heads
from trilogue.client.reading.inbox import Inbox
from trilogue.client.sending.answers import Answers
from trilogue.client.sending.flow import Flow
from trilogue.client.sending.giving_up import GivingUp
from trilogue.client.sending.lanes import MESSAGE_OVERHEAD_BYTES, Lane

LOOK_MS = 30
TICK_MS = 25
CREDIT = 6
BYTES = 16 * KIB
SCALE = 100
"""So many ms here are a second of the client's ladders: everything in a story is about ten times as fast as in production."""

LIMITS = Limits(
    body_bytes_max=128,
    run_messages_max=4,
    submit_bytes_max=512,
    in_flight_messages_max=24,
    keyed_run_messages_max=3,
    wire_bytes_max=256 * KIB,
    frame_bytes_max=128 * KIB,
    frame_bytes_target=200,
    journal_file_bytes=256 * KIB,
    history_bytes_max=16 * KIB,
    page_bytes_max=4 * KIB,
    credit_bytes_max=16 * KIB,
    states_names_max=64,
    records_sessions_max=64,
)


class Answer:
    """Who waits for one message's answer."""

    def __init__(self, client: ClientProcess, lane: Lane, n: int) -> None:
        self.client, self.lane, self.n = client, lane, n
        self._done = False

    def done(self) -> bool:
        """Whether it was answered."""
        return self._done

    def set_result(self, ack: Any, /) -> None:
        """It is stored."""
        self._done = True
        self.client.told("told", ack.sender_id, ack.session, ack.n, ack.seq)

    def set_exception(self, error: TrilogueError, /) -> None:
        """It is not, and never will be; or it was given up."""
        self._done = True
        if isinstance(error, GivenUp):
            self.client.told("given_up", self.lane.sender_id, self.lane.session, self.n, error.may_be_stored)
            self.client.world.count(f"client: told that it {'may be' if error.may_be_stored else 'is not'} stored")
            return
        kind = {MessageTooLarge: "too_large", ProofOfLoss: "forgotten", ConflictingKey: "key_taken"}.get(type(error), "refused")
        self.client.told(kind, self.lane.sender_id, self.lane.session, self.n, str(error))


class Reader:
    """A program's place in one session: its inbox, what waits for it, and its cursor."""

    def __init__(self, name: str, session: str, after: int, cursor: str, group: Group) -> None:
        self.name, self.session, self.cursor, self.group = name, session, cursor, group
        self.inbox = Inbox(after, CREDIT)
        self.buffer: deque[Message] = deque()
        self.asking = False


class Group:
    """One subscription: one reader for each of its sessions, and one credit for all of them. A slow one gives it late."""

    def __init__(self, slow: bool) -> None:
        self.readers: dict[str, Reader] = {}
        self.slow = slow
        self.number = 0
        self.outstanding = 0

    @property
    def room(self) -> int:
        """How many more it takes."""
        return CREDIT - self.outstanding - sum(len(reader.buffer) for reader in self.readers.values())


class ClientProcess(Process):
    """One run of a client, from what its file holds to its death."""

    def __init__(self, world: Any, name: str, sessions: list[str], file: OutboxFile) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.sessions = sessions
        self.file = file
        self.outbox = FileOutbox(LIMITS, world.fresh_id, self._wake, self._commit, self._tidy_soon)
        self.outbox.restore(f"{name}.db", file.load())
        self.flow = Flow(0, LIMITS)
        self.answers = Answers(self.flow, self.outbox, Heads())
        self.giving_up = GivingUp(self.outbox)
        self.pace = Pace()
        self.old: list[tuple[str, str, int, bytes]] = []  # what was acked: (session, sender_id, n, body)
        self.sent: dict[tuple[str, str, int], bytes] = {}
        self.link: Link | None = None
        self.acked_here: dict[str, int] = {}  # the highest seq of each session that was acked on this connection
        self._heard_at = 0
        self._woken = False
        self._numbers = 0
        self.readers: list[Reader] = []
        self.groups = [self._follow(name, [session]) for session in sessions]
        self.groups.append(self._follow(f"{name} all", sessions))
        for lane in self.outbox.lanes.values():
            for k, body in enumerate(lane.bodies):
                if lane.first_n + k not in lane.refusals:
                    lane.futures[k] = Answer(self, lane, lane.first_n + k)
                self.sent[lane.session, lane.sender_id, lane.first_n + k] = body
            self.flow.add(lane)
        world.at(0, self, self._connect)
        world.at(TICK_MS, self, self._tick)

    def _follow(self, name: str, sessions: list[str]) -> Group:
        """A program that reads these sessions in one subscription, from where its cursors stand."""
        group = Group(slow=name != self.name)
        for session in sessions:
            cursor = f"{name}: {session}"
            reader = Reader(name, session, self.file.cursors.get(cursor, 0), cursor, group)
            group.readers[session] = reader
            self.readers.append(reader)
            self.world.history.append(("opened", self.world.now, name, session, reader.inbox.at))
        return group

    @property
    def unanswered(self) -> int:
        """How many messages wait for their outcome."""
        return sum(len(lane.bodies) for lane in self.outbox.lanes.values())

    @property
    def done(self) -> bool:
        """Whether everything that was handed over has its outcome."""
        return not self.unanswered

    def told(self, kind: str, sender_id: str, session: str, n: int, what: Any) -> None:
        """A message has its outcome."""
        self.world.note(self.name, kind, session, n, what)
        self.world.history.append((kind, self.world.now, sender_id, session, n, what))

    # ------------------------------------------------------------------ the program that uses it

    def hand_over(self, dice: Random, request: bytes = b"") -> Lane | None:
        """The program says `send`; rarely more than the system takes."""
        session = dice.choice(self.sessions)
        lane = self.outbox.lane(session, self.name)
        if lane.stopped is not None:
            return None
        if lane.flow is None:
            self.flow.add(lane)
        n = lane.next_n
        size = 100 if dice.random() < 0.03 else dice.randrange(0, 40)
        body = request or f"{self.name}:{session}:{n}:".encode() + bytes(size)
        lane.bodies.append(body)
        lane.times.append(self.world.now)
        lane.futures.append(Answer(self, lane, n))
        lane.size_bytes += len(body) + MESSAGE_OVERHEAD_BYTES
        self.outbox.messages += 1
        self.outbox.bytes += len(body) + MESSAGE_OVERHEAD_BYTES
        self.sent[session, lane.sender_id, n] = body
        self.world.history.append(("handed", self.world.now, lane.sender_id, session, n, body))
        self.outbox.mark(lane)
        return lane

    def hand_over_with_a_key(self, dice: Random) -> None:
        """The program hands a request over that may have been handed over before; rarely its key is of another one."""
        key = f"k{dice.randrange(4)}"
        lane = self.hand_over(dice, f"{key}{'!' if dice.random() < 0.1 else ''}".encode())
        if lane is not None:
            self.outbox.bytes += lane.put_key(key)
            self.world.history.append(("keyed", self.world.now, lane.sender_id, lane.session, lane.next_n - 1, key))

    def hand_over_with_a_deadline(self, dice: Random) -> None:
        """As above, with a message that is of no use after a while."""
        lane = self.hand_over(dice)
        if lane is not None:
            after_s = dice.choice((0.2, 0.5, 1.0, 2.0, 5.0))
            answer = lane.futures[-1]
            assert answer is not None
            self.giving_up.watch(lane, answer, self.world.now / SCALE + after_s, after_s)
            self._may_end(lane, lane.next_n - 1)

    def cancel_one(self, dice: Random) -> None:
        """The program takes one of the last messages back, if it can."""
        lanes = [lane for lane in self.outbox.lanes.values() if lane.futures]
        if lanes:
            lane = dice.choice(lanes)
            n = lane.next_n - dice.randrange(1, len(lane.futures) + 1)
            answer = lane.futures[n - lane.first_n]
            self._may_end(lane, n)
            if answer is not None and self.giving_up.cancel(answer):
                self.world.count("client: a message was cancelled")

    def _may_end(self, lane: Lane, n: int) -> None:
        self.world.history.append(("may_end", self.world.now, lane.sender_id, lane.session, n))

    def retry_an_old_one(self, dice: Random) -> None:
        """A retry of what was acked long ago: G5 has no window."""
        if self.flow.is_open and self.link is not None and self.old:
            session, sender_id, n, body = dice.choice(self.old)
            self.world.count("client: an old retry")
            self.link.send(self, [Say.SUBMIT, [[session, sender_id, n, [self.world.now], [body]]]])

    def skip_ahead(self, dice: Random) -> None:
        """What is saved last is sent first: it must be refused."""
        lanes = [lane for lane in self.outbox.lanes.values() if lane.saved > 1 and lane.saved > lane.sent]
        if self.flow.is_open and self.link is not None and lanes:
            lane = dice.choice(lanes)
            n, body = lane.first_n + lane.saved - 1, lane.bodies[lane.saved - 1]
            if n in lane.refusals:
                return
            lane.submitted_n = max(lane.submitted_n, n)
            self.world.count("client: a number too early")
            keys = lane.keys_of(lane.saved - 1, lane.saved)
            self._submit(self.link, [[lane.session, lane.sender_id, n, [self.world.now], [body], *([keys] if keys else [])]])

    # ------------------------------------------------------------------ the file

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.world.at(0, self, self._send_off)

    def _send_off(self) -> None:
        self._woken = False
        self.outbox.save()
        self._pump()

    def _commit(self, commit: Commit) -> None:
        self.world.at(self.world.rng.randrange(1, 6), self, self._committed, commit)

    def _committed(self, commit: Commit) -> None:
        self.file.apply(commit)
        for session, sender, outbox_id, first_n, _, bodies, *_keys in commit.runs:
            for n in range(first_n, first_n + len(bodies)):
                self.world.history.append(("saved", self.world.now, sender_id_of(sender, outbox_id), session, n))
        self.outbox.committed(None)
        self._pump()

    def _tidy_soon(self) -> None:
        self.world.at(20, self, self.outbox.tidy)

    # ------------------------------------------------------------------ connections

    def _connect(self) -> None:
        if self.world.weather.bad and (left_s := self.pace.wait_s(self.world.now / 1000)) > 0:
            self.world.at(int(left_s * 1000) + 1, self, self._connect)
            return
        self.pace.began(self.world.now / 1000, self.world.weather.begun(self))
        session = self.world.route(self) if self.world.weather.lets_through(self) else None
        if session is None:
            self.world.at(self.world.rng.randrange(3, 12), self, self._connect)
            return
        self.link = link = Link(self.world, self, session)
        self.acked_here = {}
        self._heard_at = self.world.now
        self.world.at(self.world.delay(), session, session.accept, link)
        self.world.weather.connected(self, link)

    def on_closed(self, link: Link) -> None:
        if link is self.link:
            self.link = None
            self.flow.closed()
            for group in self.groups:
                group.number = 0
            self.world.at(self.world.rng.randrange(1, 20), self, self._connect)

    def _tick(self) -> None:
        self.world.at(TICK_MS, self, self._tick)
        self.giving_up.expire(self.world.now / SCALE)
        self.outbox.save()
        link = self.link
        if link is None:
            return
        silent = self.world.now - self._heard_at
        waits = self.flow.in_flight_messages or not self.flow.is_open
        if (waits and silent > 6 * LOOK_MS) or silent > 20 * LOOK_MS:
            link.close(self)  # it looks elsewhere
            return
        self.flow.overdue(self.world.now / SCALE)
        self._pump()

    def _pump(self) -> None:
        link = self.link
        while link is not None and (taken := self.flow.take(self.world.now / SCALE)) is not None:
            runs, given_up = taken
            if runs:
                self._submit(link, runs)
            if given_up:
                self.world.count("client: a number given up")
                link.send(self, [Say.GIVE_UP, given_up])

    def _submit(self, link: Link, runs: list[Any]) -> None:
        for session, sender_id, first_n, _, bodies, *_keys in runs:
            for n in range(first_n, first_n + len(bodies)):
                self.world.history.append(("submitted", self.world.now, sender_id, session, n))
        link.send(self, [Say.SUBMIT, runs])

    # ------------------------------------------------------------------ answers

    def on_message(self, link: Link, message: list[Any]) -> None:
        if link is not self.link:
            return
        self._heard_at = self.world.now
        self.world.weather.answered(self)
        match message:
            case [Say.OPEN, 0, epoch, _, body_bytes_max]:
                if not self.flow.opened(epoch, body_bytes_max):
                    self.world.count("client: an old epoch is left")
                    link.close(self)
                    return
                self._subscribe_all()
            case [Say.WAITING, partition, _, _]:
                if partition != 0:
                    link.close(self)
                else:
                    self.flow.closed()
            case [Say.ACKED, epoch, copies, runs]:
                self._note_acks(runs)
                self.answers.acked(self.world.now / SCALE, epoch, copies, runs)
            case [Say.REFUSED, epoch, refusals]:
                self.world.note(self.name, "refused", [[*refusal[:5], refusal[6]] for refusal in refusals])
                if self.answers.refused(self.world.now / SCALE, epoch, refusals):
                    link.close(self)
            case [Say.DELIVER, numbers, raw]:
                for group in [group for group in self.groups if group.number in numbers]:
                    reader = group.readers[raw[0][1]]
                    runs = runs_of(reader.session, raw)
                    for run in runs:
                        fact = (reader.name, group.number, run.session, run.first_seq, len(run.bodies))
                        self.world.history.append(("pushed", self.world.now, *fact))
                    group.outstanding -= sum(len(run.bodies) for run in runs)
                    self._arrived(reader, runs)
                self.world.count("client: a delivery for several readers" if len(numbers) > 1 else "client: a delivery")
            case [Say.ENDED, number, _, _, session, first_available]:
                for group in [group for group in self.groups if group.number == number]:
                    group.number = 0
                    self._trimmed(group.readers[session], first_available)
                    self._subscribe_all()
        self._pump()

    def _trimmed(self, reader: Reader, first_available: int) -> None:
        """What it needs next is gone: the program hears it behind what it was given, and goes on where the rest begins."""
        self._take(reader)
        if first_available <= reader.inbox.at + 1:
            return
        self.world.count("client: a reader was told of a trim")
        fact = reader.name, reader.session, first_available
        self.world.history.append(("trimmed", self.world.now, *fact))
        reader.inbox = Inbox(first_available - 1, CREDIT)
        self.world.at(self.world.rng.randrange(0, 4), self, partial(self._move_cursor, reader, first_available - 1))
        if reader.group.number and self.link is not None:
            self.link.send(self, [Say.UNSUBSCRIBE, reader.group.number])
        reader.group.number = 0
        self._subscribe_all()

    def _note_acks(self, runs: list[Any]) -> None:
        """What a SessionActor says is judged whatever the client makes of it."""
        for session, sender_id, first_n, count, first_seq, duplicate in runs:
            for k in range(count):
                n, seq = first_n + k, first_seq and first_seq + k
                self.world.note(self.name, "acked", session, n, seq, duplicate)
                self.acked_here[session] = max(seq, self.acked_here.get(session, 0))
                self.world.history.append(("acked", self.world.now, sender_id, session, n, seq))
                lane = self.flow.lanes.get((session, sender_id))
                if seq and lane is not None and n in lane.refusals:
                    self.world.count("client: given up, and stored after all")
                body = self.sent.get((session, sender_id, n))
                if body is not None:
                    self.old.append((session, sender_id, n, body))

    # ------------------------------------------------------------------ readers

    def _subscribe_all(self) -> None:
        for group in self.groups:
            if not group.number:
                self._subscribe(group)

    def _subscribe(self, group: Group) -> None:
        link = self.link
        if link is None:
            return
        self._numbers += 1
        group.number = number = self._numbers
        group.outstanding = 0
        group.outstanding = max(group.room, 1)

        def then(answer: Any) -> None:
            if (answer is None or answer[0]) and group.number == number:
                group.number = 0

        places = []
        for reader in group.readers.values():
            places.append([reader.session, reader.inbox.at])
            fact = (reader.name, number, reader.session, reader.inbox.at)
            self.world.history.append(("subscribed", self.world.now, *fact))
        link.request(self, Say.SUBSCRIBE, number, places, group.outstanding, BYTES, then=then)

    def _arrived(self, reader: Reader, runs: list[Run]) -> None:
        reader.buffer.extend(reader.inbox.add(runs))
        if reader.inbox.missing is not None:
            after, upto = reader.inbox.missing
            self._ask_page(reader, after, min(CREDIT, upto - after))
        if self.world.rng.random() < (0.1 if reader.group.slow else 0.5):
            self.world.at(self.world.rng.randrange(0, 60), self, self._take, reader)

    def _ask_page(self, reader: Reader, after: int, limit: int) -> None:
        link = self.link
        if link is None or reader.asking or not self.flow.is_open:
            return
        reader.asking = True
        asked_at = reader.inbox.at if after == reader.inbox.at else -1

        def then(answer: Any) -> None:
            reader.asking = False
            if answer is None or answer[0]:
                return
            if isinstance(answer[1][0], int):
                if reader.inbox.at == asked_at:
                    self._trimmed(reader, answer[1][0])
            else:
                self._arrived(reader, runs_of(reader.session, answer[1][0]))

        link.request(self, Say.HISTORY, reader.session, after, limit, then=then)

    def ask_for_a_page(self, dice: Random) -> None:
        """The program reads a page beside its subscription: it may overlap, or come too early."""
        reader = dice.choice(self.readers)
        self._ask_page(reader, reader.inbox.at + dice.randrange(0, 4), dice.randrange(1, 8))

    def take_messages(self, dice: Random) -> None:
        """The program takes what waits for it."""
        self._take(dice.choice(self.readers))

    def _take(self, reader: Reader) -> None:
        """Hand on what waits, and move the cursor after that."""
        handed_on: list[Message] = []
        while reader.buffer:
            handed_on.append(reader.buffer.popleft())
        for message in handed_on:
            fact = (message.session, message.seq, message.sender_id, message.n, message.body)
            self.world.history.append(("delivered", self.world.now, reader.name, *fact))
        if handed_on:
            self.world.at(self.world.rng.randrange(0, 4), self, partial(self._move_cursor, reader, handed_on[-1].seq))
        self._top_up(reader.group)

    def _move_cursor(self, reader: Reader, seq: int) -> None:
        self.file.cursors[reader.cursor] = seq

    def _top_up(self, group: Group) -> None:
        room = group.room
        if room > 0 and group.number and self.link is not None:
            group.outstanding += room
            self.link.send(self, [Say.CREDIT, group.number, room, BYTES])

    def read_on(self, dice: Random) -> None:
        """A page of the history, for its own sake."""
        link = self.link
        if link is None or not self.flow.is_open:
            return
        session, after = dice.choice(self.sessions), dice.randrange(0, 30)

        def then(answer: Any) -> None:
            if answer is None or answer[0]:
                return
            page = answer[1][0]
            first = page if isinstance(page, int) else page[0][4] if page else after + 1
            self.world.history.append(("page", self.world.now, self.name, session, after, first, isinstance(page, int)))
            for run in page if isinstance(page, list) else []:
                _, name, sender_id, first_n, first_seq, _, _, bodies = run
                for k, body in enumerate(bodies):
                    self.world.history.append(
                        ("read", self.world.now, self.name, name, first_seq + k, sender_id, first_n + k, body)
                    )

        link.request(self, Say.HISTORY, session, after, dice.randrange(1, 8), then=then)

    def trim_one(self, dice: Random) -> None:
        """The program lets old messages of a session go."""
        link = self.link
        if link is None or not self.flow.is_open:
            return
        session = dice.choice(self.sessions)
        before = dice.randrange(1, max(2, self.acked_here.get(session, 0) + 2))
        self.world.history.append(("trim", self.world.now, session, before))

        def then(answer: Any) -> None:
            if answer is not None and answer[0] == 0:
                self.world.count("client: a trim was answered")
                self.world.history.append(("trim_done", self.world.now, session, before))

        link.request(self, Say.TRIM, session, before, then=then)

    def ask_where_it_begins(self, session: str) -> None:
        """Everything is over: which is the first message of a session that is there?"""
        link = self.link
        if link is None or not self.flow.is_open:
            return

        def then(answer: Any) -> None:
            if answer is not None and answer[0] == 0:
                page, head = answer[1]
                first = page if isinstance(page, int) else page[0][4] if page else head + 1
                self.world.history.append(("begins", self.world.now, session, first))

        link.request(self, Say.HISTORY, session, 0, 1, then=then)

    def ask_for_heads(self, dice: Random) -> None:
        """How far its sessions are, and some of which nobody has heard."""
        link = self.link
        if link is None or not self.flow.is_open:
            return
        sessions = [*self.sessions, *(f"nobody-{dice.randrange(3)}" for _ in range(dice.randrange(3)))]
        acked = dict(self.acked_here)

        def then(answer: Any) -> None:
            if answer is not None and answer[0] == 0:
                for session, head in zip(sessions, answer[1], strict=True):
                    self.world.count("client: a head was told")
                    fact = (self.name, session, acked.get(session, 0), head)
                    self.world.history.append(("heads", self.world.now, *fact))

        link.request(self, Say.HEADS, sessions, then=then)

    def settle(self) -> None:
        """The faults are over: take everything, and subscribe where that had failed."""
        if self.flow.is_open:
            self._subscribe_all()
        for reader in self.readers:
            self._take(reader)
