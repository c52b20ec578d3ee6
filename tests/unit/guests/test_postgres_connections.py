"""PostgreSQL connections as users set them up, and objects that cannot be used."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
import sqlalchemy
from psycopg import pq
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import create_async_engine

from ferryman import Ferryman
from ferryman.errors import ConfigError, QueueFull, StoreError, UnknownParent
from ferryman.task import Task

from .conftest import is_stored
from .customers import Asyncpg, Customer, Place, SqlalchemyAsyncSession, SqlalchemySession, enqueue, run
from .places import postgres_place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with postgres_place(tmp_path) as place:
        yield place


@pytest.fixture
def app(place: Place) -> Iterator[Ferryman]:
    app = Ferryman(place.url)
    yield app
    app.close()


def conninfo(place: Place) -> dict[str, Any]:
    words = psycopg.conninfo.conninfo_to_dict(place.address)
    return {"host": words["host"], "port": words["port"], "user": words["user"], "database": words["dbname"]}


@pytest.mark.parametrize("factory", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor])
def test_rows_and_placeholders_may_be_of_the_users_choice(
    place: Place, add: Task[..., Any], factory: Any
) -> None:
    with psycopg.connect(place.address, row_factory=dict_row) as connection:
        connection.cursor_factory = factory
        handle = add.options(using=connection, unique="u").enqueue(1)
        again = add.options(using=connection, unique="u").enqueue(1)

    assert again.duplicate
    assert is_stored(handle)


def test_codecs_of_the_users_choice_on_asyncpg(place: Place, add: Task[..., Any]) -> None:
    class Record(asyncpg.Record):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            return self[name]

    async def steps() -> None:
        connection = await asyncpg.connect(**conninfo(place), record_class=Record)
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with connection.transaction():
            task = add.options(using=connection, unique="u", tags=["t"], after=[])
            handle, again = await task.aenqueue(1), await task.aenqueue(1)
        await connection.close()

        assert again.id == handle.id
        assert is_stored(handle)

    asyncio.run(steps())


@pytest.mark.parametrize("kind", [Asyncpg, SqlalchemySession, SqlalchemyAsyncSession])
def test_errors_are_ours_whatever_the_driver(
    place: Place, app: Ferryman, add: Task[..., Any], kind: type[Customer]
) -> None:
    app.queue("small", max_size=1)
    customer = kind()

    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await enqueue(customer, add, 1, queue="small")
        with pytest.raises(QueueFull, match="queue 'small' is full: it holds max_size=1") as full:
            await enqueue(customer, add, 1, queue="small")
        with pytest.raises(UnknownParent, match="which the store does not have; it was never enqueued"):
            await enqueue(customer, add, 1, after=[app.job("0" * 32)])
        await customer.rollback()
        await customer.close()

        assert (full.value.queue, full.value.max_size) == ("small", 1)

    run(customer, steps())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "sqlalchemy", "sqlalchemy-asyncpg"])
def test_a_connection_that_commits_by_itself_commits_the_job_as_well(
    place: Place, add: Task[..., Any], driver: str
) -> None:
    url = place.address.replace("postgresql://", "postgresql+{}://")
    if driver == "psycopg":
        with psycopg.connect(place.address, autocommit=True) as connection:
            handle = add.options(using=connection).enqueue(1)
            assert connection.info.transaction_status == pq.TransactionStatus.IDLE
            assert is_stored(handle)
    elif driver == "sqlalchemy":
        engine = sqlalchemy.create_engine(url.format("psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection_:
            assert is_stored(add.options(using=connection_).enqueue(1))
        engine.dispose()
    else:
        asyncio.run(_commits_by_itself(place, add, url if driver != "asyncpg" else None))


async def _commits_by_itself(place: Place, add: Task[..., Any], url: str | None) -> None:
    if url is None:
        connection = await asyncpg.connect(**conninfo(place))
        assert is_stored(await add.options(using=connection).aenqueue(1))
        await connection.close()
        return
    engine = create_async_engine(url.format("asyncpg"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection_:
        assert is_stored(await add.options(using=connection_).aenqueue(1))
    await engine.dispose()


def test_the_first_job_ever_may_be_a_guest(place: Place) -> None:
    schema = f"{place.table.partition('.')[0]}_new"
    app = Ferryman(f"{place.address}?schema={schema}")

    @app.task
    def mark() -> None: ...

    with psycopg.connect(place.address) as connection:
        handle = mark.options(using=connection).enqueue()
        connection.commit()
        assert is_stored(handle)
        app.close()
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


# -- what cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [object(), "postgresql:///", sqlite3.connect(":memory:")], ids=["object", "url", "sqlite"]
)
def test_something_that_is_no_connection_to_postgresql(add: Task[..., Any], wrong: object) -> None:
    with pytest.raises(
        ConfigError, match="this store is in PostgreSQL: give it a connection of psycopg or asyncpg"
    ):
        add.options(using=wrong).enqueue(1)


def test_a_session_on_another_kind_of_database(add: Task[..., Any]) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(ConfigError, match="this store is in PostgreSQL"):
        add.options(using=connection).enqueue(1)
    engine.dispose()


def test_a_connection_to_another_database(place: Place, add: Task[..., Any]) -> None:
    with (
        psycopg.connect(place.address, dbname="template1") as connection,
        pytest.raises(ConfigError, match=r"has no tables of Ferryman in the schema .* to the same database"),
    ):
        add.options(using=connection).enqueue(1)


def test_a_closed_connection(place: Place, add: Task[..., Any]) -> None:
    connection = psycopg.connect(place.address)
    connection.close()

    with pytest.raises(StoreError, match="closed"):
        add.options(using=connection).enqueue(1)


def test_a_transaction_that_has_failed_already(place: Place, add: Task[..., Any]) -> None:
    with psycopg.connect(place.address) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(StoreError, match="current transaction is aborted"):
            add.options(using=connection).enqueue(1)
        connection.rollback()

        handle = add.options(using=connection).enqueue(1)
        connection.commit()

    assert is_stored(handle)


def test_an_asynchronous_connection_in_a_blocking_call(place: Place, add: Task[..., Any]) -> None:
    async def steps() -> None:
        async with await psycopg.AsyncConnection.connect(place.address) as connection:
            with pytest.raises(ConfigError, match=r"is asynchronous: await task\.options"):
                add.options(using=connection).enqueue(1)

    asyncio.run(steps())
