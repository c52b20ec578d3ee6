"""Workers while the place of large payloads hangs, as a share does whose server is away."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ferryman.job import State
from ferryman.payload import read_reference
from tests.end_to_end.harness import Harbour, wait_for

TASKS = """
@app.task(timeout=0.2)
def size(data: bytes) -> int:
    effect("start", "size")
    return len(data)

@app.task(timeout=0.2)
async def asize(data: bytes) -> int:
    effect("start", "asize")
    return len(data)

@app.task
def hold() -> None:
    effect("start", "hold")
    wait_for_file("go")

@app.task(retry=Retry(max_attempts=1), timeout=0.2)
def hog() -> None:
    time.sleep(3600)

@app.task
def nap() -> None:
    time.sleep(1.0)
"""

LARGE = 100_000

EITHER = pytest.mark.parametrize("task", ["size", "asize"])


@pytest.fixture(autouse=True)
def _place(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large payloads lie in a folder beside the store; `harbour` goes first, since it clears the environment."""
    monkeypatch.setenv("FERRYMAN_BLOBS_URL", f"file://{harbour.folder}/blobs")


def _hang(harbour: Harbour, args: bytes) -> tuple[Path, bytes]:
    """Whoever opens the file of these arguments waits from now on. Answers its path and what was in it."""
    reference = read_reference(args)
    assert reference is not None
    file = harbour.folder / "blobs" / reference.name
    data = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    return file, data


@EITHER
def test_arguments_that_come_late_cost_neither_an_attempt_nor_an_executor(
    harbour: Harbour, task: str
) -> None:
    tasks = harbour.load(TASKS)
    job = getattr(tasks, task).enqueue(os.urandom(LARGE))
    file, data = _hang(harbour, job.record().args)
    beside = tasks.hold.enqueue()

    worker = harbour.start_worker(
        "--executors", "1", "--concurrency", "4", env={"FERRYMAN_WORKER_GRACE": "0.1"}
    )
    wait_for(lambda: harbour.tally("start")["hold"] == 1)
    executors = worker.executors()
    with file.open("wb") as stream:  # Goes on once somebody waits at the other end.
        # By the end of this one the other's time would be over, if it were counted.
        nap = tasks.nap.enqueue()
        wait_for(harbour.in_state(nap.id, State.SUCCEEDED))
        stream.write(data)
    wait_for(harbour.in_state(job.id, State.SUCCEEDED))
    executors_after = worker.executors()
    harbour.touch("go")
    wait_for(harbour.in_state(beside.id, State.SUCCEEDED))

    assert job.result() == LARGE
    assert {harbour.job(each.id).attempt for each in (job, nap, beside)} == {1}
    assert executors_after == executors
    assert harbour.tally("start") == {task: 1, "hold": 1}


@EITHER
def test_a_worker_stops_at_once_though_arguments_do_not_come(harbour: Harbour, task: str) -> None:
    tasks = harbour.load(TASKS)
    job = getattr(tasks, task).enqueue(os.urandom(LARGE))
    file, _ = _hang(harbour, job.record().args)
    worker = harbour.start_worker(
        "--executors", "1", env={"FERRYMAN_WORKER_SHUTDOWN_TIMEOUT": "3600", "FERRYMAN_WORKER_GRACE": "3600"}
    )

    with file.open("wb"):
        code = worker.stop()

    record = harbour.job(job.id)
    assert code == 0
    assert (record.state, record.attempt, record.deaths) == (State.READY, 0, 0)
    assert harbour.effects() == []


@EITHER
def test_a_kill_for_the_sake_of_another_job_is_not_charged_to_one_whose_arguments_do_not_come(
    harbour: Harbour, task: str
) -> None:
    tasks = harbour.load(TASKS)
    job = getattr(tasks, task).enqueue(os.urandom(LARGE))
    file, data = _hang(harbour, job.record().args)
    harbour.start_worker("--executors", "1", "--concurrency", "2", env={"FERRYMAN_WORKER_GRACE": "0.1"})

    with file.open("wb"):
        hog = tasks.hog.enqueue()
        wait_for(harbour.in_state(hog.id, State.DEAD))
    with file.open("wb") as stream:
        stream.write(data)
    wait_for(harbour.in_state(job.id, State.SUCCEEDED))

    record = harbour.job(job.id)
    assert (record.attempt, record.deaths) == (1, 0)


@EITHER
def test_a_death_of_the_executor_is_charged_to_a_job_whose_arguments_may_have_been_too_large_for_it(
    harbour: Harbour, task: str
) -> None:
    tasks = harbour.load(TASKS)
    job = getattr(tasks, task).enqueue(os.urandom(LARGE))
    file, data = _hang(harbour, job.record().args)
    worker = harbour.start_worker("--executors", "1", "--concurrency", "2")

    with file.open("wb"):
        (executor,) = worker.executors()
        os.kill(executor, signal.SIGKILL)
        wait_for(lambda: harbour.job(job.id).deaths == 1)
    with file.open("wb") as stream:
        stream.write(data)
    wait_for(harbour.in_state(job.id, State.SUCCEEDED))

    record = harbour.job(job.id)
    assert (record.attempt, record.deaths) == (2, 1)
    history = harbour.run(harbour.app.store.history(job.id))
    assert history is not None
    (death,) = history.attempts
    assert death.error is not None
    assert death.error.message.startswith("its executor died while its arguments were fetched\n")
