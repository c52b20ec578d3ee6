"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, Statement
from ferryman.store.records import Pruned, Retention

__all__ = ["prune"]


def prune(schema: str, retention: Retention, limit: int) -> Requests[Pruned]:
    ((jobs, more),) = yield Statement(
        f"SELECT jobs, more FROM {schema}.prune("  # noqa: S608
        "%s::bigint[], %s::bigint[], %s::bigint, %s::bigint, %s::bigint, %s::bigint)",
        (
            [retention.succeeded, retention.dead, retention.other],
            [retention.succeeded_count, retention.dead_count, retention.other_count],
            retention.stats,
            retention.workers,
            limit,
            NOW,
        ),
    )
    return Pruned(jobs, more)
