"""How many jobs one producer stores in a second: in batches, one by one, and from many coroutines at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

from ferryman import Ferryman
from ferryman.cli.bench.figures import Extent, Figure, make_figure
from ferryman.cli.bench.ground import Ground, fresh_app, fresh_floor
from ferryman.cli.bench.slices import rates
from ferryman.cli.bench.tasks import NOOP, PAYLOAD

__all__ = ["measure_async", "measure_batch", "measure_bulk", "measure_one"]

_BATCH = 100
_LARGE = 10_000
_CROWD = 1_000
_ONE_BY_ONE = 200


def measure_bulk(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """`Task.enqueue_many` in batches of 100."""
    yield make_figure("enqueue_bulk", ground.url, *_batches(ground, extent, _BATCH))


def measure_batch(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """`Task.enqueue_many` of 10,000 at once."""
    yield make_figure("enqueue_batch", ground.url, *_batches(ground, extent, _LARGE))


def _batches(ground: Ground, extent: Extent, size: int) -> list[float]:
    with fresh_app(ground) as app, fresh_floor(ground) as floor:
        enqueue_many = app.tasks[NOOP].enqueue_many
        calls = [(PAYLOAD,)] * size
        works = [lambda: len(enqueue_many(calls))]
        if floor is not None:
            enqueue_barely = floor.enqueue
            works.append(lambda: enqueue_barely(size))
        return rates(works, extent.seconds)


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


def measure_async(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """`Task.aenqueue` from a thousand coroutines at once, over one after the other in the same event loop."""
    with fresh_app(ground) as app:
        gains = asyncio.run(_gains(app, extent.seconds))
    yield make_figure("enqueue_async", ground.url, statistics.median(gains))


async def _gains(app: Ferryman, seconds: float) -> list[float]:
    aenqueue = app.tasks[NOOP].aenqueue
    gains: list[float] = []
    end = time.perf_counter() + seconds
    while len(gains) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(_ONE_BY_ONE):
            await aenqueue(PAYLOAD)
        one = (time.perf_counter() - begun) / _ONE_BY_ONE
        begun = time.perf_counter()
        await asyncio.gather(*(aenqueue(PAYLOAD) for _ in range(_CROWD)))
        gains.append(one / ((time.perf_counter() - begun) / _CROWD))
    return gains
