"""Whatever a supervisor says before a drain and after it: each job is answered once, no more jobs run at once than there
are places, and the executor ends; also if the supervisor is gone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ferryman import Ferryman, Settings
from ferryman.config import BlobSettings
from ferryman.job import Claim, JobId, Outcome
from ferryman.worker.frames import Assignment, Kind, Returned, Track

from .supervising import PATIENCE, InProcess, claim
from .test_payload_outages import Hanging

LARGE = 20_000

pytestmark = pytest.mark.usefixtures("bare_collector")


class _Tally:
    """How many jobs run at once, as they see it themselves."""

    def __init__(self) -> None:
        self.running: set[object] = set()
        self.seen = [0]

    def call(self, function: Callable[[], None]) -> None:
        job = object()
        # Twice, since a cancel may hit the thread anywhere, but only once.
        try:
            try:
                self.running.add(job)
                self.seen.append(len(self.running))
                function()
            finally:
                self.running.discard(job)
        finally:
            self.running.discard(job)

    async def acall(self, awaitable: Awaitable[object]) -> None:
        job = object()
        try:
            self.running.add(job)
            self.seen.append(len(self.running))
            await awaitable
        finally:
            self.running.discard(job)


def _spin() -> None:
    while True:
        pass


def _app(folder: Path, tally: _Tally) -> Ferryman:
    blobs = BlobSettings(url=f"file://{folder}/blobs", above=10_000)
    app = Ferryman(settings=Settings(url="memory://", blobs=blobs))

    @app.task(name="thread.take")
    def take(data: bytes) -> None:
        tally.call(lambda: None)

    @app.task(name="loop.take")
    async def atake(data: bytes) -> None:
        await tally.acall(asyncio.sleep(0))

    @app.task(name="thread.nap")
    def nap(data: bytes) -> None:
        tally.call(lambda: time.sleep(0.001))

    @app.task(name="loop.nap")
    async def anap(data: bytes) -> None:
        await tally.acall(asyncio.sleep(0.001))

    @app.task(name="thread.last")
    def last(data: bytes) -> None:
        tally.call(_spin)

    @app.task(name="loop.last")
    async def alast(data: bytes) -> None:
        await tally.acall(asyncio.Event().wait())

    return app


class _Talk:
    """What is said to an executor, and heard from it."""

    def __init__(self, app: Ferryman, dice: random.Random) -> None:
        self.app = app
        self.dice = dice
        self.places = dice.randrange(1, 5)
        self.executor = InProcess(app, self.places)
        self.jobs: list[tuple[Track, Assignment]] = []
        self.hanging: list[Hanging] = []

    def say_something(self) -> None:
        match self.dice.randrange(5):
            case 0 | 1:
                self.run(self.dice.randrange(1, 9))
            case 2:
                self.executor.send(Kind.PING, 0)
                self.executor.frame(Kind.PONG)
            case _:
                self.take_back_something()

    def take_back_something(self) -> None:
        if self.jobs and self.dice.random() < 0.5:
            self.cancel(*self.dice.choice(self.jobs))
        else:
            self.executor.send(Kind.RECALL)

    def run(self, count: int) -> None:
        tracks: list[Track] = self.dice.choices(["thread", "loop"], k=count)
        serials, batch = self.executor.serials, []
        for track in tracks:
            serials[track] += 1
            batch.append(Assignment(serials[track], self.claim(track)))
        self.jobs += zip(tracks, batch, strict=True)
        self.executor.send(Kind.RUN, batch)

    def claim(self, track: Track) -> Claim:
        job = claim(f"{track}.{self.dice.choice(['take', 'take', 'nap', 'last'])}", {"data": b""})
        if self.dice.random() < 0.8 or self.hanging:
            return job
        job = claim(job.task, {"data": self.dice.randbytes(LARGE)})
        args = self.app.perform(self.app.payloads.stow(job.id, "args", job.args))
        self.hanging.append(Hanging(self.app.settings.blobs.url or "", args))
        return claim(job.task, id=job.id, args=args)

    def cancel(self, track: Track, assignment: Assignment) -> None:
        self.executor.cancel(assignment, "enough", track)

    def answers(self) -> list[JobId]:
        """All that was said of jobs until the executor said goodbye."""
        self.executor.frame(Kind.BYE)
        self.executor.join()
        said: list[Outcome | Returned] = []
        for frame in self.executor.frames:
            if frame.kind in (Kind.DONE, Kind.RETURNED):
                said += frame.body
        return [each.id for each in said]


@pytest.mark.parametrize("seed", range(60))
def test_each_job_is_answered_once_and_the_executor_ends(tmp_path: Path, seed: int) -> None:
    tally = _Tally()
    talk = _Talk(_app(tmp_path, tally), random.Random(seed))
    before, after = talk.dice.randrange(16), talk.dice.randrange(8)

    for _ in range(before):
        talk.say_something()
    talk.executor.send(Kind.DRAIN)
    with contextlib.suppress(OSError):  # It may have ended by now.
        for _ in range(after):
            talk.take_back_something()
        for track, assignment in talk.jobs:
            talk.cancel(track, assignment)
    answers = talk.answers()

    assert sorted(answers) == sorted(each.claim.id for _, each in talk.jobs)
    for hanging in talk.hanging:
        if hanging.is_asked_for():
            hanging.go_on()
    talk.executor.close()
    assert talk.executor.drained is True
    assert max(tally.seen) <= talk.places
    assert tally.running == set()


@pytest.mark.parametrize("seed", range(20))
def test_whenever_the_supervisor_goes_all_that_runs_ends_and_nothing_else_begins(
    tmp_path: Path, seed: int
) -> None:
    tally = _Tally()
    talk = _Talk(_app(tmp_path, tally), random.Random(seed))

    for _ in range(talk.dice.randrange(1, 16)):
        talk.say_something()
    talk.executor.close()

    assert talk.executor.drained is False
    assert talk.executor.executor.is_at_rest.wait(PATIENCE)
    assert max(tally.seen) <= talk.places
    assert tally.running == set()
    for hanging in talk.hanging:
        if hanging.is_asked_for():
            hanging.go_on()
