"""Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?"""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import GATE, NOW, Statement
from ferryman.job import Claim, WorkerId
from ferryman.store.records import Claimed, LaneState, Signs, Take

__all__ = ["claim", "peek"]


def claim(schema: str, worker: WorkerId, plan: Sequence[Take], limit: int) -> Requests[Claimed]:
    rows = yield Statement(
        f"SELECT * FROM {schema}.claim(%s::text, %s::text[], %s::smallint[], %s::integer[], %s::integer, %s::boolean,"  # noqa: S608
        " %s::bigint)",
        (
            worker, [take.queue for take in plan], [take.priority for take in plan], [take.count for take in plan],
            limit, GATE, NOW,
        ),
    )  # fmt: skip
    # See the function for its three kinds of rows.
    now, next_due = rows.pop()[7:9]
    jobs = len(rows)
    while jobs and rows[jobs - 1][0] is None:
        jobs -= 1
    lanes = [LaneState(row[2], row[3], row[7], row[8]) for row in rows[jobs:]]
    return Claimed([Claim(*row) for row in rows[:jobs]], lanes, next_due, now)


def peek(schema: str, worker: WorkerId) -> Requests[Signs]:
    ((work, next_due, orders, now),) = yield Statement(
        f"SELECT work, next_due, orders, moment FROM {schema}.peek(%s::text, %s::bigint)",  # noqa: S608
        (worker, NOW),
    )
    return Signs(work, next_due, orders, now)
