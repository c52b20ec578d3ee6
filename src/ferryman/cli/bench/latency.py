"""How long a job waits for an idle worker: from just before its enqueue to the first line of its task."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from ferryman import Ferryman
from ferryman.cli.bench.figures import Extent, Figure, make_figure, percentile
from ferryman.cli.bench.ground import Ground, fresh_app
from ferryman.cli.bench.running import run_worker
from ferryman.cli.bench.tasks import STAMP

__all__ = ["measure_latency"]

_SAMPLES_PER_SECOND = 60
_LEAST = 20
_GAP = (0.006, 0.026)
"""Seconds between two jobs: random, lest they keep step with anything in the worker."""


def measure_latency(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Single jobs at random intervals, each when the one before has long been done."""
    with fresh_app(ground) as app, run_worker(app):
        _sample(app, _LEAST)
        # The worker's other executors come up meanwhile, and what is imported late has been imported.
        time.sleep(min(1.0, extent.seconds))
        samples = _sample(app, max(_LEAST, round(extent.seconds * _SAMPLES_PER_SECOND)))
        yield make_figure("latency_p50", ground.url, percentile(samples, 0.5))
        yield make_figure("latency_p99", ground.url, percentile(samples, 0.99))


def _sample(app: Ferryman, jobs: int) -> list[float]:
    luck = random.Random(1)  # noqa: S311
    enqueue = app.tasks[STAMP].enqueue
    begun: list[int] = []
    handles = []
    for _ in range(jobs):
        time.sleep(luck.uniform(*_GAP))
        begun.append(time.monotonic_ns())
        handles.append(enqueue())
    started = [int(handle.result(timeout=30)) for handle in handles]
    return [(after - before) / 1e6 for before, after in zip(begun, started, strict=True)]
