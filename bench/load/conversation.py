"""Real conversation from a file: one JSON object a line, and the comparison of what was read back with it.

Owns the file's format, `{"session", "sender", "sent_at", "text"}` a line, plain or gzipped. It must not know how messages are
sent. Invariants: a line that is not understood is refused by its number before anything is sent, and the comparison
knows no numbers of trilogue's, only texts: it would find what a judge of seqs cannot.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trilogue.actors.protocol.errors import UsageError
from trilogue.actors.protocol.ids import check_sender, check_session
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.bench.load.verification import Verdict

KEYS = ("session", "sender", "sent_at", "text")


class Line(NamedTuple):
    """One message of the conversation. `sent_at` is milliseconds since 1970, and is not sent."""

    session: str
    sender: str
    sent_at: int
    text: str


def read_conversation(path: Path) -> list[Line]:
    """All of the file's messages in its order. Raises `UsageError` naming the file and the line that is wrong."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            lines = list(parse(file, path.name))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give a .jsonl or .jsonl.gz file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise UsageError(f"{path} holds no message")
    return lines


def parse(lines: Iterable[bytes], name: str) -> Iterator[Line]:
    """The messages of `lines`; empty lines are passed over."""
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            try:
                yield _line(json.loads(raw))
            except UnicodeDecodeError:
                raise UsageError(f"{name} line {number}: not UTF-8") from None
            except json.JSONDecodeError as error:
                raise UsageError(f"{name} line {number}: not JSON: {error.msg} at column {error.colno}") from None
            except UsageError as error:
                raise UsageError(f"{name} line {number}: {error}") from None


def _line(item: Any) -> Line:
    if not isinstance(item, dict):
        raise UsageError(f"an object with {', '.join(KEYS)} is wanted, not {type(item).__name__}")
    for key in KEYS:
        if key not in item:
            raise UsageError(f"{key!r} is missing")
    session, sender, sent_at, text = (item[key] for key in KEYS)
    if isinstance(sent_at, bool) or not isinstance(sent_at, int):
        raise UsageError(f"'sent_at' is milliseconds since 1970, not {sent_at!r}")
    if not isinstance(text, str):
        raise UsageError(f"'text' is a string, not {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError("'text' holds a lone surrogate: it is not valid UTF-8") from None
    if size > DEFAULT_LIMITS.body_bytes_max:
        raise UsageError(f"'text' has {size} bytes: {DEFAULT_LIMITS.body_bytes_max} at most")
    return Line(check_session(session), check_sender(sender), sent_at, text)


def compare_with_file(session: str, lines: Sequence[Line], read: Sequence[tuple[str, bytes]]) -> Verdict:
    """Compare the session's lines in the file with the (sender, body) that were read back in seq order, text by text."""
    verdict = Verdict()
    wanted: dict[str, list[bytes]] = defaultdict(list)
    found: dict[str, list[bytes]] = defaultdict(list)
    for line in lines:
        wanted[line.sender].append(line.text.encode())
    for sender, body in read:
        found[sender].append(body)
    for sender in {**wanted, **found}:
        ours, theirs = Counter(wanted[sender]), Counter(found[sender])
        for text, times in (ours - theirs).items():
            for _ in range(times):
                verdict.found("lost", f"{session} {sender}: {_short(text)} is in the file and was not read back")
        for text, times in (theirs - ours).items():
            for _ in range(times):
                verdict.found("duplicated", f"{session} {sender}: {_short(text)} was read back more often than sent")
        if ours == theirs:
            for k, (text, other) in enumerate(zip(wanted[sender], found[sender], strict=True), start=1):
                if text != other:
                    verdict.found("reordered", f"{session} {sender}: text {k} is {_short(other)}, not {_short(text)}")
    return verdict


def _short(text: bytes) -> str:
    shown = text.decode(errors="replace")
    return repr(shown if len(shown) <= 40 else shown[:39] + "…")
