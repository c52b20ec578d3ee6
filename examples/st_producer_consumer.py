"""Producer and consumers: a bounded queue, workers, retries, dead letters, and a shutdown that loses nothing.

    $ python examples/st_producer_consumer.py
    Three workers, and a queue that holds five waiting jobs at most.
    The producer is faster than the workers, so it is held back: it took 0.17 s to hand in 20 reports.
    Report 7 came through at its third attempt: 'report 7: 49 rows'
    Report 13 is with the dead letters after 3 attempts: ValueError: report 13 has no data
    Shutting down in the middle of 5 more: 2 were finished, 3 went back, with no attempt spent.
    The next worker finds them: all 25 reports accounted for, 24 done, 1 dead, none run twice without need.

The store is one file, so what waits outlives the program; on a server, ``ferryman worker module:app`` runs
the jobs in processes of their own.
"""

from __future__ import annotations

import collections
import contextlib
import tempfile
import threading
import time
from pathlib import Path

from ferryman import Ferryman, JobDied, JobHandle, Retry, State

folder = tempfile.TemporaryDirectory(prefix="ferryman-example-")
app = Ferryman(f"sqlite:///{Path(folder.name) / 'jobs.db'}")
app.queue("reports", max_size=5, overflow="block")

runs: collections.Counter[int] = collections.Counter()
started = threading.Semaphore(0)


@app.task(queue="reports", retry=Retry(max_attempts=3, base=0.05))
def make_report(number: int) -> str:
    runs[number] += 1
    started.release()
    time.sleep(0.04)
    if number == 7 and runs[number] < 3:
        raise ConnectionError("the database is restarting")
    if number == 13:
        raise ValueError("report 13 has no data")
    return f"report {number}: {number * 7} rows"


def main() -> None:
    print("Three workers, and a queue that holds five waiting jobs at most.")
    with app.worker(concurrency=3):
        reports = produce()
        wait_for_all(reports)
    print(f"Report 7 came through at its third attempt: {reports[7].result(timeout=0)!r}")
    try:
        reports[13].result(timeout=0)
    except JobDied as died:
        print(f"Report 13 is with the dead letters after {runs[13]} attempts: {died.cause}")

    more = shut_down_in_the_middle()
    with app.worker(concurrency=3):
        wait_for_all(more)
    summary([*reports, *more])
    app.close()
    folder.cleanup()


def produce() -> list[JobHandle[str]]:
    """Hand in twenty reports; whenever the queue is full, ``enqueue`` waits for room."""
    began = time.monotonic()
    reports = [make_report.enqueue(number) for number in range(20)]
    took = time.monotonic() - began
    print(
        "The producer is faster than the workers, so it is held back: "
        f"it took {took:.2f} s to hand in {len(reports)} reports."
    )
    return reports


def shut_down_in_the_middle() -> list[JobHandle[str]]:
    """The end of the ``with`` waits for jobs that run, and gives back those that do not."""
    more = make_report.enqueue_many([(number,) for number in range(20, 25)])
    while started.acquire(blocking=False):
        pass
    with app.worker(concurrency=2):
        started.acquire()
    done = sum(report.status() is State.SUCCEEDED for report in more)
    waiting = [report.record() for report in more if report.status() is State.READY]
    spent = sum(job.attempt for job in waiting)
    print(
        f"Shutting down in the middle of {len(more)} more: {done} were finished, {len(waiting)} went back, "
        f"with {spent or 'no'} attempt spent."
    )
    return more


def wait_for_all(reports: list[JobHandle[str]]) -> None:
    for report in reports:
        with contextlib.suppress(JobDied):
            report.result(timeout=20)


def summary(reports: list[JobHandle[str]]) -> None:
    states = collections.Counter(report.status() for report in reports)
    needless = sum(count - 1 for number, count in runs.items() if number not in (7, 13))
    print(
        f"The next worker finds them: all {sum(states.values())} reports accounted for, "
        f"{states[State.SUCCEEDED]} done, {states[State.DEAD]} dead, {needless or 'none'} run twice without need."
    )


if __name__ == "__main__":
    main()
