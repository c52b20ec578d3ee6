"""Cargo: jobs packed for another store, and jobs that another store has packed.

What arrives is written table by table, each for all jobs at once. Those that have to ask others (keys, parents, fair
lanes) are written as WAITING and then settled one by one, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query
from ferryman.job import (
    FINISHED,
    PENDING,
    JobId,
    NewJob,
    Note,
    State,
)
from ferryman.store.cargo import MOST_BYTES, Parcel, landed
from ferryman.store.records import Filter
from ferryman.store.rows import FLAG, attempt_of, unique_of
from ferryman.store.sqlite.filters import matching
from ferryman.store.sqlite.finish import cancel_pending, let_go
from ferryman.store.sqlite.ledger import Ledger, ids_param, seqs_param
from ferryman.store.sqlite.places import enter, join_key, take_place
from ferryman.store.sqlite.steer import erase

__all__ = ["forget", "pack", "unpack"]

_encode = msgspec.msgpack.Encoder().encode

# -- packing -----------------------------------------------------------------------------------------

_COLUMNS = """
j.seq, j.id, t.name, l.queue, l.priority, j.state, j.flags, j.attempt, j.max_attempts, j.deaths, j.enqueued_at,
j.run_at, j.started_at, j.finished_at, j.deadline, j.key, coalesce(j.room, 1), j.result_until,
(SELECT name FROM ferryman_worker WHERE id = j.worker), b.args, b.options,
CASE WHEN j.result_until <= ? THEN NULL ELSE b.result END, b.tenant, b.tags, b.unique_key, b.reason, b.progress
"""

_SIZES = "j.seq, length(b.args) + coalesce(length(b.result), 0)"

# Job by job, with their histories, until those before are enough: these may be larger than all else, and long to add up.
_PAGE = """
WITH RECURSIVE page (place, seq, before) AS (
    SELECT 0, json_extract(?1, '$[0][0]'), 0
    UNION ALL
    SELECT place + 1, json_extract(?1, '$[' || (place + 1) || '][0]'), before
        + json_extract(?1, '$[' || place || '][1]')
        + (SELECT coalesce(sum(coalesce(length(error), 0) + coalesce(length(reason), 0)), 0)
            FROM ferryman_attempt a WHERE a.seq = page.seq)
        + (SELECT coalesce(sum(length(text)), 0) FROM ferryman_note n WHERE n.seq = page.seq)
    FROM page WHERE seq IS NOT NULL AND before < ?2
) SELECT seq FROM page WHERE seq IS NOT NULL AND before < ?2
"""

_OF = "WHERE {0} IN (SELECT value FROM json_each(?))"

_ATTEMPTS = f"""
SELECT seq, number, kind, coalesce((SELECT name FROM ferryman_worker WHERE id = a.worker), '?'), started_at,
    finished_at, error, reason
