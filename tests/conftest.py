"""What all floors share: how Hypothesis runs, and the guard of the fast floors.

The guard keeps Ray out of `unit` and `simulation`: a test there that imports Ray fails at once and is told where it belongs. It
must not import Ray itself, which costs a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from redis_server import new_server, redis_binary  # noqa: F401  (fixtures of every floor)

# Machines are shared: a slow example is no failure. Derandomised, without a database: what passes here passes in a fresh clone.
settings.register_profile(
    "trilogue", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("trilogue")

WITHOUT_RAY = [Path(__file__).parent / floor for floor in ("unit", "simulation")]
WHERE = "Ray is not for this floor: move the test to tests/integration (see tests/README.md)"


class RayIsRefused:
    """Stands before every other finder of modules, and refuses Ray."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "ray":
            raise ImportError(WHERE)


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError(WHERE)


@pytest.fixture(autouse=True)
def ray_stays_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the fast floors `import ray` fails; where a test of another floor has imported it before, starting it fails."""
    if not any(floor in request.path.parents for floor in WITHOUT_RAY):
        return
    monkeypatch.setattr(sys, "meta_path", [RayIsRefused(), *sys.meta_path])
    if "ray" in sys.modules:
        for name in ("init", "remote", "get", "put", "wait", "get_actor"):
            monkeypatch.setattr(sys.modules["ray"], name, refuse, raising=False)
