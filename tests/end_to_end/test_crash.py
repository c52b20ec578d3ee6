"""Processes are killed and stopped at the worst moment: nothing is lost, and little is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from ferryman.job import JobId, State
from ferryman.store.records import Filter
from tests.end_to_end.harness import ON_EVERY_SHARED_STORE, Harbour, Worker, wait_for

pytestmark = ON_EVERY_SHARED_STORE

MARK = """
@app.task
def mark(n: int) -> None:
    effect("start", n)
    time.sleep(0.005)
    effect("end", n)
"""

HOLD = """
@app.task
def hold(n: int) -> None:
    effect("start", n, os.getpid())
    wait_for_file("go")
    effect("end", n)
"""


def repeats(harbour: Harbour, word: str) -> int:
    """How many times too often a job wrote this."""
    return sum(count - 1 for count in harbour.tally(word).values())


def test_after_a_kill_of_the_whole_worker_nothing_is_lost_and_little_runs_twice(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue_many([(n,) for n in range(2_000)])
    worker = harbour.start_worker("--concurrency", "16")
    wait_for(lambda: len(harbour.tally("end")) > 700, what="a third of the jobs are done")

    worker.kill()
    left = 2_000 - len(harbour.tally("end"))
    restarted = time.monotonic()
    harbour.start_worker("--concurrency", "16", registered=False)
    wait_for(harbour.settled(succeeded=2_000), timeout=12, what="all jobs have succeeded")
    took = time.monotonic() - restarted

    twice, started_twice = repeats(harbour, "end"), repeats(harbour, "start")
    print(f"{left} jobs left at the kill: {took:.2f} s from the restart to the last one, "
          f"{twice} ended twice, {started_twice} started twice")  # fmt: skip
    assert len(harbour.tally("end")) == 2_000
    # Sixteen were at work when everything was killed, and as many may have ended and not been settled.
    assert started_twice <= 32
    assert all(count <= 2 for count in harbour.tally("start").values())
    assert took < 3


def test_kills_at_many_moments_lose_nothing(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.options(queue="a").enqueue_many([(n,) for n in range(600)])
    tasks.mark.options(queue="b", priority="high").enqueue_many([(n,) for n in range(600, 1_200)])
    kills = 0

    for done in (1, 200, 450, 700, 950):
        worker = harbour.start_worker("--concurrency", "16", registered=False)
        wait_for(lambda: len(harbour.tally("end")) >= done, what=f"{done} jobs are done")  # noqa: B023
        worker.kill()
        kills += 1
    harbour.start_worker("--concurrency", "16")
    wait_for(lambda: "succeeded" in harbour.counts() and len(harbour.tally("end")) == 1_200)
    wait_for(
        lambda: (
            sum(harbour.counts().values()) == sum(harbour.counts().get(s, 0) for s in ("succeeded", "dead"))
        )
    )

    print(
        f"{repeats(harbour, 'end')} ended twice in {kills} kills, {repeats(harbour, 'start')} started twice"
    )
    assert harbour.counts() == {"succeeded": 1_200}
    assert repeats(harbour, "start") <= 32 * kills


def test_jobs_of_a_killed_executor_run_again_within_a_second(harbour: Harbour) -> None:
    tasks = harbour.load(HOLD)
    tasks.hold.enqueue_many([(n,) for n in range(8)])
    harbour.start_worker("--concurrency", "8", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) == 8, what="all jobs run")
    victim = int(harbour.effects()[0][2])
    his = {line[1] for line in harbour.effects() if line[2] == str(victim)}

    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(
        lambda: all(harbour.tally("start")[n] == 2 for n in his), what="the jobs of the killed one run again"
    )
    took = time.monotonic() - killed
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=8))

    print(f"{len(his)} jobs of the killed executor ran again after {took * 1000:.0f} ms")
    assert took < 1.0 * 2
    assert repeats(harbour, "start") == len(his)
    assert {job.attempt for job in harbour.jobs()} == {1, 2}


def test_jobs_of_a_killed_worker_are_taken_over_by_its_neighbour_within_a_second(harbour: Harbour) -> None:
    tasks = harbour.load(HOLD)
    tasks.hold.enqueue_many([(n,) for n in range(4)])
    first = harbour.start_worker("--concurrency", "4", "--executors", "1")
    wait_for(lambda: len(harbour.tally("start")) == 4, what="the first worker runs all jobs")
    second = harbour.start_worker("--concurrency", "4", "--executors", "1")

    first.kill()
    killed = time.monotonic()
    wait_for(lambda: repeats(harbour, "start") == 4, what="the second worker runs them all")
    took = time.monotonic() - killed
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=4))

    print(f"the neighbour had taken over after {took * 1000:.0f} ms")
    assert took < 1.0 * 2
    assert first.record.gone == "dead"
    assert second.record.gone is None


PRODUCER = """
import sys, tasks
from ferryman.job import new_id

