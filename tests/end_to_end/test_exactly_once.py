"""Effects exactly once, while everything is killed: payments stand in the store's own database, beside the jobs."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from ferryman.job import State
from ferryman.store.records import Filter
from tests.conformance.stores import STORES
from tests.end_to_end.harness import Harbour, Worker, wait_for
from tests.services.shared import redis_url

pytestmark = pytest.mark.parametrize(
    "harbour",
    [candidate for candidate in STORES if candidate.name in ("sqlite", "postgresql")],
    ids=lambda each: each.name,
    indirect=True,
)

PAYMENTS = """
import asyncio, contextlib, random, sqlite3
import psycopg
from ferryman import Transaction

URL = os.environ["FERRYMAN_URL"]
TABLE = os.environ["PAYMENTS"]
SLOW = float(os.environ.get("SLOW", 0))
AGAIN = Retry(max_attempts=1_000, backoff="none")

def connect():
    if URL.startswith("sqlite"):
        return contextlib.closing(sqlite3.connect(URL.removeprefix("sqlite:///"), timeout=20))
    return psycopg.connect(URL.partition("?")[0])

def insert(connection, n, proof=""):
    mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
    return connection.execute(f"INSERT INTO {TABLE} VALUES ({mark}, {mark})", (n, proof))

def dawdle():
    time.sleep(random.random() * SLOW)

@app.task(retry=AGAIN)
def lent(tx: Transaction, n: int) -> int:
    insert(tx.connection, n)
    dawdle()
    return n

@app.task(retry=AGAIN)
async def awaited(tx: Transaction, n: int) -> int:
    done = insert(tx.connection, n)
    if asyncio.iscoroutine(done):
        await done
    await asyncio.sleep(random.random() * SLOW)
    return n

@app.task(retry=AGAIN)
def own(ctx: Context, n: int) -> int:
    with connect() as connection:
        insert(connection, n)
        dawdle()
        ctx.complete(n, using=connection)
        dawdle()
        connection.commit()
        dawdle()
    return n
"""


class Till:
    """The table of payments in the database of a harbour's store, and the workers that write there."""

    def __init__(self, harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harbour = harbour
        self._base, _, query = harbour.url.partition("?")
        self.is_file = self._base.startswith("sqlite")
        self.table = "payment" if self.is_file else f"{query.removeprefix('schema=')}.payment"
        self._name = f"till-{os.urandom(4).hex()}"
        """Of the workers' connections, on a server."""
        self.died: set[str | None] = set()
        """Keys of jobs that died of three deaths."""
        monkeypatch.setenv("PAYMENTS", self.table)
        # Whoever asks first makes the store's tables.
        harbour.counts()
        self.run(f"CREATE TABLE {self.table} (n INTEGER NOT NULL, proof TEXT NOT NULL)")

    def connect(self) -> Any:
        return (
            sqlite3.connect(self.harbour.database, timeout=20)
            if self.is_file
            else psycopg.connect(self._base)
        )

    def run(self, text: str) -> list[Any]:
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.execute(text)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
            return list(rows)

    @property
    def payments(self) -> collections.Counter[int]:
        """How often each was made."""
        return collections.Counter(n for (n,) in self.run(f"SELECT n FROM {self.table}"))

    def start_worker(self, *options: str, slow: float = 0.0) -> Worker:
        env = {"PGAPPNAME": self._name, "SLOW": str(slow)}
        return self.harbour.start_worker(*options, env=env)

    def are_all_finished(self) -> bool:
        """What died of three deaths by no fault of its own is handed in again; the end tells that it left nothing."""
        counts = self.harbour.counts()
        if counts.get("dead"):
            dead = self.harbour.jobs(states=(State.DEAD,))
            assert all(job.deaths == 3 for job in dead), [job.reason for job in dead]
            self.died.update(job.key for job in dead)
            self.harbour.app.replay(Filter(states=(State.DEAD,)))
        return set(counts) == {"succeeded"}

    def work_in_trouble(self, luck: random.Random, slow: float) -> None:
        """Have workers finish all jobs, while they are killed at a dozen moments."""
        options = ("--concurrency", "4", "--executors", "2")
        worker = self.start_worker(*options, slow=slow)
        kills: collections.Counter[str] = collections.Counter()
        give_up = time.monotonic() + 60
        while not self.are_all_finished():
            assert time.monotonic() < give_up, self.harbour.counts()
            time.sleep(luck.uniform(0.05, 0.35))
            whom = luck.choice(["executor", "executor", "worker"] + ["backends"] * (not self.is_file))
            if kills.total() >= 12:
                continue
            if whom == "worker":
                worker.kill()
                worker = self.start_worker(*options, slow=slow)
            elif whom == "executor":
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(luck.choice(worker.executors()), signal.SIGKILL)
            else:
                # As an administrator would, or a server that fails.
                self.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE application_name = '{self._name}'"
                )
            kills[whom] += 1
        again = sum(job.attempt > 1 for job in self.harbour.jobs())
        print(f"killed: {dict(kills)}; {again} jobs took several attempts")
        assert kills.total() > 0


