"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.store.records import Pruned, Retention

__all__ = ["prune"]

_FEW_CALLS, _JOBS_EACH = 5, 100
"""Calls at most, however few jobs are to be deleted; and one more for so many of these."""


def prune(retention: Retention, limit: int) -> Requests[Pruned]:
    asked, deleted = msgspec.msgpack.encode(retention), 0
    # Each call looks at some hundred jobs, of which some may have to stay, and forgets some hundred small things.
    for _ in range(_FEW_CALLS + limit // _JOBS_EACH):
        count, more = yield Call("prune", (asked, limit - deleted))
        deleted += count
        if not more or deleted >= limit:
            return Pruned(deleted, more=bool(more))
    return Pruned(deleted, more=True)
