"""The primary is lost or steps down, and its standby is promoted: workers and producers go over to it by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ferryman import Ferryman
from ferryman.errors import StoreError, StoreReadOnly, StoreUnavailable
from ferryman.job import State
from tests.conformance.driver import new_job
from tests.end_to_end.harness import Harbour, Worker, wait_for
from tests.end_to_end.survival.site import HOLD, MARK, Producer, command, ended_by_the_store, twice
from tests.services.postgres import USER, postgres_server
from tests.services.server import Server
from tests.services.standby import promote, standby_of

SMALL = ("--concurrency", "16", "--executors", "1", "--heartbeat", "0.5")
AWAY = "the store does not answer"
BACK = "the store answers again"


class Pair(NamedTuple):
    """A primary, the standby that follows it, and a harbour whose processes are told of both."""

    primary: Server
    standby: Server
    harbour: Harbour


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.chdir(tmp_path)
    with postgres_server() as primary, standby_of(primary) as standby:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://{USER}@{hosts}/postgres?target_session_attrs=read-write&schema=site"
        monkeypatch.setenv("FERRYMAN_URL", url)
        with contextlib.closing(Harbour(tmp_path, url)) as harbour:
            yield Pair(primary, standby, harbour)
        harbour.check()
    sys.modules.pop("tasks", None)


def follow_in_step(pair: Pair) -> None:
    """Let the primary acknowledge nothing that the standby does not have."""
    command(pair.primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    command(pair.primary, "SELECT pg_reload_conf()")
    in_step = "SELECT sync_state FROM pg_stat_replication"
    wait_for(lambda: command(pair.primary, in_step) == [("sync",)], what="the standby is synchronous")


def wait_for_the_standby(pair: Pair) -> None:
    """Until it has all that the primary has now."""
    ((now,),) = command(pair.primary, "SELECT pg_current_wal_insert_lsn()::text")
    has_all = f"SELECT pg_last_wal_replay_lsn() >= '{now}'"
    wait_for(lambda: command(pair.standby, has_all) == [(True,)], what="the standby has caught up")


def wait_for_ends(harbour: Harbour, least: int) -> None:
    wait_for(lambda: len(harbour.tally("end")) >= least, timeout=30, what=f"{least} jobs are done")


def check_stayed(worker: Worker, *, times: int = 1) -> None:
    """It has said so often that the store was away and that it was back, and is the same worker still."""
    wait_for(lambda: worker.log.count(BACK) == times, what="the worker says that the store is back")
    assert worker.log.count(AWAY) == times
    assert worker.process.poll() is None
    assert worker.record.gone is None


@pytest.mark.parametrize("state", ["in step", "left behind"])
def test_nothing_that_was_acknowledged_is_lost_with_a_primary_that_had_a_synchronous_standby(
    pair: Pair, state: str
) -> None:
    harbour = pair.harbour
    tasks = harbour.load(MARK)
    worker = harbour.start_worker(*SMALL)
    follow_in_step(pair)
    with Producer(tasks) as producer:
        wait_for_ends(harbour, 200)
        # Whoever reads it has been told of nothing that the standby lacks.
        settled = [job.id for job in harbour.jobs(states=(State.SUCCEEDED,))]

        if state == "left behind":
            # All commits wait from now on, and are lost with the primary: nobody has been told that they were made.
            pair.standby.stop()
        pair.primary.kill()
        killed = time.monotonic()
        wait_for(lambda: AWAY in worker.log, what="the worker says so")
        wait_for(lambda: producer.errors, what="the producer hears so")
        if state == "left behind":
            pair.standby.start()
        wait_for(lambda: "promote the standby" in producer.errors[-1], what="it hears what to do")
        promote(pair.standby)
        promoted = time.monotonic()
        before = len(harbour.tally("end"))
        wait_for_ends(harbour, before + 1)
        first = time.monotonic()
        wait_for_ends(harbour, before + 200)

        made = producer.finish()
    wait_for(harbour.settled(succeeded=made), timeout=30, what=f"all {made} jobs have succeeded")
    print(f"{state}: promoted {promoted - killed:.2f} s after the kill, the next job ended {first - promoted:.2f} s later; "
          f"{made} jobs, {twice(harbour)} ended twice, {twice(harbour, 'start')} started twice")  # fmt: skip
    check_stayed(worker)
    assert {job.id for job in harbour.jobs()} == set(producer.acknowledged)
    assert set(harbour.tally("end")) == {str(n) for n in range(made)}
    assert ended_by_the_store(harbour) == {"succeeded": made}
    assert settled
    starts = harbour.tally("start")
    assert {starts[str(producer.acknowledged.index(id))] for id in settled} == {1}
    # What ran at the kill, and what was held ahead of that.
    assert twice(harbour, "start") <= 16 + 16


def test_a_job_whose_claim_or_end_the_standby_never_heard_of_runs_again_and_counts_once(pair: Pair) -> None:
    harbour = pair.harbour
    tasks = harbour.load(MARK + HOLD)
    worker = harbour.start_worker(*SMALL)
    worker.freeze()
    made = [tasks.mark.enqueue(n).id for n in range(4)] + [tasks.hold.enqueue(n).id for n in range(4, 8)]
    wait_for_the_standby(pair)
    pair.standby.stop()
    worker.signal(signal.SIGCONT)
    wait_for(harbour.settled(succeeded=4, running=4), what="some have ended, others run")

    pair.primary.kill()
    wait_for(lambda: AWAY in worker.log, what="the worker says so")
    pair.standby.start()
    promote(pair.standby)
    wait_for(lambda: set(harbour.tally("start").values()) == {2}, what="all have begun again")
    harbour.touch("go")

    wait_for(harbour.settled(succeeded=8), what="all have succeeded")
    check_stayed(worker)
    assert {job.id for job in harbour.jobs()} == set(made)
    assert ended_by_the_store(harbour) == {"succeeded": 8}


def test_a_hot_standby_takes_no_jobs_and_says_where_they_should_go(pair: Pair) -> None:
    harbour = pair.harbour
    harbour.load(MARK).mark.enqueue(1)
    wait_for_the_standby(pair)
    alone = f"{pair.standby.url}?schema=site"
    said = []

    for url in (alone, f"{alone}&target_session_attrs=read-write"):
        with contextlib.closing(Ferryman(url)) as app, pytest.raises(StoreError) as raised:
            app.enqueue_jobs([new_job(task="mark")])
        done = harbour.command("enqueue", "mark", "n=2", env={"FERRYMAN_URL": url})
        assert done.returncode == 3
        assert str(raised.value) in done.stderr
        said.append(raised.value)

    assert isinstance(said[0], StoreReadOnly)
    assert "add target_session_attrs=read-write" in str(said[0])
    # There may soon be one that takes writes.
    assert isinstance(said[1], StoreUnavailable)
    assert "promote the standby" in str(said[1])
    assert len(harbour.jobs()) == 1


PAY = """
from ferryman import Transaction

