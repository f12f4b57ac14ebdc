"""One seed, one story: a partition with three stores, its writers, its clients, and what befalls them.

Owns the plan of faults and what must hold when they are over. Faults stay within what design §1 promises to survive: at any
time at least one store has lost nothing that it synced.
"""

from __future__ import annotations

from typing import Any

from simulated.checker import judge
from simulated.client import ClientProcess
from simulated.clockwork import Clockwork, Process
from simulated.store import INCARNATION, Disk, StoreProcess
from simulated.writer import WriterProcess
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import KIB, Limits

STORES = ("store-1", "store-2", "store-3")
FAULTS_END_MS = 1_500
PATIENCE_MS = 6_000
"""How long after the last fault everything must be acked (G11)."""

PROFILES: dict[str, dict[str, int]] = {
    "mixed": {
        "cut_a_link": 4, "crash_a_store": 2, "damage_a_store": 2, "empty_a_store": 1, "crash_a_writer": 3, "pause_a_writer": 2,
        "two_writers": 2, "cut_off_a_store": 2, "slow_a_disk": 1, "crash_everything": 1, "crash_a_busy_store": 2,
        "crash_a_busy_writer": 2,
    },
    "duels": {"pause_a_writer": 4, "two_writers": 4, "crash_all_stores": 2, "cut_a_link": 2, "cut_off_a_store": 1},
    "disks": {"damage_a_store": 3, "empty_a_store": 2, "crash_everything": 2, "crash_all_stores": 2, "crash_a_busy_writer": 2},
    "zombies": {"zombie_dance": 3, "start_two_together": 2, "crash_a_busy_writer": 1, "cut_a_link": 1},
    "storms": {"crash_a_busy_store": 6, "crash_a_busy_writer": 3, "cut_a_link": 3, "slow_a_disk": 1, "two_writers": 1},
}  # fmt: skip
"""What a story is mostly about: how often each fault is chosen."""

SMALL = Limits(
    body_bytes_max=64,
    run_messages_max=64,
    submit_bytes_max=512,
    frame_bytes_target=200,
    frame_bytes_max=128 * KIB,
    frames_in_flight_max=2,
    wire_bytes_max=256 * KIB,
    journal_file_bytes=256 * KIB,
    history_bytes_max=16 * KIB,
)


class Outcome:
    """What a story came to."""

    def __init__(self, anomalies: list[str], fingerprint: str, story: Story) -> None:
        self.anomalies, self.fingerprint, self.story = anomalies, fingerprint, story


