"""Each store against the model: whatever is done to both, they agree after every step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ferryman.clock import ManualClock
from ferryman.errors import WorkerGone
from ferryman.job import FINISHED, Job, JobId, NewJob, Outcome, OutcomeKind, State, Unique, WorkerId
from ferryman.store.port import Filter, Take, WorkerStatus

from .driver import BOOM, counts_as_kept, counts_of_rows, may_become, worker_info
from .model import Model
from .stores import Candidate

# Steps of the clock are multiples of 500 ms; deadlines and leases never fall on one, delays do.
STEPS = st.sampled_from([500, 1_000, 2_000, 5_000])
DELAYS = st.sampled_from([0, 0, 1_000, 3_000])
TTLS = st.sampled_from([None, None, None, 2_250])
LEASE = 10_250

QUEUES = st.sampled_from(["a", "b"])
PRIORITIES = st.sampled_from([0, 0, 1])
SLOTS = st.integers(0, 2)
"""Three berths, each with one worker at a time."""

UNIQUE = st.sampled_from(
    [None, None, None, Unique("once"), Unique("twice"), Unique("started", until="started")]
)
KEYS = st.sampled_from([None, None, ("plain", False), ("plain", False), ("ordered", True)])
LIMITS = st.sampled_from([1, 2, 50])


class Crossing(RuleBasedStateMachine):
    """Drives a store and the model side by side."""

    candidate: ClassVar[Candidate]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.store = self.candidate.open(Path(self.folder.name), self.clock)
        self.runner = self.store.runner()
        self.model = Model()
        self.births = 0
        self.deaths = 0
        self.leased: list[tuple[WorkerId, JobId, int]] = []
        """Every lease there ever was."""
        self.workers = [self._sign_on(slot) for slot in range(3)]
        self.last: dict[JobId, State] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def _sign_on(self, slot: int) -> WorkerId:
        self.deaths += 1
        worker = WorkerId(f"w{slot}-{self.deaths}")
        self.runner.run(self.store.register(worker_info(worker), LEASE))
        self.model.register(worker, LEASE, self.clock.now())
        return worker

    # -- producers

    def _new(self, data: st.DataObject) -> NewJob:
        self.births += 1
        key, ordered = data.draw(KEYS) or (None, False)
        parents: list[JobId] = []
        if self.model.rows and data.draw(st.integers(0, 2)) == 0:
            parents = data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), max_size=2))
        return NewJob(
            id=JobId(f"{self.births:032x}"),
            task="work",
            args=b"[]",
            queue=data.draw(QUEUES),
            priority=data.draw(PRIORITIES),
            max_attempts=data.draw(st.integers(1, 4)),
            delay=data.draw(DELAYS),
            ttl=data.draw(TTLS),
            key=key,
            room=1 if ordered else data.draw(st.integers(1, 3)),
            ordered=ordered,
            unique=data.draw(UNIQUE),
            after=tuple(parents),
            on_parent_failure=data.draw(st.sampled_from(["cancel", "continue", "hold"])),
        )

    @rule(data=st.data(), count=st.sampled_from([1, 1, 2, 4]))
    def enqueue(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            job = self._new(data)
            answers = self.runner.run(self.store.enqueue([job]))
            expected = self.model.enqueue([job], self.clock.now())
            assert [(answer.id, answer.duplicate) for answer in answers] == expected

    @precondition(lambda self: bool(self.model.rows))
    @rule(data=st.data())
    def enqueue_again(self, data: st.DataObject) -> None:
        job = self.model.rows[data.draw(st.sampled_from(sorted(self.model.rows)))].new

        (answer,) = self.runner.run(self.store.enqueue([job]))

        assert (answer.id, answer.duplicate) == (job.id, True)

    # -- workers

    @rule(
        slot=SLOTS,
        plan=st.lists(
            st.builds(Take, QUEUES, st.sampled_from([0, 1]), st.integers(1, 4)), min_size=1, max_size=4
        ),
        limit=st.integers(1, 6),
    )
    def claim(self, slot: int, plan: list[Take], limit: int) -> None:
        worker = self.workers[slot]
        operation = self.store.claim(worker, plan, limit)
        try:
            expected = self.model.claim(worker, plan, limit, self.clock.now())
        except WorkerGone:
            with pytest.raises(WorkerGone):
                self.runner.run(operation)
            return

        claimed = self.runner.run(operation)

        assert [claim.id for claim in claimed.jobs] == expected
        for claim in claimed.jobs:
            row = self.model.rows[claim.id]
            assert (claim.attempt, claim.lease, claim.deaths) == (row.attempt, row.lease, row.deaths)
            self.leased.append((worker, claim.id, claim.lease))
        due = [row.run_at for row in self.model.rows.values() if row.state is State.SCHEDULED]
        assert claimed.next_due == min(due, default=None)
        told = sorted((lane.queue, lane.priority, lane.depth, lane.oldest) for lane in claimed.lanes)
        lanes = {(queue, p): self.model.lane(queue, p) for queue in "ab" for p in (0, 1, 2)}
        assert told == [(*lane, len(rows), rows[0].run_at) for lane, rows in sorted(lanes.items()) if rows]

    @precondition(lambda self: bool(self.leased))
    @rule(data=st.data(), kind=st.sampled_from(OutcomeKind), delay=DELAYS)
    def settle(self, data: st.DataObject, kind: OutcomeKind, delay: int) -> None:
        """A lease of any age; the newest are the likeliest, since shrinking prefers the first."""
        worker, job, lease = data.draw(st.sampled_from(self.leased[::-1]))
        if data.draw(st.integers(0, 9)) == 9:
            worker = self.workers[data.draw(SLOTS)]
        outcome = self._outcome(job, lease, kind, delay)

        answers = self.runner.run(self.store.settle(worker, [outcome]))

        assert answers == self.model.settle(worker, [outcome], self.clock.now())

    @rule(slot=SLOTS, kind=st.sampled_from([*OutcomeKind, OutcomeKind.SUCCEEDED]), delay=DELAYS)
    def settle_all(self, slot: int, kind: OutcomeKind, delay: int) -> None:
        """All that a worker holds, one outcome after another."""
        worker = self.workers[slot]
        for row in self.model.held_by(worker):
            outcome = self._outcome(row.id, row.lease, kind, delay)
            assert self.runner.run(self.store.settle(worker, [outcome])) == [True]
            self.model.settle(worker, [outcome], self.clock.now())

    def _outcome(self, job: JobId, lease: int, kind: OutcomeKind, delay: int) -> Outcome:
        if kind is OutcomeKind.SNOOZED:
            delay = delay or 1_000
        return Outcome(job, lease, kind, delay=delay, error=BOOM)

    @rule(milliseconds=STEPS)
    def advance(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds / 1000)

    @rule(slot=SLOTS)
    def heartbeat(self, slot: int) -> None:
        worker = self.workers[slot]
        operation = self.store.heartbeat(worker, WorkerStatus(), LEASE)
        try:
            self.model.heartbeat(worker, LEASE, self.clock.now())
        except WorkerGone:
            with pytest.raises(WorkerGone):
                self.runner.run(operation)
            self.workers[slot] = self._sign_on(slot)
            return

        orders = self.runner.run(operation)

        told = {
            (order.job, self.model.rows[order.job].lease) for order in orders if order.job in self.model.rows
        }
        assert told <= self.model.told

    @rule(named=st.sets(SLOTS, max_size=1))
    def rescue(self, named: set[int]) -> None:
        dead = [self.workers[slot] for slot in sorted(named)]

        rescued = self.runner.run(self.store.rescue(dead))

        expected = self.model.rescue(dead, self.clock.now())
        assert {r.worker: (r.again, r.dead) for r in rescued} == expected

    @rule(slot=SLOTS)
    def leave(self, slot: int) -> None:
        self.runner.run(self.store.leave(self.workers[slot]))
        self.model.leave(self.workers[slot], self.clock.now())
        self.workers[slot] = self._sign_on(slot)

    # -- people

    def _which(self, data: st.DataObject) -> tuple[Filter, Any]:
        """A filter, and the same as a test of the model's rows."""
        if self.model.rows and data.draw(st.integers(0, 3)) > 0:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), min_size=1, max_size=3))
            return Filter(ids=tuple(dict.fromkeys(ids))), lambda row: row.id in ids
        queue, state = data.draw(QUEUES), data.draw(st.sampled_from(State))
        return (
            Filter(queues=(queue,), states=(state,)),
            lambda row: (row.new.queue, row.state) == (queue, state),
        )

    @rule(data=st.data(), limit=LIMITS)
    def cancel(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.cancel(which, limit, "told to"))

        # Of several, one may be cancelled as the child of another: either count is right.
        expected = self.model.cancel(test, limit, self.clock.now())
        assert bool(count) == bool(expected)
        assert count <= expected

    @rule(data=st.data(), limit=LIMITS)
    def replay(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.replay(which, limit))

        assert count == self.model.replay(test, limit, self.clock.now())

    @rule(data=st.data(), priority=st.sampled_from([0, 1, 2]), limit=LIMITS)
    def reprioritise(self, data: st.DataObject, priority: int, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.reprioritise(which, priority, limit))

        assert count == self.model.reprioritise(test, priority, limit)

    @rule(data=st.data(), limit=st.sampled_from([1, 2]))
    def delete(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.delete(which, limit))

        assert count == self.model.delete(test, limit, self.clock.now())

    @rule(queue=QUEUES, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        self.runner.run(self.store.pause([queue], paused))
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    # -- what holds after every step

    @invariant()
    def all_is_well(self) -> None:
        jobs = self.runner.run(self.store.find(Filter(), 10_000))
        assert counts_as_kept(self.store) == counts_of_rows(jobs)
        self._agrees_with_the_model(jobs)
        self._nothing_is_stuck(jobs)
        for job in jobs:
            before = self.last.get(job.id)
            assert before == job.state or may_become(before, job.state), f"{before} became {job.state}"
        self.last = {job.id: job.state for job in jobs}

    def _agrees_with_the_model(self, jobs: list[Job]) -> None:
        rows = self.model.rows
        assert [job.id for job in jobs] == list(rows)[::-1]
        differ = {j.id: (j.state.label, rows[j.id].state.label) for j in jobs if j.state != rows[j.id].state}
        assert not differ, f"job: (state in the store, state in the model): {differ}"
        for job in jobs:
            row = rows[job.id]
            assert (job.attempt, job.deaths, job.priority) == (row.attempt, row.deaths, row.priority), job
            if job.state in (State.SCHEDULED, State.READY):
                assert job.run_at == row.run_at, job
            if job.state is State.RUNNING:
                assert job.worker == row.worker, job

    def _nothing_is_stuck(self, jobs: list[Job]) -> None:
        """Said apart from the model's own doing, in case the model is wrong."""
        states = {job.id: job.state for job in jobs}
        for job in jobs:
            assert job.attempt <= job.max_attempts
            new = self.model.rows[job.id].new
            if job.state is State.WAITING:
                assert new.on_parent_failure == "hold" or any(
                    states.get(parent, State.SUCCEEDED) not in FINISHED for parent in new.after
                ), f"{job.id} waits for nobody"
        for key, room in self.model.room.items():
            inside = [j for j in jobs if j.key == key and j.state in (State.READY, State.RUNNING)]
            parked = [j for j in jobs if j.key == key and j.state is State.PARKED]
            between = [j for j in jobs if j.key == key and self._is_between_attempts(j)]
            assert not parked or len(inside) + len(between) >= room, f"{parked} could be let in"

    def _is_between_attempts(self, job: Job) -> bool:
        """An ordered job keeps its place then."""
        return self.model.rows[job.id].new.ordered and (
            job.state is State.SCHEDULED and job.started_at is not None
        )


def test_the_store_does_what_the_model_does(candidate: Candidate) -> None:
    machine = type("Crossing", (Crossing,), {"candidate": candidate})

    run_state_machine_as_test(machine)
