"""Tasks of both kinds side by side in real workers."""

from __future__ import annotations

import itertools

from tests.end_to_end.harness import Harbour, wait_for

TASKS = """
import asyncio

@app.task
def nap(n: int) -> None:
    effect("begun", n)
    time.sleep(0.005)
    effect("done", n)

@app.task
async def anap(n: int) -> None:
    effect("begun", n)
    await asyncio.sleep(0.005)
    effect("done", n)
"""


def test_def_and_async_tasks_together_run_no_more_jobs_at_once_than_the_worker_may(harbour: Harbour) -> None:
    tasks = harbour.load(TASKS)
    tasks.app.enqueue_many([task.call(n) for n in range(150) for task in (tasks.nap, tasks.anap)])

    harbour.start_worker("--concurrency", "4", "--executors", "1")
    wait_for(harbour.settled(succeeded=300), what="all jobs are done")

    at_once = itertools.accumulate(1 if word == "begun" else -1 for word, _ in harbour.effects())
    assert max(at_once) == 4
