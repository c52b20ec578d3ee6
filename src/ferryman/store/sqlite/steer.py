"""What people do to jobs and queues. Each operation takes its jobs oldest first, up to a limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query
from ferryman.job import FINISHED, PENDING, JobId, State
from ferryman.store.records import Filter, Order, QueueSettings
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.filters import matching
from ferryman.store.sqlite.finish import cancel_pending, let_go, take_unique
from ferryman.store.sqlite.ledger import Ledger, seqs_param
from ferryman.store.sqlite.places import enter, next_tag, rejoin_key
from ferryman.store.sqlite.workers import leave_orders

__all__ = ["cancel", "declare", "delete", "edit", "pause", "replay", "reprioritise"]

_PENDING = tuple(sorted(PENDING))


def declare(queues: Sequence[QueueSettings]) -> Requests[None]:
    # In a queue that is fair no more, those with tags shall not wait behind all that come without, nor those that run,
    # and may be given back.
    for state in (2, 4):
        yield Query(
            f"UPDATE ferryman_job SET tag = 0 WHERE state = {state} AND lane IN (SELECT l.id FROM ferryman_lane l"  # noqa: S608
            " JOIN ferryman_queue q ON q.name = l.queue WHERE q.fair AND q.name IN (SELECT value FROM json_each(?)))",
            (json.dumps([queue.name for queue in queues if not queue.fair]),),
        )
    yield Many(
        "INSERT INTO ferryman_queue (name, fair, weights, max_size, overflow) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET fair = excluded.fair, weights = excluded.weights, max_size = excluded.max_size,"
        " overflow = excluded.overflow",
        [(q.name, q.fair, json.dumps(dict(q.weights)), q.max_size, q.overflow) for q in queues],
    )


def pause(now: int, queues: Sequence[str], paused: bool) -> Requests[None]:
    yield Many(
        "INSERT INTO ferryman_queue (name, paused) VALUES (?, ?) ON CONFLICT DO UPDATE SET paused = excluded.paused",
        [(name, paused) for name in queues],
    )
    ledger = Ledger(now)
    ledger.woke = not paused
    yield from ledger.close()


def cancel(now: int, which: Filter, limit: int, reason: str | None) -> Requests[int]:
    ledger = Ledger(now)
    rows = yield matching(
        which,
        "j.seq, j.id, j.lane, j.state, j.flags, j.key, j.worker",
        among=(*_PENDING, State.RUNNING),
        # A running job that was asked already is not asked again.
        extra=f"(j.state < 4 OR j.flags & {FLAG.CANCEL_ASKED} = 0)",
        limit=limit,
    )
    count = 0
    for seq, id_, lane, state, flags, key, worker in rows:
        if state == State.RUNNING:
            yield Query("UPDATE ferryman_job SET flags = flags | ? WHERE seq = ?", (FLAG.CANCEL_ASKED, seq))
            yield from leave_orders([worker], Order("cancel", JobId(id_.hex()), reason))
            ledger.woke = True
        else:
            # An earlier one of the batch may have been its parent, and have taken it along.
            still = yield Query("SELECT flags FROM ferryman_job WHERE seq = ? AND state = ?", (seq, state))
            if not still:
                still = yield Query(
                    "SELECT flags, state FROM ferryman_job WHERE seq = ? AND state < 4", (seq,)
                )
                if not still:
                    count += 1
                    continue
                state = still[0][1]
            flags = still[0][0]
            yield from let_go(
                ledger, [(yield from cancel_pending(ledger, seq, id_, lane, state, flags, key, reason))]
            )
        count += 1
    yield from ledger.close()
    return count


def replay(now: int, which: Filter, limit: int) -> Requests[int]:
    ledger = Ledger(now)
    rows = yield matching(
        which,
        "j.seq, j.id, j.lane, j.state, j.flags, j.key, j.room, b.unique_key",
        among=tuple(sorted(FINISHED)),
        extra="NOT EXISTS (SELECT 1 FROM ferryman_unique_key u WHERE u.key = b.unique_key AND u.seq <> j.seq"
        " AND (u.until IS NULL OR u.until > ?))",
        extra_params=(now,),
        limit=limit,
    )
    count = 0
    for seq, id_, lane, state, flags, key, room, unique in rows:
        if flags & (FLAG.UNIQUE | FLAG.UNIQUE_START) and not (yield from take_unique(now, seq, id_, unique)):
            # Another of this batch has just taken it.
            continue
        yield Query(
            "UPDATE ferryman_job SET attempt = 0, deaths = 0, started_at = NULL, finished_at = NULL, worker = NULL,"
            " deadline = NULL, missing = NULL, result_until = NULL WHERE seq = ?",
            (seq,),
        )
        yield Query(
            "UPDATE ferryman_body SET result = NULL, reason = NULL, progress = NULL WHERE seq = ?", (seq,)
        )
        # It waits for nobody any more; parents that it never heard of again are done with.
        yield Query("UPDATE ferryman_parent SET done = 1 WHERE child = ?", (seq,))
        if key is not None:
            yield from rejoin_key(key, 1 if flags & FLAG.ORDERED else room)
        yield from enter(ledger, seq, lane, state, flags & ~(FLAG.HOLDS | FLAG.FORGOTTEN), key)
        count += 1
    yield from ledger.close()
    return count


def edit(job: JobId, args: bytes) -> Requests[bool]:
    changed = yield Query(
        "UPDATE ferryman_body SET args = ? WHERE seq = (SELECT seq FROM ferryman_job WHERE id = ? AND state <> 4)"
        " RETURNING seq",
        (args, bytes.fromhex(job)),
    )
    return bool(changed)


def reprioritise(now: int, which: Filter, priority: int, limit: int) -> Requests[int]:
    ledger = Ledger(now)
    rows = yield matching(
        which,
        "j.seq, l.queue, j.lane, j.state, j.flags, j.key, b.tenant",
        among=_PENDING,
        extra="l.priority <> ?",
        extra_params=(priority,),
        limit=limit,
    )
    targets: dict[str, int] = {}
    for seq, queue, lane, state, flags, key, tenant in rows:
        if queue not in targets:
            targets[queue] = yield from _lane(queue, priority)
        target = targets[queue]
        tag = 0.0
        if state == State.READY:
            info = yield from ledger.lane(target)
            tag = (yield from next_tag(info, tenant)) if info.fair else 0.0
        rank = None if key is None else (0 if flags & FLAG.ORDERED else -priority)
        yield Query(
            "UPDATE ferryman_job SET lane = ?, tag = ?, rank = ? WHERE seq = ?", (target, tag, rank, seq)
        )
        ledger.move(lane, state, None)
        ledger.move(target, None, state)
    yield from ledger.close()
    return len(rows)


def delete(now: int, which: Filter, limit: int) -> Requests[int]:
    ledger = Ledger(now)
    rows = yield matching(
        which,
        "j.seq, j.id, j.lane, j.state, j.flags, j.key",
        among=(*_PENDING, *sorted(FINISHED)),
        limit=limit,
    )
    gone: list[Any] = []
    for seq, id_, lane, state, flags, key in rows:
        if state in PENDING:
            ((state, flags),) = yield Query("SELECT state, flags FROM ferryman_job WHERE seq = ?", (seq,))
        if state in PENDING:
            yield from let_go(
                ledger, [(yield from cancel_pending(ledger, seq, id_, lane, state, flags, key, None))]
            )
            state = State.CANCELLED
        gone.append((seq, id_, lane, state, flags))
    seqs = seqs_param([row[0] for row in gone])
    yield Query("DELETE FROM ferryman_unique_key WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))
    yield from erase(ledger, gone)
    yield from ledger.close()
    return len(gone)


def erase(ledger: Ledger, rows: Sequence[tuple[int, bytes, int, int, int]]) -> Requests[None]:
    """Delete finished jobs (seq, id, lane, state, flags) with all that other tables know of them, save a unique key
    that is taken for a period: it outlives its job."""
    seqs = seqs_param([row[0] for row in rows])
    for statement in _ERASE:
        yield Query(statement, (seqs,))
    for _, _, lane, state, _ in rows:
        ledger.move(lane, state, None)


_ERASE = [
    f"DELETE FROM ferryman_{table} WHERE {column} IN (SELECT value FROM json_each(?))"  # noqa: S608
    for table, column in (
        ("attempt", "seq"),
        ("note", "seq"),
        ("parent", "child"),
        ("body", "seq"),
        ("job", "seq"),
    )
]
_ERASE.insert(
    0,
    "DELETE FROM ferryman_tag WHERE seq IN (SELECT value FROM json_each(?1)) AND tag IN (SELECT t.value"
    " FROM ferryman_body b JOIN json_each(b.tags) t WHERE b.seq IN (SELECT value FROM json_each(?1)))",
)


def _lane(queue: str, priority: int) -> Requests[int]:
    ((lane,),) = yield Query(
        "INSERT INTO ferryman_lane (queue, priority) VALUES (?, ?)"
        " ON CONFLICT DO UPDATE SET queue = excluded.queue RETURNING id",
        (queue, priority),
    )
    return int(lane)
