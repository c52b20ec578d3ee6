"""How many executors a supervisor keeps, and how many jobs run in all of them at once."""

from __future__ import annotations

from collections import Counter

import pytest

from ferryman.job import State
from ferryman.worker.frames import TaskFacts

from .supervisor_scene import Begin, Scene, ScriptedExecutor, obey, scenes

begin = pytest.fixture(scenes, name="begin")

NO_SENSE = TypeError("Type unions may not contain more than one array-like type")


# -- concurrency -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("concurrency", "executors"), [(1, 4), (3, 2), (5, 4), (6, 3), (16, 12)])
def test_the_places_of_all_executors_add_up_to_the_concurrency(
    begin: Begin, concurrency: int, executors: int
) -> None:
    scene = begin(concurrency=concurrency, executors=executors)

    places = [each.places for each in scene.ready]

    assert len(places) == min(concurrency, executors)
    assert sum(places) == concurrency
    assert max(places) - min(places) <= 1


def test_an_executor_that_is_lost_is_replaced_by_one_of_as_many_places(begin: Begin) -> None:
    scene = begin(concurrency=5, executors=3)

    for _ in range(6):
        scene.start_jobs(1)
        lost = next(each for each in scene.ready if each.running)
        lost.die()
        scene.until(lambda: len(scene.ready) == 3 and lost not in scene.ready)  # noqa: B023
        scene.go_on(1)

        assert Counter(each.places for each in scene.ready) == {2: 2, 1: 1}


@pytest.mark.parametrize(("concurrency", "executors"), [(3, 2), (5, 4)])
def test_no_more_short_jobs_run_at_once_than_the_worker_may_run(
    begin: Begin, concurrency: int, executors: int
) -> None:
    scene = begin(concurrency=concurrency, executors=executors)
    jobs = scene.ferry.add_many(300)
    _let_all(scene, _be_quick)

    most = _most_at_once(scene, 400)

    assert most == concurrency
    assert scene.states(jobs) == {State.SUCCEEDED}


def test_a_relief_executor_runs_no_more_than_the_worker_has_left(begin: Begin) -> None:
    scene = begin(concurrency=3, executors=1)
    scene.start_jobs(2)
    (held,) = scene.alive
    held.script = _be_deaf
    scene.script = _be_quick
    scene.until(lambda: len(scene.ready) == 2)

    jobs = scene.ferry.add_many(200, task="other")
    most = _most_at_once(scene, 1_000)

    assert scene.states(jobs) == {State.SUCCEEDED}
    assert most == 3


def test_executors_that_came_with_new_code_run_no_more_than_those_before_have_left(begin: Begin) -> None:
    scene = begin(concurrency=4, executors=2)
    scene.start_jobs(3)
    scene.script = _be_quick
    scene.supervisor.reload()
    scene.until(lambda: len(scene.ready) == 4)

    jobs = scene.ferry.add_many(200)
    most = _most_at_once(scene, 1_000)

    assert scene.states(jobs) == {State.SUCCEEDED}
    assert most == 4


def test_a_suspect_gets_its_turn_although_others_would_fill_each_place_that_gets_free(begin: Begin) -> None:
    scene = begin(concurrency=4, executors=2)
    scene.start_jobs(2)
    scene.script = _do_one_job_a_turn
    scene.supervisor.reload()
    scene.until(lambda: len(scene.ready) == 4)
    scene.ferry.add_many(2_000)
    scene.go_on(0.1)

    (suspect,) = scene.suspects()
    most = _most_at_once(scene, 200)

    assert scene.ferry.state(suspect) is State.SUCCEEDED
    assert most == 4


def _most_at_once(scene: Scene, turns: int) -> int:
    """Go on for so many turns. Answers how many jobs were running at the end of one, at most."""
    most = 0
    for _ in range(turns):
        scene.turn(0.004)
        most = max(most, len(scene.running()))
    return most


