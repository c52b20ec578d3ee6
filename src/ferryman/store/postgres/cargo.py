"""Cargo: jobs packed for another store, and jobs that another store has packed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, Statement
from ferryman.job import JobId, NewJob, Note, State
from ferryman.store.cargo import MOST_BYTES, Parcel, landed
from ferryman.store.refusals import refuse_long_texts
from ferryman.store.rows import FLAG, attempt_of, unique_of

__all__ = ["forget", "pack", "unpack"]

_encode = msgspec.msgpack.Encoder().encode

# -- packing -----------------------------------------------------------------------------------------

_PACK = """
SELECT
    j.seq, encode(uuid_send(j.id), 'hex'), j.task, j.queue, j.priority, j.state, j.flags, j.attempt, j.max_attempts, j.deaths,
    j.enqueued_at, j.run_at, j.started_at, j.finished_at, j.deadline, j.key, coalesce(j.room, 1), j.result_until,
    (SELECT name FROM {schema}.worker WHERE id = j.worker), j.args, j.options,
    CASE WHEN j.result_until <= coalesce(%s::bigint, {schema}.ferryman_now()) THEN NULL ELSE j.result END,
    j.tenant, j.tags, j.unique_key, j.reason, j.progress, u.key IS NOT NULL, u.until,
    ARRAY(SELECT encode(uuid_send(p.parent), 'hex') FROM {schema}.parent p WHERE p.child = j.seq ORDER BY p.place),
    ARRAY(SELECT p.done FROM {schema}.parent p WHERE p.child = j.seq ORDER BY p.place), a.*, n.*
FROM {schema}.cargo_page(%s::smallint[], %s::uuid[], %s::bigint, %s::bigint, %s::bigint) c(seq)
JOIN {schema}.job j ON j.seq = c.seq
LEFT JOIN {schema}.unique_key u ON u.key = j.unique_key AND u.id = j.id
    AND (u.until IS NULL OR u.until > coalesce(%s::bigint, {schema}.ferryman_now()))