@app.task(retry=Retry(max_attempts=2, base=0.01))
def pay(tx: Transaction, n: int) -> None:
    tx.connection.execute("INSERT INTO paid VALUES (%s)", (n,))
"""


def test_sessions_leave_a_primary_that_stepped_down_without_ending_them(pair: Pair) -> None:
    harbour = pair.harbour
    tasks = harbour.load(MARK + PAY)
    worker = harbour.start_worker(*SMALL)
    command(pair.primary, "CREATE TABLE paid (n int)")
    with asyncio.Runner() as loop:

        async def through(n: int) -> None:
            await (await tasks.mark.aenqueue(n)).aresult(timeout=10)

        tasks.mark.enqueue(1).result(timeout=10)
        loop.run(through(2))
        tasks.pay.enqueue(1).result(timeout=10)
        wait_for_the_standby(pair)
        command(pair.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        command(pair.primary, "SELECT pg_reload_conf()")
        wait_for(lambda: "cannot be written to" in worker.log, what="the worker says so")
        with pytest.raises(StoreReadOnly, match="cannot be written to"):
            tasks.mark.enqueue(3)
        # The one has found it out for the other, whose connection is replaced, if there were a server for it.
        with pytest.raises(StoreUnavailable, match="promote the standby"):
            loop.run(through(4))
        promote(pair.standby)

        tasks.mark.enqueue(5).result(timeout=10)
        loop.run(through(6))
        tasks.pay.enqueue(2).result(timeout=10)

    check_stayed(worker)
    assert worker.log.count(" ERROR ") == 1
    assert ended_by_the_store(harbour) == {"succeeded": 6}
    assert command(pair.primary, "SELECT n FROM paid ORDER BY n") == [(1,)]
    assert command(pair.standby, "SELECT n FROM paid ORDER BY n") == [(1,), (2,)]
