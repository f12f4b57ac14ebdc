"""Load programs as the tests see them: started, asked, killed, started again on the same outbox.

Owns the processes of ``local_system.load`` and their ends.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from local_system.load import Config
from local_system.system import LocalSystem

ANSWER_S = 60.0


class LoadProgram:
    """One user's program through all its lives."""

    def __init__(self, system: LocalSystem, config: Config) -> None:
        self._system = system
        self.config = config
        self._start()

    @property
    def name(self) -> str:
        """What it is called in the history."""
        return self.config.name

    def wait_until_started(self) -> None:
        """Its client is open, and its readers were begun."""
        self.answer(ANSWER_S, "start")

    def ask(self, command: str, argument: Any = None, *, deadline_s: float = ANSWER_S) -> dict[str, Any]:
        """Have it do something, and wait for its answer."""
        self.tell(command, argument)
        return self.answer(deadline_s, command)

    def tell(self, command: str, argument: Any = None) -> None:
        """Have it do something; `answer` waits for it."""
        assert self._process.stdin is not None
        self._told += 1
        try:
            self._process.stdin.write(json.dumps([self._told, command, argument]) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise AssertionError(self._died(command)) from None

    def answer(self, deadline_s: float, command: str) -> dict[str, Any]:
        """The answer to the command that was told last. Late answers to commands that were waited for in vain are let go."""
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.name} did not answer {command!r} within {deadline_s:g} s") from None
            if not line:
                raise AssertionError(self._died(command))
            number, answer = json.loads(line)
            if number == self._told:
                return dict(answer)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`: nothing is flushed, nothing is closed."""
        self._process.kill()
        self._process.wait()

    def live_again(self, **changes: Any) -> None:
        """Its successor, on the same outbox."""
        assert self._process.poll() is not None, f"{self.name} is still alive"
        self.config = replace(self.config, life=self.config.life + 1, seed=self.config.seed + 1, **changes)
        self._start()
        self.wait_until_started()

    def stop(self) -> None:
        """Let it end by itself. Fails if it ends with an error."""
        self.tell("stop")
        code = self._process.wait(ANSWER_S)
        assert code == 0, self._died("stop")

    def end(self) -> None:
        """It is gone afterwards."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _start(self) -> None:
        log = self._log_file()
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local_system.load", json.dumps(asdict(self.config))],
                env=self._system.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        self._told = 0  # how many commands this life was given
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_lines, args=(self._process, self._answers), daemon=True).start()

    def _log_file(self) -> Path:
        return Path(self.config.history) / f"{self.name}.log"

    def _died(self, command: str) -> str:
        last = self._log_file().read_text(errors="replace")[-2000:]
        return f"{self.name} ended with {self._process.wait(ANSWER_S)} when it was asked to {command!r}: {last}"


def _lines(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Hand on what the program says; an empty line when it says nothing more."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answers.put(line)
    except ValueError:
        pass  # closed while it was read
    answers.put("")
