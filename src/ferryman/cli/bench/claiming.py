"""Whether a claim costs more when more jobs wait."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

from ferryman import Ferryman
from ferryman.cli.bench.draining import fill
from ferryman.cli.bench.figures import Extent, Figure, make_figure
from ferryman.cli.bench.ground import Ground, fresh_app
from ferryman.cli.bench.tasks import NOOP
from ferryman.job import Outcome, OutcomeKind, WorkerId
from ferryman.store.records import Take
from ferryman.worker.register import worker_info

__all__ = ["measure_claim_growth"]

_CLAIM = 100
_SMALL = 1_000
_WORKER = WorkerId("bench")


def measure_claim_growth(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """A claim of 100 with a million jobs waiting, over one with a thousand waiting."""
    with contextlib.ExitStack() as stack:
        small, large = (stack.enter_context(fresh_app(ground)) for _ in range(2))
        for app, jobs in ((small, _SMALL), (large, 10 * extent.jobs)):
            fill(app, max(jobs, _SMALL))
            app.store.runner().run(
                app.store.register(worker_info(_WORKER, None, (NOOP,), 1, None), 3_600_000)
            )
        # By turns, so that whatever else the machine does hits both.
        costs: list[tuple[float, float]] = []
        end = time.perf_counter() + extent.seconds
        while len(costs) < 10 or time.perf_counter() < end:
            costs.append((_claim(small), _claim(large)))
        few, many = (statistics.median(column) for column in zip(*costs, strict=True))
        yield make_figure("claim_growth", ground.url, many / few)


def _claim(app: Ferryman) -> float:
    """Seconds of one claim. Its jobs are settled and others take their places, so the head of the lane moves on."""
    runner, store = app.store.runner(), app.store
    claim = store.claim(_WORKER, [Take("default", 0, _CLAIM)], _CLAIM)
    begun = time.perf_counter()
    claimed = runner.run(claim)
    elapsed = time.perf_counter() - begun
    runner.run(
        store.settle(_WORKER, [Outcome(job.id, job.lease, OutcomeKind.SUCCEEDED) for job in claimed.jobs])
    )
    fill(app, len(claimed.jobs))
    return elapsed
