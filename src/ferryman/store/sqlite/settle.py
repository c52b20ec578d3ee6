"""Settle: what became of leased jobs. The fence is the worker and the number of the lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query
from ferryman.job import MAX_DEATHS, RERUNS, ErrorInfo, Outcome, OutcomeKind, State, WorkerId
from ferryman.policy.latency import bucket_of
from ferryman.store.minutes import STAT
from ferryman.store.records import JobNote
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.finish import Finished, let_go, take_unique
from ferryman.store.sqlite.ledger import Ledger, ids_param
from ferryman.store.sqlite.places import enter, free_place

__all__ = ["Leased", "annotate", "settle", "settle_leased"]

_encode = msgspec.msgpack.Encoder().encode

_LEASED = """
SELECT n.key, j.seq, j.id, j.lane, j.task, j.flags, j.lease, j.attempt, j.max_attempts, j.deaths, j.run_at, j.key,
    j.worker, j.tag
FROM json_each(?2) n CROSS JOIN ferryman_job j ON j.id = substr(?1, n.key * 16 + 1, 16)
WHERE j.state = 4 AND j.worker = (SELECT id FROM ferryman_worker WHERE name = ?3)
"""

_MEASURED = frozenset({OutcomeKind.SUCCEEDED, OutcomeKind.RETRY, OutcomeKind.DEAD, OutcomeKind.CRASHED})

_MAX_ATTEMPTS = _MAX_NOTES = 1_000
_MAX_NOTE = 4_000


_FORGET_OLDEST = """
DELETE FROM {0} WHERE seq = ?1 AND id <= (SELECT id FROM {0} WHERE seq = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)
"""


class Leased(NamedTuple):
    """A running job, as `settle` found it."""

    seq: int
    id: bytes
    lane: int
    task: int
    flags: int
    lease: int
    attempt: int
    max_attempts: int
    deaths: int
    run_at: int
    key: str | None
    worker: int
    tag: float


def settle(now: int, worker: WorkerId, outcomes: Sequence[Outcome]) -> Requests[list[bool]]:
    ledger = Ledger(now)
    rows = yield Query(_LEASED, (*ids_param([outcome.id for outcome in outcomes]), worker))
    accepted = [False] * len(outcomes)
    settled: set[int] = set()
    succeeded: list[tuple[Leased, Outcome]] = []
    others: list[tuple[Leased, Outcome]] = []
    for place, *fields in rows:
        job, outcome = Leased._make(fields), outcomes[place]
        # Twice in one batch: the first one has it.
        if job.lease == outcome.lease and job.seq not in settled:
            settled.add(job.seq)
            accepted[place] = True
            (succeeded if outcome.kind is OutcomeKind.SUCCEEDED else others).append((job, outcome))
    yield from _succeed(ledger, succeeded)
    for job, outcome in others:
        yield from settle_leased(ledger, job, outcome)
    yield from ledger.close()
    return accepted


def _succeed(ledger: Ledger, jobs: Sequence[tuple[Leased, Outcome]]) -> Requests[None]:
    """The common case, for all at once."""
    now = ledger.now
    times = [(now - outcome.ran_us // 1000, now, job.seq) for job, outcome in jobs]
    if times:
        yield Many("UPDATE ferryman_job SET state = 5, started_at = ?, finished_at = ? WHERE seq = ?", times)
    results = [(outcome.result, job.seq) for job, outcome in jobs if outcome.result is not None]
    if results:
        yield Many("UPDATE ferryman_body SET result = ? WHERE seq = ?", results)
    kept = [(now + outcome.keep_result, job.seq) for job, outcome in jobs if outcome.keep_result is not None]
    if kept:
        yield Many("UPDATE ferryman_job SET result_until = ? WHERE seq = ?", kept)
    for (lane, task), count in Counter([(job.lane, job.task) for job, _ in jobs]).items():
        ledger.move(lane, State.RUNNING, State.SUCCEEDED, count)
        ledger.note(lane, task, STAT.SUCCEEDED, count=count)
    ledger.note_all(
        [
            (job.lane, job.task, STAT.WAITED, bucket_of((started - job.run_at) * 1000))
            for (job, _), (started, _, _) in zip(jobs, times, strict=True)
        ]
    )
    ledger.note_all([(job.lane, job.task, STAT.RAN, bucket_of(outcome.ran_us)) for job, outcome in jobs])
    concerning = [
        Finished(job.seq, job.id, job.flags, job.key, succeeded=True)
        for job, _ in jobs
        if job.flags or job.key is not None
    ]
    if concerning:
        yield from let_go(ledger, concerning)


def settle_leased(ledger: Ledger, job: Leased, outcome: Outcome, deaths: int = 1) -> Requests[State]:
    """Carry out an outcome other than success. Answers where the job went. `deaths` is what a crash counts for."""
    if job.flags & FLAG.CANCEL_ASKED and outcome.kind in RERUNS:
        outcome = outcome.as_cancelled()
    kind = outcome.kind
    started = ledger.now - outcome.ran_us // 1000
    if kind in _MEASURED:
        _measure(ledger, job.lane, job.task, job.run_at, started, outcome.ran_us)
        ledger.note(job.lane, job.task, STAT.FAILED)
    if kind is not OutcomeKind.RELEASED:
        yield from _record_attempt(ledger, job, outcome, started)
    match kind:
        case OutcomeKind.RELEASED:
            return (yield from _release(ledger, job))
        case OutcomeKind.SNOOZED:
            yield Query("UPDATE ferryman_body SET reason = ? WHERE seq = ?", (outcome.reason, job.seq))
            return (yield from _put_off(ledger, job, outcome.delay, attempt=job.attempt - 1, always=True))
        case OutcomeKind.CANCELLED:
            yield from _finish(ledger, job, State.CANCELLED, outcome.reason, started)
            return State.CANCELLED
        case OutcomeKind.RETRY if job.attempt < job.max_attempts:
            yield Query("UPDATE ferryman_job SET started_at = ? WHERE seq = ?", (started, job.seq))
            return (yield from _put_off(ledger, job, outcome.delay, attempt=job.attempt))
        case OutcomeKind.CRASHED if job.attempt < job.max_attempts and job.deaths + deaths < MAX_DEATHS:
            return (yield from _run_again(ledger, job, job.deaths + deaths, started))
        case OutcomeKind.CRASHED:
            yield Query("UPDATE ferryman_job SET deaths = ? WHERE seq = ?", (job.deaths + deaths, job.seq))
            yield from _die(ledger, job, outcome, started)
            return State.DEAD
        case _:
            yield from _die(ledger, job, outcome, started)
            return State.DEAD


def _release(ledger: Ledger, job: Leased) -> Requests[State]:
    """Back to the place it had: same tag, same moment; and with the unique key that it gave back at the claim, if that was
    its first, and the key is free."""
    yield Query(
        "UPDATE ferryman_job SET state = 2, attempt = attempt - 1, worker = NULL, started_at = NULL WHERE seq = ?",
        (job.seq,),
    )
    ledger.move(job.lane, State.RUNNING, State.READY)
    if job.flags & FLAG.UNIQUE_START and job.attempt == 1:
        ((key,),) = yield Query("SELECT unique_key FROM ferryman_body WHERE seq = ?", (job.seq,))
        yield from take_unique(ledger.now, job.seq, job.id, key)
    return State.READY


def _run_again(ledger: Ledger, job: Leased, deaths: int, started: int) -> Requests[State]:
    yield Query(
        "UPDATE ferryman_job SET state = 2, deaths = ?, started_at = ? WHERE seq = ?",
        (deaths, started, job.seq),
    )
    ledger.move(job.lane, State.RUNNING, State.READY)
    return State.READY


def _put_off(
    ledger: Ledger, job: Leased, delay: int, *, attempt: int, always: bool = False
) -> Requests[State]:
    """Run again after `delay`, or at once. While it waits, only an ordered job keeps its key's place."""
    flags = job.flags
    if delay > 0 or always:
        yield Query(
            "UPDATE ferryman_job SET state = 1, attempt = ?, run_at = ? WHERE seq = ?",
            (attempt, ledger.now + delay, job.seq),
        )
        ledger.move(job.lane, State.RUNNING, State.SCHEDULED)
        if job.key is not None and flags & FLAG.HOLDS and not flags & FLAG.ORDERED:
            yield Query("UPDATE ferryman_job SET flags = flags & ~?1 WHERE seq = ?2", (FLAG.HOLDS, job.seq))
            yield from free_place(ledger, job.key)
        return State.SCHEDULED
    yield Query("UPDATE ferryman_job SET attempt = ? WHERE seq = ?", (attempt, job.seq))
    yield from enter(ledger, job.seq, job.lane, State.RUNNING, flags, job.key)
    return State.READY


