"""SQLite connections as users set them up: whatever they are told to do with rows and values, jobs are stored alike."""

from __future__ import annotations

import asyncio
import contextlib
import select
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from ferryman import Ferryman, State
from ferryman.errors import ConfigError, StoreError, StoreReadOnly, StoreUnavailable, Unsupported
from ferryman.io.operation import Procedure
from ferryman.job import WorkerId
from ferryman.store.records import QueueRecord
from ferryman.task import Task
from tests.conformance.driver import check_counts, worker_info

from .conftest import is_stored
from .customers import Django, Place


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "shop.db")


@pytest.fixture
def app(path: str) -> Iterator[Ferryman]:
    app = Ferryman(f"sqlite:///{path}")
    yield app
    app.close()


@pytest.fixture
def add(app: Ferryman) -> Task[..., Any]:
    @app.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


@pytest.fixture
def connection(path: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def test_the_first_job_ever_may_be_a_guest(connection: sqlite3.Connection, add: Task[..., Any]) -> None:
    rolled_back = add.options(using=connection).enqueue(1)
    connection.rollback()
    kept = add.options(using=connection).enqueue(2)
    connection.commit()

    assert not is_stored(rolled_back)
    assert is_stored(kept)


@pytest.mark.parametrize(
    "settings",
    [
        {"isolation_level": "DEFERRED"},
        {"isolation_level": "IMMEDIATE"},
        {"isolation_level": "EXCLUSIVE"},
        {"cached_statements": 0},
        {"detect_types": sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES},
        *([{"autocommit": False}] if sys.version_info >= (3, 12) else []),
    ],
    ids=str,
)
def test_settings_of_a_connection_make_no_difference(
    path: str, add: Task[..., Any], settings: dict[str, Any]
) -> None:
    with contextlib.closing(sqlite3.connect(path, **settings)) as connection:
        gone = add.options(using=connection).enqueue(1)
        connection.rollback()
        kept = add.options(using=connection).enqueue(2)
        assert connection.in_transaction
        connection.commit()

    assert not is_stored(gone)
    assert is_stored(kept)


def test_others_who_write_meanwhile_do_not_make_a_transaction_fail_that_has_only_begun(
    path: str, connection: sqlite3.Connection, add: Task[..., Any]
) -> None:
    add.enqueue(0)
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (n INTEGER)")
        connection.execute("BEGIN DEFERRED")

        def write(_statement: str) -> None:
            with contextlib.suppress(sqlite3.OperationalError):
                other.execute("INSERT INTO theirs VALUES (1)")

        connection.set_trace_callback(write)
        handle = add.options(using=connection).enqueue(1)
        connection.commit()

    assert is_stored(handle)


def test_a_connection_that_commits_by_itself_commits_the_job_as_well(
    path: str, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("small", max_size=1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        handle = add.options(using=connection, queue="small").enqueue(1)

        assert not connection.in_transaction
        assert is_stored(handle)
        with pytest.raises(Exception, match="is full"):
            app.enqueue_many([add.call(2), add.options(queue="small").call(3)], using=connection)
        assert not connection.in_transaction
        check_counts(app.store)


def test_an_error_leaves_no_transaction_where_there_was_none(
    connection: sqlite3.Connection, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("small", max_size=1)
    add.options(queue="small").enqueue(0)

    with pytest.raises(Exception, match="is full"):
        add.options(using=connection, queue="small").enqueue(1)

    assert not connection.in_transaction


def test_rows_and_texts_may_be_made_as_the_user_likes(
    connection: sqlite3.Connection, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("fair", fair=True, weights={"acme": 2.0}, max_size=100, overflow="drop_oldest")
    app.store.runner().run(app.store.register(worker_info(WorkerId("w"), bell="/nowhere"), 60_000))
    connection.row_factory = lambda cursor, row: {"row": row}
    connection.text_factory = as_the_user_likes = lambda raw: f"<{raw!r}>"

    handle = add.options(using=connection, queue="fair", tenant="acme", unique="u", tags=["t"]).enqueue(1)
    again = add.options(using=connection, unique="u").enqueue(1)
    connection.commit()

    assert again.id == handle.id
    assert connection.text_factory is as_the_user_likes
    assert connection.execute("SELECT 'x'").fetchone() == {"row": ("<b'x'>",)}
    check_counts(app.store)


def test_converters_for_our_types_are_of_no_account(
    path: str, app: Ferryman, add: Task[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add.enqueue(0)
    for name in ("INTEGER", "TEXT", "BLOB", "REAL"):
        monkeypatch.setitem(sqlite3.converters, name, lambda value: f"converted {value!r}")
    with contextlib.closing(sqlite3.connect(path, detect_types=sqlite3.PARSE_DECLTYPES)) as connection:
        handle = add.options(using=connection, unique="u").enqueue(1)
        connection.commit()
        (converted,) = connection.execute("SELECT state FROM ferryman_job").fetchone()

    assert is_stored(handle)
    assert converted.startswith("converted")
    check_counts(app.store)


def test_a_file_may_have_two_names(path: str, add: Task[..., Any], tmp_path: Path) -> None:
    add.enqueue(0)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with contextlib.closing(sqlite3.connect(link)) as connection:
        handle = add.options(using=connection).enqueue(1)
        connection.commit()

    assert is_stored(handle)


def test_tables_of_the_users_own_with_the_same_names_are_left_alone(
    connection: sqlite3.Connection, app: Ferryman, add: Task[..., Any]
) -> None:
    connection.executescript("CREATE TABLE job (x); CREATE TABLE queue (y); CREATE INDEX job_id ON job (x);")

    with app.worker():
        assert add.enqueue(1, 2).result(timeout=20) == 3

    assert connection.execute("SELECT count(*) FROM job").fetchone() == (0,)
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    assert connection.execute("PRAGMA application_id").fetchone() == (0,)


# -- what cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [object(), "sqlite:///shop.db", 7, sqlalchemy.create_engine("sqlite://"), sqlalchemy.text("SELECT 1")],
)
def test_something_that_is_no_connection(add: Task[..., Any], wrong: object) -> None:
    with pytest.raises(
        ConfigError, match=r"this store is in SQLite: give it a connection of sqlite3 or aiosqlite"
    ):
        add.options(using=wrong).enqueue(1)


def test_a_connection_to_another_file(add: Task[..., Any], tmp_path: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection,
        pytest.raises(ConfigError, match=r"other\.db.* and this store is in .*shop\.db"),
    ):
        add.options(using=connection).enqueue(1)


def test_a_connection_to_no_file(add: Task[..., Any]) -> None:
    add.enqueue(0)
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(ConfigError, match=r"a connection to ':memory:'"),
    ):
        add.options(using=connection).enqueue(1)


def test_a_closed_connection(path: str, add: Task[..., Any]) -> None:
    connection = sqlite3.connect(path)
    connection.close()

    with pytest.raises(StoreError, match="closed"):
        add.options(using=connection).enqueue(1)


def test_a_closed_connection_of_aiosqlite(path: str, add: Task[..., Any]) -> None:
    async def steps() -> None:
        connection = await aiosqlite.connect(path)
        await connection.close()
        with pytest.raises(StoreError, match="closed"):
            await add.options(using=connection).aenqueue(1)

    asyncio.run(steps())


def test_an_asynchronous_connection_in_a_blocking_call(path: str, add: Task[..., Any]) -> None:
    async def steps() -> None:
        async with aiosqlite.connect(path) as connection:
            with pytest.raises(ConfigError, match=r"is asynchronous: await task\.options"):
                add.options(using=connection).enqueue(1)

    asyncio.run(steps())


def test_a_blocking_connection_in_a_coroutine(connection: sqlite3.Connection, add: Task[..., Any]) -> None:
    handle = asyncio.run(add.options(using=connection).aenqueue(1))
    connection.commit()

    assert is_stored(handle)


def test_a_connection_that_may_not_write(path: str, add: Task[..., Any]) -> None:
    add.enqueue(0)
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
        pytest.raises(StoreReadOnly),
    ):
        add.options(using=connection).enqueue(1)


def test_a_transaction_that_has_read_what_is_old_by_now(path: str, add: Task[..., Any]) -> None:
    add.enqueue(0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM ferryman_job").fetchone()
        add.enqueue(1)

        with pytest.raises(
            StoreUnavailable, match="let transactions that will write begin with BEGIN IMMEDIATE"
        ):
            add.options(using=connection).enqueue(2)

        connection.execute("ROLLBACK")


def test_two_connections_for_one_batch(app: Ferryman, connection: sqlite3.Connection, path: str) -> None:
    @app.task
    def mark(n: int) -> None: ...

    with contextlib.closing(sqlite3.connect(path)) as other:
        calls = [mark.options(using=connection).call(1), mark.options(using=other).call(2)]

        with pytest.raises(ConfigError, match="different using="):
            app.enqueue_many(calls)


def test_the_calls_of_a_batch_bring_their_connection_along(
    app: Ferryman, connection: sqlite3.Connection, add: Task[..., Any]
) -> None:
    task = add.options(using=connection)

    handles = [*app.enqueue_many([task.call(1), task.options(delay=5).call(2)]), *task.enqueue_many([(3,)])]
    connection.rollback()

    assert not any(is_stored(handle) for handle in handles)


def test_the_memory_store_has_no_transactions_to_share(connection: sqlite3.Connection) -> None:
    app = Ferryman("memory://")

    @app.task
    def mark() -> None: ...

    with pytest.raises(Unsupported, match="the stores SQLite and PostgreSQL can"):
        mark.options(using=connection).enqueue()


# -- started at once -----------------------------------------------------------------------------------


def is_rung(waker: Any) -> bool:
    ready, _, _ = select.select([waker], [], [], 0)
    return bool(ready)


@pytest.fixture
def waker(app: Ferryman) -> Iterator[Any]:
    """The bell of a worker that waits."""
    with contextlib.closing(app.store.waker()) as waker:
        info = worker_info(WorkerId("w"), bell=waker.address)
        app.store.runner().run(app.store.register(info, 60_000))
        yield waker


def test_the_commit_of_a_session_rings_the_bell(
    path: str, app: Ferryman, add: Task[..., Any], waker: Any
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with Session(engine) as session:
        for _ in range(2):
            add.options(using=session).enqueue(1)
            session.rollback()
            add.options(using=session).enqueue(2)
            with session.begin_nested():
                add.options(using=session).enqueue(3)
            assert not is_rung(waker)

            session.commit()

            assert is_rung(waker)
            waker.drain()
        session.execute(sqlalchemy.text("DELETE FROM ferryman_tag"))
        session.commit()

        assert not is_rung(waker)
    engine.dispose()


def test_the_commit_of_djangos_atomic_rings_the_bell(
    path: str, app: Ferryman, add: Task[..., Any], waker: Any
) -> None:
    from django.db import connection, transaction  # type: ignore[import-untyped]

    customer = Django()
    with contextlib.suppress(StopIteration):
        customer.open(Place(app.settings.url, "sqlite", path, "")).send(None)
    with transaction.atomic():
        add.options(using=connection).enqueue(1)
        transaction.set_rollback(True)
    assert not is_rung(waker)
    with transaction.atomic():
        handle = add.options(using=connection).enqueue(2)
        assert not is_rung(waker)

    assert is_rung(waker)
    waker.drain()
    alone = add.options(using=connection).enqueue(3)
    assert is_rung(waker)
    assert [handle.status(), alone.status()] == [State.READY] * 2
    with contextlib.suppress(StopIteration):
        customer.close().send(None)


def test_settings_that_were_rolled_back_are_declared_again(
    connection: sqlite3.Connection, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("small", max_size=1)
    task = add.options(using=connection, queue="small")
    task.enqueue(1)
    connection.rollback()
    task.enqueue(2)
    connection.commit()

    def queues() -> Procedure[list[QueueRecord]]:
        records: list[QueueRecord] = yield app.store.queues()
        return records

    assert [record.settings.max_size for record in app.perform(queues())] == [1]
