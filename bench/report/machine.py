"""What a figure was measured on and with: the processor, the kernel, the file system, the source's commit.

Owns the facts that stand beside every figure. It must not know what is measured. Invariant: a fact that cannot be
found out is said to be unknown, and never stops a measurement.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from trilogue.actors.protocol.errors import DirectoryUnusable

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
GIB = 1 << 30


def file_system_of(path: Path) -> str:
    """The type of the file system that `path` lies on (`ext4`, `tmpfs`, …), or `unknown`."""
    real = path.resolve()
    best, kind = -1, "unknown"
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        # A later mount on the same point hides the earlier one.
        if len(point.parts) >= best and real.is_relative_to(point):
            best, kind = len(point.parts), mount.fstype or "unknown"
    return kind


def refuse_memory(directory: Path) -> None:
    """Raise `DirectoryUnusable` if `directory` lies where `fdatasync` means nothing."""
    kind = file_system_of(directory)
    if kind in MEMORY_FILE_SYSTEMS:
        raise DirectoryUnusable(f"{directory} is on {kind}, where fdatasync means nothing: give --data a directory on a disk")


def cpu_model() -> str:
    """The processor's name as its maker writes it, or its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_facts(data: Path | None) -> dict[str, Any]:
    """The machine as reports name it; `data` is where the stores write, None when that is on another machine."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "filesystem": file_system_of(data) if data else "unknown",
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The machine on one line, for people."""
    return (
        f"{facts['cpu']} · {facts['cores']} cores · {facts['memory_gib']} GiB · {facts['kernel']} · "
        f"Python {facts['python']} · {facts['filesystem']}"
    )


def commit() -> str:
    """The source tree's `git describe`, or the installed package's version where there is no tree."""
    # Only a checkout holds pyproject.toml beside the package; inside site-packages git would describe someone else's tree.
    here = Path(__file__).resolve().parents[2]
    if (here / "pyproject.toml").is_file():
        try:
            done = subprocess.run(
                ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return f"trilogue {metadata.version('trilogue')}"
    except metadata.PackageNotFoundError:
        return "unknown"
