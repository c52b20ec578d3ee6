"""Whatever a supervisor says before a drain and after it: each job is answered once, and the executor ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from ferryman import Ferryman, Settings
from ferryman.config import BlobSettings
from ferryman.job import Claim, JobId, Outcome
from ferryman.worker.frames import Assignment, Kind, Returned, Track

from .supervising import InProcess, claim
from .test_payload_outages import Hanging

LARGE = 20_000


def _app(folder: Path) -> Ferryman:
    blobs = BlobSettings(url=f"file://{folder}/blobs", above=10_000)
    app = Ferryman(settings=Settings(url="memory://", blobs=blobs))

    @app.task(name="thread.take")
    def take(data: bytes) -> None: ...

    @app.task(name="loop.take")
    async def atake(data: bytes) -> None: ...

    @app.task(name="thread.last")
    def last(data: bytes) -> None:
        while True:
            pass

    @app.task(name="loop.last")
    async def alast(data: bytes) -> None:
        await asyncio.Event().wait()

    return app


class _Talk:
    """What is said to an executor, and heard from it."""

    def __init__(self, app: Ferryman, dice: random.Random) -> None:
        self.app = app
        self.dice = dice
        self.executor = InProcess(app, places=2)
        self.jobs: list[tuple[Track, Assignment]] = []
        self.hanging: list[Hanging] = []

    def say_something(self) -> None:
        match self.dice.randrange(5):
            case 0 | 1:
                self.run(self.dice.randrange(1, 5))
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
        track: Track = self.dice.choice(["thread", "loop"])
        claims = [self.claim(track) for _ in range(count)]
        self.jobs += [(track, each) for each in self.executor.assign(claims, track)]

    def claim(self, track: Track) -> Claim:
        job = claim(f"{track}.{self.dice.choice(['take', 'last'])}", {"data": b""})
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


@pytest.mark.parametrize("seed", range(40))
def test_each_job_is_answered_once_and_the_executor_ends(tmp_path: Path, seed: int) -> None:
    talk = _Talk(_app(tmp_path), random.Random(seed))
    before, after = talk.dice.randrange(12), talk.dice.randrange(8)

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
