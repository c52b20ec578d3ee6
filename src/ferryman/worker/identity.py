"""Who a worker is, and whether another one on this machine is still alive."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

from ferryman.job import WorkerId
from ferryman.store.records import WorkerInfo

__all__ = ["is_dead_neighbour", "new_worker_id", "place", "process_birth"]


def new_worker_id() -> WorkerId:
    """Readable, and never used again."""
    return WorkerId(f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}")


def place() -> str:
    """Names the processes that this one can see: same boot of the same machine, same namespace of process ids."""
    boot = _read("/proc/sys/kernel/random/boot_id") or socket.gethostname()
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = sys.platform
    return f"{boot.strip()}/{namespace}"


def process_birth(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0 if that cannot be told."""
    stat = _read(f"/proc/{pid}/stat")
    # The name, in brackets, may hold anything; the 22nd field is the start.
    return int(stat.rpartition(")")[2].split()[19]) if stat else 0


def is_dead_neighbour(info: WorkerInfo, here: str) -> bool:
    """Whether a worker was a process of this place that has died. False if that cannot be told."""
    if info.place != here:
        return False
    try:
        os.kill(info.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    stat = _read(f"/proc/{info.pid}/stat")
    if stat is None:
        return False
    # A zombie holds its pid until its parent looks, but will not do anything any more.
    is_zombie = stat.rpartition(")")[2].split()[0] in ("Z", "X")
    return is_zombie or process_birth(info.pid) != info.pid_birth


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
