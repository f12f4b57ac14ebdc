"""Where things are by default.

Owns the default places (XDG). It must not know what is kept there.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_home() -> Path:
    """The data directory when none is named: `$XDG_DATA_HOME/trilogue`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "trilogue"


def state_home() -> Path:
    """Where the user's run file is: `$XDG_STATE_HOME/trilogue`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "trilogue"
