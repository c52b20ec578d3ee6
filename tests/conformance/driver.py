"""A thin driver, so that a test reads as what people and workers do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation, Runner
from ferryman.job import (
    PENDING,
    TRANSITIONS,
    Claim,
    ErrorInfo,
    History,
    Job,
    JobId,
    NewJob,
    Outcome,
    OutcomeKind,
    State,
    WorkerId,
    new_id,
)
from ferryman.store.port import Store
from ferryman.store.records import (
    Claimed,
    Enqueued,
    Filter,
    Order,
    ParentResult,
    Take,
    WorkerInfo,
    WorkerStatus,
)

T = TypeVar("T")

W1, W2, W3 = WorkerId("w1"), WorkerId("w2"), WorkerId("w3")
LEASE = 60_000
"""ms that the leases of the driver's workers last."""

ALL = 10_000
"""A limit that no test reaches."""

BOOM = ErrorInfo("ValueError", "boom")


def new_job(**fields: Any) -> NewJob:
    """A job of the task ``work`` with no arguments, unless told otherwise."""
    return NewJob(**{"id": new_id(), "task": "work", "args": b"[]", **fields})


def worker_info(worker: WorkerId, queues: Sequence[str] | None = None, **fields: Any) -> WorkerInfo:
    return WorkerInfo(
        **{
            "id": worker,
            "host": "dock",
            "place": "boot-1",
            "pid": 4711,
            "pid_birth": 1,
            "queues": None if queues is None else tuple(queues),
            "tasks": ("work",),
            "concurrency": 4,
            **fields,
        }
    )


class Ferry:
    """One store with a clock to move and a registered worker, `W1`."""

    def __init__(self, store: Store, clock: ManualClock, reopen: Callable[[], Store]) -> None:
        self.store = store
        self.clock = clock
        self.reopen = reopen
        """Opens the same place a second time; only for stores that are shared."""
        self.runner: Runner = store.runner()
        self._heard: dict[WorkerId, int] = {}
        """The number of the last order that a worker has heard."""
        self.register(W1)

    def run(self, operation: Operation[T]) -> T:
        return self.runner.run(operation)

    # -- producers

    def enqueue(self, *jobs: NewJob) -> list[Enqueued]:
        return self.run(self.store.enqueue(jobs))

    def add(self, **fields: Any) -> JobId:
        """Enqueue one job that is no duplicate; its id."""
        return self.add_many(1, **fields)[0]

    def add_many(self, count: int, **fields: Any) -> list[JobId]:
        answers = self.enqueue(*(new_job(**fields) for _ in range(count)))
        assert not any(answer.duplicate for answer in answers)
        return [answer.id for answer in answers]

    # -- workers

    def register(self, worker: WorkerId, queues: Sequence[str] | None = None, lease: int = LEASE) -> WorkerId:
        self.run(self.store.register(worker_info(worker, queues), lease))
        return worker

    def claimed(
        self, limit: int = 1, *, worker: WorkerId = W1, plan: Sequence[Take] | None = None
    ) -> Claimed:
        """Claim from every lane, the most urgent first, unless there is a plan."""
        if plan is None:
            lanes = self.run(self.store.lanes())
            lanes.sort(key=lambda lane: (-lane.priority, lane.queue))
            plan = [Take(lane.queue, lane.priority, limit) for lane in lanes]
        return self.run(self.store.claim(worker, plan, limit))

    def claim(
        self, limit: int = 1, *, worker: WorkerId = W1, plan: Sequence[Take] | None = None
    ) -> list[Claim]:
        return list(self.claimed(limit, worker=worker, plan=plan).jobs)

    def take(self, worker: WorkerId = W1) -> Claim:
        """Claim the one job that is first."""
        (claim,) = self.claim(1, worker=worker)
        return claim

    def settle(self, claim: Claim, kind: OutcomeKind, *, worker: WorkerId = W1, **fields: Any) -> bool:
        if kind in (OutcomeKind.RETRY, OutcomeKind.DEAD):
            fields.setdefault("error", BOOM)
        outcome = Outcome(id=claim.id, lease=claim.lease, kind=kind, **fields)
        (accepted,) = self.run(self.store.settle(worker, [outcome]))
        return accepted

    def succeed(self, *claims: Claim, worker: WorkerId = W1, result: bytes | None = None) -> None:
        outcomes = [Outcome(c.id, c.lease, OutcomeKind.SUCCEEDED, result=result) for c in claims]
        answers = self.run(self.store.settle(worker, outcomes))
        assert all(answers)

    def finish_next(self, kind: OutcomeKind = OutcomeKind.SUCCEEDED, **fields: Any) -> JobId:
        """Claim the first job and settle it."""
        claim = self.take()
        assert self.settle(claim, kind, **fields)
        return claim.id

    def drain(self, batch: int = 100) -> list[JobId]:
        """Run all jobs that are ready, with success; their ids in the order of the claims."""
        done: list[JobId] = []
        while claims := self.claim(batch):
            self.succeed(*claims)
            done += [claim.id for claim in claims]
        return done

    def heartbeat(self, worker: WorkerId = W1, lease: int = LEASE) -> list[Order]:
        """The orders that it has not heard yet."""
        heard = self._heard.get(worker, 0)
        answer = self.run(self.store.heartbeat(worker, WorkerStatus(), lease, heard))
        self._heard[worker] = answer.last
        return list(answer.orders)

    def parents_of(self, job: JobId, offset: int = 0, limit: int = ALL) -> list[ParentResult]:
        return self.run(self.store.parent_results(job, offset, limit))

    # -- people

    def cancel(self, *ids: JobId, reason: str | None = None) -> int:
        return self.run(self.store.cancel(Filter(ids=ids), ALL, reason))

    def replay(self, *ids: JobId) -> int:
        return self.run(self.store.replay(Filter(ids=ids), ALL))

    def delete(self, *ids: JobId) -> int:
        return self.run(self.store.delete(Filter(ids=ids), ALL))

    def job(self, job: JobId) -> Job:
        (found,) = self.run(self.store.get([job]))
        assert found is not None, f"the store does not have job {job}"
        return found

    def has(self, job: JobId) -> bool:
        return self.run(self.store.get([job])) != [None]

    def state(self, job: JobId) -> State:
        return self.job(job).state

    def states(self, ids: Sequence[JobId]) -> list[State | None]:
        return [job.state if job else None for job in self.run(self.store.get(ids))]

    def history(self, job: JobId) -> History:
        history = self.run(self.store.history(job))
        assert history is not None, f"the store does not have job {job}"
        return history

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        return self.run(self.store.find(Filter(), 1_000_000))[::-1]