print("begin", flush=True)
while True:
    jobs = [tasks.mark.new_job((n,), {}) for n in range(20)]
    # Told before as well: whoever repeats an enqueue after a lost answer has the job in hand.
    print("asked", *(job.id for job in jobs), flush=True)
    handles = tasks.app.enqueue_jobs(jobs)
    print("acknowledged", *(handle.id for handle in handles), flush=True)
"""


def test_a_producer_killed_in_mid_enqueue_leaves_all_that_was_acknowledged(harbour: Harbour) -> None:
    harbour.load(MARK)
    (harbour.folder / "producer.py").write_text(PRODUCER)
    said = harbour.folder / "said"
    with said.open("wb") as stream:
        producer = subprocess.Popen([sys.executable, "producer.py"], cwd=harbour.folder, stdout=stream)
    wait_for(lambda: said.read_text().count("acknowledged") > 20, what="the producer is at work")

    producer.kill()
    producer.wait()

    lines = [line.split() for line in said.read_text().rpartition("\n")[0].splitlines()]
    acknowledged = [id for word, *ids in lines if word == "acknowledged" for id in ids]
    asked = [ids for word, *ids in lines if word == "asked" and len(ids) == 20]
    stored = {job.id for job in harbour.jobs()}
    assert len(acknowledged) >= 400
    assert stored >= set(acknowledged)
    assert len(stored) % 20 == 0, "a batch was stored in half"
    assert len(stored) - len(acknowledged) in (0, 20)
    assert set(asked[-1]) <= stored or not set(asked[-1]) & stored


def test_the_repeat_of_an_enqueue_makes_no_second_job(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    jobs = [tasks.mark.new_job((n,), {}) for n in range(20)]
    first = harbour.app.enqueue_jobs(jobs[:10])

    again = harbour.app.enqueue_jobs(jobs)

    assert [handle.duplicate for handle in first] == [False] * 10
    assert [handle.duplicate for handle in again] == [True] * 10 + [False] * 10
    assert [handle.id for handle in again] == [job.id for job in jobs]
    assert harbour.counts() == {"ready": 20}


PILL = """
@app.task
def pill() -> None:
    effect("start", "pill")
    os.kill(os.getpid(), 9)

@app.task
def innocent(n: int) -> None:
    effect("start", n)
    time.sleep(0.01)
    effect("end", n)
"""


def test_a_poison_pill_dies_after_three_deaths_and_its_neighbours_live(harbour: Harbour) -> None:
    tasks = harbour.load(PILL)
    tasks.innocent.enqueue_many([(n,) for n in range(30)])
    pill = tasks.pill.enqueue()
    tasks.innocent.enqueue_many([(n,) for n in range(30, 60)])

    harbour.start_worker("--concurrency", "8", "--executors", "2")
    wait_for(harbour.settled(succeeded=60, dead=1), what="all are finished")

    job = harbour.job(pill.id)
    history = harbour.run(harbour.app.store.history(pill.id))
    assert history is not None
    assert (job.deaths, job.attempt) == (3, 3)
    assert harbour.tally("start")["pill"] == 3
    assert job.reason is not None
    assert "ExecutorDied" in job.reason
    assert [attempt.number for attempt in history.attempts] == [1, 2, 3]


def test_two_poison_pills_and_their_neighbours_on_one_executor(harbour: Harbour) -> None:
    tasks = harbour.load(PILL)
    pills = tasks.pill.enqueue_many([(), ()])
    tasks.innocent.enqueue_many([(n,) for n in range(20)])

    harbour.start_worker("--concurrency", "4", "--executors", "1")
    wait_for(harbour.settled(succeeded=20, dead=2), timeout=15, what="all are finished")

    assert all(harbour.job(pill.id).state is State.DEAD for pill in pills)
    assert {job.attempt for job in harbour.jobs()} <= {1, 2, 3}


def test_dead_letters_of_crashes_are_grouped_by_task_not_by_process(harbour: Harbour) -> None:
    tasks = harbour.load(PILL)
    tasks.pill.enqueue_many([(), ()])

    harbour.start_worker("--concurrency", "2", "--executors", "1")
    wait_for(harbour.settled(dead=2), timeout=15)

    (cause,) = harbour.run(harbour.app.store.causes(Filter()))
    assert cause.count == 2


ONCE = """
@app.task(at_most_once=True)
def once(n: int) -> None:
    effect("start", n, os.getpid())
    time.sleep(0.02)
    effect("end", n)

@app.task
def mine(n: int) -> None:
    time.sleep(0.01)
    if n % 10 == 0:
        os.kill(os.getpid(), 9)
