"""What people do to jobs and queues. Each operation takes its jobs oldest first, up to a limit.

Each call is a transaction of its own, and right by itself. One that changed nothing may not have come to the end, so that
another goes on from there: the answer is 0 only if no job was left to be changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.job import JobId
from ferryman.store.records import Filter, QueueSettings

__all__ = ["cancel", "declare", "delete", "edit", "pause", "replay", "reprioritise"]

_encode = msgspec.msgpack.Encoder().encode


def declare(queues: Sequence[QueueSettings]) -> Requests[None]:
    args = [part for settings in queues for part in (settings.name, _encode(settings))]
    while not (yield Call("declare", tuple(args))):
        pass


def pause(queues: Sequence[str], paused: bool) -> Requests[None]:
    yield Call("pause", (int(paused), *queues))


def cancel(which: Filter, limit: int, reason: str | None) -> Requests[int]:
    return (yield from _change("cancel", which, limit, () if reason is None else (reason,)))


def replay(which: Filter, limit: int) -> Requests[int]:
    return (yield from _change("replay", which, limit))


def edit(job: JobId, args: bytes) -> Requests[bool]:
    return bool((yield Call("edit", (job, args))))


def reprioritise(which: Filter, priority: int, limit: int) -> Requests[int]:
    return (yield from _change("reprioritise", which, limit, (priority,)))


def delete(which: Filter, limit: int) -> Requests[int]:
    return (yield from _change("delete", which, limit))


def _change(verb: str, which: Filter, limit: int, more: tuple[str | int, ...] = ()) -> Requests[int]:
    asked, start = _encode(which), b""
    while True:
        count, start = yield Call(verb, (asked, limit, start, *more))
        if count or not start:
            return int(count)