def _die(ledger: Ledger, job: Leased, outcome: Outcome, started: int) -> Requests[None]:
    reason = (
        _error_of(outcome).cause if outcome.kind is OutcomeKind.CRASHED or outcome.error else outcome.reason
    )
    yield from _finish(ledger, job, State.DEAD, reason, started)
    ledger.note(job.lane, job.task, STAT.DEAD)


def _finish(ledger: Ledger, job: Leased, state: State, reason: str | None, started: int) -> Requests[None]:
    yield Query(
        "UPDATE ferryman_job SET state = ?, started_at = ?, finished_at = ? WHERE seq = ?",
        (int(state), started, ledger.now, job.seq),
    )
    yield Query("UPDATE ferryman_body SET reason = ? WHERE seq = ?", (reason, job.seq))
    ledger.move(job.lane, State.RUNNING, state)
    yield from let_go(ledger, [Finished(job.seq, job.id, job.flags, job.key, succeeded=False)])


def _record_attempt(ledger: Ledger, job: Leased, outcome: Outcome, started: int) -> Requests[None]:
    error: Any = outcome.error
    if error is None and outcome.kind is OutcomeKind.CRASHED:
        error = _error_of(outcome)
    yield Query(
        "INSERT INTO ferryman_attempt (seq, number, kind, worker, started_at, finished_at, error, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.seq, job.attempt, int(outcome.kind), job.worker, started, ledger.now,
            None if error is None else _encode(error), outcome.reason,
        ),
    )  # fmt: skip
    if job.lease > _MAX_ATTEMPTS:
        yield Query(_FORGET_OLDEST.format("ferryman_attempt"), (job.seq, _MAX_ATTEMPTS))


