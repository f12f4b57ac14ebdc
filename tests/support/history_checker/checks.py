"""The judging: a history and what stands on the stores in, anomalies out (design §14).

Owns each check. Pure; shares no code with what it judges. A message that was handed over and never acked may be there
or not, unless it was saved in an outbox that was flushed: then it must be (G10).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from history_checker.anomalies import Anomaly, Kind
from history_checker.history import Acked, Fault, HandedOver, History, Reading
from history_checker.journals import StoreContents
from history_checker.register import Register
from history_checker.truth import Truth, truth_of

NS_PER_S = 1e9


def judge(
    history: History, stores: Sequence[StoreContents], copies: int = 3, register: Register | None = None
) -> list[Anomaly]:
    """Everything that is wrong with a run. `stores` is what they hold after it, when nothing was under way, and `register` who
    should hold what; without one, all that have anything of a partition should have all of it."""
    truth, anomalies = truth_of(stores, copies, register.partitions if register is not None else None)
    if register is not None:
        anomalies += [Anomaly(Kind.DAMAGED, "register", problem) for problem in register.problems]
    handed = {one.mark: one for one in history.handed}
    if len(handed) != len(history.handed):
        raise ValueError("two messages of the history have one mark: the recorder is at fault")
    _name_what_is_gone(history, truth, handed)
    anomalies += _lost(history, truth, handed)
    anomalies += _duplicated(truth)
    anomalies += _places(history, truth, handed)
    anomalies += _dense(truth)
    anomalies += _sender_order(history, truth)
    anomalies += _real_time(history, truth, handed)
    anomalies += _made_up(truth, handed)
    anomalies += _answers(history, handed, copies)
    anomalies += _deposed(history, truth, handed)
    for reading in history.readings:
        anomalies += _reading(reading, truth)
    anomalies += _read_all(history, truth, handed)
    anomalies += _readers(history)
    anomalies += _came_back(history, handed)
    return anomalies


def _name_what_is_gone(history: History, truth: Truth, handed: dict[str, HandedOver]) -> None:
    """Of a message whose body no store has any more, an ack or a reader that knew its numbers tells which one it is."""
    for ack in history.acked:
        if ack.mark in handed:
            truth.name(handed[ack.mark].session, ack.seq, ack.sender_id, ack.n, ack.mark)
    for reading in history.readings:
        for read in reading.reads:
            truth.name(reading.session, read.seq, read.sender_id, read.n, read.mark)


# ---------------------------------------------------------------------- what was sent


def _lost(history: History, truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    acked = {one.mark: one for one in history.acked}
    for mark, ack in acked.items():
        if mark not in truth.places:
            session = handed[mark].session if mark in handed else "?"
            yield Anomaly(Kind.LOST, mark, f"acked as {session} {ack.seq} by {ack.copies} stores, and not on all of them")
    unnamed = truth.unnamed()
    for mark in sorted(history.saved - acked.keys() - truth.places.keys() - history.failed.keys()):
        outbox = handed[mark].outbox
        if outbox in history.flushed:
            lane = handed[mark].session, handed[mark].sender
            if unnamed[lane]:  # it was acked to a process that was killed before it could say so, and is gone by now
                unnamed[lane] -= 1
                continue
            yield Anomaly(Kind.LOST, mark, f"was in the file of outbox {outbox}, which has been flushed since")
    for mark, error in history.proofs.items():
        yield Anomaly(Kind.LOST, mark, f"the client said: {error}")
    for mark in history.failed.keys() & truth.places.keys():
        yield Anomaly(Kind.REFUSED_BUT_STORED, mark, f"the client said: {history.failed[mark]}")


def _duplicated(truth: Truth) -> Iterator[Anomaly]:
    for mark, places in truth.places.items():
        if len(places) > 1:
            where = ", ".join(f"{one.session} {one.seq}" for one in places)
            yield Anomaly(Kind.DUPLICATED, mark, f"stands at {where}")


def _places(history: History, truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    """An acked message stands where its ack said, under the number that its ack said."""
    for ack in history.acked:
        places = truth.places.get(ack.mark, [])
        said = (ack.seq, ack.sender_id, ack.n)
        if places and said not in [(one.seq, one.sender_id, one.n) for one in places]:
            found = ", ".join(f"seq {one.seq} as {one.sender_id} n {one.n}" for one in places)
            yield Anomaly(Kind.REORDERED, ack.mark, f"acked at seq {ack.seq} as {ack.sender_id} n {ack.n}, stands at {found}")


def _dense(truth: Truth) -> Iterator[Anomaly]:
    """Seqs are 1, 2, 3, … in the order of the log, and so are each sender's numbers, skips included."""
    for session, messages in truth.sessions.items():
        for before, one in zip([0, *(m.seq for m in messages)], messages, strict=False):
            if one.seq > before + 1:
                yield Anomaly(Kind.GAP, session, f"seq {one.seq} follows {before}")
            elif one.seq <= before:
                yield Anomaly(Kind.DUPLICATED, session, f"seq {one.seq} was given out again, after {before}")
    for (session, sender_id), numbers in truth.numbers.items():
        for before, n in zip([0, *numbers], numbers, strict=False):
            if n > before + 1:
                yield Anomaly(Kind.GAP, session, f"n {n} of {sender_id} follows {before}")
            elif n <= before:
                yield Anomaly(Kind.SENDER_ORDER, session, f"n {n} of {sender_id} comes after {before}")


