"""Finding the system: in the order of the design, and with a clear word when there is nothing (design §10)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from trilogue.client import Client, NotAuthorized, Unavailable, UsageError
from trilogue.client.connecting.discovery import Found, find, run_file


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment, no run file, no Ray."""
    for name in ("TRILOGUE_ADDRESS", "TRILOGUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "ray", None)


def write_run_file(tmp_path: Path, addresses: list[str]) -> None:
    token_file = tmp_path / "run-token"
    token_file.write_text("token of the run file\n")
    run_file().parent.mkdir(parents=True)
    run_file().write_text(json.dumps({"cluster": "c", "addresses": addresses, "token_file": str(token_file)}))


def write_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env-token").write_text("token of the environment")
    monkeypatch.setenv("TRILOGUE_ADDRESS", "env:1,env:2")
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", str(tmp_path / "env-token"))


def pretend_ray(monkeypatch: pytest.MonkeyPatch, where: Any) -> None:
    class Where:
        async def remote(self) -> Any:
            return where

    def get_actor(name: str, namespace: str) -> Any:
        assert (name, namespace) == ("supervisor", "trilogue")
        if where is None:
            raise ValueError("no such actor")
        return types.SimpleNamespace(where=Where())

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: True, get_actor=get_actor))


def found(address: str | None = None, token: str | None = None) -> Found:
    return asyncio.run(find(address, token))


def test_each_way_comes_before_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_run_file(tmp_path, ["run:1"])
    assert found() == Found(["run:1"], "token of the run file", str(run_file()))
    pretend_ray(monkeypatch, {"addresses": ["ray:1"], "token": "token of the Supervisor"})
    assert found() == Found(["ray:1"], "token of the Supervisor", "the Supervisor")
    write_environment(monkeypatch, tmp_path)
    assert found() == Found(["env:1", "env:2"], "token of the environment", "TRILOGUE_ADDRESS")
    assert found("arg:1", "own token") == Found(["arg:1"], "own token", "address=")
    assert found("arg:1") == Found(["arg:1"], "token of the environment", "address=")


def test_the_run_file_gives_its_token_only_for_its_own_addresses(tmp_path: Path) -> None:
    write_run_file(tmp_path, ["run:1", "run:2"])
    assert found("run:2").token == "token of the run file"
    with pytest.raises(NotAuthorized, match=r"token=.*TRILOGUE_TOKEN_FILE"):
        found("elsewhere:1")


def test_nothing_found_says_what_to_do() -> None:
    with pytest.raises(Unavailable, match=r"trilogue up.*HOST:PORT.*TRILOGUE_ADDRESS"):
        found()


@pytest.mark.parametrize("address", ["localhost", "host:", ":1", "host:port", "host:70000", "host:0", ",", "host:1,other"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        found(address, "token")


def test_a_token_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILOGUE_TOKEN_FILE", "/nowhere/token")
    with pytest.raises(NotAuthorized, match="/nowhere/token"):
        found("host:1")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"addresses": []}', '{"addresses": [1], "token_file": "x"}'])
def test_a_broken_run_file_counts_as_none(text: str) -> None:
    run_file().parent.mkdir(parents=True)
    run_file().write_text(text)
    with pytest.raises(Unavailable):
        found()


@pytest.mark.parametrize("where", [None, {}, {"addresses": [], "token": "x"}, "nonsense"])
def test_a_supervisor_that_does_not_know_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: Any) -> None:
    write_run_file(tmp_path, ["run:1"])
    pretend_ray(monkeypatch, where)
    assert found().addresses == ["run:1"]


def test_a_client_with_nothing_to_connect_to_does_not_open_even_with_a_file(tmp_path: Path) -> None:
    async def enter() -> None:
        await Client("ann", outbox=tmp_path / "a.db").__aenter__()

    with pytest.raises(Unavailable, match="trilogue up"):
        asyncio.run(enter())


def test_importing_the_client_does_not_import_ray() -> None:
    program = "import sys, trilogue.client; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