def _error_of(outcome: Outcome) -> ErrorInfo:
    return outcome.error or ErrorInfo("Crashed", "its executor died")


def _measure(ledger: Ledger, lane: int, task: int, ready_at: int, started: int, ran_us: int) -> None:
    ledger.note(lane, task, STAT.WAITED, bucket_of((started - ready_at) * 1000))
    ledger.note(lane, task, STAT.RAN, bucket_of(ran_us))


def annotate(now: int, worker: WorkerId, notes: Sequence[JobNote]) -> Requests[None]:
    rows = yield Query(_LEASED, (*ids_param([note.id for note in notes]), worker))
    found = {row[0]: row for row in rows}
    for index, note in enumerate(notes):
        row = found.get(index)
        if row is None or row[6] != note.lease:
            continue
        seq = row[1]
        if note.progress is not None:
            yield Query("UPDATE ferryman_body SET progress = ? WHERE seq = ?", (note.progress, seq))
        if note.text is not None:
            yield Query(
                "INSERT INTO ferryman_note (seq, at, attempt, text) VALUES (?, ?, ?, ?)",
                (seq, now, row[7], note.text[:_MAX_NOTE]),
            )
            yield Query(_FORGET_OLDEST.format("ferryman_note"), (seq, _MAX_NOTES))
