"""A model client: it numbers, keeps what is not acked, and sends it again in order on every new connection.

Owns one sender_id and what it was told. Everything that it sees goes into the history, which the checker judges. It follows
design §10 and shares no code with the product's client.
"""

from __future__ import annotations

from typing import Any

from simulated.clockwork import Link, Process
from trilogue.actors.protocol.vocabulary import Code, Say

RESEND_MS = 120
PATIENCE_MS = 250


class ClientProcess(Process):
    """One sender. `unacked[session]` maps n to a body, or to None for a number that it gave up."""

    def __init__(self, world: Any, name: str, sessions: list[str]) -> None:
        super().__init__(world, name)
        self.world: Any = world
        self.sessions = sessions
        self.sender_id = f"{name}/{world.rng.getrandbits(128):032x}"
        self.next_n = dict.fromkeys(sessions, 1)
        self.unacked: dict[str, dict[int, bytes | None]] = {session: {} for session in sessions}
        self.acked: dict[str, dict[int, bytes | None]] = {session: {} for session in sessions}
        self.sent_upto: dict[str, int] = {}
        self.read_upto = dict.fromkeys(sessions, 0)
        self.link: Link | None = None
        self.open = False
        self.epoch = 0
        self._tries = 0
        world.at(0, self, self._connect)
        world.at(RESEND_MS, self, self._tick)

    @property
    def done(self) -> bool:
        """Whether everything that was handed over was answered."""
        return not any(self.unacked.values())

    # ------------------------------------------------------------------ the program that uses it

    def hand_over(self, session: str, give_up: bool = False) -> None:
        """The program says `send`; with `give_up` it has thought better of it before the first attempt."""
        n = self.next_n[session]
        self.next_n[session] += 1
        body = None if give_up else f"{self.name}:{session}:{n}:".encode() + bytes(self.world.rng.randrange(0, 40))
        self.unacked[session][n] = body
        self.world.history.append(("handed", self.world.now, self.sender_id, session, n, body))
        careless = self.world.rng.random() < 0.05
        if self.open and self.sent_upto.get(session, 0) == n - 1 and not careless:
            self._submit(session, n)
        elif self.open and self.link is not None and self.world.rng.random() < 0.1:
            self._send_numbers(session, {n: body})  # out of order: it must be refused

    def read(self, session: str) -> None:
        """The program reads on, from where it stopped."""
        link = self.link
        if link is None or not self.open:
            return

        def then(answer: Any) -> None:
            for run in answer[1] if answer is not None else []:
                _, name, sender_id, first_n, first_seq, _, _, bodies = run
                for k, body in enumerate(bodies):
                    fact = ("read", self.world.now, self.name, name, first_seq + k, sender_id, first_n + k, body)
                    self.world.history.append(fact)
                    self.read_upto[name] = max(self.read_upto[name], first_seq + k)

        link.request(self, Say.HISTORY, session, self.read_upto[session], self.world.rng.randrange(1, 8), then=then)

    def repeat_old(self, session: str) -> None:
        """A retry of what was acked long ago: G5 has no window."""
        old = self.acked[session]
        if self.open and self.link is not None and old:
            n = self.world.rng.choice(sorted(old))
            self._send_numbers(session, {n: old[n]})

    # ------------------------------------------------------------------ connections

    def _connect(self) -> None:
        writer = self.world.some_writer(self)
        if writer is None:
            self.world.at(30, self, self._connect)
            return
        self.link = Link(self.world, self, writer)
        self._tries += 1
        self.world.at(self.world.delay(), writer, writer.accept, self.link)
        self.world.at(PATIENCE_MS, self, self._lose_patience, self._tries)

    def _lose_patience(self, tries: int) -> None:
        if tries == self._tries and not self.open and self.link is not None:
            self.link.close(self)

    def on_closed(self, link: Link) -> None:
        if link is self.link:
            self.link, self.open = None, False
            self.world.at(self.world.rng.randrange(1, 20), self, self._connect)

    def _tick(self) -> None:
        self.world.at(RESEND_MS, self, self._tick)
        if self.open and self.world.rng.random() < 0.4:
            self._send_all()
        elif self.open and not self.done and self.link is not None and self.world.rng.random() < 0.05:
            self.link.close(self)

    # ------------------------------------------------------------------ submitting

    def _send_all(self, session: str | None = None, first: int = 0) -> None:
        for name in [session] if session is not None else self.sessions:
            numbers = {n: body for n, body in self.unacked[name].items() if n >= first}
            if numbers:
                self._send_numbers(name, numbers)
                self.sent_upto[name] = max(numbers)
            elif session is None:
                self.sent_upto[name] = self.next_n[name] - 1

    def _submit(self, session: str, n: int) -> None:
        self._send_numbers(session, {n: self.unacked[session][n]})
        self.sent_upto[session] = n

    def _send_numbers(self, session: str, numbers: dict[int, bytes | None]) -> None:
        """Consecutive messages as one run, never more than a few; a number that was given up on its own."""
        link = self.link
        assert link is not None
        run: list[Any] = []
        for n, body in sorted(numbers.items()):
            if run and (body is None or n != run[2] + len(run[4]) or len(run[4]) == 6):
                link.send(self, [Say.SUBMIT, [run]])
                run = []
            if body is None:
                link.send(self, [Say.GIVE_UP, [[session, self.sender_id, n]]])
            elif run:
                run[3].append(self.world.now)
                run[4].append(body)
            else:
                run = [session, self.sender_id, n, [self.world.now], [body]]
        if run:
            link.send(self, [Say.SUBMIT, [run]])

    # ------------------------------------------------------------------ answers

    def on_message(self, link: Link, message: list[Any]) -> None:
        if link is not self.link:
            return
        match message:
            case [Say.OPEN, _, epoch]:
                if epoch < self.epoch:
                    link.close(self)
                    return
                self.epoch, self.open = epoch, True
                self._send_all()
            case [Say.ACKED, epoch, acks]:
                for session, sender_id, first_n, count, first_seq, duplicate in acks:
                    assert sender_id == self.sender_id
                    for k in range(count):
                        self._acked(session, first_n + k, first_seq and first_seq + k, epoch, duplicate)
            case [Say.REFUSED, _, refusals]:
                for refusal in refusals:
                    self._refused(*refusal)

    def _acked(self, session: str, n: int, seq: int, epoch: int, duplicate: bool) -> None:
        self.world.note(self.name, "acked", session, n, seq, epoch, duplicate)
        self.world.history.append(("acked", self.world.now, self.sender_id, session, n, seq))
        body = self.unacked[session].pop(n, b"")
        if body != b"":
            self.acked[session][n] = body

    def _refused(self, session: str, _: str, first_n: int, count: int, code: int, text: str, expected: int) -> None:
        self.world.note(self.name, "refused", session, first_n, count, code, expected)
        if code == Code.OUT_OF_ORDER:
            if any(n >= expected for n in self.acked[session]):
                self.world.history.append(("forgotten", self.world.now, self.sender_id, session, expected))
            elif self.open:
                self._send_all(session, expected)
        elif code != Code.UNAVAILABLE:  # those are sent again by the clock
            self.world.history.append(("refused", self.world.now, self.sender_id, session, first_n, text))
