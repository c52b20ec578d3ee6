"""What a supervisor does by the clock does not get into the way of jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import pytest

from ferryman.clock import ManualClock
from ferryman.config import RetentionSettings, WorkerSettings
from ferryman.errors import StoreUnavailable
from ferryman.job import OutcomeKind, WorkerId
from ferryman.store.open import open_store
from ferryman.store.records import WorkerRecord
from ferryman.worker.desk import Desk
from ferryman.worker.duties import Duties
from ferryman.worker.supervisor import Phase, Supervisor
from tests.conformance.driver import LEASE, W1, W2, Ferry


class Scene(NamedTuple):
    ferry: Ferry
    desk: Desk
    duties: Duties
    begun: float

    def record(self, worker: WorkerId) -> WorkerRecord:
        records = self.ferry.run(self.ferry.store.workers())
        return next(record for record in records if record.info.id == worker)

    def is_alive(self, worker: WorkerId) -> bool:
        return self.record(worker).gone is None

    def is_pruned_after(self, seconds: float) -> bool:
        """Whether a job that has ended is gone when the duties of that moment were done."""
        (job,) = self.ferry.add_many(1)
        self.ferry.finish_next(OutcomeKind.SUCCEEDED)
        self.duties.perform(self.begun + seconds)
        return not self.ferry.has(job)


def _start_none(places: int) -> NoReturn:
    raise AssertionError(f"no executor of {places} places is wanted")


@pytest.fixture
def scene() -> Iterator[Scene]:
    clock = ManualClock()
    store = open_store("memory://", clock)
    ferry = Ferry(store, clock, lambda: store)
    supervisor = Supervisor(_start_none, lambda _: store, settings=WorkerSettings())
    supervisor.id = W1
    supervisor.retention = RetentionSettings(succeeded_count=0)
    supervisor.phase = Phase.DRAINING  # So it starts no executors.
    desk = Desk(store, supervisor.id, heartbeat=0)
    yield Scene(ferry, desk, Duties(supervisor, desk), time.monotonic())
    desk.close()
    supervisor._end()
    store.close()


def test_what_has_ended_is_pruned_within_seconds_when_there_is_nothing_to_claim(scene: Scene) -> None:
    scene.desk.hungry = False

    assert scene.is_pruned_after(6)


def test_pruning_waits_for_a_lull_while_there_are_jobs_to_claim(scene: Scene) -> None:
    scene.desk.hungry = True

    assert not scene.is_pruned_after(6)
    assert scene.duties.next_at(busy=False) < scene.begun + 60, "other duties go on"
    scene.desk.hungry = False
    assert scene.is_pruned_after(6)


def test_pruning_does_not_wait_for_ever(scene: Scene) -> None:
    scene.desk.hungry = True

    assert scene.is_pruned_after(70)
    assert not scene.is_pruned_after(75), "it has caught up, and waits for a lull again"


def test_a_worker_whose_lease_has_ended_is_taken_for_dead(scene: Scene) -> None:
    scene.ferry.register(W2)
    scene.duties.perform(scene.begun)
    scene.ferry.clock.advance(LEASE / 1000 - 1)
    scene.desk.turn(1)
    scene.desk.back_at = -math.inf  # The clock has not been set: a minute has passed.
    scene.duties.perform(scene.begun + 1)
    assert scene.is_alive(W2)
    scene.ferry.clock.advance(2)

    scene.desk.turn(1)
    scene.duties.perform(scene.begun + 2)

    assert not scene.is_alive(W2)


def test_when_the_clock_is_set_forward_workers_get_time_to_say_that_they_live(scene: Scene) -> None:
    scene.ferry.register(W2)
    scene.duties.perform(scene.begun)
    scene.desk.turn(1)
    scene.ferry.clock.advance(3_600)

    scene.desk.turn(1)
    scene.duties.perform(scene.begun + 1)
    assert scene.is_alive(W2)

    scene.duties.perform(scene.begun + 5)
    assert not scene.is_alive(W2)


def test_when_the_store_is_back_workers_get_time_to_say_that_they_live(scene: Scene) -> None:
    scene.ferry.register(W2)
    scene.duties.perform(scene.begun)
    scene.desk.fail(StoreUnavailable("away for an hour"))
    scene.ferry.clock.advance(3_600)
    scene.desk.retry_at = 0.0

    scene.desk.turn(1)
    scene.duties.perform(scene.begun + 1)

    assert scene.record(W1).lease_until > scene.ferry.clock.now(), "it has said so at once"
    assert scene.is_alive(W2)


def test_a_moment_without_the_store_is_no_reason_to_spare_the_dead(scene: Scene) -> None:
    scene.ferry.register(W2)
    scene.duties.perform(scene.begun)
    scene.ferry.clock.advance(LEASE / 1000 + 1)
    scene.desk.turn(1)
    scene.desk.back_at = -math.inf  # The clock has not been set: a minute has passed.
    scene.desk._heartbeat = 5.0
    scene.desk.fail(StoreUnavailable("away for a moment"))
    scene.desk.retry_at = 0.0

    scene.duties.perform(scene.begun + 1)

    assert not scene.is_alive(W2)


def test_when_the_store_is_back_an_idle_worker_spares_the_others_too(scene: Scene) -> None:
    scene.ferry.register(W2)
    scene.duties.perform(scene.begun)
    scene.desk.fail(StoreUnavailable("away for an hour"))
    scene.ferry.clock.advance(3_600)
    scene.desk.retry_at = 0.0

    scene.duties.perform(scene.begun + 1)

    assert scene.is_alive(W2)
