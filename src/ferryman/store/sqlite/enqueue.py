"""Enqueue: a batch of jobs, all or none.

Jobs of no special kind that differ only in their ids and arguments, as those of a bulk enqueue do, go in
by one statement for all of them. The others are looked at one by one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ferryman.errors import QueueFull, UnknownParent
from ferryman.io.operation import Requests
from ferryman.io.sqlite import Conflict, Many, Query
from ferryman.job import FINISHED, JobId, NewJob, State
from ferryman.store.minutes import STAT
from ferryman.store.records import Enqueued
from ferryman.store.rows import FLAG, flags_of
from ferryman.store.sqlite.finish import cancel_pending, let_go
from ferryman.store.sqlite.ledger import Ledger, ids_param
from ferryman.store.sqlite.places import join_key, next_tag, take_place

__all__ = ["enqueue"]

_PLACE = """
SELECT l.id, (SELECT id FROM ferryman_task WHERE name = ?3), (SELECT ifnull(max(seq), 0) + 1 FROM ferryman_job),
    q.fair, q.max_size
FROM (SELECT 1) LEFT JOIN ferryman_lane l ON l.queue = ?1 AND l.priority = ?2
LEFT JOIN ferryman_queue q ON q.name = ?1
"""

_INSERT_JOB = """
INSERT INTO ferryman_job (seq, id, lane, task, state, flags, max_attempts, enqueued_at, run_at, deadline, key, room,
    rank, missing, tag)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_INSERT_BODY = "INSERT INTO ferryman_body (seq, args, options, tenant, tags) VALUES (?, ?, ?, ?, ?)"

# For plain jobs that differ in ids and arguments alone. ?1 first seq, ?2 all ids, ?10 an array with an element for
# each job.
_INSERT_JOBS = """
INSERT INTO ferryman_job (seq, id, lane, task, state, flags, max_attempts, enqueued_at, run_at, deadline)
SELECT ?1 + n.key, substr(?2, n.key * 16 + 1, 16), ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9 FROM json_each(?10) n
"""

# ?2 all arguments, one after the other; ?5 an array of start << 32 | length
_INSERT_BODIES = """
INSERT INTO ferryman_body (seq, args, options, tenant)
SELECT ?1 + n.key, coalesce(substr(?2, n.value >> 32, n.value & 4294967295), x''), ?3, ?4 FROM json_each(?5) n
"""

_PARENT = "SELECT state FROM ferryman_job WHERE id = ?"


class _Place(NamedTuple):
    """Where a run of jobs goes."""

    lane: int | None
    task: int | None
    first_seq: int
    fair: int | None
    max_size: int | None


def enqueue(now: int, jobs: Sequence[NewJob]) -> Requests[list[Enqueued]]:
    ledger = Ledger(now)
    answers: list[Enqueued] = []
    first_seq: int | None = None
    bounded: dict[str, int] = {}
    # Jobs of this batch that are duplicates: their children wait for the job that stands for them.
    stands_for: dict[JobId, JobId] = {}
    for run in _runs(jobs):
        place = yield from _look_up(run[0])
        if first_seq is None:
            first_seq = place.first_seq
        known = len(answers)
        # What a duplicate names is not made for its sake.
        is_new = place.lane is None or place.task is None
        if place.fair or not _is_plain(run[0]) or (is_new and (yield from _is_any_known(run))):
            yield from _enqueue_each(ledger, run, answers, stands_for)
        else:
            try:
                yield from _insert_plain(ledger, run, place)
                answers += [Enqueued(job.id) for job in run]
            except Conflict:
                # Some are known already: this is the second try of a producer that got no answer to the first.
                yield from _enqueue_each(ledger, run, answers, stands_for)
        # Duplicates are answered however full the queue is.
        if place.max_size is not None and not all(answer.duplicate for answer in answers[known:]):
            bounded[run[0].queue] = place.max_size
    yield from ledger.close()
    for queue, max_size in bounded.items():
        yield from _keep_bound(now, queue, max_size, first_seq or 0)
    return answers