class Story(Clockwork):
    """The world of one seed."""

    def __init__(self, seed: int, profile: str = "") -> None:
        super().__init__(seed)
        self.seed = seed
        self.history: list[tuple[Any, ...]] = []
        self.disks = {name: Disk(f"{name}#1") for name in STORES}
        self.stores = {name: StoreProcess(self, name, self.disks[name], SMALL) for name in STORES}
        self.damaged: set[str] = set()
        self.writers: list[WriterProcess] = []
        self.cut_off: set[tuple[str, str]] = set()
        self.calm = False
        self._started = 0
        self.opened = 0
        self.highest_epoch = 0
        self.profile = profile or list(PROFILES)[seed % len(PROFILES)]
        self._start_writer()
        sessions = ["s1", "s2"]
        self.clients = [ClientProcess(self, f"c{k}", sessions[: self.rng.randrange(1, 3)]) for k in (1, 2)]

    # ------------------------------------------------------------------ who can reach whom

    def reachable_store(self, writer: Process, name: str) -> StoreProcess | None:
        """The store, if it runs and the network lets this writer through."""
        store = self.stores[name]
        return store if store.alive and (writer.name, name) not in self.cut_off else None

    def some_writer(self, _client: Process) -> WriterProcess | None:
        """Mostly the newest writer; sometimes one that should have gone."""
        alive = [writer for writer in self.writers if writer.alive]
        if not alive:
            return None
        return alive[-1] if self.rng.random() < 0.7 else self.rng.choice(alive)

    def _start_writer(self) -> None:
        self._started += 1
        self.note("start writer", self._started)
        self.writers.append(WriterProcess(self, f"w{self._started}", STORES, SMALL))

    def taken_over(self, writer: Process, epoch: int, log: Any) -> None:
        """A writer says that all stores are equal: a damaged store that really is counts as whole again."""
        self.opened += 1
        self.note(writer.name, "has made all equal", epoch)
        if epoch <= self.highest_epoch:
            return  # it has just woken up, and is wrong
        self.highest_epoch = epoch
        for name in list(self.damaged):
            chain = _chain(self.disks[name])
            if len(chain) >= log.last_index and (not log.last_index or _crc(chain[log.last_index - 1]) == log._last_crc):
                self.damaged.discard(name)

    # ------------------------------------------------------------------ what befalls them

    def play(self) -> Outcome:
        """The whole story, and the judgement."""
        try:
            self._plan()
            self.run_until(FAULTS_END_MS)
            self._calm_down()
            self.run_until(FAULTS_END_MS + PATIENCE_MS, done=self._all_answered)
            self._settle()
        except (InvariantBroken, ProtocolError) as error:
            return Outcome([f"invariant: {error}"], self.fingerprint(), self)
        unacked = sum(len(numbers) for client in self.clients for numbers in client.unacked.values())
        logs = {name: _chain(disk) for name, disk in self.disks.items()}
        return Outcome(judge(self.history, logs, unacked), self.fingerprint(), self)

    def _plan(self) -> None:
        rng = self.rng
        for client in self.clients:
            for session in client.sessions:
                for _ in range(rng.randrange(4, 12)):
                    when = rng.randrange(0, FAULTS_END_MS)
                    for _ in range(rng.choice((1, 1, 2, 8))):
                        self.at(when, client, client.hand_over, session, rng.random() < 0.04)
                for _ in range(3):
                    self.at(rng.randrange(0, FAULTS_END_MS), client, client.read, session)
                    self.at(rng.randrange(0, FAULTS_END_MS), client, client.repeat_old, session)
        weights = PROFILES[self.profile]
        if self.profile == "storms":
            for store in self.stores.values():
                store.sync_ms = 60
        for fault in rng.choices(list(weights), list(weights.values()), k=rng.randrange(3, 14)):
            self.at(rng.randrange(0, FAULTS_END_MS), None, getattr(self, "_" + fault))

    def _cut_a_link(self) -> None:
        links = [link for process in [*self.writers, *self.clients] if process.alive for link in process.links]
        if links:
            self.rng.choice(links).cut()

    def _crash_a_store(self, name: str = "", torn: float = 0.4) -> None:
        """It loses what it had not synced, but for a part that was written anyway; a torn end raises the incarnation."""
        store = self.stores[name or self.rng.choice(STORES)]
        if not store.alive:
            return
        store.kill()
        disk = store.disk
        disk.entries += store.unsynced[: self.rng.randrange(0, len(store.unsynced) + 1)]
        if self.rng.random() < torn:
            _raise_incarnation(disk)
        self.at(self.rng.randrange(5, 200), None, self._restart_store, store.name)

    def _crash_a_busy_store(self, tries: int = 60) -> None:
        """As above, at the moment when there is something to lose: it has taken frames or fences that it has not synced."""
        busy = [store for store in self.stores.values() if store.alive and store.unsynced]
        if busy:
            self._crash_a_store(self.rng.choice(busy).name)
        elif tries:
            self.at(1, None, self._crash_a_busy_store, tries - 1)

    def _crash_all_stores(self, torn: float = 0.4) -> None:
        for name in STORES:
            self._crash_a_store(name, torn)

    def _crash_a_busy_writer(self, tries: int = 60) -> None:
        """A writer dies while frames that it has sent are on some stores only."""
        busy = [w for w in self.writers if w.alive and w.log is not None and w.log.last_index > w.log.committed]
        if busy:
            self.rng.choice(busy).kill()
            self.at(self.rng.randrange(5, 150), None, self._start_if_none)
        elif tries:
            self.at(1, None, self._crash_a_busy_writer, tries - 1)

    def _zombie_dance(self) -> None:
        """The worst that pauses can do: a writer stands still, another one takes over and stands still as soon as it
        has, all stores crash, the first one wakes up, and then the second."""
        first = [writer for writer in self.writers if writer.alive and writer.open and not writer.paused]
        if not first or len(self.writers) > 12:
            return
        first[-1].paused = True
        for store in self.stores.values():
            store.sync_ms = 60
        self._start_writer()
        self._when_open(first[-1], self.writers[-1], 400)

    def _when_open(self, first: WriterProcess, second: WriterProcess, tries: int) -> None:
        if second.alive and second.takeover is None:
            self.note("pause", first.name, second.name)
            second.paused = True
            if self.rng.random() < 0.7:
                self._crash_all_stores(torn=0)
            when = self.rng.randrange(40, 250)
            self.at(when, None, self._resume, first)
            self.at(when + self.rng.randrange(100, 300), None, self._resume, second)
        elif tries and second.alive:
            self.at(1, None, self._when_open, first, second, tries - 1)
        else:
            self._resume(first)

    def _start_two_together(self) -> None:
        for writer in self.writers:
            if writer.alive and not writer.paused:
                writer.kill()
        self._start_writer()
        self._start_writer()

    def _restart_store(self, name: str) -> None:
        if not self.stores[name].alive:
            self.stores[name] = StoreProcess(self, name, self.disks[name], SMALL)

    def _may_damage(self, name: str) -> bool:
        return len(self.damaged | {name}) < len(STORES)

    def _damage_a_store(self) -> None:
        """The end of its journal is damaged: it loses entries that it had synced and said yes to, and knows that it did."""
        name = self.rng.choice(STORES)
        if self.stores[name].alive and self._may_damage(name):
            self.damaged.add(name)
            self.stores[name].kill()
            disk = self.disks[name]
            lost = self.rng.randrange(1, 8)
            self.note("damage", name, lost)
            del disk.entries[max(0, len(disk.entries) - lost) :]
            _raise_incarnation(disk)
            self.at(self.rng.randrange(5, 100), None, self._restart_store, name)

    def _empty_a_store(self) -> None:
        """An empty directory under an old name: another store."""
        name = self.rng.choice(STORES)
        if self.stores[name].alive and self._may_damage(name):
            self.damaged.add(name)
            self.stores[name].kill()
            self.note("empty", name)
            self.disks[name] = Disk(f"{name}#{self.now}")
            self.at(self.rng.randrange(5, 100), None, self._restart_store, name)

    def _crash_a_writer(self) -> None:
        alive = [writer for writer in self.writers if writer.alive]
        if alive:
            self.rng.choice(alive).kill()
            self.at(self.rng.randrange(5, 150), None, self._start_if_none)

    def _start_if_none(self) -> None:
        if not any(writer.alive and not writer.paused for writer in self.writers):
            self._start_writer()

    def _pause_a_writer(self) -> None:
        """A process that stands still while another one takes its place: it wakes up and believes that it still owns it."""
        alive = [writer for writer in self.writers if writer.alive and not writer.paused]
        if alive:
            writer = self.rng.choice(alive)
            writer.paused = True
            self.note("pause", writer.name)
            self.at(self.rng.randrange(10, 100), None, self._start_if_none)
            self.at(self.rng.randrange(100, 600), None, self._resume, writer)

    @staticmethod
    def _resume(writer: WriterProcess) -> None:
        if writer.alive and writer.paused:
            writer.resume()

    def _two_writers(self) -> None:
        """Two at once, both well; one of them goes some time later."""
        if sum(writer.alive for writer in self.writers) < 3:
            self._start_writer()
            self.at(self.rng.randrange(50, 400), None, self._crash_a_writer)

    def _cut_off_a_store(self) -> None:
        alive = [writer for writer in self.writers if writer.alive]
        if alive:
            writer, name = self.rng.choice(alive), self.rng.choice(STORES)
            self.cut_off.add((writer.name, name))
            for link in list(writer.links):
                if link.info is not None and link.info[0] == name:
                    link.cut()
            self.at(self.rng.randrange(20, 300), None, self.cut_off.discard, (writer.name, name))

    def _slow_a_disk(self) -> None:
        self.stores[self.rng.choice(STORES)].sync_ms = 80

    def _crash_everything(self) -> None:
        self._crash_all_stores()
        for writer in self.writers:
            if writer.alive:
                writer.kill()
        self.at(self.rng.randrange(5, 100), None, self._start_if_none)

    def _calm_down(self) -> None:
        """The faults are over: whatever stood still goes on, whatever died is started, and one writer remains."""
        self.note("calm")
        self.calm = True
        self.cut_off.clear()
        for writer in self.writers:
            self._resume(writer)
        for name in STORES:
            self._restart_store(name)
            self.stores[name].sync_ms = 2
        alive = [writer for writer in self.writers if writer.alive]
        for writer in alive[:-1]:
            self.at(self.rng.randrange(0, 300), None, self._end_spare, writer)
        self.at(0, None, self._keep_a_writer)

    @staticmethod
    def _end_spare(writer: WriterProcess) -> None:
        if writer.alive:
            writer.kill()

    def _keep_a_writer(self) -> None:
        """What Ray does: a process that ended is started again."""
        if not any(writer.alive for writer in self.writers):
            self._start_writer()
        self.at(50, None, self._keep_a_writer)

    def _all_answered(self) -> bool:
        return all(client.done for client in self.clients) and sum(writer.alive for writer in self.writers) == 1

    def _settle(self) -> None:
        """Everybody reads everything, and each store gets its last frame."""
        for _ in range(12):
            for client in self.clients:
                for session in client.sessions:
                    self.at(0, client, client.read, session)
            self.run_until(self.now + 100)


def _chain(disk: Disk) -> list[bytes]:
    """The partition's frames as a disk has them, each at its index."""
    frames: list[bytes] = []
    for entry in disk.entries:
        if isinstance(entry, bytes):
            del frames[int.from_bytes(entry[28:36], "little") - 1 :]
            frames.append(entry)
    return frames


def _crc(frame: bytes) -> int:
    return int.from_bytes(frame[60:64], "little")


def _raise_incarnation(disk: Disk) -> None:
    disk.incarnation += 1
    disk.entries.append(INCARNATION)


def play(seed: int, profile: str = "", keep_trace: bool = False) -> Outcome:
    """The story of `seed`; its profile follows from the seed, unless one is named."""
    story = Story(seed, profile)
    story.keep_trace = keep_trace
    return story.play()
