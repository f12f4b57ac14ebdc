"""A campaign: a system under load, faults one after another, and the judgement in the end.

Owns the order of things and the written account of the faults. A fault is followed by probes: messages that are handed
over after it, to every session; they must be acked within the fault's bound (G11). Nothing here waits for a duration.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Any, NamedTuple

from history_checker import Anomaly, History, judge, load, read_register, summary
from local_system.load import Config
from local_system.programs import LoadProgram
from local_system.system import LocalSystem
from local_system.waiting import eventually

# The bounds of G11, for messages that are handed over after the fault. On two quiet cores a spare has taken over after 0.1 s
# (from one that says nothing: after 1 s), and everything is back, from `kill -9` through `trilogue up`, after 10 to 15 s; a
# machine that tests in parallel takes longer.
SPARE_BOUND_S = 10.0
ACTOR_BOUND_S = 20.0
SYSTEM_BOUND_S = 60.0
QUIET_BOUND_S = 60.0  # until all that was handed over is acked, when nothing more comes


class Recovery(NamedTuple):
    """One fault, and how long it took until every session had acked a later message."""

    what: str
    seconds: float


def seed_of_this_run() -> int:
    """`TRILOGUE_FAULT_SEED`, or one that nobody has chosen."""
    return int(os.environ.get("TRILOGUE_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))


class Campaign:
    """A system, its load and its faults. Use as a context manager; `check` judges all that was recorded so far."""

    def __init__(self, system: LocalSystem, seed: int, sessions_each: int = 3) -> None:
        self.system = system
        self.seed = seed
        self.random = random.Random(seed)
        self.history_directory = system.root / "history"
        self.history_directory.mkdir()
        self.sessions = [
            session for partition in range(system.partitions) for session in system.sessions_of(partition, sessions_each)
        ]
        self.programs: dict[str, LoadProgram] = {}
        self.recoveries: list[Recovery] = []
        self._heads: dict[str, int] = {}  # up to where all was read back before
        self._account = (self.history_directory / "nemesis.1.jsonl").open("a", buffering=1)

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in self.programs.values():
            program.end()
        self._account.close()

    # ------------------------------------------------------------------ load

    def start_programs(self) -> None:
        """Two senders with outboxes in files, one with its outbox in memory, and readers of everything."""
        everything: dict[str, int | None] = dict.fromkeys(self.sessions, 0)
        from_now_on: dict[str, int | None] = dict.fromkeys(self.sessions[::2])
        programs = [
            self.start_program("alice", senders=["alice"], outbox=True, reads=from_now_on),
            self.start_program("gateway", senders=["bob", "carol", "dörte"], outbox=True),
            self.start_program("memory", senders=["erin"], reads=everything),
        ]
        for program in programs:
            program.wait_until_started()
        self.pour()

    def start_program(self, name: str, *, outbox: bool = False, **values: Any) -> LoadProgram:
        """Start one that writes down what it does; `wait_until_started` comes next."""
        config = Config(
            name=name,
            life=1,
            history=str(self.history_directory),
            seed=self.random.randrange(1 << 32),
            outbox=str(self.system.root / f"{name}.db") if outbox else None,
            **{"sessions": self.sessions, "senders": [name], **values},
        )
        self.programs[name] = LoadProgram(self.system, config)
        return self.programs[name]

    def pour(self) -> None:
        """Everybody sends."""
        for program in self.programs.values():
            if program.config.pours:
                program.ask("pour")

    def until_acked(self, count: int, deadline_s: float = QUIET_BOUND_S) -> None:
        """Let the load go on until `count` more messages were acked."""
        wanted = self.acked() + count
        eventually(lambda: self.acked() >= wanted, deadline_s, lambda: f"{count} more messages are acked: {self.troubles()}")

    def acked(self) -> int:
        """How many messages the living programs have seen acked."""
        return sum(program.ask("counts")["acked"] for program in self.programs.values())

    def waiting(self) -> int:
        """How many messages of the living programs are not acked yet."""
        return sum(program.ask("counts")["waiting"] for program in self.programs.values())

    def troubles(self) -> dict[str, str]:
        """What each program says is wrong."""
        return {name: program.ask("trouble")["trouble"] for name, program in self.programs.items()}

    # ------------------------------------------------------------------ faults

    def note_fault(self, what: str, bound_s: float) -> int:
        """Write down that a fault begins now, or that it ends now; when that was."""
        now = monotonic_ns()
        event = {"e": "fault", "t": now, "what": what, "bound_s": bound_s, "sessions": self.sessions}
        self._account.write(json.dumps(event) + "\n")
        return now

    def probe(self, since_ns: int, what: str, bound_s: float) -> None:
        """Messages that are handed over now are acked before `bound_s` have passed since then."""
        prober = self.programs["memory"]
        left_s = bound_s - (monotonic_ns() - since_ns) / 1e9
        try:
            prober.ask("probe", deadline_s=max(left_s, 1.0))
        except AssertionError as error:
            shown = ("partition", "state", "epoch", "members", "spares", "committed", "waiting_bytes", "ranges")
            actors = self.system.status().get("actors", {})
            owners = [{key: one[key] for key in shown} for one in actors.values() if one.get("partition") is not None]
            troubles = {name: one.ask("trouble")["trouble"] for name, one in self.programs.items() if one is not prober}
            found = "\n".join(map(str, [*owners, troubles, sorted(actors)]))
            raise AssertionError(f"seed {self.seed}: after {what}: {error}\n{found}") from None
        self.recoveries.append(Recovery(what, (monotonic_ns() - since_ns) / 1e9))

    def victim(self, kind: str) -> str:
        """An actor of this kind whose loss is felt: the owner of a partition, a member of an ensemble."""
        owner = self.owner(self.random.randrange(self.system.partitions))
        return str({"session": owner["name"], "store": self.random.choice(owner["members"])}.get(kind, kind))

    def owner(self, partition: int) -> dict[str, Any]:
        """Who serves the partition now."""
        return eventually(lambda: self.system.owner_of(partition) or {}, ACTOR_BOUND_S, f"partition {partition} is served")

    def kill_actor(self, name: str) -> None:
        """`kill -9` of an actor; messages are acked again, and later on it is back in another process."""
        pid = self.system.pid_of(name)
        kind = name.partition("-")[0]
        began = self.note_fault(f"kill -9 of {name}", SPARE_BOUND_S)
        self.system.signal(pid, signal.SIGKILL)
        self.probe(began, f"kill -9 of a {kind}", SPARE_BOUND_S)
        self.system.until_replaced(name, pid, ACTOR_BOUND_S)
        eventually(self.system.is_well, ACTOR_BOUND_S, f"all is well after {name} was killed")

    def until_whole(self, deadline_s: float = ACTOR_BOUND_S) -> None:
        """Wait until every partition's whole log is on all of its copies again."""
        eventually(lambda: not self.system.lacks(), deadline_s, lambda: f"all copies are whole: {self.system.lacks()}")

    def may_lose(self, store: str) -> bool:
        """Whether the fault model allows that this store forgets everything: the register must keep a majority."""
        register = read_register(self.system.stores)
        there = {own_id for name, own_id in self.system.acceptors().items() if name != store}
        keepers = there & set(register.acceptors.values())
        return 2 * len(keepers) > len(register.acceptors)

    def delete_store(self, name: str) -> None:
        """The directory of a running store vanishes; the store is replaced at once, and made anew."""
        pid = self.system.pid_of(name)
        self.until_whole()
        began = self.note_fault(f"the directory of {name} is gone", SPARE_BOUND_S)
        self.system.delete_directory(name)
        self.probe(began, "a store's directory deleted", SPARE_BOUND_S)
        self.system.until_replaced(name, pid, ACTOR_BOUND_S)
        eventually(self.system.is_well, ACTOR_BOUND_S, f"all is well after {name} was emptied")
        self.until_whole()

    def kill_actors(self, names: Sequence[str]) -> None:
        """`kill -9` of several actors in one instant."""
        pids = {name: self.system.pid_of(name) for name in names}
        began = self.note_fault(f"kill -9 of {', '.join(names)}", ACTOR_BOUND_S)
        for pid in pids.values():
            self.system.signal(pid, signal.SIGKILL)
        self.probe(began, f"kill -9 of {len(names)} actors at once", ACTOR_BOUND_S)
        for name, pid in pids.items():
            self.system.until_replaced(name, pid, ACTOR_BOUND_S)
        eventually(self.system.is_well, ACTOR_BOUND_S, f"all is well after {names} were killed")

    def kill_everything(self, programs: Sequence[str] = ()) -> None:
        """`kill -9` of all of the system at once, Ray included, and of these programs; then `trilogue up` on the same data."""
        began = self.note_fault("kill -9 of everything", SYSTEM_BOUND_S)
        for name in programs:
            self.programs[name].kill()
        assert self.system.kill_everything() > 5, "the raylet, the GCS and the actors were not there"
        self.note_fault("everything is dead", SYSTEM_BOUND_S)  # what was acked before that says nothing
        self.system.up()
        self.probe(began, "kill -9 of everything", SYSTEM_BOUND_S)
        for name in programs:
            self.live_again(name)

    def kill_part_of_ray(self, name: str) -> None:
        """`kill -9` of one of Ray's own processes; then `trilogue up`."""
        doomed = [process for process in self.system.processes() if process.name() == name]
        assert len(doomed) == 1, f"{len(doomed)} processes are named {name}"
        began = self.note_fault(f"kill -9 of {name}", SYSTEM_BOUND_S)
        doomed[0].kill()
        self.system.up()
        self.probe(began, f"kill -9 of {name}", SYSTEM_BOUND_S)

    def kill_program(self, name: str) -> None:
        """`kill -9` of a user's program; its successor goes on where it was."""
        self.programs[name].kill()
        self.live_again(name)

    def live_again(self, name: str) -> None:
        """The successor of a killed program opens the same outbox (G10), and reads on after what its predecessor had read."""
        program = self.programs[name]
        reads = dict(program.config.reads)
        for reading in load(self.history_directory).readings:
            ours = reading.reader.startswith(f"{name}.") and reading.read_upto is None
            if ours and reading.session in reads and reading.reads:
                reads[reading.session] = max(reading.reads[-1].seq, reads[reading.session] or 0)
        program.live_again(reads=reads)
        program.ask("pour")

    def end_program(self, name: str) -> None:
        """It ends as a user's program does: nothing is left to send."""
        self.programs.pop(name).stop()

    # ------------------------------------------------------------------ the judgement

    def check(self) -> History:
        """Bring everything to rest, read everything back, and judge all that was recorded. Then the load goes on."""
        self.rest()
        history = self.judged()
        self.pour()
        return history

    def finish(self) -> None:
        """Everything comes to rest, and the programs end. Harmless when they have ended already."""
        if self.programs:
            self.until_acked(200)
            self.rest()
            for name in list(self.programs):
                self.end_program(name)

    def rest(self) -> None:
        """Everybody holds; all that was handed over is acked; all is read back; all readers have read all."""
        programs = list(self.programs.values())
        for program in programs:
            if program.config.pours:
                program.ask("hold")
        for program in programs:
            program.ask("flush", deadline_s=QUIET_BOUND_S)
        self._heads = programs[0].ask("read back", self._heads, deadline_s=QUIET_BOUND_S)["heads"]
        for program in programs:
            program.ask("read to", self._heads, deadline_s=QUIET_BOUND_S)
        self.until_whole(QUIET_BOUND_S)

    def no_acks_below(self, partition: int, epoch: int, since_ns: int) -> None:
        """No client has believed an earlier writer of the partition since then."""
        history = load(self.history_directory)
        sessions = set(self.system.sessions_of(partition, len(self.sessions)))
        handed = {one.mark: one.session for one in history.handed}
        late = [ack for ack in history.acked if ack.at_ns > since_ns and ack.epoch < epoch and handed[ack.mark] in sessions]
        assert not late, f"seed {self.seed}: a deposed writer got {len(late)} messages acked, {late[0]} among them"

    def judged(self) -> History:
        """The history, when the checker finds nothing wrong with it; an AssertionError with what it finds otherwise."""
        history = load(self.history_directory)
        assert history.acked, "nothing was acked"
        anomalies = self.anomalies(history, self.system.stores)
        if anomalies and os.environ.get("TRILOGUE_FAULT_KEEP"):
            (self.system.root / "anomalies.txt").write_text("\n".join(map(str, anomalies)))
        assert not anomalies, f"seed {self.seed} ({self.system.root}):\n{summary(anomalies)}"
        return history

    def anomalies(self, history: History, stores: Sequence[Path]) -> list[Anomaly]:
        """What the checker finds in these stores. They are read again if something was committed meanwhile."""
        while True:
            before = self.system.committed()
            contents, register = list(map(self.system.contents_of, stores)), read_register(self.system.stores)
            if self.system.committed() == before:
                return judge(history, contents, copies=self.system.copies, register=register)
