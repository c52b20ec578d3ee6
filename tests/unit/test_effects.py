"""Effects exactly once: what a task writes in the store's own database, and the end of its job, are one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from ferryman import Context, Fail, Ferryman, JobDied, Retry, Settings, Snooze, State, Transaction
from ferryman.config import BlobSettings
from ferryman.context import SoftTimeout
from ferryman.errors import LeaseLost, StoreUnavailable, Unsupported
from ferryman.io.guests.postgres import PostgresGuest
from ferryman.io.guests.sqlite import SqliteGuest
from ferryman.io.operation import Operation
from ferryman.job import JobId
from ferryman.outbox import Event, Outbox, RedisStreams
from ferryman.payload import is_reference
from tests.services import places
from tests.services.shared import redis_url

AT_ONCE = Retry(max_attempts=3, backoff="none")
ONE = Retry(max_attempts=1)


class Shop:
    """An app on a database in which it has a table of its own."""

    def __init__(self, url: str, connect: Callable[[], Any]) -> None:
        self.app = Ferryman(url)
        self.connect = connect
        self.mark = "%s" if url.startswith("postgresql") else "?"
        # Of this process alone: others use the same server.
        self.table = f"ledger_{os.getpid()}"
        self.run(f"DROP TABLE IF EXISTS {self.table}")
        self.run(f"CREATE TABLE {self.table} (entry TEXT NOT NULL)")

    def run(self, text: str, *params: object) -> list[Any]:
        connection = self.connect()
        try:
            cursor = connection.execute(text, params)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
            return list(rows)
        finally:
            connection.close()

    @property
    def entries(self) -> list[str]:
        return sorted(entry for (entry,) in self.run(f"SELECT entry FROM {self.table}"))

    def insert(self, connection: Any, entry: str) -> Any:
        return connection.execute(f"INSERT INTO {self.table} VALUES ({self.mark})", (entry,))

    def wait_for(self, job: JobId, state: State) -> None:
        handle = self.app.job(job)
        while handle.status() is not state:
            self.app.store.runner().wait(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "sqlite":
        path = tmp_path / "shop.db"
        shop = Shop(f"sqlite:///{path}", lambda: sqlite3.connect(path, timeout=20))
    else:
        url = places.postgres(tmp_path)
        shop = Shop(url, lambda: psycopg.connect(url.partition("?")[0]))
    yield shop
    shop.app.close()
    places.leave_postgres(tmp_path)


# -- a task that asks for a transaction


def test_writes_and_the_end_of_the_job_are_committed_together(shop: Shop) -> None:
    @shop.app.task
    def pay(tx: Transaction, amount: int) -> dict[str, int]:
        shop.insert(tx.connection, f"paid {amount}")
        return {"paid": amount}

    with shop.app.worker():
        results = [pay.enqueue(amount).result(timeout=20) for amount in (1, 2)]

    assert results == [{"paid": 1}, {"paid": 2}]
    assert shop.entries == ["paid 1", "paid 2"]


def test_an_async_task_has_a_transaction_too(shop: Shop) -> None:
    @shop.app.task
    async def pay(tx: Transaction, amount: int) -> int:
        done = shop.insert(tx.connection, f"paid {amount}")
        if asyncio.iscoroutine(done):
            await done
        await asyncio.sleep(0)
        return amount

    with shop.app.worker():
        jobs = pay.enqueue_many([(amount,) for amount in range(20)])
        results = [job.result(timeout=20) for job in jobs]

    assert results == list(range(20))
    assert len(shop.entries) == 20


def test_an_exception_undoes_what_the_attempt_wrote(shop: Shop) -> None:
    @shop.app.task(retry=AT_ONCE)
    def pay(tx: Transaction) -> int:
        shop.insert(tx.connection, f"attempt {tx.attempt}")
        if tx.attempt < 3:
            raise ConnectionError("the gateway is away")
        return tx.attempt

    with shop.app.worker():
        attempt = pay.enqueue().result(timeout=20)

    assert attempt == 3
    assert shop.entries == ["attempt 3"]


@pytest.mark.parametrize("signal", [Snooze(3_600), Fail("no such account")])
def test_a_signal_undoes_what_the_attempt_wrote(shop: Shop, signal: Snooze | Fail) -> None:
    @shop.app.task
    def pay(tx: Transaction) -> Any:
        shop.insert(tx.connection, "paid")
        return signal

    with shop.app.worker():
        job = pay.enqueue()
        shop.wait_for(job.id, State.SCHEDULED if isinstance(signal, Snooze) else State.DEAD)

    assert shop.entries == []


def test_an_attempt_that_was_given_up_by_others_leaves_nothing(shop: Shop) -> None:
    """Its worker is taken for dead while it runs: what it wrote must not stand beside what the next attempt writes."""
    app = shop.app

    @app.task(retry=AT_ONCE)
    def pay(ctx: Context) -> str:
        connection = shop.connect()
        try:
            if ctx.attempt == 1:
                app.perform(_lose(app, ctx.id))
            shop.insert(connection, f"attempt {ctx.attempt}")
            ctx.complete(f"attempt {ctx.attempt}", using=connection)
            connection.commit()
        except LeaseLost:
            connection.rollback()
            raise
        finally:
            connection.close()
        return "not looked at"

    with app.worker():
        result = pay.enqueue().result(timeout=20)

    assert result == "attempt 2"
    assert shop.entries == ["attempt 2"]


def _lose(app: Ferryman, id_: JobId) -> Any:
    (job,) = yield app.store.get([id_])
    yield app.store.rescue([job.worker])


# -- a transaction of the user's own


def test_a_job_that_completes_in_a_transaction_that_is_rolled_back_runs_again(shop: Shop) -> None:
    @shop.app.task(retry=AT_ONCE)
    def pay(ctx: Context) -> Any:
        connection = shop.connect()
        shop.insert(connection, f"attempt {ctx.attempt}")
        ctx.complete(ctx.attempt, using=connection)
        if ctx.attempt == 2:
            connection.commit()
        connection.close()

    with shop.app.worker():
        job = pay.enqueue()
        result = job.result(timeout=20)

    assert result == 2
    assert shop.entries == ["attempt 2"]
    history = shop.app.store.runner().run(shop.app.store.history(job.id))
    assert history is not None
    assert [attempt.error.type for attempt in history.attempts if attempt.error] == ["RolledBack"]


def test_what_happens_after_the_commit_changes_nothing(shop: Shop) -> None:
    @shop.app.task(retry=AT_ONCE)
    def pay(ctx: Context) -> Any:
        connection = shop.connect()
        shop.insert(connection, f"attempt {ctx.attempt}")
        ctx.complete("paid", using=connection)
        connection.commit()
        connection.close()
        raise RuntimeError("too late")

    with shop.app.worker():
        job = pay.enqueue()
        assert job.result(timeout=20) == "paid"
        next_one = pay.enqueue()
        next_one.result(timeout=20)

    assert job.status() is State.SUCCEEDED
    assert shop.entries == ["attempt 1", "attempt 1"]


def test_children_go_on_when_the_transaction_is_committed(shop: Shop) -> None:
    @shop.app.task
    def pay(tx: Transaction) -> str:
        shop.insert(tx.connection, "paid")
        return "receipt"

    @shop.app.task
    def tell(ctx: Context) -> list[str]:
        return ctx.results(str)

    paid = pay.enqueue()
    told = tell.options(after=[paid]).enqueue()
    with shop.app.worker():
        assert told.result(timeout=20) == ["receipt"]


def test_whoever_has_completed_and_forgets_to_commit_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    url = places.postgres(tmp_path)
    app = Ferryman(url)
    patience: list[str] = []

    @app.task
    def pay(ctx: Context) -> None:
        with psycopg.connect(url.partition("?")[0]) as connection:
            for _ in range(2):
                (found,) = connection.execute("SHOW idle_in_transaction_session_timeout").fetchall()
                patience.append(found[0])
                if not ctx.completed:
                    ctx.complete(using=connection)

    with app.worker():
        pay.enqueue().result(timeout=20)

    app.close()
    places.leave_postgres(tmp_path)
    assert patience == ["0", "10s"]


# -- what a lent connection is not for


def test_a_transaction_that_was_lent_cannot_be_completed_by_hand(shop: Shop) -> None:
    @shop.app.task(retry=ONE)
    def pay(tx: Transaction) -> None:
        shop.insert(tx.connection, "paid")
        tx.complete("paid", using=tx.connection)

    with shop.app.worker(), pytest.raises(JobDied, match="ends its job by returning"):
        pay.enqueue().result(timeout=20)

    assert shop.entries == []


@pytest.mark.parametrize("how", ["commit", "rollback", "with"])
def test_a_transaction_that_was_lent_cannot_be_ended_by_hand(shop: Shop, how: str) -> None:
    @shop.app.task(retry=ONE)
    def pay(tx: Transaction) -> None:
        shop.insert(tx.connection, "paid")
        if how == "with":
            with tx.connection:
                shop.insert(tx.connection, "paid again")
        else:
            getattr(tx.connection, how)()

    with shop.app.worker(), pytest.raises(JobDied, match="Transaction"):
        pay.enqueue().result(timeout=20)

    assert shop.entries == []


WAYS: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "COMMIT": lambda connection: connection.execute("COMMIT"),
    "END": lambda connection: connection.execute("END"),
    "ROLLBACK": lambda connection: connection.execute("ROLLBACK"),
    "a cursor": lambda connection: connection.cursor().execute("COMMIT"),
    "a script": lambda connection: connection.executescript("SELECT 1"),
    "a cursor's script": lambda connection: connection.cursor().executescript("SELECT 1"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("swallowed", [False, True])
def test_sqlite_itself_keeps_a_transaction_that_was_lent_open(
    tmp_path: Path, way: str, swallowed: bool
) -> None:
    path = tmp_path / "shop.db"
    shop = Shop(f"sqlite:///{path}", lambda: sqlite3.connect(path, timeout=20))

    @shop.app.task(retry=ONE)
    def pay(tx: Transaction) -> str:
        shop.insert(tx.connection, "paid")
        with contextlib.suppress(sqlite3.DatabaseError if swallowed else ZeroDivisionError):
            WAYS[way](tx.connection)
        if shop.entries:
            return "others see it"
        return "not ended"

    with shop.app.worker():
        job = pay.enqueue()
        if swallowed:
            assert job.result(timeout=20) == "not ended"
        else:
            with pytest.raises(JobDied, match="is not for the connection of a Transaction"):
                job.result(timeout=20)
    shop.app.close()

    assert shop.entries == (["paid"] if swallowed else [])


def test_savepoints_are_the_tasks_own_inside_a_transaction_that_was_lent(shop: Shop) -> None:
    @shop.app.task(retry=ONE)
    def pay(tx: Transaction) -> None:
        shop.insert(tx.connection, "before")
        tx.connection.execute("SAVEPOINT mine")
        shop.insert(tx.connection, "undone")
        tx.connection.execute("ROLLBACK TO mine")
        tx.connection.execute("RELEASE mine")
        shop.insert(tx.connection, "after")

    with shop.app.worker():
        pay.enqueue().result(timeout=20)

    assert shop.entries == ["after", "before"]


def test_what_is_written_after_an_error_that_rolled_all_back_does_not_stand(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    shop = Shop(f"sqlite:///{path}", lambda: sqlite3.connect(path, timeout=20))
    shop.run(f"CREATE UNIQUE INDEX entries ON {shop.table} (entry)")

    @shop.app.task(retry=AT_ONCE)
    def pay(tx: Transaction, goes_on: bool) -> None:
        shop.insert(tx.connection, "paid")
        with contextlib.suppress(sqlite3.IntegrityError):
            tx.connection.execute(f"INSERT OR ROLLBACK INTO {shop.table} VALUES ('paid')")
        if goes_on:
            shop.insert(tx.connection, "and stamped")

    with shop.app.worker():
        for goes_on in (False, True):
            with pytest.raises(JobDied):
                pay.enqueue(goes_on).result(timeout=20)
    shop.app.close()

    assert shop.entries == []


@pytest.mark.parametrize("colour", ["def", "async def"])
@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_job_whose_transaction_was_ended_by_a_statement_is_dead_and_not_run_twice(
    tmp_path: Path, colour: str, statement: str
) -> None:
    url = places.postgres(tmp_path)
    shop = Shop(url, lambda: psycopg.connect(url.partition("?")[0]))

    @shop.app.task(name="pay", retry=AT_ONCE)
    def pay(tx: Transaction) -> None:
        shop.insert(tx.connection, "paid")
        tx.connection.execute(statement)

    @shop.app.task(name="apay", retry=AT_ONCE)
    async def apay(tx: Transaction) -> None:
        await shop.insert(tx.connection, "paid")
        await tx.connection.execute(statement)

    with shop.app.worker(), pytest.raises(JobDied, match="ended by a statement"):
        (pay if colour == "def" else apay).enqueue().result(timeout=20)

    entries = shop.entries
    shop.app.close()
    places.leave_postgres(tmp_path)
    assert entries == (["paid"] if statement == "COMMIT" else [])


def test_a_large_result_is_kept_in_the_store_while_its_place_is_away(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("no folder")
    blobs = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    app = Ferryman(settings=Settings(url=shop.app.settings.url, max_payload=10_000, blobs=blobs))

    @app.task(retry=ONE)
    def pay(tx: Transaction, size: int) -> bytes:
        shop.insert(tx.connection, f"paid {size}")
        return os.urandom(size)

    @app.task(retry=ONE)
    async def apay(tx: Transaction, size: int) -> bytes:
        done = shop.insert(tx.connection, f"paid {size}")
        if asyncio.iscoroutine(done):
            await done
        return os.urandom(size)

    with app.worker():
        assert len(pay.enqueue(2_000).result(timeout=20)) == 2_000
        assert len(apay.enqueue(3_000).result(timeout=20)) == 3_000
        with pytest.raises(JobDied, match="blobs"):
            pay.enqueue(20_000).result(timeout=20)
    app.close()

    assert shop.entries == ["paid 2000", "paid 3000"]


def test_where_nobody_else_can_write_only_a_result_that_has_to_is_put_elsewhere(tmp_path: Path) -> None:
    blobs = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    url = f"sqlite:///{tmp_path}/jobs.db"
    app = Ferryman(settings=Settings(url=url, max_payload=10_000, blobs=blobs))

    @app.task
    def draw(tx: Transaction, size: int) -> bytes:
        return os.urandom(size)

    with app.worker():
        jobs = [draw.enqueue(size) for size in (2_000, 9_997, 20_000)]
        sizes = [len(job.result(timeout=20)) for job in jobs]
    outside = [is_reference(job.record().result) for job in jobs]
    app.close()

    assert sizes == [2_000, 9_997, 20_000]
    assert outside == [False, False, True]


# -- keys and windows inside the transaction


def test_a_call_that_breaks_the_transaction_says_so_itself(shop: Shop) -> None:
    connection = shop.connect()

    with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable), match="no_such_table"):
        shop.app.once("k", lambda: connection.execute("SELECT * FROM no_such_table"), using=connection)

    connection.rollback()
    connection.close()
    assert shop.app.once("k", lambda: 1).value == 1


def test_a_call_that_outlives_its_lease_is_not_committed(shop: Shop) -> None:
    connection = shop.connect()

    def charge() -> str:
        shop.insert(connection, "charge")
        threading.Event().wait(0.02)
        return "receipt"

    with pytest.raises(LeaseLost, match="longer lease"):
        shop.app.once("k", charge, lease=0.005, using=connection)

    connection.rollback()
    connection.close()
    assert shop.entries == []


def test_a_stop_while_a_call_is_noted_inside_a_transaction_is_a_stop(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = SqliteGuest if shop.mark == "?" else PostgresGuest
    run, names = kind.run, []

    def run_until_hit(guest: Any, operation: Operation[Any]) -> Any:
        names.append(operation.name)
        answer = run(guest, operation)
        if names.count("kv_put") == 2:
            raise KeyboardInterrupt
        return answer

    connection = shop.connect()
    monkeypatch.setattr(kind, "run", run_until_hit)
    with pytest.raises(KeyboardInterrupt):
        shop.app.once("k", lambda: shop.insert(connection, "charge") and None, using=connection)
    monkeypatch.undo()

    connection.rollback()
    connection.close()
    assert shop.app.once("k", lambda: 1).duplicate is False
    assert shop.entries == []


def test_who_keeps_others_from_writing_does_not_wait_for_them(tmp_path: Path) -> None:
    app = Ferryman(f"sqlite:///{tmp_path}/jobs.db")
    app.store.runner().run(app.store.kv_put("once:k", b"\x00somebody", expected=None, ttl=60_000))

    with (
        contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as connection,
        pytest.raises(StoreUnavailable, match="roll back and try again"),
    ):
        app.once("k", lambda: 1, using=connection)
    app.close()


def test_a_call_made_once_inside_a_transaction_is_forgotten_with_it(shop: Shop) -> None:
    def charge(connection: Any, entry: str) -> Callable[[], str]:
        def call() -> str:
            shop.insert(connection, entry)
            return entry

        return call

    answers = []
    for number, commit in enumerate((False, True, True)):
        connection = shop.connect()
        once = shop.app.once("order-7", charge(connection, f"charge {number}"), using=connection)
        answers.append((once.value, once.duplicate))
        (connection.commit if commit else connection.rollback)()
        connection.close()

    assert answers == [("charge 0", False), ("charge 1", False), ("charge 1", True)]
    assert shop.entries == ["charge 1"]


def test_a_message_counts_as_seen_only_with_what_it_caused(shop: Shop) -> None:
    window = shop.app.window("payments", seconds=60)
    seen = []
    for commit in (False, True, True):
        connection = shop.connect()
        seen.append(window.first("event-1", using=connection))
        (connection.commit if commit else connection.rollback)()
        connection.close()

    assert seen == [True, True, False]


# -- the outbox


def test_events_are_published_only_if_the_transaction_is_committed_and_in_order(
    shop: Shop, tmp_path: Path
) -> None:
    topic = f"test-{tmp_path.name}-{shop.mark}"
    client = redis.Redis.from_url(redis_url())
    outbox = Outbox(shop.app, RedisStreams(redis_url()))

    for number in range(30):
        connection = shop.connect()
        shop.insert(connection, f"payment {number}")
        outbox.publish(topic, {"number": number}, key=f"customer-{number % 3}", using=connection)
        (connection.rollback if number % 5 == 4 else connection.commit)()
        connection.close()
    with shop.app.worker():
        while client.xlen(topic) < 24:
            shop.app.store.runner().wait(0.05)

    entries: list[Any] = [fields for _, fields in client.xrange(topic) or []]
    client.delete(topic)
    client.close()
    assert len({fields[b"id"] for fields in entries}) == len(entries) == 24
    for customer in range(3):
        numbers = [f[b"value"] for f in entries if f[b"key"] == f"customer-{customer}".encode()]
        expected = [n for n in range(30) if n % 3 == customer and n % 5 != 4]
        assert numbers == [f'{{"number":{n}}}'.encode() for n in expected]


def test_an_event_waits_while_its_broker_is_away(shop: Shop) -> None:
    published: list[Event] = []

    class Moody:
        def publish(self, event: Event) -> None:
            published.append(event)
            if len(published) < 3:
                raise ConnectionError("away")

    outbox = Outbox(shop.app, Moody())
    with shop.app.worker():
        event = outbox.publish("payments", b"raw", key="k")
        event.result(timeout=20)

    assert [each.id for each in published] == [event.id] * 3
    assert published[0].value == b"raw"


class Denied(Exception):
    status = 403


class Denying:
    """A broker whose credentials are being changed, as HTTP clients tell of it."""

    def __init__(self, refusals: int, error: BaseException | None = None) -> None:
        self.tries = 0
        self._refusals = refusals
        self._error = error or Denied("no such token: " + "x" * 5_000)

    def publish(self, event: Event) -> None:
        self.tries += 1
        if self.tries <= self._refusals:
            raise self._error


def test_an_event_waits_whatever_its_broker_answers() -> None:
    app = Ferryman("memory://")
    outbox = Outbox(app, Denying(2))

    with app.worker():
        event = outbox.publish("payments", b"raw", key="k")
        event.result(timeout=20)

    assert event.record().attempt == 3
    app.close()


@pytest.mark.parametrize("error", [Denied("no such token: " + "x" * 5_000), SoftTimeout("no such token")])
def test_an_event_that_waits_keeps_one_traceback_and_a_line_for_each_failure_after_it(
    error: BaseException,
) -> None:
    app = Ferryman("memory://")
    outbox = Outbox(app, Denying(3, error))

    with app.worker():
        event = outbox.publish("payments", b"raw")
        event.result(timeout=20)

    history = app.store.runner().run(app.store.history(event.id))
    assert history is not None
    errors = [attempt.error for attempt in history.attempts if attempt.error]
    app.close()
    assert [bool(error.traceback) for error in errors] == [True, False, False]
    assert all("no such token" in error.message for error in errors)
    assert all(len(error.message) < 400 for error in errors[1:])


class Overloaded(Exception):
    retry_after = 0


def test_a_broker_that_asks_for_no_pause_is_tried_less_and_less_often_all_the_same() -> None:
    app = Ferryman("memory://")
    outbox = Outbox(app, Denying(3, Overloaded()))

    with app.worker():
        event = outbox.publish("payments", b"raw")
        event.result(timeout=20)

    history = app.store.runner().run(app.store.history(event.id))
    assert history is not None
    second, third = [attempt for attempt in history.attempts if attempt.number in (2, 3)]
    app.close()
    assert third.started_at - second.finished_at > 200


def test_a_publisher_can_say_that_an_event_is_not_to_be_published() -> None:
    app = Ferryman("memory://")
    outbox = Outbox(app, Denying(1, Fail("no such topic")))

    with app.worker(), pytest.raises(JobDied, match="no such topic"):
        outbox.publish("payments", b"raw").result(timeout=20)

    app.close()


# -- stores without transactions


def test_a_store_without_transactions_says_which_have_them() -> None:
    app = Ferryman("memory://")

    @app.task
    def pay(tx: Transaction) -> None: ...

    with app.worker(), pytest.raises(JobDied, match="SQLite and PostgreSQL"):
        pay.options(retry=Retry(max_attempts=1)).enqueue().result(timeout=20)
    with pytest.raises(Unsupported, match="SQLite and PostgreSQL"):
        app.window("w", seconds=1).first("id", using=object())
    app.close()