def _runs(jobs: Sequence[NewJob]) -> list[list[NewJob]]:
    """Consecutive jobs that differ in nothing but ids and arguments."""
    if len(jobs) == 1:
        return [list(jobs)]
    runs: list[list[NewJob]] = []
    previous: tuple[Any, ...] | None = None
    for job in jobs:
        fields = msgspec.structs.astuple(job)
        shape = (fields[1], fields[3:])
        if shape == previous:
            runs[-1].append(job)
        else:
            runs.append([job])
            previous = shape
    return runs


def _is_plain(job: NewJob) -> bool:
    return not (job.key is not None or job.unique or job.after or job.tags)


def _look_up(job: NewJob) -> Requests[_Place]:
    ((lane, task, seq, fair, max_size),) = yield Query(_PLACE, (job.queue, job.priority, job.task))
    return _Place(lane, task, seq, fair, max_size)


def _settle_in(job: NewJob, place: _Place) -> Requests[tuple[int, int]]:
    """The numbers of the job's lane and task, which are made if they are new."""
    lane, task = place.lane, place.task
    if lane is None:
        ((lane,),) = yield Query(
            "INSERT INTO ferryman_lane (queue, priority) VALUES (?, ?) RETURNING id",
            (job.queue, job.priority),
        )
        yield Query("INSERT INTO ferryman_queue (name) VALUES (?) ON CONFLICT DO NOTHING", (job.queue,))
    if task is None:
        ((task,),) = yield Query("INSERT INTO ferryman_task (name) VALUES (?) RETURNING id", (job.task,))
    return lane, task


def _insert_plain(ledger: Ledger, run: Sequence[NewJob], place: _Place) -> Requests[None]:
    job = run[0]
    lane, task = yield from _settle_in(job, place)
    run_at = _run_at(job, ledger.now)
    state = State.SCHEDULED if run_at > ledger.now else State.READY
    now, deadline = ledger.now, _deadline(job, ledger.now)
    if len(run) == 1:
        values = (lane, task, int(state), 0, job.max_attempts, now, run_at, deadline)
        yield Query(
            _INSERT_JOB,
            (place.first_seq, bytes.fromhex(job.id), *values, None, None, None, None, 0.0),
        )
        yield Query(_INSERT_BODY, (place.first_seq, job.args, job.options, job.tenant, None))
    else:
        ids = bytes.fromhex("".join([job.id for job in run]))
        starts = list(itertools.accumulate([len(job.args) for job in run], initial=1))
        spans = str([start << 32 | len(job.args) for start, job in zip(starts, run, strict=False)])
        seq = place.first_seq
        yield Query(
            _INSERT_JOBS,
            (seq, ids, lane, task, int(state), job.max_attempts, now, run_at, deadline, spans),
        )
        yield Query(
            _INSERT_BODIES, (seq, b"".join([job.args for job in run]), job.options, job.tenant, spans)
        )
    ledger.move(lane, None, state, len(run))
    ledger.note(lane, task, STAT.ENQUEUED, count=len(run))


def _run_at(job: NewJob, now: int) -> int:
    return now + job.delay if job.at is None else max(job.at, now)


def _deadline(job: NewJob, now: int) -> int | None:
    return job.deadline if job.ttl is None else now + job.ttl


# -- one by one ------------------------------------------------------------------------------------


def _enqueue_each(
    ledger: Ledger, jobs: Sequence[NewJob], answers: list[Enqueued], stands_for: dict[JobId, JobId]
) -> Requests[None]:
    for job in jobs:
        if job.after:
            after = tuple([stands_for.get(parent, parent) for parent in job.after])
            job = msgspec.structs.replace(job, after=after)
        answer = yield from _enqueue_one(ledger, job)
        if answer.id != job.id:
            stands_for[job.id] = answer.id
        answers.append(answer)