FROM ferryman_attempt a {_OF.format("seq")} ORDER BY id
"""  # noqa: S608
_NOTES = f"SELECT seq, at, attempt, text FROM ferryman_note {_OF.format('seq')} ORDER BY id"  # noqa: S608
_PARENTS = f"SELECT child, parent, done FROM ferryman_parent {_OF.format('child')} ORDER BY child, place"  # noqa: S608
_UNIQUES = f"""
SELECT seq, key, until FROM ferryman_unique_key {_OF.format("seq")} AND (until IS NULL OR until > ?)
"""  # noqa: S608


def pack(
    now: int, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId]
) -> Requests[list[Parcel]]:
    which = Filter(ids=tuple(ids), states=tuple(states))
    sizes = yield matching(which, _SIZES, extra="j.seq > ?", extra_params=(after,), limit=limit)
    page = yield Query(_PAGE, (json.dumps(sizes), MOST_BYTES))
    wanted = seqs_param([seq for (seq,) in page])
    rows = yield Query(
        f"SELECT {_COLUMNS} FROM ferryman_job j JOIN ferryman_body b ON b.seq = j.seq"  # noqa: S608
        " JOIN ferryman_lane l ON l.id = j.lane JOIN ferryman_task t ON t.id = j.task"
        f" {_OF.format('j.seq')} ORDER BY j.seq",
        (now, wanted),
    )
    attempts = _by_seq((yield Query(_ATTEMPTS, (wanted,))))
    notes = _by_seq((yield Query(_NOTES, (wanted,))))
    parents = _by_seq((yield Query(_PARENTS, (wanted,))))
    uniques = {seq: (key, until) for seq, key, until in (yield Query(_UNIQUES, (wanted, now)))}
    return [
        _parcel(
            row,
            uniques.get(row[0]),
            parents.get(row[0], ()),
            attempts=tuple(map(attempt_of, attempts.get(row[0], ()))),
            notes=tuple(Note(*note) for note in notes.get(row[0], ())),
        )
        for row in rows
    ]


def _by_seq(rows: Sequence[Sequence[Any]]) -> dict[int, list[Any]]:
    groups: dict[int, list[Any]] = {}
    for seq, *rest in rows:
        groups.setdefault(seq, []).append(rest)
    return groups


def _parcel(
    row: Sequence[Any], held: tuple[str, int | None] | None, parents: Sequence[Any], **history: Any
) -> Parcel:
    (
        seq, id_, task, queue, priority, state, flags, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
        finished_at, deadline, key, room, result_until, worker, args, options, result, tenant, tags, unique_key, reason,
        progress,
    ) = row  # fmt: skip
    if held is not None and held[0] != unique_key:
        held = None
    until = None if held is None else held[1]
    job = NewJob(
        id=JobId(id_.hex()), task=task, args=args, queue=queue, priority=priority, options=options,
        max_attempts=max_attempts, deadline=deadline, key=key, room=room, ordered=bool(flags & FLAG.ORDERED),
        unique=unique_of(unique_key, flags, until, enqueued_at), after=tuple(JobId(parent.hex()) for parent, _ in parents),
        on_parent_failure="continue" if flags & FLAG.CONTINUE else "hold" if flags & FLAG.HOLD else "cancel",
        tenant=tenant, tags=tuple(json.loads(tags)) if tags else (),
    )  # fmt: skip
    return Parcel(
        seq=seq, job=job, state=State(state), attempt=attempt, deaths=deaths, enqueued_at=enqueued_at, run_at=run_at,
        started_at=started_at, finished_at=finished_at, worker=worker, reason=reason, progress=progress, result=result,
        result_until=result_until, holds=bool(flags & FLAG.HOLDS), holds_unique=held is not None, unique_until=until,
        waits_for=tuple(JobId(parent.hex()) for parent, done in parents if state == State.WAITING and not done),
        **history,
    )  # fmt: skip


# -- unpacking ---------------------------------------------------------------------------------------

_INSERT_JOB = """
INSERT INTO ferryman_job (seq, id, lane, task, state, flags, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
    finished_at, worker, deadline, key, room, rank, result_until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT id FROM ferryman_worker WHERE name = ?), ?, ?, ?, ?, ?)
"""
_INSERT_BODY = """
INSERT INTO ferryman_body (seq, args, options, result, tenant, tags, unique_key, reason, progress)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_ATTEMPT = """
INSERT INTO ferryman_attempt (seq, number, kind, worker, started_at, finished_at, error, reason)
VALUES (?, ?, ?, (SELECT id FROM ferryman_worker WHERE name = ?), ?, ?, ?, ?)
"""
# Names that histories tell, of workers that were never here.
_INSERT_WORKER = """
INSERT INTO ferryman_worker (name, info, status, registered_at, seen_at, lease_until, gone) VALUES (?, x'', x'', 0, 0, 0, 3)
ON CONFLICT (name) DO NOTHING
"""
_INSERT_PARENT = "INSERT INTO ferryman_parent (child, place, parent, done) VALUES (?, ?, ?, ?)"
_TAKE_UNIQUE = """
INSERT INTO ferryman_unique_key (key, seq, id, until) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE
SET seq = excluded.seq, id = excluded.id, until = excluded.until WHERE until <= ?5
"""


