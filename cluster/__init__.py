"""Running trilogue on Ray: `launch` starts the actors (and Ray, if there is none) and returns a `Cluster`.

Importing this imports neither Ray nor anything else that is slow: the names below are fetched when they are first
used, so that the command line answers at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilogue.cluster.launcher import Cluster, launch

__all__ = ["Cluster", "launch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trilogue.cluster import launcher

    return getattr(launcher, name)
