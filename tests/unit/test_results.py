"""Waiting for a result, by whoever carries out its procedure: what the store answers, step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import pytest

from ferryman import Ferryman
from ferryman.errors import ResultTimeout, StoreUnavailable
from ferryman.handle import JobHandle
from ferryman.io.operation import Wait

AWAY = StoreUnavailable("the server is starting anew")


@pytest.fixture
def app() -> Iterator[Ferryman]:
    app = Ferryman("memory://")
    yield app
    app.close()


@pytest.fixture
def handle(app: Ferryman) -> JobHandle[int]:
    @app.task
    def double(n: int) -> int:
        return 2 * n

    return double.enqueue(21)


def test_a_store_that_goes_away_is_waited_for(app: Ferryman, handle: JobHandle[int]) -> None:
    waiting = handle._result(timeout=60)
    next(waiting)

    assert isinstance(waiting.send([handle.record()]), Wait)
    waiting.send(None)
    for _ in range(3):
        assert isinstance(waiting.throw(AWAY), Wait)
        waiting.send(None)
    with app.worker():
        handle.result(timeout=30)

    with pytest.raises(StopIteration) as end:
        waiting.send([handle.record()])
    assert end.value.value == 42


def test_a_store_that_was_never_there_is_told_at_once(handle: JobHandle[int]) -> None:
    waiting = handle._result(timeout=60)
    next(waiting)

    with pytest.raises(StoreUnavailable):
        waiting.throw(AWAY)


def test_a_store_that_stays_away_until_the_time_is_over_is_told(handle: JobHandle[int]) -> None:
    waiting = handle._result(timeout=0.05)
    next(waiting)
    waiting.send([handle.record()])
    waiting.send(None)

    time.sleep(0.05)

    with pytest.raises(StoreUnavailable):
        waiting.throw(AWAY)


def test_whoever_waits_in_vain_is_told_what_the_job_waits_for(handle: JobHandle[int]) -> None:
    waiting = handle._result(timeout=0)
    next(waiting)

    with pytest.raises(ResultTimeout) as waited:
        waiting.send([msgspec.structs.replace(handle.record(), reason="the shop is closed")])

    assert str(waited.value) == (f"job {handle.id} is still ready (the shop is closed) after 0 s; it goes on")


def test_the_time_to_wait_may_be_a_timedelta(handle: JobHandle[int]) -> None:
    with pytest.raises(ResultTimeout, match=r"is still ready after 0\.01 s; it goes on"):
        handle.result(timeout=timedelta(milliseconds=10))
