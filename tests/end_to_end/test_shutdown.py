"""A worker that is told to stop finishes what runs, gives back the rest, and spends no attempt on it."""

from __future__ import annotations

import signal
import time

from ferryman.job import OutcomeKind, State
from tests.end_to_end.harness import ON_EVERY_SHARED_STORE, Harbour, wait_for

pytestmark = ON_EVERY_SHARED_STORE

TASKS = """
import asyncio

@app.task
def hold(n: int) -> None:
    effect("start", n)
    wait_for_file("go")
    effect("end", n)

@app.task
async def ahold(n: int) -> None:
    effect("start", n)
    while not os.path.exists("go"):
        await asyncio.sleep(0.002)
    effect("end", n)

@app.task
def brief(n: int) -> None:
    effect("start", n)
    time.sleep(0.003)
    effect("end", n)

@app.task(at_most_once=True)
def once(n: int) -> None:
    effect("start", n)
    wait_for_file("go")

@app.task
def stubborn(n: int) -> None:
    effect("start", n)
    while not os.path.exists("go"):
        try:
            time.sleep(0.01)
        except BaseException:
            pass
    effect("end", n)

pools = []

@app.task
def leave_a_hanging_pool(n: int) -> None:
    from concurrent.futures import ThreadPoolExecutor
    pools.append(ThreadPoolExecutor(1))
    pools[-1].submit(threading.Event().wait)
    effect("end", n)
"""


def test_sigterm_lets_running_jobs_finish_and_gives_back_the_rest_unspent(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(10)])
    tasks.ahold.enqueue_many([(n,) for n in range(10, 20)])
    worker = harbour.start_worker("--concurrency", "4", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) >= 4, what="the places are taken")

    worker.signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in worker.log)
    wait_for(lambda: worker.record.status.state == "draining", what="its record says that it drains")
    harbour.touch("go")
    code = worker.process.wait(10)

    started, ended = harbour.tally("start"), harbour.tally("end")
    assert code == 0
    assert started == ended
    assert harbour.counts() == {"succeeded": len(ended), "ready": 20 - len(ended)}
    assert {job.attempt for job in harbour.jobs(states=(State.READY,))} == {0}
    assert worker.record.gone == "stopped"


def test_sigterm_under_load_loses_nothing_and_repeats_nothing(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.brief.enqueue_many([(n,) for n in range(1_500)])

    for done in (50, 300, 700):
        worker = harbour.start_worker("--concurrency", "16", registered=False)
        wait_for(lambda: len(harbour.tally("end")) >= done)  # noqa: B023
        began = time.monotonic()
        assert worker.stop() == 0
        assert "running" not in harbour.counts()
        assert harbour.counts()["succeeded"] == len(harbour.tally("end"))
        print(f"stopped within {(time.monotonic() - began) * 1000:.0f} ms")
    harbour.start_worker("--concurrency", "16")
    wait_for(harbour.settled(succeeded=1_500))

    assert set(harbour.tally("start").values()) == {1}
    assert {job.attempt for job in harbour.jobs()} == {1}


def test_jobs_that_outlive_the_deadline_run_again_later_without_a_spent_attempt(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handles = tasks.hold.enqueue_many([(1,), (2,)])
    worker = harbour.start_worker("--concurrency", "2", "--executors", "1", "--shutdown-timeout", "0.3")
    wait_for(lambda: len(harbour.tally("start")) == 2)

    began = time.monotonic()
    assert worker.stop(5) == 0
    took = time.monotonic() - began

    assert 0.25 < took < 3
    assert {harbour.job(handle.id).state for handle in handles} == {State.SCHEDULED}
    assert {harbour.job(handle.id).attempt for handle in handles} == {0}
    harbour.touch("go")
    harbour.start_worker()
    wait_for(harbour.settled(succeeded=2))
    history = harbour.run(harbour.app.store.history(handles[0].id))
    assert history is not None
    assert [attempt.kind for attempt in history.attempts] == [OutcomeKind.SNOOZED]
    assert "stopped before it was done" in (history.attempts[0].reason or "")


def test_however_many_jobs_outlive_the_deadline_none_spends_an_attempt(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.ahold.enqueue_many([(n,) for n in range(900)])
    worker = harbour.start_worker("--concurrency", "900", "--executors", "1", "--shutdown-timeout", "0.3")
    wait_for(lambda: len(harbour.tally("start")) == 900)

    assert worker.stop(10) == 0

    assert harbour.counts() == {"scheduled": 900}
    assert {job.attempt for job in harbour.jobs()} == {0}


def test_a_job_that_may_run_once_and_outlives_the_deadline_is_a_dead_letter(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handle = tasks.once.enqueue(1)
    worker = harbour.start_worker("--concurrency", "1", "--executors", "1", "--shutdown-timeout", "0.2")
    wait_for(lambda: harbour.tally("start")["1"] == 1)

    assert worker.stop(5) == 0

    job = harbour.job(handle.id)
    assert job.state is State.DEAD
    assert "stopped before it was done" in (job.reason or "")


def test_a_second_signal_ends_it_at_once(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handle = tasks.stubborn.enqueue(1)
    worker = harbour.start_worker("--concurrency", "1", "--executors", "1")
    wait_for(lambda: harbour.tally("start")["1"] == 1)

    worker.signal(signal.SIGINT)
    wait_for(lambda: "stopping" in worker.log)
    began = time.monotonic()
    worker.signal(signal.SIGINT)

    assert worker.process.wait(5) == 0
    assert time.monotonic() - began < 2
    assert harbour.job(handle.id).state is State.SCHEDULED
    assert harbour.job(handle.id).attempt == 0


def test_a_signal_to_the_whole_group_stops_it_as_gently(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(4)])
    worker = harbour.start_worker("--concurrency", "4", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) == 4)

    for pid in [worker.pid, *worker.executors()]:
        signal.pidfd_send_signal(pidfd(pid), signal.SIGINT)
    wait_for(lambda: "stopping" in worker.log)
    harbour.touch("go")

    assert worker.process.wait(5) == 0
    assert harbour.counts() == {"succeeded": 4}


def pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def test_an_executor_killed_while_its_worker_drains_gives_its_jobs_back(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(1,), (2,)])
    worker = harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) == 2)
    worker.signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in worker.log)

    signal.pidfd_send_signal(pidfd(worker.executors()[0]), signal.SIGKILL)

    assert worker.process.wait(5) == 0
    assert harbour.counts() == {"ready": 2}
    assert {job.deaths for job in harbour.jobs()} == {1}


def test_what_a_task_left_hanging_in_a_pool_keeps_a_worker_no_longer_than_the_grace(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.leave_a_hanging_pool.enqueue(1)
    grace = {"FERRYMAN_WORKER_GRACE": "0.3"}
    worker = harbour.start_worker("--executors", "1", "--shutdown-timeout", "600", env=grace)
    wait_for(harbour.settled(succeeded=1))

    assert worker.stop(10) == 0

    assert harbour.tally("end")["1"] == 1
    assert worker.record.gone == "stopped"


def test_a_worker_that_is_stopped_while_it_starts_ends_well(harbour: Harbour) -> None:
    harbour.load("time.sleep(0.4)")

    worker = harbour.start_worker(registered=False)
    wait_for(lambda: len(worker.executors()) == 1, what="its first executor is starting")
    time.sleep(0.05)
    code = worker.stop(5)

    assert code == 0
