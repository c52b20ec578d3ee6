"""Workers whose store fails them again and again, before it is asked or after: each attempt runs once, each job ends as it
should, and who leaves leaves nothing behind."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ferryman import Context, Ferryman, Retry, Settings
from ferryman.errors import StoreError, StoreUnavailable
from ferryman.handle import JobHandle
from ferryman.io.operation import Operation, Runner
from ferryman.job import FINISHED, JobId, State
from ferryman.worker import desk
from tests.end_to_end.harness import wait_for

from .stores import Candidate

T = TypeVar("T")

ENDS = {"return": State.SUCCEEDED, "fail": State.DEAD, "fail once": State.SUCCEEDED, "talk": State.SUCCEEDED}


class Moody:
    """A store's runner. Once it is in its mood, a call in five fails, half of these after all has been done, and one in
    fifty is refused."""

    def __init__(self, runner: Runner, dice: random.Random) -> None:
        self._runner = runner
        self._dice = dice
        self.is_in_its_mood = False
        self.failed = 0

    def run(self, operation: Operation[T]) -> T:
        return self._perhaps(lambda: self._runner.run(operation))

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        return self._perhaps(lambda: self._runner.run_all(operations))

    def wait(self, seconds: float) -> None:
        self._runner.wait(seconds)

    def close(self) -> None:
        self._runner.close()

    def _perhaps(self, call: Callable[[], T]) -> T:
        luck = self._dice.random() if self.is_in_its_mood else 1.0
        self.failed += luck < 0.22
        if luck < 0.02:
            raise StoreError("it was refused")
        if luck < 0.12:
            raise StoreUnavailable("it was not sent")
        answer = call()
        if luck < 0.22:
            raise StoreUnavailable("the answer was lost")
        return answer


@pytest.fixture
def app(candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ferryman]:
    monkeypatch.setattr(desk, "_RETRY_FIRST", 0.001)
    monkeypatch.setattr(desk, "_RETRY_MOST", 0.01)
    app = Ferryman(settings=Settings(url=candidate.url(tmp_path)))
    yield app
    app.close()
    candidate.clear(tmp_path)


@pytest.fixture
def moody(app: Ferryman, monkeypatch: pytest.MonkeyPatch) -> list[Moody]:
    """The runners that workers have been given."""
    dice = random.Random(5)
    given: list[Moody] = []
    make_runner = app.store.runner

    def make_moody() -> Runner:
        given.append(Moody(make_runner(), dice))
        return given[-1]

    monkeypatch.setattr(app.store, "runner", make_moody)
    return given


def test_each_attempt_runs_once_and_each_job_ends_as_it_should(app: Ferryman, moody: list[Moody]) -> None:
    runs: Counter[tuple[JobId, int]] = Counter()
    lock = threading.Lock()

    def run(ctx: Context, end: str) -> None:
        with lock:
            runs[ctx.id, ctx.attempt] += 1
        for number in range(20 if end == "talk" else 0):
            ctx.progress(number / 20, f"at {number}")
        if end == "fail" or (end == "fail once" and ctx.attempt == 1):
            raise ValueError(end)

    @app.task(name="thread", retry=Retry(max_attempts=3, base=0.001, jitter=0))
    def task(ctx: Context, end: str) -> None:
        run(ctx, end)

    @app.task(name="loop", retry=Retry(max_attempts=3, base=0.001, jitter=0))
    async def atask(ctx: Context, end: str) -> None:
        run(ctx, end)

    jobs = [(end, each.enqueue(end)) for _ in range(30) for end in ENDS for each in (task, atask)]
    onlooker = app.store.runner()

    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, None):
        with app.worker(concurrency=4, heartbeat=0.05, lease=60):
            moody[-1].is_in_its_mood = True
            # All but the last are stopped in the midst of it.
            if share is None:
                wait_for(lambda: all(_has_ended(job) for _, job in jobs))
            else:
                _wait_for_runs(runs, round(share * len(jobs)))
        assert onlooker.run(app.store.workers(alive=True)) == []
        assert all(job.record().state is not State.RUNNING for _, job in jobs)

    assert [job.record().state for _, job in jobs] == [ENDS[end] for end, _ in jobs]
    assert set(runs.values()) == {1}
    assert len(runs) == sum(job.record().attempt for _, job in jobs)
    assert sum(each.failed for each in moody) > 5
    onlooker.close()


def test_a_call_whose_key_was_taken_in_an_answer_that_was_lost_is_made_by_the_next_who_asks(
    app: Ferryman, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It looks whether the key is free, and takes it; of that it does not hear. From then on all goes well.
    dice = random.Random()
    monkeypatch.setattr(dice, "random", chain([1.0, 0.15], repeat(1.0)).__next__)
    runner = Moody(app.store.runner(), dice)
    runner.is_in_its_mood = True
    monkeypatch.setattr(app.store, "runner", lambda: runner)

    with pytest.raises(StoreUnavailable):
        app.once("order-7", lambda: 1, lease=3_600)
    once = app.once("order-7", lambda: 2, lease=3_600)

    assert (once.value, once.duplicate) == (2, False)


def _wait_for_runs(runs: Counter[tuple[JobId, int]], count: int) -> None:
    wait_for(lambda: len(runs) >= count)


def _has_ended(job: JobHandle[None]) -> bool:
    return job.record().state in FINISHED
