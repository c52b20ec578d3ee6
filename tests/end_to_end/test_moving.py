"""Moving with real processes: a mover that is killed again and again loses nothing and doubles nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, State, WorkerId, new_ids
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import ARRIVING, Filter, Retention, Take, WorkerInfo
from tests.services import places

PROGRAM = Path(sys.executable).parent / "ferryman"
JOBS = 4_000
KILLS = 6


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Places for stores, by name."""
    yield {
        "sqlite": f"sqlite:///{tmp_path}/jobs.db",
        "redis": places.redis(tmp_path),
        "postgresql": places.postgres(tmp_path),
    }
    places.leave_redis(tmp_path)
    places.leave_postgres(tmp_path)


KEEP_NOTHING = Retention(succeeded=0, succeeded_count=0, dead=0, dead_count=0, other=0, other_count=0)


class Runner(threading.Thread):
    """Runs what it finds in a store, and notes how often it has begun each job. What has finished it deletes as soon as it
    may."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.begun: Counter[JobId] = Counter()
        self._store = open_store(url)
        self._ending = threading.Event()

    def run(self) -> None:
        runner, worker = self._store.runner(), WorkerId("runner")
        info = WorkerInfo(
            id=worker,
            host="dock",
            place="elsewhere",
            pid=1,
            pid_birth=1,
            queues=None,
            tasks=(),
            concurrency=1,
        )
        runner.run(self._store.register(info, 600_000))
        while True:
            stopping = self._ending.is_set()
            plan = [Take("default", 0, 100), Take("keyed", 0, 100)]
            claims = runner.run(self._store.claim(worker, plan, 100)).jobs
            self.begun.update(claim.id for claim in claims)
            runner.run(
                self._store.settle(worker, [Outcome(c.id, c.lease, OutcomeKind.SUCCEEDED) for c in claims])
            )
            runner.run(self._store.prune(KEEP_NOTHING, 1_000))
            if not claims:
                if stopping:
                    break
                self._ending.wait(0.05)
        self._store.close()

    def finish(self) -> None:
        """Stop when nothing is left."""
        self._ending.set()
        self.join()


def fill(store: Store) -> list[JobId]:
    """Jobs of all kinds: plain ones, children, jobs that share a key, jobs for later."""
    ids = new_ids(JOBS)
    jobs: list[NewJob] = []
    for number, id_ in enumerate(ids):
        kind = number % 10
        jobs.append(
            NewJob(
                id=id_,
                task="work",
                args=b"%d" % number,
                queue="keyed" if kind == 3 else "default",
                key=f"key-{number % 7}" if kind == 3 else None,
                after=(ids[number - 1], ids[number // 2]) if kind == 5 else (),
                delay=3_600_000 if kind == 8 else 0,
            )
        )
    for start in range(0, JOBS, 500):
        store.runner().run(store.enqueue(jobs[start : start + 500]))
    return ids


def total(store: Store) -> int:
    """How many jobs a store has."""
    return sum(number for lane in store.runner().run(store.lanes()) for number in lane.counts.values())


@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "postgresql"), ("postgresql", "redis"), ("redis", "sqlite")]
)
def test_a_mover_that_is_killed_again_and_again_moves_each_job_once(
    urls: dict[str, str], source: str, target: str
) -> None:
    here, there = open_store(urls[source]), open_store(urls[target])
    ids = fill(here)
    runner = Runner(urls[target])
    runner.start()
    random = Random(source)
    killed = 0

    while True:
        before = total(here), total(there)
        mover = subprocess.Popen(
            [PROGRAM, "move", urls[source], urls[target], "--yes", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while mover.poll() is None and (total(here), total(there)) == before:
            time.sleep(0.01)
        # It is at work now: strike at any moment of that, but let the last one end.
        time.sleep(random.uniform(0, 0.15))
        if mover.poll() is not None or killed == KILLS:
            output, errors = mover.communicate(timeout=120)
            break
        os.kill(mover.pid, signal.SIGKILL)
        mover.communicate()
        killed += 1
    runner.finish()

    assert mover.returncode == 0, errors.decode()
    assert killed >= 2
    states = (State.READY, State.WAITING, State.SCHEDULED, State.PARKED, State.RUNNING, State.DEAD)
    assert here.runner().run(here.find(Filter(states=states), JOBS)) == []
    arrived = there.runner().run(there.find(Filter(), 2 * JOBS))
    later = {id_ for number, id_ in enumerate(ids) if number % 10 == 8}
    assert set(runner.begun.values()) == {1}
    # Some wait for one that is for later; those that it waits for besides, stay.
    assert {job.id for job in arrived if job.state is State.SUCCEEDED} < set(runner.begun)
    waiting = {job.id for job in arrived if job.state is State.WAITING}
    assert {job.id for job in arrived if job.state is State.SCHEDULED} == later
    assert sorted([*runner.begun, *later, *waiting]) == sorted(ids)
    assert there.runner().run(there.kv_get(ARRIVING)) is None
    assert [queue for queue in here.runner().run(here.queues()) if queue.paused] == []
    assert all(json.loads(line)["queue"] in ("default", "keyed") for line in output.splitlines())
    here.close()
    there.close()


def test_a_move_goes_on_while_producers_do(urls: dict[str, str]) -> None:
    here, there = open_store(urls["sqlite"]), open_store(urls["redis"])
    fill(here)
    made: list[JobId] = []
    stop = threading.Event()

    def produce() -> None:
        producer = open_store(urls["sqlite"])
        while not stop.is_set():
            (id_,) = new_ids(1)
            producer.runner().run(
                producer.enqueue([NewJob(id=id_, task="late", args=b"", queue=f"late-{len(made) % 3}")])
            )
            made.append(id_)
            time.sleep(0.02)
        producer.close()

    thread = threading.Thread(target=produce)
    thread.start()
    mover = subprocess.run(
        [PROGRAM, "move", urls["sqlite"], urls["redis"], "--yes"], capture_output=True, text=True, timeout=120
    )
    stop.set()
    thread.join()
    latecomers = subprocess.run(
        [PROGRAM, "move", urls["sqlite"], urls["redis"], "--yes"], capture_output=True, text=True, timeout=120
    )

    assert mover.returncode == 0, mover.stderr
    assert latecomers.returncode == 0, latecomers.stderr
    assert here.runner().run(here.find(Filter(), 10)) == []
    assert {job.id for job in there.runner().run(there.find(Filter(tasks=("late",)), 10_000))} == set(made)
    here.close()
    there.close()