@pytest.fixture
def till(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> Iterator[Till]:
    till = Till(harbour, monkeypatch)
    yield till
    harbour.kill_workers()
    till.run(f"DROP TABLE {till.table}")


# -- at random moments


def test_each_payment_is_made_once_whoever_is_killed(harbour: Harbour, till: Till) -> None:
    tasks = harbour.load(PAYMENTS)
    kinds = [tasks.lent, tasks.awaited, tasks.own]
    harbour.app.enqueue_many([task.call(n) for n, task in enumerate(kinds * 100)])

    till.work_in_trouble(random.Random(7), slow=0.01 if till.is_file else 0.1)

    assert till.payments == dict.fromkeys(range(300), 1)
    assert harbour.counts() == {"succeeded": 300}


EVENTS = (
    PAYMENTS
    + """
from ferryman.outbox import Outbox, RedisStreams

outbox = Outbox(app, RedisStreams(os.environ["EVENTS"]))

@app.task(retry=AGAIN)
def sell(tx: Transaction, topic: str, customer: int) -> None:
    ((number,),) = tx.connection.execute(f"SELECT count(*) FROM {TABLE} WHERE n = {customer}").fetchall()
    proof = f"{number} {os.urandom(8).hex()}"
    insert(tx.connection, customer, proof)
    outbox.publish(topic, [customer, proof], key=str(customer), using=tx.connection)
    dawdle()
    if random.random() < 0.2:
        raise ConnectionError("the customer has gone away")
"""
)


def test_each_event_of_a_committed_transaction_arrives_in_order_whoever_is_killed(
    harbour: Harbour, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS", redis_url())
    topic = f"till-{os.urandom(4).hex()}"
    tasks = harbour.load(EVENTS)
    for customer in range(5):
        sell = tasks.sell.options(key=str(customer), ordered=True)
        sell.enqueue_many([(topic, customer)] * 30)

    till.work_in_trouble(random.Random(8), slow=0.02 if till.is_file else 0.1)

    with redis.Redis.from_url(redis_url()) as client:
        events: list[Any] = client.xrange(topic) or []
        client.delete(topic)
    received = consume(till, [(fields[b"id"].decode(), json.loads(fields[b"value"])) for _, fields in events])
    committed = {(customer, proof) for customer, proof in till.run(f"SELECT n, proof FROM {till.table}")}
    print(f"{len(events)} events for {len(committed)} payments")
    assert len(received) == len(committed) == 150
    assert set(received) == committed
    # Whoever waits behind a dead letter goes ahead of it.
    in_order = [customer for customer in range(5) if f"{topic}/{customer}" not in till.died]
    for customer in in_order:
        numbers = [int(proof.split()[0]) for who, proof in received if who == customer]
        assert numbers == list(range(30))
    assert in_order


def consume(till: Till, events: list[tuple[str, list[Any]]]) -> list[tuple[int, str]]:
    """What a consumer keeps that fails now and then before its commit, and gets each event twice."""
    luck = random.Random(9)
    window = till.harbour.app.window("till", seconds=600)
    kept: list[tuple[int, str]] = []
    for id_, (customer, proof) in [each for each in events for _ in range(2)]:
        for commits in (luck.random() < 0.5, True):
            with contextlib.closing(till.connect()) as connection:
                is_new = window.first(id_, using=connection)
                if commits:
                    connection.commit()
            if is_new and commits:
                kept.append((customer, proof))
    return kept


# -- at every moment

WATCHED = (
    PAYMENTS
    + """
PLACES = {
    "context.py": {"run", "arun"},
    "lending.py": {"transaction", "atransaction", "_do", "_ado"},
    "threads.py": {"_serve"},
    "loop.py": {"_settle"},
    "outbox.py": {"settle"},
    "tasks.py": {"lent", "awaited", "own"},
}
here = threading.local()

def watch(frame, event, _):
    # Kills this process at the n-th line that the first attempt of payment n comes to.
    file, function = os.path.basename(frame.f_code.co_filename), frame.f_code.co_name
    if event == "call" and function in ("_attempt", "_begin"):
        here.left = here.n = app.codec.decoder(dict)(frame.f_locals["assignment"].claim.args)["n"]
        if os.path.exists(f"killed-{here.n}"):
            here.left = 0
    if function not in PLACES.get(file, ()):
        return None
    if event == "line" and getattr(here, "left", 0) > 0:
        here.left -= 1
        if here.left == 0:
            open(f"killed-{here.n}", "x").close()
            effect("killed", here.n, f"{file}:{function}:{frame.f_lineno}")
            os.kill(os.getpid(), signal.SIGKILL)
    return watch

threading.settrace(watch)
"""
)


@pytest.mark.parametrize("task", ["lent", "awaited", "own"])
def test_a_kill_at_any_line_leaves_the_payment_once(harbour: Harbour, till: Till, task: str) -> None:
    tasks = harbour.load(PAYMENTS)
    # For the workers alone: this process is not to be watched.
    harbour.write(WATCHED)
    jobs = getattr(tasks, task).enqueue_many([(n,) for n in range(1, 41)])

    till.start_worker("--concurrency", "2", "--executors", "2")
    wait_for(till.are_all_finished, timeout=60)

    killed = {int(n): where for _, n, where in harbour.effects()}
    attempts = {n: harbour.job(job.id).attempt for n, job in enumerate(jobs, 1)}
    before = [n for n in killed if attempts[n] == 2]
    after = [n for n in killed if attempts[n] == 1]
    for n in sorted(killed):
        print(n, killed[n], "before the commit" if n in before else "after it")
    assert till.payments == dict.fromkeys(range(1, 41), 1)
    # Until the commit, all is undone and done again; from there on, nothing is.
    assert max(before) < min(after)
    assert len(before) > 5
    assert len(after) > 3
    assert max(killed) < 40, "there are lines that were not tried"
