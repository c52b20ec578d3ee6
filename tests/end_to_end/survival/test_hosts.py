"""Hosts fail, and do not agree on the time: others take over by the store's clock alone."""

from __future__ import annotations

import time

import pytest

from ferryman.job import JobId
from tests.end_to_end.harness import ON_EVERY_SHARED_STORE, Harbour, wait_for
from tests.end_to_end.survival.site import HOLD, MARK, another_host, twice

LEASE = 2.0
SHORT_LEASE = ("--lease", str(LEASE), "--heartbeat", "0.5", "--executors", "1")


@ON_EVERY_SHARED_STORE
def test_after_a_kill_all_is_done_elsewhere_within_the_lease(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue_many([(n,) for n in range(2_000)])
    worker = harbour.start_worker(*SHORT_LEASE, env=another_host(harbour, "the first host"))
    wait_for(lambda: len(harbour.tally("end")) > 700, what="a third of the jobs are done")

    worker.kill()
    killed = time.monotonic()
    harbour.start_worker(*SHORT_LEASE, env=another_host(harbour, "the second host"))
    wait_for(harbour.settled(succeeded=2_000), what="all jobs have succeeded")
    took = time.monotonic() - killed

    print(f"all done elsewhere {took:.2f} s after the kill, with a lease of {LEASE:g} s; "
          f"{twice(harbour)} ended twice, {twice(harbour, 'start')} started twice")  # fmt: skip
    assert len(harbour.tally("end")) == 2_000
    assert twice(harbour, "start") <= 32
    assert took < LEASE + 1
    assert worker.record.gone == "dead"


FLEET = [each for each in ON_EVERY_SHARED_STORE.args[1] if each.name != "sqlite"]
"""Stores with a clock of their own; a file has that of whoever asks."""

CLOCKS = """
@app.task
def stamp(n: int) -> None:
    effect("start", n)

@app.task
def again(context: Context) -> None:
    effect("again", context.attempt)
    if context.attempt < 3:
        raise RetryIn(0.3)
"""


@pytest.mark.parametrize("harbour", FLEET, ids=lambda each: each.name, indirect=True)
def test_workers_whose_clocks_are_an_hour_apart_serve_on_time(harbour: Harbour) -> None:
    tasks = harbour.load(CLOCKS)
    early, late = (
        harbour.start_worker(*SHORT_LEASE, "--concurrency", "4", env=another_host(harbour, name, ahead=ahead))
        for name, ahead in (("early", 1_800), ("late", -1_800))
    )
    handles = [tasks.stamp.options(delay=0.5 + n / 20, ttl=30).enqueue(n) for n in range(20)]
    retried = tasks.again.enqueue()
    wait_for(harbour.settled(succeeded=21), what="all have run")
    delays = [on_time(harbour, handle.id) for handle in handles]
    print(f"they started {min(delays)} to {max(delays)} ms after they were due")
    assert min(delays) >= 0
    assert max(delays) < 1_000
    assert harbour.job(retried.id).attempt == 3

    # Longer than a lease, and yet nobody was taken for dead.
    wait_for(lambda: early.record.seen_at > early.record.registered_at + 1.5 * LEASE * 1000)
    assert (early.record.gone, late.record.gone) == (None, None)
    assert "died" not in early.log + late.log


@pytest.mark.parametrize("harbour", FLEET, ids=lambda each: each.name, indirect=True)
@pytest.mark.parametrize("victim_ahead", [1_800, -1_800], ids=["by the later clock", "by the earlier clock"])
def test_a_dead_worker_whose_clock_was_an_hour_off_is_rescued_within_its_lease(
    harbour: Harbour, victim_ahead: int
) -> None:
    tasks = harbour.load(HOLD)
    handles = tasks.hold.enqueue_many([(n,) for n in range(4)])
    victim = harbour.start_worker(*SHORT_LEASE, env=another_host(harbour, "victim", ahead=victim_ahead))
    wait_for(lambda: len(harbour.tally("start")) == 4)
    heir = harbour.start_worker(*SHORT_LEASE, env=another_host(harbour, "heir", ahead=-victim_ahead))

    victim.kill()
    killed = time.monotonic()
    wait_for(lambda: twice(harbour, "start") == 4, what="all run again")
    took = time.monotonic() - killed
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=4))

    print(f"rescued {took:.2f} s after the kill, with a lease of {LEASE:g} s")
    assert took < LEASE + 2
    assert victim.record.gone == "dead"
    assert heir.record.gone is None
    assert {harbour.job(handle.id).worker for handle in handles} == {heir.record.info.id}


def on_time(harbour: Harbour, id: JobId) -> int:
    """By how many ms of the store's clock a job was started late."""
    job = harbour.job(id)
    assert job.started_at is not None
    return job.started_at - job.run_at
