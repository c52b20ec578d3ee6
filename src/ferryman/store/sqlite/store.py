"""The SQLite store: each verb names the operation that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from ferryman.clock import Clock, SystemClock
from ferryman.io.guests.sqlite import SqliteGuest
from ferryman.io.operation import AsyncRunner, Operation, Runner
from ferryman.io.sqlite import AsyncSqliteRunner, Database, SqliteRunner, SqliteWaker
from ferryman.io.sqlite.lending import Lender
from ferryman.job import History, Job, JobId, NewJob, Outcome, State, WorkerId
from ferryman.store.cargo import Parcel
from ferryman.store.port import Guest, Waker
from ferryman.store.records import (
    Capabilities,
    CauseCount,
    Claimed,
    Enqueued,
    Entry,
    Filter,
    Held,
    JobNote,
    LaneCounts,
    MinuteStats,
    Order,
    Orders,
    ParentResult,
    Pruned,
    QueueRecord,
    QueueSettings,
    Rescued,
    Retention,
    Signs,
    Take,
    WorkerInfo,
    WorkerRecord,
    WorkerStatus,
)
from ferryman.store.sqlite import cargo, claim, coordinate, enqueue, prune, read, settle, steer
from ferryman.store.sqlite import workers as registry
from ferryman.store.sqlite.schema import make, prepare

__all__ = ["SqliteStore"]


class SqliteStore:
    """Jobs in one file. Thread-safe; survives a fork. See `ferryman.store.port.Store` for the contracts."""

    capabilities = Capabilities(
        name="SQLite",
        durable=True,
        power="each commit is synced",
        shared=True,
        joins=True,
        wakes="a datagram; each 50 ms",
        idle="some reads of the file",
    )

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        self._database = Database(path, clock or SystemClock(), prepare)
        self._runner = SqliteRunner(self._database)
        self._lender = Lender(self._database.path)
        self.url = f"sqlite:///{path}"

    def runner(self) -> Runner:
        return self._runner

    def async_runner(self) -> AsyncRunner:
        return AsyncSqliteRunner(self._database)

    def using(self, connection: object) -> Guest:
        return Guest(SqliteGuest(connection, self._database, make), self.enqueue, exclusive=True)

    def transaction(self) -> AbstractContextManager[Any]:
        return self._lender.transaction()

    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        return self._lender.atransaction()

    def waker(self) -> Waker:
        return SqliteWaker(self._database)

    def tidy(self) -> None:
        pass  # Room that was given up is used again.

    def close(self) -> None:
        self._database.close()

    # -- work ------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        return Operation("enqueue", lambda now: enqueue.enqueue(now, jobs))

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int) -> Operation[Claimed]:
        # A claim that power loss undoes leaves a job that is ready, as if it had not been claimed.
        return Operation("claim", lambda now: claim.claim(now, worker, plan, limit), durable=False)

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
        return Operation("settle", lambda now: settle.settle(now, worker, outcomes))

    def annotate(self, worker: WorkerId, notes: Sequence[JobNote]) -> Operation[None]:
        return Operation("annotate", lambda now: settle.annotate(now, worker, notes))

    def peek(self, worker: WorkerId) -> Operation[Signs]:
        return Operation("peek", lambda now: claim.peek(now, worker), writes=False)

    def register(self, info: WorkerInfo, lease: int) -> Operation[None]:
        return Operation("register", lambda now: registry.register(now, info, lease))

    def heartbeat(
        self, worker: WorkerId, status: WorkerStatus, lease: int, heard: int = 0
    ) -> Operation[Orders]:
        return Operation("heartbeat", lambda now: registry.heartbeat(now, worker, status, lease, heard))

    def holding(self, worker: WorkerId) -> Operation[list[Held]]:
        return Operation("holding", lambda _: registry.holding(worker), writes=False)

    def leave(self, worker: WorkerId) -> Operation[None]:
        return Operation("leave", lambda now: registry.leave(now, worker))

    def rescue(self, dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[Rescued]]:
        return Operation("rescue", lambda now: registry.rescue(now, dead, late))

    def prune(self, retention: Retention, limit: int) -> Operation[Pruned]:
        return Operation("prune", lambda now: prune.prune(now, retention, limit))

    def parent_results(self, job: JobId, offset: int, limit: int) -> Operation[list[ParentResult]]:
        return Operation(
            "parent_results", lambda now: read.parent_results(now, job, offset, limit), writes=False
        )

    # -- coordination ------------------------------------------------------------------------------

    def lock(self, name: str, owner: str, ttl: int) -> Operation[int | None]:
        return Operation("lock", lambda now: coordinate.lock(now, name, owner, ttl))

    def unlock(self, name: str, owner: str) -> Operation[bool]:
        return Operation("unlock", lambda now: coordinate.unlock(now, name, owner))

    def kv_get(self, key: str) -> Operation[Entry | None]:
        return Operation("kv_get", lambda now: coordinate.kv_get(now, key), writes=False)

    def kv_put(
        self, key: str, value: bytes, *, expected: int | None, ttl: int | None = None
    ) -> Operation[int | None]:
        return Operation("kv_put", lambda now: coordinate.kv_put(now, key, value, expected, ttl))

    def kv_delete(self, key: str) -> Operation[bool]:
        return Operation("kv_delete", lambda now: coordinate.kv_delete(now, key))

    # -- steering ----------------------------------------------------------------------------------

    def declare(self, queues: Sequence[QueueSettings]) -> Operation[None]:
        return Operation("declare", lambda _: steer.declare(queues))

    def pause(self, queues: Sequence[str], paused: bool) -> Operation[None]:
        return Operation("pause", lambda now: steer.pause(now, queues, paused))

    def cancel(self, which: Filter, limit: int, reason: str | None = None) -> Operation[int]:
        return Operation("cancel", lambda now: steer.cancel(now, which, limit, reason))

    def replay(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("replay", lambda now: steer.replay(now, which, limit))

    def edit(self, job: JobId, args: bytes) -> Operation[bool]:
        return Operation("edit", lambda _: steer.edit(job, args))

    def reprioritise(self, which: Filter, priority: int, limit: int) -> Operation[int]:
        return Operation("reprioritise", lambda now: steer.reprioritise(now, which, priority, limit))

    def delete(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("delete", lambda now: steer.delete(now, which, limit))

    def order(self, workers: Sequence[WorkerId], order: Order) -> Operation[int]:
        return Operation("order", lambda now: registry.order(now, workers, order))

    # -- moving ------------------------------------------------------------------------------------

    def pack(
        self, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId] = ()
    ) -> Operation[list[Parcel]]:
        return Operation("pack", lambda now: cargo.pack(now, states, after, limit, ids), writes=False)

    def unpack(self, parcels: Sequence[Parcel]) -> Operation[list[bool]]:
        return Operation("unpack", lambda now: cargo.unpack(now, parcels))

    def forget(self, ids: Sequence[JobId], states: Sequence[State] = ()) -> Operation[int]:
        return Operation("forget", lambda now: cargo.forget(now, ids, states))

    # -- reading -----------------------------------------------------------------------------------

    def time(self) -> Operation[int]:
        return Operation("time", read.time, writes=False)

    def get(self, ids: Sequence[JobId]) -> Operation[list[Job | None]]:
        return Operation("get", lambda now: read.get(now, ids), writes=False)

    def find(self, which: Filter, limit: int, before: int | None = None) -> Operation[list[Job]]:
        return Operation("find", lambda _: read.find(which, limit, before), writes=False)

    def history(self, job: JobId) -> Operation[History | None]:
        return Operation("history", lambda now: read.history(now, job), writes=False)

    def lanes(self) -> Operation[list[LaneCounts]]:
        return Operation("lanes", lambda _: read.lanes(), writes=False)

    def queues(self) -> Operation[list[QueueRecord]]:
        return Operation("queues", lambda _: read.queues(), writes=False)

    def stats(self, since: int, until: int) -> Operation[list[MinuteStats]]:
        return Operation("stats", lambda _: read.stats(since, until), writes=False)

    def causes(self, which: Filter) -> Operation[list[CauseCount]]:
        return Operation("causes", lambda _: read.causes(which), writes=False)

    def workers(self, *, alive: bool = False) -> Operation[list[WorkerRecord]]:
        return Operation("workers", lambda _: read.workers(alive), writes=False)