class _Arrival(NamedTuple):
    """A parcel and where it goes."""

    seq: int
    parcel: Parcel
    lane: int
    task: int
    state: State
    """In which it is written at first."""

    @property
    def is_settled(self) -> bool:
        return self.state is not State.WAITING


def unpack(now: int, parcels: Sequence[Parcel]) -> Requests[list[bool]]:
    known = yield Query(
        "SELECT n.key FROM json_each(?2) n JOIN ferryman_job j ON j.id = substr(?1, n.key * 16 + 1, 16)",
        ids_param([parcel.job.id for parcel in parcels]),
    )
    seen: set[JobId] = {parcels[place].job.id for (place,) in known}
    answers: list[bool] = []
    fresh: list[Parcel] = []
    for parcel in parcels:
        answers.append(parcel.job.id not in seen)
        if answers[-1]:
            seen.add(parcel.job.id)
            fresh.append(landed(parcel))
    if fresh:
        ledger = Ledger(now)
        arrivals = yield from _place(ledger, fresh)
        yield from _write(now, arrivals)
        for arrival in arrivals:
            ledger.move(arrival.lane, None, arrival.state)
        doomed: list[tuple[_Arrival, str]] = []
        for arrival in arrivals:
            failed = None if arrival.is_settled else (yield from _settle_in(ledger, arrival))
            if failed is not None:
                doomed.append((arrival, failed))
        # Last, since the end of one may reach others of them.
        for arrival, failed in doomed:
            yield from _end(ledger, arrival, failed)
        yield from ledger.close()
    return answers


def _place(ledger: Ledger, parcels: Sequence[Parcel]) -> Requests[list[_Arrival]]:
    """Make lanes, tasks and names of workers that are new, and find the state in which each job is written."""
    names = {parcel.worker for parcel in parcels if parcel.worker is not None}
    names |= {attempt.worker for parcel in parcels for attempt in parcel.attempts}
    yield Many(_INSERT_WORKER, [(name,) for name in sorted(names)])
    ((seq,),) = yield Query("SELECT ifnull(max(seq), 0) FROM ferryman_job")
    lanes: dict[tuple[str, int], int] = {}
    tasks: dict[str, int] = {}
    arrivals: list[_Arrival] = []
    for parcel in parcels:
        job = parcel.job
        lane = lanes.get((job.queue, job.priority))
        if lane is None:
            lane = lanes[job.queue, job.priority] = yield from _lane(job)
        task = tasks.get(job.task)
        if task is None:
            task = tasks[job.task] = yield from _task(job)
        state = parcel.state
        if state in PENDING:
            is_fair = (yield from ledger.lane(lane)).fair
            asks_others = job.key is not None or is_fair or bool(parcel.waits_for)
            state = (
                State.WAITING
                if asks_others
                else State.SCHEDULED
                if parcel.run_at > ledger.now
                else State.READY
            )
        seq += 1
        arrivals.append(_Arrival(seq, parcel, lane, task, state))
    return arrivals


def _lane(job: NewJob) -> Requests[int]:
    ((lane,),) = yield Query(
        "INSERT INTO ferryman_lane (queue, priority) VALUES (?, ?)"
        " ON CONFLICT DO UPDATE SET queue = excluded.queue RETURNING id",
        (job.queue, job.priority),
    )
    yield Query("INSERT INTO ferryman_queue (name) VALUES (?) ON CONFLICT DO NOTHING", (job.queue,))
    return int(lane)


def _task(job: NewJob) -> Requests[int]:
    ((task,),) = yield Query(
        "INSERT INTO ferryman_task (name) VALUES (?) ON CONFLICT DO UPDATE SET name = excluded.name RETURNING id",
        (job.task,),
    )
    return int(task)


