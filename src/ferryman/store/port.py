"""The narrow waist: what Ferryman asks of a place where jobs live.

Every verb makes an `Operation`: one transaction over a batch, performed by a runner. Nothing above this
port knows which store it talks to, and no verb may be imitated: a store that cannot do one raises
`Unsupported`. The docstrings are contracts, and `tests/conformance` holds every store to them.

The verbs are sorted into five protocols: `Work` is what producers and workers call, `Coordination` is
what policies share between workers, `Steering` and `Reading` are for people, `Moving` (in `cargo.py`) is for
jobs that change stores. `Store` is all of them. What they are told and what they answer is in `records.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol

from ferryman.io.operation import AsyncRunner, GuestRunner, Operation, Runner
from ferryman.job import History, Job, JobId, NewJob, Outcome, WorkerId
from ferryman.store.cargo import Moving
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

__all__ = ["Coordination", "Guest", "Reading", "Steering", "Store", "Waker", "Work"]


class Work(Protocol):
    """What producers and workers call. Batches keep their order; an empty batch is allowed and does nothing."""

    def enqueue(self, jobs: Sequence[NewJob]) -> Operation[list[Enqueued]]:
        """Keep these jobs, all or none; once performed, none of them can be lost.

        Answers come in the order of the jobs. A job whose id is known already, or whose unique key is
        taken (by a stored job or an earlier one of the batch), is a duplicate: nothing is stored for it.
        A job starts its life WAITING if a parent is unfinished, else SCHEDULED if its moment is to come,
        else PARKED if its key has no room, else READY. Parents may be earlier jobs of the same batch.
        A parent that has already ended without success counts as `on_parent_failure` says; under
        ``cancel`` the job is stored as CANCELLED.

        In a full queue with the rule ``drop_oldest``, the oldest pending jobs are cancelled to make room.

        Raises UnknownParent, QueueFull (also if the batch alone exceeds the bound): nothing is stored.
        """
        ...

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int) -> Operation[Claimed]:
        """Lease up to `limit` jobs to a registered worker, as the plan says, in the plan's order.

        First, due SCHEDULED jobs are promoted (to READY, or PARKED if their key is full) and pending jobs
        past their deadline expire, some thousand of each at most. Then each `Take` is served in lane
        order: by fairness tag, then by arrival. A ready job past its deadline is expired, never returned.
        Paused queues give nothing. A claimed job's attempt and lease are one more than before.

        Raises WorkerGone if the worker is not registered, has left or was rescued from.
        """
        ...

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome]) -> Operation[list[bool]]:
        """Carry out what became of leased jobs. Answers, for each: True accepted, False lost.

        An outcome is accepted only if the job is RUNNING under this worker and lease; a lost one changes
        nothing. What each kind does is said at `OutcomeKind`. A RETRY or CRASHED outcome of the last
        attempt makes the job DEAD, as does the `MAX_DEATHS`-th CRASHED one. A job that was to be cancelled does
        not run again: outcomes of the kinds `ferryman.job.RERUNS` make it CANCELLED. Failed and crashed
        attempts are recorded with the job, and so is a snooze's reason.

        A job that finishes gives back its key's place and its unique key, and its children learn of it, in
        the same transaction: parked jobs of the key are admitted in order (priority, then arrival), children
        whose last parent it was go on, and children of a parent that failed do as they were told, down
        through their own children. A job that will be retried later (delay > 0) or is snoozed gives back
        its place, unless it is `ordered`. One that runs again at once keeps it. A RELEASED one whose unique key was free from
        its claim on takes the key again, unless another job has it by now.

        All outcomes of a call happen at one moment: if one of them frees a place and another lets a child arrive at the
        same key, which of the two is first is the store's affair.
        """
        ...

    def annotate(self, worker: WorkerId, notes: Sequence[JobNote]) -> Operation[None]:
        """Keep progress and notes of running jobs; those of lost leases are dropped. At most 1,000 notes a
        job are kept, the newest; a note's text is cut at 4,000 characters."""
        ...

    def peek(self, worker: WorkerId) -> Operation[Signs]:
        """Look, without writing, whether it is worth to claim or to ask for orders."""
        ...

    def register(self, info: WorkerInfo, lease: int) -> Operation[None]:
        """Make a worker known, with a lease of so many ms on all it will claim; or say anew what it is. One that is gone
        stays so."""
        ...

    def heartbeat(
        self, worker: WorkerId, status: WorkerStatus, lease: int, heard: int = 0
    ) -> Operation[Orders]:
        """Renew all leases of the worker and collect its orders. `heard` is what the last answer gave as `last`: those
        orders are forgotten. So each is given once, and again only if the answer was lost on its way.

        Raises WorkerGone if it is not registered, has left or was rescued from.
        """
        ...

    def holding(self, worker: WorkerId) -> Operation[list[Held]]:
        """All jobs that are leased to a worker. One that it does not know of was given to it in an answer that was
        lost on its way."""
        ...

    def leave(self, worker: WorkerId) -> Operation[None]:
        """Take a worker off the register. What it still holds is settled as CRASHED, without counting a death."""
        ...

    def rescue(self, dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[Rescued]]:
        """Take back all running jobs of workers whose lease has ended (if `late`), and of those named as dead.

        Their attempt is spent and their death counted: each is settled as CRASHED, with a line that
        names the worker. The workers are marked as dead. Nothing happens to ones that are gone already.
        """
        ...

    def prune(self, retention: Retention, limit: int) -> Operation[Pruned]:
        """Delete up to `limit` finished jobs, and old statistics, workers, locks and values, whose time is over
        or that are too many, the oldest first; of values, unique keys and results of jobs that stay, at least `limit` each
        if there are so many. Jobs that an unfinished job waits for, or whose result an unfinished child will want, stay, and
        so do all while there is a value named `ARRIVING`; where there are thousands of the former, one may stay for a minute after
        the last child has ended. A unique key that is taken for a period outlives its job."""
        ...

    def parent_results(self, job: JobId, offset: int, limit: int) -> Operation[list[ParentResult]]:
        """The results of a job's parents, in the order in which they were named at enqueue."""
        ...


