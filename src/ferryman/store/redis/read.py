"""What people look at. Nothing here writes.

Searches go on in further calls as long as one has not reached the end: each looks at some thousand jobs, and jobs that
change in between are met as they are then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.job import Attempt, ErrorInfo, History, Job, JobId, Note, OutcomeKind, State, WorkerId
from ferryman.store.records import (
    CauseCount,
    Filter,
    LaneCounts,
    MinuteStats,
    ParentResult,
    QueueRecord,
    QueueSettings,
    WorkerRecord,
)
from ferryman.store.register import record_of

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


class _Attempt(NamedTuple):
    """An attempt as the store keeps it."""

    number: int
    kind: OutcomeKind
    worker: WorkerId
    started_at: int
    finished_at: int
    error: ErrorInfo | None
    reason: str | None


_encode = msgspec.msgpack.Encoder().encode
_decode_job = msgspec.msgpack.Decoder(Job).decode
_decode_body = msgspec.msgpack.Decoder(tuple[bytes, bytes | None, str | None]).decode
_decode_attempt = msgspec.msgpack.Decoder(_Attempt).decode
_decode_note = msgspec.msgpack.Decoder(tuple[int, int, str]).decode
_decode_settings = msgspec.msgpack.Decoder(QueueSettings).decode

_ARRAY_OF_THREE = b"\x93"


# -- jobs ------------------------------------------------------------------------------------------


def get(ids: Sequence[JobId]) -> Requests[list[Job | None]]:
    rows = yield Call("get", (_encode(ids),), writes=False)
    return [None if row is None else _job_in_full(row) for row in rows]


def find(which: Filter, limit: int, before: int | None) -> Requests[list[Job]]:
    asked = _encode(which)
    # A place begins with the number of arrival, in hexadecimal digits.
    start = b"" if before is None else b"%011x" % max(0, before)
    found: list[Job] = []
    while True:
        start, *rows = yield Call("find", (asked, limit - len(found), start), writes=False)
        found += map(_decode_job, rows)
        if not start or len(found) >= limit:
            return found


def history(job: JobId) -> Requests[History | None]:
    answer = yield Call("history", (job,), writes=False)
    if answer is None:
        return None
    row, attempts, notes, parents, children = answer
    return History(
        job=_job_in_full(row),
        attempts=tuple(Attempt(**_decode_attempt(attempt)._asdict()) for attempt in attempts),
        notes=tuple(Note(*_decode_note(note)) for note in notes),
        parents=tuple(JobId(parent.decode()) for parent in parents),
        children=tuple(JobId(child.decode()) for child in children),
    )


def parent_results(job: JobId, offset: int, limit: int) -> Requests[list[ParentResult]]:
    rows = yield Call("parent_results", (job, offset, limit), writes=False)
    return [
        ParentResult(
            JobId(id_.decode()), task.decode(), State(state), result,
            None if failure is None else _decode_attempt(failure).error,
        )
        for id_, task, state, result, failure in rows
    ]  # fmt: skip


def causes(which: Filter) -> Requests[list[CauseCount]]:
    asked, start = _encode(which), b""
    groups: dict[tuple[str, str], tuple[int, int, int]] = {}
    while True:
        start, *rows = yield Call("causes", (asked, start), writes=False)
        for task, cause, count, first, last in rows:
            name = (task.decode(), cause.decode())
            known = groups.get(name, (0, first, last))
            groups[name] = (known[0] + count, min(known[1], first), max(known[2], last))
        if not start:
            break
    counts = [CauseCount(*name, *numbers) for name, numbers in groups.items()]
    return sorted(counts, key=lambda group: (-group.count, group.task, group.cause))


# -- queues, workers, statistics -------------------------------------------------------------------


def lanes() -> Requests[list[LaneCounts]]:
    rows = yield Call("lanes", writes=False)
    found: list[LaneCounts] = []
    for name, *counts, oldest in rows:
        queue, _, priority = name.decode().rpartition(":")
        by_state = dict(zip(State, counts, strict=True))
        found.append(LaneCounts(queue, int(priority), by_state, None if oldest < 0 else oldest))
    return sorted(found, key=lambda lane: (lane.queue, -lane.priority))


def time() -> Requests[int]:
    return int((yield Call("time", writes=False)))


def queues() -> Requests[list[QueueRecord]]:
    known, paused = yield Call("queues", writes=False)
    records: list[QueueRecord] = []
    for name, settings in zip(known[::2], known[1::2], strict=True):
        told = _decode_settings(settings) if settings else QueueSettings(name=name.decode())
        records.append(QueueRecord(told, name in paused))
    return sorted(records, key=lambda record: record.settings.name)


def stats(since: int, until: int) -> Requests[list[MinuteStats]]:
    found: list[MinuteStats] = []
    while rows := (yield Call("stats", (since, until), writes=False)):
        for minute, numbers in rows:
            found += _stats_of(minute, numbers)
        since = rows[-1][0] + 1
    return found


def _stats_of(minute: int, numbers: Sequence[bytes]) -> list[MinuteStats]:
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, number in zip(numbers[::2], numbers[1::2], strict=True):
        kind, bucket, size, names = name.split(b" ", 3)
        queue, task = names[: int(size)].decode(), names[int(size) + 1 :].decode()
        group = groups.setdefault((queue, task), {"waited": {}, "ran": {}})
        if kind in (b"waited", b"ran"):
            group[kind.decode()][int(bucket)] = int(number)
        else:
            group[kind.decode()] = int(number)
    return [
        MinuteStats(minute=minute, queue=queue, task=task, **group)
        for (queue, task), group in sorted(groups.items(), key=lambda entry: entry[0])
    ]


def workers(alive: bool) -> Requests[list[WorkerRecord]]:
    rows = yield Call("workers", ("alive" if alive else "",), writes=False)
    return [
        record_of(id_.decode(), info, status, list(map(int, times)), None if gone is None else gone.decode())
        for id_, info, status, *times, gone in rows
    ]


def _job_in_full(row: Sequence[Any]) -> Job:
    job, body, result, result_until = row
    args, options, _ = _decode_body(_ARRAY_OF_THREE + body)
    return msgspec.structs.replace(
        _decode_job(job), args=args, options=options, result=result, result_until=result_until
    )
