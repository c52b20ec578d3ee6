"""Each store against the model: whatever is done to both, they agree after every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ferryman.clock import ManualClock
from ferryman.errors import WorkerGone
from ferryman.job import (
    FINISHED,
    PENDING,
    Job,
    JobId,
    NewJob,
    OnParentFailure,
    Outcome,
    OutcomeKind,
    State,
    UniqueKey,
    WorkerId,
)
from ferryman.store.records import Filter, Take, WorkerStatus

from .driver import BOOM, counts_as_kept, counts_of_rows, may_become, worker_info
from .model import Model, Row
from .stores import Candidate

# Steps of the clock are multiples of 500 ms; deadlines and leases never fall on one, delays do.
STEPS = st.sampled_from([500, 1_000, 2_000, 5_000])
DELAYS = st.sampled_from([0, 0, 0, 0, 1_000, 3_000])
LEASE = 10_250

QUEUES = st.sampled_from(["a", "b"])
SLOTS = st.integers(0, 2)
"""Three berths, each with one worker at a time."""

EVERY_LANE = [Take(queue, priority, 3) for priority in (2, 1, 0) for queue in "ab"]
PLANS = st.just(EVERY_LANE) | st.lists(
    st.builds(Take, QUEUES, st.sampled_from([0, 1]), st.integers(1, 4)), max_size=4
)
OUTCOMES = st.lists(
    st.tuples(st.sampled_from([*OutcomeKind, OutcomeKind.SUCCEEDED, OutcomeKind.DEAD]), DELAYS),
    min_size=1,
    max_size=4,
)


class Cargo(NamedTuple):
    """A job to be, apart from what depends on the jobs that there are."""

    queue: str
    priority: int
    key: tuple[str, int, bool] | None
    """Its name, room and order."""
    unique: UniqueKey | None
    delay: int
    ttl: int | None
    max_attempts: int
    parents: list[int]
    """How far back among the jobs."""
    on_parent_failure: OnParentFailure


CARGOES = st.builds(
    Cargo,
    queue=QUEUES,
    priority=st.sampled_from([0, 0, 1]),
    key=st.none()
    | st.tuples(st.just("plain"), st.integers(1, 3), st.just(False))
    | st.just(("ordered", 1, True)),
    unique=st.sampled_from(
        [None] * 7 + [UniqueKey("once"), UniqueKey("twice"), UniqueKey("started", until="started")]
    ),
    delay=DELAYS,
    ttl=st.sampled_from([None] * 5 + [2_250]),
    max_attempts=st.integers(1, 5),
    parents=st.just([]) | st.lists(st.integers(1, 6), max_size=3),
    on_parent_failure=st.sampled_from(["cancel", "continue", "hold"]),
)


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
        self.cargoes = 0
        self.sign_ons = 0
        self.leased: list[tuple[WorkerId, JobId, int]] = []
        """Every lease there ever was."""
        self.workers = [self._sign_on(slot) for slot in range(3)]
        self.last: dict[JobId, State] = {}

    def teardown(self) -> None:
        self.store.close()
        self.candidate.clear(Path(self.folder.name))
        self.folder.cleanup()

    def _sign_on(self, slot: int) -> WorkerId:
        self.sign_ons += 1
        worker = WorkerId(f"w{slot}-{self.sign_ons}")
        self.runner.run(self.store.register(worker_info(worker), LEASE))
        self.model.register(worker, LEASE, self.clock.now())
        return worker

    # -- producers

    def _new(self, cargo: Cargo) -> NewJob:
        self.cargoes += 1
        known = list(self.model.rows)[::-1]
        name, room, ordered = cargo.key or (None, 1, False)
        return NewJob(
            id=JobId(f"{self.cargoes:032x}"),
            task="work",
            args=b"[]",
            queue=cargo.queue,
            priority=cargo.priority,
            max_attempts=cargo.max_attempts,
            delay=cargo.delay,
            ttl=cargo.ttl,
            key=name,
            room=room,
            ordered=ordered,
            unique=cargo.unique,
            after=tuple(known[back - 1] for back in cargo.parents if back <= len(known)),
            on_parent_failure=cargo.on_parent_failure,
        )

    @initialize(cargoes=st.lists(CARGOES, min_size=4, max_size=10), apart=st.booleans())
    def load(self, cargoes: list[Cargo], apart: bool) -> None:
        self.enqueue(cargoes, apart)

    @rule(cargoes=st.lists(CARGOES, min_size=1, max_size=6), apart=st.booleans())
    def enqueue(self, cargoes: list[Cargo], apart: bool) -> None:
        jobs = [self._new(cargo) for cargo in cargoes]
        batches = [[job] for job in jobs] if apart else [jobs]

        for batch in batches:
            answers = self.runner.run(self.store.enqueue(batch))
            expected = self.model.enqueue(batch, self.clock.now())
            assert [(answer.id, answer.duplicate) for answer in answers] == expected

    @precondition(lambda self: bool(self.model.rows))
    @rule(data=st.data())
    def enqueue_again(self, data: st.DataObject) -> None:
        job = self.model.rows[data.draw(st.sampled_from(sorted(self.model.rows)))].new

        (answer,) = self.runner.run(self.store.enqueue([job]))

        assert (answer.id, answer.duplicate) == (job.id, True)

    # -- workers

    @rule(slot=SLOTS, plan=PLANS, limit=st.integers(1, 8))
    def claim(self, slot: int, plan: list[Take], limit: int) -> None:
        worker = self.workers[slot]
        operation = self.store.claim(worker, plan, limit)
        try:
            expected = self.model.claim(worker, plan, limit, self.clock.now())
        except WorkerGone:
            with pytest.raises(WorkerGone):
                self.runner.run(operation)
            self.workers[slot] = self._sign_on(slot)
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

    @rule(slot=SLOTS, ends=OUTCOMES)
    def settle(self, slot: int, ends: list[tuple[OutcomeKind, int]]) -> None:
        """Some of what a worker holds, in one batch."""
        worker = self.workers[slot]
        held = self.model.held_by(worker)
        outcomes = [
            self._outcome(row.id, row.lease, kind, delay)
            for row, (kind, delay) in zip(held, ends, strict=False)
        ]

        answers = self.runner.run(self.store.settle(worker, outcomes))

        assert answers == self.model.settle(worker, outcomes, self.clock.now()) == [True] * len(outcomes)

    @rule(slot=SLOTS, ends=OUTCOMES)
    def work(self, slot: int, ends: list[tuple[OutcomeKind, int]]) -> None:
        """Claim and settle, as a worker mostly does."""
        self.claim(slot, EVERY_LANE, len(ends))
        self.all_is_well()
        self.settle(slot, ends)

    @precondition(lambda self: bool(self.leased))
    @rule(data=st.data(), slot=SLOTS, kind=st.sampled_from(OutcomeKind), delay=DELAYS)
    def settle_any_lease(self, data: st.DataObject, slot: int, kind: OutcomeKind, delay: int) -> None:
        """A lease of any age, by its worker or by one of today's."""
        worker, job, lease = data.draw(st.sampled_from(self.leased))
        worker = data.draw(st.sampled_from([worker, self.workers[slot]]))
        outcome = self._outcome(job, lease, kind, delay)

        answers = self.runner.run(self.store.settle(worker, [outcome]))

        assert answers == self.model.settle(worker, [outcome], self.clock.now())

    def _outcome(self, job: JobId, lease: int, kind: OutcomeKind, delay: int) -> Outcome:
        if kind is OutcomeKind.SNOOZED:
            delay = delay or 1_000
        return Outcome(job, lease, kind, delay=delay, error=BOOM)

    @rule(milliseconds=STEPS)
    def advance(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds / 1000)

    @rule(slot=SLOTS, event=st.sampled_from(["heartbeat", "rescue", "death", "leave"]))
    def worker_event(self, slot: int, event: str) -> None:
        worker = self.workers[slot]
        if event == "heartbeat":
            self._heartbeat(slot, worker)
        elif event == "leave":
            self.runner.run(self.store.leave(worker))
            self.model.leave(worker, self.clock.now())
            self.workers[slot] = self._sign_on(slot)
        else:
            dead = [worker] if event == "death" else []
            rescued = self.runner.run(self.store.rescue(dead))
            expected = self.model.rescue(dead, self.clock.now())
            assert {r.worker: (r.again, r.dead) for r in rescued} == expected

    def _heartbeat(self, slot: int, worker: WorkerId) -> None:
        operation = self.store.heartbeat(worker, WorkerStatus(), LEASE)
        try:
            self.model.heartbeat(worker, LEASE, self.clock.now())
        except WorkerGone:
            with pytest.raises(WorkerGone):
                self.runner.run(operation)
            self.workers[slot] = self._sign_on(slot)
            return

        orders = self.runner.run(operation).orders

        rows = self.model.rows
        assert {(o.job, rows[o.job].lease) for o in orders if o.job in rows} <= self.model.told

    # -- people

    def _which(self, data: st.DataObject) -> tuple[Filter, Callable[[Row], bool]]:
        """A filter, and the same as a test of the model's rows."""
        if data.draw(st.booleans()) and self.model.rows:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), min_size=1, max_size=3))
            return Filter(ids=tuple(dict.fromkeys(ids))), lambda row: row.id in ids
        states = data.draw(st.sampled_from([tuple(FINISHED), tuple(PENDING), (State.RUNNING,)]))
        queue = data.draw(QUEUES)
        return (
            Filter(queues=(queue,), states=states),
            lambda row: row.new.queue == queue and row.state in states,
        )

    @rule(data=st.data(), limit=st.sampled_from([1, 2, 50]))
    def cancel(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.cancel(which, limit, "told to"))

        # Of several, one may be cancelled as the child of another: either count is right.
        expected = self.model.cancel(test, limit, self.clock.now())
        assert bool(count) == bool(expected)
        assert count <= expected

    @rule(data=st.data(), limit=st.sampled_from([2, 50]))
    def replay(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        # Whether two jobs of one unique key in one call are one or two of its limit is each store's affair.
        counts: list[int] = []
        while not counts or counts[-1]:
            counts.append(self.runner.run(self.store.replay(which, limit)))

        assert max(counts) <= limit
        assert sum(counts) == self.model.replay(test, len(self.model.rows), self.clock.now())

    @rule(data=st.data(), priority=st.sampled_from([0, 1, 2]), limit=st.sampled_from([2, 50]))
    def reprioritise(self, data: st.DataObject, priority: int, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.reprioritise(which, priority, limit))

        assert count == self.model.reprioritise(test, priority, limit)

    @rule(data=st.data(), limit=st.sampled_from([1, 2]))
    def delete(self, data: st.DataObject, limit: int) -> None:
        which, test = self._which(data)

        count = self.runner.run(self.store.delete(which, limit))

        assert count == self.model.delete(test, limit, self.clock.now())

    @rule(queue=QUEUES, paused=st.sampled_from([False, False, True]))
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
        for job in jobs:
            # A child that is late when its parent fails ends, and in which of two ways is not settled.
            row, ends = rows[job.id], {State.CANCELLED, State.EXPIRED}
            if (
                row.deadline is not None
                and row.deadline < self.clock.now()
                and {row.state, job.state} == ends
            ):
                row.state = job.state
        for key in self.model.room:
            self._take_for_first_who_came_first([job for job in jobs if job.key == key])
        differ = {j.id: (j.state.label, rows[j.id].state.label) for j in jobs if j.state != rows[j.id].state}
        assert not differ, f"job: (state in the store, state in the model): {differ}"
        for job in jobs:
            row = rows[job.id]
            assert (job.attempt, job.deaths, job.priority) == (row.attempt, row.deaths, row.priority), job
            if job.state in (State.SCHEDULED, State.READY):
                assert job.run_at == row.run_at, job
            if job.state is State.RUNNING:
                assert job.worker == row.worker, job

    def _take_for_first_who_came_first(self, jobs: list[Job]) -> None:
        """Of jobs of one key, if some arrive in the very call that frees a place. Those that were parked before it keep
        their order."""
        rows = self.model.rows
        differ = [job for job in jobs if {job.state, rows[job.id].state} == {State.READY, State.PARKED}]
        parked = [job for job in jobs if self.last.get(job.id) is State.PARKED]
        parked.sort(key=lambda job: (0 if rows[job.id].new.ordered else -job.priority, job.seq))
        left = [job.state is State.PARKED for job in parked if job.state in (State.READY, State.PARKED)]
        let_in = sum(job.state is State.READY for job in differ)
        if all(job in parked for job in differ) or left != sorted(left) or 2 * let_in != len(differ):
            return
        for job in differ:
            row = rows[job.id]
            row.state, row.admitted, row.run_at = job.state, job.state is State.READY, self.clock.now()

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
