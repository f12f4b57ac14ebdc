"""`trilogue verify` of a system that is down, and `trilogue verify --repair`: on the stores' directories of this machine.

Owns the order of the work: lock, read, judge, rebuild what is damaged, read again. It must not know what damage is
(``journal.salvage``), what can be had (``journal.mend``) or how files change places (``journal.swap``). Invariants: it holds
the lock of every store that it reads; without `--repair` it changes nothing; an intact store is never written to; where
something would be given up for good it does nothing, unless that was asked for in so many words; what it says after a repair
is what it then reads.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilogue.actors.journal import open_identity, try_lock
from trilogue.actors.journal.files import file_path, journal_numbers
from trilogue.actors.journal.mend import Interval, PartitionPlan, Plan, plan
from trilogue.actors.journal.rebuild import frames_of, read_frame, rebuild
from trilogue.actors.journal.salvage import Damage, StoreSalvage, salvage_store
from trilogue.actors.journal.swap import finish_swap
from trilogue.actors.protocol.errors import Corrupt, TrilogueError, Unavailable, UsageError
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, Limits
from trilogue.actors.redis_journal.place import is_redis
from trilogue.cluster.commands.find import locate
from trilogue.cluster.commands.judge import Findings, PartitionJudge
from trilogue.cluster.commands.redis_copies import redis_copies
from trilogue.cluster.commands.show import Bars
from trilogue.cluster.commands.streams import first_that_answers, run
from trilogue.cluster.commands.verify import verify
from trilogue.cluster.on_ray.placement import own_directory, read_places
from trilogue.cluster.settings.config import ClusterRecord, read_record, store_names
from trilogue.cluster.settings.directories import data_home, whole_path
from trilogue.cluster.settings.runfile import data_run_file, find_run_file, read_run_file

ALL = "the stores"
INTERVALS_SHOWN = 8


@dataclass(slots=True)
class _Examined:
    """What the directories of this machine hold together."""

    stores: dict[str, StoreSalvage]
    plan: Plan
    elsewhere: list[str]  # stores that have no directory here, or no server that shows them
    empty: list[str]  # new ones: they hold nothing yet


@dataclass(slots=True)
class _Work:
    """One run on one data directory."""

    data: Path
    record: ClusterRecord
    bars: Bars
    limits: Limits
    repairs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    servers: dict[str, list[str]] = field(default_factory=dict)  # stores on Redis servers, and what is damaged there


def repair(
    address: str | None, data: Path | None, bars: Bars, *, accept_loss: bool, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Make the damaged stores of this machine whole. The report, as `verify_down` gives it, of what is there afterwards.

    Raises `UsageError`, `Unavailable` (it is up, or no data is here) or another `TrilogueError`.
    """
    if address is not None:
        raise UsageError("--repair works on directories: give --data DIR, on the machine where they are, and no --address")
    directory = local_data(data)
    if _is_up(directory):
        raise Unavailable(
            f"the system of {directory} is up, and a store's journal is mended while nobody uses it: run `trilogue down "
            f"--data {directory}`, then this again, then `trilogue up --data {directory}`"
        )
    return verify_down(directory, bars, mend=True, accept_loss=accept_loss, limits=limits)


def verify_up_or_down(address: str | None, data: Path | None, bars: Bars) -> dict[str, Any]:
    """What `trilogue verify` reports: over the streams of a system that is up, otherwise from the directories."""
    try:
        return asyncio.run(verify(locate(address, data), bars))
    except Unavailable:
        if address is not None or (data is None and os.environ.get("TRILOGUE_ADDRESS")):
            raise
        directory = local_data(data)
        if read_record(directory) is None:
            raise
        return verify_down(directory, bars)


def local_data(data: Path | None) -> Path:
    """The data directory that a command without a running system means: the named one, the last `up`'s, the default one."""
    if data is not None:
        return whole_path(data)
    known = find_run_file(None)
    return Path(known.data) if known is not None else data_home().absolute()