CROSS JOIN LATERAL (
    SELECT
        array_agg(a.number ORDER BY a.id), array_agg(a.kind ORDER BY a.id), array_agg(coalesce(w.name, '?') ORDER BY a.id),
        array_agg(a.started_at ORDER BY a.id), array_agg(a.finished_at ORDER BY a.id), array_agg(a.error ORDER BY a.id),
        array_agg(a.reason ORDER BY a.id)
    FROM {schema}.attempt a LEFT JOIN {schema}.worker w ON w.id = a.worker WHERE a.seq = j.seq
) a CROSS JOIN LATERAL (
    SELECT array_agg(n.at ORDER BY n.id), array_agg(n.attempt ORDER BY n.id), array_agg(n.text ORDER BY n.id)
    FROM {schema}.note n WHERE n.seq = j.seq
) n ORDER BY j.seq
"""


def pack(
    schema: str, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId]
) -> Requests[list[Parcel]]:
    asked = ([int(state) for state in states] or None, list(ids) or None, after, limit, MOST_BYTES)
    rows = yield Statement(_PACK.format(schema=schema), (NOW, *asked, NOW))
    return [_parcel(row) for row in rows]


def _parcel(row: Sequence[Any]) -> Parcel:
    (
        seq, id_, task, queue, priority, state, flags, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
        finished_at, deadline, key, room, result_until, worker, args, options, result, tenant, tags, unique_key, reason,
        progress, held, until, parents, done,
    ) = row[:31]  # fmt: skip
    job = NewJob(
        id=id_, task=task, args=args, queue=queue, priority=priority, options=options, max_attempts=max_attempts,
        deadline=deadline, key=key, room=room, ordered=bool(flags & FLAG.ORDERED),
        unique=unique_of(unique_key, flags, until, enqueued_at), after=tuple(parents),
        on_parent_failure="continue" if flags & FLAG.CONTINUE else "hold" if flags & FLAG.HOLD else "cancel",
        tenant=tenant, tags=tuple(tags or ()),
    )  # fmt: skip
    waits_for = [parent for parent, is_done in zip(parents, done, strict=True) if not is_done]
    return Parcel(
        seq=seq, job=job, state=State(state), attempt=attempt, deaths=deaths, enqueued_at=enqueued_at, run_at=run_at,
        started_at=started_at, finished_at=finished_at, worker=worker, reason=reason, progress=progress, result=result,
        result_until=result_until, holds=bool(flags & FLAG.HOLDS), holds_unique=held, unique_until=until,
        waits_for=tuple(waits_for) if state == State.WAITING else (),
        attempts=tuple([attempt_of(columns) for columns in _turned(row[31:38])]),
        notes=tuple([Note(*columns) for columns in _turned(row[38:41])]),
    )  # fmt: skip


def _turned(columns: Sequence[list[Any] | None]) -> list[tuple[Any, ...]]:
    """Arrays of columns, which are null if they would be empty, as rows."""
    return list(zip(*[column or [] for column in columns], strict=True))


# -- unpacking ---------------------------------------------------------------------------------------


def unpack(schema: str, parcels: Sequence[Parcel]) -> Requests[list[bool]]:
    if not parcels:
        return []
    first: dict[JobId, Parcel] = {}
    for parcel in parcels:
        first.setdefault(parcel.job.id, landed(parcel))
    fresh = list(first.values())
    refuse_long_texts(parcel.job for parcel in fresh)
    rows = yield Statement(
        f"SELECT place FROM {schema}.unpack(%s::uuid[], %s::bytea[], %s::bytea[], %s::bytea[], %s::jsonb, %s::boolean[],"  # noqa: S608
        " %s::jsonb, %s::bytea[], %s::jsonb, %s::text[], %s::integer[], %s::uuid[], %s::boolean[], %s::bigint)",
        (*_columns(fresh), *_histories(fresh), *_parents(fresh), NOW),
    )
    new = {fresh[place - 1].job.id for (place,) in rows}
    answers: list[bool] = []
    for parcel in parcels:
        answers.append(parcel.job.id in new)
        # Twice in one batch: the first one was new.
        new.discard(parcel.job.id)
    return answers


def _columns(parcels: Sequence[Parcel]) -> tuple[Any, ...]:
    return (
        [parcel.job.id for parcel in parcels],
        [parcel.job.args for parcel in parcels],
        [parcel.job.options for parcel in parcels],
        [parcel.result for parcel in parcels],
        json.dumps([_spec(parcel) for parcel in parcels]),
        [parcel.holds and parcel.state is State.SCHEDULED for parcel in parcels],
    )


def _spec(parcel: Parcel) -> dict[str, Any]:
    job = parcel.job
    return {
        "task": job.task, "queue": job.queue, "priority": job.priority, "max_attempts": job.max_attempts,
        "state": int(parcel.state), "attempt": parcel.attempt, "deaths": parcel.deaths,
        "enqueued_at": parcel.enqueued_at, "run_at": parcel.run_at, "started_at": parcel.started_at,
        "finished_at": parcel.finished_at, "deadline": job.deadline, "result_until": parcel.result_until,
        "worker": parcel.worker, "reason": _text(parcel.reason), "progress": parcel.progress, "key": job.key,
        "room": job.room, "flags": _flags(parcel), "tenant": job.tenant, "tags": job.tags or None,
        "waits": bool(parcel.waits_for), "unique": None if job.unique is None else job.unique.key,
        "held": job.unique is not None and parcel.holds_unique, "unique_until": parcel.unique_until,
    }  # fmt: skip


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


def _histories(parcels: Sequence[Parcel]) -> tuple[Any, ...]:
    attempts = [(place, attempt) for place, parcel in enumerate(parcels, 1) for attempt in parcel.attempts]
    notes = [(place, note) for place, parcel in enumerate(parcels, 1) for note in parcel.notes]
    names = {parcel.worker for parcel in parcels if parcel.worker is not None}
    names |= {attempt.worker for _, attempt in attempts}
    return (
        json.dumps(
            [
                {
                    "place": place, "number": attempt.number, "kind": int(attempt.kind), "worker": attempt.worker,
                    "started_at": attempt.started_at, "finished_at": attempt.finished_at, "reason": _text(attempt.reason),
                }
                for place, attempt in attempts
            ]
        ),
        [None if attempt.error is None else _encode(attempt.error) for _, attempt in attempts],
        json.dumps(
            [
                {"place": place, "at": note.at, "attempt": note.attempt, "text": _text(note.text)}
                for place, note in notes
            ]
        ),
        sorted(names),
    )  # fmt: skip


def _text(text: str | None) -> str | None:
    """PostgreSQL cannot keep NUL in a text, which other stores can."""
    return None if text is None else text.replace("\0", "\ufffd")


def _parents(parcels: Sequence[Parcel]) -> tuple[Any, ...]:
    named = [(place, parcel, id_) for place, parcel in enumerate(parcels, 1) for id_ in parcel.job.after]
    return (
        [place for place, _, _ in named],
        [id_ for _, _, id_ in named],
        [id_ not in parcel.waits_for for _, parcel, id_ in named],
    )


# -- forgetting --------------------------------------------------------------------------------------


def forget(schema: str, ids: Sequence[JobId], states: Sequence[State]) -> Requests[int]:
    if not ids:
        return 0
    ((count,),) = yield Statement(
        f"SELECT {schema}.forget(%s::uuid[], %s::integer[], %s::bigint)",
        (list(ids), [int(state) for state in states], NOW),
    )
    return int(count)
