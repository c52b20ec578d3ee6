"""What a supervisor makes of executors, stores and jobs that behave badly."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from typing import NoReturn

import pytest

from ferryman.errors import StoreUnavailable
from ferryman.job import Claim, JobId, Outcome, State
from ferryman.worker.frames import Kind, TaskFacts
from ferryman.worker.member import Member, launch_process
from tests.conformance.driver import W2

from .supervisor_scene import Begin, Scene, ScriptedExecutor, scenes

begin = pytest.fixture(scenes, name="begin")

BROKEN = BlockingIOError(11, "Resource temporarily unavailable")


# -- executors that misbehave ----------------------------------------------------------------------


@pytest.mark.parametrize("talk", [ScriptedExecutor.say_nonsense, lambda each: each.say(Kind.PING, 1)])
def test_an_executor_that_talks_nonsense_is_ended_and_the_others_go_on(
    begin: Begin, talk: Callable[[ScriptedExecutor], None]
) -> None:
    scene = begin()
    ids = scene.start_jobs(4)
    odd, other = scene.ready
    theirs = [each.claim.id for each in other.running.values()]

    talk(odd)
    scene.until(lambda: not odd.is_alive)
    scene.until(lambda: len(scene.ready) == 2)

    assert other.is_alive
    assert scene.deaths(theirs) == [0, 0]
    assert sorted(scene.deaths(ids)) == [0, 0, 1, 1]
    other.finish_all()
    scene.until(lambda: scene.states(theirs) == {State.SUCCEEDED})


def test_nonsense_in_the_last_words_of_an_executor_does_not_break_off_the_end(begin: Begin) -> None:
    scene = begin()
    ids = scene.start_jobs(4)
    odd, _ = scene.ready
    odd.say_nonsense()

    scene.end()

    assert scene.alive == []
    assert all(each.is_closed for each in scene.executors)
    assert scene.states(ids) == {State.SCHEDULED}, "they go back, and nobody waits for the end of a lease"


def test_executors_that_said_goodbye_and_do_not_end_do_not_gather(begin: Begin) -> None:
    scene = begin(concurrency=1, executors=1, recycle_after=1, grace=1.0)
    for executor in scene.alive:
        executor.script = _linger
    scene.script = _linger

    most = 0
    for _ in range(20):
        (job,) = scene.start_jobs(1)
        scene.where(job).finish()
        scene.go_on(0.7)
        most = max(most, len(scene.alive))

    assert most <= 4


def test_an_executor_that_said_goodbye_and_does_not_end_is_waited_for_no_longer_than_the_grace(
    begin: Begin,
) -> None:
    scene = begin(grace=1.0, shutdown_timeout=3_600.0)
    for executor in scene.alive:
        executor.script = _linger

    scene.order("drain")
    took = scene.until_over()

    assert took < 2
    assert scene.alive == []


def test_executors_that_are_broken_and_do_not_end_do_not_gather(begin: Begin) -> None:
    scene = begin(grace=2.0)
    scene.script = _break_and_linger

    scene.supervisor.reload()
    scene.go_on(30)

    assert len(scene.executors) > 20, "it has tried again"
    assert len(scene.alive) <= 2 * (scene.supervisor.settings.grace + 1)


def _linger(executor: ScriptedExecutor) -> None:
    """It says goodbye, and a thread that a task has left keeps its process."""
    executor.say_hello()
    executor.listen()
    executor.start()
    executor.say_bye()


def _break_and_linger(executor: ScriptedExecutor) -> None:
    if not executor.is_ready:
        executor.is_ready = True
        executor.say(Kind.BROKEN, "SyntaxError: invalid syntax")


# -- starting executors ----------------------------------------------------------------------------


def test_an_executor_that_cannot_be_started_again_for_a_moment_does_not_end_the_worker(begin: Begin) -> None:
    scene = begin()
    scene.start_jobs(4)
    lost, other = scene.ready

    scene.launch_fails = BROKEN
    lost.die()
    scene.go_on(3)
    assert scene.ready == [other]
    scene.launch_fails = None

    scene.until(lambda: len(scene.ready) == 2)
    assert other.is_alive


def test_a_relief_that_cannot_be_started_does_not_end_the_worker(begin: Begin) -> None:
    scene = begin(concurrency=2)
    scene.start_jobs(2)
    scene.launch_fails = BROKEN

    for executor in scene.alive:
        executor.script = _be_deaf
    scene.go_on(3)

    assert not scene.is_over


def test_a_process_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise BROKEN

    monkeypatch.setattr(subprocess, "Popen", fail)
    before = _open_files()

    with pytest.raises(BlockingIOError):
        launch_process("tasks:app", 4)

    assert _open_files() == before


def test_reliefs_that_cannot_be_used_are_not_started_again_and_again(begin: Begin) -> None:
    scene = begin(concurrency=2)
    scene.start_jobs(2)
    for executor in scene.alive:
        executor.script = _be_deaf
    scene.script = _break_and_end

    scene.go_on(10)

    assert 5 < len(scene.executors) < 20


def test_executors_that_die_right_after_their_hello_are_not_started_again_and_again(begin: Begin) -> None:
    scene = begin()
    scene.script = _greet_and_die

    for executor in scene.alive:
        executor.die()
    scene.go_on(10)

    assert 5 < len(scene.executors) < 30


def test_executors_that_take_too_much_memory_before_they_have_done_anything_are_kept(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Member, "memory", lambda _: 120)
    scene = begin(max_memory=100)

    scene.go_on(30)

    assert len(scene.executors) == 2
    (job,) = scene.start_jobs(1)
    busy = scene.where(job)
    busy.finish()
    scene.until(lambda: not busy.is_alive)


def _be_deaf(executor: ScriptedExecutor) -> None:
    """A task holds its interpreter."""


def _break_and_end(executor: ScriptedExecutor) -> None:
    executor.say(Kind.BROKEN, "SyntaxError: invalid syntax")
    executor.die()


def _greet_and_die(executor: ScriptedExecutor) -> None:
    executor.say_hello()
    executor.die()


def _open_files() -> int:
    return len(os.listdir("/dev/fd"))


# -- outcomes that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("was_away", [False, True], ids=["", "after an outage"])
def test_an_outcome_that_is_refused_keeps_no_other_job_from_its_lease(begin: Begin, was_away: bool) -> None:
    scene = begin(lease=30.0, heartbeat=5.0)
    odd, long = scene.start_jobs(2)
    scene.refuse(_is_odd)
    if was_away:
        scene.desk.fail(StoreUnavailable("away for a moment"))

    scene.where(odd).finish(result=b"odd")
    scene.go_on(45)
    scene.ferry.register(W2)
    rescued = scene.ferry.run(scene.store.rescue(()))

    assert scene.ferry.run(scene.store.holding(scene.supervisor.id)) != []
    assert scene.supervisor.id not in [each.worker for each in rescued]
    assert scene.deaths([long]) == [0]


def test_a_drain_does_not_wait_for_ever_to_say_what_is_refused(begin: Begin) -> None:
    scene = begin(shutdown_timeout=3_600.0)
    (job,) = scene.start_jobs(1)
    scene.refuse(_is_odd)

    scene.order("drain")
    scene.until(lambda: all(each.drains for each in scene.alive))
    scene.where(job).finish(result=b"odd")
    took = scene.until_over()
    scene.end()

    assert took < 30
    assert scene.ferry.state(job) is not State.RUNNING
    assert scene.deaths([job]) == [0]


def test_a_worker_that_ends_at_once_gives_back_what_the_store_refuses(begin: Begin) -> None:
    scene = begin()
    (job,) = scene.start_jobs(1)
    scene.refuse(_is_odd)
    scene.where(job).finish(result=b"odd")
    scene.go_on(0.1)

    scene.end()

    assert scene.ferry.state(job) is not State.RUNNING
    assert scene.deaths([job]) == [0]


def test_a_worker_whose_last_claim_was_lost_gives_back_what_the_store_refuses_before_it_ends(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.99)  # It waits long before it asks again.
    scene = begin()
    odd, other = scene.start_jobs(2)
    scene.refuse(_is_odd)
    scene.where(odd).finish(result=b"odd")
    scene.where(other).finish()
    scene.desk.doubtful = True

    scene.end()

    assert scene.ferry.state(other) is State.SUCCEEDED
    assert scene.ferry.state(odd) is not State.RUNNING
    assert scene.deaths([odd]) == [0]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_outcomes_that_are_refused_keep_no_worker_from_running_others(begin: Begin, number: int) -> None:
    scene = begin()
    odd = scene.start_jobs(number)
    scene.refuse(_is_odd)
    for job in odd:
        scene.where(job).finish(result=b"odd")
    scene.go_on(5)

    others = scene.ferry.add_many(20)
    for _ in range(600):
        scene.go_on(0.1)
        for executor in scene.alive:
            executor.finish_all()

    assert scene.states(others) == {State.SUCCEEDED}
    assert scene.states(odd) == {State.DEAD}, "in plain words, they are taken"


def _is_odd(outcome: Outcome) -> bool:
    return outcome.result == b"odd"


# -- suspects --------------------------------------------------------------------------------------


def test_an_executor_kept_free_for_a_suspect_takes_others_once_that_has_run_elsewhere(begin: Begin) -> None:
    scene = begin(concurrency=4, executors=2)
    scene.start_jobs(3)
    (suspect,) = scene.suspects()
    scene.until(lambda: _reserved(scene, suspect))
    (kept,) = _reserved(scene, suspect)
    (other,) = [each for each in scene.ready if each is not kept]

    other.finish_all()
    scene.until(lambda: suspect in scene.running())
    assert scene.where(suspect) is other
    assert _reserved(scene, suspect) == [other]
    other.finish_all()
    kept.finish_all()
    scene.until(lambda: scene.ferry.state(suspect) is State.SUCCEEDED)

    assert _reserved(scene, suspect) == []
    scene.start_jobs(4)


def test_of_suspects_no_more_are_claimed_than_a_worker_has_places(begin: Begin) -> None:
    scene = begin(concurrency=8, executors=2)
    scene.start_jobs(1)

    ids = scene.suspects(300)
    scene.go_on(2)

    claimed = [state for state in scene.ferry.states(ids) if state is State.RUNNING]
    assert 1 <= len(claimed) <= 16


def _reserved(scene: Scene, suspect: JobId) -> list[ScriptedExecutor]:
    """Executors that are kept for it."""
    return [each for each in scene.ready if scene.member(each).solo == suspect]


# -- handing out -----------------------------------------------------------------------------------


def test_what_was_claimed_for_a_fast_executor_that_got_slow_does_not_go_beside_a_suspect(
    begin: Begin,
) -> None:
    scene = begin(concurrency=8, executors=2)
    (suspect,) = scene.suspects()
    scene.until(lambda: suspect in scene.running())
    alone = scene.where(suspect)
    (fast,) = [each for each in scene.ready if each is not alone]
    _hurry(scene, fast)

    scene.ferry.add_many(200)
    _claim_slowly(scene)

    assert list(scene.member(alone).jobs) == [suspect]
    assert len(scene.member(fast).jobs) > 8


def test_what_was_claimed_for_a_fast_executor_that_got_slow_does_not_go_to_one_that_drains(
    begin: Begin,
) -> None:
    scene = begin(concurrency=8, executors=2)
    gone, fast = scene.ready
    gone.script = _linger
    member = scene.member(gone)
    scene.supervisor.crew.retire(member)
    scene.until(lambda: gone.has_said_bye)
    _hurry(scene, fast)

    scene.ferry.add_many(200)
    _claim_slowly(scene)

    assert member.jobs == {}
    assert len(scene.member(fast).jobs) > 8


def test_jobs_for_an_executor_that_had_nothing_to_do_are_not_taken_back(begin: Begin) -> None:
    scene = begin()

    for _ in range(20):
        scene.go_on(0.103)
        (job,) = scene.start_jobs(1)
        scene.where(job).finish()

    heard = [frame.kind for executor in scene.executors for frame in executor.heard]
    assert heard.count(Kind.RUN) == 20
    assert Kind.RECALL not in heard


def test_a_cancel_means_the_same_job_to_an_executor_with_older_code(begin: Begin) -> None:
    scene = begin(concurrency=8, executors=2)
    scene.tasks = [TaskFacts(name="work", track="thread"), TaskFacts(name="other", track="thread")]
    scene.supervisor.reload()
    scene.until(lambda: [len(each.tasks) for each in scene.ready] == [2, 2])
    older, lost = scene.ready
    scene.start_jobs(1)
    scene.tasks = [TaskFacts(name="work", track="thread"), TaskFacts(name="other", track="loop")]
    lost.die()
    scene.until(lambda: lost.is_closed and len(scene.ready) == 2)
    (newer,) = [each for each in scene.ready if each is not older]

    jobs = scene.ferry.add_many(6, task="other")
    scene.until(lambda: set(jobs) & _runs(older) and set(jobs) & _runs(newer))
    first, second = (set(jobs) & _runs(each) for each in (older, newer))
    chosen = [first.pop(), second.pop()]
    scene.ferry.cancel(*chosen)
    scene.until(lambda: older.cancelled and newer.cancelled)

    assert [older.cancelled, newer.cancelled] == [{chosen[0]}, {chosen[1]}]
    for executor, track in ((older, "thread"), (newer, "loop")):
        (request,) = [frame.body for frame in executor.heard if frame.kind is Kind.CANCEL]
        assert request.track == track
    assert all(
        member.has_started(held)
        for member in scene.supervisor.crew.members
        for held in member.jobs.values()
        if held.claim.id in scene.running()
    )


def _runs(executor: ScriptedExecutor) -> set[JobId]:
    return {each.claim.id for each in executor.running.values()}


def _hurry(scene: Scene, executor: ScriptedExecutor) -> None:
    """It shows a pace of ten thousand jobs a second."""
    for _ in range(3):
        scene.time.advance(0.01)
        scene.member(executor).pace.record(100, 0.001, scene.time.seconds)


def _claim_slowly(scene: Scene) -> None:
    """The store takes its time for the next claim."""
    turn = scene.desk.turn

    def slow(room: int) -> Sequence[Claim]:
        claims = turn(room)
        scene.time.advance(0.3 if claims else 0.0)
        return claims

    with scene.monkeypatch.context() as patch:
        patch.setattr(scene.desk, "turn", slow)
        before = scene.supervisor.crew.held()
        scene.until(lambda: scene.supervisor.crew.held() > before, step=0.001)
