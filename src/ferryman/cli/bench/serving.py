"""What a server has to do for Ferryman: statements of an idle worker, memory of jobs that wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from ferryman import Ferryman
from ferryman.cli.bench.draining import drain_barely, fill
from ferryman.cli.bench.figures import Extent, Figure, make_figure
from ferryman.cli.bench.ground import Ground, fresh_app, fresh_app_on, fresh_floor
from ferryman.cli.bench.running import Running, count, run_worker, wait_for
from ferryman.cli.bench.servers import Server
from ferryman.job import State

__all__ = ["measure_job_memory", "measure_statements", "measure_steadiness"]

_QUIET = 2.0
"""Seconds until a worker that has just been started sleeps."""

_ROUNDS = 10
_ENDS = 3
"""Rounds that count as the start, and as the end."""


def measure_steadiness(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Drains one backlog after the other, a million jobs in all, whose history is pruned as it is by default: the
    rate of the last three over that of the first three, and the size of the tables at the end over that at half time,
    when as many jobs are kept as ever will be.

    The floor of the rate is what became of the machine meanwhile: beside each of those rounds a backlog is drained
    barely, on a store of its own."""
    assert isinstance(ground, Server)
    rates: list[float] = []
    barely: list[float] = []
    sizes: list[int | None] = []
    with ground.fresh() as url, fresh_app_on(url) as app, run_worker(app) as running:
        for number in range(_ROUNDS):
            rates.append(_drain_once(app, extent.jobs, running))
            sizes.append(ground.disk_size(url))
            if not _ENDS <= number < _ROUNDS - _ENDS:
                with fresh_floor(ground) as floor:
                    assert floor is not None
                    barely.append(drain_barely(floor, extent.jobs))
    yield make_figure("steady_rate", ground.url, _last_over_first(rates), _last_over_first(barely))
    half, whole = sizes[_ROUNDS // 2 - 1], sizes[-1]
    if half is not None and whole is not None:
        yield make_figure("steady_size", ground.url, whole / half)


def _last_over_first(rates: list[float]) -> float:
    return statistics.median(rates[-_ENDS:]) / statistics.median(rates[:_ENDS])


def _drain_once(app: Ferryman, jobs: int, running: Running) -> float:
    runner, store = app.store.runner(), app.store
    runner.run(store.pause(["default"], True))
    fill(app, jobs)
    begun = time.perf_counter()
    runner.run(store.pause(["default"], False))
    wait_for(
        lambda: count(app, State.READY, State.RUNNING) == 0, running, nap=0.02, patience=60 + jobs / 1_000
    )
    return jobs / (time.perf_counter() - begun)


def measure_statements(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Statements a second of one idle worker. Where others are counted with it, less those that come without one."""
    assert isinstance(ground, Server)
    with ground.fresh() as url, fresh_app_on(url), ground.listen_in(url) as statements:
        if statements is None:
            return
        without = _rate(statements.asked, 3 * extent.seconds) if statements.counts_others else 0.0
        with fresh_app_on(statements.url) as app, run_worker(app):
            # From here on, this process asks nothing.
            app.close()
            time.sleep(_QUIET)
            rate = _rate(statements.asked, 3 * extent.seconds) - without
    yield make_figure("idle_statements", ground.url, max(0.0, rate))


def _rate(asked: Callable[[], int], seconds: float) -> float:
    before, begun = asked(), time.perf_counter()
    time.sleep(seconds)
    return (asked() - before) / (time.perf_counter() - begun)


def measure_job_memory(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Memory of the server for each of many jobs that wait, with a payload of about 100 bytes."""
    assert isinstance(ground, Server)
    before = ground.used_memory()
    if before is None:
        return  # Jobs lie on the disk there.
    with fresh_app(ground) as app:
        fill(app, extent.jobs)
        after = ground.used_memory()
    assert after is not None
    yield make_figure("job_memory", ground.url, (after - before) / extent.jobs)
