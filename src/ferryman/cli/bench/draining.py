"""How many no-op jobs a second one worker takes from waiting to settled, and what that does to a producer."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

from ferryman import Ferryman, State
from ferryman.cli.bench.figures import Extent, Figure, make_figure, percentile
from ferryman.cli.bench.floors import Floor
from ferryman.cli.bench.ground import Ground, fresh_app, fresh_floor
from ferryman.cli.bench.running import MeasureFailed, count, run_worker, wait_for
from ferryman.cli.bench.tasks import NOOP, PAYLOAD
from ferryman.worker.desk import MOST_JOBS

__all__ = ["drain_barely", "fill", "measure_drain", "measure_enqueue_under_drain"]

_ROUNDS = 3
_BATCH = 1_000
"""Jobs stored at once while a backlog is built up."""

_NAP = 0.005


def measure_drain(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """A worker with the default settings, started when all jobs are there; their history is kept."""
    drained: list[float] = []
    barely: list[float] = []
    for _ in range(_ROUNDS):
        with fresh_app(ground) as app:
            drained.append(_drain(app, extent.jobs))
        with fresh_floor(ground) as floor:
            if floor is not None:
                barely.append(drain_barely(floor, extent.jobs))
    floors = [statistics.median(barely)] if barely else []
    yield make_figure("drain", ground.url, statistics.median(drained), *floors)


def fill(app: Ferryman, jobs: int) -> None:
    """Store so many no-op jobs."""
    enqueue_many = app.tasks[NOOP].enqueue_many
    for start in range(0, jobs, _BATCH):
        enqueue_many([(PAYLOAD,)] * min(_BATCH, jobs - start))


def _drain(app: Ferryman, jobs: int) -> float:
    """From the last look that found all jobs waiting to the first that finds all of them done."""
    fill(app, jobs)
    begun = time.perf_counter()
    with run_worker(app, registered=False) as running:

        def begins() -> bool:
            nonlocal begun
            looked = time.perf_counter()
            if count(app, State.READY) < jobs:
                return True
            begun = looked
            return False

        wait_for(begins, running, nap=0.001)
        wait_for(lambda: count(app, State.SUCCEEDED) == jobs, running, nap=_NAP, patience=60 + jobs / 1_000)
        elapsed = time.perf_counter() - begun
    return jobs / elapsed


def drain_barely(floor: Floor, jobs: int) -> float:
    """In the largest turns that a worker takes, which a deep backlog makes the usual ones."""
    for start in range(0, jobs, _BATCH):
        floor.enqueue(min(_BATCH, jobs - start))
    begun = time.perf_counter()
    while floor.turn(MOST_JOBS):
        pass
    return jobs / (time.perf_counter() - begun)


def measure_enqueue_under_drain(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """How long `Task.enqueue` takes, once in about 3 ms, while a worker drains at full speed."""
    luck = random.Random(1)  # noqa: S311
    with fresh_app(ground) as app:
        enqueue = app.tasks[NOOP].enqueue
        backlog = 2 * extent.jobs
        fill(app, backlog)
        enqueue(PAYLOAD)
        samples: list[float] = []
        with run_worker(app, registered=False) as running:
            wait_for(lambda: count(app, State.SUCCEEDED) > 0, running, nap=0.001)
            while count(app, State.READY) > 0:
                begun = time.perf_counter()
                enqueue(PAYLOAD)
                samples.append((time.perf_counter() - begun) * 1000)
                time.sleep(luck.uniform(0.001, 0.005))
                running.check()
        if not samples:
            raise MeasureFailed(
                f"the worker had drained {backlog:,} jobs before one could be stored; add --jobs"
            )
        yield make_figure("enqueue_p99_under_drain", ground.url, percentile(samples, 0.99))
