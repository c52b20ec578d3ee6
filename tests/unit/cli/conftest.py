"""A store in a file, a producer and workers on it, and the command line beside them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from ferryman.app import App
from ferryman.cli.root import root
from ferryman.io.operation import Operation
from ferryman.job import Claim, ErrorInfo, Job, JobId, NewJob, Outcome, OutcomeKind, State, WorkerId, new_id
from ferryman.store.records import Filter, Take, WorkerInfo

T = TypeVar("T")

APP = """
from ferryman.app import App

app = App("sqlite:///jobs.db")

@app.task(name="app.add", queue="sums")
def add(a: int, b: int = 0) -> int:
    return a + b
"""


class Quay:
    """What producers, workers and people do to one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = "sqlite:///jobs.db"
        self.app = App(self.url)
        self._numbers = itertools.count(1)

    def run(self, operation: Operation[T]) -> T:
        return self.app.store.runner().run(operation)

    def ferryman(self, *args: str, input: str | None = None) -> Result:
        """The command line, as a program whose output goes into a pipe."""
        result = CliRunner().invoke(root, args, input=input, prog_name="ferryman")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def lines(self, *args: str) -> list[dict[str, Any]]:
        """The JSON that a command prints."""
        result = self.ferryman(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def enqueue(self, **fields: Any) -> JobId:
        arguments = fields.pop("arguments", {"a": 1})
        job = NewJob(
            **{"id": new_id(), "task": "app.add", "args": self.app.codec.encode(arguments), **fields}
        )
        return self.run(self.app.store.enqueue([job]))[0].id

    def job(self, id: JobId) -> Job:
        (job,) = self.run(self.app.store.get([id]))
        assert job is not None
        return job

    def start_worker(
        self, name: str = "w1", *, queues: Sequence[str] | None = None, tasks: Sequence[str] = ("app.add",)
    ) -> WorkerId:
        worker = WorkerId(name)
        info = WorkerInfo(
            id=worker,
            host="dock",
            place="boot-1",
            pid=4711,
            pid_birth=1,
            queues=None if queues is None else tuple(queues),
            tasks=tuple(tasks),
            concurrency=4,
        )
        self.run(self.app.store.register(info, 60_000))
        return worker

    def claim(self, worker: WorkerId, queue: str = "default", count: int = 1) -> list[Claim]:
        return list(self.run(self.app.store.claim(worker, [Take(queue, 0, count)], count)).jobs)

    def settle(self, worker: WorkerId, claim: Claim, kind: OutcomeKind, **fields: Any) -> None:
        outcome = Outcome(id=claim.id, lease=claim.lease, kind=kind, **fields)
        assert self.run(self.app.store.settle(worker, [outcome])) == [True]

    def dead_letter(self, error: ErrorInfo | None = None, **fields: Any) -> JobId:
        """A job that a worker has tried, and that died."""
        worker = self.start_worker(f"undertaker-{next(self._numbers)}")
        job = self.enqueue(**fields)
        (claim,) = self.claim(worker, fields.get("queue", "default"))
        self.settle(worker, claim, OutcomeKind.DEAD, error=error or ErrorInfo("ValueError", "boom"))
        self.run(self.app.store.leave(worker))
        return job

    def states(self) -> list[State]:
        return [job.state for job in self.run(self.app.store.find(Filter(), 1_000))]


@pytest.fixture
def quay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quay]:
    """A fresh store in a working directory of its own, named by FERRYMAN_URL."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRYMAN_")]:
        monkeypatch.delenv(name)
    quay = Quay(tmp_path)
    monkeypatch.setenv("FERRYMAN_URL", quay.url)
    quay.run(quay.app.store.declare([]))
    yield quay
    quay.app.close()