class Coordination(Protocol):
    """What policies and duties share between workers."""

    def lock(self, name: str, owner: str, ttl: int) -> Operation[int | None]:
        """Take or renew a named lock for `ttl` ms. Answers its fencing token, which grows with each change of
        owner, or None if another owner holds it."""
        ...

    def unlock(self, name: str, owner: str) -> Operation[bool]:
        """Give a lock back. False if it was not (any more) the owner's."""
        ...

    def kv_get(self, key: str) -> Operation[Entry | None]:
        """The value of a key, unless it has expired."""
        ...

    def kv_put(
        self, key: str, value: bytes, *, expected: int | None, ttl: int | None = None
    ) -> Operation[int | None]:
        """Compare and set: store the value if the key's version is `expected` (None: there is no such key).
        Answers the new version, larger than any before it, or None if the comparison failed."""
        ...

    def kv_delete(self, key: str) -> Operation[bool]:
        """Forget a key. False if there was none."""
        ...


class Steering(Protocol):
    """What people do to jobs, queues and workers.

    Verbs that take a `Filter` change at most `limit` jobs, the oldest first, and answer how many: call
    again until the answer is 0.
    """

    def declare(self, queues: Sequence[QueueSettings]) -> Operation[None]:
        """Set the settings of queues. Jobs that wait already are left as they are."""
        ...

    def pause(self, queues: Sequence[str], paused: bool) -> Operation[None]:
        """Stop or resume claims from these queues; they are made if they do not exist."""
        ...

    def cancel(self, which: Filter, limit: int, reason: str | None = None) -> Operation[int]:
        """Cancel jobs: pending ones now; for running ones their worker gets an order, once for each lease, which
        is void when that lease has ended before it is read.
        Finished ones are not counted. Children are told as by a settle."""
        ...

    def replay(self, which: Filter, limit: int) -> Operation[int]:
        """Let finished jobs run again, with all their attempts, from READY (or PARKED). The filter should name
        states, since it means finished jobs of all four otherwise. One whose unique key has been
        taken by another job is left as it is. The history of earlier attempts is kept."""
        ...

    def edit(self, job: JobId, args: bytes) -> Operation[bool]:
        """Replace the arguments of a job that is not running. False if there is no such job."""
        ...

    def reprioritise(self, which: Filter, priority: int, limit: int) -> Operation[int]:
        """Move pending jobs to another priority; those that have it already are not counted."""
        ...

    def delete(self, which: Filter, limit: int) -> Operation[int]:
        """Delete jobs that are not running, with all that is known of them. Children of pending ones are told as
        if it had been cancelled."""
        ...

    def order(self, workers: Sequence[WorkerId], order: Order) -> Operation[int]:
        """Leave an order for workers that are alive. Answers for how many."""
        ...


