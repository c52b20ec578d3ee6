"""What a supervisor makes of a store that is slow or refuses, and of clocks that are set."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ferryman.errors import StoreError
from ferryman.io.operation import Operation, Requests
from ferryman.job import JobId, State, WorkerId
from ferryman.store.records import Take, WorkerRecord
from ferryman.worker.frames import Kind, TaskFacts
from tests.conformance.driver import LEASE, W2

from .supervisor_scene import Begin, Scene, ScriptedExecutor, obey, scenes

begin = pytest.fixture(scenes, name="begin")

HOUR = 3_600.0


# -- clocks ----------------------------------------------------------------------------------------


def test_when_the_machines_clock_is_set_forward_no_worker_is_robbed(begin: Begin) -> None:
    scene = begin()
    (theirs,) = _run_elsewhere(scene)
    scene.go_on(5)

    scene.time.set_forward(HOUR)
    scene.go_on(2.5)
    assert scene.ferry.state(theirs) is State.RUNNING
    scene.ferry.heartbeat(W2)
    scene.go_on(5)

    assert scene.ferry.state(theirs) is State.RUNNING
    assert scene.deaths([theirs]) == [0]


def test_when_the_machines_clock_is_set_forward_a_worker_without_jobs_says_at_once_that_it_lives(
    begin: Begin,
) -> None:
    scene = begin(heartbeat=10.0)
    scene.go_on(5)

    scene.time.set_forward(HOUR)
    scene.go_on(0.5)

    assert _record(scene, scene.supervisor.id).lease_until > scene.time.now()


def test_when_the_machines_clock_is_set_forward_the_dead_are_seen_a_little_later(begin: Begin) -> None:
    scene = begin()
    (theirs,) = _run_elsewhere(scene)
    scene.go_on(5)

    scene.time.set_forward(HOUR)
    scene.go_on(5)

    assert scene.deaths([theirs]) == [1]


# -- refusals --------------------------------------------------------------------------------------


def test_jobs_do_not_wait_for_what_the_store_refuses_beside_them(begin: Begin) -> None:
    scene = begin()
    _run_elsewhere(scene)
    _refuse_to_rescue(scene)
    scene.go_on(LEASE / 1000 + 10)

    for _ in range(20):
        (job,) = scene.ferry.add_many(1)
        scene.desk.hungry = True  # The bell rings.
        scene.until(lambda: job in scene.running(), seconds=0.1)  # noqa: B023
        scene.where(job).finish()
        scene.go_on(0.7)


def test_of_what_the_store_refuses_beside_the_jobs_the_first_time_is_told(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    scene = begin()
    _run_elsewhere(scene)
    tries = _refuse_to_rescue(scene)

    scene.go_on(LEASE / 1000 + 20)

    assert 10 < len(tries) <= 21
    assert caplog.text.count("the store refuses") == 1
    assert "does not answer" not in caplog.text


def test_other_duties_are_done_while_the_store_refuses_one(begin: Begin) -> None:
    scene = begin(heartbeat=5.0)
    _run_elsewhere(scene)
    _refuse_to_rescue(scene)
    (job,) = scene.start_jobs(1)
    (lost,) = scene.ferry.add_many(1)
    scene.ferry.claim(1, worker=scene.supervisor.id)  # Its answer is lost.
    scene.go_on(LEASE / 1000 + 60)

    assert scene.ferry.state(job) is State.RUNNING
    assert _record(scene, scene.supervisor.id).seen_at > scene.time.now() - 6_000
    scene.until(lambda: lost in scene.running())


def _refuse_to_rescue(scene: Scene) -> list[float]:
    """From now on the store does not let it rescue. The answer gets the times at which it has tried."""
    tries: list[float] = []

    def refuse(now: int) -> Requests[list[object]]:
        tries.append(scene.time.seconds)
        raise StoreError("permission denied for function rescue")
        yield

    def rescue(dead: Sequence[WorkerId] = (), *, late: bool = True) -> Operation[list[object]]:
        return Operation("rescue", refuse)

    scene.monkeypatch.setattr(scene.store, "rescue", rescue)
    return tries


# -- a slow store ----------------------------------------------------------------------------------


def test_the_time_that_the_store_takes_does_not_count_as_the_executors(begin: Begin) -> None:
    scene = begin()
    scene.start_jobs(3)
    for executor in scene.alive:
        executor.script = _be_silent

    def answer_meanwhile() -> None:
        for executor in scene.alive:
            obey(executor)
        scene.time.advance(0.06)

    scene.before_call = answer_meanwhile
    stalled = 0

    for _ in range(300):
        scene.desk.hungry = True  # There is a place free, so it asks in each turn.
        scene.turn(0.001)
        stalled += any(member.stalled for member in scene.supervisor.crew.members)

    pings = sum(frame.kind is Kind.PING for executor in scene.executors for frame in executor.heard)
    assert pings > 20
    assert stalled == 0
    assert len(scene.executors) == 2


def test_an_executor_that_answers_late_is_stalled_however_slow_the_store_is(begin: Begin) -> None:
    scene = begin()
    scene.start_jobs(4)
    for executor in scene.alive:
        executor.script = _be_silent
    scene.before_call = lambda: scene.time.advance(0.06)

    scene.go_on(1)

    assert all(scene.member(executor).stalled for executor in scene.executors[:2])


def _be_silent(executor: ScriptedExecutor) -> None:
    """Nothing is heard of it."""


# -- the register ----------------------------------------------------------------------------------


def test_the_store_learns_of_new_tasks_when_it_is_back(begin: Begin) -> None:
    scene = begin()
    scene.tasks = [TaskFacts(name="work", track="thread"), TaskFacts(name="other", track="thread")]
    refused = 0

    def be_away() -> None:
        nonlocal refused
        refused += 1
        raise StoreError("a right is missing")

    scene.supervisor.reload()
    scene.before_call = be_away
    scene.go_on(3)
    assert refused > 0
    scene.before_call = lambda: None
    scene.go_on(3)

    assert _record(scene, scene.supervisor.id).info.tasks == ("work", "other")


def _run_elsewhere(scene: Scene) -> list[JobId]:
    """Another worker runs a job."""
    ids = scene.ferry.add_many(1, queue="elsewhere")
    scene.ferry.register(W2)
    scene.ferry.claim(1, worker=W2, plan=[Take("elsewhere", 0, 1)])
    return ids


def _record(scene: Scene, worker: WorkerId) -> WorkerRecord:
    return next(each for each in scene.ferry.run(scene.store.workers()) if each.info.id == worker)
