"""A system on a Ray cluster of several nodes, all simulated on this one machine, one store on each; and the loss of a node.

Owns the program that holds the cluster, and its end. Run as ``python -m local_system.nodes DIRECTORY NODES PARTITIONS`` it is
that program: it prints a line when the system is up, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from local_system.system import COMMAND_TIMEOUT_S, UP_TIMEOUT_S, LocalSystem
from local_system.waiting import eventually
from trilogue.bench.nodes import simulated_nodes
from trilogue.cluster import launch

UP = "up"


class SystemOnNodes(LocalSystem):
    """A running system whose actors are on `nodes` Ray nodes."""

    def __init__(self, partitions: int, nodes: int) -> None:
        super().__init__(partitions)
        self._nodes = nodes
        self._program: subprocess.Popen[str] | None = None

    def up(self) -> None:
        """Start the cluster and the system: once."""
        with (self.root / "nodes.log").open("ab") as log:
            self._program = subprocess.Popen(
                [sys.executable, "-m", "local_system.nodes", str(self.root), str(self._nodes), str(self.partitions)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._sessions.add(self._program.pid)
        assert self._program.stdout is not None
        said: list[str] = []
        # Ray may write to standard output, too.
        eventually(lambda: self._said(said), UP_TIMEOUT_S, lambda: (self.root / "nodes.log").read_text()[-2000:])
        self.environment["TRILOGUE_ADDRESS"] = ",".join(self.run_file()["addresses"])
        self.environment["TRILOGUE_TOKEN_FILE"] = self.run_file()["token_file"]

    def _said(self, said: list[str]) -> bool:
        assert self._program is not None
        assert self._program.stdout is not None
        said.append(self._program.stdout.readline())
        assert said[-1], (self.root / "nodes.log").read_text()[-2000:]
        return said[-1].strip() == UP

    def node_of(self, actor: str) -> psutil.Process:
        """The raylet of the node that the actor runs on."""
        raylet = psutil.Process(self.pid_of(actor)).parent()
        assert raylet is not None
        assert raylet.name() == "raylet"
        return raylet

    def head(self) -> psutil.Process:
        """The raylet of the node that was there first: the GCS and the program are there, too."""
        raylets = [process for process in self.processes() if process.name() == "raylet"]
        return min(raylets, key=lambda raylet: (raylet.create_time(), raylet.pid))

    def kill_node(self, raylet: psutil.Process) -> None:
        """`kill -9` of the node's raylet and of every process that it has started, in one instant."""
        doomed = [*raylet.children(recursive=True), raylet]
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        eventually(lambda: all(map(_is_over, doomed)), COMMAND_TIMEOUT_S, "the node's processes have ended")

    def end(self) -> None:
        """The program ends, and its cluster with it; whatever is left is killed."""
        if (program := self._program) is not None:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(COMMAND_TIMEOUT_S)
            program.stdout.close()
        super().end()
        if program is not None:
            program.wait(COMMAND_TIMEOUT_S)


def _is_over(process: psutil.Process) -> bool:
    """Whether it has ended, be it that nobody has asked for its exit code yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def main(directory: Path, nodes: int, partitions: int) -> None:
    """Hold the system until standard input ends. As many spare SessionActors as partitions: a node may have several of them."""
    settings: dict[str, Any] = {"partitions": partitions, "spare_sessions": partitions, "data": directory / "data"}
    with simulated_nodes(nodes, directory), launch(spread=True, **settings):
        print(UP, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