def _enqueue_one(ledger: Ledger, job: NewJob) -> Requests[Enqueued]:
    holder = yield from _known(ledger, job)
    if holder is not None:
        return Enqueued(holder, duplicate=True)
    missing, failed_parent = yield from _look_at_parents(job)
    place = yield from _look_up(job)
    lane, task = yield from _settle_in(job, place)
    seq = place.first_seq
    run_at = _run_at(job, ledger.now)
    flags = flags_of(job)
    tag = 0.0
    if failed_parent is not None or missing:
        state = State.WAITING
    elif run_at > ledger.now:
        state = State.SCHEDULED
    else:
        state = State.READY
    if job.key is not None:
        yield from join_key(ledger, job.key, 1 if job.ordered else job.room)
        if state is State.READY:
            if (yield from take_place(job.key)):
                flags |= FLAG.HOLDS
            else:
                state = State.PARKED
    if place.fair and state is State.READY:
        tag = yield from next_tag((yield from ledger.lane(lane)), job.tenant)
    yield Query(
        _INSERT_JOB,
        (
            seq, bytes.fromhex(job.id), lane, task, int(state), flags, job.max_attempts, ledger.now,
            run_at, _deadline(job, ledger.now), job.key, None if job.key is None else job.room,
            None if job.key is None else _rank(job), missing or None, tag,
        ),
    )  # fmt: skip
    tags = json.dumps(job.tags) if job.tags else None
    yield Query(_INSERT_BODY, (seq, job.args, job.options, job.tenant, tags))
    ledger.move(lane, None, state)
    ledger.note(lane, task, STAT.ENQUEUED)
    yield from _remember(ledger, job, seq)
    if failed_parent is not None:
        reason = f"parent {failed_parent} did not succeed"
        id_ = bytes.fromhex(job.id)
        yield from let_go(
            ledger,
            [(yield from cancel_pending(ledger, seq, id_, lane, state, flags, job.key, reason))],
        )
    return Enqueued(job.id)


def _known(ledger: Ledger, job: NewJob) -> Requests[JobId | None]:
    """The job that stands for this one already, by id or by unique key."""
    id_ = bytes.fromhex(job.id)
    if (yield Query("SELECT 1 FROM ferryman_job WHERE id = ?", (id_,))):
        return job.id
    if job.unique is None:
        return None
    held = yield Query(
        "SELECT id FROM ferryman_unique_key WHERE key = ? AND (until IS NULL OR until > ?)",
        (job.unique.key, ledger.now),
    )
    return JobId(held[0][0].hex()) if held else None


def _look_at_parents(job: NewJob) -> Requests[tuple[int, JobId | None]]:
    """How many parents are still to finish, and one that failed and takes the job with it."""
    missing = 0
    failed: JobId | None = None
    for parent in job.after:
        found = yield Query(_PARENT, (bytes.fromhex(parent),))
        if not found:
            raise UnknownParent(
                f"job {job.id} ({job.task}) is to wait for job {parent}, which the store does not have; "
                "it was never enqueued, or its retention has passed"
            )
        state = State(found[0][0])
        if state not in FINISHED:
            missing += 1
        elif state is not State.SUCCEEDED:
            if job.on_parent_failure == "cancel":
                failed = failed or parent
            elif job.on_parent_failure == "hold":
                missing += 1
    return missing, failed


def _remember(ledger: Ledger, job: NewJob, seq: int) -> Requests[None]:
    """What other tables know of a job."""
    if job.after:
        marks = bytes.fromhex("".join(job.after)), ids_param(job.after)[1]
        yield Query(
            "INSERT INTO ferryman_parent (child, place, parent, done)"
            " SELECT ?3, n.key, j.id, j.state = 5 OR (j.state > 5 AND ?4) FROM json_each(?2) n"
            " CROSS JOIN ferryman_job j ON j.id = substr(?1, n.key * 16 + 1, 16)",
            (*marks, seq, job.on_parent_failure == "continue"),
        )
        yield Query(
            "UPDATE ferryman_job SET flags = flags | ?3 WHERE id IN"
            " (SELECT substr(?1, n.key * 16 + 1, 16) FROM json_each(?2) n)",
            (*marks, FLAG.CHILDREN),
        )
    if job.unique is not None:
        yield Query("UPDATE ferryman_body SET unique_key = ? WHERE seq = ?", (job.unique.key, seq))
        until = None if job.unique.period is None else ledger.now + job.unique.period
        yield Query(
            "INSERT INTO ferryman_unique_key (key, seq, id, until) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET seq = excluded.seq, id = excluded.id, until = excluded.until",
            (job.unique.key, seq, bytes.fromhex(job.id), until),
        )
    if job.tags:
        yield Many(
            "INSERT INTO ferryman_tag (tag, seq) VALUES (?, ?) ON CONFLICT DO NOTHING",
            [(tag, seq) for tag in job.tags],
        )


