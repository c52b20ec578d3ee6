"""What people look at. Nothing here writes; each verb is one statement, and so sees one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, Statement
from ferryman.job import History, Job, JobId, Note, State
from ferryman.store.minutes import minute_stats
from ferryman.store.postgres.filters import matching
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


def _columns(schema: str) -> str:
    return (
        "encode(uuid_send(j.id), 'hex'), j.seq, j.task, j.queue, j.priority, j.state, j.attempt, j.max_attempts, j.deaths,"  # noqa: S608
        f" j.enqueued_at, j.run_at, j.started_at, j.finished_at, j.deadline, (SELECT name FROM {schema}.worker WHERE"
        " id = j.worker), j.key, j.tenant, j.reason, j.progress, j.tags"
    )


def _body(schema: str) -> str:
    """Arguments and result, unless the result's time is over. Has one parameter, NOW."""
    return (
        f"j.args, j.options, CASE WHEN j.result_until <= coalesce(%s::bigint, {schema}.ferryman_now()) THEN NULL"
        " ELSE j.result END, j.result_until"
    )


def get(schema: str, ids: Sequence[JobId]) -> Requests[list[Job | None]]:
    rows = yield Statement(
        f"SELECT n.place, {_body(schema)}, {_columns(schema)} FROM unnest(%s::uuid[]) WITH ORDINALITY n(id, place)"  # noqa: S608
        f" JOIN {schema}.job j ON j.id = n.id",
        (NOW, list(ids)),
    )
    found: list[Job | None] = [None] * len(ids)
    for place, *row in rows:
        found[place - 1] = _job_with_body(row)
    return found


def find(schema: str, which: Filter, limit: int, before: int | None) -> Requests[list[Job]]:
    rows = yield matching(
        schema,
        which,
        _columns(schema),
        extra="j.seq < %s::bigint" if before is not None else "",
        extra_params=() if before is None else (before,),
        newest_first=True,
        limit=limit,
    )
    return [_job(row) for row in rows]


def history(schema: str, job: JobId) -> Requests[History | None]:
    rows = yield Statement(
        f"SELECT {_body(schema)}, {_columns(schema)}, a.*, n.*,"  # noqa: S608
        f" ARRAY(SELECT encode(uuid_send(parent), 'hex') FROM {schema}.parent WHERE child = j.seq ORDER BY place),"
        f" ARRAY(SELECT encode(uuid_send(c.id), 'hex') FROM {schema}.job c WHERE c.seq IN"
        f" (SELECT p.child FROM {schema}.parent p WHERE p.parent = j.id) ORDER BY c.seq)"
        f" FROM {schema}.job j CROSS JOIN LATERAL ("
        "SELECT array_agg(a.number ORDER BY a.id), array_agg(a.kind ORDER BY a.id), array_agg(w.name ORDER BY a.id),"
        " array_agg(a.started_at ORDER BY a.id), array_agg(a.finished_at ORDER BY a.id),"
        " array_agg(a.error ORDER BY a.id), array_agg(a.reason ORDER BY a.id)"
        f" FROM {schema}.attempt a LEFT JOIN {schema}.worker w ON w.id = a.worker WHERE a.seq = j.seq) a"
        " CROSS JOIN LATERAL ("
        "SELECT array_agg(n.at ORDER BY n.id), array_agg(n.attempt ORDER BY n.id), array_agg(n.text ORDER BY n.id)"
        f" FROM {schema}.note n WHERE n.seq = j.seq) n WHERE j.id = %s::uuid",
        (NOW, job),
    )
    if not rows:
        return None
    (row,) = rows
    attempts, notes, (parents, children) = row[24:31], row[31:34], row[34:]
    return History(
        job=_job_with_body(row[:24]),
        attempts=tuple([attempt_of(attempt) for attempt in _turned(attempts)]),
        notes=tuple([Note(*note) for note in _turned(notes)]),
        parents=tuple(parents),
        children=tuple(children),
    )


def _turned(columns: Sequence[list[Any] | None]) -> list[tuple[Any, ...]]:
    """Arrays of columns, which are null if they would be empty, as rows."""
    return list(zip(*[column or [] for column in columns], strict=True))


