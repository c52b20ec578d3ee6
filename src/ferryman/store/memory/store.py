"""The memory store: each verb names the function that carries it out on the book."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

from ferryman.clock import Clock, SystemClock
from ferryman.io.operation import AsyncRunner, Operation, Requests, Runner
from ferryman.job import History, Job, JobId, NewJob, Outcome, State, WorkerId
from ferryman.store.cargo import Parcel
from ferryman.store.memory import cargo, claim, coordinate, enqueue, prune, read, settle, steer
from ferryman.store.memory import workers as registry
from ferryman.store.memory.book import Book
from ferryman.store.memory.runner import Apply, AsyncMemoryRunner, Desk, MemoryRunner, MemoryWaker
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
from ferryman.store.refusals import no_guests, no_transactions

__all__ = ["MemoryStore"]

T = TypeVar("T")
P = ParamSpec("P")


class MemoryStore:
    """Jobs in the memory of this process. Thread-safe. See `ferryman.store.port.Store` for the contracts.

    A fork of the process cannot use it: StoreUnavailable is raised there, and after `close`.
    """

    capabilities = Capabilities(
        name="Memory",
        durable=False,
        power="nothing",
        shared=False,
        wakes="the enqueue itself; each second",
        idle="nothing",
    )
    url = "memory://"

    def __init__(self, clock: Clock | None = None) -> None:
        self._desk = Desk(clock or SystemClock())
        self._runner = MemoryRunner(self._desk)

    def runner(self) -> Runner:
        return self._runner

    def async_runner(self) -> AsyncRunner:
        return AsyncMemoryRunner(self._desk)

    def using(self, connection: object) -> Guest:  # noqa: ARG002
        raise no_guests(self.url)

    def transaction(self) -> AbstractContextManager[Any]:
        raise no_transactions(self.url)

    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        raise no_transactions(self.url)

    def waker(self) -> Waker:
        return MemoryWaker(self._desk)

    def tidy(self) -> None:
        pass

    def close(self) -> None:
        self._desk.close()

    # -- work ------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        return _write("enqueue", enqueue.enqueue, jobs)

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int) -> Operation[Claimed]:
        return _write("claim", claim.claim, worker, plan, limit)

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
        return _write("settle", settle.settle, worker, outcomes)

    def annotate(self, worker: WorkerId, notes: Sequence[JobNote]) -> Operation[None]:
        return _write("annotate", settle.annotate, worker, notes)

    def peek(self, worker: WorkerId) -> Operation[Signs]:
        return _read("peek", claim.peek, worker)

    def register(self, info: WorkerInfo, lease: int) -> Operation[None]:
        return _write("register", registry.register, info, lease)

    def heartbeat(
        self, worker: WorkerId, status: WorkerStatus, lease: int, heard: int = 0
    ) -> Operation[Orders]:
        return _write("heartbeat", registry.heartbeat, worker, status, lease, heard)

    def holding(self, worker: WorkerId) -> Operation[list[Held]]:
        return _read("holding", registry.holding, worker)

    def leave(self, worker: WorkerId) -> Operation[None]:
        return _write("leave", registry.leave, worker)

    def rescue(self, dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[Rescued]]:
        return _write("rescue", registry.rescue, dead, late)

    def prune(self, retention: Retention, limit: int) -> Operation[Pruned]:
        return _write("prune", prune.prune, retention, limit)

    def parent_results(self, job: JobId, offset: int, limit: int) -> Operation[list[ParentResult]]:
        return _read("parent_results", read.parent_results, job, offset, limit)

    # -- coordination ------------------------------------------------------------------------------

    def lock(self, name: str, owner: str, ttl: int) -> Operation[int | None]:
        return _write("lock", coordinate.lock, name, owner, ttl)

    def unlock(self, name: str, owner: str) -> Operation[bool]:
        return _write("unlock", coordinate.unlock, name, owner)

    def kv_get(self, key: str) -> Operation[Entry | None]:
        return _read("kv_get", coordinate.kv_get, key)

    def kv_put(
        self, key: str, value: bytes, *, expected: int | None, ttl: int | None = None
    ) -> Operation[int | None]:
        return _write("kv_put", coordinate.kv_put, key, value, expected, ttl)

    def kv_delete(self, key: str) -> Operation[bool]:
        return _write("kv_delete", coordinate.kv_delete, key)

    # -- steering ----------------------------------------------------------------------------------

    def declare(self, queues: Sequence[QueueSettings]) -> Operation[None]:
        return _write("declare", steer.declare, queues)

    def pause(self, queues: Sequence[str], paused: bool) -> Operation[None]:
        return _write("pause", steer.pause, queues, paused)

    def cancel(self, which: Filter, limit: int, reason: str | None = None) -> Operation[int]:
        return _write("cancel", steer.cancel, which, limit, reason)

    def replay(self, which: Filter, limit: int) -> Operation[int]:
        return _write("replay", steer.replay, which, limit)

    def edit(self, job: JobId, args: bytes) -> Operation[bool]:
        return _write("edit", steer.edit, job, args)

    def reprioritise(self, which: Filter, priority: int, limit: int) -> Operation[int]:
        return _write("reprioritise", steer.reprioritise, which, priority, limit)

    def delete(self, which: Filter, limit: int) -> Operation[int]:
        return _write("delete", steer.delete, which, limit)

    def order(self, workers: Sequence[WorkerId], order: Order) -> Operation[int]:
        return _write("order", registry.order, workers, order)

    # -- moving ------------------------------------------------------------------------------------

    def pack(
        self, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId] = ()
    ) -> Operation[list[Parcel]]:
        return _read("pack", cargo.pack, states, after, limit, ids)

    def unpack(self, parcels: Sequence[Parcel]) -> Operation[list[bool]]:
        return _write("unpack", cargo.unpack, parcels)

    def forget(self, ids: Sequence[JobId], states: Sequence[State] = ()) -> Operation[int]:
        return _write("forget", cargo.forget, ids, states)

    # -- reading -----------------------------------------------------------------------------------

    def time(self) -> Operation[int]:
        return _read("time", read.time)

    def get(self, ids: Sequence[JobId]) -> Operation[list[Job | None]]:
        return _read("get", read.get, ids)

    def find(self, which: Filter, limit: int, before: int | None = None) -> Operation[list[Job]]:
        return _read("find", read.find, which, limit, before)

    def history(self, job: JobId) -> Operation[History | None]:
        return _read("history", read.history, job)

    def lanes(self) -> Operation[list[LaneCounts]]:
        return _read("lanes", read.lanes)

    def queues(self) -> Operation[list[QueueRecord]]:
        return _read("queues", read.queues)

    def stats(self, since: int, until: int) -> Operation[list[MinuteStats]]:
        return _read("stats", read.stats, since, until)

    def causes(self, which: Filter) -> Operation[list[CauseCount]]:
        return _read("causes", read.causes, which)

    def workers(self, *, alive: bool = False) -> Operation[list[WorkerRecord]]:
        return _read("workers", read.workers, alive)


def _write(
    name: str, function: Callable[Concatenate[Book, int, P], T], *args: P.args, **kwargs: P.kwargs
) -> Operation[T]:
    def body(now: int) -> Requests[T]:
        answer: T = yield Apply(lambda book: function(book, now, *args, **kwargs))
        return answer

    return Operation(name, body)


def _read(
    name: str, function: Callable[Concatenate[Book, int, P], T], *args: P.args, **kwargs: P.kwargs
) -> Operation[T]:
    operation = _write(name, function, *args, **kwargs)
    operation.writes = False
    return operation
