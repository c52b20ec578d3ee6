"""Letting jobs into their lanes: places of keys, and tags of fair queues."""

from __future__ import annotations

from typing import Any

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Query
from ferryman.job import State
from ferryman.store.rows import FLAG
from ferryman.store.sqlite.ledger import LaneInfo, Ledger

__all__ = ["enter", "free_place", "join_key", "leave_key", "next_tag", "rejoin_key", "take_place"]


def enter(
    ledger: Ledger,
    seq: int,
    lane: int,
    before: int,
    flags: int,
    key: str | None,
    *,
    run_at: int | None = None,
) -> Requests[None]:
    """Let a stored job that wants to run now into its lane, or park it. `run_at` is the moment it was due."""
    if key is not None and not flags & FLAG.HOLDS:
        if not (yield from take_place(key)):
            yield Query("UPDATE ferryman_job SET state = 3 WHERE seq = ?", (seq,))
            ledger.move(lane, before, State.PARKED)
            return
        flags |= FLAG.HOLDS
    tag = yield from _tag_of(ledger, seq, lane)
    yield Query(
        "UPDATE ferryman_job SET state = 2, flags = ?, tag = ?, run_at = ? WHERE seq = ?",
        (flags, tag, ledger.now if run_at is None else run_at, seq),
    )
    ledger.move(lane, before, State.READY)


def take_place(key: str) -> Requests[bool]:
    """Take one of the key's places, if one is free."""
    taken: list[Any] = yield Query(
        "UPDATE ferryman_room SET used = used + 1 WHERE key = ? AND used < room RETURNING used", (key,)
    )
    return bool(taken)


def join_key(ledger: Ledger, key: str, room: int) -> Requests[None]:
    """Count an unfinished job to its key, which has as many places from now on as this job says."""
    yield Query(
        "INSERT INTO ferryman_room (key, room, used, jobs) VALUES (?, ?, 0, 1)"
        " ON CONFLICT DO UPDATE SET room = excluded.room, jobs = jobs + 1",
        (key, room),
    )
    yield from _admit_parked(ledger, key)


def rejoin_key(key: str, room: int) -> Requests[None]:
    """Count a replayed job to its key; what later jobs said of its places goes on to hold."""
    yield Query(
        "INSERT INTO ferryman_room (key, room, used, jobs) VALUES (?, ?, 0, 1)"
        " ON CONFLICT DO UPDATE SET jobs = jobs + 1",
        (key, room),
    )


def free_place(ledger: Ledger, key: str) -> Requests[None]:
    """Give a place back, and let in the parked jobs for which there is room now."""
    yield Query("UPDATE ferryman_room SET used = used - 1 WHERE key = ?", (key,))
    yield from _admit_parked(ledger, key)


def leave_key(key: str) -> Requests[None]:
    """Count a finished job off its key, which is forgotten with its last one."""
    yield Query("UPDATE ferryman_room SET jobs = jobs - 1 WHERE key = ?", (key,))
    yield Query("DELETE FROM ferryman_room WHERE key = ? AND jobs = 0", (key,))


def _admit_parked(ledger: Ledger, key: str) -> Requests[None]:
    """Let parked jobs of a key into their lanes while it has room, in order."""
    while True:
        parked = yield Query(
            "SELECT seq, lane, flags FROM ferryman_job WHERE state = 3 AND key = ? ORDER BY rank, seq LIMIT 1",
            (key,),
        )
        if not parked or not (yield from take_place(key)):
            return
        ((seq, lane, flags),) = parked
        yield from enter(ledger, seq, lane, State.PARKED, flags | FLAG.HOLDS, key)


def _tag_of(ledger: Ledger, seq: int, lane: int) -> Requests[float]:
    info = yield from ledger.lane(lane)
    if not info.fair:
        return 0.0
    ((tenant,),) = yield Query("SELECT tenant FROM ferryman_body WHERE seq = ?", (seq,))
    return (yield from next_tag(info, tenant))


def next_tag(lane: LaneInfo, tenant: str | None) -> Requests[float]:
    """The place of a tenant's next job in a fair lane.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): the later of the lane's virtual time and the tenant's
    last tag, plus the cost of one job.
    """
    name = tenant or ""
    ((tag,),) = yield Query(
        "INSERT INTO ferryman_tenant (lane, tenant, tag)"
        " VALUES (?1, ?2, (SELECT clock FROM ferryman_lane WHERE id = ?1) + ?3)"
        " ON CONFLICT DO UPDATE SET tag = max(tag, excluded.tag - ?3) + ?3 RETURNING tag",
        (lane.id, name, 1.0 / lane.weights.get(name, 1.0)),
    )
    return float(tag)
