"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, Statement
from ferryman.store.records import Retention

__all__ = ["prune"]


def prune(schema: str, retention: Retention, limit: int) -> Requests[int]:
    ((count,),) = yield Statement(
        f"SELECT {schema}.prune(%s::bigint[], %s::bigint[], %s::bigint, %s::bigint, %s::bigint, %s::bigint)",
        (
            [retention.succeeded, retention.dead, retention.other],
            [retention.succeeded_count, retention.dead_count, retention.other_count],
            retention.stats,
            retention.workers,
            limit,
            NOW,
        ),
    )
    return int(count)
