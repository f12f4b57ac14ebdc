"""Running trilogue on Ray: `launch` starts the actors (and Ray, if there is none) and returns a `Cluster`; `read_sessions`
gives what they hold as a Ray dataset.

Importing this imports neither Ray nor anything else that is slow: the names below are fetched when they are first
used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilogue.cluster.launcher import Cluster, launch
    from trilogue.cluster.on_ray.reading import read_sessions

__all__ = ["Cluster", "launch", "read_sessions"]
_HOMES = {"Cluster": "launcher", "launch": "launcher", "read_sessions": "on_ray.reading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
