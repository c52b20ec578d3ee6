"""What ages beside jobs (values, unique keys, results) is forgotten as fast as it comes, by tables that keep it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.job import OutcomeKind, UniqueKey
from ferryman.store.open import open_store
from ferryman.store.records import Pruned, Retention
from tests.conformance.driver import Ferry
from tests.services import places

Count = Callable[[str], int]


@pytest.fixture(params=["sqlite", "postgres"])
def ferry_and_count(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Ferry, Count]]:
    clock = ManualClock()
    if request.param == "sqlite":
        file = tmp_path / "jobs.db"
        url = f"sqlite:///{file}"

        def count(of: str) -> int:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                return int(connection.execute(f"SELECT count(*) FROM ferryman_{of}").fetchone()[0])

    else:
        url = places.postgres(tmp_path)
        server, _, schema = url.partition("?schema=")

        def count(of: str) -> int:
            with psycopg.connect(server, options=f"-c search_path={schema}") as connection:
                row = connection.execute(f"SELECT count(*) FROM {of}").fetchone()
            assert row is not None
            return int(row[0])

    ferry = Ferry(open_store(url, clock), clock, lambda: open_store(url, clock))
    yield ferry, count
    ferry.store.close()
    places.leave_postgres(tmp_path)


def _prune(ferry: Ferry, limit: int) -> list[Pruned]:
    """As a worker does it: on as long as there is more."""
    answers = [ferry.run(ferry.store.prune(Retention(), limit))]
    while answers[-1].more:
        answers.append(ferry.run(ferry.store.prune(Retention(), limit)))
    return answers


def test_values_whose_time_is_over_are_all_forgotten(ferry_and_count: tuple[Ferry, Count]) -> None:
    ferry, count = ferry_and_count
    for number in range(7):
        ferry.run(ferry.store.kv_put(f"seen {number}", b"", expected=None, ttl=1_000))
    ferry.clock.advance(3_600)

    answers = _prune(ferry, 3)

    assert len(answers) == 3, "no call does more than it was allowed"
    assert count("kv") == 0


def test_unique_keys_whose_period_is_over_are_all_forgotten(ferry_and_count: tuple[Ferry, Count]) -> None:
    ferry, count = ferry_and_count
    for number in range(7):
        ferry.add(unique=UniqueKey(f"key {number}", period=1_000))
    ferry.clock.advance(3_600)

    _prune(ferry, 3)

    assert count("unique_key") == 0


def test_results_whose_time_is_over_are_all_forgotten(ferry_and_count: tuple[Ferry, Count]) -> None:
    ferry, _ = ferry_and_count
    jobs = ferry.add_many(7)
    for claim in ferry.claim(7):
        ferry.settle(claim, OutcomeKind.SUCCEEDED, result=b"r", keep_result=1_000)
    ferry.clock.advance(60)

    _prune(ferry, 3)

    assert [ferry.job(job).result for job in jobs] == [None] * 7
