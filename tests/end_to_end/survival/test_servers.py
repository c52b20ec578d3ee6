"""The server goes away under load: workers wait, say so, and go on by themselves; what was acknowledged is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.end_to_end.harness import Harbour, wait_for
from tests.end_to_end.survival.site import (
    MARK,
    Producer,
    Site,
    command,
    ended_by_the_store,
    is_redis,
    site_on,
    twice,
)
from tests.services.pgbouncer import pgbouncer
from tests.services.postgres import postgres_server
from tests.services.server import Server

SMALL = ("--concurrency", "16", "--executors", "1")


def number_of_ends(harbour: Harbour) -> int:
    return len(harbour.tally("end"))


def wait_for_more_ends(harbour: Harbour, more: int = 50) -> None:
    least = number_of_ends(harbour) + more
    wait_for(lambda: number_of_ends(harbour) >= least, timeout=30, what=f"{least} jobs are done")


def check_all_ended_once(harbour: Harbour, producer: Producer) -> None:
    """Every acknowledged job is there, has succeeded, and by the store's word only once."""
    made = producer.finish()
    wait_for(harbour.settled(succeeded=made), timeout=30, what=f"all {made} jobs have succeeded")
    assert {job.id for job in harbour.jobs()} == set(producer.acknowledged)
    assert ended_by_the_store(harbour) == {"succeeded": made}
    assert set(harbour.tally("end")) == {str(n) for n in range(made)}


def test_a_worker_whose_store_was_emptied_begins_anew_with_its_queues(site: Site) -> None:
    harbour = site.harbour
    tasks = harbour.load(f'app.queue("narrow", max_size=1)\n{MARK}')
    worker = harbour.start_worker(*SMALL, "--heartbeat", "0.5")
    before = worker.record.info.id

    empty(site)
    wait_for(lambda: before not in {each.info.id for each in harbour.workers()} and harbour.workers())

    (queue,) = [each for each in harbour.run(harbour.app.store.queues()) if each.settings.name == "narrow"]
    assert queue.settings.max_size == 1
    tasks.mark.options(queue="narrow").enqueue(1)
    wait_for(harbour.settled(succeeded=1))


def empty(site: Site) -> None:
    """Delete all that is in the store, as somebody might who takes it for a cache."""
    if is_redis(site.server):
        command(site.server, "FLUSHALL")
        return
    (schema,) = parse_qs(urlsplit(site.harbour.place).query)["schema"]
    tables = command(
        site.server,
        f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' AND tablename <> 'meta'",
    )
    command(site.server, ";".join(f"DELETE FROM {schema}.{table}" for (table,) in tables))


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_workers_wait_for_a_server_that_is_restarted_under_load(site: Site, how: str) -> None:
    harbour, server = site.harbour, site.server
    tasks = harbour.load(MARK)
    workers = [harbour.start_worker(*SMALL) for _ in range(2)]
    with Producer(tasks) as producer:
        wait_for_more_ends(harbour, 200)

        server.stop() if how == "stopped" else server.kill()
        for worker in workers:
            wait_for(lambda: "the store does not answer" in worker.log, what="the worker says so")  # noqa: B023
        wait_for(lambda: producer.errors, what="the producer hears so")
        server.start()
        started = time.monotonic()
        wait_for_more_ends(harbour, 1)
        first = time.monotonic() - started
        wait_for_more_ends(harbour, 200)

        check_all_ended_once(harbour, producer)
    print(f"{how}: the first job ended {first:.2f} s after the start, {len(producer.acknowledged)} jobs in all, "
          f"{twice(harbour)} ended twice, {twice(harbour, 'start')} started twice")  # fmt: skip
    for worker in workers:
        wait_for(lambda: "the store answers again" in worker.log, what="the worker says so")  # noqa: B023
        assert worker.record.gone is None
    assert max(harbour.tally("end").values()) <= 2
    # What ran, and what had been claimed ahead of that, at the moment of the crash.
    assert twice(harbour, "start") <= 2 * (16 + 16)


def test_an_idle_worker_says_each_time_that_the_store_is_away_and_that_it_is_back(site: Site) -> None:
    harbour, server = site.harbour, site.server
    harbour.load(MARK)
    worker = harbour.start_worker(*SMALL, "--heartbeat", "0.5")

    for times in (1, 2):
        server.kill()
        wait_for(lambda: worker.log.count("the store does not answer") == times, what="it is away")  # noqa: B023
        server.start()
        wait_for(lambda: worker.log.count("the store answers again") == times, what="it is back")  # noqa: B023