def _rank(job: NewJob) -> int:
    return 0 if job.ordered else -job.priority


# -- bounds ----------------------------------------------------------------------------------------


def _keep_bound(now: int, queue: str, max_size: int, first_seq: int) -> Requests[None]:
    """Now that the batch is in, refuse it if the queue is too full, or drop older jobs, as the queue's rule says.

    Looking afterwards counts exactly those that take a place: no duplicates, none that were born cancelled.
    """
    excess = (yield from _count_pending(queue)) - max_size
    if excess <= 0:
        return
    ((overflow,),) = yield Query("SELECT overflow FROM ferryman_queue WHERE name = ?", (queue,))
    seqs = (yield from _oldest(queue, first_seq, excess)) if overflow == "drop_oldest" else []
    if len(seqs) < excess:
        raise QueueFull(queue, max_size)
    for seq in seqs:
        # One that was dropped may have taken its children along, or have let in others that come after it.
        for job in (yield Query(_PENDING, (seq,))):
            yield from _drop(now, queue, job)
            if (yield from _count_pending(queue)) <= max_size:
                return


def _count_pending(queue: str) -> Requests[int]:
    ((pending,),) = yield Query(
        "SELECT ifnull(sum(waiting + scheduled + ready + parked), 0) FROM ferryman_lane WHERE queue = ?",
        (queue,),
    )
    return int(pending)


def _drop(now: int, queue: str, job: tuple[int, bytes, int, int, int, str | None]) -> Requests[None]:
    ledger = Ledger(now)
    seq, id_, lane, state, flags, key = job
    reason = f"dropped: queue {queue} was full"
    yield from let_go(
        ledger, [(yield from cancel_pending(ledger, seq, id_, lane, state, flags, key, reason))]
    )
    yield from ledger.close()


_PENDING = "SELECT seq, id, lane, state, flags, key FROM ferryman_job WHERE seq = ? AND state < 4"

_OLDEST = """
SELECT seq FROM ferryman_job INDEXED BY {index}
WHERE state = {state} AND lane = ?1 AND seq < ?2 {more} ORDER BY seq LIMIT ?3
"""

# One for each state, by the index of that state. Ready jobs of a queue that is not fair lie in order of arrival.
_OLDEST_IN_LANE = [
    _OLDEST.format(index=index, state=int(state), more=more)
    for state, index, more in (
        (State.WAITING, "ferryman_job_waiting", ""),
        (State.SCHEDULED, "ferryman_job_scheduled", ""),
        (State.READY, "ferryman_job_ready", "AND tag = 0"),
        (State.READY, "ferryman_job_ready", "AND tag > 0"),
        (State.PARKED, "ferryman_job_parked", ""),
    )
]


def _oldest(queue: str, first_seq: int, count: int) -> Requests[list[int]]:
    """The oldest pending jobs of a queue that arrived before this batch, in their order."""
    seqs: list[int] = []
    for (lane,) in (yield Query("SELECT id FROM ferryman_lane WHERE queue = ?", (queue,))):
        for query in _OLDEST_IN_LANE:
            seqs += [seq for (seq,) in (yield Query(query, (lane, first_seq, count)))]
    return sorted(seqs)[:count]


def _is_any_known(jobs: Sequence[NewJob]) -> Requests[bool]:
    ((known,),) = yield Query(
        "SELECT EXISTS (SELECT 1 FROM json_each(?2) n JOIN ferryman_job j ON j.id = substr(?1, n.key * 16 + 1, 16))",
        ids_param([job.id for job in jobs]),
    )
    return bool(known)
