"""How many jobs one producer stores in a second, in batches and one by one."""

from __future__ import annotations

from collections.abc import Iterator

from ferryman.cli.bench.figures import Extent, Figure, make_figure
from ferryman.cli.bench.ground import Ground, fresh_app, fresh_floor
from ferryman.cli.bench.slices import rates
from ferryman.cli.bench.tasks import NOOP, PAYLOAD

__all__ = ["measure_bulk", "measure_one"]

_BATCH = 100


def measure_bulk(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """`Task.enqueue_many` in batches of 100."""
    with fresh_app(ground) as app, fresh_floor(ground) as floor:
        enqueue_many = app.tasks[NOOP].enqueue_many
        calls = [(PAYLOAD,)] * _BATCH
        works = [lambda: len(enqueue_many(calls))]
        if floor is not None:
            enqueue_barely = floor.enqueue
            works.append(lambda: enqueue_barely(_BATCH))
        yield make_figure("enqueue_bulk", ground.url, *rates(works, extent.seconds))


def measure_one(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """`Task.enqueue`, one job after the other."""
    with fresh_app(ground) as app, fresh_floor(ground) as floor:
        enqueue = app.tasks[NOOP].enqueue

        def one() -> int:
            enqueue(PAYLOAD)
            return 1

        works = [one]
        if floor is not None:
            enqueue_barely = floor.enqueue
            works.append(lambda: enqueue_barely(1))
        yield make_figure("enqueue_one", ground.url, *rates(works, extent.seconds))