def _write(now: int, arrivals: Sequence[_Arrival]) -> Requests[None]:
    for statement, rows in (
        (_INSERT_JOB, [_job_row(arrival) for arrival in arrivals]),
        (_INSERT_BODY, [_body_row(arrival) for arrival in arrivals]),
        (_INSERT_ATTEMPT, [row for arrival in arrivals for row in _attempt_rows(arrival)]),
        (
            "INSERT INTO ferryman_note (seq, at, attempt, text) VALUES (?, ?, ?, ?)",
            [(a.seq, note.at, note.attempt, note.text) for a in arrivals for note in a.parcel.notes],
        ),
        (
            "INSERT INTO ferryman_tag (tag, seq) VALUES (?, ?) ON CONFLICT DO NOTHING",
            [(tag, a.seq) for a in arrivals for tag in a.parcel.job.tags],
        ),
        (_INSERT_PARENT, [row for arrival in arrivals for row in _parent_rows(arrival)]),
        (_TAKE_UNIQUE, [row for arrival in arrivals for row in _unique_rows(now, arrival)]),
    ):
        if rows:
            yield Many(statement, rows)
    first = arrivals[0].seq
    # Those whose parents have ended here already.
    yield Query(
        "UPDATE ferryman_parent SET done = 1 WHERE child >= ?1 AND done = 0 AND EXISTS"  # noqa: S608
        " (SELECT 1 FROM ferryman_job f, ferryman_job j"
        " WHERE f.id = ferryman_parent.parent AND j.seq = ferryman_parent.child"
        f" AND (f.state = 5 OR (f.state > 5 AND j.flags & {FLAG.CONTINUE})))",
        (first,),
    )
    yield Query(
        f"UPDATE ferryman_job SET flags = flags | {FLAG.CHILDREN} WHERE flags & {FLAG.CHILDREN} = 0"  # noqa: S608
        " AND id IN (SELECT parent FROM ferryman_parent WHERE child >= ?)",
        (first,),
    )
    # Children that were here before their parents.
    yield Query(
        f"UPDATE ferryman_job SET flags = flags | {FLAG.CHILDREN} WHERE seq >= ?"  # noqa: S608
        " AND EXISTS (SELECT 1 FROM ferryman_parent p WHERE p.parent = ferryman_job.id)",
        (first,),
    )


def _job_row(arrival: _Arrival) -> tuple[Any, ...]:
    parcel, job = arrival.parcel, arrival.parcel.job
    keyed = job.key is not None
    return (
        arrival.seq, bytes.fromhex(job.id), arrival.lane, arrival.task, int(arrival.state), _flags(parcel),
        parcel.attempt, job.max_attempts, parcel.deaths, parcel.enqueued_at, parcel.run_at, parcel.started_at,
        parcel.finished_at, parcel.worker, job.deadline, job.key, job.room if keyed else None,
        (0 if job.ordered else -job.priority) if keyed else None, parcel.result_until,
    )  # fmt: skip


def _flags(parcel: Parcel) -> int:
    job = parcel.job
    flags = FLAG.ORDERED if job.ordered else 0
    if job.on_parent_failure != "cancel":
        flags |= FLAG.CONTINUE if job.on_parent_failure == "continue" else FLAG.HOLD
    if job.unique is not None and job.unique.period is None:
        flags |= FLAG.UNIQUE if job.unique.until == "finished" else FLAG.UNIQUE_START
    if parcel.result_until is not None and parcel.result is None:
        flags |= FLAG.FORGOTTEN
    return flags


def _body_row(arrival: _Arrival) -> tuple[Any, ...]:
    parcel, job = arrival.parcel, arrival.parcel.job
    return (
        arrival.seq, job.args, job.options, parcel.result, job.tenant, json.dumps(job.tags) if job.tags else None,
        None if job.unique is None else job.unique.key, parcel.reason, parcel.progress,
    )  # fmt: skip


def _attempt_rows(arrival: _Arrival) -> list[tuple[Any, ...]]:
    return [
        (
            arrival.seq, attempt.number, int(attempt.kind), attempt.worker, attempt.started_at, attempt.finished_at,
            None if attempt.error is None else _encode(attempt.error), attempt.reason,
        )
        for attempt in arrival.parcel.attempts
    ]  # fmt: skip