def verify_down(
    data: Path, bars: Bars, *, mend: bool = False, accept_loss: bool = False, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """The report of `trilogue verify`, read from the directories; `offline` is true, and `repairs` says what was done.

    Raises `Unavailable` if no data is here, `DirectoryInUse` if a store is in use.
    """
    started = time.monotonic()
    record = read_record(data)
    if record is None:
        raise Unavailable(f"there is no data in {data}: name the directory with --data")
    with ExitStack() as locks:
        work = _Work(data, record, bars, limits)
        directories = _directories(data, record)
        for directory in directories.values():
            locks.callback(try_lock(directory, allow_tmpfs=True).release)
            finish_swap(directory)
        copies = locks.enter_context(redis_copies(data, record, limits))
        work.servers, directories = copies.damage, directories | copies.directories
        work.notes += copies.notes
        examined = _examine(work, directories)
        given_up = Findings()
        if mend and examined.plan.contents and _may_go_on(work, examined, accept_loss=accept_loss):
            _add_losses(examined.plan, given_up)
            _mend(work, examined, directories)
            examined = _examine(work, directories)
        findings = _judge(work, examined, directories)
        for problem in given_up.problems:
            findings.add(*problem)
    return {
        "ok": findings.problem_count == 0,
        "cluster": record.cluster,
        "partitions": record.partitions,
        "stores": sorted(examined.stores),
        "counts": {name: getattr(findings, name) for name in ("frames", "bytes", "messages", "skips", "sessions", "senders")},
        "problem_count": findings.problem_count,
        "problems": [problem._asdict() for problem in findings.problems],
        "notes": work.notes + _notes(examined, work.servers),
        "seconds": round(time.monotonic() - started, 3),
        "offline": True,
        "mendable": bool(examined.plan.contents) and not examined.plan.loses,
        "repairs": work.repairs,
    }


# ---------------------------------------------------------------------- reading


def _directories(data: Path, record: ClusterRecord) -> dict[str, Path]:
    """The stores' directories that are on this machine. Several names of one directory (`DATA/store`) are one store."""
    places, _ = read_places(data)
    if places is None or places.machines == 1:
        found = {name: Path(own_directory(record, name, data)) for name in store_names(record)}
    else:
        found = {name: Path(directory) for name, directory in places.directories.items()}
    found = {name: directory for name, directory in found.items() if not is_redis(record.url_of(name))}
    unique = {directory: name for name, directory in reversed(found.items())}
    return {name: directory for directory, name in reversed(unique.items()) if directory.is_dir()}


def _examine(work: _Work, directories: dict[str, Path]) -> _Examined:
    stores: dict[str, StoreSalvage] = {}
    empty: list[str] = []
    for k, (name, directory) in enumerate(directories.items(), 1):
        one = _read_store(work, directory)
        if one is None:
            empty.append(name)
        else:
            stores[name] = one
        work.bars.advance("reading the stores", k, len(directories))
    elsewhere = [name for name in store_names(work.record) if name not in directories]
    return _Examined(stores, plan(stores, work.record.copies), elsewhere, empty)


def _read_store(work: _Work, directory: Path) -> StoreSalvage | None:
    """What the store has; None for a directory in which no store has begun."""
    record = work.record
    if not (directory / "store.json").exists() and not journal_numbers(directory):
        return None
    identity, why = None, ""
    try:
        identity = open_identity(directory, cluster=record.cluster, log_id=record.log_id, fresh_store="")
    except Corrupt as error:
        why = str(error)
    return salvage_store(directory, identity, record.log_id, record.cluster, why)


# ---------------------------------------------------------------------- judging


def _judge(work: _Work, examined: _Examined, directories: dict[str, Path]) -> Findings:
    findings = Findings()
    for name, one in examined.stores.items():
        for damage in one.damage:
            findings.add("damaged", _where(name, one, damage), damage.what)
    for name, problems in work.servers.items():
        for problem in problems:
            findings.add("damaged" if name in directories else "unreachable", name, problem)
    for (name, partition), gaps in examined.plan.lacking.items():
        if not examined.stores[name].intact:
            findings.add("missing", f"{name} partition {partition}", f"it lacks frames {_text(gaps)}; other stores have them")
    _add_losses(examined.plan, findings)
    for partition, one_plan in examined.plan.partitions.items():
        if partition >= work.record.partitions:
            findings.add("misplaced", f"partition {partition}", "there are frames of it, and it does not exist")
            continue
        judge = PartitionJudge(
            partition, work.record.partitions, {ALL: 1}, work.record.log_id, work.limits.frame_bytes_max, findings
        )
        for frame in _frames(work, partition, one_plan, directories):
            judge.take(ALL, [frame])
        judge.finish(len(one_plan.chain))
    found = [frame for one in examined.stores.values() for frame in one.frames]
    findings.frames, findings.bytes = len(found), sum(frame.position.size for frame in found)
    return findings


def _frames(work: _Work, partition: int, one: PartitionPlan, directories: dict[str, Path]) -> Iterator[bytes]:
    for k, node in enumerate(one.chain, 1):
        yield read_frame(directories, node)
        work.bars.advance(f"partition {partition}", k, len(one.chain))


def _add_losses(decided: Plan, findings: Findings) -> None:
    """What nobody has any more, with its proof (G8)."""
    for partition, one in decided.partitions.items():
        after = f"; {one.given_up} whole frames follow, which no store can hold without" if one.given_up else ""
        if one.lost:
            text = f"frame {one.committed} and all before it are known to be committed, and no store has these whole{after}"
            findings.add("lost", f"partition {partition} frames {_text(one.lost)}", text)
        if one.doubtful:
            text = (
                "they were there, and no store has them whole; nothing says that they were committed: this may be a write that "
                f"the end of the machine tore{after if not one.lost else ''}"
            )
            findings.add("doubtful", f"partition {partition} frames {_text(one.doubtful)}", text)
        if one.contradiction:
            findings.add("disagree", f"partition {partition}", f"{one.contradiction}: keep all directories as they are")


def _notes(examined: _Examined, servers: Collection[str]) -> list[str]:
    notes = [f"{name} is empty: it is a new store, and is filled when the system is up" for name in examined.empty]
    notes += [f"{name} has no directory on this machine: it was not read" for name in examined.elsewhere if name not in servers]
    for partition, one in examined.plan.partitions.items():
        if one.never_stored:
            text = f"frames {_text(one.never_stored)} of partition {partition} were on their way when the system ended"
            notes.append(f"{text}, and were never called stored")
    for (name, partition), gaps in examined.plan.lacking.items():
        if examined.stores[name].intact:
            notes.append(f"{name} does not have frames {_text(gaps)} of partition {partition} (yet): its writer fills them in")
    return notes


def _where(name: str, one: StoreSalvage, damage: Damage) -> str:
    if damage.file == 0:
        return name
    path = file_path(one.directory, damage.file).name
    return f"{name} {path} bytes {damage.start}-{max(damage.start, damage.end - 1)}" if damage.end else f"{name} {path}"


def _text(intervals: list[Interval]) -> str:
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in intervals[:INTERVALS_SHOWN])
    return shown + (f" and {len(intervals) - INTERVALS_SHOWN} more gaps" if len(intervals) > INTERVALS_SHOWN else "")


