"""Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ferryman.errors import WorkerGone
from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query, Sync
from ferryman.job import Claim, JobId, State, WorkerId
from ferryman.store.records import Claimed, LaneState, Signs, Take
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.finish import Finished, concerns_others, let_go
from ferryman.store.sqlite.ledger import Ledger, seqs_param
from ferryman.store.sqlite.places import enter

__all__ = ["claim", "peek"]

_AT_ONCE = 1_000
"""Jobs promoted, and jobs expired, in one claim at most, so that no transaction takes long."""

_NEXT_DUE = "SELECT min(run_at) FROM ferryman_job INDEXED BY ferryman_job_scheduled WHERE state = 1"
_NEXT_LATE = (
    "SELECT min(deadline) FROM ferryman_job INDEXED BY ferryman_job_deadline"
    " WHERE deadline IS NOT NULL AND state < 4"
)
_NEXT = f"SELECT ({_NEXT_DUE}), ({_NEXT_LATE})"

# A worker, and what time will bring next.
_WORKER = f"""
SELECT id, queues, ({_NEXT_DUE}), ({_NEXT_LATE}) FROM ferryman_worker WHERE name = ? AND gone IS NULL
"""  # noqa: S608

# INDEXED BY is a guard: without the index this would scan, so let it fail instead.
_HEAD = """
SELECT j.seq, j.id, t.name, ?3, j.lease + 1, j.attempt + 1, j.max_attempts, j.deaths, j.enqueued_at, j.run_at,
    b.args, b.options, j.key, j.deadline, j.flags, j.tag, b.reason
FROM ferryman_job j INDEXED BY ferryman_job_ready
JOIN ferryman_body b ON b.seq = j.seq JOIN ferryman_task t ON t.id = j.task
WHERE j.state = 2 AND j.lane = ?1 ORDER BY j.tag, j.seq LIMIT ?2
"""

_LEASE = """
UPDATE ferryman_job SET state = 4, lease = lease + 1, attempt = attempt + 1, worker = ?, started_at = ?,
    flags = flags & ~128
WHERE seq IN (SELECT value FROM json_each(?))
"""

_LANES = """
SELECT l.id, l.queue, l.priority, l.ready, coalesce(q.fair, 0)
FROM ferryman_lane l LEFT JOIN ferryman_queue q ON q.name = l.queue
WHERE l.ready > 0 AND coalesce(q.paused, 0) = 0 AND (?1 IS NULL OR l.queue IN (SELECT value FROM json_each(?1)))
"""


def claim(now: int, worker: WorkerId, plan: Sequence[Take], limit: int) -> Requests[Claimed]:
    ledger = Ledger(now)
    worker_id, queues, due, late = yield from find_worker(worker)
    if (due is not None and due <= now) or (late is not None and late <= now):
        yield from _promote(ledger)
        yield from _expire(ledger)
        # Counts that this has changed must be seen by the claim below.
        yield from ledger.close()
        ledger = Ledger(now)
        ((due, late),) = yield Query(_NEXT)
    lanes = {(queue, priority): (lane, ready, fair) for lane, queue, priority, ready, fair in
             (yield Query(_LANES, (queues,)))}  # fmt: skip
    # A lane of the worker's own queues that is not among these is empty, or paused.
    own: list[str] | None = None if queues is None else json.loads(queues)
    jobs: list[Claim] = []
    taken: dict[int, int] = {}
    for take in plan:
        count = min(take.count, limit - len(jobs))
        found = lanes.get((take.queue, take.priority))
        if found is None and own is not None and take.queue not in own:
            found = yield from _lane_outside(take)
        if found is None or count <= 0:
            continue
        lane, _, fair = found
        before = len(jobs)
        expired = yield from _take(ledger, worker_id, take.queue, lane, count, bool(fair), jobs)
        taken[lane] = taken.get(lane, 0) + expired + len(jobs) - before
    states = yield from _states(lanes, taken)
    yield from ledger.close()
    return Claimed(jobs, states, due, now)


def peek(now: int, worker: WorkerId) -> Requests[Signs]:
    worker_id, queues, due, late = yield from find_worker(worker)
    ready = yield Query(f"SELECT EXISTS ({_LANES})", (queues,))
    orders = yield Query("SELECT EXISTS (SELECT 1 FROM ferryman_worker_order WHERE worker = ?)", (worker_id,))
    work = bool(ready[0][0]) or any(moment is not None and moment <= now for moment in (due, late))
    return Signs(work, due, bool(orders[0][0]), now)


def find_worker(worker: WorkerId) -> Requests[tuple[int, str | None, int | None, int | None]]:
    """The number of a worker that is on the register, its queues as JSON, and when the next scheduled job is due
    and the next deadline passes."""
    found = yield Query(_WORKER, (worker,))
    if not found:
        raise WorkerGone(
            f"worker {worker} is not on the register: it never registered, has left, or was taken for dead "
            "after its lease had ended; its jobs are run by others"
        )
    row: tuple[int, str | None, int | None, int | None] = found[0]
    return row


def _take(
    ledger: Ledger, worker_id: int, queue: str, lane: int, count: int, fair: bool, jobs: list[Claim]
) -> Requests[int]:
    """Lease the head of a lane, adding to `jobs`. Answers how many more were expired instead."""
    rows = yield Query(_HEAD, (lane, count, queue))
    now = ledger.now
    leased: list[int] = []
    late: list[Any] = []
    starts_unique: list[int] = []
    for row in rows:
        seq, id_ = row[:2]
        deadline, flags, _, reason = row[13:]
        if deadline is not None and deadline <= now:
            late.append((seq, id_, lane, State.READY, flags, row[12]))
            continue
        leased.append(seq)
        if reason is not None:
            yield Query("UPDATE ferryman_body SET reason = NULL WHERE seq = ?", (seq,))
        if flags & FLAG.UNIQUE_START:
            starts_unique.append(seq)
        jobs.append(Claim(JobId(id_.hex()), *row[2:13]))
    if leased:
        yield Query(_LEASE, (worker_id, now, seqs_param(leased)))
        if any(claim.attempt >= claim.max_attempts for claim in jobs[-len(leased) :]):
            # Not even a loss of power shall let a last attempt be made once more.
            yield Sync()
        ledger.move(lane, State.READY, State.RUNNING, len(leased))
        if fair:
            yield Query("UPDATE ferryman_lane SET clock = max(clock, ?) WHERE id = ?", (rows[-1][15], lane))
    if starts_unique:
        yield Many(
            "DELETE FROM ferryman_unique_key WHERE seq = ? AND until IS NULL",
            [(seq,) for seq in starts_unique],
        )
    if late:
        yield from _write_expired(ledger, late)
    return len(late)


def _lane_outside(take: Take) -> Requests[Any]:
    """A lane that the plan names though it is none of the worker's own queues; not if it is paused or empty."""
    found = yield Query(
        "SELECT l.id, l.ready, coalesce(q.fair, 0) FROM ferryman_lane l LEFT JOIN ferryman_queue q ON q.name = l.queue"
        " WHERE l.queue = ? AND l.priority = ? AND l.ready > 0 AND coalesce(q.paused, 0) = 0",
        (take.queue, take.priority),
    )
    return found[0] if found else None


