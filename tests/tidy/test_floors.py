"""The floors hold (design §3): what import-linter cannot see, and what an import must not drag in."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("actors", "client", "cluster", "bench")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PROTOCOL = sorted((ROOT / "actors" / "protocol").glob("*.py"))
ALLOWED_IN_PROTOCOL = {
    "__future__", "array", "bisect", "collections", "dataclasses", "enum", "hashlib", "itertools", "msgpack", "struct",
    "typing", "unicodedata", "zlib",
}  # fmt: skip
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 80


def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", PROTOCOL, ids=lambda path: path.name)
def test_protocol_is_pure(path: Path) -> None:
    """No clock, no randomness, no files, no event loop: whatever is not on the list is not for the protocol."""
    foreign = {name for name in imported(path) if not name.startswith("trilogue.actors.protocol")}
    assert {name.partition(".")[0] for name in foreign} <= ALLOWED_IN_PROTOCOL


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_own_modules_are_imported_by_their_one_name(path: Path) -> None:
    assert [name for name in imported(path) if name.partition(".")[0] in FOLDERS] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_opens_with_a_docstring_that_says_more_than_its_name(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    if path.name in ("__init__.py", "__main__.py") and len(path.read_text().splitlines()) < 10:
        assert docstring.endswith(".")
        return
    sentences = [part for part in docstring.replace(".\n", ". ").split(". ") if part.strip()]
    assert len(sentences) >= 2, f"{path} says only {docstring!r}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


def test_no_init_file_makes_the_namespace_a_package() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py")) or all(
        "tests/support" in str(path) or "tests/simulation" in str(path) for path in (ROOT / "tests").rglob("__init__.py")
    )


def test_every_package_of_the_tree_is_declared() -> None:
    """A package that is missing from `packages` works in an editable install and is silently absent from the wheel."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    in_tree = {"trilogue." + ".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    assert in_tree == set(declared)


def test_contracts_of_import_linter_cover_every_folder_and_module_of_the_actors() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert settings["root_packages"] == [f"trilogue.{folder}" for folder in FOLDERS]
    layers = " | ".join(settings["contracts"][0]["layers"]).split(" | ")
    entries = [path for path in (ROOT / "actors").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    names = {f"trilogue.actors.{path.stem}" for path in entries} - {"trilogue.actors.__init__"}
    assert names | {"trilogue.client", "trilogue.cluster", "trilogue.bench"} == set(layers)


@pytest.mark.parametrize(
    "module", ["trilogue.client", "trilogue.actors", "trilogue.actors.session.actor", "trilogue.actors.store.actor"]
)
def test_public_import_imports_neither_ray_nor_arrow(module: str) -> None:
    slow = "('ray', 'pyarrow', 'numpy')"
    code = f"import sys, {module}; sys.exit(any(name.partition('.')[0] in {slow} for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60, env={**os.environ}).returncode == 0


def test_protocol_imports_nothing_but_msgpack_from_outside() -> None:
    code = (
        "import sys, importlib, pkgutil, trilogue.actors.protocol as p\n"
        "[importlib.import_module('trilogue.actors.protocol.' + m.name) for m in pkgutil.iter_modules(p.__path__)]\n"
        "sys.exit(any(name in sys.modules for name in ('asyncio', 'socket', 'uvloop', 'ray', 'random', 'secrets', 'uuid')))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False, timeout=60).returncode == 0