def _let_all(scene: Scene, script: object) -> None:
    scene.script = script  # type: ignore[assignment]
    for executor in scene.alive:
        executor.script = scene.script


def _be_quick(executor: ScriptedExecutor) -> None:
    """Jobs take no longer than a turn."""
    executor.finish_all()
    obey(executor)


def _do_one_job_a_turn(executor: ScriptedExecutor) -> None:
    """It is never without a job if others wait."""
    if executor.running:
        executor.finish()
    obey(executor)


def _be_deaf(executor: ScriptedExecutor) -> None:
    """A task holds its interpreter."""


# -- other executors -------------------------------------------------------------------------------


def test_executors_stay_as_long_as_no_others_can_be_started(begin: Begin) -> None:
    scene = begin()
    before = scene.ready
    (running,) = scene.start_jobs(1)

    scene.launch_fails = NO_SENSE
    scene.supervisor.reload()
    scene.go_on(3)
    (other,) = scene.start_jobs(1)

    assert scene.ready == before
    assert set(scene.running()) == {running, other}


def test_executors_are_replaced_once_others_can_be_started(begin: Begin) -> None:
    scene = begin()
    before = scene.ready
    scene.launch_fails = NO_SENSE
    scene.supervisor.reload()
    scene.go_on(3)

    scene.launch_fails = None
    scene.until(lambda: len(scene.ready) == 2 and not set(before) & set(scene.ready))

    assert scene.alive == scene.ready


def test_of_a_renewal_that_stops_half_way_nothing_is_left(begin: Begin) -> None:
    scene = begin(concurrency=4, executors=4)
    before = scene.ready
    scene.launch_fails, scene.launches_left = OSError(11, "Resource temporarily unavailable"), 2

    scene.supervisor.reload()
    scene.go_on(0.5)

    assert len(scene.executors) == 6
    assert scene.alive == scene.ready == before


def test_why_no_executor_can_be_started_is_told_once(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    scene = begin()
    scene.launch_fails = NO_SENSE

    scene.supervisor.reload()
    scene.go_on(10)

    assert caplog.text.count("could not be started") == 1


def test_a_worker_whose_tasks_have_changed_says_so_on_the_register(begin: Begin) -> None:
    scene = begin()
    scene.tasks = [TaskFacts(name="work", track="thread"), TaskFacts(name="other", track="thread")]

    scene.supervisor.reload()
    scene.go_on(0.2)

    records = {each.info.id: each for each in scene.ferry.run(scene.store.workers())}
    assert records[scene.supervisor.id].info.tasks == ("work", "other")


# -- the dead --------------------------------------------------------------------------------------


def test_the_death_of_an_executor_is_seen_although_its_socket_is_open(begin: Begin) -> None:
    scene = begin()
    ids = scene.start_jobs(4)
    lost, other = scene.ready
    theirs = [each.claim.id for each in lost.running.values()]

    lost.die_behind_its_socket()
    scene.until(lambda: scene.deaths(theirs) == [1, 1], seconds=1)

    scene.until(lambda: len(scene.ready) == 2)
    assert other.is_alive
    assert sum(scene.deaths(ids)) == 2


def test_a_drain_does_not_wait_for_an_executor_that_is_dead_behind_its_socket(begin: Begin) -> None:
    scene = begin(shutdown_timeout=3_600.0)
    lost, _ = scene.ready
    lost.die_behind_its_socket()

    scene.order("drain")

    assert scene.until_over() < 2


def test_all_that_a_dead_executor_has_said_is_heard(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = begin(executors=1)
    ids = scene.start_jobs(4)
    (executor,) = scene.ready
    monkeypatch.setattr("ferryman.worker.member._READ_BYTES", 16)  # Less than a frame has.
    for _ in ids:
        executor.finish(result=b"x" * 100)

    scene.end()

    assert scene.states(ids) == {State.SUCCEEDED}
