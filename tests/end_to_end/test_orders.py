"""What people tell workers and queues through the store."""

from __future__ import annotations

import signal
import time

from ferryman.job import State
from tests.end_to_end.harness import ON_EVERY_SHARED_STORE, Harbour, wait_for

pytestmark = ON_EVERY_SHARED_STORE

TASKS = """
@app.task
def mark(n: int) -> None:
    effect("start", n)
    effect("end", n)

@app.task
def hold(n: int) -> None:
    effect("start", n)
    wait_for_file("go")
    effect("end", n)

@app.task
def slow(n: int) -> None:
    effect("start", n)
    time.sleep(0.01)
"""


def test_a_paused_worker_takes_no_jobs_until_it_is_resumed(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    worker = harbour.start_worker("--concurrency", "4", "--executors", "1", "--heartbeat", "0.3")

    worker.order("pause")
    wait_for(lambda: worker.record.status.state == "paused", timeout=2, what="it says that it is paused")
    tasks.mark.enqueue_many([(n,) for n in range(5)])
    seen = worker.record.seen_at
    wait_for(lambda: worker.record.seen_at > seen, timeout=2, what="it goes on to say that it is alive")
    assert harbour.counts() == {"ready": 5}
    worker.order("resume")

    wait_for(harbour.settled(succeeded=5), timeout=2, what="its jobs are done")
    wait_for(lambda: worker.record.status.state == "active", timeout=2)


def test_a_busy_worker_obeys_within_a_moment(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.slow.enqueue_many([(n,) for n in range(3_000)])
    worker = harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) > 20)

    began = time.monotonic()
    worker.order("pause")
    wait_for(lambda: worker.record.status.state == "paused", timeout=4)
    took = time.monotonic() - began

    print(f"paused after {took * 1000:.0f} ms")
    assert took < 1.5
    wait_for(lambda: "running" not in harbour.counts())
    assert harbour.counts()["ready"] > 0


def test_orders_drain_and_stop_end_a_worker(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(6)])
    first = harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) == 2)
    second = harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) == 4)

    first.order("drain")
    second.order("stop")
    wait_for(lambda: "stopping" in first.log and "stopping" in second.log, timeout=2)
    harbour.touch("go")

    assert first.process.wait(5) == second.process.wait(5) == 0
    assert harbour.counts() == {"succeeded": 4, "ready": 2}
    assert {job.attempt for job in harbour.jobs(states=(State.READY,))} == {0}


def test_a_signal_after_an_ordered_drain_still_lets_jobs_finish(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.hold.enqueue_many([(n,) for n in range(3)])
    worker = harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) == 2)
    worker.order("drain")
    wait_for(lambda: worker.record.status.state == "draining", timeout=2)

    worker.signal(signal.SIGTERM)
    wait_for(lambda: worker.log.count("stopping") == 2, what="it has heard the signal")
    harbour.touch("go")

    assert worker.process.wait(5) == 0
    assert harbour.counts() == {"succeeded": 2, "ready": 1}


def test_a_paused_queue_gives_nothing_and_others_go_on(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    store = harbour.app.store
    harbour.run(store.pause(["slow"], True))
    tasks.mark.options(queue="slow").enqueue_many([(n,) for n in range(5)])
    harbour.start_worker("--concurrency", "2", "--executors", "1")

    tasks.mark.enqueue_many([(n,) for n in range(5, 10)])
    wait_for(harbour.settled(ready=5, succeeded=5))
    harbour.run(store.pause(["slow"], False))

    wait_for(harbour.settled(succeeded=10), timeout=2)


def test_a_worker_serves_the_queues_that_it_was_told(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.mark.options(queue="a").enqueue(1)
    tasks.mark.options(queue="b").enqueue(2)
    tasks.mark.options(queue="c").enqueue(3)

    harbour.start_worker("--queues", "a, b")
    wait_for(harbour.settled(succeeded=2, ready=1))

    assert set(harbour.tally("end")) == {"1", "2"}


def test_heartbeats_come_as_often_as_they_were_asked_for(harbour: Harbour) -> None:
    harbour.load(TASKS)
    fast = harbour.start_worker("--heartbeat", "0.1", "--lease", "1")
    slow = harbour.start_worker("--heartbeat", "30", "--lease", "60")
    first = fast.record.seen_at
    other = slow.record.seen_at

    beats: set[int] = set()
    began = time.monotonic()
    while len(beats) < 8:
        beats.add(fast.record.seen_at)
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    took = time.monotonic() - began

    print(f"8 heartbeats in {took:.2f} s")
    assert 0.5 < took < 3
    assert fast.record.lease_until - fast.record.seen_at == 1_000
    assert fast.record.seen_at > first
    assert slow.record.seen_at == other
