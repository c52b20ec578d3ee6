"""The demo's worker: a process of its own, as ``ferryman worker`` starts it, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ferryman.cli.demo.catalogue import QUEUE
from ferryman.errors import FerrymanError

__all__ = ["WorkerProcess", "kill"]

_APP = "ferryman.cli.demo.catalogue:app"
_EXECUTOR = "ferryman.worker.child"

_PLACES = 4
"""Jobs at a time in one executor: they only compute, so more would not be faster."""


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcess:
    """A running worker; `stop` it in any case."""

    def __init__(self, url: str, folder: Path) -> None:
        """`folder` is where it works and where its log is: no ferryman.toml of the user's is read there."""
        executors = min(max(2, _cores()), 8)
        self._log = folder / "worker.log"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FERRYMAN_")}
        # Old sources are full of what today's parser warns of.
        environment["PYTHONWARNINGS"] = "ignore"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [
                    sys.executable, "-c", "from ferryman.cli import main; main()", "--url", url, "worker", _APP,
                    "--queues", QUEUE, "--executors", str(executors), "--concurrency", str(executors * _PLACES),
                ],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # ^C at the terminal is for the demo, which then stops the worker.
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def check(self) -> None:
        """Raises FerrymanError if it has ended."""
        code = self._process.poll()
        if code is not None:
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
            raise FerrymanError(f"the demo's worker ended with code {code}; its last words were:\n{last}")

    def executors(self) -> list[int]:
        """The process ids of its executors, the oldest first."""
        return sorted(
            _children_by_proc(self.pid) if Path("/proc/self/stat").exists() else _children_by_ps(self.pid)
        )

    def stop(self) -> None:
        """Have it finish what it runs and end; kill it if it does not."""
        try:
            self._process.terminate()
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when somebody is too impatient to wait. Its executors end with it.
            self._process.kill()
            self._process.wait()


def kill(pid: int) -> bool:
    """Kill a process as the kernel does when memory runs out. False if it is gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children_by_proc(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # A process may end between any two looks.
        with contextlib.suppress(OSError):
            # The second field is a name in brackets, which may hold anything.
            _, _, fields = (folder / "stat").read_text(errors="replace").rpartition(")")
            if int(fields.split()[1]) == parent and _EXECUTOR.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _children_by_ps(parent: int) -> list[int]:
    listed = subprocess.run(
        ["/bin/ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=False
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(row[0]) for row in rows if len(row) == 3 and int(row[1]) == parent and _EXECUTOR in row[2]]
