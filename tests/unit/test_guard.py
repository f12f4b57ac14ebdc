"""The guard of this floor: Ray cannot be started here."""

from __future__ import annotations

import importlib

import pytest


def test_ray_cannot_be_imported_on_this_floor() -> None:
    with pytest.raises((ImportError, AssertionError), match="move the test to tests/integration"):
        importlib.import_module("ray").init()