class Reading(Protocol):
    """What people look at. Nothing here writes."""

    def time(self) -> Operation[int]:
        """The store's time, by which all its moments are to be read: its machine need not agree with ours."""
        ...

    def get(self, ids: Sequence[JobId]) -> Operation[list[Job | None]]:
        """Jobs by id, in the order asked, with arguments and results."""
        ...

    def find(self, which: Filter, limit: int, before: int | None = None) -> Operation[list[Job]]:
        """Jobs that match, newest arrival first, without arguments and results. `before` is the `seq` of the last
        job of the previous page."""
        ...

    def history(self, job: JobId) -> Operation[History | None]:
        """All that is known of a job."""
        ...

    def lanes(self) -> Operation[list[LaneCounts]]:
        """All lanes that have or had jobs, by queue and falling priority. Costs the same at any backlog."""
        ...

    def queues(self) -> Operation[list[QueueRecord]]:
        """All queues that were declared, paused or used, by name."""
        ...

    def stats(self, since: int, until: int) -> Operation[list[MinuteStats]]:
        """Statistics of the minutes that begin in [since, until), by minute, queue and task."""
        ...

    def causes(self, which: Filter) -> Operation[list[CauseCount]]:
        """Dead letters grouped by task and cause, the most frequent first; of the filter's states, DEAD alone
        has a meaning."""
        ...

    def workers(self, *, alive: bool = False) -> Operation[list[WorkerRecord]]:
        """All workers on the register, oldest first; those that are gone included until they are pruned, unless only
        those are asked for that are `alive`."""
        ...


class Waker(Protocol):
    """How a sleeping worker learns that there may be work. Not thread-safe."""

    address: str | None
    """What to register as `WorkerInfo.bell`."""
    poll: float
    """How often, in seconds, to ask `changed()` all the same: a lost ring costs no more than this."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when somebody rings."""
        ...

    def drain(self) -> None:
        """Take in all rings."""
        ...

    def changed(self) -> bool:
        """Whether the store may have changed since this was last asked. Cheap; asks no lock."""
        ...

    def close(self) -> None: ...


class Guest(NamedTuple):
    """A store as a guest of its user's own transaction."""

    runner: GuestRunner
    enqueue: Callable[[Sequence[NewJob]], Operation[list[Enqueued]]]
    """As `Work.enqueue`, but fit for a transaction that may stay open for long: it does not make other producers
    wait where the store has room for several. What the jobs ask of rows that others share is then settled after the
    user's commit, by the next claim; bounds of queues are those seen now."""
    exclusive: bool
    """While the user's transaction is open, nobody else can write to the store. So whatever else must be written
    before the enqueue has to be written inside, too."""


class Store(Work, Coordination, Steering, Reading, Moving, Protocol):
    """A place where jobs live. Thread-safe; survives a fork."""

    capabilities: Capabilities
    url: str
    """Without passwords, fit to be shown."""

    def runner(self) -> Runner:
        """The blocking runner of this store."""
        ...

    def async_runner(self) -> AsyncRunner:
        """A runner for the running event loop."""
        ...

    def using(self, connection: object) -> Guest:
        """What it takes to enqueue on a connection of the user's, inside the user's transaction.

        Until that is committed, nobody sees the jobs; if it is rolled back, there never were any. What kinds of
        connection there are is said in `ferryman.io.guests`.

        Raises ConfigError for an object that is none of these or leads to another database, and Unsupported if
        this store has no transactions that others could share.
        """
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """A connection of its own to the store's database, in a transaction that is committed at the end and rolled
        back after an exception: psycopg's ``Connection`` or ``sqlite3.Connection``. Raises Unsupported as `using`."""
        ...

    def atransaction(self) -> AbstractAsyncContextManager[Any]:
        """`transaction`, for the running event loop: psycopg's ``AsyncConnection`` or ``sqlite3.Connection``."""
        ...

    def waker(self) -> Waker:
        """A new bell for a worker of this process."""
        ...

    def tidy(self) -> None:
        """Do what the store wants done now and then outside of any transaction, if there is such a thing. Each worker
        calls it every some seconds, from a thread that may be kept for long."""
        ...

    def close(self) -> None:
        """Let go of everything; the store must not be used afterwards."""
        ...
