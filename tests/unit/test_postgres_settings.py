"""Whatever a user's database or role has as a default of its transactions and texts, jobs are as safe as elsewhere."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from ferryman.clock import ManualClock
from ferryman.errors import StoreUnavailable, WorkerGone
from ferryman.job import JobId, Outcome, OutcomeKind, State
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Take
from tests.conformance.driver import W1, Ferry
from tests.services.shared import postgres_url
from tests.unit.postgres_bench import until


def under(url: str, setting: str, value: str) -> str:
    """The URL of a store whose sessions have another default."""
    return f"{url}&options=-c%20{setting}%3D{value.replace(' ', '%5C%20')}"


def ferry_on(url: str) -> Ferry:
    clock = ManualClock()
    return Ferry(open_store(url, clock), clock, lambda: open_store(url, clock))


@pytest.fixture(params=["blocking", "asyncio"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def perform(store: Store, operation: Any, colour: str) -> Any:
    if colour == "blocking":
        return store.runner().run(operation)

    async def live() -> Any:
        runner = store.async_runner()
        try:
            return await runner.run(operation)
        finally:
            await runner.close()

    return asyncio.run(live())


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_worker_that_is_taken_for_dead_while_it_claims_gets_nothing_at_any_isolation(
    url: str, admin: psycopg.Connection[Any], level: str, colour: str
) -> None:
    ferry = ferry_on(under(url, "default_transaction_isolation", level))
    ferry.add()
    operation = ferry.store.claim(W1, [Take("default", 0, 1)], 1)
    with ThreadPoolExecutor(1) as pool:
        admin.execute("BEGIN")
        admin.execute("SELECT * FROM rescue(%s::text[], true, NULL)", ([W1],))

        claim = pool.submit(perform, ferry.store, operation, colour)
        until(lambda: _waits(admin))
        admin.execute("COMMIT")

        with pytest.raises(WorkerGone):
            claim.result()
    assert [job.state for job in ferry.jobs()] == [State.READY]
    ferry.store.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_programs_that_start_together_make_the_tables_once_at_any_isolation(level: str) -> None:
    barrier = threading.Barrier(4)

    def start(store: Store) -> int:
        barrier.wait(10)
        moment: int = store.runner().run(store.time())
        return moment

    for number in range(3):
        schema = f"together_{number}_{level[:4]}"
        fresh = under(f"{postgres_url()}?schema={schema}", "default_transaction_isolation", level)
        stores = [open_store(fresh) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(start, stores))
        for store in stores:
            store.close()
        with psycopg.connect(postgres_url(), autocommit=True) as admin:
            admin.execute(f"DROP SCHEMA {schema} CASCADE")


def test_a_child_that_comes_while_a_transaction_that_sees_the_past_ends_its_parent_is_not_forgotten(
    url: str, admin: psycopg.Connection[Any]
) -> None:
    ferry = ferry_on(url)
    store = ferry.store
    parent = ferry.add()
    ferry.add(after=(parent,))
    claim = ferry.take()
    end = Outcome(JobId(claim.id), claim.lease, OutcomeKind.SUCCEEDED)
    guest = store.using(admin)
    admin.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    admin.execute("SELECT count(*) FROM job")
    ferry.add(after=(parent,))

    with pytest.raises(StoreUnavailable, match="others that change the same jobs"):
        guest.runner.run(store.settle(W1, [end]))
    admin.execute("ROLLBACK")
    store.runner().run(store.settle(W1, [end]))

    assert [job.state for job in ferry.jobs()] == [State.SUCCEEDED, State.READY, State.READY]
    store.close()


def test_crashes_are_written_down_where_backslashes_mean_something(url: str) -> None:
    ferry = ferry_on(under(url, "standard_conforming_strings", "off"))
    crashed, rescued = ferry.add(), ferry.add()

    ferry.settle(ferry.take(), OutcomeKind.CRASHED)
    ferry.claim(2)
    ferry.run(ferry.store.rescue([W1]))

    errors = [attempt.error for id_ in (crashed, rescued) for attempt in ferry.history(id_).attempts]
    assert {error.message for error in errors if error} == {"its executor died", f"worker {W1} died"}
    ferry.store.close()


def _waits(admin: psycopg.Connection[Any]) -> bool:
    row = admin.execute(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    ).fetchone()
    return row is not None and row[0] > 0
