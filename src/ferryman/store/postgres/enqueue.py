"""Enqueue: a batch of jobs, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import GATE, NOW, Statement
from ferryman.job import JobId, NewJob
from ferryman.store.records import Enqueued
from ferryman.store.refusals import refuse_long_texts
from ferryman.store.rows import flags_of

__all__ = ["enqueue"]

_shape = attrgetter(*[field for field in NewJob.__struct_fields__ if field not in ("id", "args")])
"""What jobs may differ in that are not of one run."""

_encode = msgspec.json.Encoder().encode


def enqueue(schema: str, jobs: Sequence[NewJob], *, defer: bool = False) -> Requests[list[Enqueued]]:
    """`defer`: in a transaction of the user's, what jobs ask of rows that others share is left for the next claim."""
    if not jobs:
        return []
    # The place of each job's first mention: the later ones are duplicates of it.
    first: dict[JobId, int] = {}
    for job in jobs:
        first.setdefault(job.id, len(first))
    fresh = jobs if len(first) == len(jobs) else _first_mentions(jobs)
    if _is_plain(fresh[0]) and _is_run(fresh):
        refuse_long_texts(fresh[:1])
        rows = yield _ask_run(schema, fresh, defer)
    else:
        refuse_long_texts(fresh)
        rows = yield _ask_any(schema, fresh, first, defer)
    if not rows and fresh is jobs:
        return [Enqueued(job.id) for job in jobs]
    answers = [Enqueued(job.id) for job in fresh]
    for place, holder in rows:
        answers[place - 1] = Enqueued(JobId(holder), duplicate=True)
    return answers if fresh is jobs else _answer_each(jobs, first, answers)


def _first_mentions(jobs: Sequence[NewJob]) -> list[NewJob]:
    seen: dict[JobId, NewJob] = {}
    for job in jobs:
        seen.setdefault(job.id, job)
    return list(seen.values())


def _answer_each(
    jobs: Sequence[NewJob], first: dict[JobId, int], answers: Sequence[Enqueued]
) -> list[Enqueued]:
    """Answers for jobs some of which were named more than once."""
    named: set[JobId] = set()
    each: list[Enqueued] = []
    for job in jobs:
        answer = answers[first[job.id]]
        # One that is a duplicate of another job by its unique key is so each time.
        each.append(Enqueued(answer.id, duplicate=True) if job.id in named else answer)
        named.add(job.id)
    return each


# -- jobs that differ in ids and arguments alone -----------------------------------------------------


def _is_plain(job: NewJob) -> bool:
    return job.key is None and job.unique is None and not job.after


def _is_run(jobs: Sequence[NewJob]) -> bool:
    if len(jobs) == 1:
        return True
    shape = _shape(jobs[0])
    return all(map(shape.__eq__, map(_shape, jobs)))


def _ask_run(schema: str, jobs: Sequence[NewJob], defer: bool) -> Statement:
    job = jobs[0]
    return Statement(
        f"SELECT place, holder FROM {schema}.enqueue_run(%s::uuid[], %s::bytea[], %s::text, %s::text, %s::smallint,"  # noqa: S608
        " %s::integer, %s::bigint, %s::bigint, %s::bigint, %s::bigint, %s::bytea, %s::text, %s::text[], %s::boolean,"
        " %s::boolean, %s::bigint)",
        (
            [job.id for job in jobs], [job.args for job in jobs], job.task, job.queue, job.priority, job.max_attempts,
            job.delay, job.at, job.ttl, job.deadline, job.options, job.tenant, list(job.tags) if job.tags else None,
            defer, GATE, NOW,
        ),
        None if defer or len(jobs) > 1 else _Alike(_shape(job)),
    )  # fmt: skip


class _Alike(NamedTuple):
    """Single jobs that differ in ids and arguments alone, of callers that know nothing of one another, can be a run."""

    shape: tuple[Any, ...]

    def join(self, statements: Sequence[Statement]) -> Statement | None:
        ids = [statement.params[0][0] for statement in statements]
        if len(set(ids)) < len(ids):
            return None
        text, params, _ = statements[0]
        return Statement(text, (ids, [statement.params[1][0] for statement in statements], *params[2:]))

    def part(
        self, statements: Sequence[Statement], rows: list[tuple[Any, ...]]
    ) -> list[list[tuple[Any, ...]]]:
        parts: list[list[tuple[Any, ...]]] = [[] for _ in statements]
        for place, holder in rows:
            parts[place - 1] = [(1, holder)]
        return parts


# -- any jobs ----------------------------------------------------------------------------------------


def _ask_any(schema: str, jobs: Sequence[NewJob], places: dict[JobId, int], defer: bool) -> Statement:
    uniques = [(place, job.unique) for place, job in enumerate(jobs, 1) if job.unique is not None]
    after = [(place, parent) for place, job in enumerate(jobs, 1) for parent in job.after]
    options = [job.options for job in jobs]
    return Statement(
        f"SELECT place, holder FROM {schema}.enqueue_any(%s::uuid[], %s::bytea[], %s::bytea[], %s::jsonb,"  # noqa: S608
        " %s::integer[], %s::text[], %s::bigint[], %s::integer[], %s::uuid[], %s::integer[], %s::boolean, %s::boolean,"
        " %s::bigint)",
        (
            [job.id for job in jobs], [job.args for job in jobs], options if any(options) else None,
            _encode([_spec(job) for job in jobs]).decode(),
            [place for place, _ in uniques], [unique.key for _, unique in uniques],
            [unique.period for _, unique in uniques],
            [place for place, _ in after], [parent for _, parent in after],
            [places[parent] + 1 if parent in places else None for _, parent in after],
            defer, GATE, NOW,
        ),
    )  # fmt: skip


def _spec(job: NewJob) -> dict[str, Any]:
    """A job as `enqueue_any` wants it, without what comes apart."""
    return {
        "task": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "delay": job.delay,
        "at": job.at,
        "ttl": job.ttl,
        "deadline": job.deadline,
        "key": job.key,
        "room": job.room,
        "flags": flags_of(job),
        "tenant": job.tenant,
        "tags": job.tags or None,
        "parents": bool(job.after),
        "unique": None if job.unique is None else job.unique.key,
    }