def parent_results(schema: str, job: JobId, offset: int, limit: int) -> Requests[list[ParentResult]]:
    rows = yield Statement(
        "SELECT encode(uuid_send(j.id), 'hex'), j.task, j.state,"  # noqa: S608
        f" CASE WHEN j.result_until <= coalesce(%s::bigint, {schema}.ferryman_now()) THEN NULL ELSE j.result END,"
        f" CASE WHEN j.state = 6 THEN (SELECT a.error FROM {schema}.attempt a WHERE a.seq = j.seq"
        " AND a.error IS NOT NULL ORDER BY a.id DESC LIMIT 1) END"
        f" FROM {schema}.parent p JOIN {schema}.job j ON j.id = p.parent"
        f" WHERE p.child = (SELECT seq FROM {schema}.job WHERE id = %s::uuid)"
        " ORDER BY p.place LIMIT %s::bigint OFFSET %s::bigint",
        (NOW, job, limit, offset),
    )
    return [
        ParentResult(id_, task, State(state), result, None if error is None else decode_error(error))
        for id_, task, state, result, error in rows
    ]


def lanes(schema: str) -> Requests[list[LaneCounts]]:
    rows = yield Statement(
        f"SELECT l.queue, l.priority, l.counts, (SELECT j.run_at FROM {schema}.job j WHERE j.state = 2"  # noqa: S608
        " AND j.queue = l.queue AND j.priority = l.priority ORDER BY j.tag, j.seq LIMIT 1)"
        f" FROM {schema}.lane l ORDER BY l.queue, l.priority DESC"
    )
    return [
        LaneCounts(queue, priority, dict(zip(State, counts, strict=True)), oldest)
        for queue, priority, counts, oldest in rows
    ]


def time(schema: str) -> Requests[int]:
    ((now,),) = yield Statement(f"SELECT {schema}.now_or(%s::bigint)", (NOW,))
    return int(now)


def queues(schema: str) -> Requests[list[QueueRecord]]:
    rows = yield Statement(
        "SELECT name, coalesce(q.fair, false), coalesce(q.weights, '{}')::text, q.max_size,"  # noqa: S608
        f" coalesce(q.overflow, 'reject'), coalesce(q.paused, false) FROM {schema}.queue q FULL JOIN"
        f" (SELECT queue AS name FROM {schema}.lane_base UNION SELECT queue FROM {schema}.lane_news) l USING (name)"
        " ORDER BY name"
    )
    return queues_of(rows)


def stats(schema: str, since: int, until: int) -> Requests[list[MinuteStats]]:
    rows = yield Statement(
        "SELECT minute, queue, task, kind, bucket, sum(n)::bigint FROM"  # noqa: S608
        f" (SELECT minute, queue, task, kind, bucket, n FROM {schema}.stat_base"
        " WHERE minute >= %s::bigint AND minute < %s::bigint"
        f" UNION ALL SELECT minute, queue, task, kind, bucket, n FROM {schema}.stat_news"
        " WHERE minute >= %s::bigint AND minute < %s::bigint) s"
        " GROUP BY minute, queue, task, kind, bucket ORDER BY minute, queue, task",
        (since, until, since, until),
    )
    return minute_stats(rows)


def causes(schema: str, which: Filter) -> Requests[list[CauseCount]]:
    dead = matching(
        schema, which, "j.task, coalesce(j.reason, '') AS cause, j.finished_at AS at", among=(State.DEAD,)
    )
    rows = yield Statement(
        "SELECT task, cause, count(*), min(at), max(at)"  # noqa: S608
        f' FROM ({dead.text}) d GROUP BY task, cause ORDER BY count(*) DESC, task, cause COLLATE "C"',
        dead.params,
    )
    return [CauseCount(*row) for row in rows]


def workers(schema: str, alive: bool) -> Requests[list[WorkerRecord]]:
    rows = yield Statement(
        f"SELECT name, info, status, registered_at, seen_at, lease_until, gone FROM {schema}.worker"  # noqa: S608
        " WHERE gone IS NULL OR (gone < 3 AND NOT %s::boolean) ORDER BY id",
        (alive,),
    )
    return workers_of(rows)


def _job_with_body(row: Sequence[Any]) -> Job:
    args, options, result, result_until, *rest = row
    return _job(rest, args=args, options=options, result=result, result_until=result_until)


def _job(row: Sequence[Any], **body: Any) -> Job:
    id_, *rest, tags = row
    return job_of(id_, rest, tuple(tags or ()), **body)