def _sender_order(history: History, truth: Truth) -> Iterator[Anomaly]:
    """What one outbox was given for one sender and session stands in the order of the hand-overs (G4)."""
    last: dict[tuple[str, str, str], tuple[int, str]] = {}
    for one in history.handed:
        lane = (one.outbox, one.session, one.sender)
        for place in truth.places.get(one.mark, [])[:1]:
            seq, mark = last.get(lane, (0, ""))
            if place.seq < seq:
                yield Anomaly(
                    Kind.SENDER_ORDER, one.session, f"{one.mark} at {place.seq} was handed over after {mark} at {seq}"
                )
            last[lane] = max((seq, mark), (place.seq, one.mark))


def _real_time(history: History, truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    """What was acked before another one was handed over comes before it (G6)."""
    floors: dict[str, tuple[list[int], list[Acked]]] = {}
    for session, found in _acks_by_session(history, handed).items():
        found.sort(key=lambda ack: ack.at_ns)
        highest: list[Acked] = []
        for ack in found:
            highest.append(ack if not highest or ack.seq > highest[-1].seq else highest[-1])
        floors[session] = ([ack.at_ns for ack in found], highest)
    for one in history.handed:
        times, highest = floors.get(one.session, ([], []))
        before = bisect_right(times, one.at_ns - 1)
        for place in truth.places.get(one.mark, [])[:1]:
            if before and highest[before - 1].seq >= place.seq and highest[before - 1].mark != one.mark:
                first = highest[before - 1]
                late_ms = (one.at_ns - first.at_ns) / 1e6
                what = f"{one.mark} at {place.seq} was handed over {late_ms:.3f} ms after {first.mark} was acked at {first.seq}"
                yield Anomaly(Kind.REAL_TIME, one.session, what)


def _acks_by_session(history: History, handed: dict[str, HandedOver]) -> dict[str, list[Acked]]:
    acks: dict[str, list[Acked]] = {}
    for ack in history.acked:
        if ack.mark in handed:
            acks.setdefault(handed[ack.mark].session, []).append(ack)
    return acks


def _made_up(truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    for mark, places in truth.places.items():
        one = handed.get(mark)
        for place in places:
            if place.is_gone and mark not in truth.named:
                continue
            if one is None:
                yield Anomaly(Kind.MADE_UP, f"{place.session} {place.seq}", f"{mark} was never handed over")
            elif (one.session, one.sender) != (place.session, place.sender):
                yield Anomaly(Kind.MADE_UP, f"{place.session} {place.seq}", f"{mark} was for {one.session} by {one.sender}")


def _answers(history: History, handed: dict[str, HandedOver], copies: int) -> Iterator[Anomaly]:
    """One place for one message, one message for one place, one answer to one number."""
    by_mark: dict[str, int] = {}
    by_place: dict[tuple[str, int], str] = {}
    by_number: dict[tuple[str, str, int], int] = {}
    for ack in history.acked:
        if ack.mark not in handed:
            yield Anomaly(Kind.MADE_UP, ack.mark, "acked, but never handed over")
            continue
        session = handed[ack.mark].session
        if ack.copies < copies:
            yield Anomaly(Kind.TOO_FEW_COPIES, ack.mark, f"acked with {ack.copies} copies")
        for what, seen, new in (
            (f"{ack.mark} has two seqs", by_mark.setdefault(ack.mark, ack.seq), ack.seq),
            (f"{session} {ack.seq} is two messages", by_place.setdefault((session, ack.seq), ack.mark), ack.mark),
            (f"n {ack.n} of {ack.sender_id}", by_number.setdefault((session, ack.sender_id, ack.n), ack.seq), ack.seq),
        ):
            if seen != new:
                yield Anomaly(Kind.CONFLICTING_ANSWERS, session, f"{what}: {seen} and {new}")


def _deposed(history: History, truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    """Who acks a message has stored it, or an earlier writer has (G9); and a client believes no writer that was replaced."""
    seen: dict[tuple[str, str], int] = {}
    for ack in history.acked:
        if not ack.epoch or ack.mark not in handed:
            continue
        for place in truth.places.get(ack.mark, [])[:1]:
            if ack.epoch < place.epoch:
                yield Anomaly(Kind.DEPOSED, ack.mark, f"acked in epoch {ack.epoch}, and stored first in epoch {place.epoch}")
        lane = (ack.by, handed[ack.mark].session)
        if ack.epoch < seen.get(lane, 0):
            yield Anomaly(Kind.DEPOSED, ack.mark, f"{ack.by} took an ack of epoch {ack.epoch} after one of epoch {seen[lane]}")
        seen[lane] = max(ack.epoch, seen.get(lane, 0))


# ---------------------------------------------------------------------- what was read


def _reading(reading: Reading, truth: Truth) -> Iterator[Anomaly]:
    """One reader: in order, without a hole, what stands there (G3, G7). Where history began for him, he was told so."""
    who = f"{reading.reader} in {reading.session}"
    at = reading.after
    seen: dict[str, int] = {}
    begins = sorted(reading.begins)
    for first in begins:
        if first > truth.trimmed(reading.session):
            what = f"was told that history begins at {first}, and trims on record end at {truth.trimmed(reading.session)}"
            yield Anomaly(Kind.LOST, who, what)
    for read in reading.reads:
        if at is not None and read.seq > at + 1 and read.seq in begins:
            at = read.seq - 1
        if at is not None and read.seq > at + 1:
            yield Anomaly(Kind.CURSOR_SKIPPED, who, f"seq {read.seq} came after {at}")
        elif at is not None and read.seq <= at:
            kind = Kind.DUPLICATED if seen.get(read.mark) == read.seq else Kind.REORDERED
            yield Anomaly(kind, who, f"seq {read.seq} came after {at}")
        if seen.setdefault(read.mark, read.seq) != read.seq:
            yield Anomaly(Kind.DUPLICATED, who, f"{read.mark} came at seq {seen[read.mark]} and {read.seq}")
        at = read.seq
        stands = truth.at(reading.session, read.seq)
        if stands is None or (stands.mark, stands.sender_id, stands.n) != (read.mark, read.sender_id, read.n):
            there = f"{stands.mark} of {stands.sender_id} n {stands.n}" if stands else "nothing"
            what = f"saw {read.mark} of {read.sender_id} n {read.n} at {read.seq}, where {there} stands"
            yield Anomaly(Kind.NOT_COMMITTED, who, what)


def _read_all(history: History, truth: Truth, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    """Who read to the end of a session has read all that stands before it, and all that was acked before he began."""
    acks = _acks_by_session(history, handed)
    for reading in history.readings:
        if reading.read_upto is None:
            continue
        who = f"{reading.reader} in {reading.session}"
        have = {read.seq for read in reading.reads}
        for one in truth.sessions.get(reading.session, []):
            known = max([reading.after or 0, *(first - 1 for first in reading.begins)])
            if known < one.seq <= reading.read_upto and one.seq not in have:
                yield Anomaly(Kind.LOST, who, f"{one.mark} at {one.seq} was not read back")
        for ack in acks.get(reading.session, []):
            if ack.at_ns < reading.began_ns and ack.seq > reading.read_upto:
                what = f"was told that it ends at {reading.read_upto} when {ack.mark} had been acked at {ack.seq}"
                yield Anomaly(Kind.LOST, who, what)


def _readers(history: History) -> Iterator[Anomaly]:
    seen: dict[tuple[str, int], tuple[str, str]] = {}
    for reading in history.readings:
        for read in reading.reads:
            mark, reader = seen.setdefault((reading.session, read.seq), (read.mark, reading.reader))
            if mark != read.mark:
                what = f"{reader} saw {mark}, {reading.reader} saw {read.mark}"
                yield Anomaly(Kind.READERS_DISAGREE, f"{reading.session} {read.seq}", what)


# ---------------------------------------------------------------------- whether it came back


def _came_back(history: History, handed: dict[str, HandedOver]) -> Iterator[Anomaly]:
    stalls = Stalls(history)
    for fault in history.faults:
        for session in fault.sessions:
            stall_s = stalls.after(fault, session)
            if stall_s is None:
                yield Anomaly(Kind.NEVER_CAME_BACK, session, f"nothing that was handed over after {fault.what} was acked")
            elif stall_s > fault.bound_s:
                what = f"{stall_s:.1f} s from {fault.what} to the first ack of a later message: {fault.bound_s:g} s at most"
                yield Anomaly(Kind.NEVER_CAME_BACK, session, what)
    acked = {ack.mark for ack in history.acked}
    for mark in history.saved - acked - history.failed.keys():
        if handed[mark].outbox not in history.flushed:
            yield Anomaly(Kind.NEVER_CAME_BACK, handed[mark].session, f"{mark} still waits in outbox {handed[mark].outbox}")


class Stalls:
    """How long each session took to ack something that was handed over after a given moment."""

    def __init__(self, history: History) -> None:
        acked_at: dict[str, int] = {}
        for ack in history.acked:
            acked_at[ack.mark] = min(ack.at_ns, acked_at.get(ack.mark, ack.at_ns))
        times: dict[str, list[tuple[int, int]]] = {}
        for one in history.handed:
            if one.mark in acked_at:
                times.setdefault(one.session, []).append((one.at_ns, acked_at[one.mark]))
        self._times: dict[str, tuple[list[int], list[int]]] = {}
        for session, pairs in times.items():
            pairs.sort()
            earliest = [acked for _, acked in pairs]
            for k in range(len(earliest) - 2, -1, -1):
                earliest[k] = min(earliest[k], earliest[k + 1])
            self._times[session] = ([at for at, _ in pairs], earliest)

    def after(self, fault: Fault, session: str) -> float | None:
        """Seconds from the fault to the first ack of a message that was handed over after it; None if there is none."""
        handed_at, earliest = self._times.get(session, ([], []))
        k = bisect_right(handed_at, fault.at_ns)
        return (earliest[k] - fault.at_ns) / NS_PER_S if k < len(earliest) else None
