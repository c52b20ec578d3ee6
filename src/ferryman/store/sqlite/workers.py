"""The register of workers: leases, orders, and rescuing the jobs of those that died.

A lease belongs to the worker: renewing it is one row, however many jobs it holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query
from ferryman.job import ErrorInfo, JobId, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.records import Held, Order, Orders, Rescued, WorkerInfo, WorkerStatus
from ferryman.store.sqlite.claim import find_worker
from ferryman.store.sqlite.ledger import Ledger
from ferryman.store.sqlite.settle import Leased, settle_leased

__all__ = ["GONE", "heartbeat", "holding", "leave", "order", "register", "rescue"]

GONE = {"stopped": 1, "dead": 2}
"""Values of ``worker.gone``."""

_encode = msgspec.msgpack.Encoder().encode

_RUNNING = """
SELECT seq, id, lane, task, flags, lease, attempt, max_attempts, deaths, run_at, key, worker, tag, started_at
FROM ferryman_job INDEXED BY ferryman_job_running WHERE state = 4 AND worker = ? ORDER BY seq
"""


def register(now: int, info: WorkerInfo, lease: int) -> Requests[None]:
    yield Query(
        "INSERT INTO ferryman_worker (name, info, status, queues, bell, registered_at, seen_at, lease_until)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET info = excluded.info,"
        " queues = excluded.queues, bell = excluded.bell, seen_at = excluded.seen_at,"
        " lease_until = excluded.lease_until",
        (
            info.id, _encode(info), _encode(WorkerStatus()),
            None if info.queues is None else json.dumps(info.queues), info.bell, now, now, now + lease,
        ),
    )  # fmt: skip


def heartbeat(now: int, worker: WorkerId, status: WorkerStatus, lease: int, heard: int) -> Requests[Orders]:
    worker_id, *_ = yield from find_worker(worker)
    yield Query(
        "UPDATE ferryman_worker SET status = ?, seen_at = ?, lease_until = ? WHERE id = ?",
        (_encode(status), now, now + lease, worker_id),
    )
    yield Query("DELETE FROM ferryman_worker_order WHERE worker = ? AND id <= ?", (worker_id, heard))
    ((last,),) = yield Query(
        "SELECT coalesce(max(id), ?2) FROM ferryman_worker_order WHERE worker = ?1", (worker_id, heard)
    )
    orders = yield Query(
        "SELECT kind, job, reason FROM ferryman_worker_order o WHERE worker = ? AND (job IS NULL OR EXISTS"
        " (SELECT 1 FROM ferryman_job j WHERE j.id = o.job AND j.state = 4 AND j.lease = o.lease)) ORDER BY id",
        (worker_id,),
    )
    return Orders(
        [Order(kind, None if job is None else JobId(job.hex()), reason) for kind, job, reason in orders], last
    )


def holding(worker: WorkerId) -> Requests[list[Held]]:
    rows = yield Query(
        "SELECT id, lease FROM ferryman_job INDEXED BY ferryman_job_running WHERE state = 4"
        " AND worker = (SELECT id FROM ferryman_worker WHERE name = ?) ORDER BY seq",
        (worker,),
    )
    return [Held(JobId(id_.hex()), lease) for id_, lease in rows]


def leave(now: int, worker: WorkerId) -> Requests[None]:
    found = yield Query("SELECT id FROM ferryman_worker WHERE name = ? AND gone IS NULL", (worker,))
    if found:
        ledger = Ledger(now)
        ((worker_id,),) = found
        error = ErrorInfo("WorkerLeft", f"worker {worker} left before the job was done")
        yield from _take_back(ledger, worker_id, error, deaths=0)
        yield from _strike_off(worker_id, GONE["stopped"])
        yield from ledger.close()


def rescue(now: int, dead: Sequence[WorkerId], late: bool) -> Requests[list[Rescued]]:
    workers = yield Query(
        "SELECT id, name FROM ferryman_worker WHERE gone IS NULL AND lease_until <= ?1"
        " UNION SELECT id, name FROM ferryman_worker WHERE gone IS NULL AND name IN (SELECT value FROM json_each(?2))"
        " ORDER BY id",
        (now if late else 0, json.dumps(list(dead))),
    )
    if not workers:
        return []
    ledger = Ledger(now)
    rescued: list[Rescued] = []
    for worker_id, name in workers:
        error = ErrorInfo("WorkerLost", f"worker {name} died")
        again, died = yield from _take_back(ledger, worker_id, error, deaths=1)
        yield from _strike_off(worker_id, GONE["dead"])
        rescued.append(Rescued(WorkerId(name), again, died))
    yield from ledger.close()
    return rescued


def order(now: int, workers: Sequence[WorkerId], order: Order) -> Requests[int]:
    alive = yield Query(
        "SELECT id FROM ferryman_worker WHERE gone IS NULL AND name IN (SELECT value FROM json_each(?))",
        (json.dumps(list(workers)),),
    )
    ledger = Ledger(now)
    yield from leave_orders([worker_id for (worker_id,) in alive], order)
    ledger.woke = bool(alive)
    yield from ledger.close()
    return len(alive)


def leave_orders(workers: Sequence[int], order: Order) -> Requests[None]:
    """Leave an order for workers to find with their next heartbeat."""
    job = None if order.job is None else bytes.fromhex(order.job)
    yield Many(
        "INSERT INTO ferryman_worker_order (worker, kind, job, lease, reason)"
        " VALUES (?1, ?2, ?3, (SELECT lease FROM ferryman_job WHERE id = ?3), ?4)",
        [(worker, order.kind, job, order.reason) for worker in workers],
    )


def _take_back(ledger: Ledger, worker_id: int, error: ErrorInfo, *, deaths: int) -> Requests[tuple[int, int]]:
    """Settle all running jobs of a worker. Answers how many will run again, and how many died."""
    rows: list[Any] = yield Query(_RUNNING, (worker_id,))
    again = died = 0
    for row in rows:
        job = Leased(*row[:13])
        ran_us = max(0, ledger.now - row[13]) * 1000
        outcome = Outcome(JobId(job.id.hex()), job.lease, OutcomeKind.CRASHED, ran_us=ran_us, error=error)
        state = yield from settle_leased(ledger, job, outcome, deaths)
        died += state is State.DEAD
        again += state is State.READY
    return again, died


def _strike_off(worker_id: int, gone: int) -> Requests[None]:
    yield Query("UPDATE ferryman_worker SET gone = ? WHERE id = ?", (gone, worker_id))
    yield Query("DELETE FROM ferryman_worker_order WHERE worker = ?", (worker_id,))
