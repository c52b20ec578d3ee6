"""What becomes of others when a job finishes: its key's next job, its unique key, its children."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Query
from ferryman.job import State
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.ledger import Ledger
from ferryman.store.sqlite.places import enter, free_place, leave_key

__all__ = ["Finished", "cancel_pending", "concerns_others", "let_go", "take_unique"]

_CONCERNS_OTHERS = FLAG.UNIQUE | FLAG.UNIQUE_START | FLAG.CHILDREN


class Finished(NamedTuple):
    """A job that has just reached a finished state, which is written already."""

    seq: int
    id: bytes
    flags: int
    key: str | None
    succeeded: bool


def concerns_others(flags: int, key: str | None) -> bool:
    """Whether the end of a job with these can change another."""
    return key is not None or flags & _CONCERNS_OTHERS != 0


def let_go(ledger: Ledger, jobs: Sequence[Finished]) -> Requests[None]:
    """Give back what finished jobs held, and tell their children, and theirs."""
    todo = deque(job for job in jobs if concerns_others(job.flags, job.key))
    while todo:
        job = todo.popleft()
        if job.key is not None:
            if job.flags & FLAG.HOLDS:
                yield Query(
                    "UPDATE ferryman_job SET flags = flags & ~?1 WHERE seq = ?2", (FLAG.HOLDS, job.seq)
                )
                yield from free_place(ledger, job.key)
            yield from leave_key(job.key)
        if job.flags & (FLAG.UNIQUE | FLAG.UNIQUE_START):
            yield Query("DELETE FROM ferryman_unique_key WHERE seq = ? AND until IS NULL", (job.seq,))
        if job.flags & FLAG.CHILDREN:
            todo.extend((yield from _tell_children(ledger, job)))


def _tell_children(ledger: Ledger, parent: Finished) -> Requests[list[Finished]]:
    """Answers the children that were cancelled, whose own children are to be told."""
    children = yield Query(
        "SELECT p.place, j.seq, j.id, j.lane, j.flags, j.key, j.run_at, j.missing FROM ferryman_parent p"
        " JOIN ferryman_job j ON j.seq = p.child WHERE p.parent = ? AND p.done = 0 AND j.state = 0"
        " ORDER BY j.seq, p.place",
        (parent.id,),
    )
    cancelled: list[Finished] = []
    settled: dict[int, int] = {}
    for place, seq, id_, lane, flags, key, run_at, missing in children:
        if not parent.succeeded and not flags & FLAG.CONTINUE:
            if not flags & FLAG.HOLD and seq not in settled:
                settled[seq] = 0
                reason = f"parent {parent.id.hex()} did not succeed"
                cancelled.append(
                    (yield from cancel_pending(ledger, seq, id_, lane, State.WAITING, flags, key, reason))
                )
            continue
        yield Query("UPDATE ferryman_parent SET done = 1 WHERE child = ? AND place = ?", (seq, place))
        settled[seq] = left = settled.get(seq, missing) - 1
        yield Query("UPDATE ferryman_job SET missing = ? WHERE seq = ?", (left, seq))
        if left == 0:
            yield from _go_on(ledger, seq, lane, flags, key, run_at)
    return cancelled


def _go_on(ledger: Ledger, seq: int, lane: int, flags: int, key: str | None, run_at: int) -> Requests[None]:
    """A job that waits for no other any more: it may still have to wait for its moment."""
    if run_at > ledger.now:
        yield Query("UPDATE ferryman_job SET state = 1 WHERE seq = ?", (seq,))
        ledger.move(lane, State.WAITING, State.SCHEDULED)
    else:
        yield from enter(ledger, seq, lane, State.WAITING, flags, key)


def cancel_pending(
    ledger: Ledger,
    seq: int,
    id_: bytes,
    lane: int,
    before: int,
    flags: int,
    key: str | None,
    reason: str | None,
) -> Requests[Finished]:
    """Write down that a pending job is cancelled; the caller passes the answer to `let_go`."""
    yield Query("UPDATE ferryman_job SET state = 7, finished_at = ? WHERE seq = ?", (ledger.now, seq))
    if reason is not None:
        yield Query("UPDATE ferryman_body SET reason = ? WHERE seq = ?", (reason, seq))
    ledger.move(lane, before, State.CANCELLED)
    return Finished(seq, id_, flags, key, succeeded=False)


def take_unique(now: int, seq: int, id_: bytes, key: str) -> Requests[bool]:
    """Take a unique key for a job that is stored already. False if another has it."""
    taken = yield Query(
        "INSERT INTO ferryman_unique_key (key, seq, id, until) VALUES (?1, ?2, ?3, NULL) ON CONFLICT DO UPDATE"
        " SET seq = excluded.seq, id = excluded.id, until = NULL WHERE until <= ?4 RETURNING seq",
        (key, seq, id_, now),
    )
    return bool(taken)
