"""The network fails between workers, producers and the server: it refuses, stalls, and loses answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest

from ferryman.errors import StoreUnavailable
from ferryman.job import JobId, State
from tests.end_to_end.harness import wait_for
from tests.end_to_end.survival.conftest import SERVERS
from tests.end_to_end.survival.site import (
    HOLD,
    MARK,
    Producer,
    Site,
    command,
    ended_by_the_store,
    site_on,
    twice,
)
from tests.services.proxy import Direction

SMALL = ("--concurrency", "8", "--executors", "1")
SHORT_LEASE = (*SMALL, "--lease", "1.5", "--heartbeat", "0.5")

# -- cut off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "stalled"])
def test_a_worker_that_is_cut_off_for_longer_than_its_lease_loses_its_jobs_and_starts_anew(
    site: Site, how: str
) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(HOLD)
    handle = tasks.hold.enqueue(1)
    first = harbour.start_worker(*SHORT_LEASE)
    wait_for(lambda: harbour.tally("start")["1"] == 1, what="the job runs on the first worker")
    name = first.record.info.id
    second = harbour.start_worker(*SHORT_LEASE, env={"FERRYMAN_URL": harbour.place})

    line.refuse() if how == "refused" else line.stall()
    cut = time.monotonic()
    wait_for(lambda: harbour.tally("start")["1"] == 2, what="the second worker has taken over")
    took = time.monotonic() - cut
    harbour.touch("go")
    wait_for(harbour.in_state(handle.id, State.SUCCEEDED))
    settled = harbour.job(handle.id)
    line.accept() if how == "refused" else line.go_on()
    back = time.monotonic()
    wait_for(lambda: first.record.info.id != name, what="the first worker has registered anew")
    anew = time.monotonic() - back

    print(
        f"taken over after {took:.2f} s, with a lease of 1.5 s; registered anew {anew:.2f} s after it was back"
    )
    assert took < 1.5 + 2
    assert harbour.job(handle.id) == settled
    assert (settled.worker, settled.attempt) == (second.record.info.id, 2)
    assert "taken for dead" in first.log
    assert how == "stalled" or "the store does not answer" in first.log
    assert second.stop() == 0
    after = tasks.hold.enqueue(2)
    wait_for(harbour.in_state(after.id, State.SUCCEEDED), what="the first worker serves again")
    assert harbour.job(after.id).worker == first.record.info.id
    assert ended_by_the_store(harbour) == {"succeeded": 2}


def test_what_a_stalled_worker_said_is_void_once_another_has_taken_over(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(MARK)
    tasks.mark.enqueue_many([(n,) for n in range(600)])
    first = harbour.start_worker(*SHORT_LEASE)
    wait_for(lambda: len(harbour.tally("end")) > 100, what="the first worker is at work")
    name = first.record.info.id

    line.stall()
    harbour.start_worker(*SHORT_LEASE, env={"FERRYMAN_URL": harbour.place})
    wait_for(harbour.settled(succeeded=600), what="the second worker has done it all")
    jobs = harbour.jobs()
    line.go_on()
    wait_for(lambda: first.record.info.id != name, what="the first worker has registered anew")

    print(f"{twice(harbour)} jobs ended twice")
    assert harbour.jobs() == jobs
    assert ended_by_the_store(harbour) == {"succeeded": 600}


# -- stalled -------------------------------------------------------------------------------------------

STALL = 20.0
JOBS = 800
WAYS: dict[str, tuple[Direction, ...]] = {"both ways": (), "answers only": ("to_client",)}


class Stalled:
    """Workers on two servers, each behind a line that has stalled both ways or for answers only: all at the same
    time, since they do nothing but wait."""

    def __init__(self) -> None:
        self.sites: dict[tuple[str, str], Site] = {}
        self.went_on = 0.0


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stalled]:
    stalled = Stalled()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for kind, open_server in SERVERS.items():
            server = stack.enter_context(open_server())
            for way in WAYS:
                site = stack.enter_context(site_on(server, tmp_path_factory.mktemp("stalled")))
                stalled.sites[kind, way] = site
                patch.setenv("FERRYMAN_URL", site.harbour.place)
                tasks = site.harbour.load(MARK)
                site.harbour.start_worker(*SMALL)
                tasks.mark.enqueue_many([(n,) for n in range(JOBS)])
                wait_for(lambda: len(site.harbour.tally("end")) > 200)  # noqa: B023
                site.line.stall(*WAYS[way])
        time.sleep(STALL)
        for site in stalled.sites.values():
            site.line.go_on()
        stalled.went_on = time.monotonic()
        yield stalled
    sys.modules.pop("tasks", None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SERVERS)
def test_a_network_that_stalls_for_20_seconds_loses_nothing(stalled: Stalled, kind: str, way: str) -> None:
    harbour = stalled.sites[kind, way].harbour

    # What a late claim took is found within a minute, if the worker has no reason to look sooner.
    wait_for(harbour.settled(succeeded=JOBS), timeout=75, what="all jobs have succeeded")
    took = time.monotonic() - stalled.went_on

    print(f"{took:.2f} s from the end of the stall to that of all jobs, {twice(harbour)} ended twice")
    assert ended_by_the_store(harbour) == {"succeeded": JOBS}
    assert len(harbour.tally("end")) == JOBS
    assert twice(harbour, "start") <= 8 + 32


# -- answers lost --------------------------------------------------------------------------------------


def test_jobs_whose_claim_was_not_answered_run_soon(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(MARK)
    worker = harbour.start_worker(*SHORT_LEASE)
    # From the first job it knows the lane, so that its next claim is one of jobs.
    tasks.mark.enqueue(0)
    wait_for(harbour.settled(succeeded=1))
    worker.order("pause")
    wait_for(lambda: worker.record.status.state == "paused", what="the worker claims nothing")
    tasks.mark.enqueue_many([(n,) for n in range(1, 21)])

    lost = line.lose_answer(b"claim")
    worker.order("resume")
    assert lost.wait(10)
    since = time.monotonic()
    wait_for(harbour.settled(succeeded=21), what="all jobs have succeeded")

    print(f"all had run {time.monotonic() - since:.2f} s after the answer was lost")
    assert "claimed in an answer that was lost" in worker.log
    # Whoever never started spends no attempt.
    assert {job.attempt for job in harbour.jobs()} == {1}
    assert twice(harbour, "start") == 0


def test_outcomes_whose_settle_was_not_answered_are_said_again(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(MARK)
    worker = harbour.start_worker(*SMALL)

    lost = line.lose_answer(b"settle")
    tasks.mark.enqueue_many([(n,) for n in range(20)])
    assert lost.wait(10)
    wait_for(harbour.settled(succeeded=20), what="all jobs have succeeded")

    assert ended_by_the_store(harbour) == {"succeeded": 20}
    assert twice(harbour) == 0
    assert worker.record.gone is None


def test_an_enqueue_that_was_not_answered_is_repeated_without_a_second_job(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    harbour, line = site.harbour, site.line
    monkeypatch.setenv("FERRYMAN_URL", harbour.url)
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(0)
    jobs = [tasks.mark.new_job((n,), {}) for n in range(1, 11)]

    lost = line.lose_answer(b"enqueue")
    with pytest.raises(StoreUnavailable):
        tasks.app.enqueue_jobs(jobs)
    assert lost.wait(10)
    again = tasks.app.enqueue_jobs(jobs)

    assert [handle.duplicate for handle in again] == [True] * 10
    harbour.start_worker(*SMALL)
    wait_for(harbour.settled(succeeded=11), what="all jobs have succeeded")
    assert twice(harbour) == 0


SPECIAL = (
    MARK
    + """
