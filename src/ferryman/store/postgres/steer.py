"""What people do to jobs and queues. Each operation takes its jobs oldest first, up to a limit.

A filter chooses them without a lock, in the statement that hands them to a function of `sql/functions/steer.sql`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import GATE, NOW, Statement
from ferryman.job import FINISHED, PENDING, JobId, State
from ferryman.store.postgres.filters import matching
from ferryman.store.records import Filter, QueueSettings
from ferryman.store.rows import FLAG

__all__ = ["cancel", "declare", "delete", "edit", "pause", "replay", "reprioritise"]

_PENDING = tuple(sorted(PENDING))
_FINISHED = tuple(sorted(FINISHED))

_MORE = 1_000
"""How many jobs more are chosen than shall be changed, once others have had all of the first ones in hand."""


def declare(schema: str, queues: Sequence[QueueSettings]) -> Requests[None]:
    # The last word counts, within a batch too.
    last = list({queue.name: queue for queue in queues}.values())
    yield Statement(
        f"SELECT {schema}.declare_queues(%s::text[], %s::boolean[], %s::text[], %s::bigint[], %s::text[])",
        (
            [queue.name for queue in last],
            [queue.fair for queue in last],
            [json.dumps(dict(queue.weights)) for queue in last],
            [queue.max_size for queue in last],
            [queue.overflow for queue in last],
        ),
    )


def pause(schema: str, queues: Sequence[str], paused: bool) -> Requests[None]:
    yield Statement(
        f"SELECT {schema}.pause_queues(%s::text[], %s::boolean)", (list(dict.fromkeys(queues)), paused)
    )


def cancel(schema: str, which: Filter, limit: int, reason: str | None) -> Requests[int]:
    chosen = matching(
        schema,
        which,
        "j.seq",
        among=(*_PENDING, State.RUNNING),
        # A running job that was asked already is not asked again.
        extra=f"(j.state < 4 OR j.flags & {FLAG.CANCEL_ASKED} = 0)",
    )
    return (yield from _steer(f"{schema}.cancel", chosen, limit, ("text", reason), ("bigint", NOW)))


def replay(schema: str, which: Filter, limit: int) -> Requests[int]:
    chosen = matching(
        schema,
        which,
        "j.seq",
        among=_FINISHED,
        extra=f"(j.unique_key IS NULL OR NOT EXISTS (SELECT 1 FROM {schema}.unique_key u WHERE u.key = j.unique_key"  # noqa: S608
        f" AND u.id <> j.id AND (u.until IS NULL OR u.until > coalesce(%s::bigint, {schema}.ferryman_now()))))",
        extra_params=(NOW,),
    )
    return (yield from _steer(f"{schema}.replay", chosen, limit, ("bigint", NOW)))


def edit(schema: str, job: JobId, args: bytes) -> Requests[bool]:
    ((edited,),) = yield Statement(f"SELECT {schema}.edit(%s::uuid, %s::bytea)", (job, args))
    return bool(edited)


def reprioritise(schema: str, which: Filter, priority: int, limit: int) -> Requests[int]:
    chosen = matching(
        schema,
        which,
        "j.seq",
        among=_PENDING,
        extra="j.priority <> %s::smallint",
        extra_params=(priority,),
    )
    return (yield from _steer(f"{schema}.reprioritise", chosen, limit, ("smallint", priority)))


def delete(schema: str, which: Filter, limit: int) -> Requests[int]:
    chosen = matching(schema, which, "j.seq", among=(*_PENDING, *_FINISHED))
    return (yield from _steer(f"{schema}.delete_jobs", chosen, limit, ("bigint", NOW)))


def _steer(function: str, chosen: Statement, limit: int, *arguments: tuple[str, Any]) -> Requests[int]:
    """Call a function for the jobs chosen, with further arguments, each with its type."""
    more = "".join([f", %s::{type_}" for type_, _ in arguments])
    extra = "CASE WHEN %s::boolean THEN %s::bigint ELSE 0 END"
    ((count,),) = yield Statement(
        f"SELECT {function}(ARRAY({chosen.text} ORDER BY j.seq LIMIT %s::bigint + {extra}), %s::bigint, {extra}{more})",
        (*chosen.params, limit, GATE, _MORE, limit, GATE, _MORE, *[value for _, value in arguments]),
    )
    return int(count)
