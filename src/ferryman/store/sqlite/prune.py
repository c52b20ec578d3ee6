"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Query
from ferryman.job import State
from ferryman.store.records import ARRIVING, Pruned, Retention
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.coordinate import kv_get
from ferryman.store.sqlite.ledger import Ledger, seqs_param
from ferryman.store.sqlite.steer import erase

__all__ = ["prune"]

# ?1 state, ?2 finished before, ?3 how many. Parents whose result an unfinished child wants stay.
_OLD = f"""
SELECT seq, id, lane, state, flags FROM ferryman_job j INDEXED BY ferryman_job_finished
WHERE state = ?1 AND state >= 5 AND max(finished_at, coalesce(result_until, 0)) < ?2
    AND NOT (flags & {FLAG.CHILDREN} AND EXISTS (
        SELECT 1 FROM ferryman_parent p JOIN ferryman_job c ON c.seq = p.child WHERE p.parent = j.id AND c.state < 5))
ORDER BY max(finished_at, coalesce(result_until, 0)) LIMIT ?3
"""  # noqa: S608

# ?1 now, ?2 how many.
_OVER = "DELETE FROM {0} WHERE key IN (SELECT key FROM {0} WHERE until <= ?1 LIMIT ?2) RETURNING until"

_ANY_TIME = 1 << 62


def prune(now: int, retention: Retention, limit: int) -> Requests[Pruned]:
    more = yield from _prune_small(now, retention, limit)
    if (yield from kv_get(now, ARRIVING)) is not None:
        return Pruned(0, more)
    ledger = Ledger(now)
    rows: list[Any] = []
    for states, age, most in (
        ((State.SUCCEEDED,), retention.succeeded, retention.succeeded_count),
        ((State.DEAD,), retention.dead, retention.dead_count),
        ((State.CANCELLED, State.EXPIRED), retention.other, retention.other_count),
    ):
        for state in states:
            rows += yield Query(_OLD, (int(state), now - age, limit - len(rows)))
        excess = (yield from _count(states)) - most - sum(row[3] in states for row in rows)
        if excess > 0:
            taken = {row[0] for row in rows}
            for state in states:
                beyond = yield Query(_OLD, (int(state), _ANY_TIME, min(limit, excess + len(taken))))
                fresh = [row for row in beyond if row[0] not in taken][
                    : max(0, min(excess, limit - len(rows)))
                ]
                rows += fresh
                excess -= len(fresh)
    yield from erase(ledger, rows)
    yield from ledger.close()
    return Pruned(len(rows), more or len(rows) >= limit)


def _count(states: tuple[State, ...]) -> Requests[int]:
    ((succeeded, dead, cancelled, expired),) = yield Query(
        "SELECT sum(succeeded), sum(dead), sum(cancelled), sum(expired) FROM ferryman_lane"
    )
    counts = {
        State.SUCCEEDED: succeeded,
        State.DEAD: dead,
        State.CANCELLED: cancelled,
        State.EXPIRED: expired,
    }
    return sum(counts[state] or 0 for state in states)


def _prune_small(now: int, retention: Retention, limit: int) -> Requests[bool]:
    """Answers whether there may be more."""
    yield Query("DELETE FROM ferryman_stat WHERE minute < ?", (now - retention.stats,))
    yield Query("DELETE FROM ferryman_lock WHERE until <= ?", (now,))
    values = yield Query(_OVER.format("ferryman_kv"), (now, limit))
    keys = yield Query(_OVER.format("ferryman_unique_key"), (now, limit))
    yield Query(
        "DELETE FROM ferryman_tenant WHERE tag <= (SELECT clock FROM ferryman_lane WHERE id = ferryman_tenant.lane)"
    )
    over = yield Query(
        "SELECT seq FROM ferryman_job INDEXED BY ferryman_job_result_until WHERE result_until IS NOT NULL AND flags & 256 = 0"
        " AND result_until <= ? LIMIT ?",
        (now, limit),
    )
    if over:
        seqs = seqs_param([seq for (seq,) in over])
        yield Query(
            "UPDATE ferryman_body SET result = NULL WHERE seq IN (SELECT value FROM json_each(?))", (seqs,)
        )
        yield Query(
            "UPDATE ferryman_job SET flags = flags | 256 WHERE seq IN (SELECT value FROM json_each(?))",
            (seqs,),
        )
    # Their names stay, since histories of jobs tell them.
    yield Query(
        "UPDATE ferryman_worker SET gone = 3, info = x'', status = x'' WHERE gone < 3 AND seen_at < ?",
        (now - retention.workers,),
    )
    return max(len(values), len(keys), len(over)) >= limit