def _states(lanes: dict[tuple[str, int], Any], taken: dict[int, int]) -> Requests[list[LaneState]]:
    states: list[LaneState] = []
    for (queue, priority), (lane, ready, _) in lanes.items():
        depth = ready - taken.get(lane, 0)
        if depth > 0:
            head = yield Query(
                "SELECT run_at FROM ferryman_job INDEXED BY ferryman_job_ready WHERE state = 2 AND lane = ?"
                " ORDER BY tag, seq LIMIT 1",
                (lane,),
            )
            states.append(LaneState(queue, priority, depth, head[0][0] if head else None))
    return states


# -- what time brings ------------------------------------------------------------------------------

_DUE = """
SELECT j.seq, j.lane, j.flags, j.key, j.run_at, coalesce(q.fair, 0)
FROM ferryman_job j INDEXED BY ferryman_job_scheduled
JOIN ferryman_lane l ON l.id = j.lane LEFT JOIN ferryman_queue q ON q.name = l.queue
WHERE j.state = 1 AND j.run_at <= ? ORDER BY j.run_at, j.seq LIMIT ?
"""

_LATE = """
SELECT seq, id, lane, state, flags, key FROM ferryman_job INDEXED BY ferryman_job_deadline
WHERE deadline IS NOT NULL AND deadline <= ? AND state < 4 ORDER BY deadline LIMIT ?
"""


def _promote(ledger: Ledger) -> Requests[None]:
    due = yield Query(_DUE, (ledger.now, _AT_ONCE))
    plain: list[int] = []
    for seq, lane, flags, key, run_at, fair in due:
        if key is None and not fair:
            plain.append(seq)
            ledger.move(lane, State.SCHEDULED, State.READY)
        else:
            yield from enter(ledger, seq, lane, State.SCHEDULED, flags, key, run_at=run_at)
    if plain:
        yield Query(
            "UPDATE ferryman_job SET state = 2, tag = 0 WHERE seq IN (SELECT value FROM json_each(?))",
            (seqs_param(plain),),
        )


def _expire(ledger: Ledger) -> Requests[None]:
    late = yield Query(_LATE, (ledger.now, _AT_ONCE))
    if late:
        yield from _write_expired(ledger, late)


def _write_expired(ledger: Ledger, rows: Sequence[Any]) -> Requests[None]:
    alone: list[int] = []
    for seq, id_, lane, state, flags, key in rows:
        if state == State.WAITING or concerns_others(flags, key):
            yield from _expire_one(ledger, seq, id_, lane, key)
        else:
            alone.append(seq)
            ledger.move(lane, state, State.EXPIRED)
    yield Query(
        "UPDATE ferryman_job SET state = 8, finished_at = ? WHERE seq IN (SELECT value FROM json_each(?))",
        (ledger.now, seqs_param(alone)),
    )


def _expire_one(ledger: Ledger, seq: int, id_: bytes, lane: int, key: str | None) -> Requests[None]:
    """The end of one that was late before it may have reached it: its parent's, or that of one it is parked behind."""
    now = yield Query("SELECT state, flags FROM ferryman_job WHERE seq = ? AND state < 4", (seq,))
    for state, flags in now:
        yield Query("UPDATE ferryman_job SET state = 8, finished_at = ? WHERE seq = ?", (ledger.now, seq))
        ledger.move(lane, state, State.EXPIRED)
        yield from let_go(ledger, [Finished(seq, id_, flags, key, succeeded=False)])
