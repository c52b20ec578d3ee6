"""The PostgreSQL store: each verb names the operation that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from ferryman.clock import Clock
from ferryman.io.guests.postgres import PostgresGuest
from ferryman.io.operation import AsyncRunner, Operation, Runner
from ferryman.io.postgres import AsyncPostgresRunner, Database, PostgresRunner, PostgresWaker, parse_url
from ferryman.io.postgres.lending import Lender
from ferryman.io.postgres.vacuuming import vacuum
from ferryman.job import History, Job, JobId, NewJob, Outcome, State, WorkerId
from ferryman.store.cargo import Parcel
from ferryman.store.port import Guest, Waker
from ferryman.store.postgres import cargo, claim, coordinate, enqueue, prune, read, settle, steer, tidy
from ferryman.store.postgres import workers as registry
from ferryman.store.postgres.schema import prepare
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

__all__ = ["PostgresStore"]


class PostgresStore:
    """Jobs in a schema of a PostgreSQL database. Thread-safe; survives a fork. See `ferryman.store.port.Store`."""

    capabilities = Capabilities(
        name="PostgreSQL",
        durable=True,
        power="`fsync` and `synchronous_commit`, on unless you turn them off",
        shared=True,
        remote=True,
        own_time=True,
        joins=True,
        wakes="`NOTIFY`; each 0.4 s",
        idle="about 3 statements",
        undoes_late=False,
    )

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        """`clock` stands in for the server's time, for tests."""
        address = parse_url(url)
        self._schema = schema = address.schema
        self._database = Database(address, clock, lambda connection: prepare(connection, schema))
        self._runner = PostgresRunner(self._database)
        self._lender = Lender(address)
        self.url = address.shown

    def runner(self) -> Runner:
        return self._runner

    def async_runner(self) -> AsyncRunner:
        return AsyncPostgresRunner(self._database)

    def using(self, connection: object) -> Guest:
        return Guest(PostgresGuest(connection, self._database), self._enqueue_deferred, exclusive=False)

    def transaction(self) -> AbstractContextManager[Any]:
        return self._lender.transaction()

    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        return self._lender.atransaction()

    def waker(self) -> Waker:
        return PostgresWaker(self._database.address)

    def tidy(self) -> None:
        if tables := self._runner.run(
            Operation("bloated", lambda _: tidy.bloated(self._schema), writes=False)
        ):
            vacuum(self._database.address, tables)

    def close(self) -> None:
        self._lender.close()
        self._database.close()

    # -- work ------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        return Operation("enqueue", lambda _: enqueue.enqueue(self._schema, jobs))

    def _enqueue_deferred(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        return Operation("enqueue", lambda _: enqueue.enqueue(self._schema, jobs, defer=True))

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int) -> Operation[Claimed]:
        # A claim that power loss undoes leaves a job that is ready, as if it had not been claimed.
        return Operation("claim", lambda _: claim.claim(self._schema, worker, plan, limit), durable=False)

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
        return Operation("settle", lambda _: settle.settle(self._schema, worker, outcomes))

    def annotate(self, worker: WorkerId, notes: Sequence[JobNote]) -> Operation[None]:
        # A job may have completed in a transaction of its own that goes on: then the others' notes are not to wait.
        return Operation("annotate", lambda _: settle.annotate(self._schema, worker, notes), patient=False)

    def peek(self, worker: WorkerId) -> Operation[Signs]:
        return Operation("peek", lambda _: claim.peek(self._schema, worker), writes=False)

    def register(self, info: WorkerInfo, lease: int) -> Operation[None]:
        return Operation("register", lambda _: registry.register(self._schema, info, lease))

    def heartbeat(
        self, worker: WorkerId, status: WorkerStatus, lease: int, heard: int = 0
    ) -> Operation[Orders]:
        return Operation(
            "heartbeat", lambda _: registry.heartbeat(self._schema, worker, status, lease, heard)
        )

    def holding(self, worker: WorkerId) -> Operation[list[Held]]:
        return Operation("holding", lambda _: registry.holding(self._schema, worker), writes=False)

    def leave(self, worker: WorkerId) -> Operation[None]:
        return Operation("leave", lambda _: registry.leave(self._schema, worker))

    def rescue(self, dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[Rescued]]:
        # Whoever does it from time to time has other things to do.
        return Operation("rescue", lambda _: registry.rescue(self._schema, dead, late), patient=False)

    def prune(self, retention: Retention, limit: int) -> Operation[Pruned]:
        return Operation("prune", lambda _: prune.prune(self._schema, retention, limit))

    def parent_results(self, job: JobId, offset: int, limit: int) -> Operation[list[ParentResult]]:
        return Operation(
            "parent_results", lambda _: read.parent_results(self._schema, job, offset, limit), writes=False
        )

    # -- coordination ------------------------------------------------------------------------------

    def lock(self, name: str, owner: str, ttl: int) -> Operation[int | None]:
        return Operation("lock", lambda _: coordinate.lock(self._schema, name, owner, ttl))

    def unlock(self, name: str, owner: str) -> Operation[bool]:
        return Operation("unlock", lambda _: coordinate.unlock(self._schema, name, owner))

    def kv_get(self, key: str) -> Operation[Entry | None]:
        return Operation("kv_get", lambda _: coordinate.kv_get(self._schema, key), writes=False)

    def kv_put(
        self, key: str, value: bytes, *, expected: int | None, ttl: int | None = None
    ) -> Operation[int | None]:
        return Operation("kv_put", lambda _: coordinate.kv_put(self._schema, key, value, expected, ttl))

    def kv_delete(self, key: str) -> Operation[bool]:
        return Operation("kv_delete", lambda _: coordinate.kv_delete(self._schema, key))

    # -- steering ----------------------------------------------------------------------------------

    def declare(self, queues: Sequence[QueueSettings]) -> Operation[None]:
        return Operation("declare", lambda _: steer.declare(self._schema, queues))

    def pause(self, queues: Sequence[str], paused: bool) -> Operation[None]:
        return Operation("pause", lambda _: steer.pause(self._schema, queues, paused))

    def cancel(self, which: Filter, limit: int, reason: str | None = None) -> Operation[int]:
        return Operation("cancel", lambda _: steer.cancel(self._schema, which, limit, reason))

    def replay(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("replay", lambda _: steer.replay(self._schema, which, limit))

    def edit(self, job: JobId, args: bytes) -> Operation[bool]:
        return Operation("edit", lambda _: steer.edit(self._schema, job, args))

    def reprioritise(self, which: Filter, priority: int, limit: int) -> Operation[int]:
        return Operation("reprioritise", lambda _: steer.reprioritise(self._schema, which, priority, limit))

    def delete(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("delete", lambda _: steer.delete(self._schema, which, limit))

    def order(self, workers: Sequence[WorkerId], order: Order) -> Operation[int]:
        return Operation("order", lambda _: registry.order(self._schema, workers, order))

    # -- moving ------------------------------------------------------------------------------------

    def pack(
        self, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId] = ()
    ) -> Operation[list[Parcel]]:
        return Operation("pack", lambda _: cargo.pack(self._schema, states, after, limit, ids), writes=False)

    def unpack(self, parcels: Sequence[Parcel]) -> Operation[list[bool]]:
        return Operation("unpack", lambda _: cargo.unpack(self._schema, parcels))

    def forget(self, ids: Sequence[JobId], states: Sequence[State] = ()) -> Operation[int]:
        return Operation("forget", lambda _: cargo.forget(self._schema, ids, states))

    # -- reading -----------------------------------------------------------------------------------

    def time(self) -> Operation[int]:
        return Operation("time", lambda _: read.time(self._schema), writes=False)

    def get(self, ids: Sequence[JobId]) -> Operation[list[Job | None]]:
        return Operation("get", lambda _: read.get(self._schema, ids), writes=False)

    def find(self, which: Filter, limit: int, before: int | None = None) -> Operation[list[Job]]:
        return Operation("find", lambda _: read.find(self._schema, which, limit, before), writes=False)

    def history(self, job: JobId) -> Operation[History | None]:
        return Operation("history", lambda _: read.history(self._schema, job), writes=False)

    def lanes(self) -> Operation[list[LaneCounts]]:
        return Operation("lanes", lambda _: read.lanes(self._schema), writes=False)

    def queues(self) -> Operation[list[QueueRecord]]:
        return Operation("queues", lambda _: read.queues(self._schema), writes=False)

    def stats(self, since: int, until: int) -> Operation[list[MinuteStats]]:
        return Operation("stats", lambda _: read.stats(self._schema, since, until), writes=False)

    def causes(self, which: Filter) -> Operation[list[CauseCount]]:
        return Operation("causes", lambda _: read.causes(self._schema, which), writes=False)

    def workers(self, *, alive: bool = False) -> Operation[list[WorkerRecord]]:
        return Operation("workers", lambda _: read.workers(self._schema, alive), writes=False)