app.queue("small", max_size=2, overflow="reject")
app.queue("rolling", max_size=2, overflow="drop_oldest")
"""
)


@pytest.mark.parametrize("queue", ["small", "rolling"])
def test_the_repeat_of_an_enqueue_is_not_in_its_own_way(
    site: Site, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    harbour, line = site.harbour, site.line
    monkeypatch.setenv("FERRYMAN_URL", harbour.url)
    tasks = harbour.load(SPECIAL)
    first = tasks.mark.options(queue=queue, unique=True, key="k", ordered=True).call(1)
    second = tasks.mark.options(queue=queue, unique="name", after=[first]).call(2)
    tasks.mark.enqueue(0)

    lost = line.lose_answer(b"enqueue")
    with pytest.raises(StoreUnavailable):
        tasks.app.enqueue_many([first, second])
    assert lost.wait(10)
    again = tasks.app.enqueue_many([first, second])

    assert [(handle.id, handle.duplicate) for handle in again] == [(first.id, True), (second.id, True)]
    harbour.start_worker(*SMALL)
    wait_for(harbour.settled(succeeded=3), what="all jobs have succeeded")
    assert [words[1] for words in harbour.effects() if words[1] != "0"] == ["1", "1", "2", "2"]


def test_orders_in_a_heartbeat_that_was_not_answered_are_given_again(site: Site) -> None:
    harbour, line = site.harbour, site.line
    harbour.load(HOLD)
    worker = harbour.start_worker(*SHORT_LEASE)

    lost = line.lose_answer(b"heartbeat")
    worker.order("pause")
    assert lost.wait(10)
    wait_for(lambda: worker.record.status.state == "paused", what="the worker has paused")
    worker.order("resume")
    wait_for(lambda: worker.record.status.state == "active", what="the worker serves again")

    assert worker.record.gone is None
    assert worker.log.count("ordered to pause") == 1


def test_a_rescue_that_was_not_answered_has_rescued(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(HOLD)
    tasks.hold.enqueue_many([(n,) for n in range(4)])
    first = harbour.start_worker(*SHORT_LEASE, env={"FERRYMAN_URL": harbour.place})
    wait_for(lambda: len(harbour.tally("start")) == 4)
    harbour.start_worker(*SHORT_LEASE)

    lost = line.lose_answer(b"rescue")
    first.kill()
    assert lost.wait(10)
    wait_for(lambda: twice(harbour, "start") == 4, what="all run again")
    harbour.touch("go")
    wait_for(harbour.settled(succeeded=4))

    assert first.record.gone == "dead"


def test_nothing_is_lost_when_answers_are_lost_again_and_again(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(MARK)
    workers = [harbour.start_worker(*SHORT_LEASE) for _ in range(2)]
    with Producer(tasks) as producer:
        for number in range(12):
            ends = len(harbour.tally("end"))
            assert line.lose_answer((b"claim", b"settle", b"")[number % 3]).wait(10)
            wait_for(lambda: len(harbour.tally("end")) > ends + 20, what="work goes on")  # noqa: B023
        made = producer.finish()

    wait_for(harbour.settled(succeeded=made), timeout=75, what="all jobs have succeeded")
    claimed = sum(worker.log.count("claimed in an answer that was lost") for worker in workers)
    print(f"{made} jobs, {twice(harbour)} ended twice; {claimed} times jobs of a lost claim were given back")
    assert ended_by_the_store(harbour) == {"succeeded": made}
    assert twice(harbour) == 0
    assert {worker.record.gone for worker in workers} == {None}


PAYMENT = """
from ferryman import Transaction

