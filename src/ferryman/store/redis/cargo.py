"""Cargo: jobs packed for another store, and jobs that another store has packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.job import Attempt, ErrorInfo, JobId, NewJob, Note, OutcomeKind, State, UniqueKey, WorkerId
from ferryman.store.cargo import MOST_BYTES, Parcel, landed
from ferryman.store.records import Filter
from ferryman.store.redis.record import KIND, as_text, same_for_all

__all__ = ["forget", "pack", "unpack"]


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What `lua/cargo.lua` knows of a job, without its body, result and history."""

    id: JobId
    seq: int
    task: str
    queue: str
    priority: int
    kind: int
    state: State
    attempt: int
    max_attempts: int
    deaths: int
    enqueued_at: int
    run_at: int
    started_at: int | None = None
    finished_at: int | None = None
    deadline: int | None = None
    worker: WorkerId | None = None
    tenant: str | None = None
    tags: tuple[str, ...] = ()
    reason: str | None = None
    room: int = 1
    progress: float | None = None
    result_until: int | None = None
    unique: str | None = None
    period: int | None = None
    holds: bool = False
    held: bool = False
    ends: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_facts = msgspec.msgpack.Decoder(_Facts).decode
_decode_body = msgspec.msgpack.Decoder(tuple[bytes, bytes | None, str | None]).decode
_decode_attempt = msgspec.msgpack.Decoder(
    tuple[int, OutcomeKind, WorkerId, int, int, ErrorInfo | None, str | None]
).decode
_decode_note = msgspec.msgpack.Decoder(tuple[int, int, str]).decode

_ARRAY_OF_THREE = b"\x93"


def pack(states: Sequence[State], after: int, limit: int, ids: Sequence[JobId]) -> Requests[list[Parcel]]:
    which = _encode(Filter(ids=tuple(ids), states=tuple(states)))
    # A spot begins with the number of arrival, and a colon, which is before a semicolon.
    start = b"%011x;" % max(0, after)
    parcels: list[Parcel] = []
    size = 0
    while True:
        asked = (which, limit - len(parcels), start, MOST_BYTES - size)
        start, *rows = yield Call("pack", asked, writes=False)
        parcels += [_parcel(row) for row in rows]
        size = sum(parcel.size for parcel in parcels)
        if not start or len(parcels) >= limit or size >= MOST_BYTES:
            return parcels


def _parcel(row: Sequence[Any]) -> Parcel:
    packed, body, result, parents, waits_for, attempts, notes = row
    facts = _decode_facts(packed)
    args, options, key = _decode_body(_ARRAY_OF_THREE + body)
    job = NewJob(
        id=facts.id, task=facts.task, args=args, queue=facts.queue, priority=facts.priority, options=options,
        max_attempts=facts.max_attempts, deadline=facts.deadline, key=key, room=facts.room,
        ordered=bool(facts.kind & KIND.ORDERED), unique=_unique(facts), after=_ids(parents),
        on_parent_failure="continue" if facts.kind & KIND.CONTINUE else "hold" if facts.kind & KIND.HOLD else "cancel",
        tenant=facts.tenant, tags=facts.tags,
    )  # fmt: skip
    return Parcel(
        seq=facts.seq, job=job, state=facts.state, attempt=facts.attempt, deaths=facts.deaths,
        enqueued_at=facts.enqueued_at, run_at=facts.run_at, started_at=facts.started_at,
        finished_at=facts.finished_at, worker=facts.worker, reason=facts.reason, progress=facts.progress,
        result=result, result_until=facts.result_until, holds=facts.holds, holds_unique=facts.held,
        unique_until=facts.ends, waits_for=_ids(waits_for), attempts=tuple([_attempt(one) for one in attempts]),
        notes=tuple([Note(*_decode_note(note)) for note in notes]),
    )  # fmt: skip


def _ids(names: Sequence[bytes]) -> tuple[JobId, ...]:
    return tuple([JobId(name.decode()) for name in names])


def _unique(facts: _Facts) -> UniqueKey | None:
    if facts.unique is None:
        return None
    until_started = bool(facts.kind & KIND.UNIQUE_START)
    return UniqueKey(facts.unique, facts.period, "started" if until_started else "finished")


def _attempt(packed: bytes) -> Attempt:
    number, kind, worker, started_at, finished_at, error, reason = _decode_attempt(packed)
    return Attempt(
        number=number, kind=kind, worker=worker, started_at=started_at, finished_at=finished_at, error=error,
        reason=reason,
    )  # fmt: skip


def unpack(parcels: Sequence[Parcel]) -> Requests[list[bool]]:
    if not parcels:
        return []
    cargo: list[bytes | str] = []
    for parcel in map(landed, parcels):
        cargo += (_encode(_spec(parcel)), parcel.job.args, parcel.result or b"")
    answer = yield Call("unpack", tuple(cargo))
    return [bool(is_new) for is_new in answer]


def _spec(parcel: Parcel) -> dict[str, Any]:
    """A job as the function ``unpack`` takes it; what it does not have is left out."""
    job = parcel.job
    spec: dict[str, Any] = {
        **same_for_all(job),
        "id": job.id, "state": int(parcel.state), "attempt": parcel.attempt, "deaths": parcel.deaths,
        "enqueued_at": parcel.enqueued_at, "run_at": parcel.run_at, "started_at": parcel.started_at,
        "finished_at": parcel.finished_at, "worker": parcel.worker, "reason": parcel.reason,
        "progress": parcel.progress, "has_result": parcel.result is not None, "result_until": parcel.result_until,
        "holds": parcel.holds, "held": parcel.holds_unique and job.unique is not None,
        "unique": None if job.unique is None else job.unique.key, "ends": parcel.unique_until,
        "waits": parcel.waits_for, "attempts": [as_text(_encode(_row(attempt))) for attempt in parcel.attempts],
        "notes": [as_text(_encode((note.at, note.attempt, note.text))) for note in parcel.notes],
    }  # fmt: skip
    return {name: value for name, value in spec.items() if value is not None}


def _row(attempt: Attempt) -> tuple[Any, ...]:
    return (
        attempt.number, attempt.kind, attempt.worker, attempt.started_at, attempt.finished_at, attempt.error,
        attempt.reason,
    )  # fmt: skip


def forget(ids: Sequence[JobId], states: Sequence[State]) -> Requests[int]:
    if not ids:
        return 0
    return int((yield Call("forget", (_encode(tuple(states)), *dict.fromkeys(ids)))))
