"""Who holds the interpreter, or a place for long, does not keep others from being served."""

from __future__ import annotations

import itertools
import statistics
import time

from ferryman.job import State
from tests.end_to_end.harness import Harbour, wait_for

TASKS = """
@app.task(queue="burn")
def burn() -> None:
    effect("start", "burn", os.getpid())
    while True:
        pass

@app.task(queue="light")
def light(n: int) -> int:
    return n

@app.task
def hold(n: int) -> None:
    effect("start", n)
    wait_for_file("go")

@app.task
def brief(n: int) -> None:
    time.sleep(0.002)
    effect("end", n)

@app.task
def tell(n: int) -> None:
    effect("begun", n)
    time.sleep(0.005)
    effect("done", n)
"""

OTHER = """
@app.task(name="tasks.elsewhere")
def elsewhere(n: int) -> str:
    return f"ran {n}"
"""


def test_four_tasks_that_only_compute_delay_neither_heartbeats_nor_another_queue(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.burn.enqueue_many([()] * 4)
    worker = harbour.start_worker("--heartbeat", "0.2", "--lease", "2")
    wait_for(lambda: len(harbour.effects()) == 4, what="all four compute")
    seen = [worker.record.seen_at]

    waits = []
    for n in range(60):
        handle = tasks.light.enqueue(n)
        job = wait_for(lambda: (record := handle.record()).finished_at and record, what="a light job is done")  # noqa: B023
        waits.append(job.started_at - job.enqueued_at)
        if (now := worker.record.seen_at) != seen[-1]:
            seen.append(now)
        time.sleep(0.03)

    gaps = [after - before for before, after in itertools.pairwise(seen)]
    print(f"light jobs started after {statistics.median(waits):.0f} ms (median), {max(waits)} ms (most); "
          f"heartbeats were {max(gaps)} ms apart at most; {worker.log.count('starting another one')} relief")  # fmt: skip
    assert statistics.median(waits) < 100
    assert max(waits) < 1_500
    assert len(seen) > 5
    assert max(gaps) < 1_000
    assert harbour.counts() == {"running": 4, "succeeded": 60}


def test_short_jobs_are_not_stuck_behind_a_long_one(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.brief.enqueue_many([(n,) for n in range(100)])
    long = tasks.hold.enqueue(0)
    tasks.brief.enqueue_many([(n,) for n in range(100, 300)])

    harbour.start_worker("--concurrency", "2", "--executors", "2")
    wait_for(harbour.settled(running=1, succeeded=300), what="all short jobs are done")

    assert harbour.job(long.id).state is State.RUNNING
    assert {job.attempt for job in harbour.jobs()} == {1}


def test_free_places_are_used_while_most_are_held_by_long_jobs(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(12)])
    harbour.start_worker("--concurrency", "16", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) == 12, what="twelve of sixteen places are held")

    tasks.brief.enqueue_many([(n,) for n in range(40)])
    wait_for(harbour.settled(running=12, succeeded=40), timeout=5, what="the others serve the rest")


def test_every_place_is_used_by_long_jobs(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(40)])

    harbour.start_worker("--concurrency", "15", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) == 15, what="all places are taken")
    time.sleep(0.2)

    assert len(harbour.tally("start")) == 15
    assert harbour.counts() == {"running": 15, "ready": 25}


def test_no_more_short_jobs_run_at_once_than_the_worker_may_run(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.tell.enqueue_many([(n,) for n in range(300)])

    harbour.start_worker("--concurrency", "5", "--executors", "4")
    wait_for(harbour.settled(succeeded=300), what="all jobs are done")

    at_once = itertools.accumulate(1 if word == "begun" else -1 for word, _ in harbour.effects())
    assert max(at_once) == 5


def test_a_task_that_the_worker_does_not_know_is_put_back_for_one_that_does(harbour: Harbour) -> None:
    harbour.load(TASKS)
    harbour.write(OTHER, "other")
    first = harbour.start_worker("--executors", "1")
    handle = harbour.app.enqueue("tasks.light", n=1)
    unknown = harbour.app.job(put_elsewhere(harbour))
    wait_for(lambda: unknown.status() is State.SCHEDULED, what="it was put back")
    assert handle.result(timeout=5) == 1
    assert first.stop() == 0

    harbour.start_worker("--executors", "1", app="other:app")

    assert unknown.result(timeout=9) == "ran 7"
    record = unknown.record()
    assert record.attempt == 1
    history = harbour.run(harbour.app.store.history(unknown.id))
    assert history is not None
    assert "has no task 'tasks.elsewhere'" in (history.attempts[0].reason or "")


def put_elsewhere(harbour: Harbour) -> str:
    from ferryman.app import App

    producer = App(harbour.url)
    handle = producer.enqueue("tasks.elsewhere", n=7)
    producer.close()
    return handle.id
