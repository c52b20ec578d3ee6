"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.store.records import Pruned, Retention

__all__ = ["prune"]


def prune(retention: Retention, limit: int) -> Requests[Pruned]:
    asked, start = msgspec.msgpack.encode(retention), b""
    deleted = 0
    while True:
        count: int
        count, start = yield Call("prune", (asked, limit - deleted, start))
        deleted += count
        # Each call looks at some hundred jobs, of which some may have to stay, and forgets some hundred small things.
        if not start or deleted >= limit:
            return Pruned(deleted, more=deleted >= limit)
