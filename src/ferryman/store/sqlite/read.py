"""What people look at. Nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Query
from ferryman.job import History, Job, JobId, Note, State
from ferryman.store.minutes import minute_stats
from ferryman.store.records import (
    CauseCount,
    Filter,
    LaneCounts,
    MinuteStats,
    ParentResult,
    QueueRecord,
    WorkerRecord,
)
from ferryman.store.rows import attempt_of, decode_error, job_of, queues_of, workers_of
from ferryman.store.sqlite.filters import matching
from ferryman.store.sqlite.ledger import ids_param

__all__ = [
    "causes",
    "find",
    "get",
    "history",
    "lanes",
    "parent_results",
    "queues",
    "stats",
    "time",
    "workers",
]

_COLUMNS = """
j.id, j.seq, t.name, l.queue, l.priority, j.state, j.attempt, j.max_attempts, j.deaths, j.enqueued_at, j.run_at,
j.started_at, j.finished_at, j.deadline, (SELECT name FROM ferryman_worker WHERE id = j.worker), j.key, b.tenant,
b.reason, b.progress, b.tags
"""


def get(now: int, ids: Sequence[JobId]) -> Requests[list[Job | None]]:
    rows = yield Query(
        f"SELECT n.key, b.args, b.options, b.result, j.result_until, {_COLUMNS} FROM json_each(?2) n"  # noqa: S608
        " CROSS JOIN ferryman_job j ON j.id = substr(?1, n.key * 16 + 1, 16) JOIN ferryman_body b ON b.seq = j.seq"
        " JOIN ferryman_lane l ON l.id = j.lane JOIN ferryman_task t ON t.id = j.task",
        ids_param(ids),
    )
    found: list[Job | None] = [None] * len(ids)
    for place, args, options, result, result_until, *row in rows:
        if result_until is not None and result_until <= now:
            result = None
        found[place] = _job(row, args=args, options=options, result=result, result_until=result_until)
    return found


def find(which: Filter, limit: int, before: int | None) -> Requests[list[Job]]:
    rows = yield matching(
        which,
        _COLUMNS,
        extra="j.seq < ?" if before is not None else "",
        extra_params=() if before is None else (before,),
        newest_first=True,
        limit=limit,
    )
    return [_job(row) for row in rows]


def history(now: int, job: JobId) -> Requests[History | None]:
    ((record,), id_) = (yield from get(now, [job])), bytes.fromhex(job)
    if record is None:
        return None
    attempts = yield Query(
        "SELECT number, kind, (SELECT name FROM ferryman_worker WHERE id = a.worker), started_at, finished_at, error,"
        " reason FROM ferryman_attempt a WHERE seq = ? ORDER BY id",
        (record.seq,),
    )
    notes = yield Query(
        "SELECT at, attempt, text FROM ferryman_note WHERE seq = ? ORDER BY id", (record.seq,)
    )
    parents = yield Query("SELECT parent FROM ferryman_parent WHERE child = ? ORDER BY place", (record.seq,))
    children = yield Query(
        "SELECT DISTINCT j.id FROM ferryman_parent p JOIN ferryman_job j ON j.seq = p.child WHERE p.parent = ?"
        " ORDER BY j.seq",
        (id_,),
    )
    return History(
        job=record,
        attempts=tuple(attempt_of(row) for row in attempts),
        notes=tuple(Note(*row) for row in notes),
        parents=tuple(JobId(parent.hex()) for (parent,) in parents),
        children=tuple(JobId(child.hex()) for (child,) in children),
    )


def parent_results(now: int, job: JobId, offset: int, limit: int) -> Requests[list[ParentResult]]:
    rows = yield Query(
        "SELECT j.id, t.name, j.state, CASE WHEN j.result_until <= ?2 THEN NULL ELSE b.result END,"
        " (SELECT error FROM ferryman_attempt a WHERE a.seq = j.seq AND error IS NOT NULL ORDER BY a.id DESC LIMIT 1)"
        " FROM ferryman_parent p JOIN ferryman_job j ON j.id = p.parent JOIN ferryman_body b ON b.seq = j.seq"
        " JOIN ferryman_task t ON t.id = j.task"
        " WHERE p.child = (SELECT seq FROM ferryman_job WHERE id = ?1) ORDER BY p.place LIMIT ?3 OFFSET ?4",
        (bytes.fromhex(job), now, limit, offset),
    )
    return [
        ParentResult(
            JobId(id_.hex()), task, State(state), result,
            decode_error(error) if error is not None and state == State.DEAD else None,
        )
        for id_, task, state, result, error in rows
    ]  # fmt: skip


def lanes() -> Requests[list[LaneCounts]]:
    rows = yield Query(
        "SELECT queue, priority, waiting, scheduled, ready, parked, running, succeeded, dead, cancelled, expired,"
        " (SELECT run_at FROM ferryman_job INDEXED BY ferryman_job_ready WHERE state = 2 AND lane = l.id"
        " ORDER BY tag, seq LIMIT 1) FROM ferryman_lane l ORDER BY queue, priority DESC"
    )
    return [
        LaneCounts(queue, priority, dict(zip(State, counts, strict=True)), oldest)
        for queue, priority, *counts, oldest in rows
    ]


def time(now: int) -> Requests[int]:
    return now
    yield  # an operation is a generator, though this one has nothing to ask


def queues() -> Requests[list[QueueRecord]]:
    rows = yield Query(
        "SELECT name, fair, weights, max_size, overflow, paused FROM ferryman_queue ORDER BY name"
    )
    return queues_of(rows)


def stats(since: int, until: int) -> Requests[list[MinuteStats]]:
    rows = yield Query(
        "SELECT s.minute, l.queue, t.name, s.kind, s.bucket, sum(s.n) FROM ferryman_stat s"
        " JOIN ferryman_lane l ON l.id = s.lane JOIN ferryman_task t ON t.id = s.task WHERE s.minute >= ? AND s.minute < ?"
        " GROUP BY s.minute, l.queue, t.name, s.kind, s.bucket ORDER BY s.minute, l.queue, t.name",
        (since, until),
    )
    return minute_stats(rows)


def causes(which: Filter) -> Requests[list[CauseCount]]:
    query = matching(
        which, "t.name AS task, b.reason AS cause, j.finished_at AS at", among=(State.DEAD,), limit=-1
    )
    rows = yield Query(
        "SELECT task, coalesce(cause, ''), count(*), min(at), max(at)"  # noqa: S608
        f" FROM ({query.sql}) GROUP BY task, cause ORDER BY count(*) DESC, task, cause",
        query.params,
    )
    return [CauseCount(*row) for row in rows]


def workers(alive: bool) -> Requests[list[WorkerRecord]]:
    rows = yield Query(
        "SELECT name, info, status, registered_at, seen_at, lease_until, gone FROM ferryman_worker"
        " WHERE gone IS NULL OR (gone < 3 AND NOT ?) ORDER BY id",
        (alive,),
    )
    return workers_of(rows)


def _job(row: Sequence[Any], **body: Any) -> Job:
    id_, *rest, tags = row
    return job_of(JobId(id_.hex()), rest, tuple(json.loads(tags)) if tags else (), **body)