"""


def test_jobs_that_may_run_once_never_run_twice_whatever_is_killed(harbour: Harbour) -> None:
    tasks = harbour.load(ONCE)
    tasks.once.enqueue_many([(n,) for n in range(300)])
    worker = harbour.start_worker("--concurrency", "8", "--executors", "2")

    wait_for(lambda: len(harbour.tally("end")) > 40)
    for executor in worker.executors()[:1]:
        with contextlib.suppress(ProcessLookupError):  # They kill themselves as well.
            os.kill(executor, signal.SIGKILL)
    wait_for(lambda: len(harbour.tally("end")) > 120)
    worker.kill()
    harbour.start_worker("--concurrency", "8", "--executors", "2")
    wait_for(lambda: not {"ready", "running", "scheduled"} & set(harbour.counts()), timeout=15)

    counts = harbour.counts()
    print(f"{counts}")
    assert sum(counts.values()) == counts["succeeded"] + counts["dead"] == 300
    assert max(harbour.tally("start").values()) == 1
    assert {job.attempt for job in harbour.jobs()} == {1}
    assert len(harbour.tally("end")) >= counts["succeeded"]


def test_attempts_never_exceed_their_maximum_crashes_counted(harbour: Harbour) -> None:
    tasks = harbour.load(ONCE)
    tasks.mine.options(retry=tasks.Retry(max_attempts=2, base=0)).enqueue_many([(n,) for n in range(30)])

    harbour.start_worker("--concurrency", "4", "--executors", "2")
    wait_for(lambda: not {"ready", "running", "scheduled"} & set(harbour.counts()), timeout=15)

    assert {job.attempt for job in harbour.jobs()} <= {1, 2}
    assert {harbour.job(job.id).state for job in harbour.jobs() if job.attempt == 1} == {State.SUCCEEDED}


def test_a_worker_that_was_stopped_past_its_lease_finds_its_jobs_gone(harbour: Harbour) -> None:
    tasks = harbour.load(HOLD)
    handle = tasks.hold.enqueue(1)
    lease = ("--lease", "0.6", "--heartbeat", "0.2", "--concurrency", "2", "--executors", "1")
    first = harbour.start_worker(*lease)
    wait_for(lambda: harbour.tally("start")["1"] == 1, what="the job runs on the first worker")
    name = first.record.info.id
    first.freeze()
    second = harbour.start_worker(*lease)
    wait_for(lambda: harbour.tally("start")["1"] == 2, what="the second worker has taken over")

    harbour.touch("go")
    wait_for(harbour.in_state(handle.id, State.SUCCEEDED))
    settled = harbour.job(handle.id)
    first.signal(signal.SIGCONT)
    wait_for(lambda: first.record.info.id != name, what="the first worker has started anew")

    assert harbour.job(handle.id) == settled
    assert settled.worker == second.record.info.id
    assert settled.attempt == 2
    assert "taken for dead" in first.log
    second.kill()
    after = tasks.hold.enqueue(2)
    wait_for(harbour.in_state(after.id, State.SUCCEEDED), what="the first worker serves again")


def test_a_worker_whose_lease_passed_while_it_drained_ends_all_the_same(harbour: Harbour) -> None:
    tasks = harbour.load(HOLD)
    tasks.hold.enqueue(1)
    lease = ("--lease", "0.6", "--heartbeat", "0.2", "--concurrency", "2", "--executors", "1")
    first = harbour.start_worker(*lease)
    wait_for(lambda: harbour.tally("start")["1"] == 1)
    first.signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in first.log)
    first.freeze()
    harbour.start_worker(*lease)
    wait_for(lambda: harbour.tally("start")["1"] == 2)

    first.signal(signal.SIGCONT)

    assert first.process.wait(5) == 0
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=1))


def test_executors_end_with_their_supervisor(harbour: Harbour) -> None:
    tasks = harbour.load(HOLD)
    tasks.hold.enqueue_many([(1,), (2,)])
    worker: Worker = harbour.start_worker("--concurrency", "2", "--executors", "2")
    wait_for(lambda: len(harbour.tally("start")) == 2)
    executors = worker.executors()
    assert len(executors) == 2

    os.kill(worker.pid, signal.SIGKILL)
    worker.process.wait()

    wait_for(lambda: not any(is_alive(pid) for pid in executors), what="the executors are gone")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_a_cancel_that_was_asked_for_outlives_the_death_of_the_executor(harbour: Harbour) -> None:
    tasks = harbour.load(STUBBORN)
    handle = tasks.stubborn.enqueue()
    harbour.start_worker("--concurrency", "1", "--executors", "1")
    wait_for(lambda: harbour.tally("start")["stubborn"] == 1)
    handle.cancel("not wanted")
    wait_for(lambda: harbour.tally("caught")["stubborn"] == 1, what="the task has been told")

    os.kill(int(harbour.effects()[0][2]), signal.SIGKILL)
    wait_for(lambda: harbour.job(JobId(handle.id)).state is not State.RUNNING)

    assert harbour.job(handle.id).state is State.CANCELLED


STUBBORN = """
@app.task
def stubborn() -> None:
    effect("start", "stubborn", os.getpid())
    while True:
        try:
            wait_for_file("go")
        except BaseException:
            effect("caught", "stubborn")
"""
