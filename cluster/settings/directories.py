"""Where things are by default.

Owns the default places (XDG). It must not know what is kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

from trilogue.actors.protocol.errors import InvalidSettings


def whole_path(path: str | os.PathLike[str]) -> Path:
    """`path` from the root on, with a leading ~ or ~user resolved. Raises `InvalidSettings` when there is no such user."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise InvalidSettings(f"{os.fspath(path)}: that user's home directory is not known: write the whole path") from None


def data_home() -> Path:
    """The data directory when none is named: `$XDG_DATA_HOME/trilogue`."""
    return Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "trilogue"


def state_home() -> Path:
    """Where the user's run file is: `$XDG_STATE_HOME/trilogue`."""
    return Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state") / "trilogue"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise InvalidSettings("this user has no home directory: set HOME, or XDG_DATA_HOME and XDG_STATE_HOME") from None
