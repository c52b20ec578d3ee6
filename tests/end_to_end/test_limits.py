"""Tasks that take too long, too much, or do not want to stop."""

from __future__ import annotations

import time

from ferryman.job import State
from tests.end_to_end.harness import Harbour, Worker, wait_for

FORKING = """
import ctypes

@app.task(at_most_once=True)
def fork_and_die() -> None:
    if ctypes.PyDLL(None).fork() == 0:  # As a library does it: Python does not know, and closes nothing.
        effect("forked", os.getpid())
        for _ in range(3_000):
            if os.path.exists("go"):
                break
            time.sleep(0.01)
        effect("ended", os.getpid())
        os._exit(0)
    os._exit(3)

@app.task
def mark(n: int) -> None:
    pass
"""

TASKS = """
import asyncio

@app.task(timeout=0.2, retry=Retry(max_attempts=2, base=0.01))
def spin() -> None:
    effect("start", "spin", os.getpid())
    while True:
        pass

@app.task
def mark(n: int) -> None:
    effect("end", n, os.getpid(), threading.get_ident())

@app.task(timeout=0.2, retry=Retry(max_attempts=1))
def deaf() -> None:
    effect("start", "deaf", os.getpid())
    while True:
        try:
            time.sleep(30)
        except BaseException:
            effect("caught", "deaf")

@app.task(timeout=0.2, retry=Retry(max_attempts=1))
async def adeaf() -> None:
    effect("start", "adeaf", os.getpid())
    time.sleep(30)

@app.task
def hold(n: int) -> None:
    effect("start", n, os.getpid())
    wait_for_file("go")
    effect("end", n)

@app.task
def stubborn() -> None:
    effect("start", "stubborn", os.getpid())
    while True:
        try:
            wait_for_file("go")
        except BaseException:
            effect("caught", "stubborn")

@app.task
def compute() -> None:
    effect("start", "compute")
    while True:
        pass

@app.task
async def asleep() -> None:
    effect("start", "asleep")
    try:
        await asyncio.sleep(60)
    finally:
        effect("cleanup", "asleep")

@app.task(max_memory=200, retry=Retry(max_attempts=1))
def glutton() -> None:
    effect("start", "glutton", os.getpid())
    hoard = []
    while True:
        hoard.append(b"x" * 10_000_000)
        time.sleep(0.02)

@app.task
def leak(megabytes: int) -> None:
    effect("end", megabytes, os.getpid())
    sys.modules.setdefault("leaked", []).append(b"x" * (megabytes << 20))
"""


def test_a_soft_timeout_stops_a_task_that_computes_and_its_thread_goes_on(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    spin = tasks.spin.enqueue()
    worker = harbour.start_worker("--concurrency", "1", "--executors", "1")
    executors = worker.executors()

    wait_for(harbour.in_state(spin.id, State.DEAD), what="both attempts have timed out")
    tasks.mark.enqueue(1)
    wait_for(lambda: harbour.tally("end")["1"] == 1)

    job = harbour.job(spin.id)
    assert (job.attempt, job.deaths) == (2, 0)
    assert job.reason == "TimeLimit: stopped after its timeout of 0.2 s"
    assert worker.executors() == executors, "nothing had to be killed"
    assert harbour.effects()[-1][2] == harbour.effects()[0][2]


def test_a_hard_timeout_kills_what_does_not_stop_and_spares_the_rest(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    deaf = tasks.deaf.enqueue()
    tasks.hold.enqueue_many([(1,), (2,)])
    harbour.start_worker("--concurrency", "3", "--executors", "1", env={"FERRYMAN_WORKER_GRACE": "0.3"})
    wait_for(lambda: len(harbour.tally("start")) == 3)

    began = time.monotonic()
    wait_for(harbour.in_state(deaf.id, State.DEAD))
    took = time.monotonic() - began
    wait_for(lambda: harbour.tally("start")["1"] == 2, what="its neighbours run again")
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=2, dead=1))

    assert took < 3
    assert (harbour.job(deaf.id).reason or "").startswith("HardTimeout: did not stop 0.3 s after its timeout")
    assert {job.attempt for job in harbour.jobs(states=(State.SUCCEEDED,))} == {1}
    assert {job.deaths for job in harbour.jobs()} == {0}


def test_a_hard_timeout_also_ends_a_coroutine_that_blocks_its_loop(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    deaf = tasks.adeaf.enqueue()

    harbour.start_worker("--concurrency", "2", "--executors", "1", env={"FERRYMAN_WORKER_GRACE": "0.2"})
    wait_for(harbour.in_state(deaf.id, State.DEAD))

    assert "HardTimeout" in (harbour.job(deaf.id).reason or "")


def test_a_task_that_takes_more_memory_than_it_may_is_killed_and_others_are_not(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    glutton = tasks.glutton.enqueue()
    tasks.hold.enqueue(1)

    harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(harbour.in_state(glutton.id, State.DEAD))
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=1, dead=1))

    assert "MemoryLimit" in (harbour.job(glutton.id).reason or "")
    assert "200 MiB" in (harbour.job(glutton.id).reason or "")
    (innocent,) = harbour.jobs(states=(State.SUCCEEDED,))
    assert (innocent.attempt, innocent.deaths) == (1, 0)


