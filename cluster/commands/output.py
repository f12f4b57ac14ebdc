"""The two streams that every command writes to.

Owns what they do with what they cannot take. It must not know what is written, and imports little: `send` is to be quick.
Invariant: a stream that is closed, that lacks a character, or that nobody reads any more is no reason to fail.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import IO, Any


def prepare_streams() -> None:
    """Make both streams take everything: a closed one takes it to nowhere, and one that does not know a character shows its
    number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that standard output can take: escaped where it does not speak UTF-8."""
    speaks_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=indent, ensure_ascii=not speaks_utf8)


def silence(stream: IO[str]) -> None:
    """Let what Python still holds for `stream`, and all that follows, go nowhere."""
    with contextlib.suppress(OSError):  # it is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