def _parent_rows(arrival: _Arrival) -> list[tuple[Any, ...]]:
    waits_for = arrival.parcel.waits_for
    return [
        (arrival.seq, place, bytes.fromhex(parent), parent not in waits_for)
        for place, parent in enumerate(dict.fromkeys(arrival.parcel.job.after))
    ]


def _unique_rows(now: int, arrival: _Arrival) -> list[tuple[Any, ...]]:
    parcel, unique = arrival.parcel, arrival.parcel.job.unique
    if unique is None or not parcel.holds_unique:
        return []
    return [(unique.key, arrival.seq, bytes.fromhex(parcel.job.id), parcel.unique_until, now)]


def _settle_in(ledger: Ledger, arrival: _Arrival) -> Requests[str | None]:
    """Let a job go as far as it can. Answers a parent that failed, if the job goes down with it."""
    seq, lane, parcel = arrival.seq, arrival.lane, arrival.parcel
    job = parcel.job
    if job.key is not None:
        yield from join_key(ledger, job.key, 1 if job.ordered else job.room)
    waited_for = yield Query(
        "SELECT p.parent, f.state IS NULL OR f.state > 4 FROM ferryman_parent p LEFT JOIN ferryman_job f ON f.id = p.parent"
        " WHERE p.child = ? AND p.done = 0 ORDER BY p.place",
        (seq,),
    )
    ((flags,),) = yield Query("SELECT flags FROM ferryman_job WHERE seq = ?", (seq,))
    failed: list[str] = [parent.hex() for parent, has_failed in waited_for if has_failed]
    if failed and job.on_parent_failure == "cancel":
        return failed[0]
    missing = len(waited_for) - (len(failed) if job.on_parent_failure == "continue" else 0)
    if missing:
        yield Query("UPDATE ferryman_job SET missing = ? WHERE seq = ?", (missing, seq))
    elif parcel.run_at > ledger.now:
        if parcel.holds and job.ordered and job.key is not None and (yield from take_place(job.key)):
            flags |= FLAG.HOLDS
        yield Query("UPDATE ferryman_job SET state = 1, flags = ? WHERE seq = ?", (flags, seq))
        ledger.move(lane, State.WAITING, State.SCHEDULED)
    else:
        yield from enter(ledger, seq, lane, State.WAITING, flags, job.key, run_at=parcel.run_at)
    return None


def _end(ledger: Ledger, arrival: _Arrival, failed: str) -> Requests[None]:
    """Cancel a job whose parent failed, unless another one has taken it along."""
    seq, job = arrival.seq, arrival.parcel.job
    for (flags,) in (yield Query("SELECT flags FROM ferryman_job WHERE seq = ? AND state = 0", (seq,))):
        reason = f"parent {failed} did not succeed"
        cancelled = yield from cancel_pending(
            ledger, seq, bytes.fromhex(job.id), arrival.lane, State.WAITING, flags, job.key, reason
        )
        yield from let_go(ledger, [cancelled])


# -- forgetting --------------------------------------------------------------------------------------


def forget(now: int, ids: Sequence[JobId], states: Sequence[State]) -> Requests[int]:
    if not ids:
        return 0
    ledger = Ledger(now)
    among = (*PENDING, *FINISHED)
    which = Filter(ids=tuple(ids), states=tuple(states))
    rows = yield matching(which, "j.seq, j.id, j.lane, j.state, j.flags, j.key", among=among, limit=len(ids))
    gone: list[Any] = []
    for seq, id_, lane, state, flags, key in rows:
        if state in PENDING:
            # One that was forgotten before may have let it into its key.
            ((state, flags),) = yield Query("SELECT state, flags FROM ferryman_job WHERE seq = ?", (seq,))
            told = flags & ~FLAG.CHILDREN
            yield from let_go(
                ledger, [(yield from cancel_pending(ledger, seq, id_, lane, state, told, key, None))]
            )
            state = State.CANCELLED
        gone.append((seq, id_, lane, state, flags))
    seqs = seqs_param([row[0] for row in gone])
    yield Query("DELETE FROM ferryman_unique_key WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))
    yield from erase(ledger, gone)
    yield from ledger.close()
    return len(gone)
