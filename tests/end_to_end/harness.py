"""Real workers on a store that processes share: started, watched through the store, stopped and killed."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

from ferryman.app import App
from ferryman.io.operation import Operation
from ferryman.job import Job, JobId, State
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, Order, OrderKind, WorkerRecord
from tests.conformance.driver import counts_as_kept, counts_of_rows
from tests.conformance.stores import STORES

__all__ = ["ON_EVERY_SHARED_STORE", "PRELUDE", "Harbour", "Worker", "wait_for"]

T = TypeVar("T")

ON_EVERY_SHARED_STORE = pytest.mark.parametrize(
    "harbour",
    [candidate for candidate in STORES if candidate.shared],
    ids=lambda each: each.name,
    indirect=True,
)
"""For tests of what workers do together, whatever the store; others are made on SQLite alone."""

PRELUDE = """
import os, sys, time, threading, signal
from ferryman import Ferryman, Context, Retry, Snooze, Cancel, RetryIn, Fail

app = Ferryman()
_effects = os.open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "effects"),
                   os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

def effect(*words):
    os.write(_effects, (" ".join(map(str, words)) + "\\n").encode())

def wait_for_file(name):
    while not os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), name)):
        time.sleep(0.002)
"""


def wait_for(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Ask until the answer is true, and return it; fail loudly after `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > give_up:
            raise AssertionError(f"after {timeout:g} s still not: {what or condition}")
        time.sleep(0.003)
    return answer


class Worker:
    """A ``ferryman worker`` in a session of its own, so that all its processes can be killed at once."""

    def __init__(self, harbour: Harbour, process: subprocess.Popen[bytes], log: Path) -> None:
        self.harbour = harbour
        self.process = process
        self.log_file = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def record(self) -> WorkerRecord:
        """Its latest record on the register; it starts a new one when it was taken for dead."""
        return [each for each in self.harbour.workers() if each.info.pid == self.pid][-1]

    def is_registered(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
        return any(each.info.pid == self.pid and each.gone is None for each in self.harbour.workers())

    def executors(self) -> list[int]:
        """The process ids of its executors."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.pid and fields[0] != "Z":
                    found.append(int(stat.parent.name))
        return sorted(found)

    def signal(self, number: signal.Signals) -> None:
        """To the supervisor alone."""
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Stop the supervisor, as a debugger does, where it holds nothing that others wait for: on SQLite a process that is
        stopped in a transaction holds up all."""
        while True:
            self.signal(signal.SIGSTOP)
            wait_for(lambda: self._state() == "T", what="it is stopped")
            if not self._writes():
                return
            self.signal(signal.SIGCONT)
            time.sleep(0.01)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def _writes(self) -> bool:
        """Whether it holds the lock of a file."""
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any(lock[3] == "WRITE" and lock[4] == str(self.pid) for lock in locks if lock[1] != "->")

    def kill(self) -> None:
        """The supervisor and its executors at once, as by a loss of power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 15.0) -> int:
        """Tell it to stop as an operator would, and answer its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def order(self, kind: OrderKind) -> None:
        """Leave it an order in the store."""
        harbour = self.harbour
        assert harbour.run(harbour.app.store.order([self.record.info.id], Order(kind))) == 1


class Harbour:
    """A folder with an app and what its jobs leave behind, and a store."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.database = folder / "jobs.db"
        """Where the store is, unless a URL is given."""
        self.place = url or f"sqlite:///{self.database}"
        self.url = self.place
        """What workers and commands are told."""
        self.app: App = App(self.url)
        self._workers: list[Worker] = []

    def close(self) -> None:
        """Kill what still runs, and show what it said."""
        self.kill_workers()
        for worker in self._workers:
            print(f"--- worker {worker.pid}\n{worker.log}")
        self.app.close()

    def kill_workers(self) -> None:
        """All that have been started."""
        for worker in self._workers:
            worker.kill()

    # -- the app -----------------------------------------------------------------------------------

    def write(self, source: str, name: str = "tasks") -> None:
        """Make a module of the app."""
        (self.folder / f"{name}.py").write_text(PRELUDE + source)

    def load(self, source: str, name: str = "tasks") -> Any:
        """Make a module of the app, and import it here as well: this process is its producer."""
        self.write(source, name)
        spec = importlib.util.spec_from_file_location(name, self.folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self.app.close()
        self.app = module.app
        return module

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(
        self,
        *options: str,
        app: str = "tasks:app",
        env: Mapping[str, str] | None = None,
        registered: bool = True,
    ) -> Worker:
        """Start a worker, and wait until it is on the register."""
        log = self.folder / f"worker-{len(self._workers)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*self.ferryman, "worker", app, *options],
                cwd=self.folder,
                env={**os.environ, "FERRYMAN_URL": self.url, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        worker = Worker(self, process, log)
        self._workers.append(worker)
        if registered:
            wait_for(worker.is_registered, what="the worker is on the register")
        return worker

    @property
    def ferryman(self) -> list[str]:
        """The command that a user types."""
        return [str(Path(sys.executable).with_name("ferryman"))]

    def command(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of ``ferryman`` to its end."""
        return subprocess.run(
            [*self.ferryman, *args],
            cwd=self.folder,
            env={**os.environ, "FERRYMAN_URL": self.url, **(env or {})},
            capture_output=True,
            text=True,
            timeout=30,
        )

    # -- what is in the store ------------------------------------------------------------------------

    def run(self, operation: Operation[T]) -> T:
        return self.app.store.runner().run(operation)

    def workers(self) -> list[WorkerRecord]:
        return self.run(self.app.store.workers())

    def job(self, id: JobId) -> Job:
        (job,) = self.run(self.app.store.get([id]))
        assert job is not None
        return job

    def jobs(self, **conditions: Any) -> list[Job]:
        """All jobs that match."""
        return self.run(self.app.store.find(Filter(**conditions), 1_000_000))

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state that has any."""
        total: collections.Counter[str] = collections.Counter()
        for lane in self.run(self.app.store.lanes()):
            for state, count in lane.counts.items():
                total[state.label] += count
        return {name: count for name, count in total.items() if count}

    def settled(self, **expected: int) -> Callable[[], bool]:
        """A condition: the jobs are in these states and in no others."""
        return lambda: self.counts() == expected

    def in_state(self, id: JobId, state: State) -> Callable[[], bool]:
        """A condition: the job is there."""
        return lambda: self.job(id).state is state

    # -- what the jobs did -----------------------------------------------------------------------------

    def effects(self) -> list[list[str]]:
        """What tasks wrote with `effect`, in order: the words of each line."""
        file = self.folder / "effects"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def tally(self, word: str) -> collections.Counter[str]:
        """How often each second word was written behind this first one."""
        return collections.Counter(line[1] for line in self.effects() if line[0] == word)

    def touch(self, name: str) -> None:
        """Let tasks go on that wait for this file."""
        (self.folder / name).touch()

    def check(self) -> None:
        """What must hold at any moment: a sound file if it is one, and counts that equal the jobs."""
        if self.place.startswith("sqlite"):
            if not self.database.exists():
                return
            with contextlib.closing(sqlite3.connect(self.database)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with contextlib.closing(open_store(self.place)) as store:
            # A server may still be at the last request of a worker that was killed.
            wait_for(lambda: counts_are_right(store), timeout=5, what="the counts equal the jobs")


def counts_are_right(store: Store) -> bool:
    jobs = store.runner().run(store.find(Filter(), 1_000_000))
    return counts_as_kept(store) == counts_of_rows(jobs)
