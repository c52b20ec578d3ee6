"""What runs for each batch must not cost more with a longer history: the query plan of every statement is looked at."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation
from ferryman.io.sqlite import Many, Query
from ferryman.job import NewJob, Outcome, OutcomeKind, State, UniqueKey, WorkerId, new_id
from ferryman.store.records import Filter, JobNote, QueueSettings, Retention, Take, WorkerInfo, WorkerStatus
from ferryman.store.sqlite.store import SqliteStore

SCAN = re.compile(
    r"SCAN (j|c|b|a|p|ferryman_(job|body|attempt|note|parent|unique_key|tag))\b(?! USING (COVERING )?INDEX)"
    r"|SEARCH (ferryman_job|j) USING INTEGER PRIMARY KEY \(rowid[<>]"
)
"""A table that grows with the jobs is gone through row by row, or by order of arrival."""

W = WorkerId("w")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(str(tmp_path / "jobs.db"), ManualClock())
    run = store.runner().run
    info = WorkerInfo(
        id=W,
        host="h",
        place="p",
        pid=1,
        pid_birth=1,
        queues=None,
        tasks=("t",),
        concurrency=1,
        bell="/nowhere",
    )
    run(store.register(info, 30_000))
    run(store.declare([QueueSettings(name="full", max_size=1, overflow="drop_oldest")]))
    run(store.enqueue([job(), job(queue="full")]))
    yield store
    store.close()


def job(**fields: Any) -> NewJob:
    return NewJob(id=new_id(), task="t", args=b"", max_attempts=3, **fields)


def plans_of(store: SqliteStore, operation: Operation[Any]) -> list[tuple[str, str]]:
    """Performs an operation, and answers each step of the plan of each of its statements."""
    connection = sqlite3.connect(store.url.removeprefix("sqlite:///"), isolation_level=None)
    found: list[tuple[str, str]] = []
    connection.execute("BEGIN IMMEDIATE")
    requests = operation.body(ManualClock().now())
    answer: Any = None
    try:
        while True:
            request = requests.send(answer)
            if isinstance(request, Query):
                steps = connection.execute(f"EXPLAIN QUERY PLAN {request.sql}", request.params)
                found += [(request.sql, step[3]) for step in steps]
                answer = connection.execute(request.sql, request.params).fetchall()
            elif isinstance(request, Many):
                answer = connection.executemany(request.sql, request.rows).rowcount
            else:
                answer = None
    except StopIteration:
        connection.execute("COMMIT")
    finally:
        connection.close()
    return found


def scans(store: SqliteStore, operation: Operation[Any]) -> list[tuple[str, str]]:
    plans = plans_of(store, operation)
    assert plans
    return [(sql, step) for sql, step in plans if SCAN.search(step)]


def test_the_guard_sees_a_scan(store: SqliteStore) -> None:
    by_moment = store.find(Filter(since=1), 10)

    assert scans(store, by_moment)


def test_no_enqueue_scans(store: SqliteStore) -> None:
    parent = job()
    store.runner().run(store.enqueue([parent]))
    batch = [
        job(),
        job(),
        job(queue="full"),
        job(key="k", tags=("a",), unique=UniqueKey("u")),
        job(after=(parent.id,), delay=5),
    ]

    assert scans(store, store.enqueue(batch)) == []


def test_no_claim_scans(store: SqliteStore) -> None:
    assert scans(store, store.claim(W, [Take("default", 0, 10)], 10)) == []
    assert scans(store, store.peek(W)) == []


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_no_settle_scans(store: SqliteStore, kind: OutcomeKind) -> None:
    parent = job(key="k", unique=UniqueKey("u"), priority=9)
    run = store.runner().run
    run(store.enqueue([parent, job(after=(parent.id,)), job(key="k")]))
    (claim,) = run(store.claim(W, [Take("default", 9, 1)], 1)).jobs

    assert scans(store, store.annotate(W, [JobNote(claim.id, claim.lease, 0.5, "half")])) == []
    assert scans(store, store.settle(W, [Outcome(claim.id, claim.lease, kind, delay=1_000)])) == []


def test_no_duty_scans(store: SqliteStore) -> None:
    store.runner().run(store.claim(W, [Take("default", 0, 10)], 10))

    assert scans(store, store.heartbeat(W, WorkerStatus(), 30_000)) == []
    assert scans(store, store.prune(Retention(), 100)) == []
    assert scans(store, store.lanes()) == []
    assert scans(store, store.rescue([W])) == []


@pytest.mark.parametrize(
    "which",
    [
        Filter(ids=(new_id(),)),
        Filter(tasks=("t",)),
        Filter(states=(State.RUNNING,)),
        Filter(states=(State.WAITING,)),
        Filter(states=(State.CANCELLED,)),
        Filter(states=(State.EXPIRED,)),
    ],
)
def test_no_search_for_what_is_rare_scans(store: SqliteStore, which: Filter) -> None:
    assert scans(store, store.find(which, 50)) == []
