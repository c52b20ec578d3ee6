"""Workers to be measured: ``ferryman worker`` as a process of its own, or in this one for stores that live here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ferryman import Ferryman
from ferryman.errors import FerrymanError
from ferryman.job import State

__all__ = ["MeasureFailed", "Running", "count", "run_worker", "wait_for"]

_PROGRAM = [sys.executable, "-c", "from ferryman.cli import main; main()"]
_PATIENCE = 60.0


class MeasureFailed(FerrymanError):
    """What was to be measured did not come about."""


class Running:
    """A worker that was started. `pid` is None for one in this process."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
        self.pid = None if process is None else process.pid
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raises MeasureFailed if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            said = self._log.read_text() if self._log else ""
            raise MeasureFailed(f"the worker ended with code {self._process.returncode}:\n{said[-2_000:]}")


@contextlib.contextmanager
def run_worker(app: Ferryman, *, registered: bool = True) -> Iterator[Running]:
    """One worker with nothing but the default settings. `registered`: wait until it is on the register."""
    if not app.store.capabilities.shared:
        with app.worker():
            yield Running()
        return
    with tempfile.TemporaryDirectory() as folder, _process(app.settings.url, Path(folder)) as running:
        if registered:
            wait_for(lambda: bool(app.store.runner().run(app.store.workers())), running, nap=0.02)
        yield running


@contextlib.contextmanager
def _process(url: str, folder: Path) -> Iterator[Running]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FERRYMAN_")}
    log = folder / "worker.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            [*_PROGRAM, "worker", "ferryman.cli.bench.served:app"],
            cwd=folder,  # where no ferryman.toml lies
            env={**environment, "FERRYMAN_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield Running(process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(
    condition: Callable[[], bool], running: Running, *, nap: float, patience: float = _PATIENCE
) -> None:
    """Ask every `nap` seconds until the answer is yes. Raises MeasureFailed if the worker ends, or after
    `patience` seconds."""
    give_up = time.monotonic() + patience
    while not condition():
        running.check()
        if time.monotonic() > give_up:
            raise MeasureFailed(
                f"the worker has not got there within {patience:g} s; the machine may be too busy"
            )
        time.sleep(nap)


def count(app: Ferryman, *states: State) -> int:
    """How many jobs are in one of these states: asks the store, which does not have to count."""
    lanes = app.store.runner().run(app.store.lanes())
    return sum(lane.counts.get(state, 0) for lane in lanes for state in states)
