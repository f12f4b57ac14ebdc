"""Virtual time, processes that may pause or die, and links between them.

Owns the order of everything that happens: one heap, one seeded generator, so the same seed gives the same trace. It must not
know what is said on the links. A link keeps its messages in order, as TCP does; across links anything may overtake anything,
and what was sent on a link that one end has given up may still arrive at the other, long after the next link was made.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack


class Process:
    """Something that can be paused or killed. Subclasses say what to do with messages and lost links."""

    def __init__(self, world: Clockwork, name: str) -> None:
        self.world, self.name = world, name
        self.alive, self.paused = True, False
        self.held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.links: list[Link] = []

    def on_message(self, link: Link, message: list[Any]) -> None:
        raise NotImplementedError

    def on_closed(self, link: Link) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """It is gone at once: what it had in memory, and some of what it had sent."""
        self.world.note("kill", self.name)
        self.alive = False
        for link in list(self.links):
            link.cut(self)
        self.links.clear()

    def resume(self) -> None:
        """After a pause, everything that came meanwhile is handled at once, in order."""
        self.world.note("resume", self.name)
        self.paused = False
        held, self.held = self.held, []
        for action, arguments in held:
            self.world.at(0, self, action, *arguments)


class Clockwork:
    """The scheduler: `at` plans an action of a process, `run_until` lets time pass."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self.keep_trace = False
        self.trace: list[str] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[int, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.delay_max = 8
        self.covered: Counter[str] = Counter()  # what happened, by its name: for those who ask whether the net is wide enough

    def note(self, *words: Any) -> None:
        """One line of the trace."""
        line = f"{self.now} " + " ".join(map(str, words))
        self._digest.update(line.encode() + b"\n")
        if self.keep_trace:
            self.trace.append(line)

    def count(self, what: str, times: int = 1) -> None:
        """It has happened once more, or so many times more."""
        self.covered[what] += times

    def fingerprint(self) -> str:
        """A digest of the whole trace."""
        return self._digest.hexdigest()

    def at(self, delay: int, process: Process | None, action: Callable[..., None], *arguments: Any) -> None:
        """Do it in `delay` ms, if the process is still alive then."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, process, action, arguments))

    def delay(self) -> int:
        """How long a message travels: mostly short, sometimes long."""
        return self.rng.randrange(1, self.delay_max) if self.rng.random() < 0.95 else self.rng.randrange(1, 12 * self.delay_max)

    def run_until(self, time: int, done: Callable[[], bool] | None = None) -> None:
        """Let time pass until `time`, or until `done`."""
        while self._heap and self._heap[0][0] <= time:
            self.now, _, process, action, arguments = heapq.heappop(self._heap)
            if process is not None:
                if not process.alive:
                    continue
                if process.paused:
                    process.held.append((action, arguments))
                    continue
            action(*arguments)
            if done is not None and done():
                return
        self.now = time


class Link:
    """A connection: messages of each direction arrive in order, until it is closed or cut."""

    def __init__(self, world: Clockwork, connector: Process, acceptor: Process) -> None:
        self.world = world
        self.ends = (connector, acceptor)
        self.info: Any = None  # what the acceptor said of itself when the link was made
        self.closed = [False, False]
        self._last = [0, 0]
        self._dead_from: list[int | None] = [None, None]
        self._put_off = [0, 0]  # how many messages to an end were late, and come now
        self._late_until = [0, 0]  # until when nothing arrives at an end, and then everything at once
        self.replies: dict[int, Callable[[Any], None]] = {}
        self._ids = 0
        connector.links.append(self)
        acceptor.links.append(self)

    def _side(self, process: Process) -> int:
        return 0 if process is self.ends[0] else 1

    def is_closed(self, process: Process) -> bool:
        """Whether `process` knows that the link is over."""
        return self.closed[self._side(process)]

    def send(self, sender: Process, message: list[Any]) -> None:
        """Send a message; it is packed and unpacked on its way, so nothing is shared."""
        side = self._side(sender)
        if self.closed[side]:
            return
        packed = msgpack.packb(message)
        due = max(self._last[side], self.world.now + self.world.delay())
        self._last[side] = due
        self.world.at(due - self.world.now, self.ends[1 - side], self._deliver, 1 - side, packed)

    def request(self, sender: Process, say: int, *items: Any, then: Callable[[Any], None]) -> None:
        """Ask; `then` is called with [code, value], or with None when the link is lost first."""
        if self.is_closed(sender):
            self.world.at(0, sender, then, None)
            return
        self._ids += 1
        self.replies[self._ids] = then
        self.send(sender, [say, self._ids, *items])

    def _deliver(self, side: int, packed: bytes, was_late: bool = False) -> None:
        self._put_off[side] -= was_late
        late = max(self._late_until[side] - self.world.now, 0)
        if late or (self._put_off[side] and not was_late):  # none overtakes those that were late
            self._put_off[side] += 1
            self.world.at(late, self.ends[side], self._deliver, side, packed, True)
            return
        dead_from = self._dead_from[side]
        if self.closed[side] or (dead_from is not None and self.world.now >= dead_from):
            return
        message = msgpack.unpackb(packed, strict_map_key=False)
        if message[0] == 1 and side == 0:
            then = self.replies.pop(message[1], None)
            if then is not None:
                then(message[2:])
            return
        self.ends[side].on_message(self, message)

    def close(self, closer: Process) -> None:
        """Closed by one end: what it had sent still arrives, then the other end learns of it."""
        side = self._side(closer)
        if self.closed[side]:
            return
        due = max(self._last[side], self.world.now + self.world.delay())
        self.world.at(due - self.world.now, self.ends[1 - side], self._learn, 1 - side)
        self._learn(side)

    def cut(self, by: Process | None = None) -> None:
        """The network (or a death) cuts it: each end loses what was under way from some moment on, and learns of it later."""
        self.world.note("cut", self.ends[0].name, self.ends[1].name)
        for side in (0, 1):
            dead_from = self._dead_from[side]
            now_dead_from = self.world.now + self.world.rng.randrange(0, 6)
            self._dead_from[side] = now_dead_from if dead_from is None else min(dead_from, now_dead_from)
            if self.ends[side] is not by:
                self.world.at(self.world.rng.randrange(0, 30), self.ends[side], self._learn, side)

    def leave_half_open(self) -> None:
        """The connector loses it and makes another one; the acceptor reads on: what was sent arrives late, all at once."""
        late = self.world.now + self.world.rng.randrange(10, 250)
        self.world.note("half open", self.ends[0].name, self.ends[1].name, late)
        self._late_until[1], self._dead_from[0] = late, self.world.now
        self.world.at(late + 1 - self.world.now, self.ends[1], self._learn, 1)
        self._learn(0)

    def stall(self, side: int, until: int) -> None:
        """One way is cut: what is sent to that end arrives when it is mended."""
        self.world.note("stall", self.ends[1 - side].name, "to", self.ends[side].name, until)
        self._late_until[side] = max(until, self._late_until[side])

    def _learn(self, side: int) -> None:
        if self.closed[side]:
            return
        self.closed[side] = True
        process = self.ends[side]
        if self in process.links:
            process.links.remove(self)
        if side == 0:
            waiting, self.replies = self.replies, {}
            for then in waiting.values():
                then(None)
        process.on_closed(self)