def test_an_executor_that_leaks_is_replaced_between_jobs(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    worker = harbour.start_worker("--concurrency", "1", "--executors", "1", "--max-memory", "120")
    (first,) = worker.executors()

    tasks.leak.enqueue(110).result(timeout=5)
    wait_for(lambda: worker.executors() and first not in worker.executors(), what="another one has come")
    tasks.mark.enqueue(1)
    wait_for(harbour.settled(succeeded=2))

    assert harbour.effects()[-1][2] != str(first)
    assert {job.attempt for job in harbour.jobs()} == {1}


def test_an_executor_is_recycled_after_its_share_of_jobs(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    worker = harbour.start_worker("--concurrency", "2", "--executors", "1", "--recycle-after", "100")
    (first,) = worker.executors()

    tasks.mark.enqueue_many([(n,) for n in range(150)])
    wait_for(lambda: worker.executors() and first not in worker.executors(), what="another one has come")
    tasks.mark.enqueue_many([(n,) for n in range(150, 200)])
    wait_for(harbour.settled(succeeded=200))

    assert {line[2] for line in harbour.effects()[-50:]}.isdisjoint({str(first)})
    assert set(harbour.tally("end").values()) == {1}
    assert {job.attempt for job in harbour.jobs()} == {1}


def start_busy(harbour: Harbour, *starts: str) -> Worker:
    worker = harbour.start_worker(
        "--concurrency", "4", "--executors", "1", env={"FERRYMAN_WORKER_GRACE": "0.4"}
    )
    wait_for(lambda: set(starts) <= set(harbour.tally("start")))
    return worker


def test_waiting_jobs_are_cancelled_at_once(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handles = [tasks.mark.enqueue(1), tasks.mark.options(delay=60).enqueue(2)]

    assert [handle.cancel("changed my mind") for handle in handles] == [True, True]
    assert [handle.cancel() for handle in handles] == [False, False]

    assert {harbour.job(handle.id).state for handle in handles} == {State.CANCELLED}
    assert harbour.job(handles[0].id).reason == "changed my mind"


def test_running_jobs_are_cancelled_wherever_they_are(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handles = [tasks.compute.enqueue(), tasks.asleep.enqueue()]
    other = tasks.hold.enqueue(1)
    worker = start_busy(harbour, "compute", "asleep", "1")
    executors = worker.executors()

    began = time.monotonic()
    assert [handle.cancel("enough") for handle in handles] == [True, True]
    wait_for(lambda: all(harbour.job(handle.id).state is State.CANCELLED for handle in handles))
    took = time.monotonic() - began

    print(f"cancelled within {took * 1000:.0f} ms")
    assert took < 2
    assert harbour.tally("cleanup")["asleep"] == 1
    assert harbour.job(handles[0].id).reason == "enough"
    assert worker.executors() == executors
    assert harbour.job(other.id).state is State.RUNNING


def test_a_job_that_swallows_its_cancel_is_killed_after_the_grace(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    stubborn = tasks.stubborn.enqueue()
    other = tasks.hold.enqueue(1)
    start_busy(harbour, "stubborn", "1")

    stubborn.cancel("enough")
    wait_for(harbour.in_state(stubborn.id, State.CANCELLED), timeout=5)
    wait_for(lambda: harbour.tally("start")["1"] == 2, what="its neighbour runs again")
    (harbour.folder / "go").touch()
    wait_for(harbour.in_state(other.id, State.SUCCEEDED))

    assert harbour.tally("caught")["stubborn"] >= 1
    assert harbour.job(stubborn.id).reason == "enough"
    assert harbour.job(other.id).attempt == 1


def test_running_jobs_of_a_full_worker_are_cancelled_as_fast(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    handles = tasks.hold.enqueue_many([(n,) for n in range(8)])
    start_busy(harbour, "0", "1", "2", "3")

    began = time.monotonic()
    handles[2].cancel()
    wait_for(harbour.in_state(handles[2].id, State.CANCELLED), timeout=4)

    assert time.monotonic() - began < 2


def test_the_death_of_an_executor_is_seen_although_a_helper_that_c_code_forked_lives(
    harbour: Harbour,
) -> None:
    tasks = harbour.load(FORKING)
    harbour.start_worker("--concurrency", "2", "--executors", "1")

    forking = tasks.fork_and_die.enqueue()
    wait_for(lambda: harbour.tally("forked"), what="the helper lives")
    other = tasks.mark.enqueue(1)
    wait_for(harbour.in_state(other.id, State.SUCCEEDED), timeout=5, what="another executor has come")

    assert harbour.job(forking.id).state is State.DEAD
    assert not harbour.tally("ended"), "the helper was there all the time"
    harbour.touch("go")
    wait_for(lambda: harbour.tally("ended"), what="the helper ends")