@app.task(retry=Retry(max_attempts=20, base=0.01))
def pay(tx: Transaction, n: int) -> None:
    tx.connection.execute(f"INSERT INTO {os.environ['PAYMENTS']} VALUES (%s)", (n,))
    time.sleep(0.005)
"""


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_a_payment_whose_commit_was_not_answered_is_made_once(site: Site) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(PAYMENT)
    table = f"payment_{harbour.place.rpartition('=')[2]}"
    command(site.server, f"CREATE TABLE {table} (n integer)")
    made = 400
    tasks.pay.enqueue_many([(n,) for n in range(made)])
    harbour.start_worker(*SHORT_LEASE, env={"PAYMENTS": table})
    for _ in range(6):
        assert line.lose_answer(b"COMMIT").wait(10)

    wait_for(harbour.settled(succeeded=made), timeout=75, what="all are paid")
    ((rows, different),) = command(site.server, f"SELECT count(*), count(DISTINCT n) FROM {table}")
    print(f"{max(job.attempt for job in harbour.jobs())} attempts at most")
    assert (rows, different) == (made, made)
    assert ended_by_the_store(harbour) == {"succeeded": made}


# -- producers -----------------------------------------------------------------------------------------

PRODUCER = """
import sys, tasks

while True:
    jobs = [tasks.mark.new_job((n,), {}) for n in range(20)]
    print("asked", *(job.id for job in jobs), flush=True)
    handles = tasks.app.enqueue_jobs(jobs)
    print("acknowledged", *(handle.id for handle in handles), flush=True)
"""


@pytest.mark.parametrize("held", ["to_server", "to_client"])
def test_a_producer_killed_in_mid_enqueue_is_repeated_without_a_second_job(
    site: Site, held: Direction
) -> None:
    harbour, line = site.harbour, site.line
    tasks = harbour.load(MARK)
    (harbour.folder / "producer.py").write_text(PRODUCER)
    said = harbour.folder / "said"
    with said.open("wb") as stream:
        producer = subprocess.Popen(
            [sys.executable, "producer.py"],
            cwd=harbour.folder,
            stdout=stream,
            env={**os.environ, "FERRYMAN_URL": harbour.url},
        )
    wait_for(lambda: said.read_text().count("acknowledged") > 5, what="the producer is at work")
    line.stall(held)
    wait_for(lambda: line.holds_back(held), what="an enqueue, or its answer, is on its way")

    producer.send_signal(signal.SIGKILL)
    producer.wait()
    lines = [each.split() for each in said.read_text().splitlines()]
    asked = [[JobId(id) for id in ids] for word, *ids in lines if word == "asked"]
    acknowledged = [ids for word, *ids in lines if word == "acknowledged"]
    assert len(asked) == len(acknowledged) + 1
    jobs = [msgspec.structs.replace(tasks.mark.new_job((n,), {}), id=id) for n, id in enumerate(asked[-1])]
    handles = tasks.app.enqueue_jobs(jobs)
    # The dead producer's own enqueue arrives after that, if it was still on its way.
    line.go_on()
    again = tasks.app.enqueue_jobs(jobs)

    assert {handle.duplicate for handle in handles} == {held == "to_client"}
    assert {handle.duplicate for handle in again} == {True}
    harbour.start_worker(*SMALL)
    made = 20 * len(asked)
    wait_for(harbour.settled(succeeded=made), what="all jobs have succeeded")
    assert {job.id for job in harbour.jobs()} == {id for ids in asked for id in ids}
    assert sum(harbour.tally("end").values()) == made
