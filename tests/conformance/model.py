"""A store as a list of rows: slow, without I/O, and so plain that it can be seen to be right.

It knows what the state machine needs: states, attempts, deaths, leases, keys, unique keys, parents,
priorities and pauses. Fair queues, bounds and statistics are left to tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ferryman.errors import WorkerGone
from ferryman.job import (
    FINISHED,
    MAX_DEATHS,
    PENDING,
    RERUNS,
    JobId,
    NewJob,
    Outcome,
    OutcomeKind,
    State,
    WorkerId,
)
from ferryman.store.records import Take


@dataclass
class Row:
    """A job."""

    new: NewJob
    seq: int
    priority: int
    run_at: int
    deadline: int | None
    state: State = State.WAITING
    attempt: int = 0
    deaths: int = 0
    lease: int = 0
    worker: WorkerId | None = None
    admitted: bool = False
    """It holds a place of its key."""
    awaited: set[JobId] = field(default_factory=set)
    """Parents that have not been counted as finished."""

    @property
    def id(self) -> JobId:
        return self.new.id


class Model:
    """What a store must do, verb by verb. Each call is given the store's time."""

    def __init__(self) -> None:
        self.rows: dict[JobId, Row] = {}
        self.room: dict[str, int] = {}
        self.unique: dict[str, JobId] = {}
        self.paused: set[str] = set()
        self.leases: dict[WorkerId, int] = {}
        """The end of the lease of each worker that is alive."""
        self.told: set[tuple[JobId, int]] = set()
        """Leases that were ordered to be cancelled."""
        self.seq = 0

    # -- enqueue

    def enqueue(self, jobs: Sequence[NewJob], now: int) -> list[tuple[JobId, bool]]:
        answers = []
        for new in jobs:
            taken = self.unique.get(new.unique.key) if new.unique else None
            if new.id in self.rows or taken:
                answers.append((new.id if new.id in self.rows else taken or new.id, True))
                continue
            answers.append((new.id, False))
            self._add(new, now)
        return answers

    def _add(self, new: NewJob, now: int) -> None:
        self.seq += 1
        row = Row(
            new,
            self.seq,
            new.priority,
            run_at=now + new.delay,
            deadline=None if new.ttl is None else now + new.ttl,
            awaited=set(new.after),
        )
        self.rows[new.id] = row
        if new.unique:
            self.unique[new.unique.key] = new.id
        self._join_key(new, now)
        for parent in [self.rows[job] for job in set(new.after)]:
            self._learn(row, parent, now)
        if row.state is State.WAITING and not row.awaited:
            self._go_on(row, now)

    # -- the steps that verbs share

    def _join_key(self, new: NewJob, now: int) -> None:
        """The key has as many places from now on as this job says; those that wait already go first."""
        if new.key:
            self.room[new.key] = 1 if new.ordered else new.room
            self._admit(now)

    def _go_on(self, row: Row, now: int) -> None:
        """Nothing holds the job any more but its moment and its key."""
        if row.run_at > now:
            row.state = State.SCHEDULED
        else:
            row.run_at = now
            self._arrive(row)

    def _arrive(self, row: Row) -> None:
        """The job stands before its lane: through the gate of its key, if it has one."""
        if row.new.key is None or row.admitted:
            row.state = State.READY
        elif self._held(row.new.key) < self.room[row.new.key]:
            row.state, row.admitted = State.READY, True
        else:
            row.state = State.PARKED

    def _held(self, key: str) -> int:
        return sum(row.admitted for row in self.rows.values() if row.new.key == key)

    def is_full(self, key: str) -> bool:
        return self._held(key) >= self.room[key]

    def _admit(self, now: int) -> None:
        """Let parked jobs in wherever there is room."""
        for key, room in self.room.items():
            while self._held(key) < room:
                parked = [r for r in self.rows.values() if r.new.key == key and r.state is State.PARKED]
                if not parked:
                    break
                first = min(parked, key=lambda r: (0 if r.new.ordered else -r.priority, r.seq))
                first.state, first.admitted, first.run_at = State.READY, True, now

    def _finish(self, row: Row, state: State, now: int) -> None:
        row.state, row.admitted = state, False
        self._give_back_unique_key(row)
        self._admit(now)
        for child in [r for r in self.rows.values() if row.id in r.awaited]:
            if child.state is State.WAITING:
                self._learn(child, row, now)
                if child.state is State.WAITING and not child.awaited:
                    self._go_on(child, now)

    def _give_back_unique_key(self, row: Row) -> None:
        if row.new.unique and self.unique.get(row.new.unique.key) == row.id:
            del self.unique[row.new.unique.key]

    def _learn(self, child: Row, parent: Row, now: int) -> None:
        """What the end of a parent means to its child."""
        if parent.state not in FINISHED or child.state is not State.WAITING:
            return
        if parent.state is State.SUCCEEDED or child.new.on_parent_failure == "continue":
            child.awaited.discard(parent.id)
        elif child.new.on_parent_failure == "cancel":
            self._finish(child, State.CANCELLED, now)

    def _again(self, row: Row, now: int) -> None:
        """What was lost goes back to where it was, if an attempt is left."""
        if (row.id, row.lease) in self.told:
            self._finish(row, State.CANCELLED, now)
        elif row.attempt >= row.new.max_attempts or row.deaths >= MAX_DEATHS:
            self._finish(row, State.DEAD, now)
        else:
            row.state = State.READY

    # -- claim and settle

    def claim(self, worker: WorkerId, plan: Sequence[Take], limit: int, now: int) -> list[JobId]:
        if worker not in self.leases:
            raise WorkerGone(worker)
        due = [r for r in self.rows.values() if r.state is State.SCHEDULED and r.run_at <= now]
        for row in sorted(due, key=lambda r: (r.run_at, r.seq)):
            self._arrive(row)
        for row in list(self.rows.values()):
            if row.state in PENDING and row.deadline is not None and row.deadline < now:
                self._finish(row, State.EXPIRED, now)
        self._admit(now)
        got: list[JobId] = []
        for take in plan:
            for row in self.lane(take.queue, take.priority)[: min(take.count, limit - len(got))]:
                self._start(row, worker)
                got.append(row.id)
        return got

    def lane(self, queue: str, priority: int) -> list[Row]:
        """The jobs of a lane that can be claimed, in order."""
        if queue in self.paused:
            return []
        ready = [r for r in self.rows.values() if r.state is State.READY and r.priority == priority]
        return sorted((r for r in ready if r.new.queue == queue), key=lambda r: r.seq)

    def _start(self, row: Row, worker: WorkerId) -> None:
        row.state, row.worker = State.RUNNING, worker
        row.attempt += 1
        row.lease += 1
        if row.new.unique and row.new.unique.until == "started":
            self._give_back_unique_key(row)

    def settle(self, worker: WorkerId, outcomes: Sequence[Outcome], now: int) -> list[bool]:
        return [self._settle(worker, outcome, now) for outcome in outcomes]

    def _settle(self, worker: WorkerId, outcome: Outcome, now: int) -> bool:
        row = self.rows.get(outcome.id)
        if row is None or (row.state, row.worker, row.lease) != (State.RUNNING, worker, outcome.lease):
            return False
        match outcome.kind:
            case kind if kind in RERUNS and (row.id, row.lease) in self.told:
                self._finish(row, State.CANCELLED, now)
            case OutcomeKind.SUCCEEDED:
                self._finish(row, State.SUCCEEDED, now)
            case OutcomeKind.DEAD:
                self._finish(row, State.DEAD, now)
            case OutcomeKind.CANCELLED:
                self._finish(row, State.CANCELLED, now)
            case OutcomeKind.RETRY if row.attempt >= row.new.max_attempts:
                self._finish(row, State.DEAD, now)
            case OutcomeKind.RETRY:
                self._put_off(row, outcome.delay, now)
            case OutcomeKind.SNOOZED:
                row.attempt -= 1
                self._put_off(row, outcome.delay, now)
            case OutcomeKind.RELEASED:
                row.attempt -= 1
                row.state, row.worker = State.READY, None
                if row.new.unique and row.new.unique.until == "started" and not row.attempt:
                    self.unique.setdefault(row.new.unique.key, row.id)
            case OutcomeKind.CRASHED:
                row.deaths += 1
                self._again(row, now)
        return True

    def _put_off(self, row: Row, delay: int, now: int) -> None:
        row.run_at = now + delay
        if delay:
            row.state = State.SCHEDULED
            row.admitted = row.admitted and row.new.ordered
            self._admit(now)
        else:
            row.state = State.READY

    # -- workers

    def register(self, worker: WorkerId, lease: int, now: int) -> None:
        self.leases[worker] = now + lease

    def heartbeat(self, worker: WorkerId, lease: int, now: int) -> None:
        if worker not in self.leases:
            raise WorkerGone(worker)
        self.leases[worker] = now + lease

    def leave(self, worker: WorkerId, now: int) -> None:
        self.leases.pop(worker, None)
        for row in self.held_by(worker):
            self._again(row, now)

    def rescue(self, dead: Iterable[WorkerId], now: int) -> dict[WorkerId, tuple[int, int]]:
        lost = {w for w, end in self.leases.items() if end < now or w in set(dead)}
        rescued = {}
        for worker in sorted(lost):
            del self.leases[worker]
            held = self.held_by(worker)
            for row in held:
                row.deaths += (row.id, row.lease) not in self.told
                self._again(row, now)
            died = sum(row.state is State.DEAD for row in held)
            again = sum(row.state is State.READY for row in held)
            rescued[worker] = (again, died)
        return rescued

    def held_by(self, worker: WorkerId) -> list[Row]:
        return [r for r in self.rows.values() if r.state is State.RUNNING and r.worker == worker]

    # -- people

    def chosen(self, test: Callable[[Row], bool], limit: int) -> list[Row]:
        """The oldest rows that pass."""
        return [row for row in self.rows.values() if test(row)][:limit]

    def cancel(self, test: Callable[[Row], bool], limit: int, now: int) -> int:
        def can_be(row: Row) -> bool:
            running = row.state is State.RUNNING and (row.id, row.lease) not in self.told
            return test(row) and (row.state in PENDING or running)

        chosen = self.chosen(can_be, limit)
        for row in chosen:
            if row.state is State.RUNNING:
                self.told.add((row.id, row.lease))
            elif row.state in PENDING:
                self._finish(row, State.CANCELLED, now)
        return len(chosen)

    def replay(self, test: Callable[[Row], bool], limit: int, now: int) -> int:
        replayed = 0
        for row in self.chosen(lambda r: test(r) and r.state in FINISHED, len(self.rows)):
            unique = row.new.unique
            if replayed == limit or (unique and unique.key in self.unique):
                continue
            if unique:
                self.unique[unique.key] = row.id
            row.attempt, row.deaths, row.deadline, row.run_at = 0, 0, None, now
            key = row.new.key
            if key and not any(r.new.key == key and r.state not in FINISHED for r in self.rows.values()):
                self.room[key] = 1 if row.new.ordered else row.new.room
            self._arrive(row)
            replayed += 1
        return replayed

    def reprioritise(self, test: Callable[[Row], bool], priority: int, limit: int) -> int:
        moved = self.chosen(lambda r: test(r) and r.state in PENDING and r.priority != priority, limit)
        for row in moved:
            row.priority = priority
        return len(moved)

    def delete(self, test: Callable[[Row], bool], limit: int, now: int) -> int:
        chosen = self.chosen(lambda r: test(r) and r.state is not State.RUNNING, limit)
        for row in chosen:
            if row.state in PENDING:
                self._finish(row, State.CANCELLED, now)
        for row in chosen:
            del self.rows[row.id]
        return len(chosen)
