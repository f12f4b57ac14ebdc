"""The judge: it reads a history and the bytes on three disks, and says what was broken.

Owns the meaning of G2–G7 and G9–G11 for a history. It shares no code with what it judges: it has its own reader of frames. An
anomaly is a line that begins with its kind: lost, duplicated, reordered, gap, sender order, real time, two answers, readers,
given up, resurrected, hammers, key twice, key lost, alias, pushed, heads, skipped, twice, behind, disagree, forgotten, refused,
damaged, stuck, gone, trimmed, untrimmed, hole, begins. (``witness`` adds: not held, two commits, deposed, junk.)
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import msgpack

BODY_BYTES_MAX = 64
NO_FACTS = {
    "opened", "followed", "subscribed", "pushed", "heads", "begun", "answered",
    "trim", "trim_done", "trimmed", "page", "begins",
}  # fmt: skip
HEADER = "<IBBHQIQQIIIQII"
THIN = 32  # the flag of a frame of which something is gone


KEY_HONOURED_US = 600_000


class Placed(NamedTuple):
    """A message where a disk has it."""

    session: str
    seq: int
    sender_id: str
    n: int
    body: bytes | None  # None: gone


class Log(NamedTuple):
    """What a log holds, in order. `aliases`: numbers that stand for the message at a seq."""

    placed: list[Placed]
    skipped: set[tuple[str, str, int]]
    aliases: dict[tuple[str, str, int], int]
    wrong: list[str]
    keys: dict[tuple[str, str, int], str]  # of the messages that have one, by number
    old: set[tuple[str, str, int]]  # numbers of what is gone, whose keys need not be kept any more
    begins: dict[str, int]  # session -> the first of its messages that is not trimmed, or would be the next


def read_log(frames: list[bytes]) -> Log:
    """The messages of a log, the numbers that are none, and what is wrong with its bytes or its keys."""
    log = Log([], set(), {}, [], {}, set(), {})
    placed, skipped, aliases, wrong, its_key, _, begins = log
    gone_at: dict[tuple[str, str, int], int] = {}
    now_us = 0
    runs: dict[str, list[tuple[int, int, int, bool]]] = {}  # session -> frame, first seq, last seq, gone
    before_seq: dict[str, int] = {}
    gone_upto: dict[str, int] = {}  # of such messages, keys whose time is over are not kept
    floor = 0
    keys: dict[tuple[str, str], tuple[int, int]] = {}  # the newest message that has it: seq, time
    times: dict[tuple[str, int], int] = {}  # of each message that has a key
    before = 0
    for index, frame in enumerate(frames, 1):
        outer = struct.unpack_from(HEADER, frame)
        payload = frame[64 : 64 + outer[10]]
        if zlib.crc32(frame[:60]) != outer[13] or zlib.crc32(payload) != outer[12]:
            wrong.append(f"damaged: frame {index}'s bytes")
        thin = outer[3] == THIN
        head, payload = (payload[:64], payload[64:]) if thin else (frame[:64], payload)
        fields = struct.unpack_from(HEADER, head)
        own_index, prev_crc, header_crc = fields[7], fields[8], fields[13]
        if own_index != index or prev_crc != before or zlib.crc32(head[:60]) != header_crc:
            wrong.append(f"damaged: frame {index} does not chain")
        before = header_crc
        for record in msgpack.unpackb(payload):
            if record[0] == 4:
                floor = max(floor, record[1])
                if record[1] >= index:
                    wrong.append(f"trimmed: frame {index} lets frame {record[1]} go")
            elif record[0] == 5:
                before_seq[record[1]] = max(record[2], before_seq.get(record[1], 1))
            elif record[0] == 7:
                _, session, sender_id, first_n, first_seq, now_us, count, keyed = record
                if not thin:
                    wrong.append(f"gone: frame {index} is whole, and lacks {first_seq} of {session}")
                placed += [Placed(session, first_seq + k, sender_id, first_n + k, None) for k in range(count)]
                runs.setdefault(session, []).append((index, first_seq, first_seq + count - 1, True))
                gone_upto[session] = first_seq + count - 1
                gone_at |= {(session, sender_id, first_n + k): now_us for k in range(count)}
                for k, key, _ in keyed:
                    its_key[session, sender_id, first_n + k] = key
                    keys[session, key] = first_seq + k, now_us
                    times[session, first_seq + k] = now_us
            elif record[0] in (1, 6):
                _, session, sender_id, first_n, first_seq, now_us, _, bodies, *its_keys = record
                placed += [Placed(session, first_seq + k, sender_id, first_n + k, body) for k, body in enumerate(bodies)]
                runs.setdefault(session, []).append((index, first_seq, first_seq + len(bodies) - 1, False))
                for k, key in enumerate(its_keys[0] if its_keys else ()):
                    seq, before_us = keys.get((session, key), (0, 0))
                    if key is not None and seq and now_us - before_us < KEY_HONOURED_US:
                        wrong.append(f"key twice: {key} of {session} is at {seq} and at {first_seq + k}")
                    if key is not None:
                        its_key[session, sender_id, first_n + k] = key
                        keys[session, key] = first_seq + k, now_us
                        times[session, first_seq + k] = now_us
            elif record[0] == 3:
                _, session, sender_id, n, seq, now_us, _ = record
                if (session, sender_id, n) in aliases:
                    wrong.append(f"duplicated: {session} {sender_id} {n} stands for two")
                honoured = now_us - times.get((session, seq), -KEY_HONOURED_US) < KEY_HONOURED_US
                if not honoured and seq > gone_upto.get(session, 0):
                    wrong.append(f"alias: {n} of {sender_id} stands for {seq} of {session}, whose key is not honoured")
                aliases[session, sender_id, n] = seq
            else:
                skipped.add((record[1], record[2], record[3]))
    log.old.update(number for number, stored_us in gone_at.items() if now_us - stored_us >= KEY_HONOURED_US)
    for session, its_runs in runs.items():
        trim = before_seq.get(session, 1)
        for index, first, last, gone in its_runs:
            if gone and index > floor and last >= trim:
                wrong.append(
                    f"gone: {first} of {session} in frame {index}: it is trimmed below {trim}, and up to frame {floor}"
                )
        kept = [first for index, first, _, _ in its_runs if index > floor]
        begins[session] = max(trim, kept[0] if kept else its_runs[-1][2] + 1)
    return log


def together(logs: list[list[bytes]]) -> list[bytes]:
    """The frames of the longest log, each as whole as any store has it."""
    longest = max(logs, key=len)
    return [max((log[k] for log in logs if k < len(log)), key=len) for k in range(len(longest))]


def _its_crc(frame: bytes) -> bytes:
    return frame[124:128] if frame[6] == THIN else frame[60:64]


def judge(history: list[tuple[Any, ...]], logs: dict[str, list[bytes]], still_unacked: int) -> list[str]:
    """Every anomaly, worst first; an empty list is a pass."""
    found: list[str] = []
    name, frames = max(logs.items(), key=lambda item: len(item[1]))
    crcs = [*map(_its_crc, frames)]
    for other, theirs in logs.items():
        if [*map(_its_crc, theirs)] != crcs[: len(theirs)] or len(frames) - len(theirs) > 1:
            found.append(f"disagree: {other} holds another log than {name}")
        its = read_log(theirs)
        found += [f"{one} ({other})" for one in [*its.wrong, *_judge_keys(history, its)]]
    log = read_log(together([*logs.values()]))
    placed, skipped, aliases, wrong, _, _, begins = log
    found += wrong
    by_number: dict[tuple[str, str, int], Placed] = {}
    by_seq: dict[tuple[str, int], Placed] = {}
    last_seq: dict[str, int] = {}
    last_n: dict[tuple[str, str], int] = {}
    for message in placed:
        number = (message.session, message.sender_id, message.n)
        if number in by_number or number in skipped or number in aliases:
            found.append(f"duplicated: {number} at {message.seq}")
        by_number[number] = by_seq[message.session, message.seq] = message
        if message.seq != last_seq.get(message.session, 0) + 1:
            found.append(f"gap: {message.session} has {message.seq} after {last_seq.get(message.session, 0)}")
        last_seq[message.session] = message.seq
        key = (message.session, message.sender_id)
        if message.n <= last_n.get(key, 0):
            found.append(f"sender order: {number} after {last_n[key]}")
        last_n[key] = message.n
    found += _judge_facts(history, by_number, by_seq, log)
    found += _judge_readers(history, last_seq, begins)
    found += _judge_trims(history, log)
    found += _judge_real_time(history, by_number)
    found += _judge_attempts(history)
    if still_unacked:
        found.append(f"stuck: {still_unacked} messages were never answered")
    return found


def _judge_facts(
    history: list[tuple[Any, ...]],
    by_number: dict[tuple[str, str, int], Placed],
    by_seq: dict[tuple[str, int], Placed],
    log: Log,
) -> list[str]:
    """Each answer and each message that was read, against what the disks have in the end."""
    found: list[str] = []
    bodies: dict[tuple[str, str, int], bytes] = {}
    skipped, aliases = log.skipped, log.aliases
    may_end: set[tuple[str, str, int]] = set()  # it had a deadline, or was cancelled
    given_up: set[tuple[str, str, int]] = set()  # its sender was told so
    for kind, _, *fact in history:
        if kind == "handed":
            sender_id, session, n, body = fact
            bodies[session, sender_id, n] = body
            may_end.discard((session, sender_id, n))
        elif kind == "keyed":
            may_end.add((fact[1], fact[0], fact[2]))  # another message may have its key
        elif kind == "key_taken":
            number = (fact[1], fact[0], fact[2])
            if number in by_number or number not in may_end:
                found.append(f"refused: {fact}")
        elif kind in ("may_end", "submitted", "given_up"):
            number = (fact[1], fact[0], fact[2])
            if kind == "may_end":
                may_end.add(number)
            elif kind == "submitted" and number in given_up:
                found.append(f"resurrected: {number} was given up, and is sent")
            elif kind == "given_up":
                given_up.add(number)
                if number not in may_end:
                    found.append(f"given up: {number} had no deadline")
                elif not fact[3] and number in by_number:
                    found.append(f"given up: {number} is stored, and its sender was told that it is not")
        elif kind in ("acked", "told"):
            sender_id, session, n, seq = fact
            number = (session, sender_id, n)
            there = by_number.get(number)
            if seq == 0:
                if (len(bodies[number]) <= BODY_BYTES_MAX and number not in may_end) or number not in skipped:
                    found.append(f"lost: {number} was answered with a skip")
            elif number in aliases:
                original = by_seq.get((session, seq))
                if aliases[number] != seq or original is None or original.body not in (None, bodies[number]):
                    found.append(f"alias: {number} was acked at {seq}, and stands for {aliases[number]}")
            elif there is None:
                found.append(f"lost: {number} was acked at {seq}")
            elif there.seq != seq:
                found.append(f"two answers: {number} was acked at {seq} and is at {there.seq}")
            elif there.body not in (None, bodies[number]):
                found.append(f"reordered: {number} has another body at {seq}")
        elif kind in ("read", "delivered"):
            _, session, seq, sender_id, n, body = fact
            stands = by_seq.get((session, seq), Placed(session, 0, "", 0, b""))
            if stands[:4] != (session, seq, sender_id, n) or stands.body not in (None, body):
                found.append(f"readers: {session} {seq} was read as {sender_id} {n}")
        elif kind == "too_large" or (kind == "refused" and len(bodies[fact[1], fact[0], fact[2]]) > BODY_BYTES_MAX):
            sender_id, session, n, _text = fact
            if len(bodies[session, sender_id, n]) <= BODY_BYTES_MAX or (session, sender_id, n) in by_number:
                found.append(f"refused: {fact}")
        elif kind == "refused" and (fact[1], fact[0], fact[2]) in may_end & skipped:
            pass  # a former process had given it up, and died before it could write that down
        elif kind == "saved":
            sender_id, session, n = fact
            number = (session, sender_id, n)
            if number not in by_number and number not in skipped and number not in aliases:
                found.append(f"lost: {fact} was saved in the outbox")
        elif kind not in NO_FACTS:
            found.append(f"{kind}: {fact}")
    found += [f"lost: {number} is in the log and was never handed over" for number in by_number if number not in bodies]
    return found


def _judge_keys(history: list[tuple[Any, ...]], log: Log) -> list[str]:
    """What was handed over with a key has it in the log, for as long as it is honoured."""
    keyed: dict[tuple[str, str, int], str] = {}
    for kind, _, *fact in history:
        if kind == "handed":
            keyed.pop((fact[1], fact[0], fact[2]), None)
        elif kind == "keyed":
            keyed[fact[1], fact[0], fact[2]] = fact[3]
    there = {(one.session, one.sender_id, one.n) for one in log.placed} - log.old
    without = [number for number in keyed.keys() & there if log.keys.get(number) != keyed[number]]
    return [f"key lost: {number} is stored without {keyed[number]}" for number in sorted(without)]


def _judge_trims(history: list[tuple[Any, ...]], log: Log) -> list[str]:
    """What readers are told is gone is gone, and nothing else is; what was trimmed stays so."""
    found: list[str] = []
    for kind, _, *fact in history:
        if kind == "page":
            name, session, after, first, trimmed = fact
            if not trimmed and first != after + 1:
                found.append(f"hole: {name} asked for what follows {after} of {session}, and got {first}")
            elif trimmed and not after + 1 < first <= log.begins.get(session, 1):
                found.append(f"trimmed: {name} was told that {session} begins at {first}, asking after {after}")
        elif kind == "trim_done" and fact[1] > log.begins.get(fact[0], 1):
            found.append(f"untrimmed: {fact[0]} was trimmed below {fact[1]}, and begins at {log.begins.get(fact[0], 1)}")
        elif kind == "begins" and fact[1] != log.begins.get(fact[0], 1):
            found.append(f"begins: {fact[0]} is said to begin at {fact[1]}, and begins at {log.begins.get(fact[0], 1)}")
    return found


def _judge_readers(history: list[tuple[Any, ...]], last_seq: dict[str, int], begins: dict[str, int]) -> list[str]:
    """Each reader gets each seq once, in order (G7); after a crash it goes on where its cursor stood, and misses nothing."""
    found: list[str] = []
    at: dict[tuple[str, str], int] = {}
    reached: dict[tuple[str, str], int] = {}
    pushed: dict[tuple[str, str], tuple[int, int]] = {}
    for kind, _, *fact in history:
        if kind == "opened":
            name, session, after = fact
            if after > reached.get((name, session), 0):
                found.append(
                    f"skipped: the cursor of {name} in {session} is at {after}, {reached.get((name, session), 0)} was read"
                )
            at[name, session] = after
            pushed.pop((name, session), None)
        elif kind == "subscribed":
            name, number, session, after = fact
            pushed[name, session] = (number, after)
        elif kind == "pushed":
            name, number, session, first_seq, count = fact
            known = pushed[name, session]
            if number != known[0] or first_seq != known[1] + 1:
                found.append(f"pushed: {name} was sent {first_seq} of {session} after {known[1]}")
            pushed[name, session] = (number, first_seq + count - 1)
        elif kind == "delivered":
            name, session, seq, *_ = fact
            before = at[name, session]
            if seq != before + 1:
                found.append(f"{'skipped' if seq > before else 'twice'}: {name} was given {seq} of {session} after {before}")
            at[name, session] = seq
            reached[name, session] = max(seq, reached.get((name, session), 0))
        elif kind == "trimmed":
            name, session, first = fact
            if not at[name, session] + 1 < first <= begins.get(session, 1):
                found.append(
                    f"trimmed: {name} was told that {session} begins at {first}, and had read up to {at[name, session]}"
                )
            at[name, session] = first - 1
            reached[name, session] = max(first - 1, reached.get((name, session), 0))
        elif kind == "heads":
            name, session, acked, head = fact
            if not acked <= head <= last_seq.get(session, 0):
                found.append(
                    f"heads: {name} was told {head} of {session}: {acked} was acked to it, {last_seq.get(session, 0)} is there"
                )
        elif kind == "followed":
            name, session, last = fact
            if last < last_seq.get(session, 0):
                found.append(f"behind: {name} has read {session} up to {last} of {last_seq[session]}")
    return found


def _judge_attempts(history: list[tuple[Any, ...]]) -> list[str]:
    """How often a client connects while nobody answers: at most 15 times in the first 0.73 s, then twice a second."""
    found: list[str] = []
    begun: dict[str, list[int]] = {}
    for kind, now, *fact in history:
        if kind in ("answered", "opened"):
            begun.pop(fact[0], None)
        elif kind == "begun":
            tried = begun.setdefault(fact[0], [])
            tried.append(now)
            if len(tried) > 15 + max(0.0, 2 * ((now - tried[0]) / 1000 - 0.73)):
                found.append(f"hammers: {fact[0]} began {len(tried)} connections in {now - tried[0]} ms without an answer")
    return found


def _judge_real_time(history: list[tuple[Any, ...]], by_number: dict[tuple[str, str, int], Placed]) -> list[str]:
    """What was handed over after an ack lies behind the acked message (G6); the history is in the order of time."""
    found: list[str] = []
    acked_upto: dict[str, int] = {}
    handed_after: dict[tuple[str, str, int], int] = {}
    for kind, _, *fact in history:
        if kind == "handed":
            sender_id, session, n, _body = fact
            handed_after[session, sender_id, n] = acked_upto.get(session, 0)
        elif kind == "acked":
            _, session, _, seq = fact
            acked_upto[session] = max(acked_upto.get(session, 0), seq)
    for number, after in handed_after.items():
        if number in by_number and by_number[number].seq <= after:
            found.append(f"real time: {number} is at {by_number[number].seq}, handed over after {after} was acked")
    return found
