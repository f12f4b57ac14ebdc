"""One seed, one story: a partition with four stores, its SessionActors, Supervisor and clients, and what befalls them.

Owns who there is, the two phases (faults, then calm), and what must hold when they are over. **G11 for a story**: within
`PATIENCE_MS` of its last fault everything that was handed over has its outcome, and three equal copies of everything are
declared as one range. Time in a story runs about seven to ten times as fast as in production (`SMALL`, the client's ladders).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from random import Random
from typing import Any

from simulated.checker import judge
from simulated.client import ClientProcess
from simulated.clockwork import Process
from simulated.faults import Faults
from simulated.file import OutboxFile
from simulated.plan import FAULTS_END_MS, PROFILES, Step, make_plan
from simulated.register import Register
from simulated.register_rounds import RoundsRegister
from simulated.session import SessionProcess
from simulated.store import Disk, Fill, Join, StoreProcess
from simulated.supervisor import SupervisorProcess
from simulated.weather import Weather
from simulated.witness import Witness, crc_of
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import KIB, Limits
from trilogue.actors.protocol.messages import ALIAS, keys_of, unpack_items
from trilogue.actors.protocol.thinning import payload_of_records

STORES = ("store-1", "store-2", "store-3", "store-4")
SESSIONS = ("session-0", "session-1")
CLIENTS = ("c1", "c2")
COPIES = 3
PATIENCE_MS = 8_000
"""How long after the last fault everything must be acked and whole (G11)."""

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
    index_recent_bytes_max=16 * KIB,
    index_resting_bytes_max=1,
    index_merge_segments_max=2,
    senders_answered_max=2,
    page_bytes_max=4 * KIB,
    credit_bytes_max=16 * KIB,
    tick_ms=10,
    writer_ping_ms=30,
    writer_silent_ms=100,
    supervisor_ping_ms=30,
    supervisor_silent_ms=100,
    fence_wait_ms=20,
    member_grace_ms=150,
    hedge_ms=100,
    member_lag_ms=200,
    join_frames_max=16,
    keyed_run_messages_max=3,
    session_keys_hot_max=6,
    keys_hot_max=6,
    key_honoured_ms=600,
    sessions_hot_max=1,
    senders_hot_max=2,
    session_senders_hot_max=1,
    states_names_max=3,
    records_sessions_max=64,
    loads_at_once_max=1,
    subscribe_sessions_max=1,
)


SEEDS_IN_A_ROW = 10
"""So many seeds have the same kind of register: a number of its own, so that another profile changes no other story."""


class Outcome:
    """What a story came to."""

    def __init__(self, anomalies: list[str], fingerprint: str, story: Story) -> None:
        self.anomalies, self.fingerprint, self.story = anomalies, fingerprint, story


class Story(Faults):
    """The world of one seed. With `only`, all other steps of its plan are left out."""

    def __init__(self, seed: int, profile: str = "", only: Collection[int] | None = None) -> None:
        super().__init__(seed)
        self.seed = seed
        self.profile = profile or list(PROFILES)[seed % len(PROFILES)]
        self.steps = [step for step in make_plan(seed, self.profile, list(CLIENTS)) if only is None or step.number in only]
        self.history: list[tuple[Any, ...]] = []
        self.dice = Random(seed)
        self.calm = False
        self.weather = Weather(self, bad=self.profile == "weather")
        self.cut_off = set()
        self.rude = self.rng.choice((0.0, 0.0, 0.3))
        self.wish = Wish(COPIES, 2 if self.profile == "joins" else self.rng.choice((2, 3, 3, 3)), STORES)
        self.disks = {name: Disk(f"{name}#1") for name in STORES}
        self.stores = {name: StoreProcess(self, name, self.disks[name], SMALL) for name in STORES}
        self.witness = Witness(self)
        in_rounds = seed // SEEDS_IN_A_ROW % 3 == 0
        self.register = RoundsRegister(self) if in_rounds else Register(self)
        self.count("register: of rounds" if in_rounds else "register: atomic")
        self.register.when_set = self.witness.check
        self.opened = 0
        self.sessions = []
        for session in SESSIONS:
            self.start_session(session)
        self.supervisor = SupervisorProcess(self, "supervisor", SESSIONS, STORES, SMALL)
        chats = ["s1", "s2"][: self.rng.choice((1, 2, 2))]
        self.files = {name: OutboxFile(self.fresh_id()) for name in CLIENTS}
        self._chats = {name: chats[: self.rng.randrange(1, 3)] for name in CLIENTS}
        self.clients = [ClientProcess(self, name, self._chats[name], self.files[name]) for name in CLIENTS]

    def fresh_id(self) -> str:
        """A new outbox id."""
        return f"{self.rng.getrandbits(128):032x}"

    # ------------------------------------------------------------------ who can reach whom

    def actor(self, name: str) -> Process | None:
        """The process that Ray's address book knows under this name."""
        return self.stores[name] if name in self.stores else self.newest(name)

    def newest(self, session: str) -> SessionProcess:
        return next(one for one in reversed(self.sessions) if one.session == session)

    def reachable_store(self, session: Process, name: str) -> StoreProcess | None:
        """The store, if it runs and the network lets this process through."""
        store = self.stores[name]
        return store if store.alive and (session.name, name) not in self.cut_off else None

    def route(self, _client: Process) -> SessionProcess | None:
        """Mostly where the stores' highest fence says; sometimes where a partition once was."""
        alive = [one for one in self.sessions if one.alive]
        fences = [fence for store in self.stores.values() if store.alive for _, fence in store.state.fences()]
        if alive and (not fences or self.rng.random() < 0.15):
            return self.rng.choice(alive)
        address = max(fences).address if fences else ""
        return next((one for one in alive if one.name == address), None)

    # ------------------------------------------------------------------ processes

    def start_store(self, name: str) -> None:
        if not self.stores[name].alive:
            self.stores[name] = StoreProcess(self, name, self.disks[name], SMALL)

    def start_session(self, session: str, take: bool = False) -> SessionProcess:
        process = SessionProcess(self, f"w{len(self.sessions) + 1}", session, STORES, self.wish, SMALL)
        self.note("start", session, process.name)
        self.sessions.append(process)
        return process

    def start_client(self, name: str) -> None:
        for at, client in enumerate(self.clients):
            if client.name == name and not client.alive:
                self.note("start", name)
                self.clients[at] = ClientProcess(self, name, self._chats[name], self.files[name])

    def start_supervisor(self) -> None:
        if not self.supervisor.alive:
            self.supervisor = SupervisorProcess(self, "supervisor", SESSIONS, STORES, SMALL)

    def taken_over(self, process: SessionProcess, machine: Any) -> None:
        """A writer has the log."""
        self.opened += 1
        log, taking = machine.log, machine._taking
        self.note(process.name, "has the log", log.epoch, "committed", log.committed, "of", log.last_index)
        if log.version == 1:
            self.count("founding: done")
            return
        answers = taking._answers
        sure = sum(key in {member.key for member in taking._members} for key in answers)
        self.count(f"takeover: {min(sure, 3)} of the last range answered")
        self.count("takeover: with a tail" if log.last_index > log.committed else "takeover: everything was committed")
        if not sure:
            self.count("takeover: by stores that cannot tell")
        if len({tuple(answers[key].tail[-1:]) for key in answers}) > 1:
            self.count("takeover: the tails differed")
        if len(log.record.ranges) > 1:
            self.count("takeover: of more than one range")

    # ------------------------------------------------------------------ the two phases

    def play(self, faults_end_ms: int = FAULTS_END_MS) -> Outcome:
        """The whole story, and the judgement."""
        anomalies: list[str] = []
        try:
            for step in self.steps:
                self.at(step.when, None, self._do, step)
            self.run_until(faults_end_ms)
            self._calm_down()
            self.run_until(faults_end_ms + PATIENCE_MS, done=self._is_well)
            self.covered["simulated ms"] = self.now
            self._settle()
        except (InvariantBroken, ProtocolError) as error:
            return Outcome([*self.witness.anomalies[:3], f"invariant: {error}"], self.fingerprint(), self)
        if not self._is_whole():
            anomalies.append(f"not whole: the record does not name {COPIES} copies of everything in one range")
        unacked = sum(client.unanswered for client in self.clients)
        logs = {name: chain_of(self.disks[name]) for name in self._final_members()}
        for log in logs.values():
            self._count_keys(log)
        anomalies = [*self.witness.anomalies[:3], *judge(self.history, logs, unacked), *anomalies]
        return Outcome(anomalies, self.fingerprint(), self)

    def _count_keys(self, log: list[bytes]) -> None:
        keys: set[tuple[str, str]] = set()
        for frame in log:
            for item in unpack_items(payload_of_records(frame)):
                if item[0] == ALIAS:
                    self.count("keys: a number stands for an earlier message")
                for key in keys_of(item):
                    if key is not None and (item[1], key) in keys:
                        self.count("keys: one came again after its time")
                    keys.add((item[1], str(key)))

    def _do(self, step: Step) -> None:
        self.dice = Random(step.dice)
        if step.who:
            for client in self.clients:
                if client.name == step.who and client.alive and not client.paused:
                    getattr(client, step.what)(self.dice)
        else:
            self.note("fault", step.number, step.what)
            self.count(f"fault: {step.what.replace('_', ' ')}")
            getattr(self, step.what)()

    def _calm_down(self) -> None:
        """The faults are over: whatever stood still goes on, and whatever died is started."""
        self.note("calm")
        self.calm = True
        self.rude = 0.0
        self.register.cut_off.clear()
        self.register.stalled_until = 0
        self.cut_off.clear()
        self.weather.clear_up()
        self.normal_network()
        for process in [*self.sessions, *self.stores.values()]:
            self.wake(process)
        for name in STORES:
            if self.stores[name].full:
                self.stores[name].kill()
            self.start_store(name)
            store = self.stores[name]
            store.sync_ms, store.fills_up, store.sync_fails = 2, False, False
        for name in CLIENTS:
            self.start_client(name)
        self.start_supervisor()
        self._keep_sessions()

    def _keep_sessions(self) -> None:
        """Ray starts again what ended."""
        for session in SESSIONS:
            self.restart_session(session)
        self.at(50, None, self._keep_sessions)

    def _final_members(self) -> list[str]:
        record = self.register.value
        return [member.name for member in record.ranges[-1].members] if record is not None else list(STORES[:COPIES])

    def _is_whole(self) -> bool:
        """Design §6, rules 5 and 6: in the end there are three copies again, in one range."""
        record = self.register.value
        return record is not None and len(record.ranges) == 1 and len(record.ranges[0].members) == COPIES

    def _is_well(self) -> bool:
        return self._is_whole() and all(client.done for client in self.clients)

    def _settle(self) -> None:
        """Everybody reads everything, and each store gets its last frame."""
        end = self.now + PATIENCE_MS // 2
        self.run_until(self.now + 300)  # each store gets its last frame
        while self.now < end and not (self._is_well() and all(map(self._has_read_all, self.clients))):
            for client in self.clients:
                client.settle()
            self.run_until(self.now + 50)
        for client in self.clients:
            for session in client.sessions:
                client.ask_where_it_begins(session)
        self.run_until(self.now + 100)
        for client in self.clients:
            client.settle()
            for reader in client.readers:
                self.history.append(("followed", self.now, reader.name, reader.session, reader.inbox.at))

    def _has_read_all(self, client: ClientProcess) -> bool:
        """Whether its readers have come as far as anything was acked: everything is, when it is well."""
        acked = [(fact[3], fact[5]) for fact in self.history if fact[0] == "acked"]
        return all(reader.inbox.at >= seq for reader in client.readers for session, seq in acked if session == reader.session)


