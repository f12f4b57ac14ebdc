"""What can befall a story's processes, disks, network and register (design §14), and what operators do meanwhile.

Owns how each fault is done. Faults stay within what design §1 promises to survive: in every range that is declared, or is being
declared, at least one store has lost nothing that it synced.
"""

from __future__ import annotations

from random import Random
from typing import Any

from simulated.client import ClientProcess
from simulated.clockwork import Clockwork, Process
from simulated.register import Register
from simulated.session import SessionProcess
from simulated.store import INCARNATION, Disk, StoreProcess
from simulated.supervisor import SupervisorProcess
from simulated.weather import Weather
from trilogue.actors.protocol.ensemble import Wish
from trilogue.actors.protocol.messages import FLOOR, Floor

PROCESSES_MAX = 14


class Faults(Clockwork):
    """A world in which things go wrong. `dice` are those of the present step."""

    register: Register
    stores: dict[str, StoreProcess]
    disks: dict[str, Disk]
    sessions: list[SessionProcess]
    clients: list[ClientProcess]
    supervisor: SupervisorProcess
    wish: Wish
    dice: Random
    cut_off: set[tuple[str, str]]
    weather: Weather
    calm: bool
    rude: float

    # ------------------------------------------------------------------ what a story can do

    def start_store(self, name: str) -> None:
        raise NotImplementedError

    def start_session(self, session: str, take: bool = False) -> SessionProcess:
        raise NotImplementedError

    def start_client(self, name: str) -> None:
        raise NotImplementedError

    def start_supervisor(self) -> None:
        raise NotImplementedError

    def newest(self, session: str) -> SessionProcess:
        raise NotImplementedError

    @property
    def owners(self) -> list[SessionProcess]:
        """The processes that have the partition, or believe so, or are taking it."""
        return [session for session in self.sessions if session.alive and session.machine is not None]

    @property
    def spares(self) -> list[SessionProcess]:
        """The processes that own nothing."""
        return [session for session in self.sessions if session.alive and session.machine is None and not session.paused]

    def let_old_ones_go(self) -> None:
        """An owner's policy lets frames go that are committed."""
        owner = self._pick([one for one in self.owners if one.open and not one.paused])
        if owner is not None and owner.log.committed:
            upto = self.dice.randrange(1, owner.log.committed + 1)
            self.count("owner: a floor was logged")
            owner.note(Floor(FLOOR, upto, owner._wall_clock_us()))

    def _pick(self, those: list[Any]) -> Any:
        return self.dice.choice(those) if those else None

    def _later(self, low: int, high: int, action: Any, *arguments: Any) -> None:
        self.at(self.dice.randrange(low, high), None, action, *arguments)

    # ------------------------------------------------------------------ network

    def cut_a_link(self) -> None:
        links = [link for process in [*self.sessions, *self.clients] if process.alive for link in process.links]
        if links:
            self.dice.choice(links).cut()

    def half_open_link(self) -> None:
        """The connector loses a connection and makes a new one; what it had sent on the old one arrives later."""
        links = [link for one in [*self.owners, *self.clients] for link in one.links if link.ends[0] is one]
        if links:
            self.dice.choice(links).leave_half_open()

    def half_open_joiner(self, tries: int = 200) -> None:
        """As above, with what is sent to a store that is being taken in."""
        for owner in self.owners:
            if owner.log is not None and owner.log._change is not None and not owner.paused:
                links = [link for link in owner.links if link.ends[0] is owner and link.info.key in owner.log._change.fresh]
                if links:
                    self.count("fault: the connection to a joining store was half open")
                    links[0].leave_half_open()
                    return
        if tries:
            self.again(1, self.half_open_joiner, tries - 1)

    def stall_a_link(self) -> None:
        """One way of a connection is cut for a while; then it goes on, or it was lost."""
        links = [link for one in [*self.owners, *self.clients] for link in one.links]
        if links:
            link = self.dice.choice(links)
            until = self.now + self.dice.randrange(20, 400)
            link.stall(self.dice.randrange(2), until)
            if self.dice.random() < 0.5:
                self.at(until - self.now, None, link.cut)

    def cut_off_a_store(self) -> None:
        process = self._pick([session for session in self.sessions if session.alive])
        if process is not None:
            name = self.dice.choice(list(self.stores))
            self.cut_off.add((process.name, name))
            for link in list(process.links):
                if link.ends[0] is process and link.info.name == name:
                    link.cut()
            self._later(20, 300, self.cut_off.discard, (process.name, name))

    def flap_a_client(self) -> None:
        """Its network is there for a moment and then not, again and again."""
        client = self._pick([client for client in self.clients if client.alive])
        if client is not None:
            when = 0
            for _ in range(self.dice.randrange(2, 6)):
                self.again(when, self._network_down, client.name)
                when += self.dice.randrange(40, 120)
                self.at(when, None, self.weather.up, client.name)
                when += self.dice.randrange(15, 50)

    def _network_down(self, name: str) -> None:
        for client in self.clients:
            if client.name == name:
                self.note("network down", name)
                self.weather.down(client)

    def silence_a_client(self) -> None:
        """Connected, and nothing comes back: what was sent arrives later, or never."""
        client = self._pick([client for client in self.clients if client.alive])
        if client is not None:
            until = self.now + self.dice.randrange(50, 700)
            self.note("silence", client.name, until)
            self.weather.be_silent(client, until)
            if self.dice.random() < 0.5:
                for link in client.links:
                    self.at(until - self.now, None, link.cut)

    def slow_network(self) -> None:
        self.delay_max = 40
        self._later(50, 400, self.normal_network)

    def normal_network(self) -> None:
        self.delay_max = 8

    # ------------------------------------------------------------------ disks

    def crash_a_store(self, name: str = "", torn: float = 0.4) -> None:
        """It loses what it had not synced, but for a part that was written anyway; a torn end raises the incarnation."""
        store = self.stores[name or self.dice.choice(list(self.stores))]
        if not store.alive:
            return
        store.kill()
        disk = store.disk
        disk.entries += store.unsynced[: self.dice.randrange(0, len(store.unsynced) + 1)]
        if self.dice.random() < torn and self.may_damage(store.name):
            self._raise_incarnation(disk)
        self._later(5, 200, self.start_store, store.name)

    def crash_a_busy_store(self, tries: int = 60) -> None:
        """As above, at the moment when there is something to lose: it has taken frames or fences that it has not synced."""
        busy = [store for store in self.stores.values() if store.alive and store.unsynced]
        if busy:
            self.crash_a_store(self.dice.choice(busy).name)
        elif tries:
            self.again(1, self.crash_a_busy_store, tries - 1)

    def crash_the_source(self, tries: int = 300) -> None:
        """The store whose tail a new owner has chosen dies before that tail is committed."""
        for owner in self.owners:
            machine = owner.machine
            if (
                machine is not None
                and owner.log is not None
                and not machine.recovered
                and owner.log.last_index > owner.log.committed
            ):
                source = machine._taking._source
                name = next((link.info.name for key, link in owner.connections.items() if key == source), "")
                if name:
                    self.count("fault: the source of a tail was lost")
                    self.crash_a_store(name)
                    return
        if tries:
            self.again(1, self.crash_the_source, tries - 1)

    def crash_all_stores(self, torn: float = 0.4) -> None:
        for name in self.stores:
            self.crash_a_store(name, torn)

    def tear_all_stores(self) -> None:
        """A power cut: the ends of all journals are torn. Nothing that was synced is lost, and no store can tell that."""
        if not all(self.disks[member.name].uuid == member.store for members in self._ranges() for member in members):
            return  # one was emptied: with nobody certain left, the others would wait for it for ever
        for store in self.stores.values():
            if store.alive:
                store.kill()
                store.disk.entries += store.unsynced[: self.dice.randrange(0, len(store.unsynced) + 1)]
                self._raise_incarnation(store.disk)
                self._later(5, 200, self.start_store, store.name)

    def fail_a_sync(self) -> None:
        """The next `fdatasync` of a store fails: its process ends (``sync_failed``)."""
        store = self._pick([store for store in self.stores.values() if store.alive])
        if store is not None:
            store.sync_fails = True

    def sync_failed(self, store: StoreProcess) -> None:
        """Never again: the kernel has marked the pages clean. What was to be synced may be on the disk, in part."""
        self.note("fsync failed", store.name)
        self.count("disk: fsync failed")
        store.kill()
        store.disk.entries += store.unsynced[: self.rng.randrange(0, len(store.unsynced) + 1)]
        self.at(self.rng.randrange(5, 200), None, self.start_store, store.name)

    def fill_a_disk(self) -> None:
        """No room: the store serves reads and takes nothing, until somebody frees some and it begins anew."""
        store = self._pick([store for store in self.stores.values() if store.alive and not store.fills_up])
        if store is not None:
            store.fills_up = True
            self._later(60, 700, self._free_some_room, store)

    def _free_some_room(self, store: StoreProcess) -> None:
        if store.alive:
            store.fills_up = False
            if store.full:
                store.kill()
                self._later(5, 50, self.start_store, store.name)

    def slow_a_disk(self) -> None:
        self.stores[self.dice.choice(list(self.stores))].sync_ms = self.dice.choice((30, 80, 300))

    def damage_a_store(self) -> None:
        """The end of its journal is damaged: it loses entries that it had synced and said yes to, and knows that it did."""
        name = self.dice.choice(list(self.stores))
        self._damage(name, len(self.disks[name].entries) - self.dice.randrange(1, 8))

    def damage_what_superseded(self) -> None:
        """As `damage_a_store`, from a frame on that had superseded another one: that one stands again."""
        found = {name: at for name, disk in self.disks.items() if (at := _superseding(disk)) >= 0}
        if found:
            name = self.dice.choice(list(found))
            self._damage(name, found[name])

    def _damage(self, name: str, at: int) -> None:
        if self.stores[name].alive and self.may_damage(name):
            self.stores[name].kill()
            disk = self.disks[name]
            self.note("damage", name, len(disk.entries) - at)
            del disk.entries[max(0, at) :]
            self._raise_incarnation(disk)
            self._later(5, 100, self.start_store, name)

    def empty_a_store(self) -> None:
        """An empty directory under an old name: another store."""
        name = self.dice.choice(list(self.stores))
        if self.stores[name].alive and self.may_damage(name) and self.register.may_lose(name):
            self.stores[name].kill()
            self.note("empty", name)
            self.disks[name] = Disk(f"{name}#{self.now}")
            self._later(5, 100, self.start_store, name)

    def _raise_incarnation(self, disk: Disk) -> None:
        self.note("damaged", disk.uuid)
        self.count("disk: incarnation raised")
        disk.incarnation += 1
        disk.entries.append(INCARNATION)

    def may_damage(self, name: str) -> bool:
        """Whether in every range that is declared, or is being declared, another member has lost nothing (G2)."""
        if self.register.value is None:
            return False
        return all(any(m.name != name and self._is_intact(m) for m in members) for members in self._ranges())

    def _ranges(self) -> list[Any]:
        """The members of each range that is declared, or is being declared."""
        records = [self.register.value, *self.register.asked]
        logs = [session.log for session in self.owners if session.log is not None]
        ranges = [one.members for record in [*records, *(log.record for log in logs)] if record for one in record.ranges]
        return ranges + [log._change.members for log in logs if log._change is not None]

    def _is_intact(self, member: Any) -> bool:
        disk = self.disks[member.name]
        return (disk.uuid, disk.incarnation) == (member.store, member.incarnation)

    # ------------------------------------------------------------------ processes

    def crash_an_owner(self) -> None:
        self._crash_session(self._pick(self.owners or [session for session in self.sessions if session.alive]))

    def _crash_session(self, process: SessionProcess | None) -> None:
        if process is not None and process.alive:
            process.kill()
            self._later(5, 150, self.restart_session, process.session)

    def restart_session(self, session: str) -> None:
        """What Ray does: a process that ended is started again, as a spare."""
        if not self.newest(session).alive:
            self.start_session(session)

    def crash_a_busy_owner(self, tries: int = 60) -> None:
        """An owner dies while frames that it has sent are on some stores only."""
        busy = [one for one in self.owners if one.log is not None and one.log.last_index > one.log.committed]
        if busy:
            self._crash_session(self.dice.choice(busy))
        elif tries:
            self.again(1, self.crash_a_busy_owner, tries - 1)

    def pause_an_owner(self) -> None:
        """A process that stands still while another one takes its place: it wakes up and believes that it still owns it."""
        self._pause(self._pick([one for one in self.owners if not one.paused]), 100, 600)

    def pause_a_changing_owner(self, tries: int = 200) -> None:
        """As above, in the middle of a change of the ensemble."""
        changing = [one for one in self.owners if not one.paused and one.log is not None and one.log._change is not None]
        if changing:
            self.count("fault: an owner stood still in a change")
            self._pause(self.dice.choice(changing), 100, 600)
        elif tries:
            self.again(1, self.pause_a_changing_owner, tries - 1)

    def _pause(self, process: Process | None, low: int, high: int) -> None:
        if process is not None:
            process.paused = True
            self.note("pause", process.name)
            self._later(low, high, self.wake, process)

    @staticmethod
    def wake(process: Process) -> None:
        """It goes on, if it stood still."""
        if process.alive and process.paused:
            process.resume()

    def pause_a_store(self) -> None:
        self._pause(self._pick([store for store in self.stores.values() if store.alive and not store.paused]), 20, 400)

    def pause_a_filling_store(self, tries: int = 300) -> None:
        """A store stands still while older frames are copied to it, until it is replaced; then it is needed again."""
        for owner in self.owners:
            link = owner.connections.get(owner.log._filling) if owner.log is not None else None
            if link is not None and not self.stores[link.info.name].paused:
                self.count("fault: a store stood still while it was filled")
                store = self.stores[link.info.name]
                others = [one.name for one in owner.log.members if one.name != store.name]
                store.paused = True
                self.note("pause", store.name)
                when = self.dice.randrange(230, 400)
                self.at(when + self.dice.randrange(0, 10), None, self.wake, store)
                if others:
                    self.at(when - self.dice.randrange(0, 40), None, self._crash_later, self.dice.choice(others), self.dice)
                return
        if tries:
            self.again(1, self.pause_a_filling_store, tries - 1)

    def _crash_later(self, name: str, dice: Random) -> None:
        self.dice = dice
        self.crash_a_store(name, torn=0)

    def two_of_one_name(self) -> None:
        """Ray believes that a process that only stands still is dead, and starts another one of its name."""
        process = self._pick([one for one in self.owners if not one.paused])
        if process is not None and len(self.sessions) < PROCESSES_MAX:
            self._pause(process, 100, 600)
            self.start_session(process.session)

    def crash_a_client(self) -> None:
        client = self._pick([client for client in self.clients if client.alive])
        if client is not None:
            client.kill()
            self._later(5, 100, self.start_client, client.name)

    def crash_the_supervisor(self) -> None:
        if self.supervisor.alive:
            self.supervisor.kill()
            self._later(5, 200, self.start_supervisor)

    def crash_everything(self) -> None:
        self.crash_all_stores()
        for session in self.sessions:
            self._crash_session(session)

    def zombie_dance(self) -> None:
        """The worst that pauses can do: an owner stands still, another one takes over and stands still as soon as it
        has, all stores crash, the first one wakes up, and then the second."""
        first = [one for one in self.owners if one.open and not one.paused]
        if not first or len(self.sessions) >= PROCESSES_MAX:
            return
        first[-1].paused = True
        for store in self.stores.values():
            store.sync_ms = 60
        second = self._pick(self.spares) or self.start_session(first[-1].session)
        second.take()
        self._when_open(first[-1], second, 400)

    def _when_open(self, first: SessionProcess, second: SessionProcess, tries: int) -> None:
        if second.alive and second.open:
            self.note("pause", first.name, second.name)
            second.paused = True
            if self.dice.random() < 0.7:
                self.crash_all_stores(torn=0)
            when = self.dice.randrange(40, 250)
            self.at(when, None, self.wake, first)
            self.at(when + self.dice.randrange(100, 300), None, self.wake, second)
        elif tries and second.alive:
            self.again(1, self._when_open, first, second, tries - 1)
        else:
            self.wake(first)

    def jump_a_clock(self) -> None:
        process = self._pick([session for session in self.sessions if session.alive])
        if process is not None:
            process.clock_ms += self.dice.choice((-50_000, -300, 300, 3_600_000))

    # ------------------------------------------------------------------ control and operators

    def stall_the_register(self) -> None:
        self.register.stalled_until = self.now + self.dice.randrange(50, 500)

    def cut_off_the_register(self) -> None:
        process = self._pick(self.owners)
        if process is not None:
            self.register.cut_off.add(process.name)
            self._later(50, 500, self.register.cut_off.discard, process.name)

    def order_another_writer(self) -> None:
        """A second Supervisor, which is wrong: a spare is told to take a partition whose owner is well."""
        spare = self._pick(self.spares)
        if spare is not None:
            self.note("wrong order", spare.name)
            spare.take()

    def order_rudely(self, tries: int = 60) -> None:
        """As above, while frames are queued in front of slow disks, and no spare cares whether stores hear the owner."""
        busy = [one for one in self.owners if one.log is not None and one.log.last_index > one.log.committed]
        spare = self._pick(self.spares)
        if busy and spare is not None:
            slow = self.dice.choice((15, 30, 60))
            for store in self.stores.values():
                store.sync_ms = slow
            self.rude = 1.0
            self._later(50, 200, self._be_polite)
            for k in range(30):
                self.again(4 * k, self._one_more_message)
            if self.dice.random() < 0.3:
                self.again(self.dice.randrange(20, 120), self.crash_a_busy_store)
            self.note("rude order", spare.name)
            spare.take()
        elif tries:
            self.again(1, self.order_rudely, tries - 1)

    def _one_more_message(self) -> None:
        client = self._pick([client for client in self.clients if client.alive])
        if client is not None:
            client.hand_over(self.dice)

    def _be_polite(self) -> None:
        self.rude = 0.0

    def order_two_together(self) -> None:
        for one in self.owners:
            if not one.paused:
                self._crash_session(one)
        for spare in self.spares[:2]:
            spare.take()

    def move_the_partition(self) -> None:
        """An operator moves it: a spare is told, and the owner's process ends at about the same time."""
        owner, spare = self._pick(self.owners), self._pick(self.spares)
        if owner is not None and spare is not None:
            self._later(0, 30, spare.take)
            self._later(0, 30, self._crash_session, owner)

    def take_out_a_store(self) -> None:
        """An operator stops a store, for so long that it is replaced; then it is brought back."""
        store = self._pick([store for store in self.stores.values() if store.alive])
        if store is not None and sum(one.alive for one in self.stores.values()) > len(self.stores) - 2:
            store.kill()
            store.disk.entries += store.unsynced
            self._later(200, 700, self.start_store, store.name)

    def change_min_copies(self) -> None:
        """Processes that start from now on are started with another setting."""
        self.wish = self.wish._replace(min_copies=self.dice.choice((2, 3)))

    # ------------------------------------------------------------------

    def again(self, delay: int, action: Any, *arguments: Any) -> None:
        """Try in `delay` ms whether the moment has come, with the same dice, while faults last."""
        dice = self.dice

        def later() -> None:
            if not self.calm:
                self.dice = dice
                action(*arguments)

        self.at(delay, None, later)


def _superseding(disk: Disk) -> int:
    """Where the first frame of a journal lies that superseded another one; -1 if none does."""
    seen: dict[bytes, Any] = {}
    for at, entry in enumerate(disk.entries):
        if isinstance(entry, bytes):
            head = entry[64:] if entry[6] == 32 else entry  # of a thin frame
            if seen.setdefault(head[28:36], head[60:64]) != head[60:64]:
                return at
    return -1
