"""What a user gets: the wheel holds the tree, the public names are there, and the documents name what exists."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from trilogue.actors.protocol import errors

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("actors", "client", "cluster", "bench")
DOCUMENTS = [path for path in (*ROOT.glob("*.md"), ROOT / "tests" / "README.md") if path.exists()]

CLIENT_NAMES = {
    "Client",
    "SyncClient",
    "Subscription",
    "SyncSubscription",
    "ClientState",
    "Ack",
    "Message",
    "Limits",
    "DEFAULT_LIMITS",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `python -m build --wheel` builds it, from a copy so that nothing is left in the tree."""
    place = tmp_path_factory.mktemp("wheel")
    tree = place / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = tree / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(tree)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("*.whl")
    return built


def test_wheel_holds_every_module_of_the_tree_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {
        f"trilogue/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.name == "py.typed" or path.suffix == ".py"
    }
    assert inside == tree
    assert {f"trilogue/{folder}/py.typed" for folder in FOLDERS} <= inside


def test_wheel_names_its_licence_its_script_and_its_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "trilogue = trilogue.cluster.commands.cli:main" in entry_points
    assert "[trilogue.commands]" in entry_points


def test_public_names_of_the_client_are_those_of_the_contract_and_every_error() -> None:
    client = importlib.import_module("trilogue.client")
    tree = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.TrilogueError)}
    assert set(client.__all__) == CLIENT_NAMES | tree
    assert all(getattr(client, name) is getattr(errors, name) for name in tree)
    assert all(hasattr(client, name) for name in CLIENT_NAMES)


def test_public_names_of_the_cluster_are_those_of_the_contract() -> None:
    assert set(importlib.import_module("trilogue.cluster").__all__) == {"launch", "Cluster", "read_sessions"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_module_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    missing = []
    for name in sorted(set(re.findall(r"\btrilogue(?:\.(?:actors|client|cluster|bench))(?:\.[a-z_]+)*", text))):
        parent, _, last = name.rpartition(".")
        if not _exists(name) and not (_exists(parent) and hasattr(importlib.import_module(parent), last)):
            missing.append(name)
    paths = set(re.findall(r"`((?:actors|client|cluster|bench|tests)/[\w/]+(?:\.\w+)?)/?`", text))
    missing += sorted(path for path in paths if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists())
    assert missing == []


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
