"""Rows as both SQL stores keep them, and the records that are made of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ferryman.job import Attempt, ErrorInfo, Job, JobId, NewJob, OutcomeKind, State, UniqueKey, WorkerId
from ferryman.store.records import QueueRecord, QueueSettings, WorkerRecord
from ferryman.store.register import record_of

__all__ = ["FLAG", "attempt_of", "decode_error", "flags_of", "job_of", "queues_of", "unique_of", "workers_of"]

decode_error = msgspec.msgpack.Decoder(ErrorInfo).decode


class FLAG:
    """Bits of a job's ``flags``: what it needs beyond the common path."""

    CHILDREN = 1
    """Other jobs wait, or waited, for it."""
    CONTINUE = 2
    HOLD = 4
    """Its `on_parent_failure`; neither bit means ``cancel``."""
    ORDERED = 8
    HOLDS = 16
    """It holds a place of its key."""
    UNIQUE = 32
    """It may hold a unique key that is given back when it finishes."""
    UNIQUE_START = 64
    """It may hold a unique key that is given back when it is claimed."""
    CANCEL_ASKED = 128
    """The worker that runs it has been told to cancel it."""
    FORGOTTEN = 256
    """Its result's time was over, and the result is gone."""
    STAGED = 512
    """It waits to be admitted by the next claim: its parents, key, tag or bound are still to be looked at. On
    PostgreSQL alone."""


def flags_of(job: NewJob) -> int:
    """What a job that is to be stored needs."""
    flags = FLAG.ORDERED if job.ordered else 0
    if job.on_parent_failure == "continue":
        flags |= FLAG.CONTINUE
    elif job.on_parent_failure == "hold":
        flags |= FLAG.HOLD
    if job.unique is not None and job.unique.period is None:
        flags |= FLAG.UNIQUE if job.unique.until == "finished" else FLAG.UNIQUE_START
    return flags


def unique_of(key: str | None, flags: int, until: int | None, enqueued_at: int) -> UniqueKey | None:
    """Of the unique key that a job was enqueued with, its flags, and the end of the key's period, if it holds it still."""
    if key is None:
        return None
    if flags & (FLAG.UNIQUE | FLAG.UNIQUE_START):
        return UniqueKey(key, until="started" if flags & FLAG.UNIQUE_START else "finished")
    # A period that is over is not remembered.
    return UniqueKey(key, period=0 if until is None else max(0, until - enqueued_at))


def job_of(id: JobId, row: Sequence[Any], tags: tuple[str, ...], **body: Any) -> Job:
    """`row` has the columns between the id and the tags, in the order of what follows; `body` is what is not listed."""
    (
        seq, task, queue, priority, state, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
        finished_at, deadline, worker, key, tenant, reason, progress,
    ) = row  # fmt: skip
    return Job(
        id=id, seq=seq, task=task, queue=queue, priority=priority, state=State(state), attempt=attempt,
        max_attempts=max_attempts, deaths=deaths, enqueued_at=enqueued_at, run_at=run_at, started_at=started_at,
        finished_at=finished_at, deadline=deadline, worker=worker, key=key, tenant=tenant, tags=tags, reason=reason,
        progress=progress, **body,
    )  # fmt: skip


def attempt_of(row: Sequence[Any]) -> Attempt:
    """Of number, kind, worker, moments of its start and end, error, reason."""
    number, kind, worker, started_at, finished_at, error, reason = row
    return Attempt(
        number=number, kind=OutcomeKind(kind), worker=WorkerId(worker or "?"), started_at=started_at,
        finished_at=finished_at, error=None if error is None else decode_error(error), reason=reason,
    )  # fmt: skip


def workers_of(rows: Iterable[Sequence[Any]]) -> list[WorkerRecord]:
    """Of name, info, status, registered_at, seen_at, lease_until, gone (NULL: alive, 1: stopped, else dead)."""
    return [
        record_of(name, info, status, times, None if gone is None else "stopped" if gone == 1 else "dead")
        for name, info, status, *times, gone in rows
    ]


def queues_of(rows: Iterable[Sequence[Any]]) -> list[QueueRecord]:
    """Of name, fair, weights (JSON), max_size, overflow, paused."""
    return [
        QueueRecord(
            QueueSettings(
                name=name,
                fair=bool(fair),
                weights=msgspec.json.decode(weights),
                max_size=max_size,
                overflow=overflow,
            ),
            bool(paused),
        )
        for name, fair, weights, max_size, overflow, paused in rows
    ]