def counts_of_rows(jobs: Sequence[Job]) -> dict[tuple[str, int], dict[State, int]]:
    """Jobs by lane and state, counted one by one."""
    counts: dict[tuple[str, int], Counter[State]] = {}
    for job in jobs:
        counts.setdefault((job.queue, job.priority), Counter())[job.state] += 1
    return {lane: dict(states) for lane, states in counts.items()}


def counts_as_kept(store: Store) -> dict[tuple[str, int], dict[State, int]]:
    """Jobs by lane and state, as the store keeps count of them."""
    counts = {
        (lane.queue, lane.priority): {state: n for state, n in lane.counts.items() if n}
        for lane in store.runner().run(store.lanes())
    }
    return {lane: states for lane, states in counts.items() if states}


def may_become(before: State | None, after: State) -> bool:
    """Whether one operation can do this. A job passes through pending states unseen: a claim may promote one, let
    it into its key and start it."""
    seen, edge = {before}, [before]
    while edge:
        allowed = TRANSITIONS[edge.pop()]
        if after in allowed:
            return True
        edge += (allowed & PENDING) - seen
        seen |= allowed
    return False


def check_counts(store: Store) -> None:
    """Invariant: counts equal the rows."""
    jobs = store.runner().run(store.find(Filter(), 1_000_000))
    assert counts_as_kept(store) == counts_of_rows(jobs)


def wakes(sleeper: Runner, store: Store, runner: Runner) -> bool:
    """Whether a thread that waits for a minute is woken by commits of `runner`."""
    awake = threading.Event()

    def sleep() -> None:
        sleeper.wait(60)
        awake.set()

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    for _ in range(200):
        runner.run(store.enqueue([new_job()]))
        if awake.wait(0.05):
            thread.join()
            return True
    return False
