"""Processes and what they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

__all__ = ["end_family", "family", "signal_all"]


def family(pid: int) -> list[int]:
    """A process and all that descend from it, itself first."""
    parents = _parents()
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_family(pid: int) -> None:
    """Kill a process and all that descend from it. It is stopped first, so that it starts no more of them."""
    signal_all([pid], signal.SIGSTOP)
    signal_all(family(pid), signal.SIGKILL)


def _parents() -> dict[int, int]:
    """Every process's parent. Small images of Linux have no ``ps``, and a Mac has no ``/proc``."""
    found = {}
    if os.path.exists("/proc/self/stat"):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        return found
    said = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        pid, parent = line.split()
        found[int(pid)] = int(parent)
    return found
