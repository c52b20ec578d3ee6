"""The register of workers: leases, orders, and rescuing the jobs of those that died.

A lease belongs to the worker: renewing it is one row, however many jobs it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, Statement
from ferryman.job import JobId, WorkerId
from ferryman.store.records import Held, Order, Orders, Rescued, WorkerInfo, WorkerStatus

__all__ = ["heartbeat", "holding", "leave", "order", "register", "rescue"]

_encode = msgspec.msgpack.Encoder().encode


def register(schema: str, info: WorkerInfo, lease: int) -> Requests[None]:
    yield Statement(
        f"SELECT {schema}.register(%s::text, %s::bytea, %s::bytea, %s::text[], %s::bigint, %s::bigint)",
        (
            info.id,
            _encode(info),
            _encode(WorkerStatus()),
            None if info.queues is None else list(info.queues),
            lease,
            NOW,
        ),
    )


def heartbeat(
    schema: str, worker: WorkerId, status: WorkerStatus, lease: int, heard: int
) -> Requests[Orders]:
    rows = yield Statement(
        f"SELECT id, stands, kind, job, reason"  # noqa: S608
        f" FROM {schema}.heartbeat(%s::text, %s::bytea, %s::bigint, %s::bigint, %s::bigint)",
        (worker, _encode(status), lease, heard, NOW),
    )
    orders = [
        Order(kind, None if job is None else JobId(job), reason)
        for _, stands, kind, job, reason in rows
        if stands
    ]
    return Orders(orders, rows[-1][0] if rows else heard)


def holding(schema: str, worker: WorkerId) -> Requests[list[Held]]:
    rows = yield Statement(
        f"SELECT encode(uuid_send(j.id), 'hex'), j.lease FROM {schema}.job j"  # noqa: S608
        f" WHERE j.state = 4 AND j.worker = (SELECT w.id FROM {schema}.worker w WHERE w.name = %s::text)"
        " ORDER BY j.seq",
        (worker,),
    )
    return [Held(JobId(id_), lease) for id_, lease in rows]


def leave(schema: str, worker: WorkerId) -> Requests[None]:
    yield Statement(f"SELECT {schema}.leave(%s::text, %s::bigint)", (worker, NOW))


def rescue(schema: str, dead: Sequence[WorkerId], late: bool) -> Requests[list[Rescued]]:
    rows = yield Statement(
        f"SELECT worker, again, dead FROM {schema}.rescue(%s::text[], %s::boolean, %s::bigint)",  # noqa: S608
        (list(dead), late, NOW),
    )
    return [Rescued(WorkerId(worker), again, died) for worker, again, died in rows]


def order(schema: str, workers: Sequence[WorkerId], order: Order) -> Requests[int]:
    ((count,),) = yield Statement(
        f"SELECT {schema}.leave_orders(%s::text[], %s::text, %s::uuid, %s::text)",
        (list(workers), order.kind, order.job, order.reason),
    )
    return int(count)