def chain_of(disk: Disk) -> list[bytes]:
    """The partition's frames as a disk has them: the chain that ends where the journal says, followed back to the first one.

    Where it ends is the newest frame of the chain, or, if a join has named a base since that the chain did not have, the frame
    before that base. (It need not be the frame of the highest epoch: that one may have been superseded by an older one.)
    """
    by_crc: dict[int, bytes] = {}
    end = 0  # its CRC

    def back(crc: int) -> Iterator[bytes]:
        while (frame := by_crc.get(crc)) is not None:
            yield frame
            at = 36 if frame[6] != 32 else 64 + 36  # a thin frame has the whole one's header behind its own
            crc = int.from_bytes(frame[at : at + 4], "little")

    for entry in disk.entries:
        if isinstance(entry, bytes):
            end = crc_of(entry)
            by_crc[end] = entry
        elif isinstance(entry, Fill):
            by_crc[crc_of(entry.frame)] = entry.frame
        elif isinstance(entry, Join) and all(crc_of(frame) != entry.prev_crc for frame in back(end)):
            end = entry.prev_crc
    return list(back(end))[::-1]


def play(seed: int, profile: str = "", keep_trace: bool = False, only: Collection[int] | None = None) -> Outcome:
    """The story of `seed`; its profile follows from the seed, unless one is named."""
    story = Story(seed, profile, only)
    story.keep_trace = keep_trace
    return story.play()