# ---------------------------------------------------------------------- repairing


def _may_go_on(work: _Work, examined: _Examined, *, accept_loss: bool) -> bool:
    """Whether nothing is given up, or giving up was asked for and can be known to be all that there is."""
    decided = examined.plan
    if not decided.loses:
        return True
    if any(one.contradiction for one in decided.partitions.values()):
        work.notes.append("nothing was repaired: the stores contradict each other; keep all directories as they are")
    elif examined.elsewhere:
        names = ", ".join(examined.elsewhere)
        work.notes.append(
            f"nothing was repaired: what is missing here may be on {names}; to fill a store from its peers over the network, "
            "move its directory away, then `trilogue up`"
        )
    elif accept_loss:
        return True
    else:
        work.notes.append(
            "nothing was repaired: it would give up for good what is listed above, and what follows it in its partition; "
            "look for older copies of the stores' directories first, then say `--repair --accept-loss`"
        )
    return False


def _mend(work: _Work, examined: _Examined, directories: dict[str, Path]) -> None:
    """Rebuild every damaged store. The places of what was read move with each of them."""
    now = dict(directories)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for name in examined.plan.contents:
        one = examined.stores[name]
        if name in work.servers:
            work.notes.append(f"{name} was not repaired: it is on {work.record.url_of(name)}, and what was read is a copy")
            continue
        if one.identity is None:
            work.notes.append(
                f"{name} was not repaired: nothing in {one.directory} says which store it was; move it away, and `trilogue up` "
                "fills a new one"
            )
            continue

        def progress(done: int, total: int, name: str = name) -> None:
            work.bars.advance(f"rebuilding {name}", done, total)

        frames = frames_of(examined.plan, name, now, progress)
        kept = rebuild(one.directory, one.identity, frames, examined.plan.fences[name], work.limits, stamp)
        now[name] = kept
        given = sum(len(examined.plan.partitions[partition].chain) for partition in examined.plan.contents[name])
        restored = sum(b - a + 1 for (store, _), gaps in examined.plan.lacking.items() if store == name for a, b in gaps)
        work.repairs.append(
            {
                "store": name,
                "frames": given,
                "frames_from_others": restored,
                "kept": str(kept),
                "kept_bytes": _size(kept),
            }
        )


def _size(directory: Path) -> int:
    """How many bytes of the disk the directory takes."""
    return sum(os.stat(path).st_blocks * 512 for path in directory.iterdir())


def _is_up(data: Path) -> bool:
    try:
        known = read_run_file(data_run_file(data))
        return known is not None and bool(run(first_that_answers(known.addresses, known.token())))
    except TrilogueError:
        return False
