"""The Redis store: each verb names the file that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from ferryman.clock import Clock, SystemClock
from ferryman.io.operation import AsyncRunner, Operation, Runner
from ferryman.io.redis import AsyncRedisRunner, Doorbell, RedisRunner, RedisWaker, Server
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
from ferryman.store.redis import cargo, claim, coordinate, enqueue, prune, read, settle, steer
from ferryman.store.redis import workers as registry
from ferryman.store.redis.library import load_library
from ferryman.store.refusals import no_guests, no_transactions

__all__ = ["RedisStore"]


class RedisStore:
    """Jobs in a Redis server. Thread-safe; survives a fork. See `ferryman.store.port.Store` for the contracts.

    How durable they are is the server's to say: `durable` means with its append-only file switched on.

    While a call is carried out, the server does nothing else. That takes some microseconds for each job of a batch, and
    some ten for each child of a job that ends: batches of a few thousand keep others from waiting.
    """

    capabilities = Capabilities(
        name="Redis",
        durable=True,
        power="`appendonly yes` and `appendfsync always`; with `everysec`, the last second may be lost",
        shared=True,
        remote=True,
        own_time=True,
        wakes="a published message; each 0.4 s",
        idle="about 3 calls",
        undoes_late=False,
    )

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._server = Server(url, clock or SystemClock(), load_library())
        self._doorbell = Doorbell(self._server)
        self._runner = RedisRunner(self._server, self._doorbell)
        self.url = self._server.address.shown

    def runner(self) -> Runner:
        return self._runner

    def async_runner(self) -> AsyncRunner:
        return AsyncRedisRunner(self._server, self._doorbell)

    def using(self, connection: object) -> Guest:  # noqa: ARG002
        raise no_guests(self.url)

    def transaction(self) -> AbstractContextManager[Any]:
        raise no_transactions(self.url)

    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        raise no_transactions(self.url)

    def waker(self) -> Waker:
        return RedisWaker(self._server)

    def tidy(self) -> None:
        pass  # The server rewrites its log by itself.

    def close(self) -> None:
        self._runner.close()

    # -- work ------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        return Operation("enqueue", lambda _: enqueue.enqueue(jobs))

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int) -> Operation[Claimed]:
        return Operation("claim", lambda _: claim.claim(worker, plan, limit))

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
        return Operation("settle", lambda _: settle.settle(worker, outcomes))

    def annotate(self, worker: WorkerId, notes: Sequence[JobNote]) -> Operation[None]:
        return Operation("annotate", lambda _: settle.annotate(worker, notes))

    def peek(self, worker: WorkerId) -> Operation[Signs]:
        return Operation("peek", lambda _: claim.peek(worker), writes=False)

    def register(self, info: WorkerInfo, lease: int) -> Operation[None]:
        return Operation("register", lambda _: registry.register(info, lease))

    def heartbeat(
        self, worker: WorkerId, status: WorkerStatus, lease: int, heard: int = 0
    ) -> Operation[Orders]:
        return Operation("heartbeat", lambda _: registry.heartbeat(worker, status, lease, heard))

    def holding(self, worker: WorkerId) -> Operation[list[Held]]:
        return Operation("holding", lambda _: registry.holding(worker), writes=False)

    def leave(self, worker: WorkerId) -> Operation[None]:
        return Operation("leave", lambda _: registry.leave(worker))

    def rescue(self, dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[Rescued]]:
        return Operation("rescue", lambda _: registry.rescue(dead, late))

    def prune(self, retention: Retention, limit: int) -> Operation[Pruned]:
        return Operation("prune", lambda _: prune.prune(retention, limit))

    def parent_results(self, job: JobId, offset: int, limit: int) -> Operation[list[ParentResult]]:
        return Operation("parent_results", lambda _: read.parent_results(job, offset, limit), writes=False)

    # -- coordination ------------------------------------------------------------------------------

    def lock(self, name: str, owner: str, ttl: int) -> Operation[int | None]:
        return Operation("lock", lambda _: coordinate.lock(name, owner, ttl))

    def unlock(self, name: str, owner: str) -> Operation[bool]:
        return Operation("unlock", lambda _: coordinate.unlock(name, owner))

    def kv_get(self, key: str) -> Operation[Entry | None]:
        return Operation("kv_get", lambda _: coordinate.kv_get(key), writes=False)

    def kv_put(
        self, key: str, value: bytes, *, expected: int | None, ttl: int | None = None
    ) -> Operation[int | None]:
        return Operation("kv_put", lambda _: coordinate.kv_put(key, value, expected, ttl))

    def kv_delete(self, key: str) -> Operation[bool]:
        return Operation("kv_delete", lambda _: coordinate.kv_delete(key))

    # -- steering ----------------------------------------------------------------------------------

    def declare(self, queues: Sequence[QueueSettings]) -> Operation[None]:
        return Operation("declare", lambda _: steer.declare(queues))

    def pause(self, queues: Sequence[str], paused: bool) -> Operation[None]:
        return Operation("pause", lambda _: steer.pause(queues, paused))

    def cancel(self, which: Filter, limit: int, reason: str | None = None) -> Operation[int]:
        return Operation("cancel", lambda _: steer.cancel(which, limit, reason))

    def replay(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("replay", lambda _: steer.replay(which, limit))

    def edit(self, job: JobId, args: bytes) -> Operation[bool]:
        return Operation("edit", lambda _: steer.edit(job, args))

    def reprioritise(self, which: Filter, priority: int, limit: int) -> Operation[int]:
        return Operation("reprioritise", lambda _: steer.reprioritise(which, priority, limit))

    def delete(self, which: Filter, limit: int) -> Operation[int]:
        return Operation("delete", lambda _: steer.delete(which, limit))

    def order(self, workers: Sequence[WorkerId], order: Order) -> Operation[int]:
        return Operation("order", lambda _: registry.order(workers, order))

    # -- moving ------------------------------------------------------------------------------------

    def pack(
        self, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId] = ()
    ) -> Operation[list[Parcel]]:
        return Operation("pack", lambda _: cargo.pack(states, after, limit, ids), writes=False)

    def unpack(self, parcels: Sequence[Parcel]) -> Operation[list[bool]]:
        return Operation("unpack", lambda _: cargo.unpack(parcels))

    def forget(self, ids: Sequence[JobId], states: Sequence[State] = ()) -> Operation[int]:
        return Operation("forget", lambda _: cargo.forget(ids, states))

    # -- reading -----------------------------------------------------------------------------------

    def time(self) -> Operation[int]:
        return Operation("time", lambda _: read.time(), writes=False)

    def get(self, ids: Sequence[JobId]) -> Operation[list[Job | None]]:
        return Operation("get", lambda _: read.get(ids), writes=False)

    def find(self, which: Filter, limit: int, before: int | None = None) -> Operation[list[Job]]:
        return Operation("find", lambda _: read.find(which, limit, before), writes=False)

    def history(self, job: JobId) -> Operation[History | None]:
        return Operation("history", lambda _: read.history(job), writes=False)

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
