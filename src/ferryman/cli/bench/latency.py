"""How long a job waits for an idle worker: from just before its enqueue to the first line of its task."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from typing import Any

from ferryman import Ferryman, JobHandle
from ferryman.cli.bench.figures import Extent, Figure, make_figure, percentile
from ferryman.cli.bench.floors.chain import Chain
from ferryman.cli.bench.ground import Ground, fresh_app, fresh_chain
from ferryman.cli.bench.running import run_worker
from ferryman.cli.bench.tasks import STAMP

__all__ = ["measure_latency"]

_SAMPLES_PER_SECOND = 60
_LEAST = 20
_SLICES = 10
_COLD = 2
"""At the beginning of each slice, so many are not counted: the other one's have taken their places in the caches."""
_GAP = (0.006, 0.026)
"""Seconds between two jobs: random, lest they keep step with anything in the worker."""


def measure_latency(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Single jobs at random intervals, each when the one before has long been done. By turns with the floor, so that
    whatever else the machine does hits both; results are asked for at the end, since that rings as well."""
    with fresh_app(ground) as app, run_worker(app), fresh_chain(ground) as chain:
        ours, floor = _Jobs(app), _Rows(chain)
        ours.pass_some(_LEAST)
        floor.pass_some(_LEAST)
        ours.samples()
        # The worker's other executors come up meanwhile, and what is imported late has been imported.
        time.sleep(min(1.0, extent.seconds))
        ours, floor = _Jobs(app), _Rows(chain)
        size = math.ceil(max(_LEAST, extent.seconds * _SAMPLES_PER_SECOND) / _SLICES)
        for _ in range(_SLICES):
            ours.pass_some(size)
            floor.pass_some(size)
        reached, barely = ours.samples(), floor.samples
        for name, fraction in (("latency_p50", 0.5), ("latency_p99", 0.99)):
            floors = [percentile(barely, fraction)] if barely else []
            yield make_figure(name, ground.url, percentile(reached, fraction), *floors)


class _Jobs:
    """Through the product."""

    def __init__(self, app: Ferryman) -> None:
        self._enqueue = app.tasks[STAMP].enqueue
        self._luck = random.Random(1)  # noqa: S311
        self._begun: list[int] = []
        self._handles: list[JobHandle[Any]] = []

    def pass_some(self, jobs: int) -> None:
        for number in range(-_COLD, jobs):
            time.sleep(self._luck.uniform(*_GAP))
            begun = time.monotonic_ns()
            handle = self._enqueue()
            if number >= 0:
                self._begun.append(begun)
                self._handles.append(handle)

    def samples(self) -> list[float]:
        started = [int(handle.result(timeout=30)) for handle in self._handles]
        return [(after - before) / 1e6 for before, after in zip(self._begun, started, strict=True)]


class _Rows:
    """Through the driver alone, if there is a floor."""

    def __init__(self, chain: Chain | None) -> None:
        self._chain = chain
        self._luck = random.Random(1)  # noqa: S311
        self.samples: list[float] = []

    def pass_some(self, rows: int) -> None:
        if self._chain is None:
            return
        for number in range(-_COLD, rows):
            time.sleep(self._luck.uniform(*_GAP))
            sample = self._chain.pass_one()
            if number >= 0:
                self.samples.append(sample)