def cut_all_sessions(server: Server) -> int:
    if not is_redis(server):
        return len(
            command(
                server,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            )
        )
    return sum(int(command(server, "CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub"))


def test_work_goes_on_when_all_sessions_are_cut_again_and_again(site: Site) -> None:
    harbour, server = site.harbour, site.server
    tasks = harbour.load(MARK)
    workers = [harbour.start_worker(*SMALL) for _ in range(2)]
    with Producer(tasks) as producer:
        wait_for_more_ends(harbour)

        for _ in range(5):
            wait_for(lambda: listeners(harbour, server) == len(workers), what="they hear the bell again")
            assert cut_all_sessions(server) >= len(workers)
            cut = time.monotonic()
            wait_for_more_ends(harbour)
            print(f"50 more jobs {time.monotonic() - cut:.2f} s after all sessions were cut")

        check_all_ended_once(harbour, producer)
    print(f"{len(producer.errors)} errors for the producer, {twice(harbour)} jobs ended twice")
    assert twice(harbour) == 0
    assert {worker.record.gone for worker in workers} == {None}


def listeners(harbour: Harbour, server: Server) -> int:
    """How many workers the server would wake."""
    name = harbour.place.rpartition("=")[2]
    if is_redis(server):
        return int(command(server, "PUBSUB", "NUMSUB", f"{{{name}}}:bell")[1])
    ((number,),) = command(
        server,
        f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%{name}%' AND pid <> pg_backend_pid()",
    )
    return int(number)


def test_work_goes_on_when_the_functions_are_flushed_under_it(site: Site) -> None:
    harbour, server = site.harbour, site.server
    tasks = harbour.load(MARK)
    harbour.start_worker(*SMALL)
    with Producer(tasks) as producer:
        wait_for_more_ends(harbour)

        for _ in range(5):
            flush(server, harbour)
            wait_for_more_ends(harbour)

        check_all_ended_once(harbour, producer)
    assert twice(harbour) == 0


def flush(server: Server, harbour: Harbour) -> None:
    """Take away the code that the store keeps on the server."""
    if is_redis(server):
        command(server, "FUNCTION", "FLUSH")
        command(server, "SCRIPT", "FLUSH")
    else:
        schema = harbour.place.rpartition("=")[2]
        # Whoever runs the functions now, is not kept from that.
        command(server, f"UPDATE {schema}.meta SET value = 'none' WHERE key = 'functions'")
        command(server, "DISCARD ALL")


def test_work_goes_on_when_a_server_that_took_no_writes_takes_them_again(site: Site) -> None:
    harbour, server = site.harbour, site.server
    tasks = harbour.load(MARK)
    worker = harbour.start_worker(*SMALL, "--heartbeat", "0.5")
    with Producer(tasks) as producer:
        wait_for_more_ends(harbour)

        make_read_only(server, True)
        wait_for(lambda: "cannot be written to" in worker.log, what="the worker says so")
        wait_for(lambda: producer.errors, what="the producer hears so")
        make_read_only(server, False)
        again = time.monotonic()
        wait_for_more_ends(harbour, 1)
        print(f"a job was done {time.monotonic() - again:.2f} s after the server took writes again")

        check_all_ended_once(harbour, producer)
    assert twice(harbour) == 0
    assert "cannot be written to" in producer.errors[-1]


def make_read_only(server: Server, yes: bool) -> None:
    """As a failover does with the server that was the primary."""
    if is_redis(server):
        command(server, "REPLICAOF", *(("127.0.0.1", "1") if yes else ("NO", "ONE")))
    else:
        command(server, f"ALTER SYSTEM SET default_transaction_read_only = {'on' if yes else 'off'}")
        command(server, "SELECT pg_reload_conf()")


FLEET = """
app.queue("shared", fair=True)

@app.task(queue="shared", retry=Retry(max_attempts=3, base=0.01))
def parent(n: int, context: Context) -> int:
    effect("parent", n)
    time.sleep(0.005)
    if context.attempt == 1 and n % 4 == 0:
        raise ValueError("once more")
    return n * n

@app.task
def child(n: int, context: Context) -> str:
    effect("child", n)
    return f"child {n}"

@app.task
def in_turn(key: str, n: int) -> None:
    effect(key, n)
    time.sleep(0.005)

@app.task(retry=Retry(max_attempts=2, base=0.01))
def hopeless() -> None:
    raise RuntimeError("never")
"""


class Fleet:
    """Parents of two children each, keys whose jobs run in turn, retries and dead letters."""

    def __init__(self, tasks: ModuleType, parents: int, in_turn: int) -> None:
        self.parents = [tasks.parent.options(tenant=f"t{n % 3}").enqueue(n) for n in range(parents)]
        self.children = [
            tasks.child.options(after=self.parents[n : n + 2]).enqueue(n) for n in range(parents - 1)
        ]
        for n in range(in_turn):
            tasks.in_turn.options(key=f"k{n % 2}", ordered=True).enqueue(f"k{n % 2}", n)
        self.late = tasks.child.options(delay=0.3).enqueue(1_000)
        self.bad = [tasks.hopeless.enqueue() for _ in range(2)]
        self.in_turn = in_turn

    def check(self, harbour: Harbour) -> None:
        """All of it ends as it must."""
        succeeded = len(self.parents) + len(self.children) + self.in_turn + 1
        wait_for(harbour.settled(succeeded=succeeded, dead=2), timeout=30, what="all are finished")
        assert [job.result(timeout=1) for job in self.parents] == [n * n for n in range(len(self.parents))]
        assert [job.result(timeout=1) for job in self.children] == [
            f"child {n}" for n in range(len(self.children))
        ]
        assert self.late.result(timeout=1) == "child 1000"
        assert {harbour.job(job.id).attempt for job in self.bad} == {2}
        assert ended_by_the_store(harbour) == {"succeeded": succeeded, "dead": 2}
        for key in ("k0", "k1"):
            # A dictionary keeps the order of the first times.
            numbers = list(dict.fromkeys(int(line[1]) for line in harbour.effects() if line[0] == key))
            assert numbers == sorted(numbers)
            assert len(numbers) == self.in_turn // 2


def test_families_keys_and_retries_outlive_kills_of_the_server(site: Site) -> None:
    harbour, server = site.harbour, site.server
    fleet = Fleet(harbour.load(FLEET), parents=150, in_turn=120)
    for _ in range(2):
        harbour.start_worker(*SMALL)

    for done in (60, 160, 260):
        wait_for(lambda: len(harbour.effects()) > done, what=f"{done} jobs have begun")  # noqa: B023
        server.kill()
        server.start()

    fleet.check(harbour)


@pytest.fixture
def pooled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site that is reached by way of a pooler that gives each transaction another session."""
    folder = tmp_path_factory.mktemp("pooled")
    monkeypatch.chdir(folder)
    with (
        postgres_server() as server,
        pgbouncer(server.port) as pooler,
        site_on(pooler, folder) as site,
    ):
        # Nothing of theirs is to go past the pooler, their looks at the store neither.
        monkeypatch.setenv("FERRYMAN_URL", site.harbour.place)
        yield site


@pytest.mark.parametrize("listen", ["through the pooler", "no"])
def test_a_whole_run_goes_through_a_pooler_of_transactions(pooled: Site, listen: str) -> None:
    harbour = pooled.harbour
    tasks = harbour.load(FLEET)
    options = {} if listen != "no" else {"FERRYMAN_URL": f"{harbour.place}&listen=no"}
    workers = [harbour.start_worker(*SMALL, env=options) for _ in range(2)]

    Fleet(tasks, parents=40, in_turn=16).check(harbour)

    assert [worker.stop() for worker in workers] == [0, 0]
    assert {worker.record.gone for worker in workers} == {"stopped"}


def test_work_goes_on_when_the_pooler_is_restarted(pooled: Site) -> None:
    harbour, pooler = pooled.harbour, pooled.server
    tasks = harbour.load(MARK)
    harbour.start_worker(*SMALL)
    with Producer(tasks) as producer:
        wait_for_more_ends(harbour)

        pooler.kill()
        wait_for(lambda: producer.errors)
        pooler.start()
        wait_for_more_ends(harbour)

        check_all_ended_once(harbour, producer)
    assert twice(harbour) == 0
